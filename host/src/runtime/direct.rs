//! Guests that have their turn on an I/O thread.
//!
//! To hand a request to a script worker and its answer back costs two wake-ups of threads, as much as a small request
//! itself. So the thread on which a request was read, or an operation ended, begins the next turn itself, if that keeps
//! nobody waiting:
//!
//! - It takes whoever is next in the fair queue, as a worker does, and the turn counts as any other.
//! - One I/O thread at least is left that runs no guest, for all I/O there is.
//! - It takes only a guest of a tenant whose turns were short of late. One whose turn is not short after all is
//!   interrupted after a tick, by the watcher, and its tenant's next turns are the workers'.
//!
//! Tokio lets one of its threads wait for events, and that may be the one that now runs a guest. So the watcher also
//! wakes another, which then takes that over: events wait for a guest for two ticks at most, however it behaves. The
//! one task that nobody can take over is what the guest itself has woken last, which is its own tenant's.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    fair_queue::{FairQueue, Share},
    preempt::{TICK, Watcher},
    turn::{self, Guest},
};

/// Who may have a turn on an I/O thread.
pub struct Direct {
    io: tokio::runtime::Handle,
    watcher: Arc<Watcher>,
    /// Most guests on I/O threads at once.
    most: usize,
    n_running: AtomicUsize,
    queue: Arc<FairQueue<Guest>>,
}

thread_local! {
    /// Whether the thread is a script worker, which has its own line.
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };

    /// Who runs guests here, see [`here`].
    static HERE: RefCell<Here> = const { RefCell::new(Here::Nobody) };
}

/// Whether the thread is to begin a turn on the spot.
enum Here {
    Nobody,
    /// It will, if there is a guest.
    Asked,
    /// There is one.
    Taken(Arc<Direct>),
}

/// Does `work`, which begins a guest. If it may run on this thread it has a turn before this returns.
pub fn here<T>(work: impl FnOnce() -> T) -> T {
    let outer = HERE.replace(Here::Asked);
    let done = work();
    if let Here::Taken(direct) = HERE.replace(outer) {
        direct.run_next();
    }
    done
}

/// Says that the calling thread is a script worker.
pub fn this_is_a_worker() {
    IS_WORKER.set(true);
}

// === impl Direct ===

impl Direct {
    /// Lets the guests of `queue` run on the threads of `io`.
    pub fn new(io: &tokio::runtime::Handle, watcher: &Arc<Watcher>, queue: &Arc<FairQueue<Guest>>) -> Arc<Self> {
        let most = io.metrics().num_workers().saturating_sub(1);
        let (io, watcher, queue) = (io.clone(), Arc::clone(watcher), Arc::clone(queue));
        Arc::new(Self { io, watcher, most, n_running: AtomicUsize::new(0), queue })
    }

    /// Puts a guest in its line, and lets this thread begin the next turn if it may, else a worker.
    pub fn push(self: &Arc<Self>, share: &Share, guest: Guest) {
        let may_run = self.n_running.load(Ordering::Relaxed) < self.most
            && guest.may_be_direct
            && !IS_WORKER.get()
            && share.is_quick()
            && tokio::runtime::Handle::try_current().is_ok();
        if !may_run {
            return self.queue.push(share, guest);
        }
        self.queue.push_quietly(share, guest);
        let direct = Arc::clone(self);
        if HERE.with_borrow(|here| matches!(here, Here::Asked)) {
            return HERE.set(Here::Taken(direct));
        }
        // A task that is begun by one on the same thread is that thread's next, and needs no wake-up.
        self.io.spawn(async move { direct.run_next() });
    }

    fn run_next(&self) {
        let take = |n| (n < self.most).then_some(n + 1);
        if self.n_running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return self.queue.call();
        }
        if let Some((turn, guest)) = self.queue.begin_if_quick(|guest| guest.may_be_direct) {
            self.watcher.enlist_for_io(&self.io);
            turn::run(&self.queue, turn, TICK, guest);
        }
        self.n_running.fetch_sub(1, Ordering::Relaxed);
    }
}
