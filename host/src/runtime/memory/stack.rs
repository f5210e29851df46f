//! The stacks that VMs run on. A stack that comes back is zeroed and kept for the next VM.

use std::{io, ops::Range, sync::Arc};

use parking_lot::Mutex;
use rustix::mm::MprotectFlags;
use wasmtime::{StackCreator, StackMemory};

use super::{
    Difference, Lease, PAGE_BYTES, System, Witness,
    addresses::Addresses,
    lease::Seen,
    pagemap::{Own, PageMap},
};

/// Most bytes of a stack that are kept and zeroed in place. What lies below, which few calls reach, goes back to the
/// system.
const KEEP_BYTES: usize = 64 * 1024;

/// Stacks that are free.
pub struct Stacks {
    free: Mutex<Vec<Stack>>,
    system: Arc<System>,
}

/// A stack, all zeros whenever it is free.
struct Stack {
    addresses: Addresses,
    /// Bytes at its top that have been touched, as far as is known.
    n_touched: usize,
}

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
        let free = stacks.free.lock().pop().filter(|stack| stack.addresses.n_bytes() == n_bytes);
        let stack = match free {
            Some(stack) => stack,
            None => Stack::new(n_bytes)?,
        };
        let held = Mutex::new(Some((stack, Seen::from_now_on())));
        let lease = Arc::new(StackLease { home: Arc::clone(stacks), held });
        Witness::note(Arc::<StackLease>::clone(&lease));
        Ok(Box::new(Lent(lease)))
    }
}

// === impl Stack ===

impl Stack {
    fn new(n_bytes: usize) -> io::Result<Self> {
        let mut addresses = Addresses::reserve(n_bytes)?;
        addresses.protect(0..n_bytes, MprotectFlags::READ | MprotectFlags::WRITE)?;
        Ok(Self { addresses, n_touched: 0 })
    }

    /// Makes it zeros again. `is_known`: nothing was touched that was not touched before.
    fn reset(&mut self, is_known: bool, pages: Option<&PageMap>) -> io::Result<()> {
        if !is_known {
            self.n_touched = self.look(pages);
        }
        let n_bytes = self.addresses.n_bytes();
        let n_kept = self.n_touched.min(KEEP_BYTES);
        // SAFETY: whoever ran on the stack is gone, and the range is within it.
        #[allow(unsafe_code)]
        unsafe {
            self.addresses.at(n_bytes - n_kept).cast::<u8>().write_bytes(0, n_kept);
        }
        if self.n_touched > n_kept {
            self.addresses.give_back(n_bytes - n_kept)?;
            self.n_touched = n_kept;
        }
        Ok(())
    }

    /// How much of it has been touched.
    fn look(&self, pages: Option<&PageMap>) -> usize {
        let n_bytes = self.addresses.n_bytes();
        match pages.map(|pages| pages.own(self.addresses.range(0..n_bytes))) {
            Some(Ok(Own::Runs(own))) => own.first().map_or(0, |run| n_bytes - run.start),
            Some(Ok(Own::Many) | Err(_)) | None => n_bytes,
        }
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
        self.held.lock().as_ref().map_or(absent, |(stack, _)| look(&stack.addresses))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let StackLease { home, held } = &*self.0;
        let Some((mut stack, seen)) = held.lock().take() else { return };
        match stack.reset(home.system.is_known(seen.is_certain()), home.system.pages.as_ref()) {
            Ok(()) => home.free.lock().push(stack),
            // It goes back to the system, whole.
            Err(error) => tracing::error!("a stack cannot be used again: {error}"),
        }
    }
}

impl Lease for StackLease {
    fn renew(&self, is_certain: bool, _loaded: Option<&Difference>) -> io::Result<bool> {
        let mut held = self.held.lock();
        let (stack, seen) = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let system = &self.home.system;
        stack.reset(system.is_known(seen.is_certain_if(is_certain)), system.pages.as_ref())?;
        seen.end(false);
        Ok(true)
    }

    fn empty(&self, _is_certain: bool, _loaded: &Difference, _from: usize) -> io::Result<Option<Difference>> {
        Ok(None)
    }

    /// Between two calls nothing on it means anything.
    fn fold(&self) -> io::Result<()> {
        let mut held = self.held.lock();
        let (stack, _) = held.as_mut().ok_or(io::ErrorKind::NotFound)?;
        stack.addresses.give_back(stack.addresses.n_bytes())?;
        stack.n_touched = 0;
        Ok(())
    }

    fn unfold(&self) -> io::Result<()> {
        Ok(())
    }

    fn hand_to(&self, witness: Option<Arc<Witness>>) {
        if let Some((_, seen)) = self.held.lock().as_mut() {
            seen.begin(witness);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_BYTES: usize = 256 * 1024;

    fn bytes(stack: &mut Stack) -> &mut [u8] {
        // SAFETY: open, and borrowed from the stack.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(stack.addresses.at(0).cast(), N_BYTES)
        }
    }

    /// Writes at so many bytes below the top, makes the stack as new, and says how much of it is known to be touched.
    fn touched_after(stack: &mut Stack, depth: usize, is_known: bool, pages: Option<&PageMap>) -> usize {
        bytes(stack)[N_BYTES - depth..].fill(99);
        stack.reset(is_known, pages).expect("resets");
        assert!(bytes(stack)[N_BYTES - depth..].iter().all(|byte| *byte == 0), "{depth}");
        stack.n_touched
    }

    #[test]
    fn a_stack_is_zeros_again_however_deep_it_was_used() {
        let pages = PageMap::open().expect("Linux 6.7 or newer");
        let mut stack = Stack::new(N_BYTES).expect("has addresses");
        assert_eq!(touched_after(&mut stack, 5000, false, Some(&pages)), 2 * PAGE_BYTES);
        assert_eq!(touched_after(&mut stack, 6000, true, Some(&pages)), 2 * PAGE_BYTES);
        assert_eq!(touched_after(&mut stack, 9000, false, Some(&pages)), 3 * PAGE_BYTES);
        assert_eq!(touched_after(&mut stack, 200_000, false, Some(&pages)), KEEP_BYTES);
        assert_eq!(touched_after(&mut stack, 200_000, false, None), KEEP_BYTES);
    }
}
