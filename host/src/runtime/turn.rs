//! One turn of a guest: what runs between two looks at the queue.

use std::{
    cell::Cell,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Poll,
    time::{Duration, Instant},
};

use async_task::Runnable;

use super::{
    fair_queue::{FairQueue, Turn},
    preempt::TICK,
    stopwatch::Stopwatch,
};

/// Who waits for a turn.
pub struct Guest {
    pub runnable: Runnable,
    /// Whether an I/O thread may give it one. Not to who blocks its thread, nor to who computes for long.
    pub may_be_direct: bool,
}

thread_local! {
    /// The turn on this thread.
    static TURN: Cell<Option<Running>> = const { Cell::new(None) };
}

/// A turn that goes on.
#[derive(Clone, Copy)]
struct Running {
    ends_at: Instant,
    /// The stretch that goes on: from the beginning, or from when the guest could last have given way.
    stretch: Stopwatch,
    /// Whether one before it was long.
    is_long: bool,
}

/// Whether a stretch of so much CPU time is long. Not by the time that has passed: beside others that compute, the kernel
/// lets this thread wait for longer than most turns last.
fn is_long(time: Duration) -> bool {
    time >= TICK
}

/// Runs a guest for its turn, which should be no longer than `most`.
pub fn run(queue: &FairQueue<Guest>, turn: Turn, most: Duration, guest: Guest) {
    let stopwatch = Stopwatch::start();
    TURN.set(Some(Running { ends_at: stopwatch.began() + most, stretch: stopwatch, is_long: false }));
    // A panic in a host function ends that one guest: its task is closed, and its owner sees it as an internal
    // failure. The thread goes on.
    if catch_unwind(AssertUnwindSafe(|| guest.runnable.run())).is_err() {
        tracing::error!("a panic was caught; the request that ran has failed");
    }
    // Many short calls are not long: a VM that many requests share may have so many in a turn.
    let is_long = TURN.take().is_some_and(|running| running.is_long || is_long(running.stretch.cpu_time()));
    queue.end(turn, stopwatch.cpu_time(), is_long);
}

/// Ends the turn if it has lasted long enough: the guest is in its line again. To be awaited between two calls
/// into a guest; within a call the watcher sees to it.
pub async fn breathe() {
    let Some(running) = TURN.get() else { return };
    let (time, stretch) = running.stretch.lap();
    TURN.set(Some(Running { stretch, is_long: running.is_long || is_long(time), ..running }));
    if stretch.began() >= running.ends_at {
        end_here().await;
    }
}

/// Ends the turn, as of a guest that the watcher has interrupted: it is in its line again, at the end. So is a task of
/// Tokio's that awaits it.
pub async fn end_here() {
    let mut has_ended = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_ended, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
