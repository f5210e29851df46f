//! Random programs as requests of one tenant: each ends, the host lives on, and no connection is lost.
//!
//! What the guest must hold to is tested beside it, with many more programs. Here the host is the real one:
//! its timers, its line for connections, and its way of stopping what was cancelled.
//!
//! `PROGRAMS=10000 cargo test random_programs` tries more of them.

use std::{
    fmt::Write,
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::support::{host::Host, upstream::Upstream};

/// How many programs are tried.
const PROGRAMS: usize = 300;

/// How many programs a script holds: the source of all must fit into one.
const PROGRAMS_A_SCRIPT: usize = 100;

/// How many requests are under way at once.
const CLIENTS: usize = 8;

/// What the programs call. Tasks are numbers, taken modulo how many there are. Every wait is short or has a
/// timeout, so no program that ends at all takes long.
const LIBRARY: &str = "
    local hyper, task = require('vnd:hyper'), require('std:task')
    local tasks, channel, semaphore
    local call, programs = {}, {}
    local function pick(k) return tasks[k % #tasks + 1] end
    local function start(how, ...)
        local t = task[how](...)
        table.insert(tasks, t)
        return t
    end
    function call.spawn(f) start('spawn', f) end
    function call.defer(f) start('defer', f) end
    function call.delay(f) start('delay', 0.002, f) end
    -- It ends itself: as long as it runs, it could wake whoever waits without a timeout.
    function call.every(f)
        local left = 4
        start('every', 0.001, function() left -= 1 assert(left > 0) f() end)
    end
    function call.finally(f) task.finally(f) end
    function call.with(f) semaphore:with(f) end
    function call.protected(f) pcall(f) end
    function call.wrapped(f) coroutine.wrap(f)() end
    function call.indexed(f) local _ = setmetatable({}, { __index = f }).x end
    function call.sorted(f) table.sort({ 2, 1 }, function(a, b) f() return a < b end) end
    function call.replaced(f) string.gsub('a', 'a', function() f() end) end
    function call.wait(k) task.wait(k % 3 / 1000) end
    function call.await(k) task.await(pick(k), 0.01) end
    function call.await_any(k) task.await_any({ pick(k), pick(k + 1) }, 0.01) end
    function call.await_all(k) task.await_all({ pick(k), pick(k + 1) }, 0.01) end
    function call.cancel(k) task.cancel(pick(k)) end
    function call.put(k) channel:put(k, 0.005) end
    function call.get() channel:get(0.005) end
    function call.acquire() semaphore:acquire(0.005) end
    function call.release() semaphore:release() end
    function call.yield() coroutine.yield() end
    function call.fail() error('random') end
    function call.fetch() hyper.get('http://UPSTREAM/page') end
    function call.fetch_many(k) hyper.get_all(table.create(k % 8, 'http://UPSTREAM/page')) end
    function call.fetch_in_vain() hyper.get('http://UPSTREAM/stall', { timeout = 0.02 }) end
    -- A call that only its cancellation ends, from within or from another task.
    function call.stop_fetching(k)
        local t = start('spawn', hyper.get, 'http://UPSTREAM/stall')
        task.defer(function() pcall(task.wait, k % 2 / 1000) task.cancel(t) end)
    end
";

/// Runs a program, or uses all connections at once.
const HANDLER: &str = "
    return function(request)
        local n = tonumber(request.query.n)
        if n == 0 then
            local bodies = {}
            for index, response in hyper.get_all(table.create(4, 'http://UPSTREAM/gate/4')) do
                bodies[index] = response.body
            end
            return table.concat(bodies, ' ')
        end
        tasks, channel, semaphore = { task.current() }, task.channel(2), task.semaphore(1)
        pcall(programs[n])
        return 'ended'
    end
";

const BLOCKS: [&str; 12] = [
    "spawn",
    "spawn",
    "spawn",
    "defer",
    "delay",
    "every",
    "finally",
    "with",
    "protected",
    "wrapped",
    "indexed",
    "sorted",
];

const CALLS: [&str; 24] = [
    "wait",
    "wait",
    "await",
    "await",
    "await_any",
    "await_all",
    "cancel",
    "cancel",
    "cancel",
    "put",
    "put",
    "get",
    "get",
    "acquire",
    "release",
    "yield",
    "fail",
    "fetch",
    "fetch",
    "fetch",
    "fetch_many",
    "fetch_in_vain",
    "stop_fetching",
    "stop_fetching",
];

/// The same programs in each run of the test.
struct Generator(u64);

impl Generator {
    /// A multiplicative generator's upper bits.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn body(&mut self, program: &mut String, depth: usize, n_most: usize) {
        for _ in 0..self.below(n_most) + 1 {
            if depth < 4 && self.below(3) == 0 {
                writeln!(program, "call.{}(function()", BLOCKS[self.below(BLOCKS.len())]).unwrap();
                self.body(program, depth + 1, 4);
                writeln!(program, "end)").unwrap();
            } else {
                let (name, k) = (CALLS[self.below(CALLS.len())], self.below(100));
                // Mostly, what a call raises does not end the task.
                let line =
                    if self.below(5) > 0 { format!("pcall(call.{name}, {k})") } else { format!("call.{name}({k})") };
                writeln!(program, "{line}").unwrap();
            }
        }
    }
}

#[test]
fn random_programs_leave_the_host_and_all_its_connections() {
    let n_programs = std::env::var("PROGRAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(PROGRAMS);
    let mut generator = Generator(1);
    for round in 0..n_programs.div_ceil(PROGRAMS_A_SCRIPT) {
        let programs: Vec<_> = (0..PROGRAMS_A_SCRIPT)
            .map(|_| {
                let mut program = String::new();
                generator.body(&mut program, 0, 12);
                program
            })
            .collect();
        try_programs(round, &programs);
    }
}

fn try_programs(round: usize, programs: &[String]) {
    let (upstream, folder) = (Upstream::start(), tempfile::tempdir().unwrap());
    let mut script = LIBRARY.to_owned();
    for (index, program) in programs.iter().enumerate() {
        write!(script, "programs[{}] = function()\n{program}end\n", index + 1).unwrap();
    }
    let script = (script + HANDLER).replace("UPSTREAM", &upstream.address.to_string());
    fs::write(folder.path().join("programs.luau"), script).unwrap();
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = 32\n\
         [tenant.a]\nscript = \"programs.luau\"\nroutes = [\"/a\"]\n\
         [tenant.a.limits]\nconnections = 4\ncpu = \"5 s\"\nrequests = \"100000/s\"\noperations = \"100000/s\"\n\
         [[tenant.a.allow.http]]\nhosts = [\"http://{}\"]\naddresses = [\"127.0.0.0/8\"]\n",
        upstream.address
    );
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let mut host = Host::start(folder.path());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(program) = programs.get(index) else { break };
                    let answer = host.get(&format!("/a?n={}", index + 1));
                    // 500: the handler's own task was cancelled and yielded, which ends it.
                    assert!([200, 500].contains(&answer.status), "{answer:?} in round {round} to\n{program}");
                }
            });
        }
    });
    assert_eq!(host.get("/a?n=0").body, "together together together together");
    assert!(host.is_alive());
    let log = host.stop();
    assert!(!log.contains("panicked") && !log.contains("killed"), "{log}");
}
