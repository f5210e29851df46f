//! The wasmtime engine: one per process, with the settings that make hostile guests safe.
//!
//! Each setting that differs from wasmtime's default has its reason beside it.

use std::num::NonZeroUsize;

use wasmtime::{Collector, Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Strategy};

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

/// Most elements in the guest's function table.
const MAX_TABLE_ELEMENTS: usize = 20_000;

/// Linear memory and table bytes that a slot keeps resident between guests, in bytes. They are
/// reset by copying or zeroing, which is cheaper than page faults for the pages a small request touches.
const KEEP_RESIDENT_BYTES: usize = 8 * 1024 * 1024;

/// Bytes at the top of a fiber's stack that are zeroed in place between guests; the rest, which few
/// calls reach, goes back to the system.
const KEEP_STACK_BYTES: usize = 16 * 1024;

/// Builds the engine with room for `instances` live VMs.
///
/// # Errors
/// When the machine cannot reserve the address space, or its processor lacks what the settings need.
pub fn build(instances: u32, preemption: Preemption) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances)))
        .epoch_interruption(preemption == Preemption::Epoch)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        // Defence in depth: a fiber never sees what the one before left on its stack.
        .async_stack_zeroing(true)
        // Luau's errors are C++ exceptions. They live on the GC heap, so the collector must collect:
        // with the null collector an error storm would exhaust it.
        .wasm_exceptions(true)
        .collector(Collector::DeferredReferenceCounting)
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
    Engine::new(&config)
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_core_instances(instances)
        // A GC heap takes a memory slot too.
        .total_memories(instances.saturating_mul(2))
        .total_gc_heaps(instances)
        .total_tables(instances)
        .total_stacks(instances)
        .max_memories_per_module(1)
        .max_tables_per_module(4)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_memory_size(MAX_MEMORY_BYTES)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(64 * 1024)
        .async_stack_keep_resident(KEEP_STACK_BYTES)
        .decommit_batch_size(1);
    if swap_is_on() {
        // A swapped-out page looks untouched to the scan, and would be handed to the next tenant as it is.
        tracing::warn!("swap is on: instances are reset the slow way, because the fast one is not safe with it");
    } else {
        pool.pagemap_scan(Enabled::Auto);
    }
    pool
}

/// Whether the machine swaps. Unknown counts as yes.
fn swap_is_on() -> bool {
    // The first line of the table is its heading.
    std::fs::read_to_string("/proc/swaps").map_or(true, |table| table.lines().count() > 1)
}
