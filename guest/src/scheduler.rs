//! Tasks: who runs, and when all have ended.
//!
//! A task is a Luau thread, driven as a future. A request's first task is the handler (or the script); it and
//! what it spawns take turns on this one thread, and so do the tasks of all requests that the VM has at once.
//! A child runs at once, inside its parent's call to `spawn`, until it first waits; only then does it get turns
//! of its own. It belongs to the request of its parent.
//!
//! | module | holds |
//! |---|---|
//! | [`table`] | what is known of each task, and whose turn it is |
//! | [`wait`] | waiting for each other: for a task's end, in a line |
//! | [`cancel`] | cancelling, and the time to clean up |
//! | [`block`] | waiting where Luau cannot yield |
//!
//! Values never pass through here: what a task returned or raised is kept by `stdlib/task.luau`.
//!
//! The order of turns: those that another task has woken, deferred ones, those that the host has woken,
//! and at last those that let all others go first.

pub mod block;
pub mod cancel;
mod table;
pub mod wait;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use mlua::{Function, Lua};
use neoc_abi::log::Level;
use neoc_abi::{Completion, OperationError};

use self::cancel::Phase;
pub use self::table::Ownership;
use self::table::{Queue, Request, Task, Tasks};
use crate::failure::{self, Failure};
use crate::{host, limits, operation};

/// How deeply calls to `spawn` may be nested: each level stands on the stack of the one before.
pub const MAX_DEPTH: usize = 64;

thread_local! {
    /// A thread-local, because the functions that scripts call reach it from anywhere.
    static TASKS: RefCell<Tasks> = RefCell::default();
}

/// Opens a request with its first task, made from the task's number, which has not run yet. No other request has its
/// number.
pub fn open<F: Future<Output = ()> + 'static>(request: u32, first: impl FnOnce(u32) -> F, run_cleanups: Function) {
    let id = TASKS.with_borrow_mut(|tasks| {
        let id = tasks.new_id();
        tasks.run_cleanups = Some(run_cleanups);
        tasks.requests.insert(request, Request::new(id));
        let mut first_task = Task::new(id, request, Ownership::Request);
        first_task.future = Some(Box::pin(first(id)));
        tasks.add(id, first_task);
        id
    });
    wake(id);
}

/// Drops a request, and the tasks of it that are left.
pub fn close(request: u32) {
    let (ids, left) = TASKS.with_borrow_mut(|tasks| {
        let ids: Vec<u32> = tasks.of_request(request).map(|(id, _)| id).collect();
        let left: Vec<Option<Task>> = ids.iter().map(|id| tasks.remove(*id)).collect();
        if tasks.requests.remove(&request).is_some() {
            tasks.ended.retain(|ended| *ended != request);
        }
        (ids, left)
    });
    // Outside of the table: what is dropped with a task may look into it.
    drop(left);
    // What their coroutines wait with is dropped with the garbage.
    ids.into_iter().for_each(wait::abandon);
}

/// Forgets that there ever was a task.
pub fn forget() {
    TASKS.take();
}

/// A request whose last task has ended. It is to be closed.
pub fn next_ended() -> Option<u32> {
    TASKS.with_borrow_mut(|tasks| tasks.ended.pop_front())
}

/// The tasks of a request that were cancelled before they had begun, and of which nothing else is known.
pub fn cancelled_unbegun(request: u32) -> Vec<u32> {
    TASKS.with_borrow(|tasks| {
        let of_request = tasks.requests.get(&request).map(|request| &request.cancelled_unbegun);
        of_request.into_iter().flatten().copied().collect()
    })
}

/// The request of the task whose code runs now. 0 outside of any.
pub fn request() -> u32 {
    // Asked for by what reports a panic, too, wherever that was.
    TASKS
        .try_with(|tasks| tasks.try_borrow().ok().and_then(|tasks| tasks.current_request()))
        .ok()
        .flatten()
        .unwrap_or(0)
}

/// The request of a task. 0 when it has ended.
pub fn request_of(task: u32) -> u32 {
    TASKS.with_borrow(|tasks| tasks.alive.get(&task).map_or(0, |task| task.request))
}

/// Whether a request's code runs now.
pub fn is_open() -> bool {
    TASKS.with_borrow(|tasks| tasks.current_request().is_some())
}

/// Whether there is any request.
pub fn any_open() -> bool {
    TASKS.with_borrow(|tasks| !tasks.requests.is_empty())
}

/// Whether a request is there.
pub fn is_open_for(request: u32) -> bool {
    TASKS.with_borrow(|tasks| tasks.requests.contains_key(&request))
}

/// The task that a request began with.
pub fn first_of(request: u32) -> Option<u32> {
    TASKS.with_borrow(|tasks| tasks.requests.get(&request).map(|request| request.first))
}

/// The task whose code runs now. 0 outside of any.
pub fn current() -> u32 {
    TASKS.with_borrow(|tasks| tasks.current)
}

/// Tasks that have not ended, of all requests, the first ones counted.
pub fn n_alive() -> usize {
    TASKS.with_borrow(|tasks| tasks.alive.len())
}

/// Tasks of a request that have not ended, the first one counted.
pub fn n_alive_of(request: u32) -> usize {
    TASKS.with_borrow(|tasks| tasks.requests.get(&request).map_or(0, Request::n_alive))
}

/// Whether a task can have a turn.
pub fn can_run() -> bool {
    TASKS.with_borrow(|tasks| {
        let Queue { by_tasks, deferred, by_host, last, .. } = &tasks.queue;
        !(by_tasks.is_empty() && deferred.is_empty() && by_host.is_empty() && last.is_empty())
    })
}

/// Lets the tasks have their turns until all of them wait.
pub fn run_until_parked() {
    run_until(&|| false);
}

/// As [`run_until_parked`], but stops after the turn in which `is_enough` becomes true.
fn run_until(is_enough: &dyn Fn() -> bool) {
    while !is_enough() {
        match TASKS.with_borrow_mut(|tasks| tasks.queue.pop()) {
            Some(id) => take_turn(id),
            None if wake_last() => {}
            None => return,
        }
    }
}

/// Wakes those that have let all others go first. Whether there were any.
fn wake_last() -> bool {
    let last = TASKS.with_borrow_mut(|tasks| std::mem::take(&mut tasks.queue.last));
    let any = !last.is_empty();
    last.into_iter().for_each(Waker::wake);
    any
}

/// Hands finished operations to the tasks that wait for them.
pub fn deliver(batch: Vec<Completion>) {
    TASKS.with_borrow_mut(|tasks| tasks.queue.host_delivers = true);
    batch.into_iter().for_each(operation::complete);
    TASKS.with_borrow_mut(|tasks| tasks.queue.host_delivers = false);
}

/// Makes room for a task and gives its number; [`start`] or [`defer`] is to follow.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Limit`] when too many are alive or [`MAX_DEPTH`] calls are nested,
/// [`neoc_abi::ErrorKind::Invalid`] outside a request, and `cancelled` in a task that is.
pub fn admit(api: &str, ownership: Ownership) -> Result<u32, OperationError> {
    operation::check_open(api)?;
    cancel::check()?;
    end_bodiless();
    TASKS.with_borrow_mut(|tasks| {
        let Some((number, request)) =
            tasks.current_request().and_then(|number| Some((number, tasks.requests.get(&number)?)))
        else {
            return Err(operation::not_open(api));
        };
        // Only what cleans up comes as far as this in one that is cancelled, and nothing would end the new task.
        if request.cancelled {
            return Err(cancel::refusal());
        }
        let most = limits::tasks();
        if request.n_alive() > most {
            return Err(limits::exceeded(api, "tasks", most));
        }
        if tasks.depth >= MAX_DEPTH {
            let message = format!("{api}: {MAX_DEPTH} calls are nested, which is the most");
            return Err(OperationError::limit("task_depth", message));
        }
        let id = tasks.new_id();
        tasks.admitted = Some(id);
        tasks.add(id, Task::new(id, number, ownership));
        Ok(id)
    })
}

/// Starts an admitted task: runs it until it first waits.
///
/// # Errors
/// Luau's own when there is no memory; then the task has ended.
pub fn start(lua: &Lua, id: u32, body: Function) -> Result<(), Failure> {
    equip(lua, id, body)?;
    TASKS.with_borrow_mut(|tasks| tasks.depth += 1);
    take_turn(id);
    TASKS.with_borrow_mut(|tasks| tasks.depth = tasks.depth.saturating_sub(1));
    Ok(())
}

/// Gives an admitted task its first turn after those that can go on now, and before what the host brings.
///
/// # Errors
/// As [`start`].
pub fn defer(lua: &Lua, id: u32, body: Function) -> Result<(), Failure> {
    equip(lua, id, body)?;
    TASKS.with_borrow_mut(|tasks| {
        let Some(task) = tasks.alive.get_mut(&id) else { return };
        task.queued = true;
        match tasks.requests.get_mut(&task.request) {
            Some(request) if task.ownership == Ownership::Detached && !request.answered => {
                request.detached.push_back(id);
            }
            _ => tasks.queue.deferred.push_back(id),
        }
    });
    Ok(())
}

/// Lets a request's detached tasks begin: its answer is out.
pub fn begin_detached(request: u32) {
    TASKS.with_borrow_mut(|tasks| {
        let Some(request) = tasks.requests.get_mut(&request) else { return };
        request.answered = true;
        // Those that were cancelled meanwhile have ended.
        let detached = std::mem::take(&mut request.detached);
        tasks.queue.deferred.extend(detached.into_iter().filter(|id| tasks.alive.contains_key(id)));
    });
}

/// Makes the future of a task.
fn equip(lua: &Lua, id: u32, body: Function) -> Result<(), Failure> {
    let future = match lua.create_thread(body).and_then(|thread| thread.into_async::<()>(())) {
        Ok(body) => run(lua.clone(), id, body),
        Err(error) => {
            end(id);
            return Err(error.into());
        }
    };
    TASKS.with_borrow_mut(|tasks| {
        tasks.admitted = None;
        if let Some(task) = tasks.alive.get_mut(&id) {
            task.future = Some(Box::pin(future));
        }
    });
    Ok(())
}

/// Ends a task that never got a body, because there was no memory for what it needs.
fn end_bodiless() {
    if let Some(id) = TASKS.with_borrow_mut(|tasks| tasks.admitted.take()) {
        end(id);
    }
}

/// The life of a task: its body, then its cleanups.
async fn run(lua: Lua, id: u32, body: impl Future<Output = mlua::Result<()>>) {
    let ended = cancel::guard(id, body).await;
    let is_settled = matches!(ended, Some(Ok(())));
    log_death(ended.unwrap_or(Ok(())));
    cancel::clean_up(&lua, id, is_settled).await;
}

/// The Luau side catches all that a script can raise. What is left is that memory ran out.
fn log_death(ended: mlua::Result<()>) {
    if let Err(error) = ended {
        host::log(request(), Level::Error, format!("a task died: {}", failure::describe_error(&error)).as_bytes());
    }
}

/// Lets a task run until it waits or ends.
fn take_turn(id: u32) {
    let taken = TASKS.with_borrow_mut(|tasks| {
        let task = tasks.alive.get_mut(&id)?;
        task.queued = false;
        // Absent: it runs already, further down the stack, and gets another turn when it has waited.
        let future = task.future.take()?;
        task.woken = false;
        task.begun = true;
        let parent = std::mem::replace(&mut tasks.current, id);
        Some((future, task.waker.clone(), parent))
    });
    let Some((mut future, waker, parent)) = taken else { return };
    #[cfg(test)]
    crate::tests::programs::count_turn();
    let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
    TASKS.with_borrow_mut(|tasks| tasks.current = parent);
    end_bodiless();
    if polled.is_ready() {
        drop(future);
        return end(id);
    }
    TASKS.with_borrow_mut(|tasks| {
        let Some(task) = tasks.alive.get_mut(&id) else { return };
        task.future = Some(future);
        // Woken by itself, as by a plain yield, it lets all others go first.
        if std::mem::take(&mut task.woken) && !task.queued {
            tasks.queue.last.push(waker);
        }
    });
}

/// Has a task take another turn.
fn wake(id: u32) {
    TASKS.with_borrow_mut(|tasks| {
        let Some(task) = tasks.alive.get_mut(&id) else { return };
        task.woken = true;
        if task.future.is_some() && !std::mem::replace(&mut task.queued, true) {
            tasks.queue.push(id);
        }
    });
}

/// Takes a task off the table, and wakes those that wait for its end.
fn end(id: u32) {
    let (task, ends_daemons, idle) = TASKS.with_borrow_mut(|tasks| {
        let task = tasks.remove(id);
        let of_task = task.as_ref().map(|task| task.request);
        let request = of_task.and_then(|number| Some((number, tasks.requests.get_mut(&number)?)));
        let Some((number, request)) = request else { return (task, None, None) };
        let idle = if request.any_awaited() { None } else { request.idle.take() };
        (task, request.only_daemons().then_some(number), idle)
    });
    wait::announce_end(id, task.is_none_or(|task| !task.succeeded));
    if let Some(idle) = idle {
        idle.wake();
    }
    // After the answer: those that a detached task has started end with the last of these.
    if let Some(request) = ends_daemons {
        cancel::cancel_where(request, |ownership| ownership == Ownership::Daemon);
    }
}

/// Lets all tasks run that can, before the caller goes on.
pub async fn yield_once() {
    let _turn = wait::Turn::begin();
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        TASKS.with_borrow_mut(|tasks| tasks.queue.last.push(context.waker().clone()));
        Poll::Pending
    })
    .await;
}

/// Waits, in a request's first task, until its other tasks have ended. Daemons are cancelled then.
pub async fn others_ended(number: u32) {
    let with_request = |look: &mut dyn FnMut(&mut Request) -> bool| {
        TASKS.with_borrow_mut(|tasks| tasks.requests.get_mut(&number).is_some_and(look))
    };
    poll_fn(|context| {
        // Nearly always there are none.
        if !with_request(&mut |request| request.any_awaited() || request.any_daemons()) {
            return Poll::Ready(());
        }
        let any_awaited = with_request(&mut |request| {
            request.idle = Some(context.waker().clone());
            request.any_awaited()
        });
        if any_awaited {
            return Poll::Pending;
        }
        // Each time: the cleanups of daemons can start others, and so can detached tasks.
        cancel::cancel_where(number, |ownership| ownership == Ownership::Daemon);
        if with_request(&mut |request| request.any_awaited() || request.any_daemons()) {
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

/// Runs a first task's thread, then its cleanups. For those that await it, it has ended then.
pub async fn run_first<T>(lua: &Lua, id: u32, body: impl Future<Output = mlua::Result<T>>) -> mlua::Result<Option<T>> {
    let ended = cancel::guard(id, body).await;
    cancel::clean_up(lua, id, matches!(ended, Some(Ok(_)))).await;
    let succeeded = TASKS.with_borrow_mut(|tasks| {
        let first = tasks.alive.get_mut(&id)?;
        first.phase = Phase::Over;
        Some(first.succeeded)
    });
    wait::announce_end(id, succeeded != Some(true));
    ended.transpose()
}

/// Notes that a task of the current request has failed, which the Luau side keeps for the log.
pub fn note_failure() {
    TASKS.with_borrow_mut(|tasks| {
        if let Some(number) = tasks.current_request()
            && let Some(request) = tasks.requests.get_mut(&number)
        {
            request.any_failed = true;
        }
    });
}

/// Whether the Luau side keeps failures of a request.
pub fn any_failed(number: u32) -> bool {
    TASKS.with_borrow(|tasks| tasks.requests.get(&number).is_some_and(|request| request.any_failed))
}

/// Notes that the Luau side has given away what it kept of a request.
pub fn forget_failures(number: u32) {
    TASKS.with_borrow_mut(|tasks| {
        if let Some(request) = tasks.requests.get_mut(&number) {
            request.any_failed = false;
        }
    });
}

/// Notes that a task's function has returned.
pub fn succeed(id: u32) {
    TASKS.with_borrow_mut(|tasks| {
        if let Some(task) = tasks.alive.get_mut(&id) {
            task.succeeded = true;
        }
    });
}

/// Takes notice of a task's having been woken, without giving it a turn.
fn lower_woken(id: u32) {
    TASKS.with_borrow_mut(|tasks| {
        if let Some(task) = tasks.alive.get_mut(&id) {
            task.woken = false;
        }
    });
}

/// What each state of a task is called in Luau. None: it has ended.
pub fn state(id: u32) -> Option<&'static str> {
    TASKS.with_borrow(|tasks| {
        let task = tasks.alive.get(&id)?;
        Some(match task {
            Task { phase: Phase::Over, .. } => return None,
            _ if tasks.current == id => "running",
            Task { begun: false, .. } => "ready",
            _ => "waiting",
        })
    })
}

/// Polls a future with a task as the current one.
fn poll_as<F: Future>(id: u32, future: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
    let parent = TASKS.with_borrow_mut(|tasks| std::mem::replace(&mut tasks.current, id));
    let polled = future.poll(context);
    TASKS.with_borrow_mut(|tasks| tasks.current = parent);
    polled
}
