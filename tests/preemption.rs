//! Kills: whatever a script does, at whatever moment, it ends and the host goes on.
//!
//! `KILLS=100000 cargo test --release kills_at_random -- --nocapture` runs the long form, and prints how
//! late the kills came.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::{Duration, Instant},
};

use neoc::{
    broker::Broker,
    capability::{Capabilities, module::Folder},
    policy::{Preemption, Tenant},
    runtime::{Effects, Ended, Failure, Job, Runtime, Settings, Share, SharedImage, Source},
    script_log::ScriptLog,
};
use neoc_abi::event::{Event, Finish, Mode, Module};

use crate::support::cache_dir;

/// Scripts that never end by themselves, in Luau code and inside builtins.
const ENDLESS: [(&str, &str); 12] = [
    ("loop", "while true do end"),
    ("pcall", "while true do pcall(function() while true do end end) end"),
    ("coroutine", "while true do coroutine.wrap(function() while true do end end)() end"),
    ("recursion", "local function f(n) if n > 0 then f(n - 1) f(n - 1) end end while true do f(40) end"),
    ("find backtracking", "string.find(('x'):rep(100), ('x?'):rep(100) .. ('x'):rep(100))"),
    ("lazy find", "while true do (('a'):rep(2 ^ 16)):find('.-.-.-b') end"),
    ("plain find", "local h, n = ('a'):rep(2 ^ 18), ('a'):rep(2 ^ 17) .. 'b' while true do h:find(n, 1, true) end"),
    (
        "sort",
        "local t = {} for i = 1, 50000 do t[i] = i * 7919 % 50021 end while true do table.sort(table.clone(t)) end",
    ),
    ("insert", "local t = table.create(2 ^ 18, 1) while true do table.insert(t, 1, 1) table.remove(t) end"),
    ("fill", "local b = buffer.create(2 ^ 22) while true do buffer.fill(b, 0, 1) end"),
    ("interning", "while true do for i = 1, 1e7 do local _ = tostring(i) end end"),
    ("errors", "while true do pcall(error, 'x') end"),
];

fn share() -> Share {
    Share { tenant: "test".into(), weight: NonZeroU32::MIN }
}

/// None of these scripts requires anything.
fn no_modules() -> Arc<Folder> {
    Arc::new(Folder::of_script(std::path::Path::new("absent/test.luau"), None))
}

struct Sandbox {
    io: tokio::runtime::Runtime,
    runtime: Arc<Runtime>,
    broker: Arc<Broker>,
    capabilities: Arc<Capabilities>,
    tenant: Arc<Tenant>,
}

impl Sandbox {
    fn start(preemption: Preemption) -> Self {
        let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let settings = Settings { instances: 16, workers: NonZeroUsize::new(2), cache_dir: cache_dir(), preemption };
        let runtime = Arc::new(Runtime::start(&settings, io.handle()).unwrap());
        let tenant = Arc::new(Tenant::without_grants("test", std::path::Path::new("test.luau")));
        let broker = Arc::new(Broker::new([&tenant]));
        let capabilities = Arc::new(Capabilities::none(Arc::clone(&broker)));
        Self { io, runtime, broker, capabilities, tenant }
    }

    fn load(&self, script: &str) -> SharedImage {
        let entry = Module { name: "test.luau".into(), source: script.into() };
        let source = Source { entry, mode: Mode::Script, memory_bytes: 32 << 20, modules: no_modules() };
        let share = share();
        let loaded = self.runtime.load(&share, source, ScriptLog::discard());
        Arc::new(self.io.block_on(loaded).unwrap())
    }

    async fn run(&self, image: &SharedImage, cpu: Duration) -> Result<Ended, Failure> {
        let caller = self.broker.caller(&self.tenant, "request".into()).unwrap();
        let io = self.io.handle().clone();
        let (broker, capabilities) = (Arc::clone(&self.broker), Arc::clone(&self.capabilities));
        let effects = Effects::new(broker, capabilities, caller, no_modules(), io);
        let job = Job {
            share: share(),
            image: Arc::clone(image),
            event: Event::Run(vec![]),
            memory_bytes: 32 << 20,
            cpu,
            wall: Duration::from_secs(60),
            log: ScriptLog::discard(),
            effects,
            detach: None,
        };
        self.runtime.run(job).await
    }

    /// Kills each endless script `rounds` times, at moments that differ; gives how late each kill came.
    fn kill(&self, rounds: usize) -> Vec<Duration> {
        let images: Vec<_> = ENDLESS.iter().map(|(_, script)| self.load(script)).collect();
        let sound = self.load("local t = {} for i = 1, 100 do t[i] = tostring(i) end assert(#table.concat(t) == 192)");
        let mut late = Vec::new();
        let mut random = 1_u64;
        for _ in 0..rounds {
            let pairs = images.chunks(2).map(|pair| {
                // A multiplicative generator: the same moments in each run of the test.
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (pair, Duration::from_micros(200 + (random >> 33) % 2_800))
            });
            for (pair, cpu) in pairs {
                let begin = Instant::now();
                let ended =
                    self.io.block_on(futures_util::future::join_all(pair.iter().map(|image| self.run(image, cpu))));
                for end in ended {
                    assert_eq!(end.err(), Some(Failure::Cpu(cpu)));
                }
                late.push(begin.elapsed().saturating_sub(cpu));
            }
        }
        // The slots that the killed ones had are sound.
        for _ in 0..64 {
            let ended = self.io.block_on(self.run(&sound, Duration::from_secs(5))).unwrap();
            assert_eq!(ended.finish, Finish::Done);
        }
        late
    }
}

#[test]
fn every_endless_script_is_killed_by_either_preemption() {
    for preemption in [Preemption::Safepoint, Preemption::Epoch] {
        let sandbox = Sandbox::start(preemption);
        for (name, script) in ENDLESS {
            let image = sandbox.load(script);
            let ended = sandbox.io.block_on(sandbox.run(&image, Duration::from_millis(20)));
            assert_eq!(ended.err(), Some(Failure::Cpu(Duration::from_millis(20))), "{name}, {preemption:?}");
        }
    }
}

#[test]
fn kills_at_random_moments_leave_the_host_and_its_slots_sound() {
    let kills: usize = std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(1_200);
    let mut late = Sandbox::start(Preemption::Safepoint).kill(kills / ENDLESS.len());
    late.sort_unstable();
    let percentile = |percent: usize| late[(late.len() - 1) * percent / 100];
    println!("{kills} kills; two at a time were over {:?} (p50) and {:?} (p99) late", percentile(50), percentile(99));
}
