//! A policy replaced while the host runs: all of it or nothing, and no request lost.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use rustix::process::Signal;

use crate::support::{client, host::Host, upstream::Upstream, wait_until};

const HOST: &str = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = 32\n";
const LOADED: &str = "the policy was loaded again";
const KEPT: &str = "the policy cannot be loaded; the one before stays in force";

/// Replaces the policy in one step, as editors do.
fn replace(folder: &Path, tenants: &str) {
    fs::write(folder.join("policy.new"), format!("{HOST}{tenants}")).unwrap();
    fs::rename(folder.join("policy.new"), folder.join("policy.toml")).unwrap();
}

fn start(script: &str, tenants: &str) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("main.luau"), script).unwrap();
    replace(folder.path(), tenants);
    let host = Host::start(folder.path());
    (folder, host)
}

/// Asks for a reload and waits until it is done. Gives the line that it logged.
fn reload(host: &Host) -> String {
    let done =
        |log: &str| log.lines().filter(|line| line.contains("neoc::reload")).map(str::to_owned).collect::<Vec<_>>();
    let before = done(&host.log()).len();
    host.signal(Signal::HUP);
    wait_until("the reload", || done(&host.log()).len() > before);
    done(&host.log())[before].clone()
}

const TENANT: &str = "[tenant.a]\nscript = \"main.luau\"\nroutes = [\"/a\"]\n";

#[test]
fn a_thousand_reloads_fail_no_request_and_none_sees_half_a_policy() {
    // Two policies that differ in four grants at once, and a script that says which of them it has, at its
    // start and after it waited.
    let script = "local fs, kv, task, workers = require('std:fs'), require('std:kv'), require('std:task'), require('std:workers')
        local function probe(call, ...)
            local ok, err = pcall(call, ...)
            return if ok or err.kind ~= 'denied' then '1' else '0'
        end
        local function grants()
            return probe(kv.get, 'k') .. probe(fs.list, '/one') .. probe(fs.list, '/two') .. probe(workers.run, './absent')
        end
        return function()
            local first = grants()
            task.wait(0.002)
            return first .. ' ' .. grants()
        end";
    let limits = "[tenant.a.limits]\nrequests = \"100000/s\"\noperations = \"1000000/s\"\n";
    let first = format!(
        "{TENANT}{limits}[tenant.a.allow.kv]\n[[tenant.a.allow.fs]]\npath = \"/one\"\ndir = \"d\"\naccess = \"read\"\n"
    );
    let second = format!(
        "{TENANT}{limits}[tenant.a.allow.workers]\n[[tenant.a.allow.fs]]\npath = \"/two\"\ndir = \"d\"\naccess = \"read\"\n"
    );
    let (folder, host) = start(script, &first);
    let (done, n_first, n_second) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let answer = client::get(host.address, "/a");
                    let seen = match answer.body.as_str() {
                        "1100 1100" => &n_first,
                        "0011 0011" => &n_second,
                        _ => panic!("{answer:?}"),
                    };
                    assert_eq!(answer.status, 200, "{answer:?}");
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for n in 1..=1_000 {
            let (policy, expected) = if n % 2 == 0 { (&first, "1100 1100") } else { (&second, "0011 0011") };
            replace(folder.path(), policy);
            host.signal(Signal::HUP);
            wait_until("a reload", || client::get(host.address, "/a").body == expected);
        }
        done.store(true, Ordering::Relaxed);
    });
    let (n_first, n_second) = (n_first.into_inner(), n_second.into_inner());
    assert!(n_first > 50 && n_second > 50, "{n_first} and {n_second} requests");
    let log = host.stop();
    let n_loaded = log.lines().filter(|line| line.contains(LOADED)).count();
    assert!(n_loaded >= 1_000 && !log.contains(KEPT), "{n_loaded} reloads");
}

#[test]
fn a_broken_file_keeps_the_policy_and_the_log_says_all_that_is_wrong() {
    let script = "return function() return 'ok' end";
    let (folder, host) = start(script, TENANT);
    let broken = [
        (
            "[tenant.a]\nscript = \"main.luau\"\nroute = [\"/a\"]\n[tenant.a.limits]\ncpu = \"1\"\n",
            ["tenant.a.route", "tenant.a.limits.cpu"],
        ),
        ("[tenant.a]\nscript = \"absent.luau\"\nroutes = [\"/a\"]\n", ["tenant.a.script", "absent.luau"]),
        (
            "[tenant.a]\nscript = \"main.luau\"\nroutes = [\"/a\"]\n[tenant.b]\nscript = \"broken.luau\"\n",
            ["tenant.b.script", "broken.luau:1"],
        ),
    ];
    fs::write(folder.path().join("broken.luau"), "local = 1").unwrap();
    for (tenants, words) in broken {
        replace(folder.path(), tenants);
        let line = reload(&host);
        assert!(line.contains(KEPT) && words.iter().all(|word| line.contains(word)), "{line}");
        assert_eq!(host.get("/a").body, "ok");
    }
    fs::remove_file(folder.path().join("policy.toml")).unwrap();
    assert!(reload(&host).contains(KEPT));
    replace(folder.path(), TENANT);
    assert!(reload(&host).contains(LOADED));
    assert_eq!(host.get("/a").body, "ok");
}

#[test]
fn what_only_a_restart_can_change_is_refused_by_name() {
    let (folder, host) = start("return function() return 'ok' end", TENANT);
    let text = fs::read_to_string(folder.path().join("policy.toml")).unwrap();
    let changed = text.replace("instances = 32", "instances = 33").replace("\"data\"", "\"other\"");
    fs::write(folder.path().join("policy.toml"), changed).unwrap();
    let line = reload(&host);
    assert!(line.contains(KEPT) && line.contains("host.data_dir, host.instances cannot change"), "{line}");
    assert!(!folder.path().join("other").exists());
}

#[test]
fn a_file_that_changed_is_loaded_without_a_signal() {
    let (folder, host) = start("return function() return 'ok' end", TENANT);
    replace(folder.path(), &TENANT.replace("/a", "/b"));
    wait_until("the change", || host.get("/b").status == 200);
    assert_eq!(host.get("/a").status, 404);
    wait_until("the line in the log", || host.count(LOADED) == 1);
}

#[test]
fn the_log_says_what_changed() {
    let (folder, host) =
        start("return function() return 'ok' end", &format!("{TENANT}[tenant.gone]\nscript = \"main.luau\"\n"));
    replace(
        folder.path(),
        &format!("{TENANT}[tenant.a.limits]\ncpu = \"60 ms\"\n[tenant.new]\nscript = \"main.luau\"\n"),
    );
    let line = reload(&host);
    for words in [
        "\"added\":\"new\"",
        "\"removed\":\"gone\"",
        "\"keys\":\"tenant.a.limits\"",
        "\"scripts\":\"\"",
        "\"number\":2",
    ] {
        assert!(line.contains(words), "{words}: {line}");
    }
}

#[test]
fn a_script_or_a_module_of_it_that_changed_is_loaded_again_and_no_other() {
    let script = "local m = require('./m') return function() return 'one ' .. m.name end";
    let (folder, host) = {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("main.luau"), script).unwrap();
        fs::write(folder.path().join("m.luau"), "return { name = 'm' }").unwrap();
        fs::write(folder.path().join("other.luau"), "return function() return 'other' end").unwrap();
        replace(folder.path(), &format!("{TENANT}[tenant.other]\nscript = \"other.luau\"\nroutes = [\"/other\"]\n"));
        let host = Host::start(folder.path());
        (folder, host)
    };
    assert_eq!(host.get("/a").body, "one m");
    let scripts = |line: &str| line.split("\"scripts\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    assert_eq!(scripts(&reload(&host)), "");
    fs::write(folder.path().join("m.luau"), "return { name = 'n' }").unwrap();
    assert_eq!(host.get("/a").body, "one m", "only a reload looks at scripts");
    assert_eq!(scripts(&reload(&host)), "a");
    assert_eq!(host.get("/a").body, "one n");
    fs::write(folder.path().join("main.luau"), script.replace("one", "two")).unwrap();
    assert_eq!(scripts(&reload(&host)), "a");
    assert_eq!(host.get("/a").body, "two n");
    // Found elsewhere: the name is the same, the file is another.
    fs::create_dir(folder.path().join("m")).unwrap();
    fs::rename(folder.path().join("m.luau"), folder.path().join("m/init.luau")).unwrap();
    assert_eq!(scripts(&reload(&host)), "a");
    assert_eq!(host.get("/a").body, "two n");
}

#[test]
fn a_request_ends_under_the_policy_and_the_script_that_it_began_with() {
    let upstream = Upstream::start();
    let script = format!(
        "local hyper, kv = require('vnd:hyper'), require('std:kv')
        return function()
            local together = hyper.get('{}').body
            kv.set('k', 'v')
            return together .. ' old'
        end",
        upstream.url("/gate/2")
    );
    let grants = format!(
        "[tenant.a.allow.kv]\n[[tenant.a.allow.http]]\nhosts = [\"{}\"]\naddresses = [\"127.0.0.0/8\"]\n",
        upstream.url("")
    );
    let (folder, host) = start(&script, &format!("{TENANT}{grants}"));
    thread::scope(|scope| {
        let running = scope.spawn(|| host.get("/a"));
        wait_until("the upstream call", || upstream.requests() > 0);
        fs::write(folder.path().join("main.luau"), "return function() return 'new' end").unwrap();
        replace(folder.path(), TENANT);
        assert!(reload(&host).contains(LOADED));
        assert_eq!(host.get("/a").body, "new");
        assert_eq!(client::get(upstream.address, "/gate/2").body, "together");
        assert_eq!(running.join().unwrap().body, "together old");
    });
}

#[test]
fn a_reload_gives_no_tenant_more_than_its_limits() {
    let script = "local kv = require('std:kv') return function() return tostring((pcall(kv.get, 'k'))) end";
    let limits = "[tenant.a.limits]\nrequests = \"3/h\"\noperations = \"2/h\"\n[tenant.a.allow.kv]\n";
    let (folder, host) = start(script, &format!("{TENANT}{limits}"));
    let mut seen = Vec::new();
    for n in 0..4 {
        replace(folder.path(), &format!("{TENANT}{limits}[tenant.b{n}]\nscript = \"main.luau\"\n"));
        assert!(reload(&host).contains(LOADED));
        let answer = host.get("/a");
        seen.push((answer.status, answer.body.split(' ').next().unwrap().to_owned()));
    }
    let expected = [(200, "true"), (200, "true"), (200, "false"), (429, "too")];
    assert_eq!(seen, expected.map(|(status, body)| (status, body.to_owned())));
}

#[test]
fn every_limit_is_the_new_policys_for_the_requests_after_a_reload() {
    // What the script gets of each limit, with things that the requests before have left in store and directory.
    let script = "local fs, kv, task = require('std:fs'), require('std:kv'), require('std:task')
        local function fits(call, ...)
            return if pcall(call, ...) then '1' else '0'
        end
        return function()
            local waits = {}
            local function wait()
                table.insert(waits, task.spawn(task.wait, 3600))
            end
            local tasks = fits(wait) .. fits(wait) .. fits(wait)
            for _, waiting in waits do
                task.cancel(waiting)
            end
            local store = fits(kv.set, 'key', string.rep('x', 2000)) .. fits(kv.set, 'k', '')
            local files = fits(fs.write, '/d/a', string.rep('x', 2000)) .. fits(fs.write, '/d/b', '')
            return `{tasks} {store} {files}`
        end";
    let tenant = |limits: &str| {
        let grants =
            "[tenant.a.allow.kv]\n[[tenant.a.allow.fs]]\npath = \"/d\"\ndir = \"d\"\naccess = \"read-write\"\n";
        format!("{TENANT}{grants}[tenant.a.limits]\n{limits}")
    };
    let wide = "tasks = 3\nkv = \"2 KiB\"\nfs = \"2 KiB\"\nfs_files = 2\n";
    let narrow = "tasks = 2\nkv = \"2 KiB\"\nkv_value = \"1 KiB\"\nfs = \"1 KiB\"\nfs_files = 1\n";
    let (folder, host) = start(script, &tenant(wide));
    assert_eq!(host.get("/a").body, "111 11 11");
    replace(folder.path(), &tenant(narrow));
    assert!(reload(&host).contains(LOADED));
    // In the store and the directory there is more than fits now. What does not add to it is still possible.
    assert_eq!(host.get("/a").body, "110 01 11");
    replace(folder.path(), &tenant(wide));
    assert!(reload(&host).contains(LOADED));
    assert_eq!(host.get("/a").body, "111 11 11");
}
