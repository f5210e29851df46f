//! `isolation = "tenant"`: one VM for all requests of a tenant. What they share, what stays each one's own, and who
//! is left when one of them goes wrong.

use std::{fs, io::Write as _, net::TcpStream, path::Path, thread};

use rustix::process::Signal;

use crate::support::{client::Answer, host::Host, upstream::Upstream, wait_until};

/// Rates that these tests never reach.
const LIMITS: &str = "requests = \"1000000/s\"\n";

/// Beside it, a tenant whose requests have a VM each, with the same script.
fn policy(limits: &str, grants: &str) -> String {
    let tenant = |name: &str, isolation: &str| {
        format!(
            "[tenant.{name}]\nscript = \"main.luau\"\nroutes = [\"/{name}/*\"]\nisolation = \"{isolation}\"\n\
             [tenant.{name}.limits]\n{LIMITS}{limits}\n{}\n",
            grants.replace("TENANT", name)
        )
    };
    format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = 32\naudit = \"audit.jsonl\"\n{}{}",
        tenant("a", "tenant"),
        tenant("b", "request")
    )
}

fn start(script: &str, limits: &str, grants: &str) -> (tempfile::TempDir, Host) {
    start_on(script, &policy(limits, grants))
}

fn start_on(script: &str, policy: &str) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("main.luau"), format!("local task = require('std:task')\n{script}")).unwrap();
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let host = Host::start(folder.path());
    (folder, host)
}

/// Sends a request and does not wait for its answer.
fn send(host: &Host, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(host.address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").unwrap();
    stream
}

fn http(upstream: &Upstream) -> String {
    format!("[[tenant.TENANT.allow.http]]\nhosts = [\"http://{}\"]\naddresses = [\"127.0.0.0/8\"]\n", upstream.address)
}

fn id(answer: &Answer) -> &str {
    &answer.headers["x-request-id"]
}

/// Counts its requests; those with another word in their path wait at a gate, spin, or say what there is.
const SCRIPT: &str = "
    local count, waiting = 0, 0
    local gate = task.channel(100)
    return function(request)
        count += 1
        local what = string.match(request.path, '/./(.*)')
        if what == 'wait' then
            waiting += 1
            task.finally(function() waiting -= 1 end)
            gate:get()
            return 'let through'
        elseif what == 'open' then
            for _ = 1, waiting do gate:put(true) end
            return 'opened'
        elseif what == 'spin' then
            while true do pcall(function() while true do end end) end
        elseif what == 'waiting' then
            return tostring(waiting)
        end
        return tostring(count)
    end";

fn wait_for(host: &Host, n: usize) {
    wait_until("the requests wait", || host.get("/a/waiting").body == n.to_string());
}

#[test]
fn what_the_script_keeps_stays_from_one_request_to_the_next() {
    let (_folder, host) = start(SCRIPT, "", "");
    let counts = |name: &str| (0..3).map(|_| host.get(&format!("/{name}/x")).body).collect::<Vec<_>>();
    assert_eq!(counts("a"), ["1", "2", "3"]);
    assert_eq!(counts("b"), ["1", "1", "1"]);
    host.stop();
}

#[test]
fn requests_that_wait_hold_up_no_other_and_another_request_can_wake_them() {
    let (_folder, host) = start(SCRIPT, "", "");
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..50).map(|_| scope.spawn(|| host.get("/a/wait").body)).collect();
        wait_for(&host, 50);
        assert_eq!(host.get("/a/open").body, "opened");
        waiting.into_iter().for_each(|answer| assert_eq!(answer.join().unwrap(), "let through"));
    });
    assert_eq!(host.get("/a/waiting").body, "0");
}

#[test]
fn the_calls_of_fifty_requests_overlap() {
    let upstream = Upstream::start();
    let script =
        format!("return function() return require('vnd:hyper').get('http://{0}/gate/50').body end", upstream.address);
    let (_folder, host) = start(&script, "connections = 64", &http(&upstream));
    thread::scope(|scope| {
        let answers: Vec<_> = (0..50).map(|_| scope.spawn(|| host.get("/a/x").body)).collect();
        answers.into_iter().for_each(|answer| assert_eq!(answer.join().unwrap(), "together"));
    });
}

#[test]
fn lines_records_and_failures_are_those_of_the_right_request() {
    let script = "
        local go = task.channel(100)
        return function(request)
            local name = request.query.name
            if name == 'one' then go:get() else go:put(true) task.wait(0.01) end
            print('line of ' .. name)
            require('std:kv').set('key of ' .. name, 'v')
            task.spawn(function() error('task of ' .. name) end)
            task.detach(function() task.wait(0) print('detached of ' .. name) end)
            error('end of ' .. name)
        end";
    let grants = "[tenant.TENANT.allow.kv]\n[tenant.TENANT.allow.detach]\n";
    let (folder, host) = start(script, "", grants);
    let (one, two) = thread::scope(|scope| {
        let one = scope.spawn(|| host.get("/a/x?name=one"));
        wait_until("the first request has begun", || host.get("/a/x?name=two").status == 500);
        (one.join().unwrap(), host.get("/a/x?name=two"))
    });
    assert_eq!((one.status, two.status), (500, 500));
    wait_until("the detached tasks have run", || host.count("detached of two") >= 2);
    let ids = [("one", id(&one).to_owned()), ("two", id(&two).to_owned())];
    let log = host.stop();
    let audit = fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    for (name, id) in &ids {
        for what in ["line of", "task of", "detached of", "end of"] {
            let text = format!("{what} {name}");
            let lines: Vec<_> = log.lines().filter(|line| line.contains(&text)).collect();
            assert!(lines.iter().any(|line| line.contains(id)), "{text}: {lines:#?}");
            if *name == "one" {
                assert!(lines.iter().all(|line| line.contains(id)), "{text}: {lines:#?}");
            }
        }
        let key = format!("key of {name}");
        assert!(audit.lines().any(|line| line.contains(&key) && line.contains(id)), "{audit}");
    }
}

#[test]
fn a_request_over_its_cpu_limit_ends_the_vm_and_the_next_one_has_another() {
    for preemption in ["safepoint", "epoch"] {
        let host_table = format!("instances = 32\npreemption = \"{preemption}\"");
        spin_beside_others(&policy("cpu = \"100 ms\"", "").replace("instances = 32", &host_table));
    }
}

fn spin_beside_others(policy: &str) {
    let (_folder, mut host) = start_on(SCRIPT, policy);
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| host.get("/a/wait"))).collect();
        wait_for(&host, 3);
        let neighbour = scope.spawn(|| host.get("/b/x"));
        let spun = host.get("/a/spin");
        assert_eq!(spun.status, 500);
        for answer in waiting {
            let answer = answer.join().unwrap();
            assert_eq!((answer.status, answer.headers.contains_key("retry-after")), (503, true), "{answer:?}");
        }
        assert_eq!(neighbour.join().unwrap().body, "1");
        assert_eq!(host.get("/a/x").body, "1");
    });
    assert!(host.is_alive());
    let log = host.stop();
    let of_vm: Vec<_> = log.lines().filter(|line| line.contains("the tenant's VM was ended")).collect();
    assert_eq!(of_vm.len(), 1, "{log}");
    assert!(of_vm[0].contains("\"n_requests\":4") && of_vm[0].contains("\"reason\":\"cpu\""), "{}", of_vm[0]);
}

#[test]
fn a_request_whose_workers_use_up_its_cpu_time_ends_alone() {
    let script = SCRIPT.replace(
        "elseif what == 'spin' then",
        "elseif what == 'work' then
            pcall(require('std:workers').run, './spin')
            return 'never'
        elseif what == 'spin' then",
    );
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("main.luau"), format!("local task = require('std:task')\n{script}")).unwrap();
    fs::write(folder.path().join("spin.luau"), "return function() while true do end end").unwrap();
    let policy = policy("cpu = \"100 ms\"", "[tenant.TENANT.allow.workers]\n");
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let host = Host::start(folder.path());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| host.get("/a/wait").body);
        wait_for(&host, 1);
        assert_eq!(host.get("/a/work").status, 500);
        host.get("/a/open");
        assert_eq!(waiting.join().unwrap(), "let through");
    });
    let log = host.stop();
    assert!(log.contains("\"reason\":\"cpu\"") && !log.contains("the tenant's VM was ended"), "{log}");
}

#[test]
fn a_client_that_leaves_cancels_its_own_request_and_no_other() {
    let (_folder, host) = start(SCRIPT, "", "");
    thread::scope(|scope| {
        let stays = scope.spawn(|| host.get("/a/wait"));
        wait_for(&host, 1);
        let leaves: Vec<_> = (0..3).map(|_| send(&host, "/a/wait")).collect();
        wait_for(&host, 4);
        drop(leaves);
        // Their cleanups have run: the script itself counts them out.
        wait_for(&host, 1);
        host.get("/a/open");
        assert_eq!(stays.join().unwrap().body, "let through");
    });
    let log = host.stop();
    assert!(!log.contains("the tenant's VM was ended"), "{log}");
}

#[test]
fn a_requests_wall_limit_ends_it_and_no_other() {
    let (_folder, host) = start(
        "local late = 0
        return function(request)
            local s = tonumber(request.query.s)
            if s > 0 then task.finally(function() task.wait(0) late += 1 end) end
            pcall(task.wait, s)
            return tostring(late)
        end",
        "wall = \"500 ms\"",
        "",
    );
    thread::scope(|scope| {
        let late: Vec<_> = (0..4).map(|_| scope.spawn(|| host.get("/a/x?s=3600"))).collect();
        late.into_iter().for_each(|answer| assert_eq!(answer.join().unwrap().status, 504));
    });
    wait_until("the cleanups of the four have run", || host.get("/a/x?s=0").body == "4");
    assert!(!host.stop().contains("the tenant's VM was ended"));
}

#[test]
fn a_wait_where_luau_cannot_yield_ends_with_its_request() {
    let script = "
        local n = 0
        return function(request)
            n += 1
            if request.query.s then
                local t = setmetatable({}, { __index = function() task.wait(tonumber(request.query.s)) end })
                local _, e = pcall(function() return t.x end)
                n += if e.kind == 'cancelled' then 10 else 1000
            end
            return tostring(n)
        end";
    let (_folder, host) = start(script, "wall = \"500 ms\"", "");
    assert_eq!(host.get("/a/x?s=3600").status, 504);
    assert_eq!(host.get("/a/x").body, "12");
}

#[test]
fn a_wait_for_ever_where_luau_cannot_yield_ends_the_vm() {
    let script = "
        local channel, n = task.channel(100), 0
        return function(request)
            n += 1
            if request.path == '/a/wait' then task.wait(3600) end
            if request.path == '/a/stall' then
                local t = setmetatable({}, { __index = function() channel:get() end })
                return t.x
            end
            return tostring(n)
        end";
    let (_folder, host) = start(script, "wall = \"1 s\"", "");
    thread::scope(|scope| {
        let other = scope.spawn(|| host.get("/a/wait"));
        wait_until("it has begun", || host.get("/a/x").body.parse::<u32>().unwrap() > 1);
        assert_eq!(host.get("/a/stall").status, 504);
        assert_ne!(other.join().unwrap().status, 200);
    });
    wait_until("another VM has begun", || host.get("/a/x").body == "1");
}

#[test]
fn limits_of_a_request_are_each_ones_own() {
    let upstream = Upstream::start();
    let script = format!(
        "local hyper = require('vnd:hyper')
        return function(request)
            local n = 0
            repeat
                local ok, e = pcall(hyper.get, 'http://{}/x')
                n += if ok then 1 else 0
            until not ok or n > 5
            return tostring(n)
        end",
        upstream.address
    );
    let (_folder, host) = start(&script, "subrequests = 3\noperations = \"1000000/s\"", &http(&upstream));
    for _ in 0..3 {
        assert_eq!((host.get("/a/x").body, host.get("/b/x").body), ("3".into(), "3".into()));
    }
    let script = "return function(request)
            local ok, made = true, -1
            while ok do made += 1 ok = pcall(task.spawn, task.wait, 0.2) end
            return tostring(made)
        end";
    let (_folder, host) = start(script, "tasks = 7", "");
    thread::scope(|scope| {
        let answers: Vec<_> = (0..3).map(|_| scope.spawn(|| host.get("/a/x").body)).collect();
        answers.into_iter().for_each(|answer| assert_eq!(answer.join().unwrap(), "7"));
    });
}

#[test]
fn the_rate_of_operations_is_the_tenants_at_its_edge() {
    let script = "return function()
            local n = 0
            local ok, e = true, nil
            while ok do ok, e = pcall(require('std:kv').get, 'k') n += if ok then 1 else 0 end
            return n .. ' ' .. e.limit
        end";
    let (_folder, host) = start(script, "operations = \"20/h\"", "[tenant.TENANT.allow.kv]\n");
    assert_eq!((host.get("/a/x").body, host.get("/a/x").body), ("20 operations".into(), "0 operations".into()));
    assert_eq!(host.get("/b/x").body, "20 operations");
}

#[test]
fn an_answer_that_is_too_large_is_its_requests_failure() {
    let script = "local n = 0
        return function(request) n += 1 return if request.query.n then string.rep('x', tonumber(request.query.n)) else tostring(n) end";
    let (_folder, host) = start(script, "response_body = \"1 KiB\"", "");
    let statuses = ["1024", "1025"].map(|n| host.get(&format!("/a/x?n={n}")).status);
    assert_eq!((statuses, host.get("/a/x").body), ([200, 500], "3".into()));
}

#[test]
fn memory_is_the_vms_and_running_out_of_it_an_error_of_who_asks() {
    let script = "local kept, n = {}, 0
        return function(request)
            n += 1
            if request.path == '/a/keep' then
                local ok, e = true, nil
                while ok do ok, e = pcall(function() table.insert(kept, string.rep(tostring(#kept), 100000)) end) end
                return tostring(string.find(tostring(e), 'not enough memory') ~= nil)
            elseif request.path == '/a/drop' then
                kept = {}
            end
            return tostring(n)
        end";
    let (_folder, host) = start(script, "memory = \"16 MiB\"\ncpu = \"2 s\"", "");
    assert_eq!(host.get("/a/keep").body, "true");
    let large = "x".repeat(300_000);
    let refused = host.post("/a/x", &large);
    assert_eq!(refused.status, 500, "{refused:?}");
    assert_eq!((host.get("/a/drop").body, host.post("/a/x", &large).body), ("2".into(), "3".into()));
}

#[test]
fn a_reload_keeps_the_vm_until_the_script_is_loaded_again() {
    let (folder, host) = start(SCRIPT, "", "");
    let reload = || {
        let n = host.count("the policy was loaded again");
        host.signal(Signal::HUP);
        wait_until("the reload", || host.count("the policy was loaded again") > n);
    };
    let replace = |name: &str, text: &str| {
        fs::write(folder.path().join("new"), text).unwrap();
        fs::rename(folder.path().join("new"), folder.path().join(name)).unwrap();
    };
    assert_eq!(host.get("/a/x").body, "1");
    replace("policy.toml", &policy("wall = \"2 s\"", "[tenant.TENANT.allow.kv]\n"));
    reload();
    assert_eq!(host.get("/a/x").body, "2");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| host.get("/a/wait"));
        wait_for(&host, 1);
        let script = fs::read_to_string(folder.path().join("main.luau")).unwrap();
        replace("main.luau", &script.replace("local count, waiting = 0, 0", "local count, waiting = 100, 0"));
        reload();
        assert_eq!(host.get("/a/x").body, "101");
        // What began before is in the old VM, where nobody opens the gate: it ends by its time.
        assert_eq!(waiting.join().unwrap().status, 504);
    });
    assert_eq!(host.get("/a/x").body, "102");
    host.stop();
}

#[test]
fn a_reload_that_changes_how_requests_share_begins_anew() {
    let text = policy("", "");
    let (folder, host) = start_on(SCRIPT, &text);
    let alone = text.replacen("isolation = \"tenant\"", "isolation = \"request\"", 1);
    let heavy = text.replacen("requests =", "weight = 2\nrequests =", 1);
    for (policy, counts) in [(&alone, ["1", "1"]), (&text, ["1", "2"]), (&heavy, ["1", "2"]), (&heavy, ["4", "5"])] {
        host.get("/a/x");
        fs::write(folder.path().join("policy.toml"), format!("{policy}# {}\n", counts.concat())).unwrap();
        // A change is noticed of its own as well, so a policy may be loaded twice.
        let n = host.count("the policy was loaded again");
        host.signal(Signal::HUP);
        wait_until("the reload", || host.count("the policy was loaded again") > n);
        assert_eq!([host.get("/a/x").body, host.get("/a/x").body], counts, "{policy}");
    }
}

#[test]
fn detached_tasks_go_on_within_their_own_time_and_the_host_waits_for_them_when_it_drains() {
    let script = "return function(request)
            task.detach(function() task.wait(tonumber(request.query.s)) print('done after ' .. request.query.s) end)
            return 'answered'
        end";
    let grants = "[tenant.TENANT.allow.detach]\nwall = \"2 s\"\n";
    let (_folder, host) = start(script, "wall = \"500 ms\"", grants);
    assert_eq!(host.get("/a/x?s=3600").body, "answered");
    wait_until("the time of the first is over", || host.count("detached tasks were ended") == 1);
    assert_eq!(host.get("/a/x?s=0.7").body, "answered");
    let log = host.stop();
    assert!(log.contains("done after 0.7") && !log.contains("done after 3600"), "{log}");
    assert!(!log.contains("the tenant's VM was ended"), "{log}");
}

#[test]
fn a_connection_is_its_requests_own() {
    let upstream = Upstream::start();
    let script = format!(
        "local net = require('std:net')
        local kept = nil
        return function(request)
            if request.path == '/a/keep' then
                kept = net.connect('tcp://{0}')
                return 'kept'
            end
            local mine = net.connect('tcp://{0}')
            local ok, e = pcall(function() return kept:write('x') end)
            return tostring(ok) .. ' ' .. (e and e.kind or '')
        end",
        upstream.address
    );
    let grants = format!(
        "[[tenant.TENANT.allow.net]]\nhosts = [\"tcp://{}\"]\naddresses = [\"127.0.0.0/8\"]\n",
        upstream.address
    );
    let (_folder, host) = start(&script, "", &grants);
    assert_eq!((host.get("/a/keep").body, host.get("/a/x").body), ("kept".into(), "false closed".into()));
}

#[test]
fn more_requests_at_once_than_a_vm_can_have_are_told_to_come_again() {
    let (_folder, host) = start(SCRIPT, "", "");
    let waiting: Vec<_> = (0..255).map(|_| send(&host, "/a/wait")).collect();
    wait_for(&host, 255);
    let last = send(&host, "/a/wait");
    wait_until("one more than there can be", || {
        let answer = host.get("/a/x");
        answer.status == 503 && answer.body.starts_with("too many requests at once")
    });
    assert_eq!(host.get("/b/x").body, "1");
    drop(waiting);
    drop(last);
    wait_for(&host, 0);
}

#[test]
fn the_instances_that_tenants_keep_leave_one_over() {
    let text = |instances: u32| policy("", "").replace("instances = 32", &format!("instances = {instances}"));
    let parse = |text: &str| neoc::policy::Policy::parse(text, Path::new("p.toml"));
    assert!(parse(&text(2)).is_ok());
    let errors = parse(&text(1)).unwrap_err().to_string();
    assert!(errors.contains("host.instances") && errors.contains("more than the 1"), "{errors}");
}

#[test]
fn a_vm_that_nobody_calls_is_folded_and_goes_on_with_all_that_it_has() {
    let (_folder, host) = start(SCRIPT, "", "");
    assert_eq!(host.get("/a/").body, "1");
    let waiting = send(&host, "/a/wait");
    wait_for(&host, 1);
    wait_until("the folding", || host.log().contains("is folded"));
    assert_eq!(host.get("/a/open").body, "opened");
    assert!(std::io::read_to_string(waiting).unwrap().ends_with("let through"));
    assert_eq!(host.get("/a/waiting").body, "0");
}
