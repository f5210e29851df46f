//! What the host keeps beside one VM: its meters, and its line to the broker.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use neoc_abi::{Completion, Operation, OperationError, Outcome, Reply, event::Finish, log::Record};
use tokio::{
    sync::mpsc,
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
    broker::{self, Broker, Caller, Permit},
    capability::{self, Capabilities, module::Folder},
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
    reach: Reach,
}

/// What a VM's operations can reach.
pub enum Reach {
    /// Nothing: there is no script in it.
    Nothing,
    /// While a script is loaded or checked: its own modules. They are read at once, on the script worker; a
    /// load has nothing else to wait for, and nobody waits behind it for longer than for its computing.
    Modules(Arc<Folder>),
    /// All that the policy allows.
    Effects(Effects),
}

impl State {
    /// A state for a VM with `memory_bytes` of memory.
    pub fn new(memory_bytes: usize, meter: Arc<CpuMeter>, log: ScriptLog, reach: Reach) -> Self {
        let wasi = WasiCtxBuilder::new()
            .monotonic_clock(CoarseMonotonic::starting_now())
            .wall_clock(CoarseWall)
            .max_random_size(MAX_RANDOM_BYTES)
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build_p1();
        let limiter = MemoryLimiter::new(memory_bytes);
        Self { wasi, limiter, meter, memory: None, ready_outcome: None, finish: None, log, reach }
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        self.memory.ok_or_else(|| Error::msg("the guest called the host before it was instantiated"))
    }

    pub(super) fn submit(&mut self, id: u32, operation: Operation) -> Option<Outcome> {
        match (&mut self.reach, operation) {
            (Reach::Effects(effects), operation) => effects.submit(id, operation),
            (Reach::Modules(folder), Operation::Module(operation)) => {
                let permit = broker::module::Permit::while_loading(operation);
                Some(permit.and_then(|permit| folder.find_now(permit)).map(Reply::Module))
            }
            (Reach::Modules(_) | Reach::Nothing, _) => {
                Some(Err(OperationError::invalid("no operation is possible here: the script is being loaded")))
            }
        }
    }

    pub(super) fn cancel(&mut self, id: u32) {
        if let Reach::Effects(effects) = &mut self.reach {
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
    broker: Arc<Broker>,
    capabilities: Arc<Capabilities>,
    caller: Arc<Caller>,
    modules: Arc<Folder>,
    io: tokio::runtime::Handle,
    running: JoinSet<()>,
    by_id: HashMap<u32, AbortHandle>,
    completions: mpsc::UnboundedSender<Completion>,
}

impl Effects {
    /// A line for `caller`, whose script's own modules are `modules`; finished operations go to the receiver.
    pub fn new(
        broker: Arc<Broker>,
        capabilities: Arc<Capabilities>,
        caller: Arc<Caller>,
        modules: Arc<Folder>,
        io: tokio::runtime::Handle,
    ) -> (Self, mpsc::UnboundedReceiver<Completion>) {
        let (completions, receiver) = mpsc::unbounded_channel();
        let (running, by_id) = (JoinSet::new(), HashMap::new());
        (Self { broker, capabilities, caller, modules, io, running, by_id, completions }, receiver)
    }

    /// Asks the broker, and starts what it permits. An outcome at once is a refusal, or a module whose text is
    /// known already.
    fn submit(&mut self, id: u32, operation: Operation) -> Option<Outcome> {
        if self.running.len() >= MAX_RUNNING {
            return Some(Err(OperationError::limit("pending_operations", "too many operations are under way")));
        }
        // Finished tasks are kept until they are asked for.
        while self.running.try_join_next().is_some() {}
        self.by_id.retain(|_, operation| !operation.is_finished());
        let permit = match self.broker.authorize(&self.caller, operation) {
            Ok(permit) => permit,
            Err(refused) => return Some(Err(refused)),
        };
        if let Permit::Module(permit) = &permit
            && let Some(reply) = self.modules.recall(permit)
        {
            return Some(Ok(Reply::Module(reply)));
        }
        let (capabilities, completions) = (Arc::clone(&self.capabilities), self.completions.clone());
        let modules = Arc::clone(&self.modules);
        let work = async move {
            let effect = AssertUnwindSafe(capability::perform(&capabilities, &modules, permit)).catch_unwind();
            let outcome = effect.await.unwrap_or_else(|_| {
                tracing::error!("an operation panicked; its script gets an error");
                Err(OperationError::io("internal error"))
            });
            // Nobody listens when the VM ended meanwhile; then nobody needs the outcome.
            let _ = completions.send(Completion { id, outcome });
        };
        self.by_id.insert(id, self.running.spawn_on(work, &self.io));
        None
    }

    fn cancel(&mut self, id: u32) {
        if let Some(operation) = self.by_id.remove(&id) {
            operation.abort();
        }
    }
}
