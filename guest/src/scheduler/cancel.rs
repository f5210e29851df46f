//! Cancelling, and the time to clean up.
//!
//! A cancelled task stays so: each later call that could wait raises `cancelled` again, whatever `pcall`
//! has swallowed before. What it waits for is stopped first: the host drops its operation and gives back
//! what that held, and only then does the task go on, with the error.
//!
//! Its cleanups run all the same, and may wait, for [`CLEANUP_SECONDS`] in all.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use mlua::{Function, Lua};
use neoc_abi::{ErrorKind, OperationError};

use super::{Ownership, TASKS, Task, end, log_death, wait, wake};
use crate::operation;

/// How long the cleanups of a cancelled task may take, in seconds.
pub const CLEANUP_SECONDS: f64 = 1.0;

/// How often a cancelled task may swallow that it is. After that it does not run any more: a loop round
/// `pcall` would use up the CPU time of its whole request.
const MAX_REFUSALS: u32 = 100;

/// How far a task has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its function runs.
    Body,
    /// Its cleanups run.
    Cleanup,
    /// Its cleanups have had their time.
    Late,
    /// It has ended, and only waits for the others: the first task.
    Over,
}

/// What became of a call of `cancel`.
pub enum Cancelled {
    /// The task had ended before, or was cancelled before.
    No,
    /// It ends as soon as the host has stopped what it waits for.
    Yes,
    /// It had not begun, and never will.
    Unbegun,
}

/// The error of a cancelled task's calls.
pub fn refusal() -> OperationError {
    OperationError::new(ErrorKind::Cancelled, "the task was cancelled")
}

/// Whether the current task's calls are refused.
pub fn is_cancelled() -> bool {
    TASKS.with_borrow(|tasks| tasks.alive.get(&tasks.current).is_some_and(Task::is_refused))
}

/// Whether a task was ever cancelled.
pub fn was_cancelled(id: u32) -> bool {
    TASKS.with_borrow(|tasks| {
        let is_cancelled = |task: &Task| task.cancelled;
        tasks.alive.get(&id).is_some_and(is_cancelled)
            || tasks.requests.values().any(|request| request.cancelled_unbegun.contains(&id))
    })
}

/// Refuses the current task's call if it is cancelled.
///
/// # Errors
/// Of kind `cancelled`.
pub fn check() -> Result<(), OperationError> {
    if !is_cancelled() {
        return Ok(());
    }
    with_task(super::current(), |task| task.refusals += 1);
    Err(refusal())
}

/// Runs a part of a task until it ends. Nothing: the task was cancelled and must not run again, because it
/// gave up its turn by a plain yield, which raises no error, or has swallowed one refusal too many.
pub(super) async fn guard<T>(id: u32, part: impl Future<Output = T>) -> Option<T> {
    let mut part = pin!(part);
    poll_fn(|context| {
        if is_over(id) {
            return Poll::Ready(None);
        }
        match part.as_mut().poll(context) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending => {
                note_yield(id);
                if is_over(id) { Poll::Ready(None) } else { Poll::Pending }
            }
        }
    })
    .await
}

fn is_over(id: u32) -> bool {
    TASKS.with_borrow(|tasks| tasks.alive.get(&id).is_some_and(|task| task.is_refused() && task.yielded_plainly))
}

/// Looks whether a task that has given up its turn waits for anything. Of one that is not cancelled nobody asks, and to
/// look takes the longer, the more others wait.
fn note_yield(id: u32) {
    if with_task(id, |task| task.cancelled) != Some(true) {
        return;
    }
    let waits = operation::is_awaited_by(id) || wait::is_awaited_by(id);
    with_task(id, |task| task.yielded_plainly = !waits);
}

/// Refuses the current task's call if it is cancelled. One that does not listen waits for its end here.
///
/// # Errors
/// Of kind `cancelled`.
pub async fn refuse() -> Result<(), OperationError> {
    if listens_no_more() {
        std::future::pending::<()>().await;
    }
    check()
}

/// Whether the current task has swallowed one refusal too many: its calls come to no end.
pub fn listens_no_more() -> bool {
    with_task(super::current(), |task| task.is_refused() && task.refusals > MAX_REFUSALS) == Some(true)
}

/// Cancels a task.
pub fn cancel(id: u32) -> Cancelled {
    let found = with_task(id, |task| {
        let is_of_no_use = task.phase == Phase::Over || std::mem::replace(&mut task.cancelled, true);
        (!is_of_no_use).then_some((task.begun, task.phase, task.future.is_some()))
    });
    match found.flatten() {
        None => Cancelled::No,
        Some((false, ..)) => {
            end(id);
            Cancelled::Unbegun
        }
        // It cleans up already. What that waits for goes on, and its time begins: see `clean_up`.
        Some((true, Phase::Cleanup, _)) => {
            wake(id);
            Cancelled::Yes
        }
        Some((true, _, is_parked)) => {
            if is_parked {
                note_yield(id);
            }
            stop_waiting(id);
            Cancelled::Yes
        }
    }
}

/// Cancels all tasks of a request that are of some kinds, but never the first one.
pub fn cancel_where(request: u32, which: impl Fn(Ownership) -> bool) {
    let ids: Vec<u32> = TASKS.with_borrow(|tasks| {
        let first = tasks.requests.get(&request).map(|request| request.first);
        let chosen = tasks.of_request(request).filter(|&(id, task)| Some(id) != first && which(task.ownership));
        chosen.map(|(id, _)| id).collect()
    });
    for id in ids {
        if let Cancelled::Unbegun = cancel(id) {
            // Nothing else is left of it, and the script may still ask.
            TASKS.with_borrow_mut(|tasks| {
                if let Some(request) = tasks.requests.get_mut(&request) {
                    request.cancelled_unbegun.insert(id);
                }
            });
        }
    }
}

/// Cancels all tasks of a request, the first one too. It gets no new ones.
pub fn cancel_request(request: u32) {
    let first = TASKS.with_borrow_mut(|tasks| {
        let request = tasks.requests.get_mut(&request)?;
        request.cancelled = true;
        Some(request.first)
    });
    if let Some(first) = first {
        cancel(first);
        cancel_where(request, |_| true);
    }
}

/// Whether the current task's request was cancelled.
#[cfg(test)]
pub fn is_of_cancelled_request() -> bool {
    TASKS.with_borrow(|tasks| {
        let request = tasks.current_request().and_then(|number| tasks.requests.get(&number));
        request.is_some_and(|request| request.cancelled)
    })
}

/// Stops what a task waits for. It wakes once the host has confirmed that.
fn stop_waiting(id: u32) {
    operation::cancel_of(id);
    wait::stir(id);
    // For one that waits for nothing in particular, after a plain yield.
    wake(id);
}

/// Has the current task's cleanups run when its body has ended.
pub fn ask_for_cleanups() {
    with_task(super::current(), |task| task.has_cleanups = true);
}

/// Runs a task's cleanups, if it has any. A cancelled task gets a short time for them. `is_settled` says
/// whether the Luau side knows how the task has ended; if not, it is told here.
pub(super) async fn clean_up(lua: &Lua, id: u32, is_settled: bool) {
    let Some(run_cleanups) = begin(id, is_settled) else { return };
    let mut window = pin!(operation::window(CLEANUP_SECONDS));
    // A cleanup that does not listen when its time is over does not take the others along.
    loop {
        let thread = lua.create_thread(run_cleanups.clone()).and_then(|thread| thread.into_async::<()>(id));
        let mut cleanups = match thread {
            Ok(cleanups) => pin!(cleanups),
            Err(error) => return log_death(Err(error)),
        };
        let ended = guard(
            id,
            poll_fn(|context| {
                if let Poll::Ready(ended) = cleanups.as_mut().poll(context) {
                    return Poll::Ready(ended);
                }
                if is_in_its_window(id) && window.as_mut().poll(context).is_ready() {
                    with_task(id, |task| task.phase = Phase::Late);
                    stop_waiting(id);
                }
                Poll::Pending
            }),
        );
        if let Some(ended) = ended.await {
            return log_death(ended);
        }
        with_task(id, Task::listen_again);
    }
}

/// The Luau function that runs the cleanups, where there is anything to do.
fn begin(id: u32, is_settled: bool) -> Option<Function> {
    TASKS.with_borrow_mut(|tasks| {
        let task = tasks.alive.get_mut(&id)?;
        task.phase = Phase::Cleanup;
        task.listen_again();
        if task.has_cleanups || !is_settled { tasks.run_cleanups.clone() } else { None }
    })
}

fn is_in_its_window(id: u32) -> bool {
    TASKS.with_borrow(|tasks| {
        let task = tasks.alive.get(&id);
        task.is_some_and(|task| task.cancelled && task.phase == Phase::Cleanup)
    })
}

fn with_task<T>(id: u32, change: impl FnOnce(&mut Task) -> T) -> Option<T> {
    TASKS.with_borrow_mut(|tasks| tasks.alive.get_mut(&id).map(change))
}

impl Task {
    /// What it has not listened to no longer counts.
    fn listen_again(&mut self) {
        self.refusals = 0;
        self.yielded_plainly = false;
    }

    /// Whether its calls are refused.
    fn is_refused(&self) -> bool {
        self.cancelled && self.phase != Phase::Cleanup
    }
}
