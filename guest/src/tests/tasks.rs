//! `std:task`, and the life of a request's tasks.

use neoc_abi::event::Finish;
use neoc_abi::log::Level;
use neoc_abi::{Operation, Outcome, Reply, detach, time, wire};

use super::{Guest, answer, check, operation_of};

const TASK: &str = "local task = require('std:task')\n";

fn check_task(source: &str, expected: &str) {
    check(&format!("{TASK}{source}"), expected);
}

#[test]
fn a_child_runs_at_once_until_it_first_waits() {
    check_task(
        "task.spawn(function(a, b) print('child', a, b) task.wait(1) print('later') end, 1, nil) print('parent')",
        "child\t1\tnil;parent;later",
    );
}

#[test]
fn await_gives_all_results_any_number_of_times() {
    check_task(
        "local t = task.spawn(function() task.wait(1) return 1, nil, 3 end)
         print(select('#', task.await(t)), task.await(t))
         local u = task.spawn(function() return 'at once' end)
         print(task.await(u))",
        "3\t1\tnil\t3;at once",
    );
}

#[test]
fn the_handlers_task_can_be_awaited_and_has_ended_when_it_has_returned() {
    check_task(
        "local main = task.current()
         task.spawn(function() task.wait(1) print(task.status(main), task.await(main)) end)
         task.spawn(function() print(task.await(main), task.status(main), task.cancel(main)) end)
         task.spawn(function() print(task.await_all({ main })[1]) end)
         task.finally(print, 'cleaned up')
         print('returns')
         return 'result'",
        "returns;cleaned up;result\tdone\tfalse;result;done\tresult",
    );
}

#[test]
fn a_detached_task_may_await_the_handlers() {
    let mut guest = Guest::run_on(
        |bytes| match operation_of(bytes) {
            Operation::Detach(_) => {
                let begun: Outcome = Ok(Reply::Detach(detach::Reply::Begun));
                Some(wire::encode(&begun).expect("encodes"))
            }
            _ => None,
        },
        &format!(
            "{TASK}local main = task.current()
             task.detach(function() task.wait(1) print(task.try_await(main)) end)
             task.wait(2)
             error('broken', 0)"
        ),
    );
    let submitted = guest.submitted();
    let [(_, Operation::Detach(_)), first] = &submitted[..] else { panic!("{submitted:?}") };
    guest.complete(vec![(first.0, answer(first.1.clone()))]);
    assert_eq!(guest.failure().message, "broken");
    assert_eq!(guest.submitted(), [], "it begins once the answer is out");
    guest.complete(vec![]);
    let (detached, wait) = guest.submitted().remove(0);
    guest.complete(vec![(detached, answer(wait))]);
    assert_eq!(guest.printed(), "false\tbroken");
}

#[test]
fn a_task_that_has_ended_is_forgotten_with_its_handle() {
    // All results together would not fit into the memory.
    check_task(
        "for _ = 1, 20000 do task.spawn(function() return table.create(200, 1) end) end
         print(#task.await(task.spawn(function() return table.create(200, 1) end)))",
        "200",
    );
}

#[test]
fn many_tasks_may_await_one() {
    check_task(
        "local t = task.spawn(function() task.wait(1) return 'x' end)
         for i = 1, 3 do task.spawn(function() print(i, task.await(t)) end) end
         print('main', task.await(t))",
        "1\tx;2\tx;3\tx;main\tx",
    );
}

#[test]
fn await_raises_the_same_error_value() {
    check_task(
        "local e = {}
         local t = task.spawn(function() task.wait(1) error(e) end)
         local ok, caught = pcall(task.await, t)
         print(ok, caught == e, select(2, pcall(task.await, t)) == e)",
        "false\ttrue\ttrue",
    );
}

#[test]
fn a_task_that_would_wait_for_itself_is_refused() {
    check_task(
        "local t t = task.spawn(function() task.wait(0) print(pcall(task.await, t)) end)",
        "false\tinvalid: task.await: a task cannot await itself",
    );
    check_task(
        "local a, b
         a = task.spawn(function() task.wait(0) print(pcall(task.await, b)) end)
         b = task.spawn(function() task.wait(0) print(pcall(task.await, a)) end)",
        "false\tinvalid: task.await: these tasks would await each other for ever;true",
    );
}

#[test]
fn wait_takes_what_is_no_time_as_zero_and_always_lets_others_run() {
    let source = "for _, s in { -1, 0/0, 0 } do task.spawn(task.wait, s) end task.wait() task.wait(math.huge)";
    let mut guest = Guest::run(&format!("{TASK}{source}"));
    let seconds = |(_, operation): &(u32, Operation)| match operation {
        Operation::Time(time::Operation::Wait { seconds }) => *seconds,
        other => panic!("{other:?}"),
    };
    let first = guest.submitted();
    assert_eq!(first.iter().map(seconds).collect::<Vec<_>>(), [0.0; 4]);
    guest.complete(first.into_iter().map(|(id, operation)| (id, answer(operation))).collect());
    assert_eq!(guest.submitted().iter().map(seconds).collect::<Vec<_>>(), [1e9]);
}

#[test]
fn a_yield_in_a_task_lets_others_run_and_gives_nothing() {
    check_task("task.spawn(function() print('a') print(select('#', coroutine.yield(1, 2))) end) print('b')", "a;b;0");
}

#[test]
fn the_end_waits_for_all_tasks() {
    let mut guest = Guest::run(&format!("{TASK}task.spawn(function() task.wait(1) task.wait(1) end)"));
    for _ in 0..2 {
        assert_eq!(guest.finish(), None);
        let submitted = guest.submitted();
        guest.complete(submitted.into_iter().map(|(id, operation)| (id, answer(operation))).collect());
    }
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn a_failed_script_drops_its_tasks_and_cancels_their_operations() {
    let mut guest =
        Guest::run(&format!("{TASK}for i = 1, 3 do task.spawn(task.wait, 9) end task.wait(1) error('over')"));
    let submitted = guest.submitted();
    assert_eq!(submitted.len(), 4);
    let (id, operation) = submitted[3].clone();
    guest.complete(vec![(id, answer(operation))]);
    // Not before the host has confirmed that nothing of theirs is left.
    assert_eq!(guest.finish(), None);
    assert_eq!(guest.confirm_cancelled(), submitted[..3].iter().map(|(id, _)| *id).collect::<Vec<_>>());
    assert_eq!(guest.failure().message, "main.luau:2: over");
    // Completions that were on their way are nobody's.
    guest.complete(submitted.into_iter().map(|(id, operation)| (id, answer(operation))).collect());
    assert_eq!(guest.finish(), None);
}

#[test]
fn a_failure_that_none_awaits_is_logged_once_with_its_traceback() {
    let source = "local function inner() error('lost') end
                  task.spawn(function() task.wait(0) inner() end)
                  local t = task.spawn(function() error('awaited') end)
                  pcall(task.await, t)";
    let mut guest = Guest::run(&format!("{TASK}{source}"));
    guest.answer_all();
    assert_eq!(guest.finish(), Some(Finish::Done));
    let lines = guest.logged();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].level, Level::Error);
    let expected = "a task failed, and none awaited it: main.luau:2: lost\nmain.luau:2 function inner\nmain.luau:3";
    assert_eq!(lines[0].text, expected);
}

#[test]
fn an_awaited_failure_shows_both_stacks() {
    let source = "local t = task.spawn(function() error('deep') end)
                  local function f() task.await(t) end
                  f()";
    let error = Guest::run(&format!("{TASK}{source}")).failure();
    assert_eq!(error.message, "main.luau:2: deep");
    assert_eq!(error.traceback, "main.luau:2\nawaited by:\nmain.luau:3 function f\nmain.luau:4");
}

#[test]
fn tasks_and_pending_operations_are_bounded() {
    check_task(
        "local refused
         for i = 1, 2000 do
             local ok, e = pcall(task.spawn, coroutine.yield)
             if not ok then refused = e print(i, e.kind, e.limit) break end
         end",
        "1001\tlimit\ttasks",
    );
    let spawn = |n: usize, call: &str| {
        let source = format!(
            "{TASK}local get = require('vnd:hyper').get
             for i = 1, {n} do
                 task.spawn(function() local ok, e = pcall({call}) if not ok then print(i, e.kind, e.limit) end end)
             end"
        );
        let mut guest = Guest::run(&source);
        (guest.printed(), guest.submitted().len())
    };
    assert_eq!(spawn(65, "get, 'x'"), ("65\tlimit\tpending_operations".into(), 64));
    // Timers are counted apart, and each task of 1,000 has one at most; so another takes two.
    assert_eq!(spawn(999, "task.wait, 1"), (String::new(), 999));
    let two = "task.await, task.spawn(task.wait, 1), 1";
    let (refused, submitted) = spawn(500 + 1, two);
    assert_eq!(refused.lines().count(), 1, "{refused}");
    assert!(submitted <= 1000, "{submitted}");
}

#[test]
fn nested_spawns_are_bounded() {
    check_task(
        "local depth = 0
         local function nest()
             depth += 1
             local ok, e = pcall(task.spawn, nest)
             if not ok then print(depth, e.kind, e.limit) end
         end
         nest()
         task.spawn(nest)",
        "65\tlimit\ttask_depth;129\tlimit\ttask_depth",
    );
}

#[test]
fn a_handle_is_opaque() {
    check_task(
        "local t = task.spawn(task.wait)
         print(type(t), typeof(t), tostring(t), getmetatable(t), t == task.current())
         print(pcall(setmetatable, t, {}))
         print(pcall(rawset, t, 1, 1))
         print(pcall(task.await, setmetatable({}, { __type = 'task' })))
         print(pcall(task.await, nil))",
        "userdata\ttask\ttask\tfalse\tfalse;\
         false\tinvalid argument #1 to 'setmetatable' (table expected, got task);\
         false\tinvalid argument #1 to 'rawset' (table expected, got task);\
         false\tinvalid: task.await: expected a task, got table;\
         false\tinvalid: task.await: expected a task, got nil",
    );
}
