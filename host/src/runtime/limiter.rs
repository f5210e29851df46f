//! What one VM may hold: linear memory, a GC heap for exceptions, and tables.
//!
//! Luau's errors are exceptions, and wasmtime keeps those on a GC heap of its own. A script that has
//! filled its memory must still be able to throw "not enough memory", so the GC heap has an allowance
//! apart from the script's limit. It is small, because an exception is collected once it is caught.

use wasmtime::ResourceLimiter;

/// Most that the GC heap may hold, in bytes. Less than any guest's linear memory from the start, so
/// that the two cannot be taken for each other.
const MAX_GC_HEAP_BYTES: usize = 512 * 1024;

/// Most elements that the guest's tables may have together.
const MAX_TABLE_ELEMENTS: usize = 20_000;

/// Counts what a VM holds. Growth over the limit fails inside the guest, where Luau turns it into
/// a catchable "not enough memory"; it is never a trap.
#[derive(Debug)]
pub struct MemoryLimiter {
    limit_bytes: usize,
}

impl MemoryLimiter {
    /// A limiter for `limit_bytes` of linear memory.
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes }
    }

    /// Whether a linear memory may have so many bytes.
    pub fn allows(&self, memory_bytes: usize) -> bool {
        memory_bytes <= self.limit_bytes
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        // wasmtime does not say which memory grows, but no linear memory is ever as small as a GC heap.
        let is_gc_heap = match current {
            0 => desired <= MAX_GC_HEAP_BYTES,
            _ => current <= MAX_GC_HEAP_BYTES,
        };
        Ok(desired <= if is_gc_heap { MAX_GC_HEAP_BYTES } else { self.limit_bytes })
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        4
    }

    fn memories(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_has_filled_its_memory_can_still_throw() {
        let mut limiter = MemoryLimiter::new(4 << 20);
        assert!(limiter.memory_growing(0, 2 << 20, None).expect("judges"), "instantiation");
        assert!(limiter.memory_growing(2 << 20, 4 << 20, None).expect("judges"));
        assert!(!limiter.memory_growing(4 << 20, 5 << 20, None).expect("judges"), "over the limit");
        assert!(limiter.memory_growing(0, 64 << 10, None).expect("judges"), "the GC heap is made");
        assert!(limiter.memory_growing(64 << 10, 512 << 10, None).expect("judges"));
        assert!(!limiter.memory_growing(512 << 10, 1 << 20, None).expect("judges"), "over its allowance");
    }
}
