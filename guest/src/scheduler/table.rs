//! What is known of each task, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::{Wake, Waker};

use futures::future::LocalBoxFuture;
use mlua::Function;

use super::FIRST;
use super::cancel::Phase;
use super::wait::Waits;

/// The tasks of this VM.
#[derive(Default)]
pub(super) struct Tasks {
    /// Whether there is a start whose tasks these are.
    pub(super) open: bool,
    /// The number of the last task.
    pub(super) last_id: u32,
    /// The task whose Luau code runs now.
    pub(super) current: u32,
    /// How many calls to `spawn` the running one is inside of.
    pub(super) depth: usize,
    /// The one that was admitted and has no body yet.
    pub(super) admitted: Option<u32>,
    /// Those that have not ended, by number.
    pub(super) alive: BTreeMap<u32, Task>,
    /// Those that were cancelled with all others, and had not begun.
    pub(super) cancelled_unbegun: BTreeSet<u32>,
    /// Those that can go on.
    pub(super) queue: Queue,
    /// Who waits for what.
    pub(super) waits: Waits,
    /// The first task, when it has returned and waits for the others to end.
    pub(super) idle: Option<Waker>,
    /// The Luau function that runs a task's cleanups, given the task's number.
    pub(super) run_cleanups: Option<Function>,
}

/// A task that has not ended.
pub(super) struct Task {
    pub(super) ownership: Ownership,
    /// Absent while it runs, and until it is started.
    pub(super) future: Option<LocalBoxFuture<'static, ()>>,
    pub(super) waker: Waker,
    /// Whether it is in the queue.
    pub(super) queued: bool,
    /// Whether it was woken since its last turn began.
    pub(super) woken: bool,
    /// Whether any of its code has run.
    pub(super) begun: bool,
    pub(super) phase: Phase,
    pub(super) cancelled: bool,
    /// Whether it gave up its turn without waiting for anything.
    pub(super) yielded_plainly: bool,
    /// How many calls it has begun when it was cancelled already.
    pub(super) refusals: u32,
    /// Whether it has asked for cleanups.
    pub(super) has_cleanups: bool,
    /// Whether its function has returned.
    pub(super) succeeded: bool,
}

/// What becomes of a task when its request ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The request waits for it.
    Request,
    /// It ends with the last of the others: it would go on for ever.
    Daemon,
    /// It goes on after the answer, under a budget of its own.
    Detached,
}

/// Tasks in the order of their turns.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) by_tasks: VecDeque<u32>,
    pub(super) deferred: VecDeque<u32>,
    pub(super) by_host: VecDeque<u32>,
    /// Detached ones that have not begun: they do not before the answer is out.
    pub(super) detached: VecDeque<u32>,
    /// Whether the answer is out.
    pub(super) answered: bool,
    /// Those that let all others go first.
    pub(super) last: Vec<Waker>,
    /// Whether what wakes tasks now is the host.
    pub(super) host_delivers: bool,
}

// === impl Tasks, Task, Queue ===

impl Tasks {
    /// Whether a task has ended, as others see it.
    pub(super) fn has_ended(&self, id: u32) -> bool {
        self.alive.get(&id).is_none_or(|task| task.phase == Phase::Over)
    }

    /// Whether a task is alive that the request waits for, the first one not counted.
    pub(super) fn any_of_request(&self) -> bool {
        self.alive.iter().any(|(&id, task)| id != FIRST && task.ownership == Ownership::Request)
    }

    /// Whether none but the first task and detached ones are alive.
    pub(super) fn only_others_are_left(&self) -> bool {
        self.alive.iter().all(|(&id, task)| id == FIRST || task.ownership == Ownership::Detached)
    }
}

impl Task {
    pub(super) fn new(id: u32, ownership: Ownership) -> Self {
        Self {
            ownership,
            future: None,
            waker: Waker::from(Arc::new(TaskWaker(id))),
            queued: false,
            woken: false,
            begun: false,
            phase: Phase::Body,
            cancelled: false,
            yielded_plainly: false,
            refusals: 0,
            has_cleanups: false,
            succeeded: false,
        }
    }
}

impl Queue {
    pub(super) fn push(&mut self, id: u32) {
        if self.host_delivers {
            self.by_host.push_back(id);
        } else {
            self.by_tasks.push_back(id);
        }
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        let Self { by_tasks, deferred, by_host, .. } = self;
        by_tasks.pop_front().or_else(|| deferred.pop_front()).or_else(|| by_host.pop_front())
    }
}

/// Wakes a task by its number, which no other task of the start ever has.
struct TaskWaker(u32);

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        super::wake(self.0);
    }
}
