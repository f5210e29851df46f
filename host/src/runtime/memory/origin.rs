//! What a memory is when it is as new.

use super::{
    Difference, PAGE_BYTES,
    difference::{LINE_BYTES, Line},
};

/// A page, by lines: as many as a word has bits.
pub type Page = [Line; PAGE_BYTES / LINE_BYTES];

const _: () = assert!(PAGE_BYTES / LINE_BYTES == u64::BITS as usize);

const ZEROS: &Page = &[[0; LINE_BYTES]; PAGE_BYTES / LINE_BYTES];

/// What a memory begins with, whole pages, and in what a loaded script differs from it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin<'a> {
    /// What is beyond begins as zeros.
    pub content: &'a [u8],
    /// None where there is no script in it.
    pub loaded: Option<&'a Difference>,
}

/// Goes through the pages of an origin, from the first to the last.
pub struct Walk<'a> {
    content: &'a [u8],
    runs: &'a [(u32, u32)],
    /// What stands in the runs, from the next one on.
    bytes: &'a [u8],
}

/// The lines of a page that a script has changed, the first in the lowest bit.
struct Loaded {
    /// All of them.
    lines: u64,
    /// Those that are not as the script left them.
    changed: u64,
}

impl<'a> Origin<'a> {
    /// Begins to go through it.
    pub fn walk(self) -> Walk<'a> {
        let (runs, bytes) = self.loaded.map_or((&[][..], &[][..]), Difference::parts);
        Walk { content: self.content, runs, bytes }
    }
}

impl<'a> Walk<'a> {
    /// Makes a page as new that lies at `start`, an offset in bytes behind those that were asked for before. `had` is
    /// told of lines side by side that were not as new, before, and of the offset where they begin.
    pub fn put_back(&mut self, start: usize, page: &mut Page, had: impl FnMut(usize, &[Line])) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function is compiled for.
            #[allow(unsafe_code)]
            return unsafe { self.put_back_wide(start, page, had) };
        }
        self.put_back_anywhere(start, page, had);
    }

    /// [`Walk::put_back_anywhere`] in instructions that not every processor has: half as many.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn put_back_wide(&mut self, start: usize, page: &mut Page, had: impl FnMut(usize, &[Line])) {
        self.put_back_anywhere(start, page, had);
    }

    #[inline(always)]
    fn put_back_anywhere(&mut self, start: usize, page: &mut Page, mut had: impl FnMut(usize, &[Line])) {
        let content = self.content.get(start..).and_then(|rest| rest.as_chunks().0.first_chunk()).unwrap_or(ZEROS);
        // First all lines, without a branch: most are as they were, and where the others are cannot be foreseen.
        let Loaded { lines, changed } = self.loaded(start, page);
        let mut left = differing(page, content) & !lines | changed;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let end = first + (left >> first).trailing_ones() as usize;
            left &= u64::MAX.unbounded_shl(end as u32);
            had(start + first * LINE_BYTES, &page[first..end]);
            for index in first..end {
                page[index] = match lines >> index & 1 {
                    0 => content[index],
                    _ => *self.loaded_line(start + index * LINE_BYTES),
                };
            }
        }
    }

    /// What the script has to do with the page at `start`.
    #[inline(always)]
    fn loaded(&mut self, start: usize, page: &Page) -> Loaded {
        self.skip_to(start);
        let (mut loaded, mut bytes) = (Loaded { lines: 0, changed: 0 }, self.bytes);
        for (run_start, length) in self.runs {
            let (run_start, length) = (*run_start as usize, *length as usize);
            if run_start >= start + PAGE_BYTES {
                break;
            }
            let (run, rest) = bytes.split_at_checked(length).unwrap_or_default();
            let run = run.get(start.saturating_sub(run_start)..).unwrap_or_default().as_chunks().0;
            let first = run_start.saturating_sub(start) / LINE_BYTES;
            for (index, (line, new)) in (first..).zip(page[first..].iter().zip(run)) {
                loaded.lines |= 1 << index;
                loaded.changed |= u64::from(differs(line, new)) << index;
            }
            bytes = rest;
        }
        loaded
    }

    /// The line at `at`, which the script has changed.
    fn loaded_line(&mut self, at: usize) -> &'a Line {
        self.skip_to(at);
        let skipped = self.runs.first().map_or(0, |(start, _)| at - *start as usize);
        // It is there: runs are whole lines, and `loaded` has found one that has this.
        self.bytes.get(skipped..).and_then(<[u8]>::first_chunk).unwrap_or(&ZEROS[0])
    }

    /// Leaves behind the runs that end at `at` or before.
    fn skip_to(&mut self, at: usize) {
        while let Some(((start, length), rest)) = self.runs.split_first()
            && *start as usize + *length as usize <= at
        {
            self.runs = rest;
            self.bytes = self.bytes.get(*length as usize..).unwrap_or_default();
        }
    }
}

/// Which lines differ, the first in the lowest bit.
#[inline(always)]
fn differing(page: &Page, other: &Page) -> u64 {
    let lines = page.iter().zip(other).enumerate();
    lines.fold(0, |seen, (index, (line, other))| seen | u64::from(differs(line, other)) << index)
}

/// Whether two lines differ. By bytes and without a branch, which the compiler makes a few wide instructions of: words
/// stay words, and a comparison of slices is a call.
#[inline(always)]
fn differs(line: &Line, other: &Line) -> bool {
    line.iter().zip(other).fold(0, |seen, (now, before)| seen | (now ^ before)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_PAGES: usize = 4;

    /// Puts back the pages of `memory` in turn, and gives where lines were not as new.
    fn put_back(origin: Origin<'_>, memory: &mut [u8], pages: &[usize]) -> Vec<usize> {
        let (mut walk, mut had) = (origin.walk(), Vec::new());
        for start in pages.iter().map(|page| page * PAGE_BYTES) {
            let page = memory[start..].as_chunks_mut().0.first_chunk_mut().expect("a page");
            walk.put_back(start, page, |at, lines| had.extend((at..).step_by(LINE_BYTES).take(lines.len())));
        }
        had
    }

    /// Content of two pages, and what a script has made of it, in four.
    fn origin() -> (Vec<u8>, Vec<u8>, Difference) {
        let content = vec![7; 2 * PAGE_BYTES];
        let mut loaded = content.clone();
        loaded.resize(N_PAGES * PAGE_BYTES, 0);
        // At both ends of a page, across pages, a whole page's last line, beyond the content.
        for line in [0, 5, 6, 62, 63, 64, 65, 127, 128, 200] {
            loaded[line * LINE_BYTES + 3] = u8::try_from(line + 10).expect("small");
        }
        let difference = Difference::between(&content, &loaded, std::iter::once(0..loaded.len())).expect("small");
        (content, loaded, difference)
    }

    #[test]
    fn pages_are_as_the_script_left_them_and_what_was_not_is_told() {
        let (content, loaded, difference) = origin();
        let origin = Origin { content: &content, loaded: Some(&difference) };
        let mut memory = loaded.clone();
        assert_eq!(put_back(origin, &mut memory, &[0, 1, 2, 3]), Vec::<usize>::new());
        // In the content, in the script, back to what the content has, in zeros.
        let changed = [(64, 1), (5 * 64, 2), (63 * 64 + 3, 7), (128 * 64 + 1, 3), (255 * 64, 4)];
        for (at, byte) in changed {
            memory[at] = byte;
        }
        assert_eq!(put_back(origin, &mut memory, &[0, 1, 2, 3]), changed.map(|(at, _)| at / 64 * 64));
        assert!(memory == loaded);
        // Pages may be left out.
        memory[3 * PAGE_BYTES + 9] = 1;
        assert_eq!(put_back(origin, &mut memory, &[0, 3]), [3 * PAGE_BYTES]);
        assert!(memory == loaded);
    }

    #[test]
    fn a_run_of_many_pages_is_whole() {
        let loaded: Vec<u8> = (0..3 * PAGE_BYTES).map(|at| (at / 7).to_le_bytes()[0] | 1).collect();
        let difference = Difference::between(&[], &loaded, std::iter::once(0..loaded.len())).expect("small");
        let mut memory = vec![0; 3 * PAGE_BYTES];
        let had = put_back(Origin { content: &[], loaded: Some(&difference) }, &mut memory, &[0, 1, 2]);
        assert_eq!(had.len(), 3 * 64);
        assert!(memory == loaded);
    }

    #[test]
    fn without_a_script_pages_are_the_content_and_zeros() {
        let (content, loaded, _) = origin();
        let mut memory = loaded;
        put_back(Origin { content: &content, loaded: None }, &mut memory, &[0, 1, 2, 3]);
        assert!(memory[..content.len()] == content && memory[content.len()..].iter().all(|byte| *byte == 0));
    }
}
