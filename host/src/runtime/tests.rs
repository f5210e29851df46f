//! What a VM begins with.
//!
//! `REQUESTS=100000 cargo test --lib no_vm_begins -- --nocapture` runs the long form.

use std::{
    path::Path,
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake},
    thread,
};

use neoc_abi::event::{Event, Limits, Mode, Module, Request};
use serde_bytes::Bytes;

use super::memory::PAGE_BYTES;
use super::*;
use crate::{
    capability::{module::Folder, workers::Place},
    policy,
};

/// As many VMs as threads, so that each slot serves both tenants by turns, and a few more.
const N_THREADS: usize = 2;

/// WebAssembly pages that the largest request needs beyond the base image.
const GROWN_PAGES: u64 = 16 * 12;

/// Fills so many pieces of 256 KiB with its tenant's marker, and a small one, waits, and answers with the number. -1
/// raises an error, -2 never ends.
fn script(marker: &str) -> String {
    format!(
        "local wait = require('std:task').wait
        return function(request)
            local kept, small = {{}}, string.rep('{marker}', 2 ^ 8)
            if request.path == '/-1' then
                error('{marker}')
            end
            while request.path == '/-2' do
            end
            for i = 1, tonumber(string.sub(request.path, 2)) do
                kept[i] = string.rep('{marker}', 2 ^ 14) .. i
            end
            wait(0)
            return tostring(#kept + #small - #small)
        end"
    )
}

pub(super) async fn load(runtime: &Arc<Runtime>, marker: &str) -> SharedImage {
    load_script(runtime, marker, script(marker)).await
}

async fn load_script(runtime: &Arc<Runtime>, tenant: &str, script: String) -> SharedImage {
    let share = Share::new(tenant.into(), std::num::NonZeroU32::MIN);
    let modules = Arc::new(Folder::of_script(Path::new("absent/main.luau"), None));
    let entry = Module { name: "main.luau".into(), source: script.into_bytes() };
    let source = Source { entry, mode: Mode::Handler, memory_bytes: MAX_MEMORY_BYTES, modules, narrowed: vec![] };
    runtime.load(&share, source, ScriptLog::discard()).await.expect("loads").into()
}

/// The memory of a VM that has this script and nothing else.
fn memory_with(runtime: &Runtime, image: &TenantImage) -> Vec<u8> {
    let mut memory = runtime.memories.content().to_vec();
    image.difference().apply(&mut memory).expect("fits");
    memory
}

/// One request in a fresh VM, whose memory is looked at before and after, and while the request waits. Whether it had no
/// VM then: a small one keeps a VM that has many pages of its own, or has lived for long enough.
async fn request(runtime: &Runtime, image: &SharedImage, marker: &str, n_pieces: usize) -> bool {
    let state = state(marker, Duration::from_secs(60));
    let mut vm = runtime.ready(image, state).await.expect("there is a slot");
    let new = memory_with(runtime, image);
    assert!(vm.memory().expect("has one") == new, "memory that is not the base image's with the script");
    if n_pieces > 1 {
        // What a script has grown into was another's before, perhaps.
        vm.grow(GROWN_PAGES).expect("within its limit");
        let grown = &vm.memory().expect("has one")[new.len()..];
        assert!(grown.chunks(PAGE_BYTES).all(|page| page == [0; PAGE_BYTES]), "memory that does not begin as zeros");
    }
    vm.start(event(&format!("/{n_pieces}")), &TERMS).await.expect("runs");
    let (mut vm, next, has_left) = match vm.park().expect("the system lets it") {
        Parking::Left(mut parked, vm) => {
            assert_eq!(n_pieces, 0, "a memory with much in it stays");
            let vm = vm.expect("it is as new");
            assert!(vm.memory().expect("has one") == new, "what a request had is there while it waits");
            runtime.renewed.put(vm);
            let next = parked.next_batch().await;
            (runtime.resume(parked).await.expect("goes on"), next, true)
        }
        Parking::Stays(mut vm) => {
            let next = vm.next_batch().await;
            (vm, next, false)
        }
    };
    let (_, batch) = next.expect("a timer is under way");
    vm.complete(batch).await.expect("runs");
    let end = vm.requests().expect("it has one").next_change().and_then(|change| change.end);
    let Some((Finish::Response(response), 0)) = end else { panic!("it has no answer") };
    assert_eq!(response.body, n_pieces.to_string().into_bytes());
    // So a byte of it that stayed would have been seen.
    let memory = vm.memory().expect("has one");
    assert!(has(memory, marker.as_bytes()), "the marker is nowhere");
    runtime.renewed.keep(vm);
    has_left
}

/// Whether a marker is in a memory. Where it stands many times over, a look at every sixteenth place finds it, wherever
/// it begins; to look at all of them takes longer than all the rest.
fn has(memory: &[u8], marker: &[u8]) -> bool {
    let twice = [marker, marker].concat();
    let rotations: Vec<&[u8]> = twice.windows(marker.len()).collect();
    let may_be = |bytes: &&[u8]| marker.contains(&bytes[0]);
    memory.chunks(marker.len()).filter(may_be).any(|bytes| rotations.contains(&bytes))
        || memory.windows(marker.len()).filter(may_be).any(|bytes| bytes == marker)
}

/// What the host keeps for a VM with one request.
pub(super) fn state(marker: &str, cpu: Duration) -> State {
    let mut requests = Requests::default();
    let effects = Effects::of(policy::Tenant::without_grants(marker, "main.luau"), tokio::runtime::Handle::current());
    requests.enter(ALONE, effects, ScriptLog::discard(), None);
    let reach = Reach::Requests(requests);
    State::new(MAX_MEMORY_BYTES, CpuMeter::new(CpuBudget::new(cpu)), ScriptLog::discard(), reach)
}

const TERMS: Terms =
    Terms { request: ALONE, random_seed: 1, limits: Limits { pending_operations: 1, tasks: 1, timers: 1 } };

fn event(path: &str) -> Written {
    let request = Request { method: "GET", path, query: vec![], headers: vec![], body: Bytes::new(&[]) };
    Event::Request(request).write().expect("has a form")
}

/// A sandbox for three VMs, with what it needs.
pub(super) fn runtime() -> (Arc<Runtime>, tokio::runtime::Runtime, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("builds");
    let settings = Settings {
        instances: 3,
        workers: None,
        cache_dir: folder.path().to_owned(),
        preemption: Preemption::Safepoint,
        guest: GUEST.into(),
    };
    (Arc::new(Runtime::start(&settings, io.handle()).expect("starts")), io, folder)
}

#[test]
fn no_vm_begins_with_a_byte_of_another() {
    let n_requests: usize = std::env::var("REQUESTS").ok().and_then(|number| number.parse().ok()).unwrap_or(300);
    let (runtime, io, _folder) = runtime();
    let markers = ["AAAAaaaaAAAAaaaa", "BBBBbbbbBBBBbbbb"];
    let images = markers.map(|marker| io.block_on(load(&runtime, marker)));
    thread::scope(|scope| {
        for first in 0..N_THREADS {
            let (runtime, images, io) = (&runtime, &images, io.handle());
            scope.spawn(move || {
                for number in (first..n_requests).step_by(N_THREADS) {
                    // Both tenants on each thread; nothing, little, and more than a slot keeps of its pages.
                    let tenant = number / N_THREADS % 2;
                    let n_pieces = [0, 1, 7, 40][number / N_THREADS / 2 % 4];
                    io.block_on(Witnessed::new(request(runtime, &images[tenant], markers[tenant], n_pieces)));
                }
            });
        }
    });
}

#[test]
fn a_small_request_that_waits_has_no_vm_and_goes_on_in_another() {
    let (runtime, io, _folder) = runtime();
    let images = ["AAAAaaaaAAAAaaaa", "BBBBbbbbBBBBbbbb"].map(|marker| io.block_on(load(&runtime, marker)));
    for (image, marker) in [(&images[0], "AAAAaaaaAAAAaaaa"), (&images[1], "BBBBbbbbBBBBbbbb")].repeat(4) {
        assert!(io.block_on(Witnessed::new(request(&runtime, image, marker, 0))));
    }
    io.block_on(Witnessed::new(async {
        let state = state("a", Duration::from_secs(60));
        let mut vm = runtime.ready(&images[0], state).await.expect("there is a slot");
        vm.start(event("/0"), &TERMS).await.expect("runs");
        let left = vm.park().expect("the system lets it");
        let Parking::Left(mut parked, Some(vm)) = left else { panic!("it has stayed") };
        let next = parked.next_batch().await;
        // The one that it had is another's meanwhile.
        let mut other = runtime.resume(parked).await.expect("goes on");
        runtime.renewed.put(vm);
        let (_, batch) = next.expect("a timer is under way");
        other.complete(batch).await.expect("runs");
        let end = other.requests().expect("it has one").next_change().and_then(|change| change.end);
        let Some((Finish::Response(response), 0)) = end else { panic!("it has no answer") };
        assert_eq!(response.body, b"0");
    }));
}

#[test]
fn a_vm_is_made_as_new_after_an_end_of_its_own_and_after_no_other() {
    let (runtime, io, _folder) = runtime();
    let watcher = Watcher::start().expect("starts");
    watcher.enlist(fair_queue::Claim::default());
    let marker = "AAAAaaaaAAAAaaaa";
    let image = &io.block_on(load(&runtime, marker));
    let n_renewed = |path: &str, cpu: Duration, n_pages: u64| {
        let live = async {
            drop(runtime.renewed.take(image));
            let mut vm = runtime.ready(image, state(marker, cpu)).await.expect("there is a slot");
            vm.grow(n_pages).expect("within its limit");
            let has_ended = vm.start(event(path), &TERMS).await.is_ok();
            runtime.renewed.keep(vm);
            has_ended
        };
        let has_ended = io.block_on(Witnessed::new(live));
        let vm = runtime.renewed.take(image);
        if let Some(vm) = &vm {
            assert!(
                vm.memory().expect("has one") == memory_with(&runtime, image),
                "there is more in it than the script"
            );
        }
        (has_ended, usize::from(vm.is_some()))
    };
    let long = Duration::from_secs(60);
    assert_eq!(n_renewed("/1", long, 0), (true, 1));
    assert_eq!(n_renewed("/-1", long, 0), (true, 1), "a script's error is an end of its own");
    assert_eq!(n_renewed("/1", long, 1), (true, 0), "a memory that has grown stays so");
    assert_eq!(n_renewed("/-2", Duration::from_millis(5), 0), (false, 0), "a VM that was killed is not used again");
}

#[test]
fn a_vm_that_is_folded_has_no_memory_of_its_own_and_goes_on_as_if_it_had_not_been() {
    let (runtime, io, _folder) = runtime();
    let script = "local wait = require('std:task').wait
        local kept = { 'a' }
        return function()
            local words = { string.rep('b', 9000) }
            for round = 1, 3 do
                wait(0)
                table.insert(words, kept[1] .. round)
            end
            return table.concat(words, ' ', 2) .. #words[1]
        end";
    let image = &io.block_on(load_script(&runtime, "a", script.into()));
    io.block_on(Witnessed::new(async {
        let mut vm = runtime.ready(image, state("a", Duration::from_secs(60))).await.expect("there is a slot");
        let mut n_waiting = vm.start(event("/"), &TERMS).await.expect("runs");
        while n_waiting > 0 {
            vm.fold();
            // A second time changes nothing.
            vm.fold();
            assert!(vm.memory().expect("has one") == runtime.memories.content(), "it has pages of its own");
            let (_, batch) = vm.next_batch().await.expect("a timer is under way");
            n_waiting = vm.complete(batch).await.expect("runs");
            assert!(vm.memory().expect("has one") != runtime.memories.content());
        }
        let end = vm.requests().expect("it has one").next_change().and_then(|change| change.end);
        let Some((Finish::Response(response), 0)) = end else { panic!("it has no answer") };
        assert_eq!(String::from_utf8_lossy(&response.body), "a1 a2 a39000");
        runtime.renewed.keep(vm);
    }));
    let vm = runtime.renewed.take(image).expect("it is as new");
    assert!(vm.memory().expect("has one") == memory_with(&runtime, image), "there is more in it than the script");
}

#[test]
fn a_vm_that_is_over_while_it_is_folded_has_no_script_any_more() {
    let (runtime, io, _folder) = runtime();
    let image = &io.block_on(load(&runtime, "AAAAaaaaAAAAaaaa"));
    io.block_on(Witnessed::new(async {
        let mut vm = runtime.ready(image, state("a", Duration::from_secs(60))).await.expect("there is a slot");
        vm.fold();
        runtime.renewed.keep(vm);
        let vm = runtime.renewed.take(image).expect("it is as new");
        assert!(vm.memory().expect("has one") == runtime.memories.content());
        assert!(!vm.has(image));
        runtime.renewed.put(vm);
        let vm = runtime.ready(image, state("a", Duration::from_secs(60))).await.expect("there is a slot");
        assert!(vm.memory().expect("has one") == memory_with(&runtime, image));
    }));
}

#[test]
fn a_vm_is_given_to_who_has_the_same_script_and_to_another_with_nothing_of_it() {
    let (runtime, io, _folder) = runtime();
    let images = ["AAAAaaaaAAAAaaaa", "BBBBbbbbBBBBbbbb"].map(|marker| io.block_on(load(&runtime, marker)));
    io.block_on(Witnessed::new(async {
        let ready = async |image| {
            let state = state("a", Duration::from_secs(60));
            let vm = runtime.ready(image, state).await.expect("there is a slot");
            assert!(vm.memory().expect("has one") == memory_with(&runtime, image));
            vm
        };
        let (first, second) = (ready(&images[0]).await, ready(&images[1]).await);
        runtime.renewed.keep(first);
        runtime.renewed.keep(second);
        let taken = runtime.renewed.take(&images[0]).expect("there are two");
        assert!(taken.has(&images[0]), "not the last that came");
        runtime.renewed.put(taken);
        drop(ready(&images[0]).await);
        // The other one is left.
        runtime.renewed.keep(ready(&images[0]).await);
        let taken = runtime.renewed.take(&images[1]).expect("there is one");
        assert!(taken.has(&images[0]));
        assert!(taken.memory().expect("has one") == memory_with(&runtime, &images[0]));
    }));
}

/// Sees, when it is woken, whether anyone has a budget still.
struct Onlooker {
    cpu: Weak<CpuBudget>,
    nobody_had_it: AtomicBool,
}

impl Wake for Onlooker {
    fn wake(self: Arc<Self>) {
        self.nobody_had_it.store(self.cpu.strong_count() == 0, Ordering::Relaxed);
    }
}

#[test]
fn a_workers_place_is_free_when_nothing_of_its_vm_and_its_job_is_left() {
    let (runtime, io, _folder) = runtime();
    let image = io.block_on(load(&runtime, "AAAAaaaaAAAAaaaa"));
    let effects = Effects::of(policy::Tenant::without_grants("A", "main.luau"), io.handle().clone());
    let (place, mut gone) = io.block_on(Place::alone());
    let n_bytes = io.block_on(Arc::new(Semaphore::new(1)).acquire_owned()).expect("it is never closed");
    let cpu = CpuBudget::new(Duration::from_secs(60));
    let onlooker = Arc::new(Onlooker { cpu: Arc::downgrade(&cpu), nobody_had_it: AtomicBool::new(false) });
    let waker = Arc::clone(&onlooker).into();
    assert!(gone.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
    let job = Job {
        share: Share::new("A".into(), std::num::NonZeroU32::MIN),
        image,
        resident: None,
        event: event("/0"),
        memory_bytes: MAX_MEMORY_BYTES,
        cpu,
        wall: Duration::from_secs(60),
        log: ScriptLog::discard(),
        effects: effects.line().worker(Arc::clone(&effects.caller), (place, n_bytes)),
        detach: None,
    };
    io.block_on(runtime.run(job)).expect("it answers");
    assert!(onlooker.nobody_had_it.load(Ordering::Relaxed));
}
