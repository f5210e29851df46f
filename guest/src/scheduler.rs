//! Tasks: who runs, who waits for whom, and when all have ended.
//!
//! A task is a Luau thread, driven as a future. The first task is the handler (or the script); it and
//! what it spawns live on one single-threaded executor. A child runs at once, inside its parent's call
//! to `spawn`, until it first waits; only then is it handed to the executor.
//!
//! Values never pass through here: what a task returned or raised is kept by `stdlib/task.luau`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures::channel::oneshot;
use futures::executor::{LocalPool, LocalSpawner};
use futures::task::LocalSpawnExt;
use mlua::{Function, Lua};
use neoc_abi::OperationError;
use neoc_abi::log::Level;

use crate::failure::{self, Failure};
use crate::{host, operation};

/// Most tasks that may be alive at once, the first one not counted.
pub const MAX_TASKS: usize = 1000;

/// How deeply calls to `spawn` may be nested: each level stands on the stack of the one before.
pub const MAX_DEPTH: usize = 64;

/// The number of the task that a start begins with.
const FIRST: u32 = 0;

/// The tasks of this VM. A thread-local, because the functions that scripts call reach it from anywhere.
#[derive(Default)]
struct Tasks {
    /// Where new tasks go. Set for as long as there is an executor.
    spawner: Option<LocalSpawner>,
    /// The number of the last task.
    last_id: u32,
    /// The task whose Luau code runs now.
    current: u32,
    /// How many calls to `spawn` the running one is inside of.
    depth: usize,
    /// Those that have not ended, without the first, with those who wait for their end.
    alive: BTreeMap<u32, Vec<oneshot::Sender<()>>>,
    /// Which task waits for which. A task waits for one at a time, so a cycle is a walk away.
    awaiting: BTreeMap<u32, u32>,
    /// Those that let all others run first, in order.
    yielded: Vec<oneshot::Sender<()>>,
    /// The first task, when it has returned and waits for the others to end.
    idle: Option<Waker>,
}

thread_local! {
    static TASKS: RefCell<Tasks> = RefCell::default();
}

/// The executor of one start.
pub struct Scheduler {
    pool: LocalPool,
}

impl Scheduler {
    /// An executor without tasks. Those of a former one must be gone.
    pub fn new() -> Self {
        let pool = LocalPool::new();
        TASKS.set(Tasks { spawner: Some(pool.spawner()), ..Tasks::default() });
        Self { pool }
    }

    /// Adds the first task. What it returns is for itself to keep.
    pub fn add_first(&self, task: impl Future<Output = ()> + 'static) {
        // The executor is alive, and that is all that spawning asks for.
        let _ = self.pool.spawner().spawn_local(task);
    }

    /// Runs until one task ends, which is true, or all of them wait.
    pub fn run_until_one_ends(&mut self) -> bool {
        loop {
            if self.pool.try_run_one() {
                return true;
            }
            let yielded = TASKS.with_borrow_mut(|tasks| std::mem::take(&mut tasks.yielded));
            if yielded.is_empty() {
                return false;
            }
            for waiter in yielded {
                // The task may be gone.
                let _ = waiter.send(());
            }
        }
    }
}

/// Polls a task with its number as the current one.
fn poll_as<F: Future>(id: u32, future: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
    let parent = TASKS.with_borrow_mut(|tasks| std::mem::replace(&mut tasks.current, id));
    let polled = future.poll(context);
    TASKS.with_borrow_mut(|tasks| tasks.current = parent);
    polled
}

/// Starts a task: runs it until it first waits. Gives its number.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Limit`] when [`MAX_TASKS`] are alive or [`MAX_DEPTH`] calls are nested,
/// [`neoc_abi::ErrorKind::Invalid`] outside a request, and Luau's own error when there is no memory.
pub fn spawn(lua: &Lua, body: Function) -> Result<u32, Failure> {
    operation::check_open("task.spawn")?;
    let mut thread = Box::pin(lua.create_thread(body)?.into_async::<()>(())?);
    let (id, spawner) = TASKS.with_borrow_mut(Tasks::admit)?;
    // The waker is of no use yet: the executor polls whatever it is given once more.
    let polled = poll_as(id, thread.as_mut(), &mut Context::from_waker(Waker::noop()));
    TASKS.with_borrow_mut(|tasks| tasks.depth -= 1);
    match polled {
        Poll::Ready(ended) => {
            end(id);
            ended?;
        }
        Poll::Pending => {
            let task = async move {
                let ended = poll_fn(|context| poll_as(id, thread.as_mut(), context)).await;
                // The Luau side catches all that a script can raise. What is left is that memory ran out.
                if let Err(error) = ended {
                    host::log(Level::Error, format!("a task died: {}", failure::describe_error(&error)).as_bytes());
                }
                end(id);
            };
            // The executor is alive: this very call came from one of its tasks.
            let _ = spawner.spawn_local(task);
        }
    }
    Ok(id)
}

/// Waits until a task has ended.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Invalid`] when the task would wait for itself, be it by way of others.
pub async fn join(id: u32) -> Result<(), OperationError> {
    let joined = TASKS.with_borrow_mut(|tasks| tasks.join(id))?;
    if let Some((waiter, receiver)) = joined {
        // Both an ended task and a vanished one wake us.
        let _ = receiver.await;
        TASKS.with_borrow_mut(|tasks| tasks.awaiting.remove(&waiter));
    }
    Ok(())
}

/// The task whose code runs now.
pub fn current() -> u32 {
    TASKS.with_borrow(|tasks| tasks.current)
}

/// Waits for a bell that the task `owner` is to ring, or that is dropped.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Invalid`] when `owner` waits for this very task, be it by way of others.
pub async fn wait_for(api: &str, owner: u32, bell: oneshot::Receiver<()>) -> Result<(), OperationError> {
    let waiter = TASKS.with_borrow_mut(|tasks| {
        let mut next = Some(&owner);
        while let Some(other) = next {
            if *other == tasks.current {
                return Err(OperationError::invalid(format!("{api}: these tasks would wait for each other for ever")));
            }
            next = tasks.awaiting.get(other);
        }
        tasks.awaiting.insert(tasks.current, owner);
        Ok(tasks.current)
    })?;
    let _ = bell.await;
    TASKS.with_borrow_mut(|tasks| tasks.awaiting.remove(&waiter));
    Ok(())
}

/// Waits until all tasks but the first have ended.
pub async fn all_ended() {
    poll_fn(|context| {
        TASKS.with_borrow_mut(|tasks| {
            if tasks.alive.is_empty() {
                return Poll::Ready(());
            }
            tasks.idle = Some(context.waker().clone());
            Poll::Pending
        })
    })
    .await;
}

/// Lets all tasks run that can.
pub async fn yield_once() {
    let (sender, receiver) = oneshot::channel();
    TASKS.with_borrow_mut(|tasks| tasks.yielded.push(sender));
    let _ = receiver.await;
}

/// Polls the first task's thread as such.
pub async fn run_first<F: Future>(future: F) -> F::Output {
    let mut future = Box::pin(future);
    poll_fn(|context| poll_as(FIRST, future.as_mut(), context)).await
}

fn end(id: u32) {
    let (waiting, idle) = TASKS.with_borrow_mut(|tasks| {
        let waiting = tasks.alive.remove(&id);
        (waiting, if tasks.alive.is_empty() { tasks.idle.take() } else { None })
    });
    for waiter in waiting.into_iter().flatten() {
        let _ = waiter.send(());
    }
    if let Some(waker) = idle {
        waker.wake();
    }
}

// === impl Tasks ===

impl Tasks {
    fn admit(&mut self) -> Result<(u32, LocalSpawner), OperationError> {
        let Some(spawner) = self.spawner.clone() else {
            return Err(OperationError::invalid("task.spawn: there is no request"));
        };
        if self.alive.len() >= MAX_TASKS {
            let message = format!("task.spawn: {MAX_TASKS} tasks are alive, which is the most at once");
            return Err(OperationError::limit("tasks", message));
        }
        if self.depth >= MAX_DEPTH {
            let message = format!("task.spawn: {MAX_DEPTH} calls are nested, which is the most");
            return Err(OperationError::limit("task_depth", message));
        }
        self.depth += 1;
        self.last_id += 1;
        self.alive.insert(self.last_id, Vec::new());
        Ok((self.last_id, spawner))
    }

    /// The number of the waiting task and its bell, or nothing when `id` has already ended.
    fn join(&mut self, id: u32) -> Result<Option<(u32, oneshot::Receiver<()>)>, OperationError> {
        if id == self.current {
            return Err(OperationError::invalid("task.await: a task cannot await itself"));
        }
        let mut next = self.awaiting.get(&id);
        while let Some(&other) = next {
            if other == self.current {
                return Err(OperationError::invalid("task.await: these tasks would await each other for ever"));
            }
            next = self.awaiting.get(&other);
        }
        let Some(waiters) = self.alive.get_mut(&id) else { return Ok(None) };
        let (sender, receiver) = oneshot::channel();
        waiters.push(sender);
        self.awaiting.insert(self.current, id);
        Ok(Some((self.current, receiver)))
    }
}
