//! What a VM has on loan: its memories and its stack.
//!
//! They come back when the VM is gone. One whose request is over may live on for the next; then they are made as new
//! where they are, see [`super::super::renewal`].

use std::{io, sync::Arc};

use parking_lot::Mutex;
use wasmtime::LinearMemory;

use super::{Difference, GC_HEAP_BYTES, Kind, MAX_MEMORY_BYTES, Memories, Witness, slot::Slot};

/// A loan, while the VM lives.
pub trait Lease: Send + Sync {
    /// Makes it as new. Nobody may be using it. `is_certain`: what its witness says, see [`Witness::is_certain`]. Gives
    /// whether `loaded`, the script that the VM was given, is in it still, of what can hold one.
    ///
    /// # Errors
    /// When the system refuses. Then the VM must not be used again.
    fn renew(&self, is_certain: bool, loaded: Option<&Difference>) -> io::Result<bool>;

    /// Makes it as new with `loaded` in it, of what can hold a script, and gives what it had beside, from the byte
    /// `from` on. None: it cannot, or has too much; it is as it was.
    ///
    /// # Errors
    /// As [`Lease::renew`].
    fn empty(&self, is_certain: bool, loaded: &Difference, from: usize) -> io::Result<Option<Difference>>;

    /// Gives the memory that it takes back to the system, and keeps what it cannot have again. No call may be under way,
    /// and the next one comes after [`Lease::unfold`]. Whoever sees what happens to it is in doubt from now on.
    ///
    /// # Errors
    /// When the system refuses; it is as it was.
    fn fold(&self) -> io::Result<()>;

    /// Makes it what it was.
    ///
    /// # Errors
    /// None in practice. Then the VM must not be used again.
    fn unfold(&self) -> io::Result<()>;

    /// Has another witness see what happens to it, from the poll on in which this is called. None: nobody does.
    fn hand_to(&self, witness: Option<Arc<Witness>>);
}

/// Who has seen what has happened to a place since it was as new.
pub struct Seen {
    witness: Option<Arc<Witness>>,
    /// Whether an earlier witness was not certain, of a place that was not made as new since.
    was_in_doubt: bool,
}

/// A memory in its place, as wasmtime has it.
pub struct Placed(Arc<MemoryLease>);

struct MemoryLease {
    kind: Kind,
    home: Arc<Memories>,
    /// None once it has come back.
    held: Mutex<Option<Held>>,
}

struct Held {
    slot: Slot,
    seen: Seen,
    /// What was in it, while it is folded.
    folded: Option<Difference>,
}

// === impl Seen ===

impl Seen {
    /// By the witness of the VM whose future is being polled.
    pub fn from_now_on() -> Self {
        Self { witness: Witness::current(), was_in_doubt: false }
    }

    /// Whether no page can have become the place's own unseen. Only the VM's own poll can tell.
    pub fn is_certain(&self) -> bool {
        self.witness.as_ref().is_some_and(|witness| self.is_certain_if(witness.is_certain()))
    }

    /// The same, where the witness, which costs a system call, has been asked.
    pub fn is_certain_if(&self, is_certain: bool) -> bool {
        !self.was_in_doubt && self.witness.is_some() && is_certain
    }

    /// Has nobody see what happens for now. `in_doubt`: pages may be the place's own that it does not know.
    pub fn end(&mut self, in_doubt: bool) {
        self.was_in_doubt = in_doubt;
        self.witness = None;
    }

    /// Has `witness` see what happens from now on. None: all that happens is in doubt.
    pub fn begin(&mut self, witness: Option<Arc<Witness>>) {
        self.witness = witness;
    }
}

// === impl Placed ===

impl Placed {
    /// Lends `slot` to the VM that is made on this thread.
    pub fn new(slot: Slot, kind: Kind, home: &Arc<Memories>) -> Self {
        let held = Held { slot, seen: Seen::from_now_on(), folded: None };
        let lease = Arc::new(MemoryLease { kind, home: Arc::clone(home), held: Mutex::new(Some(held)) });
        Witness::note(Arc::<MemoryLease>::clone(&lease));
        Self(lease)
    }
}

// SAFETY: base and reservation are the slot's for as long as this lives; `grow_to` opens whole pages within them.
#[allow(unsafe_code)]
unsafe impl LinearMemory for Placed {
    fn byte_size(&self) -> usize {
        self.0.held.lock().as_ref().map_or(0, |held| held.slot.open_bytes())
    }

    fn byte_capacity(&self) -> usize {
        match self.0.kind {
            Kind::Guest => MAX_MEMORY_BYTES,
            Kind::Exceptions => GC_HEAP_BYTES,
        }
    }

    fn grow_to(&mut self, n_bytes: usize) -> wasmtime::Result<()> {
        if n_bytes > self.byte_capacity() {
            return Err(wasmtime::Error::msg("more than a memory can have"));
        }
        let mut held = self.0.held.lock();
        let held = held.as_mut().ok_or_else(|| wasmtime::Error::msg("a memory without a place"))?;
        Ok(held.slot.open(n_bytes)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.0.held.lock().as_ref().map_or(std::ptr::null_mut(), |held| held.slot.base())
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let MemoryLease { kind, home, held } = &*self.0;
        let Some(Held { mut slot, seen, .. }) = held.lock().take() else { return };
        let is_known = home.system.is_known(seen.is_certain());
        match slot.reset(home.origin(*kind, None), is_known, home.system.pages.as_ref()) {
            Ok(_) => home.free(*kind).lock().push(slot),
            // It goes back to the system, whole.
            Err(error) => tracing::error!("a memory cannot be used again: {error}"),
        }
    }
}

impl Lease for MemoryLease {
    fn renew(&self, is_certain: bool, loaded: Option<&Difference>) -> io::Result<bool> {
        let mut held = self.held.lock();
        let Held { slot, seen, folded } = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
        // With its pages it has given up the script. In its next life nothing of this must come back.
        let was_folded = folded.take().is_some();
        let loaded = loaded.filter(|_| !was_folded);
        let is_certain = seen.is_certain_if(is_certain);
        match self.kind {
            Kind::Guest => {
                let system = &self.home.system;
                let is_known = system.is_known(is_certain);
                let is_loaded = slot.reset(self.home.origin(self.kind, loaded), is_known, system.pages.as_ref())?;
                seen.end(false);
                Ok(is_loaded)
            }
            // wasmtime's own bookkeeping of it goes on. No guest can read it.
            Kind::Exceptions => {
                seen.end(!is_certain);
                Ok(true)
            }
        }
    }

    fn empty(&self, is_certain: bool, loaded: &Difference, from: usize) -> io::Result<Option<Difference>> {
        let mut held = self.held.lock();
        let Held { slot, seen, folded } = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
        if self.kind != Kind::Guest || folded.is_some() {
            return Ok(None);
        }
        let system = &self.home.system;
        let is_known = system.is_known(seen.is_certain_if(is_certain));
        let had = slot.empty(self.home.origin(self.kind, Some(loaded)), from, is_known, system.pages.as_ref())?;
        if had.is_some() {
            seen.end(false);
        }
        Ok(had)
    }

    fn fold(&self) -> io::Result<()> {
        let mut held = self.held.lock();
        let Held { slot, folded, .. } = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
        // That of exceptions is hardly ever used, and wasmtime may look into it at any time.
        if self.kind == Kind::Guest && folded.is_none() {
            *folded = slot.fold(self.home.content_of(self.kind), self.home.system.pages.as_ref())?;
        }
        Ok(())
    }

    fn unfold(&self) -> io::Result<()> {
        let mut held = self.held.lock();
        let Held { slot, folded, .. } = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
        folded.take().map_or(Ok(()), |difference| slot.unfold(&difference))
    }

    fn hand_to(&self, witness: Option<Arc<Witness>>) {
        if let Some(held) = self.held.lock().as_mut() {
            held.seen.begin(witness);
        }
    }
}
