//! From where in a script a call comes.

use neoc_abi::{Call, Operation, wire};

use super::Guest;
use crate::host::double::SAID;

/// Runs a script with a friendly host; its calls must come from these places, waits not counted.
fn check_sites(source: &str, expected: &[&str]) {
    let mut guest = Guest::run(source);
    let mut sites = Vec::new();
    loop {
        let calls = SAID.with_borrow(|said| said.submitted.iter().map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>());
        if calls.is_empty() {
            break;
        }
        for Call { site, scope, narrowing: _, operation } in
            calls.iter().map(|bytes| wire::decode(bytes).expect("a call"))
        {
            assert_eq!(scope, 0);
            if !matches!(operation, Operation::Time(_)) {
                sites.push(site.map_or("nowhere".to_owned(), |site| site.to_string()));
            }
        }
        guest.answer_batch();
    }
    assert_eq!(sites, expected, "{source}");
}

#[test]
fn a_call_has_the_line_that_it_stands_in() {
    check_sites(
        "local hyper = require('vnd:hyper')\n\nhyper.get('https://a/')\nhyper.post(\n'https://b/')",
        &["main.luau:3", "main.luau:4"],
    );
}

#[test]
fn a_call_after_a_wait_has_its_own_line() {
    check_sites(
        "local hyper, task = require('vnd:hyper'), require('std:task')
         hyper.get('https://a/')
         task.wait(1)
         hyper.get('https://b/')",
        &["main.luau:2", "main.luau:4"],
    );
}

#[test]
fn each_task_and_each_coroutine_has_lines_of_its_own() {
    check_sites(
        "local hyper, task = require('vnd:hyper'), require('std:task')
         local one = task.spawn(function()
             hyper.get('https://a/')
         end)
         local two = task.spawn(function()
             task.wait(1)
             coroutine.wrap(function()
                 hyper.get('https://b/')
             end)()
         end)
         hyper.get('https://c/')
         task.await_all({ one, two })",
        &["main.luau:3", "main.luau:11", "main.luau:8"],
    );
}

#[test]
fn a_list_of_requests_has_one_line_even_those_that_leave_later() {
    let places = vec!["main.luau:3"; 20];
    check_sites(
        "local urls = table.create(20, 'https://a/')
         local hyper = require('vnd:hyper')
         hyper.get_all(urls)",
        &places,
    );
}

#[test]
fn a_call_where_luau_cannot_yield_has_its_line() {
    let mut guest = Guest::run(
        "local hyper = require('vnd:hyper')
         local t = setmetatable({}, { __index = function()
             return hyper.get('https://a/').status
         end })
         print(t.x)",
    );
    guest.answer_all();
    assert_eq!(guest.stalls(), ["main.luau:3: hyper.get"]);
}

#[test]
fn a_call_through_pcall_has_the_line_of_the_script() {
    check_sites("local kv = require('vnd:hyper')\nlocal ok = pcall(kv.get, 'https://a/')", &["main.luau:2"]);
}

#[test]
fn a_task_of_a_function_of_ours_calls_from_where_it_was_made() {
    check_sites(
        "local hyper, task = require('vnd:hyper'), require('std:task')
         task.spawn(hyper.get, 'https://a/')
         task.spawn(pcall, hyper.get, 'https://b/')
         task.spawn(function()
             task.wait(1)
             task.spawn(task.spawn, hyper.get, 'https://c/')
         end)
         task.defer(hyper.get, 'https://d/')
         task.delay(1, hyper.get, 'https://e/')
         task.spawn(task.delay, 1, hyper.get_all, { 'https://f/', 'https://g/' })
         hyper.get('https://h/')",
        &[
            "main.luau:2",
            "main.luau:3",
            "main.luau:11",
            "main.luau:8",
            "main.luau:6",
            "main.luau:9",
            "main.luau:10",
            "main.luau:10",
        ],
    );
}

#[test]
fn an_error_of_a_task_of_a_function_of_ours_names_where_it_was_made() {
    let mut guest = Guest::run(
        "local task = require('std:task')
         local t = task.spawn(require('vnd:hyper').get, {})
         local ok, err = pcall(task.await, t)
         print(err.site)",
    );
    assert_eq!(guest.printed(), "main.luau:2");
}

#[test]
fn a_coroutine_of_a_function_of_ours_calls_from_where_it_was_made() {
    check_sites(
        "local hyper, task = require('vnd:hyper'), require('std:task')
         coroutine.wrap(hyper.get)('https://a/')
         local co = coroutine.create(pcall)
         coroutine.resume(co, hyper.get, 'https://b/')
         task.spawn(coroutine.wrap(hyper.get), 'https://c/')
         coroutine.wrap(coroutine.wrap(hyper.get))('https://d/')
         task.spawn(function()
             coroutine.wrap(function()
                 coroutine.wrap(hyper.get)('https://e/')
             end)()
         end)
         coroutine.wrap(function(get)
             get('https://f/')
         end)(hyper.get)",
        &["main.luau:2", "main.luau:3", "main.luau:5", "main.luau:6", "main.luau:9", "main.luau:13"],
    );
}
