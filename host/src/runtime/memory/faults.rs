//! Page faults as a witness: a thread that had none has made no page its own.
//!
//! Finding out which pages a guest has written costs more than many a request. But each page that it writes for the
//! first time is a fault, and the kernel counts those by thread. Where there was none, the pages that a slot knows to
//! be its own are all there are.
//!
//! A [`Witness`] is one VM's, for one request. It sees each poll of the VM's future ([`Witnessed`]), in which all happens that touches
//! its memory and its stack: making the instance, restoring the tenant's image, calls of the guest and from it, and
//! dropping it all. Whoever touches a VM's memory from elsewhere says so, see [`Witness::doubt`].

use std::{
    cell::{Cell, RefCell},
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{Lease, PAGE_BYTES};

/// Whether there were page faults in the life of a VM, or in a request's part of it.
#[derive(Default)]
pub struct Witness {
    in_doubt: AtomicBool,
    /// Whether the request has no VM now, whose pages a fault could be.
    is_idle: AtomicBool,
    /// What was lent to the VM meanwhile.
    leases: Mutex<Vec<Arc<dyn Lease>>>,
}

/// The poll that goes on on a thread.
#[derive(Clone)]
struct Current {
    witness: Arc<Witness>,
    /// The thread's faults when it began, or before.
    n_faults: u64,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };

    /// The thread's faults when they were last counted, which is a system call. Nearly always there was none since.
    static COUNTED: Cell<Option<u64>> = const { Cell::new(None) };
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witness").field("in_doubt", &self.in_doubt).finish_non_exhaustive()
    }
}

impl Witness {
    /// That of the VM whose future is being polled on this thread. None outside of such a poll.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.with_borrow(|current| current.as_ref().map(|current| Arc::clone(&current.witness)))
    }

    /// Keeps what is lent to the VM whose future is being polled on this thread. Nobody keeps it outside of such a poll.
    pub fn note(lease: Arc<dyn Lease>) {
        if let Some(witness) = Self::current() {
            witness.wake();
            witness.leases.lock().push(lease);
        }
    }

    /// What the VM was lent, once.
    pub fn take_leases(&self) -> Vec<Arc<dyn Lease>> {
        std::mem::take(&mut self.leases.lock())
    }

    /// Says that the request has no VM until it is lent something again.
    pub fn rest(&self) {
        self.is_idle.store(true, Ordering::Release);
    }

    /// Says that the request has a VM again.
    pub fn wake(&self) {
        self.is_idle.store(false, Ordering::Release);
    }

    /// Says that pages may have become the VM's own unseen.
    pub fn doubt(&self) {
        self.in_doubt.store(true, Ordering::Release);
    }

    /// Whether no page has become the VM's own since its beginning. Only the VM's own poll can tell.
    pub fn is_certain(self: &Arc<Self>) -> bool {
        let n_before = CURRENT.with_borrow(|current| {
            current.as_ref().filter(|current| Arc::ptr_eq(&current.witness, self)).map(|current| current.n_faults)
        });
        n_before.is_some_and(|n_before| n_before == n_faults() && !self.in_doubt.load(Ordering::Acquire))
    }
}

pin_project! {
    /// A VM's future, seen by its witness.
    pub struct Witnessed<F> {
        #[pin]
        future: F,
        witness: Arc<Witness>,
    }
}

impl<F> Witnessed<F> {
    /// Lets a new witness see `future`.
    pub fn new(future: F) -> Self {
        Self { future, witness: Arc::default() }
    }
}

impl<F: Future> Future for Witnessed<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // Faults between two polls are taken for this one's: that is to the safe side.
        let n_before = COUNTED.get().unwrap_or_else(n_faults);
        let current = Current { witness: Arc::clone(this.witness), n_faults: n_before };
        // Put back on every way out, a panic included.
        let _outer = Outer(CURRENT.replace(Some(current)));
        let result = this.future.poll(context);
        if result.is_pending() && !this.witness.is_idle.load(Ordering::Acquire) && n_faults() != n_before {
            this.witness.doubt();
        }
        result
    }
}

struct Outer(Option<Current>);

impl Drop for Outer {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Page faults of this thread so far, counted now.
fn n_faults() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills in all of it; where it fails, the zeros are as good a value of the type.
    #[allow(unsafe_code)]
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    let n_faults = (usage.ru_minflt + usage.ru_majflt).cast_unsigned();
    COUNTED.set(Some(n_faults));
    n_faults
}

/// Whether the system counts a page fault when there is one. Where it does not, nobody is to be believed.
pub fn are_counted() -> bool {
    let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping, of which nobody else knows, is written once and taken away again.
    #[allow(unsafe_code)]
    unsafe {
        let Ok(page) = mmap_anonymous(std::ptr::null_mut(), PAGE_BYTES, flags.0, flags.1) else { return false };
        let n_before = n_faults();
        page.cast::<u8>().write_volatile(1);
        let counted = n_faults() > n_before;
        // There is nothing to be done about a page that stays.
        let _ = munmap(page, PAGE_BYTES);
        counted
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Polls a future that does `work`, then asks its witness; it ends at the second poll.
    fn certain_after(work: impl FnMut(&Arc<Witness>)) -> [bool; 2] {
        // The first time, code and memory of the test's own may have to be paged in.
        two_polls(|_| ());
        two_polls(work)
    }

    fn two_polls(mut work: impl FnMut(&Arc<Witness>)) -> [bool; 2] {
        let mut seen = Vec::with_capacity(2);
        let future = poll_fn(|_| {
            let witness = Witness::current().expect("in a poll");
            if seen.is_empty() {
                work(&witness);
            }
            seen.push(witness.is_certain());
            if seen.len() == 2 { Poll::Ready(()) } else { Poll::Pending }
        });
        {
            let mut witnessed = std::pin::pin!(Witnessed::new(future));
            let mut context = Context::from_waker(std::task::Waker::noop());
            while witnessed.as_mut().poll(&mut context).is_pending() {}
        }
        seen.try_into().expect("two polls")
    }

    fn touch_a_new_page() {
        let before = n_faults();
        assert!(are_counted());
        assert!(n_faults() > before);
    }

    #[test]
    fn a_poll_without_faults_leaves_no_doubt() {
        assert_eq!(certain_after(|_| ()), [true, true]);
    }

    #[test]
    fn a_fault_leaves_doubt_in_this_poll_and_all_later_ones() {
        assert_eq!(certain_after(|_| touch_a_new_page()), [false, false]);
    }

    #[test]
    fn a_fault_of_a_request_without_a_vm_leaves_no_doubt_in_later_polls() {
        let resting = |witness: &Arc<Witness>| {
            witness.rest();
            touch_a_new_page();
        };
        assert_eq!(certain_after(resting), [false, true]);
        let awake_again = |witness: &Arc<Witness>| {
            resting(witness);
            witness.wake();
        };
        assert_eq!(certain_after(awake_again), [false, false]);
    }

    #[test]
    fn who_writes_from_elsewhere_leaves_doubt() {
        assert_eq!(certain_after(|witness| witness.doubt()), [false, false]);
    }

    #[test]
    fn outside_of_its_poll_a_witness_is_not_certain() {
        assert!(Witness::current().is_none());
        assert!(!Arc::new(Witness::default()).is_certain());
    }
}
