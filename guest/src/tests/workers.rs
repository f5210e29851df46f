//! `std:workers`: what goes to the host, what comes back, and a VM that is a worker itself.

use neoc_abi::event::{Event, Finish, Mode};
use neoc_abi::value::{Packed, Token, put};
use neoc_abi::workers::{Operation, Reply, Work};
use neoc_abi::{ErrorKind, Operation as AnyOperation, OperationError, Outcome, Reply as AnyReply};

use super::{Guest, check};

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
    assert_eq!(*work, Work { module: "./heavy".into(), arguments: numbers(&[1.0, 2.0]) });
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

/// Loads a handler's module, and runs `./m` of it as a worker.
fn work(source: &str, arguments: Packed) -> Finish {
    let (mut guest, loaded) = Guest::load(source, Mode::Handler);
    assert_eq!(loaded, Finish::Done, "{source}");
    guest.start(Event::Work(Work { module: "./m".into(), arguments }));
    guest.answer_all();
    guest.finish().expect("the worker has ended")
}

/// As [`work`], with a function's body that fails.
fn work_failure(body: &str) -> OperationError {
    let source = format!("local function m()\n{body}\nend\nreturn {{ http = print, ['./m'] = m }}");
    match work(&source, Packed::new()) {
        Finish::Worked(Err(error)) => error,
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn a_worker_calls_the_modules_function_with_the_arguments() {
    let source = "return { http = print, ['./m'] = function(...)
        require('std:task').wait(1)
        return select('#', ...), ...
    end }";
    assert_eq!(work(source, numbers(&[7.0, 8.0])), Finish::Worked(Ok(numbers(&[2.0, 7.0, 8.0]))));
}

#[test]
fn what_a_worker_raises_is_failed_with_its_message_and_traceback() {
    let error = work_failure("error('boom')");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Failed, "main.luau:2: boom"));
    assert_eq!(error.traceback.as_deref(), Some("main.luau:2 function m"));
    let error = work_failure("error({ code = 5 })");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Failed, "main.luau:2: (error object is a table)"));
}

#[test]
fn an_error_value_of_a_module_comes_as_it_is() {
    let error = work_failure("require('std:kv').get(1)");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Invalid, "kv.get: key must be a string, got number"));
    assert_eq!(error.traceback.as_deref(), Some("main.luau:2 function m"));
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
fn a_module_that_returns_no_function_is_invalid() {
    let finish = work("return { http = print, ['./m'] = { 5 } }", Packed::new());
    let Finish::Worked(Err(error)) = finish else { panic!("{finish:?}") };
    assert_eq!(error.message, "workers.run: the module \"./m\" must return a function, got table");
    let finish = work("return print", Packed::new());
    let Finish::Worked(Err(error)) = finish else { panic!("{finish:?}") };
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Invalid, "require: no module \"./m\""));
}

#[test]
fn a_workers_tasks_end_before_it_does() {
    let source = "local task = require('std:task')
        return { http = print, ['./m'] = function() task.spawn(function() task.wait(1) print('late') end) return 1 end }";
    let (mut guest, _) = Guest::load(source, Mode::Handler);
    guest.start(Event::Work(Work { module: "./m".into(), arguments: Packed::new() }));
    assert_eq!(guest.finish(), None);
    guest.answer_all();
    assert_eq!((guest.finish(), guest.printed().as_str()), (Some(Finish::Worked(Ok(numbers(&[1.0])))), "late"));
}
