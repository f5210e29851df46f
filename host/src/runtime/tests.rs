//! What a VM begins with.
//!
//! `REQUESTS=100000 cargo test --lib no_vm_begins -- --nocapture` runs the long form.

use std::{path::Path, thread};

use neoc_abi::event::{Limits, Mode, Module, Request};

use super::*;
use crate::{capability::module::Folder, policy};

/// As many VMs as threads, so that each slot serves both tenants by turns, and a few more.
const N_THREADS: usize = 2;

/// Fills so many pieces of 256 KiB with its tenant's marker, and answers with the number.
fn script(marker: &str) -> String {
    format!(
        "return function(request)
            local kept = {{}}
            for i = 1, tonumber(string.sub(request.path, 2)) do
                kept[i] = string.rep('{marker}', 2 ^ 14) .. i
            end
            return tostring(#kept)
        end"
    )
}

async fn load(runtime: &Arc<Runtime>, marker: &str) -> TenantImage {
    let share = Share::new(marker.into(), std::num::NonZeroU32::MIN);
    let modules = Arc::new(Folder::of_script(Path::new("absent/main.luau"), None));
    let entry = Module { name: "main.luau".into(), source: script(marker).into_bytes() };
    let source = Source { entry, mode: Mode::Handler, memory_bytes: MAX_MEMORY_BYTES, modules, narrowed: vec![] };
    runtime.load(&share, source, ScriptLog::discard()).await.expect("loads")
}

/// One request in a fresh VM, whose memory is looked at before and after.
async fn request(runtime: &Runtime, image: &TenantImage, marker: &str, n_pieces: usize) {
    let budget = CpuBudget::new(Duration::from_secs(60));
    let mut requests = Requests::default();
    let effects = Effects::of(policy::Tenant::without_grants(marker, "main.luau"), tokio::runtime::Handle::current());
    requests.enter(ALONE, effects, ScriptLog::discard(), None);
    let reach = Reach::Requests(requests);
    let state = State::new(MAX_MEMORY_BYTES, CpuMeter::new(budget), ScriptLog::discard(), reach);
    let mut vm = Vm::instantiate(&runtime.guest, &runtime.preempt, state).await.expect("there is a slot");
    let base = runtime.memories.content();
    assert!(vm.memory().expect("has one") == base, "memory that is not the base image's");
    // What a script has grown into was another's before, perhaps.
    vm.grow(16 * 12).expect("within its limit");
    let grown = &vm.memory().expect("has one")[base.len()..];
    assert!(grown.iter().all(|byte| *byte == 0), "memory that does not begin as zeros");

    image.restore(&mut vm).expect("fits");
    let request =
        Request { method: "GET".into(), path: format!("/{n_pieces}"), query: vec![], headers: vec![], body: vec![] };
    let limits = Limits { pending_operations: 1, tasks: 1, timers: 1 };
    let start = Start { request: ALONE, event: Event::Request(request), random_seed: 1, limits };
    vm.start(&start).await.expect("runs");
    let end = vm.requests().expect("it has one").take_changes().pop().and_then(|change| change.end);
    let Some((Finish::Response(response), 0)) = end else { panic!("it has no answer") };
    assert_eq!(response.body, n_pieces.to_string().into_bytes());
    // So a byte of it that stayed would have been seen.
    let memory = vm.memory().expect("has one");
    assert!(memory.windows(marker.len()).any(|bytes| bytes == marker.as_bytes()), "the marker is nowhere");
}

#[test]
fn no_vm_begins_with_a_byte_of_another() {
    let n_requests: usize = std::env::var("REQUESTS").ok().and_then(|number| number.parse().ok()).unwrap_or(300);
    let folder = tempfile::tempdir().expect("a folder");
    let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("builds");
    let settings = Settings {
        instances: 3,
        workers: None,
        cache_dir: folder.path().to_owned(),
        preemption: Preemption::Safepoint,
        guest: GUEST.into(),
    };
    let runtime = Arc::new(Runtime::start(&settings, io.handle()).expect("starts"));
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
