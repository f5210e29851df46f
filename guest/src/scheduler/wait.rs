//! Waiting for each other: for a task's end, or in a line of a channel, a semaphore, a module's load.
//!
//! Each wait has a ticket of its own, which is never given out again. What wakes a waiter names the ticket,
//! so nothing that ends later can wake a task out of another wait. A wait that is over, however it ended,
//! is nowhere listed any more.

#[cfg(test)]
pub mod census;

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};

use neoc_abi::OperationError;

use super::{TASKS, cancel, current};
use crate::operation;

/// Who waits for what.
#[derive(Default)]
pub(super) struct Waits {
    last_ticket: u64,
    last_line: u32,
    by_ticket: BTreeMap<u64, Wait>,
    /// The tickets that wait for a task's end, by its number. Tasks that nobody waits for have no entry.
    for_end: BTreeMap<u32, BTreeSet<u64>>,
    /// The tickets in each line, in order. Empty lines have no entry.
    lines: BTreeMap<u32, BTreeSet<u64>>,
    /// Which task waits for which alone, without a deadline: a cycle of these never ends.
    edges: BTreeMap<u32, u32>,
}

struct Wait {
    /// Which task waits.
    task: u32,
    listed: Listed,
    /// How many ends it waits for, unless one of them is a failure.
    left: usize,
    waker: Option<Waker>,
    end: Option<End>,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// With what the waker has for the waiter: the number of a task, or what a line's owner chose.
    Woken(u32),
    /// Nothing could ever wake it.
    Deadlock,
}

/// Where a wait's ticket is listed.
enum Listed {
    /// At each of these tasks.
    Ends(Vec<u32>),
    /// In this line.
    Line(u32),
    /// Nowhere: it only says that its task waits.
    Nowhere,
}

/// A wait's place in the tables. Dropping it leaves all of them.
struct Ticket(u64);

/// A new line, for others to wait in.
pub fn new_line() -> u32 {
    TASKS.with_borrow_mut(|tasks| {
        tasks.waits.last_line += 1;
        tasks.waits.last_line
    })
}

/// Whether nobody waits in a line.
pub fn is_empty(line: u32) -> bool {
    TASKS.with_borrow(|tasks| !tasks.waits.lines.contains_key(&line))
}

/// Wakes the first `n` in a line, with `reason`. Gives how many there were. Never yields.
pub fn wake(line: u32, n: usize, reason: u32) -> usize {
    let woken: Vec<_> = TASKS.with_borrow_mut(|tasks| {
        let waits = &mut tasks.waits;
        let Some(tickets) = waits.lines.get_mut(&line) else { return Vec::new() };
        let first: Vec<_> = tickets.iter().copied().take(n).collect();
        tickets.retain(|ticket| !first.contains(ticket));
        if tickets.is_empty() {
            waits.lines.remove(&line);
        }
        first.into_iter().map(|ticket| waits.finish(ticket, End::Woken(reason))).collect()
    });
    let n_woken = woken.len();
    woken.into_iter().flatten().for_each(Waker::wake);
    n_woken
}

/// Waits in a line until woken; gives the waker's reason, or nothing when the time is up. One that was woken
/// stays so, even if it was cancelled or its time was up in the same moment: what it was handed is its own.
///
/// # Errors
/// `cancelled`, and `invalid` when nothing could ever wake it.
pub async fn wait_in(api: &str, line: u32, seconds: Option<f64>) -> Result<Option<u32>, OperationError> {
    operation::check_open(api)?;
    cancel::refuse().await?;
    let ticket = Ticket::new(Listed::Line(line), 1);
    ticket.end_within(api, seconds).await
}

/// Waits until the first of some tasks ends; gives its number, or nothing when the time is up.
///
/// # Errors
/// `cancelled`, and `invalid` when a task would wait for itself, be it by way of others.
pub async fn first_to_end(api: &str, ids: &[u32], seconds: Option<f64>) -> Result<Option<u32>, OperationError> {
    operation::check_open(api)?;
    cancel::refuse().await?;
    if let Some(ended) = TASKS.with_borrow(|tasks| ids.iter().copied().find(|&id| tasks.has_ended(id))) {
        return Ok(Some(ended));
    }
    // 0 asks whether one has ended, and never yields.
    if seconds == Some(0.0) {
        return Ok(None);
    }
    let _edge = match (ids, seconds) {
        (&[id], None) => Some(Edge::new(api, id)?),
        _ => None,
    };
    let ticket = Ticket::new(Listed::Ends(ids.to_vec()), 1);
    let ended = ticket.end_within(api, seconds).await?;
    cancel::check()?;
    Ok(ended)
}

/// Waits until all of some tasks have ended, or one of them has failed; gives that one or the last one, or
/// nothing when the time is up. Those that have ended before do not count; where all have, it gives the current task.
///
/// # Errors
/// `cancelled`.
pub async fn all_to_end(api: &str, ids: &[u32], seconds: Option<f64>) -> Result<Option<u32>, OperationError> {
    operation::check_open(api)?;
    cancel::refuse().await?;
    let ids: BTreeSet<u32> =
        TASKS.with_borrow(|tasks| ids.iter().copied().filter(|&id| !tasks.has_ended(id)).collect());
    if ids.contains(&current()) {
        return Err(OperationError::invalid(format!("{api}: a task cannot await itself")));
    }
    if ids.is_empty() {
        return Ok(Some(current()));
    }
    if seconds == Some(0.0) {
        return Ok(None);
    }
    let left = ids.len();
    let ticket = Ticket::new(Listed::Ends(ids.into_iter().collect()), left);
    let ended = ticket.end_within(api, seconds).await?;
    cancel::check()?;
    Ok(ended)
}

/// Waits in a line for as long as it takes `owner`, a task, to wake it or to end.
///
/// # Errors
/// As [`first_to_end`].
pub async fn wait_for_owner(api: &str, line: u32, owner: u32) -> Result<(), OperationError> {
    operation::check_open(api)?;
    cancel::refuse().await?;
    if TASKS.with_borrow(|tasks| !tasks.alive.contains_key(&owner)) {
        return Ok(());
    }
    let _edge = Edge::new(api, owner)?;
    let (in_line, at_end) = (Ticket::new(Listed::Line(line), 1), Ticket::new(Listed::Ends(vec![owner]), 1));
    let (mut woken, mut ended) = (pin!(in_line.end(api)), pin!(at_end.end(api)));
    poll_fn(|context| match woken.as_mut().poll(context) {
        Poll::Ready(woken) => Poll::Ready(woken.map(drop)),
        // A cancelled task that does not listen ends without a word.
        Poll::Pending => ended.as_mut().poll(context).map(|ended| ended.map(drop)),
    })
    .await?;
    cancel::check()
}

/// Wakes those that have waited for a task's end.
pub(super) fn announce_end(id: u32, failed: bool) {
    let woken: Vec<_> = TASKS.with_borrow_mut(|tasks| {
        let Some(tickets) = tasks.waits.for_end.remove(&id) else { return Vec::new() };
        tickets.into_iter().map(|ticket| tasks.waits.count_end(ticket, id, failed)).collect()
    });
    woken.into_iter().flatten().for_each(Waker::wake);
}

/// Whether a task waits for something.
pub(super) fn is_awaited_by(task: u32) -> bool {
    TASKS.with_borrow(|tasks| tasks.waits.by_ticket.values().any(|wait| wait.task == task))
}

/// Has the waits of a task look whether it was cancelled.
pub(super) fn stir(task: u32) {
    let wakers: Vec<_> = TASKS.with_borrow_mut(|tasks| {
        let waits = tasks.waits.by_ticket.values_mut().filter(|wait| wait.task == task);
        waits.filter_map(|wait| wait.waker.take()).collect()
    });
    wakers.into_iter().for_each(Waker::wake);
}

/// Ends a task's waits that nothing can ever end. Whether there was one.
pub fn refuse_deadlock(task: u32) -> bool {
    let mut any = false;
    let wakers: Vec<_> = TASKS.with_borrow_mut(|tasks| {
        let waits = tasks
            .waits
            .by_ticket
            .values_mut()
            .filter(|wait| wait.task == task && wait.end.is_none() && !matches!(wait.listed, Listed::Nowhere));
        waits
            .filter_map(|wait| {
                any = true;
                wait.end = Some(End::Deadlock);
                wait.waker.take()
            })
            .collect()
    });
    wakers.into_iter().for_each(Waker::wake);
    any
}

/// Takes a task's waits out of the tables: whoever waited is gone.
pub fn abandon(task: u32) {
    TASKS.with_borrow_mut(|tasks| {
        let waits = &mut tasks.waits;
        let of_task = waits.by_ticket.iter().filter(|(_, wait)| wait.task == task);
        let tickets: Vec<u64> = of_task.map(|(ticket, _)| *ticket).collect();
        tickets.into_iter().for_each(|ticket| waits.forget(ticket));
        waits.edges.remove(&task);
    });
}

fn deadlock(api: &str) -> OperationError {
    OperationError::invalid(format!("{api}: all tasks wait for each other, and nothing can wake them"))
}

// === impl Waits ===

impl Waits {
    /// Ends a wait, if it has not ended. Gives who is to be woken.
    fn finish(&mut self, ticket: u64, end: End) -> Option<Waker> {
        let wait = self.by_ticket.get_mut(&ticket)?;
        wait.end.get_or_insert(end);
        wait.waker.take()
    }

    /// One of the tasks that a wait is for has ended.
    fn count_end(&mut self, ticket: u64, id: u32, failed: bool) -> Option<Waker> {
        let wait = self.by_ticket.get_mut(&ticket)?;
        wait.left = wait.left.saturating_sub(1);
        if wait.left == 0 || failed { self.finish(ticket, End::Woken(id)) } else { None }
    }

    fn forget(&mut self, ticket: u64) {
        let Some(wait) = self.by_ticket.remove(&ticket) else { return };
        match wait.listed {
            Listed::Ends(ids) => ids.into_iter().for_each(|id| unlist(&mut self.for_end, id, ticket)),
            Listed::Line(line) => unlist(&mut self.lines, line, ticket),
            Listed::Nowhere => {}
        }
    }
}

fn unlist(lists: &mut BTreeMap<u32, BTreeSet<u64>>, list: u32, ticket: u64) {
    if let Some(tickets) = lists.get_mut(&list) {
        tickets.remove(&ticket);
        if tickets.is_empty() {
            lists.remove(&list);
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// A wait of the current task, for so many of what wakes it.
    fn new(listed: Listed, left: usize) -> Self {
        TASKS.with_borrow_mut(|tasks| {
            let task = tasks.current;
            let waits = &mut tasks.waits;
            waits.last_ticket += 1;
            let ticket = waits.last_ticket;
            match &listed {
                Listed::Ends(ids) => {
                    for id in ids {
                        waits.for_end.entry(*id).or_default().insert(ticket);
                    }
                }
                Listed::Line(line) => drop(waits.lines.entry(*line).or_default().insert(ticket)),
                Listed::Nowhere => {}
            }
            waits.by_ticket.insert(ticket, Wait { task, listed, left, waker: None, end: None });
            Self(ticket)
        })
    }

    /// Waits until it is woken, or for so many seconds.
    async fn end_within(&self, api: &str, seconds: Option<f64>) -> Result<Option<u32>, OperationError> {
        let woken = self.end(api);
        let Some(seconds) = seconds else { return woken.await.map(Some) };
        let timer = operation::sleep(api, seconds);
        let (mut woken, mut timer) = (std::pin::pin!(woken), std::pin::pin!(timer));
        poll_fn(|context| {
            // The wait first: what was handed over counts, however late.
            if let Poll::Ready(woken) = woken.as_mut().poll(context) {
                return Poll::Ready(woken.map(Some));
            }
            timer.as_mut().poll(context).map(|slept| slept.map(|_| None))
        })
        .await
    }

    async fn end(&self, api: &str) -> Result<u32, OperationError> {
        let end = poll_fn(|context| {
            let cancelled = cancel::is_cancelled();
            TASKS.with_borrow_mut(|tasks| {
                let Some(wait) = tasks.waits.by_ticket.get_mut(&self.0) else { return Poll::Ready(None) };
                if wait.end.is_some() || cancelled {
                    return Poll::Ready(wait.end);
                }
                wait.waker = Some(context.waker().clone());
                Poll::Pending
            })
        })
        .await;
        match end {
            Some(End::Woken(reason)) => Ok(reason),
            Some(End::Deadlock) => Err(deadlock(api)),
            None => Err(cancel::refusal()),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // The table may be gone when a test's thread ends.
        let _ = TASKS.try_with(|tasks| tasks.borrow_mut().waits.forget(self.0));
    }
}

/// That the current task waits for something that is not listed here. Dropped when it no longer does.
pub struct Turn {
    _ticket: Ticket,
}

impl Turn {
    /// The current task begins to wait.
    pub fn begin() -> Self {
        Self { _ticket: Ticket::new(Listed::Nowhere, 1) }
    }
}

/// That the current task waits for another one. Dropped when it no longer does.
struct Edge {
    task: u32,
    target: u32,
}

impl Edge {
    fn new(api: &str, target: u32) -> Result<Self, OperationError> {
        TASKS.with_borrow_mut(|tasks| {
            let current = tasks.current;
            if target == current {
                return Err(OperationError::invalid(format!("{api}: a task cannot await itself")));
            }
            let edges = &mut tasks.waits.edges;
            let mut next = edges.get(&target);
            while let Some(&other) = next {
                if other == current {
                    let message = format!("{api}: these tasks would await each other for ever");
                    return Err(OperationError::invalid(message));
                }
                next = edges.get(&other);
            }
            edges.insert(current, target);
            Ok(Self { task: current, target })
        })
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = TASKS.try_with(|tasks| {
            let edges = &mut tasks.borrow_mut().waits.edges;
            // It may have been abandoned, and another one taken its place.
            if edges.get(&self.task) == Some(&self.target) {
                edges.remove(&self.task);
            }
        });
    }
}
