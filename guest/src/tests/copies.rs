//! What a call is given is read once, before anything else runs: what is judged and done is what was there then.

use std::collections::BTreeSet;

use neoc_abi::event::Finish;
use neoc_abi::{Operation, http};

use super::{Guest, answer, check};

/// Plays the host to the end; gives all that was asked for, as text.
fn all_submitted(guest: &mut Guest) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let submitted = guest.submitted();
        if submitted.is_empty() {
            return all;
        }
        let outcome = |operation: &Operation| match operation {
            Operation::Time(_) | Operation::Http(_) | Operation::Workers(_) => answer(operation.clone()),
            _ => Err(neoc_abi::OperationError::io("refused")),
        };
        all.extend(submitted.iter().map(|(_, operation)| match operation {
            // As text and not as numbers.
            Operation::Workers(neoc_abi::workers::Operation::Run(work)) => {
                format!("{} {}", work.module, String::from_utf8_lossy(&work.arguments))
            }
            Operation::Fs(neoc_abi::fs::Operation::Write { path, content }) => {
                format!("{path} {}", String::from_utf8_lossy(content))
            }
            Operation::Kv(neoc_abi::kv::Operation::Set { key, value }) => {
                format!("{} {}", String::from_utf8_lossy(key), String::from_utf8_lossy(value))
            }
            Operation::Http(http::Operation::Request(request)) => {
                let headers: Vec<_> = request
                    .headers
                    .iter()
                    .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)))
                    .collect();
                let body = request.body.as_ref().map(|body| String::from_utf8_lossy(body).into_owned());
                format!("{} {} {headers:?} {body:?} {:?}", request.method, request.url, request.timeouts)
            }
            other => format!("{other:?}"),
        }));
        guest.complete(submitted.into_iter().map(|(id, operation)| (id, outcome(&operation))).collect());
    }
}

#[test]
fn what_waits_in_line_is_what_it_was_when_it_was_asked_for() {
    let source = "
        local hyper, task, workers = require('vnd:hyper'), require('std:task'), require('std:workers')
        local headers, options = { ['x-a'] = 'before' }, { headers = { ['x-o'] = 'before' }, timeout = 5 }
        local requests, items = {}, {}
        for i = 1, 50 do
            requests[i] = if i % 2 == 0
                then `before-{i}`
                else { url = `before-{i}`, method = 'PUT', body = 'before', headers = headers, timeouts = { total = 5 } }
            items[i] = { `before-{i}`, { deep = 'before' } }
        end
        task.spawn(hyper.get_all, requests, options)
        task.spawn(workers.map, './before', items)
        local function change()
            headers['x-a'], headers['x-b'] = 'after', 'after'
            options.headers['x-o'], options.timeout = 'after', 9
            for i = 1, 50 do
                if type(requests[i]) == 'table' then
                    requests[i].url, requests[i].method, requests[i].body = 'after', 'POST', 'after'
                    requests[i].timeouts.total = 9
                end
                items[i][1], items[i][2].deep = 'after', 'after'
                requests[i], items[i] = 'after', 'after'
            end
        end
        change()
        task.spawn(function() for _ = 1, 20 do task.wait(0) change() end end)";
    let mut guest = Guest::run(source);
    let submitted = all_submitted(&mut guest);
    assert_eq!(guest.finish(), Some(Finish::Done));
    let changed: Vec<_> = submitted
        .iter()
        .filter(|text| text.contains("after") || text.contains("POST") || text.contains("9000"))
        .collect();
    assert!(changed.is_empty(), "{changed:#?}");
    let asked = |prefix: &str| -> BTreeSet<usize> {
        let of_kind = submitted.iter().filter(|text| text.starts_with(prefix));
        let numbers = of_kind.filter_map(|text| text.split("before-").nth(1));
        numbers.filter_map(|text| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
    };
    assert_eq!(asked("PUT"), (1..=50).step_by(2).collect());
    assert_eq!(asked("GET"), (2..=50).step_by(2).collect());
    assert_eq!(asked("./before"), (1..=50).collect());
    assert!(submitted.iter().any(|text| text.contains("x-o=before") && text.contains("5000")), "{submitted:#?}");
}

#[test]
fn what_is_on_its_way_is_what_it_was_when_it_was_asked_for() {
    let source = "
        local hyper, net, task, workers = require('vnd:hyper'), require('std:net'), require('std:task'), require('std:workers')
        local request = { url = 'before', body = 'before', headers = { a = 'before', b = { 'before' } } }
        local options, argument = { headers = { a = 'before' }, timeout = 5 }, { { 'before' } }
        local bytes = buffer.fromstring('before')
        task.spawn(hyper.request, request)
        task.spawn(hyper.get, 'before', options)
        task.spawn(net.connect, 'tcp://before:1', options.timeout and { timeout = 5 })
        task.spawn(workers.run, './before', argument, bytes)
        request.url, request.headers.a, request.headers.b[1], request.headers.c = 'after', 'after', 'after', 'after'
        options.headers.a, options.timeout, argument[1][1] = 'after', 9, 'after'
        buffer.writestring(bytes, 0, 'after!')";
    let mut guest = Guest::run(source);
    let submitted = all_submitted(&mut guest);
    assert_eq!(submitted.len(), 4, "{submitted:#?}");
    assert!(submitted.iter().all(|text| text.contains("before") && !text.contains("after")), "{submitted:#?}");
    assert!(submitted.iter().all(|text| !text.contains("9000")), "{submitted:#?}");
}

#[test]
fn no_metamethod_answers_in_the_place_of_an_argument() {
    let head = "local hyper, kv, fs, net, n = require('vnd:hyper'), require('std:kv'), require('std:fs'), require('std:net'), 0
        local function read() n += 1 return if n % 2 == 1 then 'https://a.example' else 'https://b.example' end
        local all = { __index = read, __tostring = read, __call = read, __concat = read, __len = function() n += 1 return 1 end,
            __iter = function() n += 1 return next, { url = read() } end, __eq = function() n += 1 return true end }
        local proxy = setmetatable({}, all) ";
    for call in [
        "hyper.get(proxy)",
        "hyper.request(proxy)",
        "hyper.request({ url = proxy })",
        "hyper.request({ url = 'u', method = proxy })",
        "hyper.request({ url = 'u', body = proxy })",
        "hyper.request({ url = 'u', headers = { a = proxy, b = { proxy } } })",
        "hyper.get_all({ proxy })",
        "kv.get(proxy)",
        "kv.set('k', proxy)",
        "fs.read(proxy)",
        "fs.write('/x', proxy)",
        "net.connect(proxy)",
        "net.udp(proxy)",
        "require(proxy)",
    ] {
        check(
            &format!("{head} local ok, e = pcall(function() return {call} end) print(ok, e.kind, n)"),
            "false\tinvalid\t0",
        );
    }
    // Where a table may be empty, it is.
    for call in ["hyper.get('u', proxy).ok", "hyper.get('u', { headers = proxy }).ok", "#hyper.get_all(proxy) == 0"] {
        check(&format!("{head} local done = {call} print(done, n)"), "true\t0");
    }
}
