//! One memory's place: its addresses, what of it is the slot's own, and how it becomes as new again.

use std::{io, ops::Range};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous};

use super::{
    PAGE_BYTES,
    addresses::Addresses,
    content::Content,
    difference::{Difference, LINE_BYTES},
    pagemap::{Own, PageMap},
};

/// Most bytes of its own that a slot keeps for the next VM. They are put back by copying, which takes a fifth of what
/// a page fault does.
const KEEP_BYTES: usize = 1024 * 1024;

/// After so many VMs a slot gives back all that it has, so that one large request does not make all later ones slow.
const N_USES: u32 = 256;

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Addresses that belong to the memory, with wasmtime's guard behind it, in bytes.
    pub reserved_bytes: usize,
    /// Where a page of zeros is that may be read though it is no part of the memory. See [`super::super::preempt`].
    pub safepoint: Option<usize>,
}

/// A place for a memory.
#[derive(Debug)]
pub struct Slot {
    addresses: Addresses,
    /// Bytes that may be touched now, from the base on.
    open_bytes: usize,
    /// Bytes at the base that begin as the content does. What is beyond begins as zeros.
    content_bytes: usize,
    /// Pages that are the slot's own, as far as is known: offsets from the base in bytes.
    own: Vec<Range<usize>>,
    /// Where the last page lies that may be the slot's own though it is closed now, as an offset from the base.
    kept_until: usize,
    n_uses: u32,
}

impl Slot {
    /// Reserves the addresses. What may be touched then begins as `content`, if there is one.
    ///
    /// # Errors
    /// When the system has no addresses or no mappings left.
    pub fn reserve(shape: Shape, content: Option<&Content>) -> io::Result<Self> {
        let content_bytes = content.map_or(0, |content| content.bytes().len());
        let addresses = Addresses::reserve(shape.reserved_bytes)?;
        let slot =
            Self { addresses, open_bytes: content_bytes, content_bytes, own: Vec::new(), kept_until: 0, n_uses: 0 };
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        if let Some(content) = content {
            // SAFETY: the range is within the reservation just made, of which nobody knows yet.
            #[allow(unsafe_code)]
            unsafe {
                mmap(slot.addresses.at(0), content_bytes, ProtFlags::READ | ProtFlags::WRITE, flags, &content.file, 0)?;
            }
        }
        if let Some(offset) = shape.safepoint {
            // SAFETY: as above; the page lies behind all that a memory of this shape can grow to.
            #[allow(unsafe_code)]
            unsafe {
                mmap_anonymous(slot.addresses.at(offset), PAGE_BYTES, ProtFlags::READ, flags)?;
            }
        }
        Ok(slot)
    }

    /// Where the memory begins.
    pub fn base(&self) -> *mut u8 {
        self.addresses.at(0).cast()
    }

    /// Bytes that may be touched.
    pub fn open_bytes(&self) -> usize {
        self.open_bytes
    }

    /// Opens the memory up to `n_bytes`, whole pages. What is new begins as zeros.
    ///
    /// # Errors
    /// When the system has no memory for it.
    pub fn open(&mut self, n_bytes: usize) -> io::Result<()> {
        if n_bytes > self.open_bytes {
            self.addresses.protect(self.open_bytes..n_bytes, MprotectFlags::READ | MprotectFlags::WRITE)?;
            self.open_bytes = n_bytes;
        }
        Ok(())
    }

    /// Makes the memory as it was at first. `is_known`: no page has become the slot's own since it was last asked.
    ///
    /// # Errors
    /// When the system refuses; then the slot is of no use any more.
    pub fn reset(&mut self, content: Option<&Content>, is_known: bool, pages: Option<&PageMap>) -> io::Result<()> {
        // What an earlier VM grew into is closed now, and as it was at first, but its pages are still there.
        let reach = self.open_bytes.max(self.kept_until);
        let own = if is_known { Some(std::mem::take(&mut self.own)) } else { self.look(reach, pages)? };
        self.n_uses = self.n_uses.wrapping_add(1);
        let is_little = |own: &Vec<Range<usize>>| own.iter().map(Range::len).sum::<usize>() <= KEEP_BYTES;
        match own.filter(is_little).filter(|_| !self.n_uses.is_multiple_of(N_USES)) {
            Some(own) => {
                for run in &own {
                    self.put_back(run.start..run.end.min(self.open_bytes), content);
                }
                self.kept_until = own.last().map_or(0, |run| run.end);
                self.own = own;
            }
            None => {
                self.addresses.give_back(reach)?;
                self.kept_until = 0;
                self.own.clear();
            }
        }
        if self.open_bytes > self.content_bytes {
            self.addresses.protect(self.content_bytes..self.open_bytes, MprotectFlags::empty())?;
            self.open_bytes = self.content_bytes;
        }
        Ok(())
    }

    /// Gives all pages of its own back, and what stands in them that the content has not. None: it has kept them,
    /// because there are too many, or the system does not say which they are.
    ///
    /// # Errors
    /// When the system refuses; the memory is as it was.
    pub fn fold(&mut self, content: Option<&Content>, pages: Option<&PageMap>) -> io::Result<Option<Difference>> {
        let reach = self.open_bytes.max(self.kept_until);
        let Some(own) = self.look(reach, pages)? else { return Ok(None) };
        if own.iter().map(Range::len).sum::<usize>() > KEEP_BYTES {
            return Ok(None);
        }
        let end = self.open_bytes;
        let open = own.into_iter().map(|run| run.start..run.end.min(end)).filter(|run| !run.is_empty());
        let difference = Difference::between(content.map_or(&[], Content::bytes), self.memory(), open)?;
        self.addresses.give_back(reach)?;
        self.own.clear();
        self.kept_until = 0;
        Ok(Some(difference))
    }

    /// Puts back what [`Slot::fold`] has given.
    ///
    /// # Errors
    /// For what another slot gave.
    pub fn unfold(&mut self, difference: &Difference) -> io::Result<()> {
        difference.apply(self.memory())
    }

    /// All that is open. To be called while nobody else has a reference into it.
    fn memory(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes are open at the base, and the caller sees to it that nobody else looks at them.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.base(), self.open_bytes)
        }
    }

    /// The pages that are the slot's own, up to `reach`. None where there are too many, or the system does not say.
    fn look(&self, reach: usize, pages: Option<&PageMap>) -> io::Result<Option<Vec<Range<usize>>>> {
        let Some(pages) = pages else { return Ok(None) };
        match pages.own(self.addresses.range(0..reach))? {
            Own::Runs(own) => Ok(Some(own)),
            Own::Many => Ok(None),
        }
    }

    /// Makes open pages as they were at first.
    fn put_back(&mut self, run: Range<usize>, content: Option<&Content>) {
        if run.is_empty() {
            return;
        }
        let start = self.addresses.at(run.start).cast::<u8>();
        // SAFETY: the run is of pages that are open, and the memory's owner is gone: nobody else has a reference.
        #[allow(unsafe_code)]
        let target = unsafe { std::slice::from_raw_parts_mut(start, run.len()) };
        let content = content.and_then(|content| content.bytes().get(run.start..)).unwrap_or_default();
        let (copied, zeroed) = target.split_at_mut(content.len().min(run.len()));
        let (as_before, rest_as_before) = content[..copied.len()].as_chunks::<LINE_BYTES>();
        let (lines, rest) = copied.as_chunks_mut::<LINE_BYTES>();
        lines.iter_mut().zip(as_before).for_each(|(line, as_before)| put_back_line(line, as_before));
        // Pages are whole lines. To fill nothing is not for nothing: glibc does it with a masked store to where the rest
        // would be, in the next page, and the processor takes 0.2 us for one to a page that may not be written.
        if !rest.is_empty() {
            rest.copy_from_slice(rest_as_before);
        }
        let (lines, rest) = zeroed.as_chunks_mut::<LINE_BYTES>();
        lines.iter_mut().for_each(|line| put_back_line(line, &[0; LINE_BYTES]));
        if !rest.is_empty() {
            rest.fill(0);
        }
    }
}

/// A small request changes one line in five of the pages that it writes to. What is as it was need not be written.
fn put_back_line(line: &mut [u8; LINE_BYTES], as_before: &[u8; LINE_BYTES]) {
    // Without a branch or a call within: a comparison of slices stops early, which costs more than it saves.
    let differences = line.as_chunks::<8>().0.iter().zip(as_before.as_chunks::<8>().0);
    let differs =
        differences.fold(0, |seen, (now, before)| seen | (u64::from_ne_bytes(*now) ^ u64::from_ne_bytes(*before)));
    if differs != 0 {
        *line = *as_before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { reserved_bytes: 64 * PAGE_BYTES, safepoint: None };

    fn content() -> Content {
        let bytes: Vec<u8> = (0..4 * PAGE_BYTES).map(|index| (index / PAGE_BYTES + 1).to_le_bytes()[0]).collect();
        Content::new(&bytes).expect("there is memory")
    }

    fn pages() -> PageMap {
        PageMap::open().expect("Linux 6.7 or newer")
    }

    /// Whether it is as it was at first, also where it has grown.
    fn is_new(slot: &mut Slot, content: &Content) -> bool {
        let as_content = slot.memory() == content.bytes();
        slot.open(8 * PAGE_BYTES).expect("opens");
        as_content && slot.memory()[content.bytes().len()..].iter().all(|byte| *byte == 0)
    }

    #[test]
    fn a_slot_in_doubt_asks_which_pages_are_its_own_and_puts_them_back() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.open(6 * PAGE_BYTES).expect("opens");
        for page in [1, 2, 5] {
            slot.memory()[page * PAGE_BYTES + 7] = 99;
        }
        slot.reset(Some(&content), false, Some(&pages)).expect("resets");
        assert_eq!(slot.own, [PAGE_BYTES..3 * PAGE_BYTES, 5 * PAGE_BYTES..6 * PAGE_BYTES]);
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn a_slot_that_knows_its_own_pages_puts_them_back_unasked() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.memory()[9] = 99;
        slot.reset(Some(&content), false, Some(&pages)).expect("resets");
        slot.memory()[10] = 99;
        slot.reset(Some(&content), true, None).expect("resets");
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn pages_into_which_it_grew_are_not_forgotten_while_it_is_small() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.open(8 * PAGE_BYTES).expect("opens");
        slot.memory()[7 * PAGE_BYTES] = 99;
        slot.reset(Some(&content), false, Some(&pages)).expect("resets");
        // A small one, in doubt: what is beyond its end is still the slot's own.
        slot.reset(Some(&content), false, Some(&pages)).expect("resets");
        assert_eq!(slot.own.first(), Some(&(7 * PAGE_BYTES..8 * PAGE_BYTES)));
        slot.open(8 * PAGE_BYTES).expect("opens");
        slot.memory()[7 * PAGE_BYTES] = 98;
        slot.reset(Some(&content), true, None).expect("resets");
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn without_a_page_map_all_goes_back() {
        let content = content();
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.open(5 * PAGE_BYTES).expect("opens");
        slot.memory().fill(99);
        slot.reset(Some(&content), false, None).expect("resets");
        assert!(slot.own.is_empty() && is_new(&mut slot, &content));
    }

    #[test]
    fn a_slot_keeps_no_more_than_its_part_and_nothing_for_ever() {
        let (content, pages) = (content(), pages());
        let shape = Shape { reserved_bytes: 2 * KEEP_BYTES, safepoint: None };
        let mut slot = Slot::reserve(shape, Some(&content)).expect("has addresses");
        slot.open(KEEP_BYTES + PAGE_BYTES).expect("opens");
        slot.memory().fill(99);
        slot.reset(Some(&content), false, Some(&pages)).expect("resets");
        assert!(slot.own.is_empty(), "more than a slot keeps");
        for _ in 1..N_USES {
            slot.memory()[0] = 99;
            slot.reset(Some(&content), false, Some(&pages)).expect("resets");
        }
        assert!(slot.own.is_empty(), "after many uses");
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn a_folded_slot_has_no_pages_and_unfolded_it_is_as_it_was() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.open(8 * PAGE_BYTES).expect("opens");
        for (page, byte) in [(0, 0), (1, 7), (5, 9)] {
            slot.memory()[page * PAGE_BYTES + 70] = byte;
        }
        let before = slot.memory().to_vec();
        let difference = slot.fold(Some(&content), Some(&pages)).expect("folds").expect("has few pages");
        assert_eq!(slot.look(8 * PAGE_BYTES, Some(&pages)).expect("looks"), Some(vec![]));
        slot.unfold(&difference).expect("fits");
        assert!(slot.memory() == before);
        slot.reset(Some(&content), false, Some(&pages)).expect("resets");
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn a_slot_of_which_nothing_is_known_is_not_folded() {
        let content = content();
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.memory()[0] = 99;
        assert_eq!(slot.fold(Some(&content), None).expect("is asked"), None);
        assert_eq!(slot.memory()[0], 99);
    }

    #[test]
    fn a_page_that_was_only_read_is_not_a_slots_own() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.open(8 * PAGE_BYTES).expect("opens");
        assert_eq!(slot.memory().iter().filter(|byte| **byte == 0).count(), 4 * PAGE_BYTES);
        assert_eq!(slot.look(8 * PAGE_BYTES, Some(&pages)).expect("looks"), Some(vec![]));
    }
}
