//! What is known of each task, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::{Wake, Waker};

use futures::future::LocalBoxFuture;
use mlua::Function;

use super::cancel::Phase;
use super::wait::Waits;

/// The tasks of this VM.
#[derive(Default)]
pub(super) struct Tasks {
    /// The requests that have tasks, by number: the starts of this VM.
    pub(super) requests: BTreeMap<u32, Request>,
    /// Those of them whose last task has ended.
    pub(super) ended: VecDeque<u32>,
    /// The number of the next task.
    next_id: u32,
    /// The task whose Luau code runs now.
    pub(super) current: u32,
    /// How many calls to `spawn` the running one is inside of.
    pub(super) depth: usize,
    /// The one that was admitted and has no body yet.
    pub(super) admitted: Option<u32>,
    /// Those that have not ended, by number.
    pub(super) alive: BTreeMap<u32, Task>,
    /// Those that can go on.
    pub(super) queue: Queue,
    /// Who waits for what.
    pub(super) waits: Waits,
    /// The Luau function that runs a task's cleanups, given the task's number.
    pub(super) run_cleanups: Option<Function>,
}

/// One request, which is one start: a task, and all those that come from it.
pub(super) struct Request {
    /// The number of the task that it begins with.
    pub(super) first: u32,
    /// Its tasks that have not ended, by their ownership; the first one is apart.
    n_alive: [usize; 3],
    pub(super) first_is_alive: bool,
    /// The first task, when it has returned and waits for the others to end.
    pub(super) idle: Option<Waker>,
    /// Detached ones that have not begun: they do not before the answer is out.
    pub(super) detached: VecDeque<u32>,
    /// Whether the answer is out.
    pub(super) answered: bool,
    /// Whether the host has cancelled it.
    pub(super) cancelled: bool,
    /// Whether the Luau side keeps a failure of a task of it.
    pub(super) any_failed: bool,
    /// Tasks that were cancelled with all others, and had not begun.
    pub(super) cancelled_unbegun: BTreeSet<u32>,
}

/// A task that has not ended.
pub(super) struct Task {
    /// Whose it is.
    pub(super) request: u32,
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
    /// Those that let all others go first.
    pub(super) last: Vec<Waker>,
    /// Whether what wakes tasks now is the host.
    pub(super) host_delivers: bool,
}

// === impl Tasks, Request, Task, Queue ===

impl Tasks {
    /// Whether a task has ended, as others see it.
    pub(super) fn has_ended(&self, id: u32) -> bool {
        self.alive.get(&id).is_none_or(|task| task.phase == Phase::Over)
    }

    /// A number that no other task has. After four thousand million tasks they begin again.
    pub(super) fn new_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            // The last one is no task's; see `operation.rs`.
            self.next_id = if id >= u32::MAX - 1 { 0 } else { id + 1 };
            if !self.alive.contains_key(&id) {
                return id;
            }
        }
    }

    /// The request of the task whose code runs now.
    pub(super) fn current_request(&self) -> Option<u32> {
        self.alive.get(&self.current).map(|task| task.request)
    }

    /// Adds a task. Its request is there.
    pub(super) fn add(&mut self, id: u32, task: Task) {
        if let Some(request) = self.requests.get_mut(&task.request) {
            request.count(id, task.ownership, true);
        }
        self.alive.insert(id, task);
    }

    /// Takes a task off the table; notes when it was its request's last one.
    pub(super) fn remove(&mut self, id: u32) -> Option<Task> {
        let task = self.alive.remove(&id)?;
        if let Some(request) = self.requests.get_mut(&task.request) {
            request.count(id, task.ownership, false);
            if request.n_alive() == 0 {
                self.ended.push_back(task.request);
            }
        }
        Some(task)
    }

    /// The tasks of a request, by number. Those of others are not looked through once all of them are found.
    pub(super) fn of_request(&self, request: u32) -> impl Iterator<Item = (u32, &Task)> {
        let n_alive = self.requests.get(&request).map_or(0, Request::n_alive);
        let of_request = self.alive.iter().filter(move |(_, task)| task.request == request);
        of_request.map(|(id, task)| (*id, task)).take(n_alive)
    }
}

impl Request {
    pub(super) fn new(first: u32) -> Self {
        Self {
            first,
            n_alive: [0; 3],
            first_is_alive: false,
            idle: None,
            detached: VecDeque::new(),
            answered: false,
            cancelled: false,
            any_failed: false,
            cancelled_unbegun: BTreeSet::new(),
        }
    }

    fn count(&mut self, id: u32, ownership: Ownership, is_new: bool) {
        if id == self.first {
            self.first_is_alive = is_new;
            return;
        }
        let n = &mut self.n_alive[ownership as usize];
        *n = if is_new { *n + 1 } else { n.saturating_sub(1) };
    }

    /// How many of its tasks have not ended.
    pub(super) fn n_alive(&self) -> usize {
        self.n_alive.iter().sum::<usize>() + usize::from(self.first_is_alive)
    }

    /// Whether a task is alive that it waits for, the first one not counted.
    pub(super) fn any_awaited(&self) -> bool {
        self.n_alive[Ownership::Request as usize] > 0
    }

    /// Whether tasks are alive that end with the last of the others.
    pub(super) fn any_daemons(&self) -> bool {
        self.n_alive[Ownership::Daemon as usize] > 0
    }

    /// Whether all that is alive ends with the last of the others, and those have ended.
    pub(super) fn only_daemons(&self) -> bool {
        self.any_daemons() && self.n_alive() == self.n_alive[Ownership::Daemon as usize]
    }
}

impl Task {
    pub(super) fn new(id: u32, request: u32, ownership: Ownership) -> Self {
        Self {
            request,
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

/// Wakes a task by its number, which no other task of the VM has.
struct TaskWaker(u32);

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        super::wake(self.0);
    }
}
