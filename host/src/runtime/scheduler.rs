//! Script workers: OS threads that run guests, apart from the I/O runtime, by fair turns.
//!
//! A guest is a future that gives up its thread at the end of its time slice; [`super::fair_queue`] says whose turn
//! is next. I/O completions and timers never wait here: they run on Tokio's own threads, where guests have turns only
//! while that keeps nobody waiting ([`super::direct`]).

use std::{
    io,
    num::NonZeroUsize,
    sync::Arc,
    thread::{self, JoinHandle},
};

use async_task::Task;

use super::{
    direct::{self, Direct},
    fair_queue::{FairQueue, Share},
    preempt::{SLICE, Watcher},
    turn::{self, Guest},
};

/// The worker threads and their queue. Dropping it ends the threads after their current slice.
pub struct Scheduler {
    queue: Arc<FairQueue<Guest>>,
    workers: Vec<JoinHandle<()>>,
    /// None where nobody watches, or there are too few I/O threads: then all turns are the workers'.
    direct: Option<Arc<Direct>>,
    /// It ends with its last handle.
    _watcher: Option<Arc<Watcher>>,
}

impl Scheduler {
    /// Starts `n_workers` threads; each enters `io`, so that guests can start I/O on it, and is watched
    /// by `watcher` where there is one. Of `io`'s threads, where it has several, one is kept in reserve.
    ///
    /// # Errors
    /// When the process may not start so many threads.
    pub fn start(
        n_workers: NonZeroUsize,
        io: &tokio::runtime::Handle,
        watcher: Option<Arc<Watcher>>,
    ) -> io::Result<Self> {
        let queue = Arc::new(FairQueue::default());
        let workers = (0..n_workers.get())
            .map(|index| {
                let (queue, io, watcher) = (Arc::clone(&queue), io.clone(), watcher.clone());
                thread::Builder::new().name(format!("neoc-script-{index}")).spawn(move || {
                    let _entered = io.enter();
                    direct::this_is_a_worker();
                    if let Some(watcher) = watcher {
                        watcher.enlist(queue.claim());
                    }
                    work(&queue);
                })
            })
            .collect::<io::Result<_>>()?;
        let direct = watcher.as_ref().and_then(|watcher| Direct::new(io, watcher, &queue));
        Ok(Self { queue, workers, direct, _watcher: watcher })
    }

    /// Lets `future` run by turns of `share`'s, see [`Guest::may_be_direct`]. Dropping the task cancels it at its next
    /// yield.
    pub fn spawn<F>(&self, share: &Share, may_be_direct: bool, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (queue, share) = (Arc::clone(&self.queue), share.clone());
        let direct = self.direct.clone();
        let schedule = move |runnable| {
            let guest = Guest { runnable, may_be_direct };
            match &direct {
                Some(direct) => direct.push(&share, guest),
                None => queue.push(&share, guest),
            }
        };
        let (runnable, task) = async_task::spawn(future, schedule);
        direct::here(|| runnable.schedule());
        task
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(direct) = &self.direct {
            direct.close();
        }
        for worker in self.workers.drain(..) {
            // A worker that drops the last guest may be the one that ends them all.
            if worker.thread().id() != thread::current().id() {
                // A worker that panicked has nothing left to clean up.
                let _ = worker.join();
            }
        }
    }
}

/// A worker's life: one turn after the other.
fn work(queue: &FairQueue<Guest>) {
    while let Some((turn, guest)) = queue.begin() {
        turn::run(queue, turn, SLICE, guest);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::{
        super::{preempt::TICK, stopwatch::Stopwatch},
        *,
    };

    /// Where a guest ran: on the thread of Tokio's that began it, or on another.
    async fn is_direct(scheduler: &Scheduler, share: &Share, may_be_direct: bool, is_long: bool) -> bool {
        let began_on = thread::current().id();
        let guest = async move {
            let ran_on = thread::current().id();
            if is_long {
                let stopwatch = Stopwatch::start();
                while stopwatch.cpu_time() < TICK {}
            }
            ran_on
        };
        scheduler.spawn(share, may_be_direct, guest).await == began_on
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("builds")
    }

    fn scheduler(io: &tokio::runtime::Runtime) -> Scheduler {
        let watcher = Watcher::start().expect("starts");
        Scheduler::start(NonZeroUsize::MIN, io.handle(), Some(watcher)).expect("starts")
    }

    fn share(tenant: &str) -> Share {
        Share::new(tenant.into(), NonZeroU32::MIN)
    }

    #[test]
    fn a_quick_guest_runs_where_it_was_begun_and_no_other_does() {
        let io = runtime();
        let scheduler = Arc::new(scheduler(&io));
        // Of a call during which the kernel gave the processor away, too much time may be counted: then a quick guest is
        // taken for a long one. Never the other way.
        let is_seen = (0..100).any(|round| {
            let scheduler = Arc::clone(&scheduler);
            let [quick, long] = ["quick", "long"].map(|name| share(&format!("{name}{round}")));
            let seen = io.block_on(async {
                // On a thread of Tokio's, which this one is not.
                let task = tokio::spawn(async move {
                    let direct = is_direct(&scheduler, &quick, true, false).await;
                    let forbidden = is_direct(&scheduler, &quick, false, false).await;
                    let before_a_long_one = is_direct(&scheduler, &long, true, true).await;
                    let after_it = is_direct(&scheduler, &long, true, false).await;
                    ([direct, before_a_long_one], [forbidden, after_it])
                });
                task.await.expect("ends")
            });
            assert_eq!(seen.1, [false, false]);
            seen.0 == [true, true]
        });
        assert!(is_seen);
    }

    #[test]
    fn a_long_turn_of_short_calls_leaves_its_tenant_quick() {
        let io = runtime();
        let scheduler = Arc::new(scheduler(&io));
        // Of a call during which the kernel gave the processor away, too much time may be counted.
        let is_seen = (0..100).any(|round| {
            let (scheduler, share) = (Arc::clone(&scheduler), share(&round.to_string()));
            let calls = async {
                let turn = Stopwatch::start();
                while turn.cpu_time() < 2 * TICK {
                    let call = Stopwatch::start();
                    while call.cpu_time() < TICK / 10 {}
                    turn::breathe().await;
                }
            };
            io.block_on(async {
                // Only a worker has turns of more than a tick.
                scheduler.spawn(&share, false, calls).await;
                tokio::spawn(async move { is_direct(&scheduler, &share, true, false).await }).await.expect("ends")
            })
        });
        assert!(is_seen);
    }

    #[test]
    fn guests_that_are_begun_together_run_on_that_thread_one_after_the_other() {
        let io = runtime();
        let scheduler = Arc::new(scheduler(&io));
        // Where the machine is busy, the time after which a worker helps may pass before they are done.
        let is_seen = (0..100).any(|_| {
            let scheduler = Arc::clone(&scheduler);
            io.block_on(async {
                let task = tokio::spawn(async move {
                    let quick = share("quick");
                    let begun_on = thread::current().id();
                    let guest = async || thread::current().id();
                    let tasks: Vec<_> = (0..10).map(|_| scheduler.spawn(&quick, true, guest())).collect();
                    let mut ran_on = Vec::new();
                    for task in tasks {
                        ran_on.push(task.await);
                    }
                    ran_on == [begun_on; 10]
                });
                task.await.expect("ends")
            })
        });
        assert!(is_seen);
    }

    #[test]
    fn a_guest_that_is_left_to_a_round_that_runs_gets_its_turn() {
        let io = runtime();
        let scheduler = Arc::new(scheduler(&io));
        // Each guest is woken by tasks of Tokio's, and by the worker's and the main thread's guests, at any moment.
        io.block_on(async {
            let tasks: Vec<_> = (0..16)
                .map(|index| {
                    let scheduler = Arc::clone(&scheduler);
                    let share = share(if index % 2 == 0 { "even" } else { "odd" });
                    tokio::spawn(async move {
                        for turn in 0..500 {
                            let guest = async move {
                                tokio::task::yield_now().await;
                                turn
                            };
                            assert_eq!(scheduler.spawn(&share, turn % 7 != index % 7, guest).await, turn);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("ends");
            }
        });
    }
}
