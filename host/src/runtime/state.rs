//! What the host keeps beside one VM: its meters, and its line to the broker.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use neoc_abi::{Completion, Operation, OperationError, Outcome, event::Finish, log::Record};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::{AbortHandle, JoinSet},
};
use wasmtime::{Error, Memory, Result};
use wasmtime_wasi::{WasiCtxBuilder, p1::WasiP1Ctx};

use super::{
    clocks::{CoarseMonotonic, CoarseWall},
    limiter::MemoryLimiter,
    meter::CpuMeter,
};
use crate::{
    broker::{Broker, Caller},
    capability::{self, Capabilities, workers::Launcher},
    script_log::ScriptLog,
};

/// Most bytes that a guest gets from one call for random bytes.
const MAX_RANDOM_BYTES: u64 = 65_536;

/// Most operations of one VM under way at once. The guest stops its scripts at fewer; this stops a guest
/// that was taken over.
const MAX_RUNNING: usize = 128;

/// The store data of one VM.
pub struct State {
    pub(super) wasi: WasiP1Ctx,
    pub(super) limiter: MemoryLimiter,
    pub(super) meter: Arc<CpuMeter>,
    /// The guest's memory; set right after instantiation, before any guest code of ours runs.
    pub(super) memory: Option<Memory>,
    /// The outcome that `submit` announced and `receive` fetches.
    pub(super) ready_outcome: Option<Vec<u8>>,
    /// What the guest ended with.
    pub(super) finish: Option<Finish>,
    log: ScriptLog,
    effects: Option<Effects>,
}

impl State {
    /// A state for a VM with `memory_bytes` of memory. Without `effects` each operation is refused:
    /// so it is while a script is loaded or checked.
    pub fn new(memory_bytes: usize, meter: Arc<CpuMeter>, log: ScriptLog, effects: Option<Effects>) -> Self {
        let wasi = WasiCtxBuilder::new()
            .monotonic_clock(CoarseMonotonic::starting_now())
            .wall_clock(CoarseWall)
            .max_random_size(MAX_RANDOM_BYTES)
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build_p1();
        let limiter = MemoryLimiter::new(memory_bytes);
        Self { wasi, limiter, meter, memory: None, ready_outcome: None, finish: None, log, effects }
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        self.memory.ok_or_else(|| Error::msg("the guest called the host before it was instantiated"))
    }

    pub(super) fn submit(&mut self, id: u32, operation: Operation) -> Option<Outcome> {
        match &mut self.effects {
            Some(effects) => effects.submit(id, operation),
            None => Some(Err(OperationError::invalid("no operation is possible here: the script is being loaded"))),
        }
    }

    pub(super) fn cancel(&mut self, id: u32) {
        if let Some(effects) = &mut self.effects {
            effects.cancel(id);
        }
    }

    pub(super) fn log(&mut self, record: Record) {
        self.log.write(record);
    }
}

/// A VM's line to the broker, and the operations that are under way for it.
///
/// Dropping it aborts them all: their sockets close and their permits return.
pub struct Effects {
    line: Line,
    caller: Arc<Caller>,
    /// Starts workers. Absent in a worker, and without a grant.
    launcher: Option<Launcher>,
    running: JoinSet<()>,
    by_id: HashMap<u32, AbortHandle>,
    completions: mpsc::UnboundedSender<Completion>,
    /// What a worker takes up among those of its request, until its VM is gone.
    _held: Option<Held>,
}

/// What all VMs of a request do their effects with.
#[derive(Clone)]
pub struct Line {
    broker: Arc<Broker>,
    capabilities: Arc<Capabilities>,
    io: tokio::runtime::Handle,
}

/// A place among the request's workers, and bytes of arguments.
type Held = (OwnedSemaphorePermit, OwnedSemaphorePermit);

// === impl Line ===

impl Line {
    /// The line of a worker.
    pub fn worker(&self, caller: Arc<Caller>, held: Held) -> (Effects, mpsc::UnboundedReceiver<Completion>) {
        let (effects, completions) = Effects::on(self.clone(), caller);
        (Effects { _held: Some(held), ..effects }, completions)
    }
}

// === impl Effects ===

impl Effects {
    /// A line for `caller`; finished operations go to the receiver.
    pub fn new(
        broker: Arc<Broker>,
        capabilities: Arc<Capabilities>,
        caller: Arc<Caller>,
        io: tokio::runtime::Handle,
    ) -> (Self, mpsc::UnboundedReceiver<Completion>) {
        Self::on(Line { broker, capabilities, io }, caller)
    }

    fn on(line: Line, caller: Arc<Caller>) -> (Self, mpsc::UnboundedReceiver<Completion>) {
        let (completions, receiver) = mpsc::unbounded_channel();
        let (running, by_id) = (JoinSet::new(), HashMap::new());
        (Self { line, caller, launcher: None, running, by_id, completions, _held: None }, receiver)
    }

    /// What workers do their effects with.
    pub(super) fn line(&self) -> Line {
        self.line.clone()
    }

    /// Whether it needs a launcher.
    pub(super) fn has_workers(&self) -> bool {
        self.caller.has_workers()
    }

    pub(super) fn set_launcher(&mut self, launcher: Launcher) {
        self.launcher = Some(launcher);
    }

    /// Asks the broker, and starts what it permits. An outcome at once is a refusal.
    fn submit(&mut self, id: u32, operation: Operation) -> Option<Outcome> {
        if self.running.len() >= MAX_RUNNING {
            return Some(Err(OperationError::limit("pending_operations", "too many operations are under way")));
        }
        // Finished tasks are kept until they are asked for.
        while self.running.try_join_next().is_some() {}
        self.by_id.retain(|_, operation| !operation.is_finished());
        let permit = match self.line.broker.authorize(&self.caller, operation) {
            Ok(permit) => permit,
            Err(refused) => return Some(Err(refused)),
        };
        let (capabilities, completions) = (Arc::clone(&self.line.capabilities), self.completions.clone());
        let launcher = self.launcher.clone();
        let work = async move {
            let effect = capability::perform(&capabilities, launcher.as_ref(), permit);
            let effect = AssertUnwindSafe(effect).catch_unwind();
            let outcome = effect.await.unwrap_or_else(|_| {
                tracing::error!("an operation panicked; its script gets an error");
                Err(OperationError::io("internal error"))
            });
            // Nobody listens when the VM ended meanwhile; then nobody needs the outcome.
            let _ = completions.send(Completion { id, outcome });
        };
        self.by_id.insert(id, self.running.spawn_on(work, &self.line.io));
        None
    }

    fn cancel(&mut self, id: u32) {
        if let Some(operation) = self.by_id.remove(&id) {
            operation.abort();
        }
    }
}
