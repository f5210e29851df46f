//! The stacks that VMs run on. A stack that is dropped is zeroed and kept for the next VM.

use std::{io, ops::Range, sync::Arc};

use parking_lot::Mutex;
use rustix::mm::MprotectFlags;
use wasmtime::{StackCreator, StackMemory};

use super::{Lease, PAGE_BYTES, System, Witness, addresses::Addresses, lease::Seen};

/// Bytes at the top of a stack that are zeroed in place. What lies below, which few calls reach, goes back to the
/// system if it was touched.
const KEEP_BYTES: usize = 16 * 1024;

/// Stacks that are free.
pub struct Stacks {
    free: Mutex<Vec<Stack>>,
    system: Arc<System>,
}

/// A stack, all zeros whenever it is free.
struct Stack(Addresses);

/// A stack in use, as wasmtime has it.
struct Lent(Arc<StackLease>);

struct StackLease {
    home: Arc<Stacks>,
    /// None once it has come back.
    held: Mutex<Option<(Stack, Seen)>>,
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
        let free = stacks.free.lock().pop().filter(|Stack(addresses)| addresses.n_bytes() == n_bytes);
        let stack = match free {
            Some(stack) => stack,
            None => Stack::new(n_bytes)?,
        };
        let held = Mutex::new(Some((stack, Seen::from_now_on())));
        let lease = Arc::new(StackLease { home: Arc::clone(stacks), held });
        if let Some(witness) = Witness::current() {
            witness.note(Arc::<StackLease>::clone(&lease));
        }
        Ok(Box::new(Lent(lease)))
    }
}

// === impl Stack ===

impl Stack {
    fn new(n_bytes: usize) -> io::Result<Self> {
        let mut addresses = Addresses::reserve(n_bytes)?;
        addresses.protect(0..n_bytes, MprotectFlags::READ | MprotectFlags::WRITE)?;
        Ok(Self(addresses))
    }

    /// Makes it zeros again. `is_known`: nothing below the part that is kept was touched.
    fn reset(&mut self, is_known: bool) -> io::Result<()> {
        let Self(addresses) = self;
        let n_bytes = addresses.n_bytes();
        let n_below = n_bytes.saturating_sub(KEEP_BYTES);
        // SAFETY: whoever ran on the stack is gone, and the range is within it.
        #[allow(unsafe_code)]
        unsafe {
            addresses.at(n_below).cast::<u8>().write_bytes(0, n_bytes - n_below);
        }
        if is_known { Ok(()) } else { addresses.give_back(n_below) }
    }
}

// === impl Lent ===

// SAFETY: the addresses are those of the stack, which lives as long as this.
#[allow(unsafe_code)]
unsafe impl StackMemory for Lent {
    fn top(&self) -> *mut u8 {
        self.0.look(std::ptr::null_mut(), |addresses| addresses.at(addresses.n_bytes()).cast())
    }

    fn range(&self) -> Range<usize> {
        self.0.look(0..0, |addresses| addresses.range(0..addresses.n_bytes()))
    }

    fn guard_range(&self) -> Range<*mut u8> {
        let none = std::ptr::null_mut()..std::ptr::null_mut();
        self.0.look(none, |addresses| {
            let guard = addresses.guard_before();
            guard.start.cast()..guard.end.cast()
        })
    }
}

impl StackLease {
    fn look<T>(&self, absent: T, look: impl FnOnce(&Addresses) -> T) -> T {
        self.held.lock().as_ref().map_or(absent, |(Stack(addresses), _)| look(addresses))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let StackLease { home, held } = &*self.0;
        let Some((mut stack, seen)) = held.lock().take() else { return };
        match stack.reset(home.system.is_known(&seen)) {
            Ok(()) => home.free.lock().push(stack),
            // It goes back to the system, whole.
            Err(error) => tracing::error!("a stack cannot be used again: {error}"),
        }
    }
}

impl Lease for StackLease {
    fn renew(&self, is_certain: bool) -> io::Result<()> {
        let mut held = self.held.lock();
        let (stack, seen) = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
        stack.reset(self.home.system.can_know() && seen.is_certain_if(is_certain))?;
        seen.end(false);
        Ok(())
    }

    fn hand_to(&self, witness: Option<Arc<Witness>>) {
        if let Some((_, seen)) = self.held.lock().as_mut() {
            seen.begin(witness);
        }
    }
}
