//! Kills: whatever a script does, at whatever moment, it ends and the host goes on.
//!
//! `KILLS=100000 cargo test kills_at_random -- --nocapture` runs the long form, and prints how
//! late the kills came.

use std::time::{Duration, Instant};

use neoc::{
    policy::Preemption,
    runtime::{Failure, GUEST, SharedImage},
};
use neoc_abi::event::Finish;

use crate::support::sandbox::Sandbox;

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

/// A sandbox whose scripts may have 32 MiB.
fn sandbox(preemption: Preemption) -> Sandbox {
    Sandbox::start(preemption, GUEST.into(), 32 << 20)
}

fn load(sandbox: &Sandbox, script: &str) -> SharedImage {
    sandbox.io.block_on(sandbox.load("test.luau", script)).unwrap()
}

/// Kills each endless script `rounds` times, at moments that differ; gives how late each kill came.
fn kill(sandbox: &Sandbox, rounds: usize) -> Vec<Duration> {
    let images: Vec<_> = ENDLESS.iter().map(|(_, script)| load(sandbox, script)).collect();
    let sound = load(sandbox, "local t = {} for i = 1, 100 do t[i] = tostring(i) end assert(#table.concat(t) == 192)");
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
                sandbox.io.block_on(futures_util::future::join_all(pair.iter().map(|image| sandbox.run(image, cpu))));
            for end in ended {
                assert_eq!(end.err(), Some(Failure::Cpu(cpu)));
            }
            late.push(begin.elapsed().saturating_sub(cpu));
        }
    }
    // The slots that the killed ones had are sound.
    for _ in 0..64 {
        let ended = sandbox.io.block_on(sandbox.run(&sound, Duration::from_secs(5))).unwrap();
        assert_eq!(ended.finish, Finish::Done);
    }
    late
}

#[test]
fn every_endless_script_is_killed_by_either_preemption() {
    for preemption in [Preemption::Safepoint, Preemption::Epoch] {
        let sandbox = sandbox(preemption);
        for (name, script) in ENDLESS {
            let image = load(&sandbox, script);
            let ended = sandbox.io.block_on(sandbox.run(&image, Duration::from_millis(20)));
            assert_eq!(ended.err(), Some(Failure::Cpu(Duration::from_millis(20))), "{name}, {preemption:?}");
        }
    }
}

#[test]
fn kills_at_random_moments_leave_the_host_and_its_slots_sound() {
    let kills: usize = std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(1_200);
    let mut late = kill(&sandbox(Preemption::Safepoint), kills / ENDLESS.len());
    late.sort_unstable();
    let percentile = |percent: usize| late[(late.len() - 1) * percent / 100];
    println!("{kills} kills; two at a time were over {:?} (p50) and {:?} (p99) late", percentile(50), percentile(99));
}
