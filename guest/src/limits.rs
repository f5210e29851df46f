//! How much there may be in this VM at once, as its start says, and the error for what is over it.

use std::cell::Cell;

use neoc_abi::OperationError;
use neoc_abi::event::Limits;

thread_local! {
    /// A thread-local, because what counts against them is reached from anywhere. None of anything before a start.
    static LIMITS: Cell<Limits> = const { Cell::new(Limits { pending_operations: 0, tasks: 0, timers: 0 }) };
}

/// Takes the limits of a start.
pub fn set(limits: Limits) {
    LIMITS.set(limits);
}

/// Operations under way at once, timers not counted.
pub fn pending_operations() -> usize {
    to_usize(LIMITS.get().pending_operations)
}

/// Tasks alive at once, the first one not counted.
pub fn tasks() -> usize {
    to_usize(LIMITS.get().tasks)
}

/// Timers that run at once.
pub fn timers() -> usize {
    to_usize(LIMITS.get().timers)
}

/// The error of a call that goes over a limit, in the words that the host has for its own.
pub fn exceeded(api: &str, limit: &str, most: usize) -> OperationError {
    OperationError::limit(limit, format!("{api}: over the request's limit {limit} = {most} (at once)"))
}

fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
