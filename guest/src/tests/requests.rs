//! Handlers: how they are found, what they get, what they may answer.

use neoc_abi::event::{Event, Finish, Mode, Request, Response};
use neoc_abi::log::Level;
use serde_bytes::{ByteBuf, Bytes};

use super::Guest;
use crate::failure::from_message;

pub fn request() -> Request<'static> {
    Request { method: "GET", path: "/a", query: vec![], headers: vec![], body: Bytes::new(&[]) }
}

/// Loads a handler and gives what it answers to a request.
fn respond(source: &str, request: Request<'_>) -> Finish {
    let (mut guest, loaded) = Guest::load(source, Mode::Handler);
    assert_eq!(loaded, Finish::Done, "{source}");
    guest.start(Event::Request(request));
    guest.answer_all();
    guest.finish().expect("the handler has ended")
}

fn check_response(source: &str, status: u16, headers: &[(&str, &str)], body: &str) {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), ByteBuf::from(value.as_bytes()))).collect();
    let expected = Response { status, is_text: false, headers, body: body.into() };
    assert_eq!(respond(source, request()), Finish::Response(expected), "{source}");
}

fn check_text(source: &str, text: &str) {
    assert_eq!(respond(source, request()), Finish::Response(Response::text(text.into())), "{source}");
}

fn check_failure(source: &str, message: &str) {
    assert_eq!(respond(source, request()), Finish::Failed(from_message(message)), "{source}");
}

#[test]
fn a_handler_is_a_function_or_a_table_with_one_under_http() {
    check_text("return function(request) return request.method .. request.path end", "GET/a");
    check_text("return { http = function() return 'x' end }", "x");
    for source in [
        "",
        "return 1",
        "return {}",
        "return { http = 'x' }",
        "return setmetatable({}, { __index = function() return print end })",
    ] {
        let (_, finish) = Guest::load(source, Mode::Handler);
        let Finish::Failed(error) = finish else { panic!("{source}") };
        assert!(error.message.starts_with("main.luau: must return a handler"), "{error:?}");
    }
}

#[test]
fn the_request_is_a_plain_table() {
    let source = "return function(r)
        return table.concat({ r.body, r.query.a, r.query.b, r.headers.accept, r.headers['x-n'] }, '|')
    end";
    let bytes = |text: &'static str| Bytes::new(text.as_bytes());
    let request = Request {
        query: vec![("a", "1"), ("b", "é"), ("a", "2")],
        headers: vec![("x-n", bytes("1")), ("accept", bytes("*/*")), ("x-n", bytes("2"))],
        body: bytes("\0\u{ff}"),
        ..request()
    };
    let Finish::Response(response) = respond(source, request) else { panic!() };
    assert_eq!(response.body, "\0\u{ff}|2|é|*/*|1, 2".as_bytes());
}

#[test]
fn an_answer_may_set_status_headers_and_body() {
    check_response("return function() return {} end", 200, &[], "");
    check_response(
        "return function() return { status = 404, body = 'b', headers = { B = 'x', a = { '1', '2' }, n = 5 } } end",
        404,
        &[("B", "x"), ("a", "1"), ("a", "2"), ("n", "5")],
        "b",
    );
    check_response("return function() return require('vnd:hyper').get('u') end", 200, &[("x-url", "u, again")], "u");
}

#[test]
fn any_other_answer_is_the_scripts_error() {
    let cases = [
        ("nil", "the handler must return a string or a table with status, headers and body, got nil"),
        ("12", "the handler must return a string or a table with status, headers and body, got number"),
        ("{ 'x' }", "the handler's answer has a key that is a number, not a string"),
        ("{ code = 1 }", "the handler's answer has no field code; there are status, headers and body"),
        ("{ status = 99 }", "the handler's answer: status must be an integer from 100 to 599, got 99"),
        ("{ status = 200.5 }", "the handler's answer: status must be an integer from 100 to 599, got 200.5"),
        ("{ status = 0/0 }", "the handler's answer: status must be an integer from 100 to 599, got NaN"),
        ("{ status = '200' }", "the handler's answer: status must be a number, got string"),
        ("{ body = 1 }", "the handler's answer: body must be a string, got number"),
        ("{ headers = 'x' }", "the handler's answer: headers must be a table, got string"),
        ("{ headers = { 'x' } }", "the handler's answer: headers must have string keys, got a number"),
        (
            "{ headers = { x = { 1 } } }",
            "the handler's answer: header x must be a string, a number or an array of strings, got number",
        ),
    ];
    for (answer, message) in cases {
        check_failure(&format!("return function() return {answer} end"), message);
    }
}

#[test]
fn the_top_level_may_log_and_compute_but_not_do_io() {
    let (mut guest, loaded) = Guest::load("print('loading') return function() return 'x' end", Mode::Handler);
    assert_eq!((loaded, guest.printed().as_str()), (Finish::Done, "loading"));
    let calls = [
        "require('std:kv').get('k')",
        "require('std:task').wait(1)",
        "require('std:task').spawn(print)",
        "coroutine.wrap(function() require('vnd:hyper').get('u') end)()",
    ];
    for call in calls {
        let (mut guest, loaded) = Guest::load(&format!("\n{call}"), Mode::Handler);
        let Finish::Failed(error) = loaded else { panic!("{call}") };
        assert!(error.message.starts_with("main.luau:2: invalid: "), "{error:?}");
        assert!(error.message.ends_with("top-level code may not do I/O; move it into the handler"), "{error:?}");
        assert!(guest.submitted().is_empty());
    }
}

#[test]
fn a_check_runs_nothing() {
    let (mut guest, loaded) = Guest::load("print('x') error('y')", Mode::Check);
    assert_eq!((loaded, guest.printed().as_str()), (Finish::Done, ""));
    guest.start(Event::Request(request()));
    assert_eq!(guest.finish(), Some(Finish::Failed(from_message("no handler is loaded"))));
}

#[test]
fn a_vm_serves_one_request_after_the_other() {
    let source = "local task = require('std:task')
                  return function() task.spawn(error, 'lost', 0) task.wait(1) return tostring(math.random(1e6)) end";
    let (mut guest, _) = Guest::load(source, Mode::Handler);
    let mut bodies = Vec::new();
    for _ in 0..2 {
        guest.start(Event::Request(request()));
        guest.answer_all();
        let Some(Finish::Response(response)) = guest.finish() else { panic!() };
        bodies.push(response.body);
        let logged = guest.logged();
        assert_eq!((logged.len(), logged[0].level), (1, Level::Error));
        assert_eq!(logged[0].text, "a task failed, and none awaited it: lost\n");
    }
    // The seed of a start decides, nothing that was before.
    assert_eq!(bodies[0], bodies[1]);
}

#[test]
fn a_script_gets_its_arguments() {
    assert_eq!(Guest::run("print(...)").printed(), "first\tsecond");
}
