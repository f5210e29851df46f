//! `neoc host`: routing, limits, drain, one tenant's failure beside another's work.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    path::Path,
    thread,
};

use rustix::process::Signal;

use crate::support::{client, host::Host, upstream::Upstream, wait_until};

/// Writes scripts and a policy. Tenants are given as name, script and TOML.
fn folder(tenants: &[(&str, &str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut policy = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = 32\n".to_owned();
    for (name, script, toml) in tenants {
        fs::write(folder.path().join(format!("{name}.luau")), script).unwrap();
        policy.push_str(&format!("[tenant.{name}]\nscript = \"{name}.luau\"\n{toml}\n"));
    }
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

fn start(tenants: &[(&str, &str, &str)]) -> (tempfile::TempDir, Host) {
    let folder = folder(tenants);
    let host = Host::start(folder.path());
    (folder, host)
}

#[test]
fn the_longest_route_wins_and_no_route_is_404() {
    let name = |name: &str| format!("return function() return '{name}' end");
    let (_folder, host) = start(&[
        ("all", &name("all"), "routes = [\"/a/*\"]"),
        ("deep", &name("deep"), "routes = [\"/a/b/*\"]"),
        ("named", &name("named"), "routes = [\"named.localhost/*\"]"),
    ]);
    assert_eq!(host.get("/a/x").body, "all");
    assert_eq!(host.get("/a/b/c").body, "deep");
    assert_eq!(host.get("/elsewhere").status, 404);
    let by_name = "GET /a/b/c HTTP/1.1\r\nhost: NAMED.localhost:80\r\nconnection: close\r\n\r\n";
    assert_eq!(client::send(host.address, by_name).body, "named");
    let two_hosts = "GET /a/x HTTP/1.1\r\nhost: a\r\nhost: named.localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(client::send(host.address, two_hosts).status, 404);
}

#[test]
fn a_handler_gets_the_whole_request() {
    let script = "local json = require('std:json')
        return function(request)
            return {status = 201, headers = {['x-a'] = {'1', '2'}}, body = json.encode({
                request.method, request.path, request.query.b, request.query['c d'], request.headers['x-test'], request.body,
            })}
        end";
    let (_folder, host) = start(&[("a", script, "routes = [\"/a/*\"]")]);
    let request = "POST /a/x%20y?b=1&c%20d=%26 HTTP/1.1\r\nHost: h\r\nX-Test: v\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbody";
    let answer = client::send(host.address, request);
    assert_eq!((answer.status, answer.body.as_str()), (201, r#"["POST","/a/x%20y","1","&","v","body"]"#));
    assert!(answer.headers.contains_key("x-a") && answer.headers.contains_key("x-request-id"), "{:?}", answer.headers);
}

#[test]
fn a_failed_script_shows_the_client_an_id_and_the_log_the_traceback() {
    let (_folder, host) = start(&[("a", "return function()\n\terror('secret detail')\nend", "routes = [\"/a\"]")]);
    let answer = host.get("/a");
    assert_eq!(answer.status, 500);
    let id = &answer.headers["x-request-id"];
    assert!(answer.body.contains(id) && !answer.body.contains("secret"), "{}", answer.body);
    let log = host.stop();
    let line = log.lines().find(|line| line.contains("secret detail")).expect("a line with the message");
    assert!(line.contains(id) && line.contains("a.luau:2") && line.contains("\"tenant\":\"a\""), "{line}");
}

#[test]
fn an_answer_that_makes_no_sense_is_an_error_of_the_script() {
    for answer in ["nil", "42", "{status = 'x'}", "{status = 42}", "{headers = {['a b'] = 'c'}}", "{body = {}}"] {
        let script = format!("return function() return {answer} end");
        let (_folder, host) = start(&[("a", &script, "routes = [\"/a\"]")]);
        assert_eq!(host.get("/a").status, 500, "{answer}");
    }
}

#[test]
fn nothing_stays_from_one_request_to_the_next() {
    let script = "local count = 0
        return function()
            count += 1
            leak = (leak or 0) + 1
            return `{count} {leak} {math.random()}`
        end";
    let (_folder, host) = start(&[("a", script, "routes = [\"/a\"]")]);
    let (first, second) = (host.get("/a").body, host.get("/a").body);
    assert!(first.starts_with("1 1 ") && second.starts_with("1 1 "), "{first}, {second}");
    assert_ne!(first, second, "two requests draw different random numbers");
}

#[test]
fn a_tenant_that_spins_is_killed_while_others_are_answered() {
    let spin = "return function() while true do pcall(function() while true do end end) end end";
    let (_folder, host) = start(&[
        ("spin", spin, "routes = [\"/spin\"]\n[tenant.spin.limits]\ncpu = \"500 ms\""),
        ("calm", "return function() return 'calm' end", "routes = [\"/calm\"]"),
    ]);
    thread::scope(|scope| {
        let spinning: Vec<_> = (0..4).map(|_| scope.spawn(|| host.get("/spin").status)).collect();
        for _ in 0..20 {
            assert_eq!(host.get("/calm").body, "calm");
        }
        for status in spinning {
            assert_eq!(status.join().unwrap(), 500);
        }
    });
    assert!(host.stop().contains("killed: the script used up its CPU budget of 500 ms"));
}

#[test]
fn a_builtin_that_keeps_the_thread_of_its_request_keeps_no_other_request() {
    // Its first turn is where the request was read, and ends with its CPU time: no interrupt reaches a builtin.
    let long = "return function() return tostring(string.find(string.rep('a', 20000), '.-.-b')) end";
    let (_folder, host) = start(&[
        ("long", long, "routes = [\"/long\"]\n[tenant.long.limits]\ncpu = \"1 s\""),
        ("calm", "return function() return 'calm' end", "routes = [\"/calm\"]"),
    ]);
    let mut stream = TcpStream::connect(host.address).unwrap();
    stream.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    for _ in 0..10 {
        assert_eq!(host.get("/calm").body, "calm");
    }
    stream.set_nonblocking(true).unwrap();
    let answered = stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(answered, Err(io::ErrorKind::WouldBlock), "others were answered first");
    stream.set_nonblocking(false).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
}

#[test]
fn waiting_costs_no_cpu_time_but_ends_at_the_wall_limit() {
    let script = "local task = require('std:task')
        return function(request) task.wait(tonumber(request.query.s)) return 'done' end";
    let limits = "routes = [\"/a\"]\n[tenant.a.limits]\ncpu = \"20 ms\"\nwall = \"500 ms\"";
    let (_folder, host) = start(&[("a", script, limits)]);
    assert_eq!(host.get("/a?s=0.1").body, "done");
    assert_eq!(host.get("/a?s=3600").status, 504);
}

#[test]
fn a_stall_counts_though_its_request_was_ended_or_answered_before() {
    let script = "local task = require('std:task')
        local waits = setmetatable({}, { __index = function(_, seconds) return task.wait(seconds) end })
        return function(request)
            task.detach(function() task.wait(0) return waits[0.001] end)
            return if request.query.s then waits[tonumber(request.query.s)] else 'answered'
        end";
    let toml = "routes = [\"/a\"]\n[tenant.a.limits]\nwall = \"300 ms\"\n[tenant.a.allow.detach]";
    let (_folder, host) = start(&[("a", script, toml)]);
    assert_eq!(host.get("/a").body, "answered");
    assert_eq!(host.get("/a?s=3600").status, 504);
    let log = host.stop();
    assert!(log.contains("\"message\":\"stalls since the start\",\"count\":2"), "{log}");
}

#[test]
fn requests_over_the_rate_get_429_with_retry_after() {
    let limits = "routes = [\"/a\"]\n[tenant.a.limits]\nrequests = \"2/h\"";
    let other = "return function() return 'other' end";
    let (_folder, host) =
        start(&[("a", "return function() return 'ok' end", limits), ("b", other, "routes = [\"/b\"]")]);
    assert_eq!((host.get("/a").status, host.get("/a").status), (200, 200));
    let refused = host.get("/a");
    assert_eq!(refused.status, 429);
    assert!(refused.headers["retry-after"].parse::<u32>().unwrap() > 0);
    assert_eq!(host.get("/b").body, "other", "one tenant at its limit leaves others alone");
}

#[test]
fn operations_over_the_rate_are_catchable_errors_of_kind_limit() {
    let script = "local kv = require('std:kv')
        return function()
            for i = 1, 10 do
                local ok, err = pcall(kv.get, 'k')
                if not ok then return `{i} {err.kind} {err.limit} {err.retry_after > 0}` end
            end
            return 'no limit'
        end";
    let toml = "routes = [\"/a\"]\n[tenant.a.limits]\noperations = \"5/h\"\n[tenant.a.allow.kv]";
    let (_folder, host) = start(&[("a", script, toml)]);
    assert_eq!(host.get("/a").body, "6 limit operations true");
}

#[test]
fn calls_over_the_connection_limit_wait_their_turn() {
    let upstream = Upstream::start();
    let script = "local hyper = require('vnd:hyper')
        return function()
            local ok = 0
            for _, r in hyper.get_all(table.create(12, 'http://UPSTREAM/x')) do ok += if r.ok then 1 else 0 end
            return tostring(ok)
        end"
    .replace("UPSTREAM", &upstream.address.to_string());
    let toml = format!(
        "routes = [\"/a\"]\n[tenant.a.limits]\nconnections = 2\n\
         [[tenant.a.allow.http]]\nhosts = [\"http://{}\"]\naddresses = [\"127.0.0.1/32\"]",
        upstream.address
    );
    let (_folder, host) = start(&[("a", &script, &toml)]);
    assert_eq!(host.get("/a").body, "12");
    assert!(upstream.most_at_once() <= 2, "{} at once", upstream.most_at_once());
}

#[test]
fn a_value_in_the_store_survives_a_restart_and_belongs_to_one_tenant() {
    let count = "local kv = require('std:kv')
        return function()
            local n = tonumber(kv.get('n') or '0') + 1
            kv.set('n', tostring(n))
            return tostring(n)
        end";
    let tenants = [
        ("a", count, "routes = [\"/a\"]\n[tenant.a.allow.kv]"),
        ("b", count, "routes = [\"/b\"]\n[tenant.b.allow.kv]"),
    ];
    let folder = folder(&tenants);
    let host = Host::start(folder.path());
    assert_eq!((host.get("/a").body, host.get("/a").body), ("1".into(), "2".into()));
    host.stop();
    let host = Host::start(folder.path());
    assert_eq!((host.get("/a").body, host.get("/b").body), ("3".into(), "1".into()));
}

#[test]
fn an_acknowledged_write_survives_a_kill() {
    let script = "local kv = require('std:kv') return function(r)
        if r.method == 'POST' then kv.set('k', r.body) end return kv.get('k') or 'none' end";
    let folder = folder(&[("a", script, "routes = [\"/a\"]\n[tenant.a.allow.kv]")]);
    for round in ["one", "two", "three"] {
        let mut host = Host::start(folder.path());
        assert_eq!(host.post("/a", round).body, round);
        host.signal(Signal::KILL);
        host.wait();
        assert_eq!(Host::start(folder.path()).get("/a").body, round);
    }
}

#[test]
fn a_drain_lets_running_requests_finish_and_takes_no_new_ones() {
    for signal in [Signal::TERM, Signal::INT] {
        let upstream = Upstream::start();
        let script = format!(
            "local hyper = require('vnd:hyper') return function() return hyper.get('{}').body end",
            upstream.url("/gate/2")
        );
        let toml = format!(
            "routes = [\"/a\"]\n[[tenant.a.allow.http]]\nhosts = [\"{}\"]\naddresses = [\"127.0.0.0/8\"]",
            upstream.url("")
        );
        let (_folder, mut host) = start(&[("a", &script, &toml)]);
        let address = host.address;
        let running = thread::spawn(move || client::get(address, "/a"));
        wait_until("the upstream call", || upstream.requests() > 0);
        host.signal(signal);
        // The listener closes; the request that waits at the gate goes on.
        wait_until("closing the listener", || TcpStream::connect(address).is_err());
        assert_eq!(client::get(upstream.address, "/gate/2").body, "together");
        assert_eq!(running.join().unwrap().body, "together");
        assert_eq!(host.wait(), Some(0));
    }
}

#[test]
fn a_client_that_leaves_cancels_its_script() {
    let upstream = Upstream::start();
    let script = format!(
        "local hyper = require('vnd:hyper') return function(r)
            if r.path == '/a/slow' then hyper.get('{}') end return 'quick' end",
        upstream.url("/stall")
    );
    let toml = format!(
        "routes = [\"/a/*\"]\n[tenant.a.limits]\nconnections = 1\n\
         [[tenant.a.allow.http]]\nhosts = [\"{}\"]\naddresses = [\"127.0.0.0/8\"]",
        upstream.url("")
    );
    let (_folder, host) = start(&[("a", &script, &toml)]);
    // Each stalled request holds the tenant's one connection; leaving must give it back.
    for n in 1..=3 {
        let mut stream = TcpStream::connect(host.address).unwrap();
        stream.write_all(b"GET /a/slow HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        wait_until("the upstream call", || upstream.requests() >= n);
        drop(stream);
    }
    assert_eq!(host.get("/a/quick").body, "quick");
}

#[test]
fn a_large_body_is_refused_and_a_small_one_is_taken() {
    let (_folder, host) = start(&[("a", "return function(r) return tostring(#r.body) end", "routes = [\"/a\"]")]);
    let mut stream = TcpStream::connect(host.address).unwrap();
    let head = format!("POST /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", 1u64 << 30);
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    // The host answers before the body, then closes.
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(host.post("/a", &"x".repeat(1 << 20)).body, (1 << 20).to_string());
}

#[test]
fn a_full_pool_answers_503_with_retry_after() {
    let folder = folder(&[(
        "a",
        "local task = require('std:task') return function() task.wait(3) return 'late' end",
        "routes = [\"/a\"]",
    )]);
    limit_instances(folder.path(), 2);
    let host = Host::start(folder.path());
    thread::scope(|scope| {
        let answers: Vec<_> = (0..3).map(|_| scope.spawn(|| host.get("/a"))).collect();
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.join().unwrap()).collect();
        let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
        assert_eq!(refused.len(), 1, "{answers:?}");
        assert!(refused[0].headers.contains_key("retry-after"));
    });
}

fn limit_instances(folder: &Path, instances: u32) {
    let file = folder.join("policy.toml");
    let policy = fs::read_to_string(&file).unwrap().replace("instances = 32", &format!("instances = {instances}"));
    fs::write(file, policy).unwrap();
}

#[test]
fn control_characters_in_a_scripts_line_cannot_forge_another() {
    let script = "return function() print('\\27[2J\\r\\n2026-11-22 ERROR forged \\u{2028}\\u{202e}') return 'ok' end";
    let (_folder, host) = start(&[("a", script, "routes = [\"/a\"]")]);
    host.get("/a");
    let log = host.stop();
    let line = log.lines().find(|line| line.contains("forged")).expect("the line");
    assert!(line.starts_with('{') && line.ends_with('}'), "{line:?}");
    assert!(!line.chars().any(|c| c.is_control() || ['\u{2028}', '\u{202e}'].contains(&c)), "{line:?}");
}

#[test]
fn a_flood_of_lines_is_cut_and_counted() {
    let script = "return function() for i = 1, 1000 do print(string.rep('x', 100000)) end return 'ok' end";
    let toml = "routes = [\"/a\"]\n[tenant.a.limits]\ncpu = \"5 s\"\noperations = \"100000/s\"";
    let (_folder, host) = start(&[("a", script, toml)]);
    assert_eq!(host.get("/a").body, "ok");
    assert!(host.stop().len() < 256 * 1024);
}
