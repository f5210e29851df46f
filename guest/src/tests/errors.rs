//! Errors: what a script catches, and what the log shows of those it does not.

use neoc_abi::event::{Finish, Mode, ScriptError};
use neoc_abi::{ErrorKind, OperationError};

use super::{Guest, check};
use crate::failure::from_message;

/// Runs a script that fails; its error must have this message and this traceback.
fn check_failure(source: &str, message: &str, traceback: &str) {
    let expected = ScriptError { traceback: traceback.into(), ..from_message(message) };
    assert_eq!(Guest::run(source).failure(), expected, "{source}");
}

fn denied() -> OperationError {
    OperationError {
        capability: Some("http".into()),
        target: Some("GET https://x/".into()),
        fix: Some("[[tenant.a.allow.http]]".into()),
        limit: Some("operations".into()),
        retry_after_ms: Some(1500),
        reason: Some("host_not_allowed".into()),
        rule: Some("policy.toml:12".into()),
        ..OperationError::new(ErrorKind::Denied, "no rule allows it")
    }
}

#[test]
fn a_script_catches_a_table_with_fields_and_one_readable_line() {
    let mut guest = Guest::run(
        "local hyper = require('vnd:hyper')
         local ok, e = pcall(hyper.get, 'https://x/')
         print(ok, type(e), e.kind, e.message, e.capability, e.target, e.fix, e.limit, e.retry_after)
         print(e.reason, e.rule, e.site)
         print(e)
         print(getmetatable(e), pcall(setmetatable, e, {}))
         print(pcall(function() e.kind = 'io' end))
         hyper.get('https://x/')",
    );
    for _ in 0..2 {
        let (id, _) = guest.submitted()[0];
        guest.complete(vec![(id, Err(denied()))]);
    }
    let expected = "false\ttable\tdenied\tno rule allows it\thttp\tGET https://x/\t[[tenant.a.allow.http]]\toperations\t1.5;\
                    host_not_allowed\tpolicy.toml:12\tmain.luau:2;\
                    denied: http GET https://x/: no rule allows it;\
                    locked\tfalse\tcannot change a protected metatable;\
                    false\tmain.luau:7: attempt to modify a readonly table";
    let failure = guest.failure();
    assert_eq!(guest.printed(), expected);
    assert_eq!(failure.message, "main.luau:8: denied: http GET https://x/: no rule allows it");
    assert_eq!(failure.traceback, "main.luau:8");
}

#[test]
fn absent_fields_are_nil() {
    check(
        "local _, e = pcall(require('std:kv').get, 1)
         print(e, e.kind, e.capability, e.target, e.fix, e.limit, e.retry_after, e.traceback, e.reason, e.rule)",
        "invalid: kv.get: key must be a string, got number\tinvalid\tnil\tnil\tnil\tnil\tnil\tnil\tnil\tnil",
    );
}

#[test]
fn an_uncaught_error_names_the_line_and_the_frames() {
    check_failure(
        "local function f()\n  error('no')\nend\nf()",
        "main.luau:2: no",
        "main.luau:2 function f\nmain.luau:4",
    );
    check_failure("local x = nil\nprint(x.y)", "main.luau:2: attempt to index nil with 'y'", "main.luau:2");
    check_failure("error('bare', 0)", "bare", "main.luau:1");
    check_failure("error()", "main.luau:1: (error object is nil)", "main.luau:1");
    check_failure("error(12)", "main.luau:1: 12", "main.luau:1");
}

#[test]
fn no_metamethod_of_an_error_object_is_called() {
    let bombs = [
        "function() while true do end end",
        "function() error('again') end",
        "coroutine.yield",
        "function() return string.rep('x', 100000000) end",
    ];
    for bomb in bombs {
        let line = "main.luau:1: (error object is a table)";
        check_failure(&format!("error(setmetatable({{}}, {{ __tostring = {bomb} }}))"), line, "main.luau:1");
        let source = format!("error(setmetatable({{ message = 'm' }}, {{ __tostring = {bomb}, __index = {bomb} }}))");
        check_failure(&source, &format!("{line} m"), "main.luau:1");
    }
    check_failure("error(coroutine.create(print))", "main.luau:1: (error object is a thread)", "main.luau:1");
}

#[test]
fn messages_and_tracebacks_are_cut() {
    let failure = Guest::run("error(string.rep('é', 10000))").failure();
    assert!(failure.message.len() <= 4096 && failure.message.ends_with('é'));
    let source = "local function f(n) if n == 0 then error('deep') end local r = f(n - 1) return r end f(5000)";
    let failure = Guest::run(source).failure();
    assert!(failure.traceback.len() <= 4096, "{}", failure.traceback.len());
    assert!(failure.traceback.contains("\n...\n") && failure.traceback.ends_with("main.luau:1"));
}

#[test]
fn an_overflow_of_the_stack_is_an_error() {
    let failure = Guest::run("local function f() return 1 + f() end\nf()").failure();
    assert!(failure.message.starts_with("main.luau:1: stack overflow"), "{failure:?}");
}

#[test]
fn too_little_memory_can_be_caught_and_is_reported() {
    let bombs = ["local s = 'x' while true do s ..= s end", "local t = {} while true do t[#t + 1] = {} end"];
    for bomb in bombs {
        check(&format!("print(pcall(function() {bomb} end))"), "false\tnot enough memory");
        let failure = Guest::run(bomb).failure();
        assert!(failure.message.ends_with("not enough memory"), "{failure:?}");
    }
}

#[test]
fn a_script_may_keep_most_of_its_memory_alive() {
    check(
        "local kept, n = {}, 0
         for i = 1, 1200 do kept[i] = string.rep('k', 10000) .. i end
         for i = 1, 20000 do local garbage = string.rep('g', 10000) .. i n += #garbage end
         print(n > 2e8, #kept)",
        "true\t1200",
    );
}

#[test]
fn garbage_does_not_stand_in_the_way_of_a_large_string() {
    check("for i = 1, 50 do local s = string.rep('x', 3e6) .. i end print('done')", "done");
}

#[test]
fn a_syntax_error_names_the_line() {
    for mode in [Mode::Handler, Mode::Script, Mode::Check] {
        let (_, finish) = Guest::load("local x =\n\nlocal", mode);
        let Finish::Failed(error) = finish else { panic!("{finish:?}") };
        assert!(error.message.starts_with("main.luau:3: "), "{error:?}");
        assert_eq!(error.traceback, "");
    }
}

#[test]
fn bytecode_and_oversized_texts_never_reach_the_compiler() {
    let first_bytes = (0..0x20).filter(|byte| !b"\t\n\r".contains(byte));
    for first in first_bytes {
        let (_, finish) = Guest::load_bytes(&[first, b'-', b'-'], Mode::Check, 1 << 24);
        assert_eq!(finish, Finish::Failed(from_message("main.luau: not a source text")), "byte {first}");
    }
    let (_, finish) = Guest::load(&" ".repeat(512 * 1024 + 1), Mode::Check);
    let message = "main.luau: the source has 524289 bytes, and 524288 is the most";
    assert_eq!(finish, Finish::Failed(from_message(message)));
    for source in ["", "\tlocal x", "\n--", "\r\n--"] {
        assert_eq!(Guest::load(source, Mode::Check).1, Finish::Done, "{source:?}");
    }
}
