//! Operations on their way to the host and back.
//!
//! [`perform`] gives a future; dropping it stops the operation. When the task that waits is cancelled, the
//! host stops the operation first and confirms that, and only then does the future end. How many operations
//! and timers may be on their way at once is bounded, so that no script can queue without end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use neoc_abi::{Completion, Operation, OperationError, Outcome, Reply, time};

use crate::scheduler::{self, cancel, wait};
use crate::{caller, host, limits};

/// The longest time that can be waited for, in seconds. A wait for ever is a wait for the end of the script's time.
const MAX_SECONDS: f64 = 1e9;

/// The operations of this VM. A thread-local, because futures and their drop guards reach it from anywhere.
#[derive(Default)]
struct Operations {
    /// The number of the last operation.
    last_id: u32,
    /// Those that somebody waits for, by number.
    awaited: BTreeMap<u32, Awaited>,
    /// What there is of each request that has had any.
    counts: BTreeMap<u32, Counts>,
}

/// The operations of one request. The first two are those that the host works on, and count against limits.
#[derive(Default)]
struct Counts {
    /// Timers not counted.
    n_pending: usize,
    n_timers: usize,
    /// Those that are awaited, timers counted.
    n_awaited: usize,
    /// Those who wait until there are fewer pending ones.
    in_line: Vec<Waker>,
}

/// An operation, from its submission until its outcome is taken.
struct Awaited {
    /// The request whose it is.
    request: u32,
    /// The task that waits for it.
    task: u32,
    is_timer: bool,
    /// Whether its task was cancelled, and the host was told to stop.
    cancelled: bool,
    progress: Progress,
    waker: Option<Waker>,
}

/// How far the host has come with an operation.
enum Progress {
    /// It works on it.
    Pending,
    /// It has ended, so.
    Finished(Box<Outcome>),
    /// Its outcome was taken.
    Taken,
}

thread_local! {
    static OPERATIONS: RefCell<Operations> = RefCell::default();
}

/// Stops what is left of a request's operations, and forgets it.
pub fn close(request: u32) {
    let left: Vec<(u32, bool)> = OPERATIONS.with_borrow_mut(|operations| {
        // Most have none left, and those of others are many.
        let n_awaited = operations.counts.remove(&request).map_or(0, |counts| counts.n_awaited);
        let of_request = operations.awaited.iter().filter(|(_, awaited)| awaited.request == request);
        let left: Vec<_> = of_request.take(n_awaited).map(|(id, awaited)| (*id, awaited.is_pending())).collect();
        left.iter().for_each(|(id, _)| drop(operations.awaited.remove(id)));
        left
    });
    for (id, _) in left.iter().filter(|(_, is_pending)| *is_pending) {
        host::cancel(request, *id, false);
    }
}

/// Refuses effects where there are none: while the entry module's top level runs.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Invalid`] outside a request.
pub fn check_open(api: &str) -> Result<(), OperationError> {
    if scheduler::is_open() { Ok(()) } else { Err(not_open(api)) }
}

/// The error of what is done outside a request.
pub fn not_open(api: &str) -> OperationError {
    OperationError::invalid(format!("{api}: top-level code may not do I/O; move it into the handler"))
}

/// Performs an operation.
///
/// # Errors
/// What the host answers; `cancelled`; [`neoc_abi::ErrorKind::Limit`] at once when too many others wait.
pub async fn perform(api: &str, operation: Operation) -> Outcome {
    check_open(api)?;
    cancel::refuse().await?;
    let most = limits::pending_operations();
    if OPERATIONS.with_borrow(|operations| operations.n_pending(scheduler::request()) >= most) {
        return Err(limits::exceeded(api, "pending_operations", most));
    }
    submit(operation, false)?.outcome().await
}

/// Performs an operation as soon as few enough others wait.
///
/// # Errors
/// What the host answers, and `cancelled`.
pub async fn perform_in_line(api: &str, operation: Operation) -> Outcome {
    check_open(api)?;
    let turn = wait::Turn::begin();
    poll_fn(|context| {
        OPERATIONS.with_borrow_mut(|operations| {
            let request = scheduler::request();
            if operations.n_pending(request) < limits::pending_operations() || cancel::is_cancelled() {
                return Poll::Ready(());
            }
            operations.counts.entry(request).or_default().in_line.push(context.waker().clone());
            Poll::Pending
        })
    })
    .await;
    drop(turn);
    cancel::refuse().await?;
    submit(operation, false)?.outcome().await
}

/// Performs an operation that the host answers at once.
///
/// # Errors
/// What the host answers, and `cancelled`.
pub fn perform_at_once(api: &str, operation: Operation) -> Outcome {
    check_open(api)?;
    cancel::check()?;
    submit(operation, false)?.now()
}

/// Waits for so many seconds; gives those that have really passed. NaN and negative times are no time.
///
/// # Errors
/// `cancelled`; [`neoc_abi::ErrorKind::Limit`] when too many run; what the host answers.
pub async fn sleep(api: &str, seconds: f64) -> Result<f64, OperationError> {
    check_open(api)?;
    cancel::refuse().await?;
    let most = limits::timers();
    if OPERATIONS.with_borrow(|operations| operations.n_timers(scheduler::request()) >= most) {
        return Err(limits::exceeded(api, "timers", most));
    }
    waited(submit(wait_for(seconds), true)?.outcome().await?)
}

/// Lets a time pass that no task waits for, so that no cancellation ends it.
pub async fn window(seconds: f64) {
    if let Ok(mut pending) = submit(wait_for(seconds), true) {
        pending.hand_to_nobody();
        // Over, in any case: an error must not make the window wider.
        let _ = pending.outcome().await;
    }
}

fn wait_for(seconds: f64) -> Operation {
    let seconds = if seconds > 0.0 { seconds.min(MAX_SECONDS) } else { 0.0 };
    Operation::Time(time::Operation::Wait { seconds })
}

fn waited(reply: Reply) -> Result<f64, OperationError> {
    match reply {
        Reply::Time(time::Reply::Waited { seconds }) => Ok(seconds),
        _ => Err(OperationError::io("the host's reply is for another operation")),
    }
}

/// Hands an operation to the host, for the current task. It is dropped here: it may be large, and the wait long.
fn submit(operation: Operation, is_timer: bool) -> Result<Pending, OperationError> {
    let (task, request) = (scheduler::current(), scheduler::request());
    let id = OPERATIONS.with_borrow_mut(|operations| operations.add(request, task, is_timer));
    let pending = Pending { id };
    if let Some(outcome) = host::submit(request, id, &caller::call(operation)) {
        complete(Completion { id, outcome });
    }
    Ok(pending)
}

/// Keeps the outcome of an operation for whoever waits for it. Nobody may: it was dropped meanwhile.
pub fn complete(completion: Completion) {
    let Completion { id, outcome } = completion;
    let (waker, in_line) = OPERATIONS.with_borrow_mut(|operations| {
        let Some(awaited) = operations.awaited.get_mut(&id) else { return (None, Vec::new()) };
        if !awaited.is_pending() {
            return (None, Vec::new());
        }
        awaited.progress = Progress::Finished(Box::new(outcome));
        let (waker, request, is_timer) = (awaited.waker.take(), awaited.request, awaited.is_timer);
        (waker, operations.subtract(request, is_timer))
    });
    waker.into_iter().chain(in_line).for_each(Waker::wake);
}

/// Has the host stop what a task waits for. The task goes on once the host has confirmed each.
pub fn cancel_of(task: u32) {
    let request = scheduler::request_of(task);
    let (ids, in_line): (Vec<u32>, _) = OPERATIONS.with_borrow_mut(|operations| {
        let of_task = operations.awaited.iter_mut().filter(|(_, awaited)| awaited.task == task);
        let ids = of_task.filter_map(|(id, awaited)| {
            let was_cancelled = std::mem::replace(&mut awaited.cancelled, true);
            (!was_cancelled && awaited.is_pending()).then_some(*id)
        });
        (ids.collect(), operations.take_line(request))
    });
    ids.into_iter().for_each(|id| host::cancel(request, id, true));
    in_line.into_iter().for_each(Waker::wake);
}

/// Has the host stop all that the current task waits for, and waits until it has. The task goes on.
pub async fn stop_all() {
    let task = scheduler::current();
    cancel_of(task);
    poll_fn(|context| {
        OPERATIONS.with_borrow_mut(|operations| {
            let mut poll = Poll::Ready(());
            for awaited in operations.awaited.values_mut() {
                if awaited.task == task && awaited.is_pending() {
                    // Whoever waited for its outcome is not polled any more.
                    awaited.waker = Some(context.waker().clone());
                    poll = Poll::Pending;
                }
            }
            poll
        })
    })
    .await;
}

/// Forgets what a task waits for: whoever waited is gone. The host stops it.
pub fn abandon(task: u32) {
    let (ids, in_line) = OPERATIONS.with_borrow_mut(|operations| {
        let of_task = operations.awaited.iter().filter(|(_, awaited)| awaited.task == task);
        let ids: Vec<u32> = of_task.map(|(id, _)| *id).collect();
        let forgotten = ids.iter().filter_map(|id| {
            let (request, in_line) = operations.forget(*id)?;
            Some(((request, *id), in_line))
        });
        forgotten.unzip::<(u32, u32), Vec<Waker>, Vec<_>, Vec<_>>()
    });
    ids.into_iter().for_each(|(request, id)| host::cancel(request, id, false));
    in_line.into_iter().flatten().for_each(Waker::wake);
}

/// Whether a task waits for the outcome of an operation.
pub fn is_awaited_by(task: u32) -> bool {
    OPERATIONS.with_borrow(|operations| operations.awaited.values().any(|awaited| awaited.task == task))
}

/// Whether the host works on anything, so that it will deliver something.
pub fn any_pending() -> bool {
    OPERATIONS.with_borrow(|operations| operations.counts.values().any(|of| of.n_pending + of.n_timers > 0))
}

/// The operations that the host works on, as far as is known here, in order.
#[cfg(test)]
pub fn pending() -> Vec<u32> {
    OPERATIONS.with_borrow(|operations| {
        operations.awaited.iter().filter(|(_, awaited)| awaited.is_pending()).map(|(id, _)| *id).collect()
    })
}

/// The tasks that wait for the outcomes of operations. Nothing: a window waits.
#[cfg(test)]
pub fn waiting_tasks() -> Vec<Option<u32>> {
    OPERATIONS.with_borrow(|operations| {
        operations.awaited.values().map(|awaited| (awaited.task != NOBODY).then_some(awaited.task)).collect()
    })
}

/// An operation that the host works on. Dropping it stops the operation.
struct Pending {
    id: u32,
}

impl Pending {
    async fn outcome(self) -> Outcome {
        let (outcome, is_tasks) = poll_fn(|context| {
            OPERATIONS.with_borrow_mut(|operations| {
                let Some(awaited) = operations.awaited.get_mut(&self.id) else { return Poll::Ready((None, true)) };
                if awaited.is_pending() {
                    awaited.waker = Some(context.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready((awaited.take(), awaited.task != NOBODY))
            })
        })
        .await;
        // It may have ended just before its task was cancelled.
        if is_tasks && cancel::is_cancelled() {
            return Err(cancel::refusal());
        }
        outcome.unwrap_or_else(|| Err(request_has_ended()))
    }

    fn now(self) -> Outcome {
        let outcome = OPERATIONS.with_borrow_mut(|operations| operations.awaited.get_mut(&self.id)?.take());
        outcome.unwrap_or_else(|| Err(OperationError::io("the host did not answer at once")))
    }

    /// Lets it go on when the task is cancelled.
    fn hand_to_nobody(&mut self) {
        OPERATIONS.with_borrow_mut(|operations| {
            if let Some(awaited) = operations.awaited.get_mut(&self.id) {
                awaited.task = NOBODY;
            }
        });
    }
}

/// No task has this number.
const NOBODY: u32 = u32::MAX;

fn request_has_ended() -> OperationError {
    OperationError::new(neoc_abi::ErrorKind::Cancelled, "the request has ended")
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The thread-local may be gone when a test's thread ends.
        let forgotten = OPERATIONS.try_with(|operations| operations.borrow_mut().forget(self.id));
        let Ok(Some((request, in_line))) = forgotten else { return };
        host::cancel(request, self.id, false);
        in_line.into_iter().for_each(Waker::wake);
    }
}

impl Awaited {
    fn is_pending(&self) -> bool {
        matches!(self.progress, Progress::Pending)
    }

    fn take(&mut self) -> Option<Outcome> {
        match std::mem::replace(&mut self.progress, Progress::Taken) {
            Progress::Finished(outcome) => Some(*outcome),
            Progress::Pending | Progress::Taken => None,
        }
    }
}

impl Operations {
    fn n_pending(&self, request: u32) -> usize {
        self.counts.get(&request).map_or(0, |counts| counts.n_pending)
    }

    fn n_timers(&self, request: u32) -> usize {
        self.counts.get(&request).map_or(0, |counts| counts.n_timers)
    }

    fn add(&mut self, request: u32, task: u32, is_timer: bool) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.awaited.contains_key(&self.last_id) {
                break;
            }
        }
        let progress = Progress::Pending;
        let awaited = Awaited { request, task, is_timer, cancelled: false, progress, waker: None };
        self.awaited.insert(self.last_id, awaited);
        let counts = self.counts.entry(request).or_default();
        counts.n_awaited += 1;
        if is_timer {
            counts.n_timers += 1;
        } else {
            counts.n_pending += 1;
        }
        self.last_id
    }

    /// One that the host worked on has ended. Gives those who wait for its place.
    fn subtract(&mut self, request: u32, is_timer: bool) -> Vec<Waker> {
        let Some(counts) = self.counts.get_mut(&request) else { return Vec::new() };
        let counter = if is_timer { &mut counts.n_timers } else { &mut counts.n_pending };
        *counter = counter.saturating_sub(1);
        std::mem::take(&mut counts.in_line)
    }

    fn take_line(&mut self, request: u32) -> Vec<Waker> {
        self.counts.get_mut(&request).map(|counts| std::mem::take(&mut counts.in_line)).unwrap_or_default()
    }

    /// Takes an operation off the list. If the host still works on it, gives whose it is, and those who wait for its
    /// place.
    fn forget(&mut self, id: u32) -> Option<(u32, Vec<Waker>)> {
        let awaited = self.awaited.remove(&id)?;
        if let Some(counts) = self.counts.get_mut(&awaited.request) {
            counts.n_awaited = counts.n_awaited.saturating_sub(1);
        }
        let was_pending = awaited.is_pending();
        was_pending.then(|| (awaited.request, self.subtract(awaited.request, awaited.is_timer)))
    }
}
