//! Waiting for each other: timeouts, the first of many, all of them, channels, semaphores, deadlocks.

use neoc_abi::event::Finish;
use neoc_abi::{Operation, Outcome, Reply, detach, wire};

use super::{Guest, check, operation_of};
use crate::scheduler;

const TASK: &str = "local task = require('std:task')\n";

fn check_task(source: &str, expected: &str) {
    check(&format!("{TASK}{source}"), expected);
}

#[test]
fn a_timeout_ends_the_wait_and_not_the_task() {
    let mut guest = Guest::run(&format!(
        "{TASK}local t = task.spawn(function() task.wait(9) return 'late' end)
         print(task.try_await(t, 0))
         print(pcall(task.await, t, 1))
         print(task.status(t), task.await(t))"
    ));
    let submitted = guest.submitted();
    // 0 looks and asks the host for nothing.
    assert_eq!(submitted.len(), 2);
    guest.complete(vec![(submitted[1].0, super::answer(submitted[1].1.clone()))]);
    assert_eq!(
        guest.printed(),
        "false\ttimeout: task.try_await: the task has not ended within 0 s;\
         false\ttimeout: task.await: the task has not ended within 1 s"
    );
    guest.complete(vec![(submitted[0].0, super::answer(submitted[0].1.clone()))]);
    assert_eq!(guest.printed(), "waiting\tlate");
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn a_task_that_ends_in_time_takes_its_timer_along() {
    let mut guest = Guest::run(&format!("{TASK}print(task.await(task.spawn(task.wait, 1), 5))"));
    let submitted = guest.submitted();
    guest.complete(vec![(submitted[0].0, super::answer(submitted[0].1.clone()))]);
    assert_eq!(guest.cancelled(), [(submitted[1].0, false)]);
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn the_loser_of_await_any_wakes_nobody_when_it_ends_later() {
    let mut guest = Guest::run(&format!(
        "{TASK}local loser = task.spawn(function() task.wait(9) print('loser ends') end)
         local winner = task.spawn(function() task.wait(1) return 'won' end)
         print(task.await_any({{ loser, winner }}))
         print(task.wait(5))
         print(require('vnd:hyper').get('http://x/').status)"
    ));
    let first = guest.submitted();
    guest.complete(vec![(first[1].0, super::answer(first[1].1.clone()))]);
    assert_eq!(guest.printed(), "2\twon");
    guest.complete(vec![(first[0].0, super::answer(first[0].1.clone()))]);
    assert_eq!(guest.printed(), "loser ends");
    let sleep = guest.submitted();
    assert_eq!(sleep.len(), 1, "the parent still waits");
    guest.complete(vec![(sleep[0].0, super::answer(sleep[0].1.clone()))]);
    guest.answer_all();
    assert_eq!(guest.printed(), "5;200");
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn await_any_raises_what_the_first_one_failed_with() {
    check_task(
        "print(pcall(task.await_any, { task.spawn(task.wait, 9), task.spawn(error, 'first', 0) }))
         print(task.await_any({ task.spawn(function() return 1, nil, 3 end) }))
         print(pcall(task.await_any, {}))
         print(pcall(task.await_any, { task.spawn(task.wait, 9) }, 0))",
        "false\tfirst;1\t1\tnil\t3;false\tinvalid: task.await_any: tasks must hold at least one task;\
         false\ttimeout: task.await_any: no task has ended within 0 s",
    );
}

#[test]
fn await_all_keeps_the_order_and_raises_the_first_failure_in_time() {
    check_task(
        "local function after(n, value) return task.spawn(function() for _ = 1, n do task.wait(0) end return value end) end
         print(table.unpack(task.await_all({ after(3, 'a'), after(1, 'b'), after(2, 'c') })))
         local a = after(1, 'twice')
         print(table.unpack(task.await_all({ a, a })))
         print(#task.await_all({}))
         local slow = after(50, 'x')
         print(pcall(task.await_all, { slow, task.spawn(function() task.wait(0) error('e', 0) end) }))
         print(task.status(slow))
         print(pcall(task.await_all, { slow }, 0))",
        "a\tb\tc;twice\ttwice;0;false\te;waiting;\
         false\ttimeout: task.await_all: not all tasks have ended within 0 s",
    );
}

#[test]
fn try_await_gives_instead_of_raising() {
    check_task(
        "print(task.try_await(task.spawn(function() return 1, nil end)))
         local e = {}
         print(select(2, task.try_await(task.spawn(error, e))) == e)
         print(pcall(task.try_await, 5))",
        "true\t1\tnil;true;false\tinvalid: task.try_await: expected a task, got number",
    );
}

#[test]
fn deferred_tasks_run_after_the_resumed_ones_and_before_io() {
    let mut guest = Guest::run(&format!(
        "{TASK}for i = 1, 2 do
             task.spawn(function()
                 task.wait(1)
                 print('io', i)
                 task.defer(print, 'deferred', i)
                 task.spawn(print, 'spawned', i)
             end)
         end
         local t = task.spawn(function() task.wait(1) end)
         task.await(t)
         print('awaiter')"
    ));
    guest.answer_all();
    assert_eq!(guest.printed(), "io\t1;spawned\t1;deferred\t1;io\t2;spawned\t2;deferred\t2;awaiter");
}

#[test]
fn a_channel_is_bounded_and_in_order() {
    check_task(
        "local ch = task.channel(2)
         task.spawn(function() for i = 1, 5 do ch:put(i) print('put', i, #ch) end ch:close() end)
         print('count', ch:count())
         for value in ch do print('got', value) end
         print(ch:get())",
        "put\t1\t1;put\t2\t2;count\t2;got\t1;got\t2;put\t3\t1;put\t4\t2;got\t3;got\t4;put\t5\t1;got\t5;nil\tclosed",
    );
}

#[test]
fn a_closed_channel_gives_what_is_in_it_and_refuses_writers() {
    check_task(
        "local ch = task.channel(1)
         ch:put('a')
         local blocked = task.spawn(function() print(pcall(ch.put, ch, 'b')) end)
         local reader = task.channel(1)
         task.spawn(function() print('reader', reader:get()) end)
         ch:close() ch:close() reader:close()
         task.await(blocked)
         print(pcall(ch.put, ch, 'c'))
         print(ch:get()) print(ch:get()) print(ch:is_closed())",
        "false\tclosed: channel:put: the channel is closed;reader\tnil\tclosed;\
         false\tclosed: channel:put: the channel is closed;a;nil\tclosed;true",
    );
}

#[test]
fn put_and_get_take_timeouts() {
    check_task(
        "local ch = task.channel(1)
         print(ch:get(0)) print(ch:get(1))
         print(ch:put('a', 0)) print(ch:put('b', 0)) print(ch:put('c', 1))
         print(#ch, ch:get())
         print(pcall(ch.put, ch, nil))
         print(pcall(ch.get))
         print(pcall(task.channel, 0))",
        "nil\ttimeout;nil\ttimeout;true;false\ttimeout;false\ttimeout;1\ta;\
         false\tinvalid: channel:put: value must not be nil, which is what a closed channel gives;\
         false\tinvalid: channel:get: expected a channel, got nil; call it with a colon;\
         false\tinvalid: task.channel: capacity must be an integer from 1 to 1000000, got 0",
    );
}

#[test]
fn readers_are_served_in_the_order_in_which_they_came() {
    check_task(
        "local ch = task.channel(8)
         for i = 1, 3 do task.spawn(function() print(i, ch:get()) end) end
         for i = 1, 3 do ch:put(i * 10) end
         -- The values are promised: one that comes now waits.
         print(ch:get(0))",
        "nil\ttimeout;1\t10;2\t20;3\t30",
    );
}

#[test]
fn a_cancelled_reader_or_writer_takes_nothing_along() {
    check_task(
        "local ch = task.channel(1)
         local reader = task.spawn(function() print(pcall(ch.get, ch)) end)
         ch:put('kept')
         -- It was handed the value, and has not run since.
         task.cancel(reader)
         task.wait(0)
         print(ch:get(0))
         ch:put('full')
         local writer = task.spawn(function() print(pcall(ch.put, ch, 'lost')) end)
         print(ch:get())
         task.cancel(writer)
         task.wait(0)
         print(ch:put('room', 0), ch:get(0), #ch)",
        "false\tcancelled: the task was cancelled;kept;full;false\tcancelled: the task was cancelled;true\troom\t0",
    );
}

#[test]
fn a_cancelled_reader_or_writer_is_told_so_also_when_the_channel_closes() {
    check_task(
        "local empty, full = task.channel(1), task.channel(1)
         full:put('first')
         local reader = task.spawn(function() print(pcall(empty.get, empty)) end)
         local writer = task.spawn(function() print(pcall(full.put, full, 'second')) end)
         empty:close() full:close()
         task.cancel(reader) task.cancel(writer)",
        "false\tcancelled: the task was cancelled;false\tcancelled: the task was cancelled",
    );
}

#[test]
fn a_value_that_a_cancelled_reader_leaves_in_a_closed_channel_is_taken_by_the_next() {
    check_task(
        "local ch = task.channel(1)
         local first = task.spawn(function() print(pcall(ch.get, ch)) end)
         local second = task.spawn(function() print(ch:get()) print(ch:get()) end)
         ch:put('kept')
         ch:close()
         task.cancel(first)",
        "false\tcancelled: the task was cancelled;kept;nil\tclosed",
    );
}

#[test]
fn a_semaphore_is_fair_and_a_cancelled_waiter_takes_no_permit() {
    check_task(
        "local sem = task.semaphore(1)
         print(sem:acquire(), sem:free(), sem:acquire(0))
         local second = task.spawn(function() print('second', pcall(sem.acquire, sem)) end)
         task.spawn(function() print('third', sem:acquire()) end)
         sem:release()
         print('free', sem:free())
         -- The second one was handed the permit, and has not run since.
         task.cancel(second)
         task.wait(0)
         sem:release()
         print(sem:free(), pcall(sem.release, sem))",
        "true\t0\tfalse;free\t0;second\tfalse\tcancelled: the task was cancelled;third\ttrue;\
         1\tfalse\tinvalid: semaphore:release: all 1 permits are free already",
    );
}

#[test]
fn a_permit_returns_however_the_function_ends() {
    check_task(
        "local sem = task.semaphore(1)
         print(sem:with(function(a) return a, sem:free() end, 'x'))
         print(pcall(sem.with, sem, error, 'e', 0))
         local t = task.spawn(sem.with, sem, task.wait, 9)
         print(sem:free()) task.cancel(t) task.try_await(t)
         print(sem:free())",
        "x\t0;false\te;0;1",
    );
}

#[test]
fn a_permit_returns_also_when_the_function_never_comes_to_its_end() {
    check_task(
        "local sem = task.semaphore(2)
         local yields = task.spawn(sem.with, sem, coroutine.yield)
         local swallows = task.spawn(sem.with, sem, function() while true do pcall(task.wait, 1) end end)
         print(sem:free())
         task.cancel(yields) task.cancel(swallows)
         print(pcall(task.await, yields), pcall(task.await, swallows))
         print(sem:free())
         -- A coroutine that nobody resumes any more.
         local step
         task.spawn(function()
             step = coroutine.wrap(function() return sem:with(function() coroutine.yield() return 'late' end) end)
             step() print(sem:free())
         end)
         print(sem:free(), step(), sem:free())",
        "0;false\tfalse\tcancelled: the task was cancelled, and did not listen;2;1;2\tlate\t2",
    );
}

#[test]
fn a_permit_held_by_a_cleanup_returns_when_the_cleanup_is_ended() {
    check_task(
        "local sem = task.semaphore(1)
         local t = task.spawn(function()
             task.finally(function() print(sem:free()) end)
             task.finally(function() sem:with(function() pcall(task.wait, 100) coroutine.yield() end) end)
             task.wait(9)
         end)
         task.cancel(t) task.try_await(t)
         print(sem:acquire(0))",
        "1;true",
    );
}

#[test]
fn tasks_that_wait_for_each_other_for_ever_are_told() {
    let message = "channel:get: all tasks wait for each other, and nothing can wake them";
    check_task(
        "print(pcall(function() return task.channel(1):get() end))
         local ch = task.channel(1)
         print(pcall(ch.get, ch)) print(task.wait(1))",
        &format!("false\tinvalid: {message};false\tinvalid: {message};1"),
    );
}

#[test]
fn tasks_left_waiting_for_ever_do_not_hold_the_answer() {
    let mut guest = Guest::run(&format!(
        "{TASK}local ch = task.channel(1)
         task.spawn(function() task.finally(print, 'cleaned') ch:get() end)"
    ));
    guest.answer_all();
    assert_eq!(guest.finish(), Some(Finish::Done));
    let texts: Vec<_> = guest.logged().into_iter().map(|record| record.text).collect();
    assert_eq!(texts, ["2 tasks waited for each other, with nothing to wake them; they were cancelled", "cleaned"]);
}

#[test]
fn tasks_of_every_end_with_the_others() {
    check_task(
        "local n = 0
         local t = task.every(1, function(step) n += step print(n) end, 2)
         task.wait(1) task.wait(1)
         task.delay(1, print, 'delayed')",
        "2;4;6;delayed",
    );
    check_task(
        "local t = task.every(1, error, 'stops', 0)
         print(task.try_await(t))",
        "false\tstops",
    );
}

/// Runs a script that starts tasks without end if it can; what it printed must be `expected`.
fn check_endless(source: &str, expected: &str) {
    let mut guest = Guest::run_on(
        |bytes| match operation_of(bytes) {
            Operation::Detach(_) => {
                let begun: Outcome = Ok(Reply::Detach(detach::Reply::Begun));
                Some(wire::encode(&begun).expect("encodes"))
            }
            _ => None,
        },
        &format!("{TASK}{source}"),
    );
    for _ in 0..20 {
        let batch = super::friendly_batch();
        guest.complete(batch.into_iter().map(|completion| (completion.id, completion.outcome)).collect());
    }
    assert_eq!(guest.finish(), Some(Finish::Done), "{source}");
    assert_eq!(guest.printed(), expected, "{source}");
    assert_eq!(scheduler::n_alive(), 0, "{source}");
}

#[test]
fn tasks_of_every_that_are_started_at_the_end_end_too() {
    check_endless(
        "task.every(1, function()
             task.finally(function() task.every(1, print, 'never') print('cleaned up') end)
         end)
         task.wait(1)",
        "cleaned up",
    );
    check_endless(
        "task.detach(function() task.wait(1) task.every(1, print, 'ticks') task.wait(1) print('detached') end)",
        "ticks;detached",
    );
}

#[test]
fn values_of_a_task_are_inherited_and_its_own() {
    check_task(
        "task.set('user', 'ada')
         task.spawn(function()
             print(task.get('user')) task.set('user', 'bob') task.set('more', 1)
             task.spawn(function() print(task.get('user'), task.get('more')) end)
         end)
         print(task.get('user'), task.get('more'), task.get(nil))
         print(pcall(task.set, nil, 1))",
        "ada;bob\t1;ada\tnil\tnil;false\tinvalid: task.set: key must not be nil",
    );
}

#[test]
fn statuses_tell_how_far_a_task_has_come() {
    check_task(
        "local t t = task.spawn(function() print(task.status(t or task.current())) task.wait(1) end)
         print(task.status(t), task.status(task.current()), task.status(task.defer(task.wait)))
         task.await(t) print(task.status(t), task.current() == task.current())",
        "running;waiting\trunning\tready;done\ttrue",
    );
}
