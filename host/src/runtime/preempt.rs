//! Preemption without a cost to the running guest: who runs where, when to interrupt, when to kill.
//!
//! A watcher thread looks at each worker, once a tick while one runs a guest, and acts on a guest that runs
//! too long in one of two ways, in the memory of that guest:
//!
//! - *Interrupt*: it sets Luau's interrupt pointer. The interpreter calls it at the next loop or call of
//!   Luau code; that function asks the host, which lets others run, or ends the guest. It does so at the end of a slice,
//!   and a little early to the guest that has run for longest, if somebody has a claim to a worker.
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

use super::{
    fair_queue::Claim,
    memory::{PAGE_BYTES, Witness},
    meter::CpuMeter,
    reserve::Reserve,
    safepoint,
};

/// Length of a time slice: a guest runs at most this long before others get their turn.
pub const SLICE: Duration = Duration::from_millis(5);

/// How often the watcher looks while a guest runs. Bounds how late a kill comes. And the least of a slice that a guest
/// has, whoever has a claim.
pub const TICK: Duration = Duration::from_millis(1);

/// How often it looks while it finds none. A guest that has begun meanwhile is found as early as it matters: what is
/// done about one that lasts is done when it has run for a tick, and its next look may be another tick away anyway.
const IDLE_TICK: Duration = TICK.saturating_mul(2);

/// Where a guest's interrupt pointer is, and what to write there. The same in every VM of an image.
#[derive(Debug, Clone, Copy)]
pub struct Interrupt {
    /// Offset of the pointer in linear memory, in bytes.
    pub offset: u32,
    /// The function to write, as its index in the guest's table.
    pub function: u32,
}

/// What the watcher must know of a guest to stop it.
#[derive(Debug)]
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
    role: Role,
    running: Mutex<Option<Running>>,
}

/// What a thread that runs guests is otherwise.
#[derive(Debug)]
enum Role {
    /// A script worker. Somebody may have a claim to it.
    Worker(Claim),
    /// An I/O thread. Its guests run for less long, and meanwhile the reserve is to see to what the thread does not.
    Io(Arc<Reserve>),
}

#[derive(Debug)]
struct Running {
    target: Arc<Target>,
    since: Instant,
    killed: bool,
    interrupted: bool,
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

    /// Makes the calling thread a worker that is watched, until it ends; to which there may be a `claim`.
    pub fn enlist(&self, claim: Claim) {
        self.enlist_as(Role::Worker(claim));
    }

    /// Makes the calling thread, of which `reserve` is kept, watched when it runs a guest.
    pub fn enlist_for_io(&self, reserve: &Arc<Reserve>) {
        if SLOT.with_borrow(Option::is_none) {
            self.enlist_as(Role::Io(Arc::clone(reserve)));
        }
    }

    fn enlist_as(&self, role: Role) {
        let slot = Arc::new(Slot { thread: ThreadClock::of_this_thread(), role, running: Mutex::default() });
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
        let (mut is_idle, mut longest) = (true, (Duration::ZERO, None));
        for slot in &slots {
            let Some(claimed) = slot.look() else { continue };
            is_idle = false;
            if claimed > longest.0 {
                longest = (claimed, Some(slot));
            }
        }
        // One at a time: a worker that has become free serves all who have a claim, one after the other.
        if let (_, Some(slot)) = longest {
            slot.cut_short();
        }
        pause = if is_idle { IDLE_TICK } else { TICK };
    }
}

// === impl Slot ===

impl Slot {
    /// Looks at the guest that runs, if there is one. For how long it has, if somebody has a claim to its worker, and
    /// may have it; else zero.
    fn look(&self) -> Option<Duration> {
        let mut running = self.running.lock();
        let running = running.as_mut()?;
        let elapsed = running.since.elapsed();
        // A thread uses no more CPU time than time passes, so its clock is read only when it matters.
        let over = running.target.meter.would_exceed(elapsed)
            && self.thread.now().is_some_and(|now| running.target.meter.exceeds_at(now));
        if over && !running.killed {
            running.killed = protect_page(running.target.base, false).is_ok();
        }
        let (slice, is_claimed) = match &self.role {
            Role::Worker(claim) => (SLICE, claim.is_laid()),
            Role::Io(reserve) => {
                if elapsed >= TICK && !running.relieved {
                    reserve.release();
                    running.relieved = true;
                }
                (TICK, false)
            }
        };
        if over || elapsed >= slice {
            running.interrupt();
        }
        let is_to_be_cut = is_claimed && elapsed >= TICK && !running.interrupted;
        Some(if is_to_be_cut { elapsed } else { Duration::ZERO })
    }

    /// Ends the slice of the guest that runs, if it is still one that may have had enough.
    fn cut_short(&self) {
        let mut running = self.running.lock();
        if let Some(running) = running.as_mut().filter(|running| running.since.elapsed() >= TICK) {
            running.interrupt();
        }
    }
}

// === impl Running ===

impl Running {
    fn interrupt(&mut self) {
        self.target.set_interrupt();
        self.interrupted = true;
    }
}

// === impl Target ===

impl Target {
    /// The VM that is made on this thread, whose memory begins at `base`.
    pub fn new(base: *mut u8, interrupt: Interrupt, meter: Arc<CpuMeter>) -> Self {
        Self { base: base.expose_provenance(), interrupt, meter, witness: Witness::current() }
    }

    /// Runs a slice of the guest, which begins now, on the calling thread; watched if it is a worker.
    pub fn watch<T>(self: &Arc<Self>, since: Instant, slice: impl FnOnce() -> T) -> T {
        if SLOT.with_borrow(Option::is_none) {
            return slice();
        }
        // Lent for as long as the slice lasts. A thread that has a slot gets no other.
        SLOT.with_borrow(|slot| {
            let Some(slot) = slot else { return slice() };
            let target = Arc::clone(self);
            let running = Running { target, since, killed: false, interrupted: false, relieved: false };
            *slot.running.lock() = Some(running);
            // Leaves the slot on every way out, a panic of a host function included.
            let leave = Leave(slot);
            let result = slice();
            drop(leave);
            result
        })
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
        if let Role::Io(reserve) = &self.0.role
            && running.relieved
        {
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
    use std::num::NonZeroU32;

    use super::{
        super::{
            fair_queue::{FairQueue, Share},
            meter::CpuBudget,
        },
        *,
    };

    #[test]
    fn a_threads_clock_read_from_another_is_its_own() {
        let clock = ThreadClock::of_this_thread();
        let before = super::super::stopwatch::thread_cpu_nanoseconds();
        let read = thread::scope(|scope| scope.spawn(|| clock.now()).join().expect("ends")).expect("lives");
        let after = super::super::stopwatch::thread_cpu_nanoseconds();
        assert!((before..=after).contains(&read), "{before} {read} {after}");
    }

    /// A guest that has run for two ticks on a worker, with a memory of so many words.
    fn slot(claim: Claim, memory: &[AtomicU32]) -> Slot {
        let target = Target {
            base: memory.as_ptr().expose_provenance(),
            interrupt: Interrupt { offset: 4, function: 7 },
            meter: CpuMeter::new(CpuBudget::new(Duration::from_secs(60))),
            witness: None,
        };
        let since = Instant::now().checked_sub(2 * TICK).expect("the machine has run for longer");
        let running = Running { target: Arc::new(target), since, killed: false, interrupted: false, relieved: false };
        Slot { thread: ThreadClock::of_this_thread(), role: Role::Worker(claim), running: Mutex::new(Some(running)) }
    }

    #[test]
    fn a_slice_is_cut_short_for_who_has_a_claim_and_for_nobody_else() {
        let queue = FairQueue::default();
        // A machine that stands still meanwhile lets the slice end by itself.
        let is_seen = (0..100).any(|round| {
            let memory = [const { AtomicU32::new(0) }; 2];
            let slot = slot(queue.claim(), &memory);
            assert_eq!(slot.look(), Some(Duration::ZERO));
            let is_whole = memory[1].load(Ordering::Relaxed) == 0;
            let share = Share::new(round.to_string().into(), NonZeroU32::MIN);
            queue.push(&share, ());
            let claimed = slot.look();
            let (turn, ()) = queue.begin().expect("it waits");
            queue.end(turn, TICK, false);
            slot.cut_short();
            assert_eq!([0, 1].map(|index| memory[index].load(Ordering::Relaxed)), [0, 7]);
            assert_eq!(slot.look(), Some(Duration::ZERO), "it has been told");
            is_whole && claimed >= Some(2 * TICK)
        });
        assert!(is_seen);
    }
}
