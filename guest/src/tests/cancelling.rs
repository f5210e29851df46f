//! Cancelling: what stops, when it is over, and what still runs.

use neoc_abi::event::Finish;
use neoc_abi::{Operation, time, wire};

use super::{Guest, check, operation_of};

const TASK: &str = "local task = require('std:task')\n";

fn check_task(source: &str, expected: &str) {
    check(&format!("{TASK}{source}"), expected);
}

#[test]
fn a_cancelled_task_ends_only_once_the_host_has_stopped_its_work() {
    let mut guest = Guest::run(&format!(
        "{TASK}local t = task.spawn(function() print(pcall(task.wait, 9)) end)
         print(task.cancel(t), task.status(t))
         print(task.try_await(t))"
    ));
    assert_eq!(guest.printed(), "true\twaiting");
    let submitted = guest.submitted();
    assert_eq!(guest.confirm_cancelled(), [submitted[0].0]);
    assert_eq!(guest.printed(), "false\tcancelled: the task was cancelled;true");
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn no_pcall_swallows_it() {
    check_task(
        "local ch, sem = task.channel(1), task.semaphore(1)
         local t = task.spawn(function()
             for _, call in {
                 function() task.wait(9) end,
                 function() task.wait(0) end,
                 function() task.await(task.current()) end,
                 function() task.spawn(print) end,
                 function() ch:put(1) end,
                 function() ch:get() end,
                 function() sem:acquire() end,
                 function() require('std:kv').get('k') end,
             } do
                 local ok, e = pcall(call)
                 print(ok, e.kind)
             end
         end)
         task.cancel(t)",
        "false\tcancelled;false\tcancelled;false\tcancelled;false\tcancelled;false\tcancelled;\
         false\tcancelled;false\tcancelled;false\tcancelled",
    );
}

#[test]
fn a_wait_that_the_host_answers_at_once_is_refused_too() {
    let source = "local t = task.spawn(function() print(pcall(task.wait, 1)) end) print(task.cancel(t))";
    let mut guest = Guest::run_on(
        |bytes| {
            let operation = operation_of(bytes);
            Some(wire::encode(&super::answer(operation)).expect("encodes"))
        },
        &format!("{TASK}{source}"),
    );
    assert_eq!(guest.printed(), "true;false\tcancelled: the task was cancelled");
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn a_task_that_does_not_listen_is_ended() {
    check_task(
        "local n = 0
         local t = task.spawn(function()
             task.finally(print, 'cleaned up')
             while true do n += 1 pcall(task.wait, 1) end
         end)
         task.cancel(t)
         print(task.try_await(t))
         print(n > 50, n < 200, task.status(t))",
        "cleaned up;false\tcancelled: the task was cancelled, and did not listen;\
         true\ttrue\tcancelled",
    );
}

#[test]
fn a_task_that_does_not_listen_has_no_vm_stand_still() {
    let mut guest = Guest::run(&format!(
        "{TASK}local n, t = 0, setmetatable({{}}, {{ __index = function(_, key)
             return if key == 'wrapped' then coroutine.wrap(task.wait)(1) else task.wait(1)
         end }})
         local stubborn = task.spawn(function()
             pcall(task.wait, 9)
             for _ = 1, 200 do
                 if not pcall(function() return t.plain end) then n += 1 end
                 if not pcall(function() return t.wrapped end) then n += 1 end
             end
         end)
         task.spawn(function() task.wait(1000) print('other') end)
         task.cancel(stubborn)
         task.await(stubborn)
         print(n)"
    ));
    assert_eq!(guest.confirm_cancelled().len(), 1);
    assert_eq!((guest.printed(), guest.stalls()), ("400".to_owned(), vec![]));
    guest.answer_all();
    assert_eq!((guest.printed(), guest.finish()), ("other".to_owned(), Some(Finish::Done)));
}

#[test]
fn a_plain_yield_of_a_cancelled_task_is_its_last() {
    check_task(
        "local t = task.spawn(function() coroutine.yield() print('never') end)
         print(task.cancel(t)) task.wait(1) print(task.status(t))
         local u u = task.spawn(function()
             task.defer(function() task.cancel(u) end)
             while true do coroutine.yield() end
         end)
         task.wait(1) print(task.status(u))",
        "true;cancelled;cancelled",
    );
}

#[test]
fn a_task_that_was_ended_by_a_plain_yield_fails_for_those_that_await_it() {
    check_task(
        "local t = task.spawn(function() coroutine.yield() end)
         task.spawn(function() print(task.try_await(t)) end)
         task.cancel(t) task.wait(0)
         print(pcall(task.await_all, { t }))
         print(pcall(task.await_any, { t }))",
        "false\tcancelled: the task was cancelled, and did not listen;\
         false\tcancelled: the task was cancelled, and did not listen;\
         false\tcancelled: the task was cancelled, and did not listen",
    );
}

#[test]
fn a_task_that_has_not_begun_never_does() {
    check_task(
        "local t = task.defer(print, 'never')
         print(task.status(t), task.cancel(t), task.status(t), task.cancel(t))
         print(task.try_await(t))
         local u = task.delay(5, print, 'never')
         print(task.cancel(u), task.try_await(u))",
        "ready\ttrue\tcancelled\tfalse;false\tcancelled: the task was cancelled;\
         true\tfalse\tcancelled: the task was cancelled",
    );
}

#[test]
fn a_task_that_had_not_begun_when_all_were_cancelled_is_known_as_cancelled() {
    let mut guest = Guest::run(&format!(
        "{TASK}local late
         task.spawn(function()
             task.finally(function()
                 print(task.status(late), task.try_await(late))
                 print(pcall(task.await_all, {{ late }}))
             end)
             task.wait(9)
         end)
         late = task.defer(print, 'never')
         error('broken', 0)"
    ));
    guest.answer_all();
    let cancelled = "cancelled: the task was cancelled";
    assert_eq!(guest.printed(), format!("cancelled\tfalse\t{cancelled};false\t{cancelled}"));
    assert_eq!(guest.failure().message, "broken");
}

#[test]
fn cancelling_what_has_ended_does_nothing() {
    check_task(
        "local t, u = task.spawn(print, 'x'), task.spawn(error, 'e')
         print(task.cancel(t), task.status(t), task.cancel(u), task.status(u), pcall(task.await, u))",
        "x;false\tdone\tfalse\tfailed\tfalse\te",
    );
}

#[test]
fn a_task_that_cancels_itself_is_told_at_once() {
    check_task(
        "local t = task.spawn(function()
             print(pcall(task.cancel, task.current()))
             print(pcall(task.wait, 1))
             error('still cancelled')
         end)
         print(task.status(t))",
        "false\tcancelled: the task was cancelled;false\tcancelled: the task was cancelled;cancelled",
    );
}

#[test]
fn an_ancestor_that_is_cancelled_by_its_child_learns_at_its_next_wait() {
    check_task(
        "local parent
         parent = task.spawn(function()
             task.wait(0)
             task.spawn(function() print(task.cancel(parent)) end)
             print('goes on')
             print(pcall(task.wait, 1))
         end)",
        "true;goes on;false\tcancelled: the task was cancelled",
    );
}

#[test]
fn a_cancelled_handler_fails_and_takes_its_tasks_along() {
    let mut guest = Guest::run(&format!(
        "{TASK}local me = task.current()
         task.spawn(function() task.finally(print, 'child') task.wait(9) end)
         task.spawn(function() task.cancel(me) end)
         task.wait(9)"
    ));
    guest.answer_all();
    assert_eq!(guest.printed(), "child");
    assert_eq!(guest.failure().message, "main.luau:5: cancelled: the task was cancelled");
}

#[test]
fn cleanups_run_in_reverse_however_the_task_ends() {
    check_task(
        "local function begin(name) task.finally(print, name, 1) task.finally(print, name, 2) end
         local a = task.spawn(function() begin('returned') return 'result' end)
         print(task.await(a))
         local b = task.spawn(function() begin('failed') error('e', 0) end)
         print(task.try_await(b))
         local c = task.spawn(function() begin('cancelled') task.wait(9) end)
         task.cancel(c)
         print(task.try_await(c))",
        "returned\t2;returned\t1;result;failed\t2;failed\t1;false\te;cancelled\t2;cancelled\t1;\
         false\tcancelled: the task was cancelled",
    );
}

#[test]
fn a_task_has_not_ended_before_its_cleanups_have() {
    check_task(
        "local t = task.spawn(function() task.finally(function() task.wait(1) print('cleaned') end) return 7 end)
         print(task.status(t), task.await(t, 9), task.status(t))",
        "cleaned;waiting\t7\tdone",
    );
}

#[test]
fn cleanups_of_a_cancelled_task_may_wait_for_a_short_time_only() {
    let mut guest = Guest::run(&format!(
        "{TASK}local t = task.spawn(function()
             task.finally(function() print(pcall(task.wait, 0.5)) print(pcall(task.wait, 100)) print(pcall(task.wait, 100)) end)
             task.wait(50)
         end)
         task.cancel(t)"
    ));
    guest.confirm_cancelled();
    // The window, and the first wait within it.
    let seconds = |(_, operation): &(u32, Operation)| match operation {
        Operation::Time(time::Operation::Wait { seconds }) => *seconds,
        other => panic!("{other:?}"),
    };
    let submitted = guest.submitted();
    assert_eq!(submitted.iter().map(seconds).collect::<Vec<_>>(), [50.0, 0.5, 1.0]);
    guest.complete(vec![(submitted[1].0, super::answer(submitted[1].1.clone()))]);
    assert_eq!(guest.printed(), "true\t0.5");
    assert_eq!(guest.submitted().iter().map(seconds).collect::<Vec<_>>(), [100.0]);
    // The window closes.
    guest.complete(vec![(submitted[2].0, super::answer(submitted[2].1.clone()))]);
    guest.confirm_cancelled();
    let refused = "false\tcancelled: the task was cancelled";
    assert_eq!(guest.printed(), format!("{refused};{refused}"));
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn a_task_cancelled_while_it_cleans_up_goes_on_and_has_a_short_time() {
    let mut guest = Guest::run(&format!(
        "{TASK}local t = task.spawn(function()
             task.finally(function() print(pcall(task.wait, 0.5)) print(pcall(task.wait, 100)) end)
         end)
         print(task.cancel(t), task.cancel(t))"
    ));
    assert_eq!(guest.printed(), "true\tfalse");
    // What it waits for is not stopped; the window is open.
    assert_eq!(guest.cancelled(), []);
    let submitted = guest.submitted();
    assert_eq!(submitted.len(), 2);
    guest.complete(vec![(submitted[0].0, super::answer(submitted[0].1.clone()))]);
    assert_eq!(guest.printed(), "true\t0.5");
    guest.complete(vec![(submitted[1].0, super::answer(submitted[1].1.clone()))]);
    assert_eq!(guest.confirm_cancelled().len(), 1);
    assert_eq!(guest.printed(), "false\tcancelled: the task was cancelled");
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn a_cleanup_that_does_not_listen_does_not_take_the_others_along() {
    check_task(
        "local t = task.spawn(function()
             task.finally(print, 'first')
             task.finally(function() pcall(task.wait, 100) coroutine.yield() print('never') end)
             task.finally(function() pcall(task.wait, 100) while true do pcall(task.wait, 100) end end)
             task.wait(50)
         end)
         task.cancel(t)
         print(task.try_await(t))",
        "first;false\tcancelled: the task was cancelled",
    );
}

#[test]
fn an_error_of_a_cleanup_is_logged_and_the_others_run() {
    let mut guest = Guest::run(&format!(
        "{TASK}task.spawn(function() task.finally(print, 'first') task.finally(error, 'broken', 0) end)"
    ));
    guest.answer_all();
    assert_eq!(guest.finish(), Some(Finish::Done));
    let texts: Vec<_> = guest.logged().into_iter().map(|record| record.text).collect();
    assert_eq!(texts, ["first", "a task failed, and none awaited it: broken\n"]);
}

#[test]
fn a_cancelled_failure_is_not_logged_as_lost() {
    let mut guest = Guest::run(&format!("{TASK}task.cancel(task.spawn(task.wait, 9))"));
    guest.answer_all();
    assert_eq!(guest.finish(), Some(Finish::Done));
    assert_eq!(guest.logged(), []);
}

#[test]
fn cancelling_reaches_a_call_inside_a_users_coroutine() {
    check_task(
        "local t = task.spawn(function()
             local co = coroutine.create(function() task.wait(9) end)
             print(coroutine.resume(co))
             print(coroutine.status(co), pcall(task.wait, 1))
         end)
         print(task.cancel(t))",
        "true;false\tcancelled: the task was cancelled;dead\tfalse\tcancelled: the task was cancelled",
    );
}

#[test]
fn every_request_of_a_cancelled_get_all_is_stopped() {
    let mut guest = Guest::run(&format!(
        "{TASK}local t = task.spawn(function()
             print(pcall(require('vnd:hyper').get_all, table.create(1000, 'http://x/')))
         end)
         task.cancel(t)"
    ));
    assert_eq!(guest.submitted().len(), 16);
    assert_eq!(guest.confirm_cancelled().len(), 16);
    assert_eq!(guest.submitted().len(), 0);
    assert_eq!(guest.printed(), "false\tcancelled: the task was cancelled");
    assert_eq!(guest.finish(), Some(Finish::Done));
}
