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
    /// When the turn on this thread is over. None outside of one.
    static ENDS_AT: Cell<Option<Instant>> = const { Cell::new(None) };

    /// Whether the guest has ended its turn by itself, between two calls.
    static HAS_GIVEN_WAY: Cell<bool> = const { Cell::new(false) };
}

/// Runs a guest for its turn, which should be no longer than `most`.
pub fn run(queue: &FairQueue<Guest>, turn: Turn, most: Duration, guest: Guest) {
    let stopwatch = Stopwatch::start();
    ENDS_AT.set(Some(stopwatch.began() + most));
    HAS_GIVEN_WAY.set(false);
    // A panic in a host function ends that one guest: its task is closed, and its owner sees it as an internal
    // failure. The thread goes on.
    if catch_unwind(AssertUnwindSafe(|| guest.runnable.run())).is_err() {
        tracing::error!("a panic was caught; the request that ran has failed");
    }
    ENDS_AT.set(None);
    // Not by the time that has passed: beside others that compute, the kernel lets this thread wait for longer than
    // most turns last.
    let time = stopwatch.cpu_time();
    // Many short calls are not long: a VM that many requests share may have so many in a turn.
    let bound = if HAS_GIVEN_WAY.get() { most + TICK } else { TICK };
    queue.end(turn, time, time >= bound);
}

/// Ends the turn if it has lasted long enough: the guest is in its line again. To be awaited between two calls
/// into a guest; within a call the watcher sees to it.
pub async fn breathe() {
    if ENDS_AT.get().is_some_and(|end| Instant::now() >= end) {
        HAS_GIVEN_WAY.set(true);
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
