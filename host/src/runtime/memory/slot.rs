//! One memory's place: its addresses, what of it is the slot's own, and how it becomes as new again.

use std::{io, ops::Range};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous};

use super::{
    PAGE_BYTES,
    addresses::Addresses,
    content::Content,
    difference::{Collector, Difference, LINE_BYTES, Line},
    origin::Origin,
    pagemap::{Own, PageMap},
};

/// Most bytes of its own that a slot keeps for the next VM. They are put back by copying, which takes a fifth of what
/// a page fault does.
const KEEP_BYTES: usize = 1024 * 1024;

/// A slot with more bytes of its own is not emptied for a request that waits: what is compared is to be in the
/// processor's caches still.
const EMPTY_BYTES: usize = 256 * 1024;

/// After so many uses, of which a request that waits has two, a slot gives back all that it has, so that one large
/// request does not make all later ones slow.
const N_USES: u32 = 1024;

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
    /// Runs and bytes of what was taken out of it last.
    last_emptied: (usize, usize),
}

impl Slot {
    /// Reserves the addresses. What may be touched then begins as `content`, if there is one.
    ///
    /// # Errors
    /// When the system has no addresses or no mappings left.
    pub fn reserve(shape: Shape, content: Option<&Content>) -> io::Result<Self> {
        let content_bytes = content.map_or(0, |content| content.bytes().len());
        let addresses = Addresses::reserve(shape.reserved_bytes)?;
        let slot = Self {
            addresses,
            open_bytes: content_bytes,
            content_bytes,
            own: Vec::new(),
            kept_until: 0,
            n_uses: 0,
            last_emptied: (0, 0),
        };
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

    /// Makes the memory as new. `is_known`: no page has become the slot's own since it was last asked. Gives whether the
    /// loaded script that the origin may have is in it: else it is as the content.
    ///
    /// # Errors
    /// When the system refuses; then the slot is of no use any more.
    pub fn reset(&mut self, origin: Origin<'_>, is_known: bool, pages: Option<&PageMap>) -> io::Result<bool> {
        // What an earlier VM grew into is closed now, and as it was at first, but its pages are still there.
        let reach = self.open_bytes.max(self.kept_until);
        let own = if is_known { Some(std::mem::take(&mut self.own)) } else { self.look(reach, pages)? };
        self.n_uses = self.n_uses.wrapping_add(1);
        let has_kept = match own.filter(|own| n_bytes(own) <= KEEP_BYTES) {
            Some(own) if !self.n_uses.is_multiple_of(N_USES) => {
                self.put_back(&own, origin, |_, _| ())?;
                self.keep(own);
                true
            }
            _ => {
                self.addresses.give_back(reach)?;
                self.kept_until = 0;
                self.own.clear();
                false
            }
        };
        if self.open_bytes > self.content_bytes {
            self.addresses.protect(self.content_bytes..self.open_bytes, MprotectFlags::empty())?;
            self.open_bytes = self.content_bytes;
        }
        Ok(has_kept && origin.loaded.is_some())
    }

    /// Makes the memory as new, with the script that is loaded in it, and gives what it had that this has not, from the
    /// byte `from` on. None: it has grown or has too much of its own, or the system does not say; it is as it was.
    ///
    /// # Errors
    /// When the system refuses; then the slot is of no use any more.
    pub fn empty(
        &mut self,
        origin: Origin<'_>,
        from: usize,
        is_known: bool,
        pages: Option<&PageMap>,
    ) -> io::Result<Option<Difference>> {
        if self.open_bytes > self.content_bytes {
            return Ok(None);
        }
        let reach = self.open_bytes.max(self.kept_until);
        let own = if is_known { Some(self.own.clone()) } else { self.look(reach, pages)? };
        let Some(own) = own.filter(|own| n_bytes(own) <= EMPTY_BYTES) else { return Ok(None) };
        // The next request is mostly as the last one: to make room bit by bit would copy all of it once more.
        let (n_runs, n_bytes) = self.last_emptied;
        let mut had = Collector::with_room(n_runs, n_bytes);
        self.put_back(&own, origin, |start, lines| {
            let n_before = from.saturating_sub(start).div_ceil(LINE_BYTES);
            if let Some(lines @ [_, ..]) = lines.get(n_before..) {
                had.push(start + n_before * LINE_BYTES, lines.as_flattened());
            }
        })?;
        self.keep(own);
        let had = had.finish()?;
        self.last_emptied = (had.n_runs(), had.n_bytes());
        Ok(Some(had))
    }

    /// Notes which pages are the slot's own.
    fn keep(&mut self, own: Vec<Range<usize>>) {
        self.kept_until = own.last().map_or(0, |run| run.end);
        self.own = own;
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

    /// Makes pages as new, as far as they are open. `had` is told of lines that were not, before.
    fn put_back(
        &mut self,
        own: &[Range<usize>],
        origin: Origin<'_>,
        mut had: impl FnMut(usize, &[Line]),
    ) -> io::Result<()> {
        let end = self.open_bytes;
        let mut walk = origin.walk();
        let memory = self.memory();
        for start in own.iter().flat_map(|run| (run.start..run.end.min(end)).step_by(PAGE_BYTES)) {
            let page = memory.get_mut(start..).and_then(|rest| rest.as_chunks_mut().0.first_chunk_mut());
            let page = page.ok_or_else(|| io::Error::other("a memory ends within a page"))?;
            walk.put_back(start, page, &mut had);
        }
        Ok(())
    }
}

fn n_bytes(own: &[Range<usize>]) -> usize {
    own.iter().map(Range::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { reserved_bytes: 64 * PAGE_BYTES, safepoint: None };

    fn content() -> Content {
        let bytes: Vec<u8> = (0..4 * PAGE_BYTES).map(|index| (index / PAGE_BYTES + 1).to_le_bytes()[0]).collect();
        Content::new(&bytes).expect("there is memory")
    }

    fn origin(content: &Content) -> Origin<'_> {
        Origin { content: content.bytes(), loaded: None }
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
        slot.reset(origin(&content), false, Some(&pages)).expect("resets");
        assert_eq!(slot.own, [PAGE_BYTES..3 * PAGE_BYTES, 5 * PAGE_BYTES..6 * PAGE_BYTES]);
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn a_slot_that_knows_its_own_pages_puts_them_back_unasked() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.memory()[9] = 99;
        slot.reset(origin(&content), false, Some(&pages)).expect("resets");
        slot.memory()[10] = 99;
        slot.reset(origin(&content), true, None).expect("resets");
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn pages_into_which_it_grew_are_not_forgotten_while_it_is_small() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.open(8 * PAGE_BYTES).expect("opens");
        slot.memory()[7 * PAGE_BYTES] = 99;
        slot.reset(origin(&content), false, Some(&pages)).expect("resets");
        // A small one, in doubt: what is beyond its end is still the slot's own.
        slot.reset(origin(&content), false, Some(&pages)).expect("resets");
        assert_eq!(slot.own.first(), Some(&(7 * PAGE_BYTES..8 * PAGE_BYTES)));
        slot.open(8 * PAGE_BYTES).expect("opens");
        slot.memory()[7 * PAGE_BYTES] = 98;
        slot.reset(origin(&content), true, None).expect("resets");
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn without_a_page_map_all_goes_back() {
        let content = content();
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.open(5 * PAGE_BYTES).expect("opens");
        slot.memory().fill(99);
        slot.reset(origin(&content), false, None).expect("resets");
        assert!(slot.own.is_empty() && is_new(&mut slot, &content));
    }

    #[test]
    fn a_slot_keeps_no_more_than_its_part_and_nothing_for_ever() {
        let (content, pages) = (content(), pages());
        let shape = Shape { reserved_bytes: 2 * KEEP_BYTES, safepoint: None };
        let mut slot = Slot::reserve(shape, Some(&content)).expect("has addresses");
        slot.open(KEEP_BYTES + PAGE_BYTES).expect("opens");
        slot.memory().fill(99);
        slot.reset(origin(&content), false, Some(&pages)).expect("resets");
        assert!(slot.own.is_empty(), "more than a slot keeps");
        for _ in 1..N_USES {
            slot.memory()[0] = 99;
            slot.reset(origin(&content), false, Some(&pages)).expect("resets");
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
        slot.reset(origin(&content), false, Some(&pages)).expect("resets");
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

    #[test]
    fn a_slot_with_a_loaded_script_is_emptied_of_the_rest_and_has_it_again_in_another_place() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        let mut loaded = content.bytes().to_vec();
        loaded[PAGE_BYTES..][..70].fill(50);
        let script = Difference::between(content.bytes(), &loaded, std::iter::once(0..loaded.len())).expect("small");
        script.apply(slot.memory()).expect("fits");
        for (at, byte) in [(5, 99), (PAGE_BYTES + 64, 98), (PAGE_BYTES + 127, 97), (2 * PAGE_BYTES, 96)] {
            slot.memory()[at] = byte;
        }
        let before = slot.memory().to_vec();
        let origin = Origin { content: content.bytes(), loaded: Some(&script) };
        let had = slot.empty(origin, 0, false, Some(&pages)).expect("is asked").expect("has few pages");
        assert!(slot.memory() == loaded, "what is left is the script");
        assert_eq!(had.n_bytes(), 3 * 64, "the script is no part of it");
        // In another that had the script, and is made as new with it.
        let mut other = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        script.apply(other.memory()).expect("fits");
        other.memory()[PAGE_BYTES + 3] = 95;
        assert!(other.reset(origin, false, Some(&pages)).expect("resets"));
        assert!(other.memory() == loaded);
        had.apply(other.memory()).expect("fits");
        assert!(other.memory() == before);
        script.revert(content.bytes(), slot.memory()).expect("fits");
        assert!(slot.memory() == content.bytes());
    }

    #[test]
    fn what_means_nothing_is_put_back_and_not_taken_out() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        for at in [3, 2 * PAGE_BYTES - 1, 2 * PAGE_BYTES] {
            slot.memory()[at] = 99;
        }
        let had = slot.empty(origin(&content), 2 * PAGE_BYTES, false, Some(&pages));
        let (runs, _) = had.as_ref().expect("is asked").as_ref().expect("has few pages").parts();
        assert_eq!(runs, [(2 * PAGE_BYTES as u32, 64)]);
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn of_lines_side_by_side_those_that_mean_nothing_are_not_taken_out() {
        let (content, pages) = (content(), pages());
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        slot.memory()[PAGE_BYTES..PAGE_BYTES + 3 * LINE_BYTES].fill(99);
        let had = slot.empty(origin(&content), PAGE_BYTES + LINE_BYTES, false, Some(&pages));
        let had = had.expect("is asked").expect("has few pages");
        assert_eq!(had.parts(), (&[((PAGE_BYTES + LINE_BYTES) as u32, 128)][..], &[99; 128][..]));
        assert!(is_new(&mut slot, &content));
    }

    #[test]
    fn a_slot_that_has_grown_or_has_much_of_its_own_is_not_emptied() {
        let (content, pages) = (content(), pages());
        let shape = Shape { reserved_bytes: 2 * EMPTY_BYTES, safepoint: None };
        let mut slot = Slot::reserve(shape, Some(&content)).expect("has addresses");
        slot.open(5 * PAGE_BYTES).expect("opens");
        assert_eq!(slot.empty(origin(&content), 0, false, Some(&pages)).expect("is asked"), None);
        let bytes = vec![1; EMPTY_BYTES + PAGE_BYTES];
        let large = Content::new(&bytes).expect("there is memory");
        let mut slot = Slot::reserve(shape, Some(&large)).expect("has addresses");
        slot.memory().fill(9);
        let had = slot.empty(Origin { content: large.bytes(), loaded: None }, 0, false, Some(&pages));
        assert_eq!(had.expect("is asked"), None);
        assert!(slot.memory().iter().all(|byte| *byte == 9), "it is as it was");
    }

    #[test]
    fn a_slot_that_gives_all_back_has_no_script_any_more() {
        let content = content();
        let mut slot = Slot::reserve(SHAPE, Some(&content)).expect("has addresses");
        let script = Difference::between(&[], &[5; 64], std::iter::once(0..64)).expect("small");
        script.apply(slot.memory()).expect("fits");
        let origin = Origin { content: content.bytes(), loaded: Some(&script) };
        assert!(!slot.reset(origin, false, None).expect("resets"));
        assert!(slot.memory() == content.bytes());
    }
}
