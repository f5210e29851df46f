//! The modules, one by one.

use neoc_abi::event::Finish;
use neoc_abi::log::{Level, MAX_LINE_BYTES};
use neoc_abi::{Operation, OperationError, Reply, fs, http, kv};
use serde_bytes::ByteBuf;

use super::{Guest, answer, check};

/// Runs a script that makes one call; the operation must be this, and is answered with `reply`.
fn check_call(call: &str, operation: Operation, reply: Reply, expected: &str) {
    let mut guest = Guest::run(&format!(
        "local kv, fs, hyper = require('std:kv'), require('std:fs'), require('vnd:hyper') print({call})"
    ));
    let submitted = guest.submitted();
    assert_eq!(submitted.len(), 1, "{call}: {:?}", guest.finish());
    assert_eq!(submitted[0].1, operation, "{call}");
    guest.complete(vec![(submitted[0].0, Ok(reply))]);
    assert_eq!(guest.finish(), Some(Finish::Done), "{call}");
    assert_eq!(guest.printed(), expected, "{call}");
}

/// A call that is refused in the guest, with this line.
fn check_refused(call: &str, expected: &str) {
    let mut guest = Guest::run(&format!(
        "local kv, fs, hyper, json = require('std:kv'), require('std:fs'), require('vnd:hyper'), require('std:json')
         local ok, e = pcall(function() {call} end)
         print(ok, e)"
    ));
    assert_eq!(guest.printed(), format!("false\t{expected}"), "{call}");
    assert!(guest.submitted().is_empty(), "{call}");
}

#[test]
fn kv_carries_any_bytes() {
    let key = || b"k\0\xff".to_vec();
    let value = Some(serde_bytes::ByteBuf::from(b"v\0".to_vec()));
    let get = || Operation::Kv(kv::Operation::Get { key: key() });
    check_call(r"kv.get('k\0\xff') == 'v\0'", get(), Reply::Kv(kv::Reply::Value(value)), "true");
    check_call(r"kv.get('k\0\xff')", get(), Reply::Kv(kv::Reply::Value(None)), "nil");
    let set = Operation::Kv(kv::Operation::Set { key: key(), value: vec![] });
    check_call(r"kv.set('k\0\xff', '')", set, Reply::Kv(kv::Reply::Stored), "nil");
    let delete = Operation::Kv(kv::Operation::Delete { key: key() });
    check_call(r"kv.delete('k\0\xff')", delete, Reply::Kv(kv::Reply::Deleted(false)), "false");
}

#[test]
fn fs_calls_become_operations() {
    let path = || "/d/é".to_owned();
    let read = Operation::Fs(fs::Operation::Read { path: path() });
    check_call("fs.read('/d/é')", read, Reply::Fs(fs::Reply::Content(b"x".to_vec())), "x");
    let write = Operation::Fs(fs::Operation::Write { path: path(), content: b"c".to_vec() });
    check_call("fs.write('/d/é', 'c')", write, Reply::Fs(fs::Reply::Done), "nil");
    let list = Operation::Fs(fs::Operation::List { path: path() });
    let names = Reply::Fs(fs::Reply::Names(vec!["a".into(), "b/".into()]));
    check_call("table.concat(fs.list('/d/é'), ' ')", list, names, "a b/");
    let remove = Operation::Fs(fs::Operation::Remove { path: path() });
    check_call("fs.remove('/d/é')", remove, Reply::Fs(fs::Reply::Done), "nil");
}

#[test]
fn hyper_calls_become_operations() {
    let request = |method: &str| http::Request {
        method: method.into(),
        url: "u".into(),
        headers: vec![],
        secret_headers: vec![],
        body: None,
        timeouts: http::Timeouts::default(),
        decompress: false,
    };
    let check_http = |call: &str, request: http::Request, expected: &str| {
        let operation = Operation::Http(http::Operation::Request(request));
        check_call(call, operation.clone(), answer(operation).expect("friendly"), expected);
    };
    check_http("hyper.get('u').body", request("GET"), "u");
    check_http("hyper.get('u').headers['x-url']", request("GET"), "u, again");
    let with_options = http::Request {
        headers: vec![
            ("A".into(), ByteBuf::from(b"1")),
            ("b".into(), ByteBuf::from(b"x")),
            ("b".into(), ByteBuf::from(b"y")),
        ],
        timeouts: http::Timeouts { total_ms: Some(2500), ..Default::default() },
        ..request("GET")
    };
    check_http("hyper.get('u', { headers = { b = { 'x', 'y' }, A = 1 }, timeout = 2.5 }).ok", with_options, "true");
    check_http("hyper.post('u').status", request("POST"), "200");
    let with_body = http::Request { body: Some(b"\xff".to_vec().into()), ..request("POST") };
    check_http(r"hyper.post('u', '\xff').status", with_body, "200");
    let timeouts = http::Timeouts { total_ms: Some(1), ..Default::default() };
    let put = http::Request { body: Some(b"".to_vec().into()), timeouts, ..request("PUT") };
    check_http("hyper.request({ url = 'u', method = 'put', body = '', timeout = 0.0001 }).ok", put, "true");
    let timeouts = http::Timeouts {
        connect_ms: Some(1000),
        first_byte_ms: Some(2000),
        between_bytes_ms: Some(500),
        total_ms: Some(4000),
    };
    let timed = http::Request { timeouts, decompress: true, ..request("GET") };
    let options = "{ timeouts = { connect = 1, first_byte = 2, between_bytes = 0.5, total = 4 }, decompress = true }";
    check_http(&format!("hyper.get('u', {options}).ok"), timed, "true");
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let cases = [
        ("kv.get()", "kv.get: key must be a string, got nil"),
        ("kv.get('')", "kv.get: key must have 1 to 1024 bytes, got 0"),
        ("kv.set('k', 5)", "kv.set: value must be a string, got number"),
        ("fs.read({})", "fs.read: path must be a string, got table"),
        (r"fs.read('\xff')", "fs.read: path must be UTF-8"),
        ("fs.write('p')", "fs.write: content must be a string, got nil"),
        ("hyper.get()", "hyper.get: url must be a string, got nil"),
        ("hyper.get('u', 5)", "hyper.get: options must be a table, got number"),
        ("hyper.get('u', { header = {} })", "hyper.get: there is no option header"),
        ("hyper.get('u', { timeout = 0/0 })", "hyper.get: timeout must be more than 0 seconds, got NaN"),
        ("hyper.get('u', { timeout = 'x' })", "hyper.get: timeout must be a number of seconds, got string"),
        ("hyper.get('u', { timeouts = 5 })", "hyper.get: timeouts must be a table, got number"),
        ("hyper.get('u', { timeouts = { read = 5 } })", "hyper.get: there is no timeout read"),
        (
            "hyper.get('u', { timeouts = { connect = 0 } })",
            "hyper.get: timeouts.connect must be more than 0 seconds, got 0",
        ),
        ("hyper.get('u', { decompress = 'gzip' })", "hyper.get: decompress must be a boolean, got string"),
        ("hyper.post('u', {})", "hyper.post: body must be a string, got table"),
        ("hyper.request('u')", "hyper.request: request must be a table, got string"),
        ("hyper.request({})", "hyper.request: url must be a string, got nil"),
        ("hyper.request({ url = 'u', method = 'A B' })", "hyper.request: method must be a word such as GET, got A B"),
        ("hyper.get_all('u')", "hyper.get_all: requests must be a table, got string"),
        ("hyper.get_all({ 'u', 5 })", "hyper.get_all: requests[2] must be a URL or a table, got number"),
        ("hyper.get_all({ {} })", "hyper.get_all: requests[1]: url must be a string, got nil"),
        ("json.decode(5)", "json.decode: text must be a string, got number"),
    ];
    for (call, message) in cases {
        check_refused(call, &format!("invalid: {message}"));
    }
}

#[test]
fn get_all_keeps_the_order_and_puts_errors_in_their_places() {
    let mut guest = Guest::run(
        "local replies = require('vnd:hyper').get_all({ 'a', { url = 'b', method = 'HEAD' }, 'c' })
         print(#replies, replies[1].body, replies[2].kind, tostring(replies[2]), replies[3].body)",
    );
    let mut submitted = guest.submitted();
    assert_eq!(submitted.len(), 3);
    submitted.reverse();
    for (id, operation) in submitted {
        let is_second = matches!(&operation, Operation::Http(http::Operation::Request(request)) if request.url == "b");
        let outcome = if is_second { Err(OperationError::io("refused")) } else { answer(operation) };
        guest.complete(vec![(id, outcome)]);
    }
    assert_eq!(guest.printed(), "3\ta\tio\tio: refused\tc");
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn get_all_bounds_its_fan_out_and_never_meets_the_limit_of_pending_operations() {
    let many = "local urls = {} for i = 1, 40 do urls[i] = tostring(i) end ";
    let mut guest = Guest::run(&format!("{many} print(#require('vnd:hyper').get_all(urls))"));
    assert_eq!(guest.submitted().len(), 16);

    let source = "for i = 1, 6 do
                      require('std:task').spawn(function()
                          local n = 0
                          for index, reply in require('vnd:hyper').get_all(urls) do
                              if reply.body == urls[index] then n += 1 end
                          end
                          print(n)
                      end)
                  end";
    let mut guest = Guest::run(&format!("{many} {source}"));
    let first = guest.submitted();
    assert_eq!(first.len(), 64);
    guest.complete(first.into_iter().map(|(id, operation)| (id, answer(operation))).collect());
    guest.answer_all();
    assert_eq!(guest.printed(), "40;40;40;40;40;40");
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn an_operation_may_be_answered_at_once() {
    use crate::host::double::SAID;
    let (mut guest, _) = Guest::load(
        "local kv, task = require('std:kv'), require('std:task')
         task.spawn(function() task.wait(0) print('child') end)
         print(kv.get('k')) task.wait(0) print('main')",
        neoc_abi::event::Mode::Script,
    );
    SAID.with_borrow_mut(|said| {
        said.answer_at_once = Some(|bytes| {
            let outcome = match super::operation_of(bytes) {
                Operation::Kv(_) => Ok(Reply::Kv(kv::Reply::Value(None))),
                other => answer(other),
            };
            Some(neoc_abi::wire::encode(&outcome).expect("encodes"))
        });
    });
    guest.start(neoc_abi::event::Event::Run(vec![]));
    assert_eq!(guest.printed(), "nil;child;main");
    assert_eq!((guest.finish(), guest.cancelled()), (Some(Finish::Done), vec![]));
}

#[test]
fn json_round_trips() {
    let texts = [
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "1e300",
        "123456789012345680000",
        "0.1",
        r#""""#,
        r#""\u0000\n\"é😀""#,
        "[]",
        "{}",
        "[[],{}]",
        r#"{"a":[1,2,null],"b":{"c":false}}"#,
        "[null]",
    ];
    for text in texts {
        check(&format!("local json = require('std:json') print(json.encode(json.decode([==[{text}]==])))"), text);
    }
}

#[test]
fn json_encodes_by_shape() {
    let cases = [
        ("{}", "[]"),
        ("json.object({})", "{}"),
        ("json.array({})", "[]"),
        ("json.object({ a = json.array({}) })", r#"{"a":[]}"#),
        ("{ b = 1, a = 2, A = 3 }", r#"{"A":3,"a":2,"b":1}"#),
        ("{ 1, 2, json.null }", "[1,2,null]"),
        ("-0", "0"),
        ("2^53", "9007199254740992"),
        ("1e21", "1e21"),
        ("setmetatable({ 1 }, { __index = error, __iter = error, __len = error })", "[1]"),
    ];
    for (value, expected) in cases {
        check(&format!("local json = require('std:json') print(json.encode({value}))"), expected);
    }
}

#[test]
fn json_refuses_what_it_cannot_hold() {
    let cases = [
        ("json.encode()", "json.encode: a nil has no JSON form"),
        ("json.encode(0/0)", "json.encode: NaN has no JSON form"),
        ("json.encode(-math.huge)", "json.encode: -inf has no JSON form"),
        ("json.encode(print)", "json.encode: a function has no JSON form"),
        (r"json.encode('\xff')", "json.encode: a string is not UTF-8"),
        (r"json.encode({ ['\xff'] = 1 })", "json.encode: a key is not UTF-8"),
        ("json.encode({ [1] = 1, [3] = 3 })", "json.encode: an array has holes"),
        ("json.encode({ 1, a = 1 })", "json.encode: a table has both string keys and indices"),
        ("json.encode({ [0] = 1 })", "json.encode: a key is a number other than 1, 2, 3 and so on"),
        ("json.encode({ [1.5] = 1 })", "json.encode: a key is a number other than 1, 2, 3 and so on"),
        ("json.encode({ [true] = 1 })", "json.encode: a key is a boolean"),
        ("json.encode(json.object({ 1 }))", "json.encode: a table marked as an object has indices"),
        ("json.encode(json.array({ a = 1 }))", "json.encode: a table marked as an array has string keys"),
        ("local t = {} t[1] = { t } json.encode(t)", "json.encode: a table contains itself"),
        ("local t = {} for i = 1, 64 do t = { t } end json.encode(t)", "json.encode: nested deeper than 64 levels"),
        ("json.decode(string.rep('[', 65))", "json.decode: nested deeper than 64 levels at line 1 column 65"),
        ("json.decode('[1,]')", "json.decode: trailing comma at line 1 column 4"),
        ("json.decode('1 2')", "json.decode: trailing characters at line 1 column 3"),
        ("json.decode('')", "json.decode: EOF while parsing a value at line 1 column 0"),
        ("json.decode('1e999')", "json.decode: number out of range at line 1 column 5"),
        (r#"json.decode('"\xff"')"#, "json.decode: invalid unicode code point at line 1 column 2"),
        ("json.array(table.freeze({}))", "json.array: t must not be frozen or have a metatable"),
    ];
    for (call, message) in cases {
        check_refused(call, &format!("invalid: {message}"));
    }
    check_refused(
        "local s = string.rep('x', 1e6) local t = {} for i = 1, 20 do t[i] = s end json.encode(t)",
        "limit: json.encode: the text is longer than 8388608 bytes",
    );
    let mut guest = Guest::run("print(pcall(require('std:json').decode, '[' .. string.rep('[],', 3e5) .. '1]'))");
    assert_eq!(guest.printed(), "false\tnot enough memory");
}

#[test]
fn log_lines_carry_their_level_and_are_cut() {
    let mut guest = Guest::run(
        "local log = require('std:log')
         log.debug(1, nil, 'x') log.info() log.warn({} ~= nil) log.error(string.rep('é', 1e5))",
    );
    let logged = guest.logged();
    let levels: Vec<_> = logged.iter().map(|record| record.level).collect();
    assert_eq!(levels, [Level::Debug, Level::Info, Level::Warn, Level::Error]);
    assert_eq!((&*logged[0].text, &*logged[1].text, &*logged[2].text), ("1\tnil\tx", "", "true"));
    assert!(logged[3].text.len() <= MAX_LINE_BYTES && logged[3].text.ends_with('é'));
}
