//! Guests that have their turn on an I/O thread.
//!
//! To hand a request to a script worker and its answer back costs two wake-ups of threads, as much as a small request
//! itself. So the thread on which a request was read, or an operation ended, begins the next turns itself, if that
//! keeps nobody waiting:
//!
//! - It takes whoever is next in the fair queue, as a worker does, and the turn counts as any other.
//! - It takes only a guest of a tenant whose turns were short of late. One whose turn is not short after all is
//!   interrupted after a tick, by the watcher, and its tenant's next turns are the workers'.
//! - After a tick in all it sees to I/O first, and calls a worker for those who still wait.
//! - One I/O thread at least runs no guest. It is in [`super::reserve`] until a guest has kept another for a tick. So
//!   events wait for a guest for two ticks at most, however it behaves. The one task that nobody can take over is what
//!   the guest itself has woken last, which is its own tenant's.
//!
//! Guests are begun together, once the thread has read all the requests that have come, and before it writes the first
//! answer: reading, running and writing are each more code than the processor's first caches hold. Where requests come
//! one at a time there is nothing to put together, and the next few are begun on the spot.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Instant,
};

use super::{
    fair_queue::{FairQueue, Share},
    preempt::{TICK, Watcher},
    reserve::Reserve,
    turn::{self, Guest},
};

/// So many guests are begun on the spot after one had no company.
const N_ON_THE_SPOT: u32 = 8;

/// Who may have a turn on an I/O thread.
pub struct Direct {
    io: tokio::runtime::Handle,
    reserve: Arc<Reserve>,
    watcher: Arc<Watcher>,
    queue: Arc<FairQueue<Guest>>,
    /// Most rounds at once.
    most: usize,
    /// Rounds that run or are about to. Whoever leaves a guest in the queue relies on them to look for it: each looks
    /// once more after it has counted itself out.
    n_rounds: AtomicUsize,
    /// How many guests may still begin on the spot.
    n_on_the_spot: AtomicU32,
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
    /// There is one, and it is counted as a round.
    Taken(Arc<Direct>),
}

/// Does `work`, which begins a guest. If it may run on this thread, and alone, it has a turn before this returns.
pub fn here<T>(work: impl FnOnce() -> T) -> T {
    let outer = HERE.replace(Here::Asked);
    let done = work();
    if let Here::Taken(direct) = HERE.replace(outer) {
        direct.round();
    }
    done
}

/// Says that the calling thread is a script worker.
pub fn this_is_a_worker() {
    IS_WORKER.set(true);
}

// === impl Direct ===

impl Direct {
    /// Lets the guests of `queue` run on the threads of `io`. None if there are too few of these.
    pub fn new(
        io: &tokio::runtime::Handle,
        watcher: &Arc<Watcher>,
        queue: &Arc<FairQueue<Guest>>,
    ) -> Option<Arc<Self>> {
        let most = io.metrics().num_workers().checked_sub(1).filter(|most| *most > 0)?;
        Some(Arc::new(Self {
            io: io.clone(),
            reserve: Arc::new(Reserve::keep(io)),
            watcher: Arc::clone(watcher),
            queue: Arc::clone(queue),
            most,
            n_rounds: AtomicUsize::new(0),
            n_on_the_spot: AtomicU32::new(0),
        }))
    }

    /// Puts a guest in its line, and lets this thread begin the next turns if it may, else a worker.
    pub fn push(self: &Arc<Self>, share: &Share, guest: Guest) {
        let may_run = guest.may_be_direct
            && !IS_WORKER.get()
            && share.is_quick()
            && tokio::runtime::Handle::try_current().is_ok();
        if !may_run {
            return self.queue.push(share, guest);
        }
        self.queue.push_quietly(share, guest);
        if !self.begin_round() {
            return;
        }
        let on_the_spot = HERE.with_borrow(|here| matches!(here, Here::Asked)) && self.is_to_begin_on_the_spot();
        if on_the_spot {
            HERE.set(Here::Taken(Arc::clone(self)));
        } else {
            self.spawn_round();
        }
    }

    /// Gives the thread in reserve back.
    pub fn close(&self) {
        self.reserve.close();
    }

    /// Counts a round in, unless there are enough.
    fn begin_round(&self) -> bool {
        let take = |n| (n < self.most).then_some(n + 1);
        self.n_rounds.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    fn is_to_begin_on_the_spot(&self) -> bool {
        let take = |n: u32| n.checked_sub(1);
        self.n_on_the_spot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Has a round, which is counted already, after all that this thread has to do now.
    fn spawn_round(self: &Arc<Self>) {
        let direct = Arc::clone(self);
        self.io.spawn(async move {
            // Tokio's own way of giving way would have the thread look for new events before.
            turn::end_here().await;
            let n_turns = direct.round();
            direct.n_on_the_spot.store(if n_turns > 1 { 0 } else { N_ON_THE_SPOT }, Ordering::Relaxed);
        });
    }

    /// Runs guests until none is left that may run here, or for a tick; how many. The round is counted out.
    fn round(self: &Arc<Self>) -> u32 {
        let began = Instant::now();
        let mut n_turns = 0;
        let is_late = loop {
            let Some((turn, guest)) = self.queue.begin_if_quick(|guest| guest.may_be_direct) else { break false };
            self.watcher.enlist_for_io(&self.reserve);
            turn::run(&self.queue, turn, TICK, guest);
            n_turns += 1;
            if began.elapsed() >= TICK {
                break true;
            }
        };
        self.n_rounds.fetch_sub(1, Ordering::SeqCst);
        if self.queue.is_next_quick(|guest| guest.may_be_direct) {
            if is_late {
                self.queue.call();
            }
            if self.begin_round() {
                self.spawn_round();
            }
        }
        n_turns
    }
}
