//! Script workers: OS threads that run guests, apart from the I/O runtime, by fair turns.
//!
//! A guest is a future that gives up its worker at the end of its time slice; [`super::fair_queue`] says whose turn
//! is next. I/O completions and timers never wait here: they run on Tokio's own threads.

use std::{
    io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use async_task::{Runnable, Task};

use super::{
    fair_queue::{FairQueue, Share},
    preempt::Watcher,
};

/// The worker threads and their queue. Dropping it ends the threads after their current slice.
pub struct Scheduler {
    queue: Arc<FairQueue<Runnable>>,
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
fn work(queue: &FairQueue<Runnable>) {
    while let Some((turn, runnable)) = queue.begin() {
        let begin = Instant::now();
        // A panic in a host function ends that one guest: its task is closed, and its owner sees it
        // as an internal failure. The worker goes on.
        if catch_unwind(AssertUnwindSafe(|| runnable.run())).is_err() {
            tracing::error!("a script worker caught a panic; the request it ran has failed");
        }
        queue.end(turn, begin.elapsed());
    }
}
