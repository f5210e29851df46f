//! Requests that share a VM: what is each one's own, and what they can do for each other.

use neoc_abi::event::{Event, Finish, Mode, Request};
use neoc_abi::{Operation, Outcome, Reply, detach, time, wire};

use super::{Guest, LIMITS, answer, requests};
use crate::host::double::SAID;
use crate::scheduler;
use crate::scheduler::wait::census;

/// A VM with a handler that does what the path says.
fn shared(source: &str) -> Guest {
    let source = format!("local task = require('std:task')\n{source}");
    let (guest, loaded) = Guest::load(&source, Mode::Handler);
    assert_eq!(loaded, Finish::Done, "{source}");
    take_calls();
    SAID.with_borrow_mut(|said| {
        said.n_left.clear();
        said.answer_at_once = Some(|bytes| match super::operation_of(bytes) {
            Operation::Detach(_) => {
                let begun: Outcome = Ok(Reply::Detach(detach::Reply::Begun));
                Some(wire::encode(&begun).expect("encodes"))
            }
            _ => None,
        });
    });
    guest
}

fn start(guest: &mut Guest, number: u32, path: &str) {
    guest.start_as(number, Event::Request(Request { path, ..requests::request() }));
}

/// The imports that were called since the last look, each with the request that it was for.
fn take_calls() -> Vec<(&'static str, u32)> {
    SAID.with_borrow_mut(|said| std::mem::take(&mut said.requests))
}

/// The requests that have ended since the last look: their numbers, their answers, how many of their tasks go on.
fn ends(guest: &mut Guest) -> Vec<(u32, String, u32)> {
    let numbers: Vec<u32> =
        take_calls().into_iter().filter(|(import, _)| *import == "finish").map(|(_, number)| number).collect();
    let _ = guest;
    SAID.with_borrow_mut(|said| {
        let shown = said.finished.drain(..).map(|bytes| match wire::decode(&bytes).expect("a finish") {
            Finish::Response(response) => String::from_utf8(response.body).expect("text"),
            Finish::Failed(error) => error.message,
            other => panic!("{other:?}"),
        });
        let shown: Vec<_> = shown.collect();
        numbers.into_iter().zip(shown).zip(said.n_left.drain(..)).map(|((number, text), n)| (number, text, n)).collect()
    })
}

/// The timers that were set since the last look.
fn timers(guest: &mut Guest) -> Vec<u32> {
    let submitted = guest.submitted().into_iter();
    submitted.filter(|(_, operation)| matches!(operation, Operation::Time(_))).map(|(id, _)| id).collect()
}

fn over() -> Vec<u32> {
    SAID.with_borrow_mut(|said| std::mem::take(&mut said.over))
}

fn waited(id: u32) -> (u32, Outcome) {
    (id, answer(Operation::Time(time::Operation::Wait { seconds: 1.0 })))
}

fn end(number: u32, text: &str) -> (u32, String, u32) {
    (number, text.to_owned(), 0)
}

#[test]
fn requests_wait_beside_each_other_and_each_has_its_own_answer() {
    let mut guest = shared(
        "local n = 0 return function(r) n += 1 local mine = n task.wait(1) print(r.path) return mine .. r.path end",
    );
    start(&mut guest, 5, "/five");
    start(&mut guest, 6, "/six");
    assert_eq!(take_calls(), [("submit", 5), ("submit", 6)]);
    let ids: Vec<u32> = timers(&mut guest);
    guest.complete(vec![waited(ids[1])]);
    assert_eq!(SAID.with_borrow(|said| said.requests.clone()), [("log", 6), ("finish", 6)]);
    assert_eq!(ends(&mut guest), [end(6, "2/six")]);
    guest.complete(vec![waited(ids[0])]);
    assert_eq!(ends(&mut guest), [end(5, "1/five")]);
    assert_eq!((scheduler::n_alive(), census::left_at_the_end()), (0, vec![]));
}

#[test]
fn a_request_that_waits_for_what_a_later_one_does_is_no_deadlock() {
    let mut guest = shared(
        "local channel = task.channel(1)
        return function(r)
            if r.path == '/get' then return 'got ' .. channel:get() end
            channel:put('it')
            return 'put'
        end",
    );
    start(&mut guest, 1, "/get");
    assert_eq!(ends(&mut guest), []);
    assert_eq!(scheduler::n_alive(), 1);
    start(&mut guest, 2, "/put");
    assert_eq!(ends(&mut guest), [end(2, "put"), end(1, "got it")]);
    assert_eq!(guest.logged(), []);
}

#[test]
fn tasks_that_await_each_other_in_a_circle_are_told_so_across_requests() {
    let mut guest = shared(
        "local tasks = {}
        return function(r)
            tasks[r.path] = task.current()
            if r.path == '/one' then
                task.wait(1)
                local ok, e = pcall(task.await, tasks['/two'])
                return e.message
            end
            return task.await(tasks['/one']) or 'over'
        end",
    );
    start(&mut guest, 1, "/one");
    start(&mut guest, 2, "/two");
    let id = guest.submitted()[0].0;
    guest.complete(vec![waited(id)]);
    let message = "task.await: these tasks would await each other for ever";
    assert_eq!(ends(&mut guest), [end(1, message), end(2, message)]);
}

#[test]
fn a_cancelled_request_takes_its_own_tasks_along_and_cleans_up() {
    let mut guest = shared(
        "return function(r)
            task.finally(function() task.wait(0.1) print('cleaned', pcall(task.spawn, print)) end)
            task.spawn(task.wait, 10)
            task.defer(task.wait, 11)
            task.every(12, print)
            task.detach(print, 'detached')
            if r.path == '/deaf' then pcall(task.wait, 13) end
            task.wait(14)
            return r.path
        end",
    );
    start(&mut guest, 1, "/deaf");
    start(&mut guest, 2, "/other");
    assert_eq!(timers(&mut guest).len(), 8);
    take_calls();
    guest.vm.cancel_request(1);
    guest.confirm_cancelled();
    // The wait of the cleanup, and its window.
    let cleanup = guest.submitted();
    assert_eq!(cleanup.len(), 2, "{cleanup:?}");
    assert!(take_calls().iter().all(|(_, number)| *number == 1));
    guest.complete(cleanup.iter().map(|(id, operation)| (*id, answer(operation.clone()))).collect());
    assert_eq!(ends(&mut guest), [end(1, "main.luau:9: cancelled: the task was cancelled")]);
    assert!(guest.printed().starts_with("cleaned\tfalse\tcancelled"), "the tasks of a cancelled request start no more");
    assert_eq!(scheduler::n_alive_of(1), 0);
    assert_eq!(scheduler::n_alive_of(2), 5);
    // Once more, and one that nobody knows.
    guest.vm.cancel_request(1);
    guest.vm.cancel_request(9);
    assert_eq!(scheduler::n_alive_of(2), 5);
}

#[test]
fn detached_tasks_begin_with_the_next_call_and_their_end_is_told() {
    let mut guest = shared(
        "return function(r)
            task.detach(function() task.wait(1) print(r.path) end)
            return r.path
        end",
    );
    start(&mut guest, 1, "/one");
    start(&mut guest, 2, "/two");
    assert_eq!(ends(&mut guest), [(1, "/one".into(), 1), (2, "/two".into(), 1)]);
    guest.complete(vec![]);
    let ids: Vec<u32> = timers(&mut guest);
    guest.complete(vec![waited(ids[1])]);
    assert_eq!((over(), guest.printed()), (vec![2], "/two".to_owned()));
    guest.vm.cancel_request(1);
    guest.confirm_cancelled();
    assert_eq!((over(), guest.printed()), (vec![1], String::new()));
    assert_eq!(census::left_at_the_end(), Vec::<String>::new());
}

#[test]
fn limits_count_for_each_request_apart() {
    let mut guest = shared(
        "return function(r)
            local n, e = -1, nil
            repeat n += 1 local ok ok, e = pcall(task.spawn, task.wait, 1) until not ok
            task.wait(0)
            return n .. ' ' .. e.limit
        end",
    );
    for number in 1..=3 {
        start(&mut guest, number, "/");
    }
    assert_eq!(guest.submitted().len() as u32, 3 * LIMITS.timers);
    for number in 1..=3 {
        guest.vm.cancel_request(number);
    }
    guest.confirm_cancelled();
    assert_eq!(ends(&mut guest).len(), 3);
    let mut guest = shared(
        "return function(r)
            local n = 0
            for _ = 1, 70 do
                task.spawn(function() local ok = pcall(require('std:kv').get, 'k') n += if ok then 0 else 1 end)
            end
            return tostring(n)
        end",
    );
    start(&mut guest, 1, "/");
    start(&mut guest, 2, "/");
    assert_eq!(guest.submitted().len() as u32, 2 * LIMITS.pending_operations);
}

#[test]
fn failures_that_nobody_awaits_are_logged_with_their_own_request() {
    let mut guest = shared(
        "return function(r)
            task.spawn(error, 'of ' .. r.path)
            task.wait(1)
            return r.path
        end",
    );
    start(&mut guest, 1, "/one");
    start(&mut guest, 2, "/two");
    let ids: Vec<u32> = timers(&mut guest);
    take_calls();
    guest.complete(vec![waited(ids[1])]);
    assert_eq!(take_calls(), [("log", 2), ("finish", 2)]);
    let logged = guest.logged();
    assert!(logged.len() == 1 && logged[0].text.contains("of /two"), "{logged:?}");
}

#[test]
fn lines_made_while_the_script_is_loaded_are_no_others_later() {
    let mut guest = shared(
        "local early = task.channel(1)
        return function(r)
            local late = task.channel(1)
            local getter = task.spawn(function() return late:get() end)
            early:put('wrong')
            task.wait(1)
            local status = task.status(getter)
            late:put('right')
            return status .. ' ' .. task.await(getter)
        end",
    );
    start(&mut guest, 1, "/");
    let id = guest.submitted()[0].0;
    guest.complete(vec![waited(id)]);
    assert_eq!(ends(&mut guest), [end(1, "waiting right")]);
}

#[test]
fn what_requests_leave_behind_does_not_add_up() {
    let mut guest = shared(
        "local handles = setmetatable({}, { __mode = 'k' })
        return function(r)
            if r.path == '/count' then
                local n = 0
                for _ in handles do n += 1 end
                return tostring(n)
            end
            local function keep(handle) handles[handle] = true return handle end
            keep(task.current())
            keep(task.spawn(task.wait, 5))
            keep(task.defer(print))
            keep(task.every(7, print))
            keep(task.detach(print))
            task.cancel(keep(task.defer(print)))
            keep(task.spawn(error, 'x'))
            keep(task.spawn(function() task.finally(error, 'y') pcall(task.wait, 5) end))
            error('over')
        end",
    );
    for number in 1..=20 {
        start(&mut guest, number, "/");
        if number % 2 == 0 {
            guest.vm.cancel_request(number);
        }
        guest.answer_all();
        guest.complete(vec![]);
        guest.answer_all();
    }
    assert_eq!((scheduler::n_alive(), census::left_at_the_end()), (0, vec![]));
    ends(&mut guest);
    for _ in 0..2 {
        guest.vm.lua().gc_collect().expect("collects");
    }
    start(&mut guest, 21, "/count");
    assert_eq!(ends(&mut guest), [end(21, "0")]);
}

#[test]
fn a_thread_that_a_script_has_got_hold_of_is_no_other_requests() {
    let mut guest = shared(
        "local kept = {}
        return function(r)
            if r.path == '/keep' then
                kept[coroutine.running()] = true
                return 'kept'
            end
            if r.path == '/look' then
                return kept[coroutine.running()] and 'the same' or 'another'
            end
            local thread = next(kept)
            return coroutine.status(thread) .. ' ' .. tostring(coroutine.close(thread))
        end",
    );
    for (number, path, answer) in [(1, "/keep", "kept"), (2, "/look", "another"), (3, "/", "dead true")] {
        start(&mut guest, number, path);
        assert_eq!(ends(&mut guest), [end(number, answer)], "{path}");
    }
}

#[test]
fn a_thread_begins_again_as_one_that_is_new() {
    let mut guest = shared(
        "local function deep(n) if n == 0 then return 0 end return 1 + deep(n - 1) end
        local outer
        return function(...)
            local r = ...
            if r.path == '/fail' then error('on purpose') end
            if r.path == '/deep' then return tostring(deep(5000)) end
            if r.path == '/wait' then task.wait(1) end
            if r.path == '/close' then
                local mine = 'of one request'
                outer = function() return mine end
                return 'closed over'
            end
            return select('#', ...) .. ' ' .. tostring(outer and outer())
        end",
    );
    start(&mut guest, 1, "/fail");
    assert_eq!(ends(&mut guest), [end(1, "main.luau:6: on purpose")]);
    start(&mut guest, 2, "/deep");
    start(&mut guest, 3, "/wait");
    // Beside one that waits on its own thread.
    start(&mut guest, 4, "/close");
    start(&mut guest, 5, "/");
    let timers = timers(&mut guest);
    guest.complete(vec![waited(timers[0])]);
    let all = [end(2, "5000"), end(4, "closed over"), end(5, "1 of one request"), end(3, "1 of one request")];
    assert_eq!(ends(&mut guest), all);
}
