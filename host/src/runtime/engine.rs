//! The wasmtime engine: one per process, with the settings that make hostile guests safe.
//!
//! Each setting that differs from wasmtime's default has its reason beside it.

use std::{num::NonZeroUsize, sync::Arc};

use wasmtime::{Collector, Config, Engine, InstanceAllocationStrategy, Strategy};

use super::memory::{self, GC_HEAP_BYTES, Memories, Stacks};
use crate::policy::Preemption;

/// Most linear memory that one VM may have, in bytes. `memory.fill` and `memory.copy` cannot be
/// preempted, so this also bounds how long a single instruction runs (about 90 ms cold).
pub const MAX_MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// Stack of the guest's own code, in bytes. Going over it is a trap. Luau's parser stops at a depth of
/// 1,000, with an error that names the line; this is what it needs to get there.
const WASM_STACK_BYTES: usize = 1024 * 1024;

/// Stack of a fiber: the guest's part and what host functions need above it, in bytes. Overflow of
/// the host's part would abort the process, so it is never less than 1 MiB.
const FIBER_STACK_BYTES: usize = 2 * 1024 * 1024;

/// Builds the engine of the VMs, whose memories and stacks have their places in ours.
///
/// # Errors
/// When the processor lacks what the settings need.
pub fn build(memories: &Arc<Memories>, preemption: Preemption) -> wasmtime::Result<Engine> {
    let mut config = settings(preemption);
    config
        .with_host_memory(Arc::new(memory::Creator(Arc::clone(memories))))
        .with_host_stack(Arc::new(memory::StackCreator(Stacks::new(memories.system()))));
    Engine::new(&config)
}

/// Builds an engine for the guest as it was built, whose memory is filled from its own data.
///
/// # Errors
/// As [`build`].
pub fn build_plain(preemption: Preemption) -> wasmtime::Result<Engine> {
    Engine::new(&settings(preemption))
}

fn settings(preemption: Preemption) -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .allocation_strategy(InstanceAllocationStrategy::OnDemand)
        .epoch_interruption(preemption == Preemption::Epoch)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        // Defence in depth: a fiber never sees what the one before left on its stack.
        .async_stack_zeroing(true)
        // Luau's errors are C++ exceptions. They live on the GC heap, so the collector must collect:
        // with the null collector an error storm would exhaust it.
        .wasm_exceptions(true)
        .collector(Collector::DeferredReferenceCounting)
        // Their heap is small, and by its size we know it from a guest's memory.
        .gc_heap_reservation(GC_HEAP_BYTES as u64)
        .gc_heap_guard_size(0)
        .gc_heap_reservation_for_growth(0)
        .gc_heap_may_move(false)
        // Everything that the guest does not use is off.
        .wasm_threads(false)
        .shared_memory(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_stack_switching(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        .concurrency_support(false)
        // Cheap traps. Core dumps of traps are a feature that is not compiled in.
        .debug_info(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(20));
    config
}
