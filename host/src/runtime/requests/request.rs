//! One request in a VM: what it has under way.

use std::{
    collections::{HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use futures_channel::mpsc::UnboundedSender;
use futures_util::FutureExt;
use neoc_abi::{Call, Completion, ErrorKind, OperationError, Outcome, Reply, event::Finish};
use tokio::{sync::oneshot::error::TryRecvError, task::AbortHandle, time::Instant};

use super::{super::effects::Effects, Arrival};
use crate::{
    broker::Permit,
    capability::{self, net::Sockets, workers::Gone},
    limits::{Exceeded, Owner},
    script_log::ScriptLog,
};

/// Operations of one request that may be under way beyond its limits, because the host still stops them or they
/// bound the cleanups of tasks. The guest keeps the limits; this stops a guest that was taken over.
pub(super) const SPARE_OPERATIONS: usize = 136;

/// One request in a VM. Dropping it aborts its operations.
pub(super) struct Request {
    pub(super) effects: Effects,
    pub(super) log: ScriptLog,
    /// When the VM stands still for it no longer. Absent where the VM ends with its time.
    pub(super) deadline: Option<Instant>,
    /// Whether that is over: it gets nothing more.
    pub(super) is_stopped: bool,
    /// What its operations share. Absent until the first one: many requests have none.
    shared: Option<Arc<Shared>>,
    /// See [`super::Requests`].
    handles: Arc<AtomicU32>,
    /// The operations whose completion the guest waits for. Any other that is still there was stopped.
    pub(super) awaited: HashMap<u32, AbortHandle>,
    /// What is to be delivered.
    pub(super) arrived: VecDeque<Completion>,
    pub(super) n_stalls: u32,
    /// How it ended, and how many of its tasks go on.
    pub(super) end: Option<(Finish, u32)>,
    pub(super) is_over: bool,
    /// Whether it is among those that have changed.
    pub(super) is_noted: bool,
}

/// What the operations of a request share.
struct Shared {
    /// How many of them are there, stopped ones too.
    n_running: AtomicUsize,
    /// What they have opened. Goes with the last of them and their request.
    sockets: Sockets,
}

// === impl Request ===

impl Request {
    /// One with nothing under way. `handles`: the last handle of a connection.
    pub(super) fn new(effects: Effects, log: ScriptLog, deadline: Option<Instant>, handles: &Arc<AtomicU32>) -> Self {
        Self {
            effects,
            log,
            deadline,
            is_stopped: false,
            shared: None,
            handles: Arc::clone(handles),
            awaited: HashMap::new(),
            arrived: VecDeque::new(),
            n_stalls: 0,
            end: None,
            is_over: false,
            is_noted: false,
        }
    }

    /// Asks the broker, and starts what it permits.
    pub(super) fn submit(
        &mut self,
        number: u32,
        id: u32,
        call: Call,
        completions: &UnboundedSender<Arrival>,
    ) -> Option<Outcome> {
        if self.is_stopped {
            return Some(Err(OperationError::new(ErrorKind::Cancelled, "the request's time is over")));
        }
        let shared = self.shared.get_or_insert_with(|| {
            let sockets = Sockets::numbered_by(Arc::clone(&self.handles));
            Arc::new(Shared { n_running: AtomicUsize::new(0), sockets })
        });
        let limits = self.effects.limits();
        let most = [limits.pending_operations, limits.timers].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        if shared.n_running.load(Ordering::Relaxed) >= most.iter().sum::<usize>() + SPARE_OPERATIONS {
            let exceeded = Exceeded::new(Owner::Request, "pending_operations", limits.pending_operations);
            return Some(Err(exceeded.into()));
        }
        let line = &self.effects.line;
        let permit = match line.broker.authorize(&self.effects.caller, call) {
            Ok(permit) => permit,
            Err(refused) => return Some(Err(refused)),
        };
        let permit = match capability::perform_at_once(&shared.sockets, permit) {
            Ok(outcome) => return Some(outcome),
            Err(permit) => permit,
        };
        if let Permit::Module(permit) = &permit
            && let Some(reply) = line.modules.recall(permit)
        {
            return Some(Ok(Reply::Module(reply)));
        }
        let (capabilities, modules) = (Arc::clone(&line.capabilities), Arc::clone(&line.modules));
        let shared = Arc::clone(shared);
        let (launch, gone) = self.effects.launch_for(&permit).unzip();
        let (completions, io) = (completions.clone(), line.io.clone());
        shared.n_running.fetch_add(1, Ordering::Relaxed);
        let completion =
            CompleteOnDrop { number, id, completions, arrival: None, gone, io, shared: Arc::clone(&shared) };
        let (broker, caller, name) = (Arc::clone(&line.broker), Arc::clone(&self.effects.caller), permit.capability());
        let work = async move {
            // Declared before the effect, so dropped after it: by then nothing of the effect is left.
            let mut completion = completion;
            let effect = capability::perform(&capabilities, &modules, &shared.sockets, launch, permit);
            let effect = AssertUnwindSafe(effect).catch_unwind();
            let outcome = effect.await.unwrap_or_else(|_| {
                tracing::error!("an operation panicked; its script gets an error");
                Err(OperationError::io("internal error"))
            });
            if let Err(error) = &outcome {
                broker.note_limit(&caller, name, error);
            }
            completion.arrival = Some(Box::new((number, Completion { id, outcome })));
        };
        let operation = line.io.spawn(work).abort_handle();
        // A guest of ours gives no number twice.
        if let Some(former) = self.awaited.insert(id, operation) {
            former.abort();
        }
        None
    }

    /// How many operations there are, stopped ones too.
    #[cfg(test)]
    pub(super) fn n_running(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.n_running.load(Ordering::Relaxed))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.awaited.values().for_each(AbortHandle::abort);
    }
}

/// Says how an operation ended when nothing of it is left, be it that it was stopped.
struct CompleteOnDrop {
    number: u32,
    id: u32,
    completions: UnboundedSender<Arrival>,
    /// Absent until it has ended.
    arrival: Option<Arrival>,
    /// For an operation that has a VM of its own, which a script worker drops a little later.
    gone: Option<Gone>,
    io: tokio::runtime::Handle,
    shared: Arc<Shared>,
}

impl Drop for CompleteOnDrop {
    fn drop(&mut self) {
        self.shared.n_running.fetch_sub(1, Ordering::Relaxed);
        let stopped = || {
            let outcome = Err(OperationError::new(ErrorKind::Cancelled, "the operation was stopped"));
            Box::new((self.number, Completion { id: self.id, outcome }))
        };
        let arrival = self.arrival.take().unwrap_or_else(stopped);
        let completions = self.completions.clone();
        // Nobody listens when the VM has ended meanwhile; then nobody needs the outcome.
        let still_there = self.gone.take_if(|gone| gone.try_recv() == Err(TryRecvError::Empty));
        match still_there {
            Some(gone) => drop(self.io.spawn(async move {
                // It never sends anything.
                let _ = gone.await;
                let _ = completions.unbounded_send(arrival);
            })),
            None => drop(completions.unbounded_send(arrival)),
        }
    }
}
