//! Script workers: OS threads that run guests, apart from the I/O runtime, by fair turns.
//!
//! A guest is a future that gives up its worker at the end of its time slice. The queue is one line per
//! tenant, served round robin, and a turn is as many slices as the tenant's weight: so a tenant with a
//! hundred busy requests gets no more than a tenant with one of the same weight. I/O completions and timers never wait here: they run on Tokio's own threads.

use std::{
    collections::{HashMap, VecDeque},
    io,
    num::{NonZeroU32, NonZeroUsize},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
};

use async_task::{Runnable, Task};
use parking_lot::{Condvar, Mutex};

use super::preempt::Watcher;

/// A tenant's part in the workers' time.
#[derive(Debug, Clone)]
pub struct Share {
    /// Whose line.
    pub tenant: Arc<str>,
    /// Slices in one turn.
    pub weight: NonZeroU32,
}

/// The worker threads and their queue. Dropping it ends the threads after their current slice.
pub struct Scheduler {
    queue: Arc<FairQueue>,
    workers: Vec<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts `n_workers` threads; each enters `io`, so that guests can start I/O on it, and is watched
    /// by `watcher` where there is one.
    ///
    /// # Errors
    /// When the process may not start so many threads.
    pub fn start(
        n_workers: NonZeroUsize,
        io: &tokio::runtime::Handle,
        watcher: Option<&Arc<Watcher>>,
    ) -> io::Result<Self> {
        let queue = Arc::new(FairQueue::default());
        let workers = (0..n_workers.get())
            .map(|index| {
                let (queue, io, watcher) = (Arc::clone(&queue), io.clone(), watcher.cloned());
                thread::Builder::new().name(format!("neoc-script-{index}")).spawn(move || {
                    let _entered = io.enter();
                    if let Some(watcher) = watcher {
                        watcher.enlist();
                    }
                    work(&queue);
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { queue, workers })
    }

    /// Puts `future` in `share`'s line. Dropping the task cancels the future at its next yield.
    pub fn spawn<F>(&self, share: &Share, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (queue, share) = (Arc::clone(&self.queue), share.clone());
        let (runnable, task) = async_task::spawn(future, move |runnable| queue.push(&share, runnable));
        runnable.schedule();
        task
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.queue.close();
        for worker in self.workers.drain(..) {
            // A worker that drops the last guest may be the one that ends them all.
            if worker.thread().id() != thread::current().id() {
                // A worker that panicked has nothing left to clean up.
                let _ = worker.join();
            }
        }
    }
}

/// A worker's life: one slice after the other.
fn work(queue: &FairQueue) {
    while let Some(runnable) = queue.pop() {
        // A panic in a host function ends that one guest: its task is closed, and its owner sees it
        // as an internal failure. The worker goes on.
        if catch_unwind(AssertUnwindSafe(|| runnable.run())).is_err() {
            tracing::error!("a script worker caught a panic; the request it ran has failed");
        }
    }
}

// === impl FairQueue ===

/// Runnable guests, one line per tenant, lines served round robin.
struct FairQueue<T = Runnable> {
    lines: Mutex<Lines<T>>,
    arrival: Condvar,
}

struct Lines<T> {
    /// Only tenants with somebody waiting have a line, so the map stays as small as the load.
    by_tenant: HashMap<Arc<str>, VecDeque<T>>,
    /// The order of turns. Holds each key of `by_tenant` exactly once.
    turns: VecDeque<Turn>,
    closed: bool,
}

struct Turn {
    share: Share,
    /// Slices that are left of it.
    left: u32,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        let lines = Lines { by_tenant: HashMap::new(), turns: VecDeque::new(), closed: false };
        Self { lines: Mutex::new(lines), arrival: Condvar::new() }
    }
}

impl<T> FairQueue<T> {
    /// Appends to the tenant's line. Never waits.
    fn push(&self, share: &Share, item: T) {
        let mut lines = self.lines.lock();
        if lines.closed {
            return;
        }
        if let Some(line) = lines.by_tenant.get_mut(&share.tenant) {
            line.push_back(item);
        } else {
            lines.by_tenant.insert(Arc::clone(&share.tenant), VecDeque::from([item]));
            lines.turns.push_back(Turn { share: share.clone(), left: share.weight.get() });
        }
        drop(lines);
        self.arrival.notify_one();
    }

    /// Takes the first of the next tenant's line; waits while all lines are empty. None once closed.
    fn pop(&self) -> Option<T> {
        let mut lines = self.lines.lock();
        loop {
            if lines.closed {
                return None;
            }
            if let Some(item) = lines.take_turn() {
                return Some(item);
            }
            self.arrival.wait(&mut lines);
        }
    }

    /// Ends every worker and drops what still waits.
    fn close(&self) {
        let mut lines = self.lines.lock();
        lines.closed = true;
        let waiting = std::mem::take(&mut lines.by_tenant);
        lines.turns.clear();
        // Dropping a guest may wake another, which takes the lock again.
        drop(lines);
        drop(waiting);
        self.arrival.notify_all();
    }
}

impl<T> Lines<T> {
    fn take_turn(&mut self) -> Option<T> {
        let mut turn = self.turns.pop_front()?;
        let line = self.by_tenant.get_mut(&turn.share.tenant)?;
        let item = line.pop_front();
        turn.left -= 1;
        if line.is_empty() {
            self.by_tenant.remove(&turn.share.tenant);
        } else if turn.left > 0 {
            self.turns.push_front(turn);
        } else {
            turn.left = turn.share.weight.get();
            self.turns.push_back(turn);
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(tenant: &str, weight: u32) -> Share {
        Share { tenant: tenant.into(), weight: NonZeroU32::new(weight).expect("not 0") }
    }

    /// The order in which a queue with these items gives them out.
    fn order(items: &[(&Share, &'static str)]) -> Vec<&'static str> {
        let queue = FairQueue::default();
        for (share, item) in items {
            queue.push(share, *item);
        }
        items.iter().filter_map(|_| queue.pop()).collect()
    }

    #[test]
    fn a_tenant_with_many_runnable_requests_gets_no_more_turns() {
        let (busy, calm) = (share("busy", 1), share("calm", 1));
        assert_eq!(order(&[(&busy, "b0"), (&busy, "b1"), (&busy, "b2"), (&calm, "c0")]), ["b0", "c0", "b1", "b2"]);
    }

    #[test]
    fn a_turn_has_as_many_slices_as_the_tenants_weight() {
        let (heavy, light) = (share("heavy", 2), share("light", 1));
        let items = [(&light, "l0"), (&light, "l1"), (&heavy, "h0"), (&heavy, "h1"), (&heavy, "h2")];
        assert_eq!(order(&items), ["l0", "h0", "h1", "l1", "h2"]);
    }

    #[test]
    fn a_closed_queue_gives_nothing_out() {
        let queue = FairQueue::default();
        queue.push(&share("a", 1), 1);
        queue.close();
        assert_eq!(queue.pop(), None);
        queue.push(&share("a", 1), 2);
        assert_eq!(queue.pop(), None);
    }
}
