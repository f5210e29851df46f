//! `std:workers`: what goes to the host, what comes back, and a VM that is a worker itself.

use neoc_abi::event::{Event, Finish, Mode};
use neoc_abi::value::{Packed, Token, put};
use neoc_abi::workers::{Operation, Reply, Work};
use neoc_abi::{ErrorKind, Operation as AnyOperation, OperationError, Outcome, Reply as AnyReply};

use super::{Guest, check, require};

/// Numbers, packed.
fn numbers(numbers: &[f64]) -> Packed {
    let row = numbers.iter().try_fold(Vec::new(), |row, number| put(row, &Token::Number(*number)));
    row.expect("packs").into()
}

fn returned(values: &[f64]) -> Outcome {
    Ok(AnyReply::Workers(Reply::Returned(numbers(values))))
}

/// The calls that the guest has asked for, with their numbers.
fn calls(guest: &mut Guest) -> Vec<(u32, Work)> {
    let submitted = guest.submitted().into_iter();
    let calls = submitted.map(|(id, operation)| match operation {
        AnyOperation::Workers(Operation::Run(work)) => (id, work),
        other => panic!("{other:?}"),
    });
    calls.collect()
}

#[test]
fn run_gives_all_results() {
    let mut guest = Guest::run("print(require('std:workers').run('./heavy', 1, 2))");
    let calls = calls(&mut guest);
    let [(id, work)] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!(*work, Work { module: "./heavy".into(), file: "main.luau".into(), arguments: numbers(&[1.0, 2.0]) });
    guest.complete(vec![(*id, returned(&[3.0, 4.0, 5.0]))]);
    assert_eq!((guest.finish(), guest.printed().as_str()), (Some(Finish::Done), "3\t4\t5"));
}

#[test]
fn map_keeps_the_order_of_the_list_whatever_ends_first() {
    let mut guest = Guest::run(
        "local results = require('std:workers').map('./heavy', { 10, 20, 30 })
         print(#results, table.unpack(results))",
    );
    let calls = calls(&mut guest);
    assert_eq!(calls.len(), 3);
    for index in [2, 0, 1] {
        guest.complete(vec![(calls[index].0, returned(&[index as f64, 99.0]))]);
    }
    assert_eq!((guest.finish(), guest.printed().as_str()), (Some(Finish::Done), "3\t0\t1\t2"));
}

#[test]
fn map_of_many_asks_for_sixteen_at_a_time() {
    let mut guest = Guest::run("print(#require('std:workers').map('./m', table.create(1000, 1)))");
    let (mut total, mut waiting) = (0, calls(&mut guest));
    while !waiting.is_empty() {
        assert!(waiting.len() <= 16, "{}", waiting.len());
        total += waiting.len();
        guest.complete(waiting.iter().map(|(id, _)| (*id, returned(&[1.0]))).collect());
        waiting = calls(&mut guest);
    }
    assert_eq!((total, guest.printed().as_str()), (1000, "1000"));
}

#[test]
fn an_item_without_a_result_leaves_a_hole() {
    let mut guest = Guest::run(
        "local t = require('std:workers').map('./m', { 1, 2 }) print(t[1], t[2], #require('std:workers').map('./m', {}))",
    );
    let calls = calls(&mut guest);
    guest.complete(vec![(calls[0].0, returned(&[])), (calls[1].0, returned(&[5.0]))]);
    assert_eq!(guest.printed(), "nil\t5\t0");
}

#[test]
fn the_first_failure_cancels_the_others_and_is_raised() {
    let mut guest =
        Guest::run("local ok, e = pcall(require('std:workers').map, './m', { 1, 2, 3 }) print(ok, e.kind, e.message)");
    let calls = calls(&mut guest);
    let failed = OperationError::new(ErrorKind::Failed, "heavy.luau:1: boom");
    guest.complete(vec![(calls[1].0, Err(failed))]);
    // Not before the others are gone.
    assert_eq!(guest.printed(), "");
    assert_eq!(guest.confirm_cancelled(), [calls[0].0, calls[2].0]);
    assert_eq!(guest.printed(), "false\tfailed\theavy.luau:1: boom");
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn a_failed_map_starts_no_more_calls() {
    let mut guest = Guest::run("print(pcall(require('std:workers').map, './m', table.create(100, 1)))");
    let calls = calls(&mut guest);
    guest.complete(vec![(calls[3].0, Err(OperationError::io("broken")))]);
    assert_eq!(guest.confirm_cancelled().len(), calls.len() - 1);
    assert_eq!((guest.submitted().len(), guest.printed().as_str()), (0, "false\tio: broken"));
}

#[test]
fn a_map_whose_calls_wait_in_line_fails_without_starting_them() {
    // 60 waiting requests leave room for four calls.
    let mut guest = Guest::run(
        "local task, hyper = require('std:task'), require('vnd:hyper')
         for i = 1, 60 do task.spawn(pcall, hyper.get, 'http://x/') end
         print(pcall(require('std:workers').map, './m', table.create(8, 1)))",
    );
    let submitted = guest.submitted();
    assert_eq!(submitted.len(), 64);
    guest.complete(vec![(submitted[60].0, Err(OperationError::io("broken")))]);
    assert_eq!(guest.confirm_cancelled().len(), 3);
    assert_eq!((guest.submitted().len(), guest.printed().as_str()), (0, "false\tio: broken"));
}

#[test]
fn a_cancelled_task_is_gone_once_its_workers_are() {
    let mut guest = Guest::run(
        "local task, workers = require('std:task'), require('std:workers')
         local t = task.spawn(workers.map, './m', { 1, 2 })
         task.cancel(t)
         local ok, e = task.try_await(t)
         print(ok, e.kind)",
    );
    assert_eq!(guest.printed(), "");
    assert_eq!(guest.confirm_cancelled().len(), 2);
    assert_eq!(guest.printed(), "false\tcancelled");
}

#[test]
fn an_uncaught_failure_of_a_worker_is_logged_with_both_tracebacks() {
    let mut guest = Guest::run("\nlocal function f() require('std:workers').run('./m') end\nf()");
    let (id, _) = guest.submitted()[0];
    let traceback = Some("heavy.luau:7 function inner\nheavy.luau:9".into());
    let failed = OperationError { traceback, ..OperationError::new(ErrorKind::Failed, "heavy.luau:7: boom") };
    guest.complete(vec![(id, Err(failed))]);
    let error = guest.failure();
    assert_eq!(error.message, "main.luau:2: failed: heavy.luau:7: boom");
    let expected = "heavy.luau:7 function inner\nheavy.luau:9\ncalled from:\nmain.luau:2 function f\nmain.luau:3";
    assert_eq!(error.traceback, expected);
}

#[test]
fn arguments_that_make_no_sense_are_invalid() {
    let cases = [
        ("run()", "workers.run: module must be a string, got nil"),
        ("run(5)", "workers.run: module must be a string, got number"),
        ("run('')", "workers.run: module must have 1 to 1024 bytes, got 0"),
        ("run(string.rep('x', 1025))", "workers.run: module must have 1 to 1024 bytes, got 1025"),
        ("map('./m')", "workers.map: list must be a table, got nil"),
        ("map('./m', table.create(1001, 1))", "workers.map: at most 1000 items at once, got 1001"),
    ];
    for (call, message) in cases {
        check(
            &format!("print(pcall(function() require('std:workers').{call} end))"),
            &format!("false\tinvalid: {message}"),
        );
    }
}

/// Loads a handler, and runs the module `./m` beside it as a worker.
fn work(files: &[(&str, &str)], arguments: Packed) -> Finish {
    let mut guest = start(files, arguments);
    guest.answer_all();
    guest.finish().expect("the worker has ended")
}

fn start(files: &[(&str, &str)], arguments: Packed) -> Guest {
    require::put(files);
    let (mut guest, loaded) = Guest::load("return function() end", Mode::Handler);
    assert_eq!(loaded, Finish::Done);
    guest.start(Event::Work(Work { module: "./m".into(), file: "main.luau".into(), arguments }));
    guest
}

/// As [`work`], with a function's body that fails.
fn work_failure(body: &str) -> OperationError {
    match work(&[("m.luau", &format!("return function()\n{body}\nend"))], Packed::new()) {
        Finish::Worked(Err(error)) => error,
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn a_worker_calls_the_modules_function_with_the_arguments() {
    let source = "return function(...)
        require('std:task').wait(1)
        return select('#', ...), ...
    end";
    assert_eq!(work(&[("m.luau", source)], numbers(&[7.0, 8.0])), Finish::Worked(Ok(numbers(&[2.0, 7.0, 8.0]))));
}

#[test]
fn a_module_is_named_as_for_require() {
    let files = [
        ("lib/a.luau", "return function() return require('std:workers').run('./b', 1) end"),
        ("lib/b.luau", "return function(n) return n + require('../c') end"),
        ("c.luau", "return 5"),
    ];
    require::put(&files);
    let mut guest = Guest::run("print(require('./lib/a')())");
    let mut works = Vec::new();
    loop {
        let submitted = guest.submitted();
        if submitted.is_empty() {
            break;
        }
        for (id, operation) in submitted {
            if let AnyOperation::Workers(Operation::Run(work)) = &operation {
                works.push(work.clone());
            }
            guest.complete(vec![(id, super::answer(operation))]);
        }
    }
    let [work] = works.as_slice() else { panic!("{works:?}") };
    assert_eq!((work.module.as_str(), work.file.as_str()), ("./b", "lib/a.luau"));
    let (mut guest, _) = Guest::load("return function() end", Mode::Handler);
    guest.start(Event::Work(work.clone()));
    guest.answer_all();
    assert_eq!(guest.finish(), Some(Finish::Worked(Ok(numbers(&[6.0])))));
}

#[test]
fn a_script_that_is_no_handler_has_workers_too() {
    require::put(&[("m.luau", "return function() return 5 end")]);
    let (mut guest, loaded) = Guest::load("error('its top level does not run')", Mode::Script);
    assert_eq!(loaded, Finish::Done);
    guest.start(Event::Work(Work { module: "./m".into(), file: "main.luau".into(), arguments: Packed::new() }));
    guest.answer_all();
    assert_eq!(guest.finish(), Some(Finish::Worked(Ok(numbers(&[5.0])))));
}

#[test]
fn what_a_worker_raises_is_failed_with_its_message_and_traceback() {
    let error = work_failure("error('boom')");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Failed, "m.luau:2: boom"));
    assert_eq!(error.traceback.as_deref(), Some("m.luau:2"));
    let error = work_failure("error({ code = 5 })");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Failed, "m.luau:2: (error object is a table)"));
}

#[test]
fn an_error_value_of_a_module_comes_as_it_is() {
    let error = work_failure("require('std:kv').get(1)");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Invalid, "kv.get: key must be a string, got number"));
    assert_eq!(error.traceback.as_deref(), Some("m.luau:2"));
}

#[test]
fn a_worker_without_memory_names_that_limit() {
    let error = work_failure("local t = {} while true do table.insert(t, string.rep('x', 1e6) .. #t) end");
    assert_eq!((error.kind, error.limit.as_deref()), (ErrorKind::Limit, Some("memory")));
}

#[test]
fn a_result_that_cannot_be_copied_is_invalid() {
    let error = work_failure("return 1, { f = print }");
    let expected = "workers.run: results[2].f: a function cannot be copied to another VM";
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Invalid, expected));
}

#[test]
fn a_module_that_is_not_there_or_returns_no_function_is_an_error() {
    let cases = [
        (
            vec![("m.luau", "return { 5 }")],
            "invalid: workers.run: the module \"./m\" must return a function, got table",
        ),
        (vec![("m.luau", "error('boom')")], "failed: m.luau:1: boom"),
        (vec![], "io: require: no module \"m\"; looked for m.luau, m.lua, m/init.luau, m/init.lua"),
    ];
    for (files, expected) in cases {
        let finish = work(&files, Packed::new());
        let Finish::Worked(Err(error)) = finish else { panic!("{finish:?}") };
        assert_eq!(format!("{}: {}", error.kind.as_str(), error.message), expected);
    }
}

#[test]
fn a_workers_tasks_end_before_it_does() {
    let source = "local task = require('std:task')
        return function() task.spawn(function() task.wait(1) print('late') end) return 1 end";
    let mut guest = start(&[("m.luau", source)], Packed::new());
    assert_eq!(guest.finish(), None);
    guest.answer_all();
    assert_eq!((guest.finish(), guest.printed().as_str()), (Some(Finish::Worked(Ok(numbers(&[1.0])))), "late"));
}
