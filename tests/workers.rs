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
    capability::Capabilities,
    limits::RateLimiter,
    policy::{self, Preemption, Rate, workers::Grant},
    runtime::{CpuBudget, Effects, Failure, Job, Runtime, Settings, Share, Source},
    script_log::{BYTES_PER_SECOND, Quota, ScriptLog},
};
use neoc_abi::event::{Event, Finish, Mode, Module, Request};

use crate::support::{PATIENCE, cache_dir, host::Host, upstream::Upstream, wait_until};

/// A host with one tenant, whose module has a handler `http` and the functions that its workers run.
fn start(script: &str, tables: &str) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), script, tables, 16);
    let host = Host::start(folder.path());
    (folder, host)
}

fn write(folder: &Path, script: &str, tables: &str, instances: u32) {
    let script = format!(
        "local workers, hyper, kv = require('std:workers'), require('vnd:hyper'), require('std:kv')
        local function describe(ok, e) return if ok then 'ok' else `{{e.kind}} {{e.limit}}: {{e.message}}` end
        {script}"
    );
    fs::write(folder.join("a.luau"), script).unwrap();
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = {instances}\nworkers = 2\n\
         [tenant.a]\nscript = \"a.luau\"\nroutes = [\"/a\", \"/a/*\"]\n{tables}"
    );
    fs::write(folder.join("policy.toml"), policy).unwrap();
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
    let script = "return {
        ['./sum'] = function(list, more) return #list + more.x, { half = (#list + more.x) / 2 }, nil end,
        http = function()
            local sum, table, none = workers.run('./sum', { 1, 2, 3 }, { x = 4 })
            return `{sum} {table.half} {none}`
        end,
    }";
    let (_folder, host) = start(script, &grant(2));
    assert_eq!(host.get("/a").body, "7 3.5 nil");
}

#[test]
fn a_worker_begins_as_a_request_does() {
    let script = "local count = 0
        return {
            ['./next'] = function() count += 1 leak = (leak or 0) + 1 return `{count} {leak} {math.random()}` end,
            http = function()
                count += 10
                local results = workers.map('./next', { 1, 2, 3 })
                return table.concat(results, '|')
            end,
        }";
    let (_folder, host) = start(script, &grant(2));
    let body = host.get("/a").body;
    let results: Vec<_> = body.split('|').collect();
    assert!(results.iter().all(|result| result.starts_with("1 1 ")), "{body}");
    assert!(results[0] != results[1] && results[1] != results[2], "each draws random numbers of its own: {body}");
}

#[test]
fn as_many_run_at_a_time_as_the_grant_says_and_the_others_wait_in_line() {
    for count in [1, 2] {
        let upstream = Upstream::start();
        let script = format!(
            "return {{
                ['./fetch'] = function(n) return hyper.get('{}').body .. n end,
                http = function() return table.concat(workers.map('./fetch', {{ 1, 2, 3, 4 }}), ' ') end,
            }}",
            upstream.url(&format!("/gate/{count}"))
        );
        let (_folder, host) = start(&script, &grant_with(count, &upstream));
        // The gate opens for `count` who wait there together, so two really are there at once.
        assert_eq!(host.get("/a").body, "together1 together2 together3 together4");
        assert_eq!(upstream.most_at_once(), count as usize);
    }
}

#[test]
fn a_requests_outbound_calls_are_counted_over_all_its_vms() {
    let upstream = Upstream::start();
    let script = format!(
        "local function fetch(n)
            local done = 0
            for _ = 1, n do if pcall(hyper.get, '{}') then done += 1 end end
            return done
        end
        return {{
            ['./fetch'] = fetch,
            http = function()
                local a = fetch(20)
                local b = workers.map('./fetch', {{ 20, 20 }})
                return `{{a}} {{b[1] + b[2]}}`
            end,
        }}",
        upstream.url("/x")
    );
    let (_folder, host) = start(&script, &grant_with(2, &upstream));
    assert_eq!(host.get("/a").body, "20 30");
    assert_eq!(upstream.requests(), 50);
}

#[test]
fn a_worker_does_io_under_the_tenants_policy() {
    let script = "return {
        ['./store'] = function(value) kv.set('k', value) return (kv.get('k')) end,
        ['./fetch'] = function() return hyper.get('http://127.0.0.1:9/') end,
        http = function()
            local stored = workers.run('./store', 'v')
            local ok, e = pcall(workers.run, './fetch')
            return `{stored} {kv.get('k')} {e.kind} {e.capability} {e.fix ~= nil}`
        end,
    }";
    let (_folder, host) = start(script, &format!("{}[tenant.a.allow.kv]\n", grant(2)));
    assert_eq!(host.get("/a").body, "v v denied http true");
}

#[test]
fn a_worker_may_not_start_workers() {
    let script = "return {
        ['./leaf'] = function() return 1 end,
        ['./nested'] = function() return workers.run('./leaf') end,
        http = function() return describe(pcall(workers.run, './nested')) end,
    }";
    let (_folder, host) = start(script, &grant(2));
    let expected = "invalid nil: workers: a worker may not start workers itself; let the request start them all";
    assert_eq!(host.get("/a").body, expected);
}

#[test]
fn without_a_grant_they_are_denied_with_the_toml_to_paste() {
    let script = "return { http = function()
        local ok, e = pcall(workers.run, './m')
        return `{e.kind} {e.capability} {e.target} {e.fix}`
    end }";
    let (_folder, host) = start(script, "");
    assert_eq!(host.get("/a").body, "denied workers ./m [tenant.a.allow.workers]\n");
    let log = host.stop();
    assert!(log.contains("\"capability\":\"workers\"") && log.contains("not_granted"), "{log}");
}

#[test]
fn an_error_in_a_worker_is_raised_with_its_message_and_traceback() {
    let script = "local function inner() error('boom') end
        return {
            ['./fail'] = function() inner() end,
            http = function(request)
                if request.path == '/a/uncaught' then workers.run('./fail') end
                local ok, e = pcall(workers.run, './fail')
                return `{e.kind} {e.message}\\n{e.traceback}`
            end,
        }";
    let (_folder, host) = start(script, &grant(2));
    let expected = "failed a.luau:3: boom\na.luau:3 function inner\na.luau:5";
    assert_eq!(host.get("/a").body, expected);
    assert_eq!(host.get("/a/uncaught").status, 500);
    let log = host.stop();
    let line = log.lines().find(|line| line.contains("the script failed")).expect("a line");
    assert!(line.contains("a.luau:7: failed: a.luau:3: boom"), "{line}");
    assert!(line.contains("a.luau:3 function inner\\na.luau:5\\ncalled from:\\na.luau:7"), "{line}");
}

#[test]
fn the_first_failure_of_a_map_is_raised_while_others_still_wait() {
    let upstream = Upstream::start();
    let script = format!(
        "return {{
            ['./work'] = function(n) if n == 2 then error('two', 0) end hyper.get('{}') end,
            http = function() return describe(pcall(workers.map, './work', {{ 1, 2, 3 }})) end,
        }}",
        upstream.url("/stall")
    );
    let (_folder, host) = start(&script, &grant_with(3, &upstream));
    assert_eq!(host.get("/a").body, "failed nil: two");
}

#[test]
fn what_does_not_fit_into_a_workers_memory_is_a_limit_that_names_memory() {
    let script = "return {
        ['./large'] = function() return string.rep('x', 6e6) end,
        ['./fill'] = function() local t = {} while true do table.insert(t, string.rep('x', 1e5) .. #t) end end,
        http = function()
            return describe(pcall(workers.run, './large')) .. '\\n' .. describe(pcall(workers.run, './fill'))
        end,
    }";
    let tables = format!("{}[tenant.a.limits]\nmemory = \"16 MiB\"\ncpu = \"5 s\"\n", grant(2));
    let (_folder, host) = start(script, &tables);
    assert_eq!(host.get("/a").body, "limit memory: not enough memory\nlimit memory: not enough memory");
}

#[test]
fn a_worker_that_breaks_its_vm_leaves_the_request_alive() {
    // As in tests/cases/attacks/LX-01-table-move.
    let script = "return {
        ['./break'] = function() pcall(table.move, { 1 }, 1, 2147483647, 1, { [-2147483648] = 1 }) end,
        http = function() return describe(pcall(workers.run, './break')) end,
    }";
    let (_folder, host) = start(script, &grant(2));
    let body = host.get("/a").body;
    assert!(body.starts_with("failed nil: killed: the sandbox trapped"), "{body}");
    assert!(host.stop().contains("\"reason\":\"trap\""));
}

#[test]
fn with_no_instance_free_the_wait_for_one_ends() {
    let folder = tempfile::tempdir().unwrap();
    let script = "return {
        ['./m'] = function() return 1 end,
        http = function() return describe(pcall(workers.run, './m')) end,
    }";
    write(folder.path(), script, &grant(2), 1);
    let host = Host::start(folder.path());
    // The request's own VM has the only one.
    assert_eq!(host.get("/a").body, "limit instances: no free instance (host.instances)");
    assert_eq!(host.get("/a").status, 200);
}

#[test]
fn a_client_that_leaves_cancels_the_workers_of_its_request() {
    let upstream = Upstream::start();
    let script = format!(
        "return {{
            ['./stall'] = function() hyper.get('{}') end,
            http = function(request)
                if request.path == '/a/slow' then workers.run('./stall') end
                return hyper.get('{}').body
            end,
        }}",
        upstream.url("/stall"),
        upstream.url("/gate/1"),
    );
    let tables = format!("{}[tenant.a.limits]\nconnections = 1\n", grant_with(2, &upstream));
    let (_folder, host) = start(&script, &tables);
    // Each stalled worker holds the tenant's one connection; leaving must give it back.
    for n in 1..=3 {
        let stream = ask(&host, "/a/slow");
        wait_until("the upstream call", || upstream.requests() >= n);
        drop(stream);
    }
    assert_eq!(host.get("/a/quick").body, "together");
}

/// Sends a request, and does not wait for the answer.
fn ask(host: &Host, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(host.address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    stream
}

#[test]
fn a_budget_that_is_used_up_ends_the_request_and_its_workers() {
    let script = "return {
        ['./spin'] = function() while true do end end,
        http = function()
            pcall(workers.map, './spin', { 1, 2, 3, 4 })
            return 'survived'
        end,
    }";
    let (_folder, host) = start(script, &format!("{}[tenant.a.limits]\ncpu = \"200 ms\"\n", grant(4)));
    assert_eq!(host.get("/a").status, 500);
    assert!(host.stop().contains("killed: the script used up its CPU budget of 200 ms"));
}

/// Spins in four workers at once.
const SPIN: &str = "return {
    http = function() require('std:workers').map('./spin', { 1, 2, 3, 4 }) end,
    ['./spin'] = function() while true do end end,
}";

#[test]
fn the_budget_of_a_request_is_shared_and_not_multiplied() {
    let total = Duration::from_millis(300);
    for preemption in [Preemption::Safepoint, Preemption::Epoch] {
        let sandbox = Sandbox::start(preemption);
        let cpu = CpuBudget::new(total);
        let job = sandbox.job(SPIN, &cpu);
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
    let job = sandbox.job(SPIN, &cpu);
    let runtime = Arc::clone(&sandbox.runtime);
    let request = sandbox.io.spawn(async move { runtime.run(job).await });
    // Each VM has two handles, and the request one more for its workers.
    wait_until("the start of its workers", || Arc::strong_count(&cpu) > 6);
    request.abort();
    wait_until("the end of all its VMs", || Arc::strong_count(&cpu) == 1);
}

#[test]
fn two_workers_of_a_request_run_on_two_threads_at_once() {
    let writer = || MEETING.get_or_init(Meeting::default);
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let script = "return {
        http = function() require('std:workers').map('./meet', { 1, 2 }) return 'done' end,
        ['./meet'] = function() print('meet') end,
    }";
    let sandbox = Sandbox::start(Preemption::Safepoint);
    let quota = Quota::new(RateLimiter::new(Rate::per_second(BYTES_PER_SECOND)));
    let log = ScriptLog::tenant("test".into(), "request".into(), Arc::new(quota));
    let job = Job { log, ..sandbox.job(script, &CpuBudget::new(Duration::from_secs(3600))) };
    let ended = sandbox.io.block_on(sandbox.runtime.run(job)).unwrap();
    assert!(matches!(ended.finish, Finish::Response(_)), "{:?}", ended.finish);
    let met = MEETING.get().unwrap().people.lock().unwrap().met;
    assert_eq!(met, 2);
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
}

impl Sandbox {
    fn start(preemption: Preemption) -> Self {
        let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let settings = Settings { instances: 16, workers: NonZeroUsize::new(2), cache_dir: cache_dir(), preemption };
        let runtime = Arc::new(Runtime::start(&settings, io.handle()).unwrap());
        let mut tenant = policy::Tenant::without_grants("test", Path::new("test.luau"));
        tenant.allow.workers = Some(Grant { count: NonZeroU32::new(4).unwrap(), line: 1 });
        Self { io, runtime, tenant: Arc::new(tenant) }
    }

    /// A request to a handler's module.
    fn job(&self, script: &str, cpu: &Arc<CpuBudget>) -> Job {
        let share = Share { tenant: "test".into(), weight: NonZeroU32::MIN };
        let memory_bytes = 32 << 20;
        let entry = Module { name: "test.luau".into(), source: script.into() };
        let source = Source { entry, mode: Mode::Handler, memory_bytes };
        let image = self.io.block_on(self.runtime.load(&share, source, ScriptLog::discard())).unwrap();
        let broker = Arc::new(Broker::new([&self.tenant]));
        let capabilities = Arc::new(Capabilities::none(Arc::clone(&broker)));
        let caller = broker.caller(&self.tenant, "request".into()).unwrap();
        let effects = Effects::new(broker, capabilities, caller, self.io.handle().clone());
        let request = Request { method: "GET".into(), path: "/".into(), query: vec![], headers: vec![], body: vec![] };
        Job {
            share,
            image: Arc::new(image),
            event: Event::Request(request),
            memory_bytes,
            cpu: Arc::clone(cpu),
            wall: Duration::from_secs(3600),
            log: ScriptLog::discard(),
            effects,
            detach: None,
        }
    }
}
