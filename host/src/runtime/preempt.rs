//! Preemption without a cost to the running guest: who runs where, when to interrupt, when to kill.
//!
//! A watcher thread looks at each worker, once a tick while one runs a guest, and acts on a guest that runs
//! too long in one of two ways, in the memory of that guest:
//!
//! - *Interrupt*: it sets Luau's interrupt pointer. The interpreter calls it at the next loop or call of
//!   Luau code; that function asks the host, which lets others run, or ends the guest.
//! - *Kill*: it makes the guest's safepoint page unreadable. The next safepoint traps, in builtins too.
//!
//! # Why neither can harm the host
//!
//! 1. The watcher touches a guest only while it holds the lock of the worker's [`Slot`] and finds a
//!    running guest in it. The worker puts the guest there before it enters wasm and takes it out,
//!    under the same lock, after it has left; a suspended or dropped guest is never in a slot. So the
//!    memory is mapped, belongs to this guest, and is not being reset for another.
//! 2. The page that a kill closes is within the memory's place, but lies behind the most memory
//!    that a guest can have. The host's own accesses, wasmtime's and WASI's, are all checked against
//!    the size of the memory, so they never touch it: only loads of guest code do, and a fault of those
//!    is an ordinary trap.
//! 3. Before the worker gives the guest up it makes a closed page readable again, still under the lock.
//!    So the page is closed only while the guest that is to die runs.
//! 4. The interrupt pointer is an aligned 32-bit word of the guest's own data, written atomically. The
//!    guest may write it at the same time. Luau itself writes one of two functions there; a guest whose VM
//!    was taken over may write anything, which only its own code will call. So it may keep the interrupt
//!    from having an effect: then the kill has its turn.

use std::{
    cell::RefCell,
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::mm::{MprotectFlags, mprotect};

use super::{memory::Witness, meter::CpuMeter, reserve::Reserve, safepoint};

/// Length of a time slice: a guest runs at most this long before others get their turn.
pub const SLICE: Duration = Duration::from_millis(5);

/// How often the watcher looks while a guest runs. Bounds how late a kill comes.
pub const TICK: Duration = Duration::from_millis(1);

/// How often it looks while it finds none. A guest that has begun meanwhile is found as early as it matters: what is
/// done about one that lasts is done when it has run for a tick, and its next look may be another tick away anyway.
const IDLE_TICK: Duration = TICK.saturating_mul(2);

/// Bytes of the page that safepoints load from.
const PAGE_BYTES: usize = 4096;

/// Where a guest's interrupt pointer is, and what to write there. The same in every VM of an image.
#[derive(Debug, Clone, Copy)]
pub struct Interrupt {
    /// Offset of the pointer in linear memory, in bytes.
    pub offset: u32,
    /// The function to write, as its index in the guest's table.
    pub function: u32,
}

/// What the watcher must know of a guest to stop it.
#[derive(Debug, Clone)]
pub struct Target {
    /// The base of its linear memory.
    base: usize,
    interrupt: Interrupt,
    meter: Arc<CpuMeter>,
    witness: Option<Arc<Witness>>,
}

/// Who watches the workers. Dropping the last handle ends the thread.
#[derive(Debug)]
pub struct Watcher {
    slots: Mutex<Vec<Arc<Slot>>>,
}

/// One worker, and the guest that it runs now.
#[derive(Debug)]
pub struct Slot {
    thread: ThreadClock,
    /// None for a script worker. An I/O thread's guest runs for less long, and meanwhile this one is to see to what the
    /// thread does not.
    reserve: Option<Arc<Reserve>>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    target: Target,
    since: Instant,
    killed: bool,
    relieved: bool,
}

thread_local! {
    /// The calling thread's slot. None on threads that are not watched: guests on those are our own.
    static SLOT: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

// === impl Watcher ===

impl Watcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the process may not start another thread.
    pub fn start() -> io::Result<Arc<Self>> {
        let watcher = Arc::new(Self { slots: Mutex::default() });
        let watched = Arc::downgrade(&watcher);
        thread::Builder::new().name("neoc-preempt".into()).spawn(move || watch(&watched))?;
        Ok(watcher)
    }

    /// Makes the calling thread a worker that is watched, until it ends.
    pub fn enlist(&self) {
        self.enlist_as(None);
    }

    /// Makes the calling thread, of which `reserve` is kept, watched when it runs a guest.
    pub fn enlist_for_io(&self, reserve: &Arc<Reserve>) {
        if SLOT.with_borrow(Option::is_none) {
            self.enlist_as(Some(Arc::clone(reserve)));
        }
    }

    fn enlist_as(&self, reserve: Option<Arc<Reserve>>) {
        let slot = Arc::new(Slot { thread: ThreadClock::of_this_thread(), reserve, running: Mutex::default() });
        self.slots.lock().push(Arc::clone(&slot));
        SLOT.set(Some(slot));
    }
}

fn watch(watcher: &Weak<Watcher>) {
    let mut pause = TICK;
    loop {
        thread::sleep(pause);
        let Some(watcher) = watcher.upgrade() else { return };
        let slots = watcher.slots.lock().clone();
        let n_running = slots.iter().filter(|slot| slot.look()).count();
        pause = if n_running > 0 { TICK } else { IDLE_TICK };
    }
}

// === impl Slot ===

impl Slot {
    /// Looks at the guest that runs, if there is one.
    fn look(&self) -> bool {
        let mut running = self.running.lock();
        let Some(running) = running.as_mut() else { return false };
        let elapsed = running.since.elapsed();
        // A thread uses no more CPU time than time passes, so its clock is read only when it matters.
        let over = running.target.meter.would_exceed(elapsed)
            && self.thread.now().is_some_and(|now| running.target.meter.exceeds_at(now));
        if over && !running.killed {
            running.killed = protect_page(running.target.base, false).is_ok();
        }
        if let Some(reserve) = self.reserve.as_ref().filter(|_| elapsed >= TICK && !running.relieved) {
            reserve.release();
            running.relieved = true;
        }
        let slice = if self.reserve.is_some() { TICK } else { SLICE };
        if over || elapsed >= slice {
            running.target.set_interrupt();
        }
        true
    }
}

// === impl Target ===

impl Target {
    /// The VM that is made on this thread, whose memory begins at `base`.
    pub fn new(base: *mut u8, interrupt: Interrupt, meter: Arc<CpuMeter>) -> Self {
        Self { base: base.expose_provenance(), interrupt, meter, witness: Witness::current() }
    }

    /// Runs a slice of the guest, which begins now, on the calling thread; watched if it is a worker.
    pub fn watch<T>(&self, since: Instant, slice: impl FnOnce() -> T) -> T {
        let slot = SLOT.with_borrow(Clone::clone);
        let Some(slot) = slot else { return slice() };
        let running = Running { target: self.clone(), since, killed: false, relieved: false };
        *slot.running.lock() = Some(running);
        // Leaves the slot on every way out, a panic of a host function included.
        let leave = Leave(&slot);
        let result = slice();
        drop(leave);
        result
    }

    fn set_interrupt(&self) {
        // This thread may be the first that writes to the page.
        if let Some(witness) = &self.witness {
            witness.doubt();
        }
        let Some(address) = self.base.checked_add(self.interrupt.offset as usize) else { return };
        let pointer = std::ptr::with_exposed_provenance_mut::<u32>(address);
        // SAFETY: the caller holds the slot's lock and found the guest in it, so its memory is mapped
        // and writable (module docs, 1); the offset came from this image's own export and is aligned,
        // because it is the address of a pointer in the guest (4).
        #[allow(unsafe_code)]
        let word = unsafe { AtomicU32::from_ptr(pointer) };
        word.store(self.interrupt.function, Ordering::Relaxed);
    }
}

struct Leave<'a>(&'a Slot);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut slot = self.0.running.lock();
        let Some(running) = slot.take() else { return };
        // Opened again under the lock, before the memory can go to another guest.
        if running.killed && protect_page(running.target.base, true).is_err() {
            // Nobody may ever run in this memory again, and nothing else can be done about it.
            tracing::error!("cannot open a safepoint page again; aborting");
            std::process::abort();
        }
        drop(slot);
        if let Some(reserve) = self.0.reserve.as_ref().filter(|_| running.relieved) {
            reserve.take_back();
        }
    }
}

// === The page ===

fn page(base: usize) -> *mut std::ffi::c_void {
    std::ptr::with_exposed_provenance_mut(base + safepoint::ADDRESS as usize)
}

/// Opens or closes the page. Closing is a kill.
fn protect_page(base: usize, readable: bool) -> io::Result<()> {
    let flags = if readable { MprotectFlags::READ } else { MprotectFlags::empty() };
    // SAFETY: the memory's place has this page, and only guest code loads from it (module docs, 2), so no access of
    // the host's can fault.
    #[allow(unsafe_code)]
    unsafe {
        mprotect(page(base), PAGE_BYTES, flags)?;
    }
    Ok(())
}

// === impl ThreadClock ===

/// The CPU clock of a thread, readable from any other.
#[derive(Debug)]
struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    fn of_this_thread() -> Self {
        // The kernel's encoding of "CPU time of thread TID": its complement, three bits to the left, and
        // the bits for a thread (4) and for time as the scheduler counts it (2). It is what
        // pthread_getcpuclockid gives, see clock_getres(2).
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        Self((!thread << 3) | 6)
    }

    /// CPU time of the thread so far, in nanoseconds. None when the thread is gone.
    fn now(&self) -> Option<u64> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid place for the result; a clock that does not exist is an error code.
        #[allow(unsafe_code)]
        let result = unsafe { libc::clock_gettime(self.0, &raw mut time) };
        if result != 0 {
            return None;
        }
        let (seconds, nanoseconds) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_nsec).ok()?);
        seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_clock_read_from_another_is_its_own() {
        let clock = ThreadClock::of_this_thread();
        let before = super::super::stopwatch::thread_cpu_nanoseconds();
        let read = thread::scope(|scope| scope.spawn(|| clock.now()).join().expect("ends")).expect("lives");
        let after = super::super::stopwatch::thread_cpu_nanoseconds();
        assert!((before..=after).contains(&read), "{before} {read} {after}");
    }
}
