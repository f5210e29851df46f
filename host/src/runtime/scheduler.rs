//! Script workers: OS threads that run guests, apart from the I/O runtime, by fair turns.
//!
//! A guest is a future that gives up its worker at the end of its time slice. The queue is one line per
//! tenant, served round robin, so a tenant with a hundred busy requests gets no more turns than a
//! tenant with one. I/O completions and timers never wait here: they run on Tokio's own threads.

use std::{
    collections::{HashMap, VecDeque},
    io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
};

use async_task::{Runnable, Task};
use parking_lot::{Condvar, Mutex};

use super::preempt::Watcher;

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

    /// Puts `future` in `tenant`'s line. Dropping the task cancels the future at its next yield.
    pub fn spawn<F>(&self, tenant: &Arc<str>, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (queue, tenant) = (Arc::clone(&self.queue), Arc::clone(tenant));
        let (runnable, task) = async_task::spawn(future, move |runnable| queue.push(&tenant, runnable));
        runnable.schedule();
        task
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.queue.close();
        for worker in self.workers.drain(..) {
            // A worker that panicked has nothing left to clean up.
            let _ = worker.join();
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
    turns: VecDeque<Arc<str>>,
    closed: bool,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        let lines = Lines { by_tenant: HashMap::new(), turns: VecDeque::new(), closed: false };
        Self { lines: Mutex::new(lines), arrival: Condvar::new() }
    }
}

impl<T> FairQueue<T> {
    /// Appends to the tenant's line. Never waits.
    fn push(&self, tenant: &Arc<str>, item: T) {
        let mut lines = self.lines.lock();
        if lines.closed {
            return;
        }
        if let Some(line) = lines.by_tenant.get_mut(tenant) {
            line.push_back(item);
        } else {
            lines.by_tenant.insert(Arc::clone(tenant), VecDeque::from([item]));
            lines.turns.push_back(Arc::clone(tenant));
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
        let tenant = self.turns.pop_front()?;
        let line = self.by_tenant.get_mut(&tenant)?;
        let item = line.pop_front();
        if line.is_empty() {
            self.by_tenant.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_with_many_runnable_requests_gets_no_more_turns() {
        let queue = FairQueue::default();
        let (busy, calm): (Arc<str>, Arc<str>) = ("busy".into(), "calm".into());
        for index in 0..3 {
            queue.push(&busy, format!("busy {index}"));
        }
        queue.push(&calm, "calm 0".to_owned());
        let order: Vec<_> = (0..4).filter_map(|_| queue.pop()).collect();
        assert_eq!(order, ["busy 0", "calm 0", "busy 1", "busy 2"]);
    }

    #[test]
    fn a_closed_queue_gives_nothing_out() {
        let queue = FairQueue::default();
        queue.push(&"a".into(), 1);
        queue.close();
        assert_eq!(queue.pop(), None);
        queue.push(&"a".into(), 2);
        assert_eq!(queue.pop(), None);
    }
}
