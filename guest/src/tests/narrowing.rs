//! What a script gives `require` beside a name: copied, kept, and sent with each call. What it means is the host's
//! to say; here one answers that anything makes sense.

use neoc_abi::event::{Event, Finish, Mode};
use neoc_abi::narrowing::{Given, Narrowing, Reply};
use neoc_abi::{Call, Operation, Reply as AnyReply, net, wire};

use super::Guest;
use crate::host::double::SAID;

/// Answers what is answered at once, and opens connections.
fn answer_at_once(bytes: &[u8]) -> Option<Vec<u8>> {
    let reply = match wire::decode::<Call>(bytes).expect("a call").operation {
        Operation::Narrow(_) => AnyReply::Narrow(Reply::Checked),
        Operation::Net(net::Operation::Open { .. }) => AnyReply::Net(net::Reply::Opened { handle: 1 }),
        Operation::Net(_) => AnyReply::Net(net::Reply::Done),
        _ => return None,
    };
    Some(wire::encode(&Ok::<_, neoc_abi::OperationError>(reply)).expect("encodes"))
}

/// The calls so far, without the questions whether something makes sense.
fn calls() -> Vec<Call> {
    let said = SAID.with_borrow(|said| said.submitted.clone());
    let calls = said.iter().map(|(_, bytes)| wire::decode::<Call>(bytes).expect("a call"));
    calls.filter(|call| !matches!(call.operation, Operation::Narrow(_))).collect()
}

#[test]
fn each_call_carries_what_was_written_when_it_was_required() {
    let source = "local patterns = { hosts = { 'https://a', 'b' }, paths = {}, odd = 7, word = 'x' }
        local hyper, task = require('vnd:hyper', patterns), require('std:task')
        patterns.hosts[1], patterns.word = 'https://z', nil
        for _ = 1, 3 do task.spawn(hyper.get, 'https://b') end
        task.spawn(require('vnd:hyper').get, 'https://b')
        task.spawn(hyper.get_all, { 'https://b', 'https://c' })
        task.wait(1)";
    let mut guest = Guest::run_on(answer_at_once, source);
    let of_http = calls().into_iter().filter(|call| matches!(call.operation, Operation::Http(_)));
    let narrowings: Vec<_> = of_http.map(|call| call.narrowing).collect();
    let texts = |texts: &[&str]| Given::Texts(texts.iter().map(|text| (*text).to_owned()).collect());
    let fields = [
        ("hosts", texts(&["https://a", "b"])),
        ("odd", Given::Other),
        ("paths", texts(&[])),
        ("word", Given::Text("x".into())),
    ];
    let kept = Some(Narrowing { fields: fields.map(|(key, given)| (key.to_owned(), given)).into() });
    assert_eq!(narrowings, [&kept, &kept, &kept, &None, &kept, &kept].map(Clone::clone));
    guest.answer_all();
    assert_eq!(guest.finish(), Some(Finish::Done));
}

#[test]
fn what_is_done_with_an_open_connection_carries_nothing() {
    let source = "local net = require('std:net', { hosts = {} })
        local connection = net.connect('tcp://a:1')
        connection:write('x')
        connection:close()";
    let mut guest = Guest::run_on(answer_at_once, source);
    assert_eq!(guest.finish(), Some(Finish::Done));
    let carried: Vec<bool> = calls().iter().map(|call| call.narrowing.is_some()).collect();
    assert_eq!(carried, [true, false, false]);
}

#[test]
fn narrowed_tables_are_garbage_like_any_other_and_count_in_the_heap_of_the_script() {
    let table = "require('std:kv', { prefix = string.rep('x', 8000) .. n })";
    for (source, expected) in [
        (format!("for n = 1, 20000 do {table} end print('through')"), "through"),
        (
            format!(
                "local all = {{}} local ok, e = pcall(function() for n = 1, 20000 do all[n] = {table} end end)
                local n = #all all = nil print(ok, n > 100, n < 2000, (string.gsub(tostring(e), '^.*: ', '')))"
            ),
            "false\ttrue\ttrue\tnot enough memory",
        ),
    ] {
        let (mut guest, finish) = Guest::load_bytes(source.as_bytes(), Mode::Script, 8 << 20);
        assert_eq!(finish, Finish::Done);
        SAID.with_borrow_mut(|said| said.answer_at_once = Some(answer_at_once));
        guest.start(Event::Run(vec![]));
        assert_eq!(guest.finish(), Some(Finish::Done), "{source}");
        assert_eq!(guest.printed(), expected, "{source}");
    }
}
