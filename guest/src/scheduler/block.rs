//! Waiting where Luau cannot yield: in a metamethod, a `table.sort` comparator, a `string.gsub` callback, a
//! handler of `xpcall`.
//!
//! There the call keeps the stack, and the whole VM stands still until it can go on: a stall, which the host
//! counts, and logs once for each place. A call that waits for the host lets no other task run meanwhile, be it
//! made in a coroutine there. One that waits for other tasks must let them run, on top of its own stack; so deep
//! in each other, and no deeper than [`MAX_BLOCKED`], can such calls be. Nothing waits for ever: when no task can
//! run and the host works on nothing, the call that stands on top is refused.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use neoc_abi::OperationError;

use super::{TASKS, cancel, current, deliver, poll_as, run_until, wait, wake_last};
use crate::{host, operation};

/// How many calls that wait for tasks may stand on top of each other.
const MAX_BLOCKED: usize = 8;

/// What a call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// Nothing but the host.
    Host,
    /// Other tasks, perhaps.
    Tasks,
}

thread_local! {
    /// How many calls wait for tasks now, on top of each other.
    static BLOCKED: Cell<usize> = const { Cell::new(0) };
}

/// Runs a future to its end while the VM stands still. `place` says where, for the log.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Invalid`] when nothing could ever end it, [`neoc_abi::ErrorKind::Limit`] when too
/// many calls wait on top of each other.
pub fn block_on<T>(
    api: &str,
    waits_for: WaitsFor,
    place: impl FnOnce() -> String,
    future: impl Future<Output = T>,
) -> Result<T, OperationError> {
    let (task, flag) = (current(), Arc::new(Flag::default()));
    let (mut future, waker) = (pin!(future), Waker::from(Arc::clone(&flag)));
    let mut poll = || poll_as(task, future.as_mut(), &mut Context::from_waker(&waker));
    if let Poll::Ready(value) = poll() {
        return Ok(value);
    }
    // It cannot be ended here, and nothing else ends its call. Its CPU time will.
    if cancel::listens_no_more() {
        return Err(cancel::refusal());
    }
    host::stall(super::request(), &place());
    let _guard = Guard::enter(api, waits_for)?;
    loop {
        step(api, waits_for, task, &|| flag.is_raised())?;
        flag.lower();
        if let Poll::Ready(value) = poll() {
            return Ok(value);
        }
    }
}

/// Stands still until something wakes the current task: for a coroutine that waits inside of what cannot yield.
/// After an error that coroutine is never resumed again.
///
/// # Errors
/// As [`block_on`].
pub fn block_until_woken(api: &str, place: impl FnOnce() -> String) -> Result<(), OperationError> {
    let blocked = stand_still_until_woken(api, place);
    if blocked.is_err() {
        // The coroutine's calls go with the garbage. Until then they must not be handed anything.
        operation::abandon(current());
        wait::abandon(current());
    }
    blocked
}

fn stand_still_until_woken(api: &str, place: impl FnOnce() -> String) -> Result<(), OperationError> {
    let task = current();
    let is_woken = || TASKS.with_borrow(|tasks| tasks.alive.get(&task).is_none_or(|task| task.woken));
    if !is_woken() {
        if cancel::listens_no_more() {
            return Err(cancel::refusal());
        }
        host::stall(super::request(), &place());
        let is_hosts = operation::is_awaited_by(task) && !wait::is_awaited_by(task);
        let waits_for = if is_hosts { WaitsFor::Host } else { WaitsFor::Tasks };
        let _guard = Guard::enter(api, waits_for)?;
        step(api, waits_for, task, &is_woken)?;
    }
    super::lower_woken(task);
    Ok(())
}

/// Lets happen what can happen, until `is_woken`.
fn step(api: &str, waits_for: WaitsFor, task: u32, is_woken: &dyn Fn() -> bool) -> Result<(), OperationError> {
    while !is_woken() {
        if waits_for == WaitsFor::Tasks {
            run_until(is_woken);
        } else {
            wake_last();
        }
        if is_woken() {
            break;
        }
        if operation::any_pending() {
            deliver(host::wait(super::request(), waits_for == WaitsFor::Tasks));
        } else if !wait::refuse_deadlock(task) {
            // A line of its own for what waits in no line.
            cancel::check()?;
            let message = format!("{api}: nothing can end this wait");
            return Err(OperationError::invalid(message));
        }
    }
    Ok(())
}

/// One more call that waits for tasks. Dropped when it goes on.
struct Guard;

impl Guard {
    /// None for a call that waits for the host: nothing runs on top of it.
    fn enter(api: &str, waits_for: WaitsFor) -> Result<Option<Self>, OperationError> {
        if waits_for == WaitsFor::Host {
            return Ok(None);
        }
        let blocked = BLOCKED.get();
        if blocked >= MAX_BLOCKED {
            let message = format!(
                "{api}: {MAX_BLOCKED} calls wait on top of each other where Luau cannot yield, which is the most"
            );
            return Err(OperationError::limit("stall_depth", message));
        }
        BLOCKED.set(blocked + 1);
        Ok(Some(Self))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        BLOCKED.set(BLOCKED.get().saturating_sub(1));
    }
}

/// Whether something has happened since it was last polled.
#[derive(Default)]
struct Flag(AtomicBool);

impl Flag {
    fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn lower(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
