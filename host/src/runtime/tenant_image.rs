//! A tenant's script after loading: what its VM's memory differs in from the base image.
//!
//! Compiling a script and running its top level costs milliseconds, so it happens once. Each request
//! then starts from a fresh instance of the base image with these bytes copied in, which costs
//! microseconds. Memory is all there is to restore: between two calls the guest's stack is empty,
//! its stack pointer is back at its origin, and its table never changes.
//!
//! Only the bytes that differ are kept, not their pages: a small script changes a few words in each of twenty
//! pages, and a host holds thousands of scripts that nobody calls.

use std::{ops::Range, sync::Arc};

use wasmtime::{Error, Result};

use super::vm::Vm;

/// Bytes that are compared at once, and the least that a run begins and ends with. A processor's cache line.
const LINE_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
const WASM_PAGE_BYTES: usize = 65_536;

/// What loading a script changed.
pub struct TenantImage {
    /// Linear memory after loading, in bytes.
    memory_bytes: usize,
    difference: Difference,
}

/// The runs of bytes in which one memory differs from another.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    /// Where each run starts, and how long it is, in bytes. In order, and apart from each other.
    runs: Box<[(u32, u32)]>,
    /// What stands in all runs, one after the other.
    bytes: Box<[u8]>,
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
        let memory = loaded.memory()?;
        Ok(Self { memory_bytes: memory.len(), difference: Difference::between(base, memory, stack_bytes)? })
    }

    /// Puts the loaded script into a fresh VM.
    ///
    /// # Errors
    /// When the tenant's memory limit is below what the script holds once loaded.
    pub fn restore(&self, vm: &mut Vm) -> Result<()> {
        let missing = self.memory_bytes.saturating_sub(vm.memory()?.len());
        vm.grow(u64::try_from(missing.div_ceil(WASM_PAGE_BYTES))?)?;
        self.difference.apply(vm.memory_mut()?)
    }

    /// Bytes that each request copies.
    pub fn copied_bytes(&self) -> usize {
        self.difference.bytes.len()
    }

    /// Pages that each request has of its own because of it.
    pub fn n_pages(&self) -> usize {
        self.difference.n_pages()
    }
}

/// A tenant's loaded script, shared by its requests.
pub type SharedImage = Arc<TenantImage>;

// === impl Difference ===

impl Difference {
    /// What `after` has that `before` has not, from `start` on.
    ///
    /// # Errors
    /// For memories of 4 GiB and more.
    fn between(before: &[u8], after: &[u8], start: usize) -> Result<Self> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (index, line) in after.chunks(LINE_BYTES).enumerate().skip(start / LINE_BYTES) {
            let range = index * LINE_BYTES..index * LINE_BYTES + line.len();
            match runs.last_mut() {
                _ if is_unchanged(before, range.start, line) => {}
                Some(run) if run.end == range.start => run.end = range.end,
                _ => runs.push(range),
            }
        }
        let bytes = runs.iter().flat_map(|run| &after[run.clone()]).copied().collect();
        let compact = |run: Range<usize>| Ok((u32::try_from(run.start)?, u32::try_from(run.len())?));
        Ok(Self { runs: runs.into_iter().map(compact).collect::<Result<_>>()?, bytes })
    }

    /// Makes a memory that is as the one before into what the one after was.
    ///
    /// # Errors
    /// When a run lies outside of it; then it is spoiled.
    fn apply(&self, memory: &mut [u8]) -> Result<()> {
        let mut bytes = &*self.bytes;
        for (start, length) in &self.runs {
            let (start, length) = (usize::try_from(*start)?, usize::try_from(*length)?);
            let target = memory.get_mut(start..start + length).zip(bytes.split_at_checked(length));
            let (target, (run, rest)) =
                target.ok_or_else(|| Error::msg("a part of the tenant's image lies outside the memory"))?;
            target.copy_from_slice(run);
            bytes = rest;
        }
        Ok(())
    }

    fn n_pages(&self) -> usize {
        let mut n_pages = 0;
        let mut counted_until = 0;
        for (start, length) in &self.runs {
            let (start, end) = (*start as usize, *start as usize + *length as usize);
            let (first, last) = ((start / PAGE_BYTES).max(counted_until), end.div_ceil(PAGE_BYTES));
            n_pages += last.saturating_sub(first);
            counted_until = last;
        }
        n_pages
    }
}

/// Whether a piece of a memory is as it was. Memory that was not there before starts as zeros.
fn is_unchanged(before: &[u8], start: usize, piece: &[u8]) -> bool {
    match before.get(start..start + piece.len()) {
        Some(old) => old == piece,
        None => piece.iter().all(|byte| *byte == 0),
    }
}

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

    #[test]
    fn a_difference_makes_one_memory_into_the_other() {
        let before: Vec<u8> = (0..20_000_u32).map(|index| index.to_le_bytes()[0]).collect();
        let mut after = before.clone();
        after.resize(30_000, 0);
        for changed in [200, 4095, 4096, 19_999, 20_000, 29_999] {
            after[changed] ^= 0xff;
        }
        let difference = Difference::between(&before, &after, 128).expect("small");
        let mut memory = before;
        memory.resize(after.len(), 0);
        difference.apply(&mut memory).expect("fits");
        assert_eq!(memory, after);
        // Lines of 64 bytes: one, two that touch, one across the end of what was there before, the last one.
        assert_eq!(*difference.runs, [(192, 64), (4032, 128), (19_968, 64), (29_952, 48)]);
        assert_eq!(difference.n_pages(), 4);
    }

    #[test]
    fn what_lies_before_the_start_is_no_difference() {
        let difference = Difference::between(&[0; 256], &[1; 256], 128).expect("small");
        assert_eq!((&*difference.runs, difference.bytes.len(), difference.n_pages()), (&[(128, 128)][..], 128, 1));
        assert_eq!(Difference::between(&[1; 256], &[1; 256], 0).expect("small").n_pages(), 0);
    }

    #[test]
    fn a_memory_that_is_too_small_is_an_error() {
        let difference = Difference::between(&[], &[1; 256], 0).expect("small");
        assert!(difference.apply(&mut [0; 255]).is_err());
    }
}
