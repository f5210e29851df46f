//! The bytes in which one memory differs from another.
//!
//! Only the bytes that differ are kept, not their pages: a small script changes a few words in each of twenty pages,
//! and a host holds thousands of scripts that nobody calls.

use std::{io, ops::Range};

use super::PAGE_BYTES;

/// Bytes that are compared at once, and the least that a run begins and ends with. A processor's cache line.
pub const LINE_BYTES: usize = 64;

/// What is compared at once.
pub type Line = [u8; LINE_BYTES];

/// The runs of bytes in which one memory differs from another.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where each run starts, and how long it is, in bytes. In order, and apart from each other.
    runs: Box<[(u32, u32)]>,
    /// What stands in all runs, one after the other.
    bytes: Box<[u8]>,
}

// === impl Difference ===

impl Difference {
    /// What `after` has that `before` has not, in these ranges of whole lines, which are in order.
    ///
    /// # Errors
    /// For memories of 4 GiB and more.
    pub fn between(before: &[u8], after: &[u8], within: impl IntoIterator<Item = Range<usize>>) -> io::Result<Self> {
        let mut collector = Collector::default();
        for range in within {
            let start = range.start;
            let lines = after.get(range).unwrap_or_default().chunks(LINE_BYTES).enumerate();
            let lines = lines.map(|(index, line)| (start + index * LINE_BYTES, line));
            let changed = lines.filter(|(start, line)| !is_unchanged(before, *start, line));
            changed.for_each(|(start, line)| collector.push(start, line));
        }
        collector.finish()
    }

    /// Makes a memory that is as the one before into what the one after was.
    ///
    /// # Errors
    /// When a run lies outside of it; then it is spoiled.
    pub fn apply(&self, memory: &mut [u8]) -> io::Result<()> {
        let mut bytes = &*self.bytes;
        for (start, length) in &self.runs {
            let (start, length) = (*start as usize, *length as usize);
            let target = memory.get_mut(start..start + length).zip(bytes.split_at_checked(length));
            let (target, (run, rest)) = target.ok_or_else(|| io::Error::other("a run lies outside of the memory"))?;
            target.copy_from_slice(run);
            bytes = rest;
        }
        Ok(())
    }

    /// Makes what [`Difference::apply`] has made into what it was before.
    ///
    /// # Errors
    /// As there.
    pub fn revert(&self, before: &[u8], memory: &mut [u8]) -> io::Result<()> {
        for (start, length) in &self.runs {
            let range = *start as usize..*start as usize + *length as usize;
            let target = memory.get_mut(range.clone());
            let target = target.ok_or_else(|| io::Error::other("a run lies outside of the memory"))?;
            match before.get(range) {
                Some(before) => target.copy_from_slice(before),
                None => target.fill(0),
            }
        }
        Ok(())
    }

    /// Where each run starts and how long it is, in bytes, and what stands in all of them, one after the other.
    pub fn parts(&self) -> (&[(u32, u32)], &[u8]) {
        (&self.runs, &self.bytes)
    }

    /// How many runs there are.
    pub fn n_runs(&self) -> usize {
        self.runs.len()
    }

    /// Bytes in all runs.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Pages in which there are runs.
    pub fn n_pages(&self) -> usize {
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

/// Collects what differs, in order.
#[derive(Default)]
pub struct Collector {
    runs: Vec<Range<usize>>,
    bytes: Vec<u8>,
}

impl Collector {
    /// With room for so much, more to come.
    pub fn with_room(n_runs: usize, n_bytes: usize) -> Self {
        Self { runs: Vec::with_capacity(n_runs), bytes: Vec::with_capacity(n_bytes) }
    }

    /// Adds a piece that starts at `start`, an offset in bytes.
    pub fn push(&mut self, start: usize, piece: &[u8]) {
        let end = start + piece.len();
        match self.runs.last_mut() {
            Some(run) if run.end == start => run.end = end,
            _ => self.runs.push(start..end),
        }
        self.bytes.extend_from_slice(piece);
    }

    /// All of it, as large as it is: thousands of these are kept.
    ///
    /// # Errors
    /// For memories of 4 GiB and more.
    pub fn finish(self) -> io::Result<Difference> {
        if self.runs.last().is_some_and(|last| u32::try_from(last.end).is_err()) {
            return Err(io::Error::other("more than 4 GiB of memory"));
        }
        // None is cut off: they are in order.
        let runs = self.runs.iter().map(|run| (run.start as u32, run.len() as u32)).collect();
        Ok(Difference { runs, bytes: self.bytes.into() })
    }
}

/// Whether a piece of a memory is as it was. Memory that was not there before starts as zeros.
pub fn is_unchanged(before: &[u8], start: usize, piece: &[u8]) -> bool {
    match before.get(start..start + piece.len()) {
        Some(old) => old == piece,
        None => piece.iter().all(|byte| *byte == 0),
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use super::*;

    #[test]
    fn a_difference_makes_one_memory_into_the_other() {
        let before: Vec<u8> = (0..20_000_u32).map(|index| index.to_le_bytes()[0]).collect();
        let mut after = before.clone();
        after.resize(30_000, 0);
        for changed in [200, 4095, 4096, 19_999, 20_000, 29_999] {
            after[changed] ^= 0xff;
        }
        let difference = Difference::between(&before, &after, once(128..30_000)).expect("small");
        let mut memory = before;
        memory.resize(after.len(), 0);
        difference.apply(&mut memory).expect("fits");
        assert_eq!(memory, after);
        // Lines of 64 bytes: one, two that touch, one across the end of what was there before, the last one.
        assert_eq!(*difference.runs, [(192, 64), (4032, 128), (19_968, 64), (29_952, 48)]);
        assert_eq!((difference.n_pages(), difference.n_bytes()), (4, 304));
    }

    #[test]
    fn what_lies_outside_of_the_ranges_is_no_difference() {
        let difference = Difference::between(&[0; 512], &[1; 512], [64..128, 128..192, 448..512]).expect("small");
        assert_eq!(*difference.runs, [(64, 128), (448, 64)]);
        assert_eq!(Difference::between(&[1; 256], &[1; 256], once(0..256)).expect("small").n_pages(), 0);
    }

    #[test]
    fn a_memory_that_is_too_small_is_an_error() {
        let difference = Difference::between(&[], &[1; 256], once(0..256)).expect("small");
        assert!(difference.apply(&mut [0; 255]).is_err());
    }
}
