//! `std:task` in the whole program: what cancelling frees, what detached tasks may do, what stays flat.

use std::fs;

use rustix::process::Signal;

use crate::support::{host::Host, neoc, output, upstream::Upstream, wait_until};

/// Rates that these tests never reach.
const LIMITS: &str = "requests = \"1000000/s\"\noperations = \"1000000/s\"\n";

/// A folder with a script and a policy with one tenant, `a`.
fn folder(script: &str, limits: &str, grants: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("script.luau"), format!("local task = require('std:task')\n{script}")).unwrap();
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = 16\n\
         [tenant.a]\nscript = \"script.luau\"\nroutes = [\"/*\"]\n\
         [tenant.a.limits]\n{LIMITS}{limits}\n{grants}"
    );
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

/// Runs the script to its end; gives what it printed.
fn run(folder: &tempfile::TempDir) -> String {
    let mut command = neoc();
    command.current_dir(folder.path()).args(["run", "script.luau", "--policy", "policy.toml", "--tenant", "a"]);
    let got = output(&mut command);
    assert_eq!(got.exit, 0, "{}", got.stderr);
    got.stdout
}

fn http(upstream: &Upstream) -> String {
    format!("[[tenant.a.allow.http]]\nhosts = [\"http://{}\"]\naddresses = [\"127.0.0.0/8\"]\n", upstream.address)
}

#[test]
fn cancelling_a_call_closes_its_socket_and_returns_its_permit() {
    const ROUNDS: usize = 24;
    let upstream = Upstream::start();
    // With one connection in all, a permit that did not return would block the next call for ever.
    let script = format!(
        "local hyper = require('vnd:hyper')
        for round = 1, {ROUNDS} do
            local pending = task.spawn(hyper.get, 'http://{0}/hold')
            -- Until its request is there: only then does the upstream let another one through.
            task.wait(0.005)
            assert(task.cancel(pending))
            local ok, e = task.try_await(pending)
            assert(not ok and e.kind == 'cancelled')
            -- The permit is back: else this call could not be made.
            print(hyper.get('http://{0}/closed/' .. round, {{ timeout = 20 }}).body)
        end",
        upstream.address
    );
    let printed = run(&folder(&script, "connections = 1", &http(&upstream)));
    let mut after_us: Vec<u64> = printed.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!((after_us.len(), upstream.closed()), (ROUNDS, ROUNDS));
    after_us.sort_unstable();
    println!(
        "the upstream saw the close within {} us (p50) and {} us (most) of the call that followed",
        after_us[ROUNDS / 2],
        after_us[ROUNDS - 1]
    );
}

#[test]
fn a_handler_that_fails_stops_the_calls_of_its_tasks() {
    let upstream = Upstream::start();
    let script = format!(
        "local hyper = require('vnd:hyper')
        return function()
            for _ = 1, 3 do task.spawn(hyper.get, 'http://{0}/hold') end
            while hyper.get('http://{0}/x').status ~= 200 do end
            error('over')
        end",
        upstream.address
    );
    let folder = folder(&script, "", &http(&upstream));
    let host = Host::start(folder.path());
    assert_eq!(host.get("/x").status, 500);
    wait_until("the upstream has seen three closes", || upstream.closed() == upstream.requests() - 1);
}

#[test]
fn a_hundred_thousand_waits_for_the_first_of_two_leave_nothing_behind() {
    // The loser is the same all the time: a waiter that stayed with it would be 100,000 in the end, which
    // the least memory that a tenant can have does not hold.
    let script = "local loser = task.spawn(task.wait, 1e6)
        local wrong = 0
        for round = 1, 100000 do
            local index, value = task.await_any({ loser, task.spawn(function() task.wait(0) return round end) })
            if index ~= 2 or value ~= round then wrong += 1 end
        end
        print(wrong, task.status(loser), task.cancel(loser))";
    let limits = "memory = \"8 MiB\"\ncpu = \"5 m\"\nwall = \"10 m\"";
    assert_eq!(run(&folder(script, limits, "")), "0\twaiting\ttrue\n");
}

#[test]
fn a_million_spawns_end_in_a_limit_and_the_hosts_memory_stays_flat() {
    let script = "return function()
            local made, refused = 0, nil
            for _ = 1, 1000000 do
                local ok, e = pcall(task.spawn, task.wait, 1e6)
                if not ok then refused = e break end
                made += 1
            end
            local kept = made
            error(`{made} {refused.kind} {refused.limit}`, 0)
        end";
    let folder = folder(script, "cpu = \"5 s\"", "");
    let mut host = Host::start(folder.path());
    let call = |host: &Host| assert_eq!(host.get("/x").status, 500);
    (0..20).for_each(|_| call(&host));
    let before = resident_bytes(host.pid());
    (0..100).for_each(|_| call(&host));
    let grown = resident_bytes(host.pid()).saturating_sub(before);
    assert!(grown < 16 << 20, "the host has grown by {grown} bytes");
    assert!(host.is_alive());
    let log = host.stop();
    // One timer for each task, and both limits are 1,000.
    assert!(log.contains("1000 limit tasks"), "{log}");
}

/// Resident memory of a process, in bytes.
fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

const DETACH: &str = "[tenant.a.allow.kv]\n[tenant.a.allow.detach]\ntasks = 2\n";

#[test]
fn a_detached_task_goes_on_after_the_answer() {
    let upstream = Upstream::start();
    let script = format!(
        "local hyper, kv = require('vnd:hyper'), require('std:kv')
        return function(request)
            if request.path == '/value' then return kv.get('k') or 'none' end
            task.detach(function()
                -- Opens once the client has its answer and calls the gate itself.
                local body = hyper.get('http://{}/gate/2').body
                kv.set('k', body)
            end)
            return 'answered'
        end",
        upstream.address
    );
    let folder = folder(&script, "", &format!("{DETACH}{}", http(&upstream)));
    let host = Host::start(folder.path());
    assert_eq!(host.get("/begin").body, "answered");
    assert_eq!(host.get("/value").body, "none");
    assert_eq!(crate::support::client::get(upstream.address, "/gate/2").body, "together");
    wait_until("the detached task has stored its value", || host.get("/value").body == "together");
}

#[test]
fn a_drain_waits_for_detached_tasks() {
    let script = "local kv = require('std:kv')
        return function(request)
            if request.path == '/value' then return kv.get('k') or 'none' end
            task.detach(function() task.wait(0.3) kv.set('k', 'stored') end)
            return 'answered'
        end";
    let folder = folder(script, "", DETACH);
    let mut host = Host::start(folder.path());
    assert_eq!(host.get("/begin").body, "answered");
    host.signal(Signal::TERM);
    assert_eq!(host.wait(), Some(0));
    drop(host);
    assert_eq!(Host::start(folder.path()).get("/value").body, "stored");
}

#[test]
fn detached_tasks_have_a_budget_of_their_own() {
    let script = "return function(request)
            if request.path == '/spin' then task.detach(function() while true do end end) return 'spins' end
            if request.path == '/many' then
                task.detach(print) task.detach(print)
                local ok, e = pcall(task.detach, print)
                return `{ok} {e.kind} {e.limit}`
            end
            task.detach(task.wait, 100)
            return 'waits'
        end";
    let grants = "[tenant.a.allow.detach]\ntasks = 2\ncpu = \"20 ms\"\nwall = \"1 s\"\n";
    let folder = folder(script, "", grants);
    let host = Host::start(folder.path());
    assert_eq!(host.get("/spin").body, "spins");
    assert_eq!(host.get("/many").body, "false limit detached_tasks");
    assert_eq!(host.get("/wait").body, "waits");
    // The drain waits for both.
    let log = host.stop();
    assert!(log.contains("detached tasks were ended: killed: the script used up its CPU budget of 20 ms"), "{log}");
    assert!(log.contains("detached tasks were ended: killed: the script was not done within 1000 ms"), "{log}");
}

#[test]
fn a_stall_is_counted_and_logged_once_for_each_place() {
    let script = "return function()
            local t = setmetatable({}, { __index = function() return task.wait(0) end })
            return tostring(t.x >= 0)
        end";
    let folder = folder(script, "", "");
    let host = Host::start(folder.path());
    for _ in 0..3 {
        assert_eq!(host.get("/x").body, "true");
    }
    let log = host.stop();
    assert_eq!(log.matches("script.luau:3: task.wait waits where Luau cannot yield").count(), 1, "{log}");
    assert!(log.contains("\"count\":3") && log.contains("stalls since the start"), "{log}");
}
