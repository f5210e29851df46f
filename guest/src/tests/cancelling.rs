//! Cancelling: what stops, when it is over, and what still runs.

use neoc_abi::event::Finish;
use neoc_abi::{Operation, time};

use super::{Guest, check};

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
        "cleaned up;false\ttask.try_await: the task died without a result: it did not listen to its cancellation;\
         true\ttrue\tcancelled",
    );
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
             print(pcall(require('vnd:hyper').get_all, table.create(100, 'http://x/')))
         end)
         task.cancel(t)"
    ));
    assert_eq!(guest.submitted().len(), 16);
    assert_eq!(guest.confirm_cancelled().len(), 16);
    assert_eq!(guest.submitted().len(), 0);
    assert_eq!(guest.printed(), "false\tcancelled: the task was cancelled");
    assert_eq!(guest.finish(), Some(Finish::Done));
}
