//! Operations on their way to the host and back.
//!
//! [`perform`] gives a future; dropping it cancels the operation. The number of operations that wait
//! for the host is bounded, so that no script can queue without end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use futures::channel::oneshot;
use neoc_abi::{Completion, Operation, OperationError, Outcome};

use crate::host;

/// Most operations that may wait for the host at once.
pub const MAX_PENDING: usize = 64;

/// The operations of this VM. A thread-local, because futures and their drop guards reach it from anywhere.
#[derive(Default)]
struct Operations {
    /// Whether effects are allowed: from a start to its finish.
    open: bool,
    /// The number of the last operation.
    last_id: u32,
    /// Those the host works on, by number.
    pending: BTreeMap<u32, oneshot::Sender<Outcome>>,
    /// Those who wait until there are fewer pending ones.
    in_line: Vec<Waker>,
}

thread_local! {
    static OPERATIONS: RefCell<Operations> = RefCell::default();
}

/// Opens or closes the gate for effects, and forgets what a former start left.
pub fn set_open(open: bool) {
    cancel_all();
    OPERATIONS.with_borrow_mut(|operations| operations.open = open);
}

/// Refuses effects where there are none: while the entry module's top level runs.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Invalid`] outside a request.
pub fn check_open(api: &str) -> Result<(), OperationError> {
    if OPERATIONS.with_borrow(|operations| operations.open) {
        return Ok(());
    }
    Err(OperationError::invalid(format!("{api}: top-level code may not do I/O; move it into the handler")))
}

/// Performs an operation.
///
/// # Errors
/// What the host answers, and [`neoc_abi::ErrorKind::Limit`] at once when [`MAX_PENDING`] operations wait.
pub async fn perform(api: &str, operation: Operation) -> Outcome {
    check_open(api)?;
    if OPERATIONS.with_borrow(|operations| operations.pending.len() >= MAX_PENDING) {
        let message = format!("{api}: {MAX_PENDING} operations are pending, which is the most at once");
        return Err(OperationError::limit("pending_operations", message));
    }
    submit(operation).await
}

/// Performs an operation as soon as fewer than [`MAX_PENDING`] others wait.
///
/// # Errors
/// What the host answers.
pub async fn perform_in_line(api: &str, operation: Operation) -> Outcome {
    check_open(api)?;
    poll_fn(|context| {
        OPERATIONS.with_borrow_mut(|operations| {
            if operations.pending.len() < MAX_PENDING {
                return Poll::Ready(());
            }
            operations.in_line.push(context.waker().clone());
            Poll::Pending
        })
    })
    .await;
    submit(operation).await
}

async fn submit(operation: Operation) -> Outcome {
    let id = OPERATIONS.with_borrow_mut(Operations::next_id);
    let (sender, receiver) = oneshot::channel();
    // Listed first: the guard must find it even if the future is dropped at once.
    OPERATIONS.with_borrow_mut(|operations| operations.pending.insert(id, sender));
    let mut ticket = Ticket { id, cancel_on_drop: false };
    if let Some(outcome) = host::submit(id, &operation) {
        return outcome;
    }
    // The text may be large, and the wait long.
    drop(operation);
    ticket.cancel_on_drop = true;
    receiver.await.unwrap_or_else(|_| Err(cancelled()))
}

fn cancelled() -> OperationError {
    OperationError::new(neoc_abi::ErrorKind::Cancelled, "the request has ended")
}

/// Hands a finished operation to whoever waits for it. Nobody may: it was cancelled meanwhile.
pub fn complete(completion: Completion) {
    let Completion { id, outcome } = completion;
    let waiting = OPERATIONS.with_borrow_mut(|operations| operations.remove(id));
    if let Some(sender) = waiting {
        // The receiver is gone when the task was dropped in this very batch.
        let _ = sender.send(outcome);
    }
}

fn cancel_all() {
    let pending = OPERATIONS.with_borrow_mut(|operations| {
        operations.in_line.clear();
        std::mem::take(&mut operations.pending)
    });
    for id in pending.into_keys() {
        host::cancel(id);
    }
}

/// Takes the operation off the list when its future ends or is dropped.
struct Ticket {
    /// The operation's number.
    id: u32,
    /// Whether the host works on it.
    cancel_on_drop: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // The thread-local may be gone when a test's thread ends.
        let listed = OPERATIONS.try_with(|operations| operations.borrow_mut().remove(self.id).is_some());
        if self.cancel_on_drop && listed.unwrap_or(false) {
            host::cancel(self.id);
        }
    }
}

impl Operations {
    fn next_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.pending.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Removes a pending operation. All who are in line look again: one of them may be gone.
    fn remove(&mut self, id: u32) -> Option<oneshot::Sender<Outcome>> {
        let sender = self.pending.remove(&id)?;
        self.in_line.drain(..).for_each(Waker::wake);
        Some(sender)
    }
}

/// The error for a call that would have to wait where Luau cannot yield.
pub fn cannot_yield(api: &str) -> OperationError {
    check_open(api).err().unwrap_or_else(|| {
        OperationError::invalid(format!(
            "{api}: cannot wait for it here: Luau does not yield inside a metamethod, a table.sort comparator or a \
             string.gsub callback"
        ))
    })
}
