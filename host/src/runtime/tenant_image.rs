//! A tenant's script after loading: what its VM's memory differs in from the base image.
//!
//! Compiling a script and running its top level costs milliseconds, so it happens once. Each request
//! then starts from an instance of the base image that has these bytes, or has them copied in, which
//! costs microseconds. Memory is all there is to restore: between two calls the guest's stack is empty,
//! its stack pointer is back at its origin, and its table never changes.

use std::{iter, sync::Arc};

use wasmtime::Result;

use super::{
    memory::{Difference, LINE_BYTES, PAGE_BYTES, WASM_PAGE_BYTES, is_unchanged},
    vm::Vm,
};

/// What loading a script changed.
pub struct TenantImage {
    /// Linear memory after loading, in bytes.
    memory_bytes: usize,
    stack_bytes: usize,
    difference: Difference,
}

// === impl TenantImage ===

impl TenantImage {
    /// Compares a VM that has loaded its script with the memory of one that has not.
    ///
    /// # Errors
    /// When the guest lacks an export.
    pub async fn capture(loaded: &mut Vm, base: &[u8]) -> Result<Self> {
        // The stack is empty between two calls: what is left in it means nothing.
        let stack_bytes = loaded.stack_end().await?;
        // In whole lines, as all differences are.
        let stack_bytes = stack_bytes - stack_bytes % LINE_BYTES;
        let memory = loaded.memory()?;
        let difference = Difference::between(base, memory, iter::once(stack_bytes..memory.len()))?;
        Ok(Self { memory_bytes: memory.len(), stack_bytes, difference })
    }

    /// Puts the loaded script into a fresh VM.
    ///
    /// # Errors
    /// When the tenant's memory limit is below what the script holds once loaded.
    pub fn restore(&self, vm: &mut Vm) -> Result<()> {
        let missing = self.memory_bytes.saturating_sub(vm.memory()?.len());
        vm.grow(u64::try_from(missing.div_ceil(WASM_PAGE_BYTES))?)?;
        Ok(self.difference.apply(vm.memory_mut()?)?)
    }

    /// In what a VM with the script differs from one without, in its memory.
    pub fn difference(&self) -> &Difference {
        &self.difference
    }

    /// Where the guest's stack ends, in whole lines; it begins at 0. What is left in it between two calls means nothing.
    pub fn stack_bytes(&self) -> usize {
        self.stack_bytes
    }

    /// Bytes that each request copies.
    pub fn copied_bytes(&self) -> usize {
        self.difference.n_bytes()
    }

    /// Pages that each request has of its own because of it.
    pub fn n_pages(&self) -> usize {
        self.difference.n_pages()
    }
}

/// A tenant's loaded script, shared by its requests.
pub type SharedImage = Arc<TenantImage>;

/// What a slot has to put back when its VM is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirty {
    /// Pages that differ from the base image.
    pub n_pages: usize,
    /// Runs of such pages side by side. Over 32 of them the slot gives the rest of its memory back to the system,
    /// which costs page faults later.
    pub n_regions: usize,
}

impl Dirty {
    /// Compares a VM's memory with the base image. Takes about as long as the request did.
    pub fn between(base: &[u8], memory: &[u8]) -> Self {
        let (mut n_pages, mut n_regions, mut was_dirty) = (0, 0, false);
        for (index, page) in memory.chunks(PAGE_BYTES).enumerate() {
            let is_dirty = !is_unchanged(base, index * PAGE_BYTES, page);
            n_pages += usize::from(is_dirty);
            n_regions += usize::from(is_dirty && !was_dirty);
            was_dirty = is_dirty;
        }
        Self { n_pages, n_regions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_pages_side_by_side_are_one_region() {
        let base = vec![7; 4 * PAGE_BYTES];
        let mut memory = base.clone();
        memory.resize(6 * PAGE_BYTES, 0);
        assert_eq!(Dirty::between(&base, &memory), Dirty { n_pages: 0, n_regions: 0 });
        for page in [0, 2, 3, 5] {
            memory[page * PAGE_BYTES + 1] ^= 1;
        }
        assert_eq!(Dirty::between(&base, &memory), Dirty { n_pages: 4, n_regions: 3 });
    }
}
