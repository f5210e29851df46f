//! `std:workers`: further VMs of a request, at once, on one budget, and gone with it.

use std::{
    fs,
    io::{self, Write},
    net::TcpStream,
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    sync::{Arc, Condvar, Mutex, OnceLock},
    time::Duration,
};

use neoc::{
    broker::Broker,
    capability::{Capabilities, module::Folder},
    policy::{self, Place, Preemption, workers::Grant},
    runtime::{CpuBudget, Effects, Failure, GUEST, Job, Line, Runtime, Settings, Share, Source},
    script_log::{Quota, ScriptLog},
};
use neoc_abi::event::{Event, Finish, Mode, Module, Request};
use serde_bytes::Bytes;

use crate::support::{PATIENCE, cache_dir, host::Host, upstream::Upstream, wait_until};

/// What each file of a test begins with, on its first line.
const HEAD: &str = "local workers, hyper, kv = require('std:workers'), require('vnd:hyper'), require('std:kv') \
    local function describe(ok, e) return if ok then 'ok' else `{e.kind} {e.limit}: {e.message}` end ";

/// A host with one tenant: the file `a.luau` is its script, the others are beside it.
fn start(files: &[(&str, &str)], tables: &str) -> (tempfile::TempDir, Host) {
    start_with(files, tables, 16)
}

/// As [`start`], with so many instances.
fn start_with(files: &[(&str, &str)], tables: &str, instances: u32) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    for (name, source) in files {
        fs::write(folder.path().join(name), format!("{HEAD}{source}")).unwrap();
    }
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = {instances}\nworkers = 2\n\
         [tenant.a]\nscript = \"a.luau\"\nroutes = [\"/a\", \"/a/*\"]\n{tables}"
    );
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let host = Host::start(folder.path());
    (folder, host)
}

fn grant(count: u32) -> String {
    format!("[tenant.a.allow.workers]\ncount = {count}\n")
}

/// A grant of `count` workers, and of the upstream.
fn grant_with(count: u32, upstream: &Upstream) -> String {
    let origin = upstream.url("");
    format!("{}[[tenant.a.allow.http]]\nhosts = [\"{origin}\"]\naddresses = [\"127.0.0.0/8\"]\n", grant(count))
}

#[test]
fn a_worker_gets_copies_and_gives_copies() {
    let script = "return function()
        local sum, table, none = workers.run('./sum', { 1, 2, 3 }, { x = 4 })
        return `{sum} {table.half} {none}`
    end";
    let sum = "return function(list, more) return #list + more.x, { half = (#list + more.x) / 2 }, nil end";
    let (_folder, host) = start(&[("a.luau", script), ("sum.luau", sum)], &grant(2));
    assert_eq!(host.get("/a").body, "7 3.5 nil");
}

#[test]
fn values_keep_their_bits() {
    let script = "return function()
        local values = { 0/0, -0, math.huge, -math.huge, 5e-324, true, '\\0\\255', vector.create(1, -0, 2) }
        local same = 0
        for index, value in workers.map('./echo', values) do
            local pack = if type(value) == 'number' then 'd' else 'z'
            if pack == 'd' and string.pack('d', value) == string.pack('d', values[index]) then same += 1
            elseif value == values[index] then same += 1 end
        end
        local buffer_back = workers.run('./echo', buffer.fromstring('\\0\\1'))
        return `{same} {buffer.len(buffer_back)} {select('#', workers.run('./echo', nil, nil))}`
    end";
    let echo = "return function(...) return ... end";
    let (_folder, host) = start(&[("a.luau", script), ("echo.luau", echo)], &grant(2));
    assert_eq!(host.get("/a").body, "8 2 2");
}

#[test]
fn a_worker_begins_as_a_request_does() {
    let script = "require('./next')
        return function()
            require('./next')()
            local results = workers.map('./next', { 1, 2, 3 })
            return table.concat(results, '|')
        end";
    let next = "local count = 0 return function() count += 1 return `{count} {math.random()}` end";
    let (_folder, host) = start(&[("a.luau", script), ("next.luau", next)], &grant(2));
    let body = host.get("/a").body;
    let results: Vec<_> = body.split('|').collect();
    assert!(results.iter().all(|result| result.starts_with("1 ")), "{body}");
    assert!(results[0] != results[1] && results[1] != results[2], "each draws random numbers of its own: {body}");
}

#[test]
fn as_many_run_at_a_time_as_the_grant_says_and_the_others_wait_in_line() {
    for count in [1, 2] {
        let upstream = Upstream::start();
        let script = "return function() return table.concat(workers.map('./fetch', { 1, 2, 3, 4 }), ' ') end";
        let url = upstream.url(&format!("/gate/{count}"));
        let fetch = format!("return function(n) return hyper.get('{url}').body .. n end");
        let (_folder, host) = start(&[("a.luau", script), ("fetch.luau", &fetch)], &grant_with(count, &upstream));
        // The gate opens for `count` who wait there together, so two really are there at once.
        assert_eq!(host.get("/a").body, "together1 together2 together3 together4");
        assert_eq!(upstream.most_at_once(), count as usize);
    }
}

#[test]
fn a_requests_outbound_calls_are_counted_over_all_its_vms() {
    let upstream = Upstream::start();
    let script = "return function()
        local a, b = require('./fetch')(20), workers.map('./fetch', { 20, 20 })
        return `{a} {b[1] + b[2]}`
    end";
    let fetch = format!(
        "return function(n)
            local done = 0
            for _ = 1, n do if pcall(hyper.get, '{}') then done += 1 end end
            return done
        end",
        upstream.url("/x")
    );
    let (_folder, host) = start(&[("a.luau", script), ("fetch.luau", &fetch)], &grant_with(2, &upstream));
    assert_eq!(host.get("/a").body, "20 30");
    assert_eq!(upstream.requests(), 50);
}

#[test]
fn a_worker_does_io_under_the_tenants_policy() {
    let script = "return function()
        local stored = workers.run('./store', 'v')
        local ok, e = pcall(workers.run, './fetch')
        return `{stored} {kv.get('k')} {e.kind} {e.capability} {e.fix ~= nil}`
    end";
    let files = [
        ("a.luau", script),
        ("store.luau", "return function(value) kv.set('k', value) return (kv.get('k')) end"),
        ("fetch.luau", "return function() return hyper.get('http://127.0.0.1:9/') end"),
    ];
    let (_folder, host) = start(&files, &format!("{}[tenant.a.allow.kv]\n", grant(2)));
    assert_eq!(host.get("/a").body, "v v denied http true");
}

#[test]
fn a_worker_may_not_start_workers() {
    let files = [
        ("a.luau", "return function() return describe(pcall(workers.run, './nested')) end"),
        ("nested.luau", "return function() return workers.run('./leaf') end"),
        ("leaf.luau", "return function() return 1 end"),
    ];
    let (_folder, host) = start(&files, &grant(2));
    let expected = "invalid nil: workers: a worker may not start workers itself; let the request start them all";
    assert_eq!(host.get("/a").body, expected);
}

#[test]
fn without_a_grant_they_are_denied_with_the_toml_to_paste() {
    let script = "return function()
        local ok, e = pcall(workers.run, './m')
        return `{e.kind} {e.capability} {e.target} {e.fix}`
    end";
    let (_folder, host) = start(&[("a.luau", script)], "");
    assert_eq!(host.get("/a").body, "denied workers ./m [tenant.a.allow.workers]\n");
    let log = host.stop();
    assert!(log.contains("\"capability\":\"workers\"") && log.contains("not_granted"), "{log}");
}

#[test]
fn an_error_in_a_worker_is_raised_with_its_message_and_traceback() {
    let script = "return function(request)
        if request.path == '/a/uncaught' then workers.run('./fail') end
        local ok, e = pcall(workers.run, './fail')
        return `{e.kind} {e.message}\\n{e.traceback}`
    end";
    let fail = "local function inner() error('boom') end
        return function()
            inner()
        end";
    let (_folder, host) = start(&[("a.luau", script), ("fail.luau", fail)], &grant(2));
    assert_eq!(host.get("/a").body, "failed fail.luau:1: boom\nfail.luau:1 function inner\nfail.luau:3");
    assert_eq!(host.get("/a/uncaught").status, 500);
    let log = host.stop();
    let line = log.lines().find(|line| line.contains("the script failed")).expect("a line");
    assert!(line.contains("a.luau:2: failed: fail.luau:1: boom"), "{line}");
    assert!(line.contains("fail.luau:1 function inner\\nfail.luau:3\\ncalled from:\\na.luau:2"), "{line}");
}

#[test]
fn the_first_failure_of_a_map_is_raised_while_others_still_wait() {
    let upstream = Upstream::start();
    let script = "return function() return describe(pcall(workers.map, './work', { 1, 2, 3 })) end";
    let url = upstream.url("/stall");
    let work = format!("return function(n) if n == 2 then error('two', 0) end hyper.get('{url}') end");
    let (_folder, host) = start(&[("a.luau", script), ("work.luau", &work)], &grant_with(3, &upstream));
    assert_eq!(host.get("/a").body, "failed nil: two");
}

#[test]
fn what_does_not_fit_into_a_workers_memory_is_a_limit_that_names_memory() {
    let script = "return function()
        return describe(pcall(workers.run, './large')) .. '\\n' .. describe(pcall(workers.run, './fill'))
    end";
    let files = [
        ("a.luau", script),
        ("large.luau", "return function() return string.rep('x', 6e6) end"),
        (
            "fill.luau",
            "return function() local t = {} while true do table.insert(t, string.rep('x', 1e5) .. #t) end end",
        ),
    ];
    let tables = format!("{}[tenant.a.limits]\nmemory = \"16 MiB\"\ncpu = \"5 s\"\n", grant(2));
    let (_folder, host) = start(&files, &tables);
    assert_eq!(host.get("/a").body, "limit memory: not enough memory\nlimit memory: not enough memory");
}

#[test]
fn a_worker_that_breaks_its_vm_leaves_the_request_alive() {
    let script = "return function() return describe(pcall(workers.run, './break')) end";
    // As in tests/cases/attacks/LX-01-table-move.
    let attack = "return function() pcall(table.move, { 1 }, 1, 2147483647, 1, { [-2147483648] = 1 }) end";
    let (_folder, host) = start(&[("a.luau", script), ("break.luau", attack)], &grant(2));
    let body = host.get("/a").body;
    assert!(body.starts_with("failed nil: killed: the sandbox trapped"), "{body}");
    assert!(host.stop().contains("\"reason\":\"trap\""));
}

#[test]
fn with_no_instance_free_the_wait_for_one_ends() {
    let script = "return function() return describe(pcall(workers.run, './m')) end";
    let files = [("a.luau", script), ("m.luau", "return function() return 1 end")];
    let (_folder, host) = start_with(&files, &grant(2), 1);
    // The request's own VM has the only one.
    assert_eq!(host.get("/a").body, "limit instances: workers: over the host's limit instances = 1");
    assert_eq!(host.get("/a").status, 200);
}

#[test]
fn a_client_that_leaves_cancels_the_workers_of_its_request() {
    let upstream = Upstream::start();
    let script = format!(
        "return function(request)
            if request.path == '/a/slow' then workers.run('./stall') end
            return hyper.get('{}').body
        end",
        upstream.url("/gate/1")
    );
    let stall = format!("return function() hyper.get('{}') end", upstream.url("/stall"));
    let tables = format!("{}[tenant.a.limits]\nconnections = 1\n", grant_with(2, &upstream));
    let (_folder, host) = start(&[("a.luau", &script), ("stall.luau", &stall)], &tables);
    // Each stalled worker holds the tenant's one connection; leaving must give it back.
    for n in 1..=3 {
        let mut stream = TcpStream::connect(host.address).unwrap();
        stream.write_all(b"GET /a/slow HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        wait_until("the upstream call", || upstream.requests() >= n);
        drop(stream);
    }
    assert_eq!(host.get("/a/quick").body, "together");
}

#[test]
fn a_budget_that_is_used_up_ends_the_request_and_its_workers() {
    let script = "return function() pcall(workers.map, './spin', { 1, 2, 3, 4 }) return 'survived' end";
    let files = [("a.luau", script), ("spin.luau", "return function() while true do end end")];
    let (_folder, host) = start(&files, &format!("{}[tenant.a.limits]\ncpu = \"200 ms\"\n", grant(4)));
    assert_eq!(host.get("/a").status, 500);
    assert!(host.stop().contains("killed: the script used up its CPU budget of 200 ms"));
}

#[test]
fn a_worker_may_not_detach_a_task() {
    let files = [
        ("a.luau", "return function() return describe(pcall(workers.run, './m')) end"),
        ("m.luau", "return function() require('std:task').detach(print) end"),
    ];
    let (_folder, host) = start(&files, &format!("{}[tenant.a.allow.detach]\n", grant(2)));
    let expected = "invalid nil: task.detach: a worker has no answer after which a task could go on";
    assert_eq!(host.get("/a").body, expected);
}

#[test]
fn a_detached_task_may_have_workers_after_the_answer() {
    let script = "local task = require('std:task')
        return function(request)
            if request.path == '/a/result' then return kv.get('k') or 'none' end
            task.detach(function() task.wait(0) workers.run('./store', 'late') end)
            return 'answered'
        end";
    let files = [("a.luau", script), ("store.luau", "return function(value) kv.set('k', value) end")];
    let tables = format!("{}[tenant.a.allow.detach]\n[tenant.a.allow.kv]\n", grant(2));
    let (_folder, host) = start(&files, &tables);
    assert_eq!(host.get("/a").body, "answered");
    wait_until("the detached task's worker", || host.get("/a/result").body == "late");
}

/// A handler that calls `./m` in four workers at once.
const MAP: &str = "return function() require('std:workers').map('./m', { 1, 2, 3, 4 }) return 'done' end";

const SPIN: &str = "return function() while true do end end";

#[test]
fn the_budget_of_a_request_is_shared_and_not_multiplied() {
    let total = Duration::from_millis(300);
    for preemption in [Preemption::Safepoint, Preemption::Epoch] {
        let sandbox = Sandbox::start(preemption);
        let cpu = CpuBudget::new(total);
        let job = sandbox.job(MAP, SPIN, &cpu);
        let ended = sandbox.io.block_on(sandbox.runtime.run(job));
        assert_eq!(ended.err(), Some(Failure::Cpu(total)), "{preemption:?}");
        wait_until("the end of all its VMs", || Arc::strong_count(&cpu) == 1);
        // Each of the five VMs may be late by a look of the watcher, or a tick.
        assert!(cpu.used() >= total && cpu.used() < total * 2, "{:?}, {preemption:?}", cpu.used());
    }
}

#[test]
fn dropping_a_request_ends_its_workers() {
    let sandbox = Sandbox::start(Preemption::Safepoint);
    let cpu = CpuBudget::new(Duration::from_secs(3600));
    let job = sandbox.job(MAP, SPIN, &cpu);
    let runtime = Arc::clone(&sandbox.runtime);
    let request = sandbox.io.spawn(async move { runtime.run(job).await });
    // Each VM has two handles, and the request one more for its workers.
    wait_until("the start of its workers", || Arc::strong_count(&cpu) > 6);
    request.abort();
    wait_until("the end of all its VMs", || Arc::strong_count(&cpu) == 1);
}

#[test]
fn a_cancelled_worker_is_gone_when_its_cancel_is_seen() {
    // At thirty moments of a worker's life.
    let handler = "local task, workers = require('std:task'), require('std:workers')
        return function()
            for i = 1, 30 do
                local t = task.spawn(workers.run, './m')
                for _ = 1, i do task.wait(0) end
                task.cancel(t)
                task.try_await(t)
            end
            return 'done'
        end";
    let sandbox = Sandbox::start(Preemption::Safepoint);
    let cpu = CpuBudget::new(Duration::from_secs(3600));
    let ended = sandbox.io.block_on(sandbox.runtime.run(sandbox.job(handler, SPIN, &cpu))).unwrap();
    assert!(matches!(ended.finish, Finish::Response(_)), "{:?}", ended.finish);
    // No VM is left to hold it, and none had to be waited for.
    assert_eq!(Arc::strong_count(&cpu), 1);
}

#[test]
fn two_workers_of_a_request_run_on_two_threads_at_once() {
    let writer = || MEETING.get_or_init(Meeting::default);
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let module = "return function() print('meet') end";
    let sandbox = Sandbox::start(Preemption::Safepoint);
    let quota = Arc::new(Quota::new(&policy::Tenant::without_grants("test", "test.luau")));
    let log = ScriptLog::tenant("request".into(), quota);
    let job = Job { log, ..sandbox.job(MAP, module, &CpuBudget::new(Duration::from_secs(3600))) };
    let ended = sandbox.io.block_on(sandbox.runtime.run(job)).unwrap();
    assert!(matches!(ended.finish, Finish::Response(_)), "{:?}", ended.finish);
    let met = MEETING.get().unwrap().people.lock().unwrap().met;
    assert_eq!(met, 4);
}

static MEETING: OnceLock<Meeting> = OnceLock::new();

/// A log in which a line with the word `meet` is written once there are two such lines to write, by two
/// threads: a VM that prints it stays on its thread meanwhile.
#[derive(Default)]
struct Meeting {
    people: Mutex<People>,
    changed: Condvar,
}

#[derive(Default)]
struct People {
    here: usize,
    met: usize,
}

impl Write for &Meeting {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if String::from_utf8_lossy(line).contains("meet") {
            let mut people = self.people.lock().unwrap();
            people.here += 1;
            self.changed.notify_all();
            let (mut people, timeout) =
                self.changed.wait_timeout_while(people, PATIENCE, |people| people.here < 2).unwrap();
            people.met += usize::from(!timeout.timed_out());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A runtime in this process, whose meters can be read, with a tenant that may have four workers.
struct Sandbox {
    io: tokio::runtime::Runtime,
    runtime: Arc<Runtime>,
    tenant: Arc<policy::Tenant>,
    folder: tempfile::TempDir,
}

impl Sandbox {
    fn start(preemption: Preemption) -> Self {
        let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let settings = Settings {
            instances: 16,
            workers: NonZeroUsize::new(2),
            cache_dir: cache_dir(),
            preemption,
            guest: GUEST.into(),
        };
        let runtime = Arc::new(Runtime::start(&settings, io.handle()).unwrap());
        let mut tenant = policy::Tenant::without_grants("test", Path::new("test.luau"));
        tenant.allow.workers =
            Some(Grant { count: NonZeroU32::new(4).unwrap(), place: Place::new(Path::new("p.toml"), 1) });
        Self { io, runtime, tenant: Arc::new(tenant), folder: tempfile::tempdir().unwrap() }
    }

    /// A request to `handler`, with `module` as `./m` beside it.
    fn job(&self, handler: &str, module: &str, cpu: &Arc<CpuBudget>) -> Job {
        fs::write(self.folder.path().join("m.luau"), module).unwrap();
        let modules = Arc::new(Folder::of_script(&self.folder.path().join("test.luau"), None));
        let share = Share::new("test".into(), NonZeroU32::MIN);
        let memory_bytes = 32 << 20;
        let entry = Module { name: "test.luau".into(), source: handler.into() };
        let source =
            Source { entry, mode: Mode::Handler, memory_bytes, modules: Arc::clone(&modules), narrowed: Vec::new() };
        let image = self.io.block_on(self.runtime.load(&share, source, ScriptLog::discard())).unwrap();
        let broker = Arc::new(Broker::new([&self.tenant]));
        let capabilities = Arc::new(Capabilities::none(Arc::clone(&broker)));
        let caller = broker.caller(&self.tenant, "request".into()).unwrap();
        let io = self.io.handle().clone();
        let effects = Effects::new(&Line::new(broker, capabilities, modules, io), caller);
        let nothing = Bytes::new(&[]);
        let request = Request { method: "GET", path: "/", query: vec![], headers: vec![], body: nothing };
        Job {
            share,
            image: Arc::new(image),
            resident: None,
            event: Event::Request(request).write().unwrap(),
            memory_bytes,
            cpu: Arc::clone(cpu),
            wall: Duration::from_secs(3600),
            log: ScriptLog::discard(),
            effects,
            detach: None,
        }
    }
}
