//! What one VM may hold: linear memory and its GC heap counted together, and tables.

use wasmtime::ResourceLimiter;

/// Most elements that the guest's tables may have together.
const MAX_TABLE_ELEMENTS: usize = 20_000;

/// Counts what a VM holds. Growth over the limit fails inside the guest, where Luau turns it into
/// a catchable "not enough memory"; it is never a trap.
#[derive(Debug)]
pub struct MemoryLimiter {
    limit_bytes: usize,
    held_bytes: usize,
}

impl MemoryLimiter {
    /// A limiter for `limit_bytes` of memory.
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, held_bytes: 0 }
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let growth = desired.saturating_sub(current);
        let held = self.held_bytes.saturating_add(growth);
        if held > self.limit_bytes {
            return Ok(false);
        }
        self.held_bytes = held;
        Ok(true)
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
    fn all_memories_of_a_vm_share_one_limit() {
        let mut limiter = MemoryLimiter::new(100);
        assert!(limiter.memory_growing(0, 60, None).expect("judges"));
        assert!(!limiter.memory_growing(0, 50, None).expect("judges"), "60 and 50 are over 100");
        assert!(limiter.memory_growing(60, 100, None).expect("judges"));
    }
}
