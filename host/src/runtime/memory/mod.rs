//! The VMs' linear memories: a place for each, with the base image in it, made as new for each request.
//!
//! wasmtime's own pool asks the kernel after each VM which of its pages were written. That was a third of what a small
//! request cost, and nearly always it brought to light what was known: the same pages as after the VM before. So the
//! pool is ours: a slot knows the pages that are its own, and asks only where there was a page fault, see [`faults`].
//!
//! | module | holds |
//! |---|---|
//! | [`content`] | what a memory begins with |
//! | [`difference`] | in what another differs from it |
//! | [`origin`] | what it is when it is as new: without a script in it, or with a tenant's |
//! | [`slot`] | the place of one memory |
//! | [`lease`] | what a VM has on loan: made as new when its request is over, and when it is gone |
//! | [`faults`] | whether a slot can have pages of its own that it does not know |
//! | [`pagemap`] | which they are |
//! | [`stack`] | the stacks that VMs run on, kept in the same way |
//! | [`addresses`] | what slots and stacks lie in |
//!
//! # Why no VM sees a byte of another
//!
//! 1. A slot's page is either the content's, which nobody can write, or a copy of the slot's own. Only a write makes
//!    the one into the other, and the first write to a page is a page fault of the thread that writes. The kernel makes
//!    pages by itself only where it puts large ones together, which [`addresses`] forbids.
//! 2. All threads that write to a VM's memory do so within a poll of its future, where their faults are counted; or
//!    they say that there is doubt before they write, as the watcher does.
//! 3. So either all pages that are the slot's own are on its list, or it is in doubt; then it asks the kernel, or gives
//!    all of them back. Each page on the list is put back before the slot is free again, or its VM as new.
//!
//! As new is a memory with the content, or with the lines in it that a tenant's script has changed while it was loaded.
//! One that was the latter's gets the content's lines back before another script is put into it.
//!
//! A VM that waits for long is folded: its slot gives back all its pages and keeps the lines that differ from the
//! content, until the next call into the VM. Only that VM's own bytes are ever written there.
//!
//! Where the system counts no faults, every slot is always in doubt. Where it cannot be asked, or swaps, a slot gives
//! back all its pages each time.

mod addresses;
mod content;
mod difference;
mod faults;
mod lease;
mod origin;
mod pagemap;
mod slot;
mod stack;

use std::{
    io,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

pub use self::{
    content::Content,
    difference::{Difference, LINE_BYTES, is_unchanged},
    faults::{Witness, Witnessed},
    lease::Lease,
    stack::{Creator as StackCreator, Stacks},
};
use self::{
    lease::Placed,
    origin::Origin,
    pagemap::PageMap,
    slot::{Shape, Slot},
};
use super::{engine::MAX_MEMORY_BYTES, safepoint};

/// Bytes that have their own access rights.
pub const PAGE_BYTES: usize = 4096;

/// Bytes that WebAssembly counts and grows a memory in.
pub const WASM_PAGE_BYTES: usize = 64 * 1024;

/// Addresses of a heap for exceptions, in bytes. More than a VM may have of it.
pub const GC_HEAP_BYTES: usize = 1024 * 1024;

/// The places of all VMs' memories.
pub struct Memories {
    /// Set once the guest is compiled, before the first VM.
    content: OnceLock<Content>,
    /// Free places. The last that became free is the next to be used: its pages are in the processor's caches.
    guests: Mutex<Vec<Slot>>,
    exceptions: Mutex<Vec<Slot>>,
    /// Whether a page of zeros lies behind each guest's memory; see [`safepoint`].
    has_safepoints: bool,
    system: Arc<System>,
}

/// How pages are told from each other.
pub struct System {
    /// None where the kernel does not say, or must not be believed.
    pages: Option<PageMap>,
    faults_are_counted: bool,
}

/// What a memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The guest's own, which begins as the base image.
    Guest,
    /// Where wasmtime keeps exceptions. It begins empty.
    Exceptions,
}

// === impl System ===

impl System {
    /// Finds out what this one can do.
    pub fn ask() -> Arc<Self> {
        let swaps = swap_is_on();
        if swaps {
            tracing::warn!("swap is on: memories are made new the slow way, because the fast one is not safe with it");
        }
        Arc::new(Self { pages: PageMap::open().filter(|_| !swaps), faults_are_counted: faults::are_counted() })
    }

    /// Whether no page can have become a place's own unseen, if those who saw what happened to it are certain.
    fn is_known(&self, is_certain: bool) -> bool {
        self.faults_are_counted && self.pages.is_some() && is_certain
    }
}

/// Whether the machine swaps. Unknown counts as yes.
fn swap_is_on() -> bool {
    // The first line of the table is its heading.
    std::fs::read_to_string("/proc/swaps").map_or(true, |table| table.lines().count() > 1)
}

// === impl Memories ===

impl Memories {
    /// Places for memories that are still to be filled, see [`Memories::fill`].
    pub fn new(has_safepoints: bool) -> Arc<Self> {
        Arc::new(Self {
            content: OnceLock::new(),
            guests: Mutex::default(),
            exceptions: Mutex::default(),
            has_safepoints,
            system: System::ask(),
        })
    }

    /// Says what guests' memories begin with.
    pub fn fill(&self, content: Content) {
        // A second time changes nothing: there is one base image.
        let _ = self.content.set(content);
    }

    /// What guests' memories begin with.
    pub fn content(&self) -> &[u8] {
        self.content.get().map_or(&[], Content::bytes)
    }

    /// What the system can do.
    pub fn system(&self) -> Arc<System> {
        Arc::clone(&self.system)
    }

    fn place(self: &Arc<Self>, kind: Kind, shape: Shape, n_bytes: usize) -> io::Result<Placed> {
        let free = self.free(kind).lock().pop();
        let mut slot = match free {
            Some(slot) => slot,
            None => Slot::reserve(shape, self.content_of(kind))?,
        };
        slot.open(n_bytes)?;
        Ok(Placed::new(slot, kind, self))
    }

    /// What a memory begins with. None: zeros.
    fn content_of(&self, kind: Kind) -> Option<&Content> {
        self.content.get().filter(|_| kind == Kind::Guest)
    }

    /// What it is when it is as new, with a script in it or without.
    fn origin<'a>(&'a self, kind: Kind, loaded: Option<&'a Difference>) -> Origin<'a> {
        match kind {
            Kind::Guest => Origin { content: self.content(), loaded },
            Kind::Exceptions => Origin::default(),
        }
    }

    fn free(&self, kind: Kind) -> &Mutex<Vec<Slot>> {
        match kind {
            Kind::Guest => &self.guests,
            Kind::Exceptions => &self.exceptions,
        }
    }
}

/// Gives the memories of one engine.
pub struct Creator(pub Arc<Memories>);

// SAFETY: each memory has `reserved` addresses and `guard` more to itself, see `Slot::reserve`; what is not open cannot
// be touched, apart from the safepoint's page of zeros, which is behind the most that a memory can have. It begins as
// zeros for a module without data, which is what the compiled guest is; the base image's bytes stand for its data.
#[allow(unsafe_code)]
unsafe impl MemoryCreator for Creator {
    fn new_memory(
        &self,
        _ty: MemoryType,
        minimum: usize,
        _maximum: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let Self(memories) = self;
        let reserved = reserved.ok_or("a memory without a reservation")?;
        let kind = if reserved == GC_HEAP_BYTES { Kind::Exceptions } else { Kind::Guest };
        let is_base = minimum == memories.content().len() && minimum <= MAX_MEMORY_BYTES;
        if kind == Kind::Guest && !is_base {
            return Err(format!("a memory of {minimum} bytes is not the base image's"));
        }
        let safepoint = Some(safepoint::ADDRESS as usize).filter(|_| memories.has_safepoints && kind == Kind::Guest);
        let shape = Shape { reserved_bytes: reserved + guard, safepoint };
        let placed = memories.place(kind, shape, minimum).map_err(|error| format!("no place for a memory: {error}"))?;
        Ok(Box::new(placed))
    }
}
