//! The stacks that VMs run on. A stack that is dropped is zeroed and kept for the next VM.

use std::{io, ops::Range, sync::Arc};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
use wasmtime::{StackCreator, StackMemory};

use super::{PAGE_BYTES, System, Witness};

/// Bytes at the top of a stack that are zeroed in place. What lies below, which few calls reach, goes back to the
/// system if it was touched.
const KEEP_BYTES: usize = 16 * 1024;

/// Addresses below a stack that nobody may touch, in bytes. More than any frame of the host has at once, so that none
/// steps over it.
const GUARD_BYTES: usize = 64 * 1024;

/// Stacks that are free.
pub struct Stacks {
    free: Mutex<Vec<Stack>>,
    system: Arc<System>,
}

/// A stack, all zeros whenever it is free.
struct Stack {
    /// Its lowest address, above the guard.
    start: usize,
    n_bytes: usize,
}

/// A stack in use.
struct Lent {
    /// None once it is dropped.
    stack: Option<Stack>,
    witness: Option<Arc<Witness>>,
    home: Arc<Stacks>,
}

/// Gives the stacks of one engine.
pub struct Creator(pub Arc<Stacks>);

// === impl Stacks ===

impl Stacks {
    /// None yet.
    pub fn new(system: Arc<System>) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), system })
    }
}

// SAFETY: each stack is whole pages of zeros with a guard below, and its user's alone.
#[allow(unsafe_code)]
unsafe impl StackCreator for Creator {
    fn new_stack(&self, n_bytes: usize, _zeroed: bool) -> wasmtime::Result<Box<dyn StackMemory>> {
        let Self(stacks) = self;
        let n_bytes = n_bytes.next_multiple_of(PAGE_BYTES);
        let free = stacks.free.lock().pop().filter(|stack| stack.n_bytes == n_bytes);
        let stack = match free {
            Some(stack) => stack,
            None => Stack::new(n_bytes)?,
        };
        Ok(Box::new(Lent { stack: Some(stack), witness: Witness::current(), home: Arc::clone(stacks) }))
    }
}

// === impl Stack ===

impl Stack {
    fn new(n_bytes: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at a place of the system's choice; then all of it but the guard is opened.
        #[allow(unsafe_code)]
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), n_bytes + GUARD_BYTES, ProtFlags::empty(), flags)?.expose_provenance()
        };
        let stack = Self { start: start + GUARD_BYTES, n_bytes };
        // SAFETY: as above.
        #[allow(unsafe_code)]
        unsafe {
            mprotect(stack.at(0), n_bytes, MprotectFlags::READ | MprotectFlags::WRITE)?;
            // A large page would be zeroed whole for the few bytes that a call needs. Without them there is nothing to
            // refuse.
            let _ = madvise(stack.at(0), n_bytes, Advice::LinuxNoHugepage);
        }
        Ok(stack)
    }

    /// Makes it zeros again. `is_known`: nothing below the part that is kept was touched.
    fn reset(&mut self, is_known: bool) -> io::Result<()> {
        let n_below = self.n_bytes.saturating_sub(KEEP_BYTES);
        // SAFETY: whoever ran on the stack is gone, and the ranges are within it.
        #[allow(unsafe_code)]
        unsafe {
            self.at(n_below).cast::<u8>().write_bytes(0, self.n_bytes - n_below);
            if !is_known {
                madvise(self.at(0), n_below, Advice::LinuxDontNeed)?;
            }
        }
        Ok(())
    }

    fn at(&self, offset: usize) -> *mut std::ffi::c_void {
        std::ptr::with_exposed_provenance_mut(self.start + offset)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let start = std::ptr::with_exposed_provenance_mut(self.start - GUARD_BYTES);
        // SAFETY: the addresses are this stack's, and nobody runs on it.
        #[allow(unsafe_code)]
        let unmapped = unsafe { munmap(start, self.n_bytes + GUARD_BYTES) };
        if let Err(error) = unmapped {
            tracing::error!("addresses of a stack are lost: {error}");
        }
    }
}

// === impl Lent ===

// SAFETY: the addresses are those of the stack, which lives as long as this.
#[allow(unsafe_code)]
unsafe impl StackMemory for Lent {
    fn top(&self) -> *mut u8 {
        self.stack.as_ref().map_or(std::ptr::null_mut(), |stack| stack.at(stack.n_bytes).cast())
    }

    fn range(&self) -> Range<usize> {
        self.stack.as_ref().map_or(0..0, |stack| stack.start..stack.start + stack.n_bytes)
    }

    fn guard_range(&self) -> Range<*mut u8> {
        let start = self.stack.as_ref().map_or(0, |stack| stack.start);
        std::ptr::with_exposed_provenance_mut(start.saturating_sub(GUARD_BYTES))
            ..std::ptr::with_exposed_provenance_mut(start)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(mut stack) = self.stack.take() else { return };
        match stack.reset(self.home.system.is_known(self.witness.as_ref())) {
            Ok(()) => self.home.free.lock().push(stack),
            // It goes back to the system, whole.
            Err(error) => tracing::error!("a stack cannot be used again: {error}"),
        }
    }
}
