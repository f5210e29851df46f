//! A tenant's script after loading: the pages in which its VM differs from the base image.
//!
//! Compiling a script and running its top level costs milliseconds, so it happens once. Each request
//! then starts from a fresh instance of the base image with these pages copied in, which costs
//! microseconds. Memory is all there is to restore: between two calls the guest's stack is empty,
//! its stack pointer is back at its origin, and its table never changes.

use std::sync::Arc;

use wasmtime::{Error, Result};

use super::vm::Vm;

const PAGE_BYTES: usize = 4096;
const WASM_PAGE_BYTES: usize = 65_536;

/// What loading a script changed.
pub struct TenantImage {
    /// Linear memory after loading, in bytes.
    memory_bytes: usize,
    /// Runs of changed pages: where each starts, and its bytes.
    runs: Vec<(usize, Box<[u8]>)>,
}

impl TenantImage {
    /// Compares a VM that has loaded its script with the memory of one that has not.
    ///
    /// # Errors
    /// When the guest lacks an export.
    pub async fn capture(loaded: &mut Vm, base: &[u8]) -> Result<Self> {
        // The stack is empty between two calls: what is left in it means nothing.
        let first_page = loaded.stack_end().await? / PAGE_BYTES;
        let memory = loaded.memory()?;
        let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
        for (index, page) in memory.chunks(PAGE_BYTES).enumerate().skip(first_page) {
            let offset = index * PAGE_BYTES;
            let unchanged = match base.get(offset..offset + page.len()) {
                Some(before) => before == page,
                // Memory that the base does not have starts as zeros.
                None => page.iter().all(|byte| *byte == 0),
            };
            if unchanged {
                continue;
            }
            match runs.last_mut() {
                Some((start, bytes)) if *start + bytes.len() == offset => bytes.extend_from_slice(page),
                _ => runs.push((offset, page.to_vec())),
            }
        }
        let runs = runs.into_iter().map(|(offset, bytes)| (offset, bytes.into_boxed_slice())).collect();
        Ok(Self { memory_bytes: memory.len(), runs })
    }

    /// Puts the loaded script into a fresh VM.
    ///
    /// # Errors
    /// When the tenant's memory limit is below what the script holds once loaded.
    pub fn restore(&self, vm: &mut Vm) -> Result<()> {
        let missing = self.memory_bytes.saturating_sub(vm.memory()?.len());
        vm.grow(u64::try_from(missing.div_ceil(WASM_PAGE_BYTES))?)?;
        let memory = vm.memory_mut()?;
        for (offset, bytes) in &self.runs {
            let target = memory
                .get_mut(*offset..*offset + bytes.len())
                .ok_or_else(|| Error::msg("a page of the tenant's image lies outside the memory"))?;
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Runs of changed pages.
    pub fn n_runs(&self) -> usize {
        self.runs.len()
    }

    /// Bytes that each request copies.
    pub fn copied_bytes(&self) -> usize {
        self.runs.iter().map(|(_, bytes)| bytes.len()).sum()
    }
}

/// A tenant's loaded script, shared by its requests.
pub type SharedImage = Arc<TenantImage>;
