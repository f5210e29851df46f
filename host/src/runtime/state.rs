//! What the host keeps beside one VM: its meters, and its line to the broker.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use neoc_abi::{
    Call, Completion, ErrorKind, Operation, OperationError, Outcome, Reply,
    event::{self, Finish},
    log::Record,
    narrowing, wire,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot::error::TryRecvError},
    task::{AbortHandle, JoinSet},
};
use wasmtime::{Error, Memory, Result};
use wasmtime_wasi::{WasiCtxBuilder, p1::WasiP1Ctx};

use super::{clocks::Clocks, limiter::MemoryLimiter, meter::CpuMeter};
use crate::{
    broker::{self, Broker, Caller, Permit},
    capability::{
        self, Capabilities,
        module::Folder,
        net::Sockets,
        workers::{Gone, Launch, Launcher, Place},
    },
    limits::{Exceeded, Owner},
    script_log::ScriptLog,
};

/// Most bytes that a guest gets from one call for random bytes.
const MAX_RANDOM_BYTES: u64 = 65_536;

/// Operations of one VM that may be under way beyond its limits, because the host still stops them or they
/// bound the cleanups of tasks. The guest keeps the limits; this stops a guest that was taken over.
const SPARE_OPERATIONS: usize = 136;

/// After so many bytes of outcomes a batch is closed: the guest has it twice while it reads it, beside all that
/// the script has. The others come in the next one.
const BATCH_BYTES: usize = 1024 * 1024;

/// The store data of one VM.
pub struct State {
    /// Made when it is first asked for: few guests ever do.
    wasi: Option<WasiP1Ctx>,
    pub(super) clocks: Clocks,
    pub(super) limiter: MemoryLimiter,
    pub(super) meter: Arc<CpuMeter>,
    /// The guest's memory; set right after instantiation, before any guest code of ours runs.
    pub(super) memory: Option<Memory>,
    /// What `submit` or `wait` announced and `receive` fetches.
    pub(super) announced: Option<Vec<u8>>,
    /// What the guest ended with.
    pub(super) finish: Option<Finish>,
    /// How often the VM stood still because Luau could not yield.
    pub(super) n_stalls: u32,
    /// Longest outcome that fits into the VM, in bytes.
    max_outcome_bytes: usize,
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
        let limiter = MemoryLimiter::new(memory_bytes);
        Self {
            wasi: None,
            clocks: Clocks::starting_now(),
            limiter,
            meter,
            memory: None,
            announced: None,
            finish: None,
            n_stalls: 0,
            max_outcome_bytes: memory_bytes / 2,
            log,
            reach,
        }
    }

    /// WASI's floor: what Rust's and C's libraries in the guest link to. It opens nothing.
    pub(super) fn wasi(&mut self) -> &mut WasiP1Ctx {
        self.wasi.get_or_insert_with(|| {
            WasiCtxBuilder::new()
                .monotonic_clock(self.clocks)
                .wall_clock(self.clocks)
                .max_random_size(MAX_RANDOM_BYTES)
                .allow_tcp(false)
                .allow_udp(false)
                .allow_ip_name_lookup(false)
                .build_p1()
        })
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        self.memory.ok_or_else(|| Error::msg("the guest called the host before it was instantiated"))
    }

    pub(super) fn submit(&mut self, id: u32, call: Call) -> Option<Outcome> {
        match (&mut self.reach, call.operation) {
            (Reach::Effects(effects), operation) => effects.submit(id, Call { operation, ..call }),
            (Reach::Modules(folder), Operation::Module(operation)) => {
                let permit = broker::module::Permit::while_loading(operation);
                Some(permit.and_then(|permit| folder.find_now(permit)).map(Reply::Module))
            }
            (Reach::Modules(_), Operation::Narrow(question)) => {
                let checked = broker::narrowing::check(&question);
                Some(checked.map(|()| Reply::Narrow(narrowing::Reply::Checked)))
            }
            (Reach::Modules(_) | Reach::Nothing, _) => {
                Some(Err(OperationError::invalid("no operation is possible here: the script is being loaded")))
            }
        }
    }

    pub(super) fn cancel(&mut self, id: u32, confirm: bool) {
        if let Reach::Effects(effects) = &mut self.reach {
            effects.cancel(id, confirm);
        }
    }

    /// Keeps bytes for `receive`, and gives their length.
    pub(super) fn announce(&mut self, bytes: Vec<u8>) -> Result<u32> {
        let length = i32::try_from(bytes.len())?.cast_unsigned();
        self.announced = Some(bytes);
        Ok(length)
    }

    /// Waits for operations to finish, and gives all that have. None when none is under way.
    pub(super) async fn next_batch(&mut self) -> Option<Vec<Completion>> {
        let Reach::Effects(effects) = &mut self.reach else { return None };
        let batch = effects.next_batch().await?;
        Some(batch.into_iter().map(|completion| within(self.max_outcome_bytes, completion)).collect())
    }

    pub(super) fn stall(&mut self, place: String) {
        self.n_stalls = self.n_stalls.saturating_add(1);
        self.log.stall(place);
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
    /// What the VM has open. Goes with it.
    sockets: Arc<Sockets>,
    /// Those whose completion the guest waits for.
    awaited: HashMap<u32, AbortHandle>,
    /// Boxed, because a channel has room for 32 of what goes through it from the start.
    completions: mpsc::UnboundedSender<Box<Completion>>,
    finished: mpsc::UnboundedReceiver<Box<Completion>>,
    /// What a worker takes up among those of its request.
    held: Option<Held>,
}

/// What all VMs of a request do their effects with.
#[derive(Clone)]
pub struct Line {
    broker: Arc<Broker>,
    capabilities: Arc<Capabilities>,
    /// The script's own modules.
    modules: Arc<Folder>,
    io: tokio::runtime::Handle,
}

/// A place among the request's workers, and bytes of arguments.
pub type Held = (Place, OwnedSemaphorePermit);

// === impl Line ===

impl Line {
    /// The effects of a worker.
    pub fn worker(&self, caller: Arc<Caller>, held: Held) -> Effects {
        Effects { held: Some(held), ..Effects::on(self.clone(), caller) }
    }
}

// === impl Effects ===

impl Effects {
    /// A line for `caller`, whose script's own modules are `modules`.
    pub fn new(
        broker: Arc<Broker>,
        capabilities: Arc<Capabilities>,
        caller: Arc<Caller>,
        modules: Arc<Folder>,
        io: tokio::runtime::Handle,
    ) -> Self {
        Self::on(Line { broker, capabilities, modules, io }, caller)
    }

    fn on(line: Line, caller: Arc<Caller>) -> Self {
        let (completions, finished) = mpsc::unbounded_channel();
        let (running, awaited, sockets) = (JoinSet::new(), HashMap::new(), Arc::default());
        Self { line, caller, launcher: None, running, sockets, awaited, completions, finished, held: None }
    }

    /// What workers do their effects with.
    pub(super) fn line(&self) -> Line {
        self.line.clone()
    }

    /// What the guest is to keep to.
    pub(super) fn limits(&self) -> event::Limits {
        let limits = &self.caller.tenant().limits;
        event::Limits {
            pending_operations: limits.pending_operations.get(),
            tasks: limits.tasks.get(),
            timers: limits.timers.get(),
        }
    }

    /// Whether it needs a launcher.
    pub(super) fn has_workers(&self) -> bool {
        self.caller.has_workers()
    }

    /// What is to be kept until the VM is gone.
    pub(super) fn take_held(&mut self) -> Option<Held> {
        self.held.take()
    }

    pub(super) fn set_launcher(&mut self, launcher: Launcher) {
        self.launcher = Some(launcher);
    }

    /// Asks the broker, and starts what it permits. An outcome at once is a refusal, or a module whose text is
    /// known already.
    fn submit(&mut self, id: u32, call: Call) -> Option<Outcome> {
        // Finished tasks are kept until they are asked for.
        while self.running.try_join_next().is_some() {}
        let limits = self.limits();
        let most = [limits.pending_operations, limits.timers].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        if self.running.len() >= most.iter().sum::<usize>() + SPARE_OPERATIONS {
            let exceeded = Exceeded::new(Owner::Request, "pending_operations", limits.pending_operations);
            return Some(Err(exceeded.into()));
        }
        let permit = match self.line.broker.authorize(&self.caller, call) {
            Ok(permit) => permit,
            Err(refused) => return Some(Err(refused)),
        };
        let permit = match capability::perform_at_once(&self.sockets, permit) {
            Ok(outcome) => return Some(outcome),
            Err(permit) => permit,
        };
        if let Permit::Module(permit) = &permit
            && let Some(reply) = self.line.modules.recall(permit)
        {
            return Some(Ok(Reply::Module(reply)));
        }
        let (capabilities, modules) = (Arc::clone(&self.line.capabilities), Arc::clone(&self.line.modules));
        let sockets = Arc::clone(&self.sockets);
        let (launch, gone) = self.launch_for(&permit).unzip();
        let (completions, io) = (self.completions.clone(), self.line.io.clone());
        let completion = CompleteOnDrop { id, completions, outcome: None, gone, io };
        let (broker, caller, name) = (Arc::clone(&self.line.broker), Arc::clone(&self.caller), permit.capability());
        let work = async move {
            // Declared before the effect, so dropped after it: by then nothing of the effect is left.
            let mut completion = completion;
            let effect = capability::perform(&capabilities, &modules, &sockets, launch, permit);
            let effect = AssertUnwindSafe(effect).catch_unwind();
            let outcome = effect.await.unwrap_or_else(|_| {
                tracing::error!("an operation panicked; its script gets an error");
                Err(OperationError::io("internal error"))
            });
            if let Err(error) = &outcome {
                broker.note_limit(&caller, name, error);
            }
            completion.outcome = Some(outcome);
        };
        self.awaited.insert(id, self.running.spawn_on(work, &self.line.io));
        None
    }

    fn launch_for(&self, permit: &Permit) -> Option<(Launch, Gone)> {
        let launcher = self.launcher.as_ref().filter(|_| matches!(permit, Permit::Workers(_)))?;
        Some(Launch::new(Arc::clone(launcher)))
    }

    /// Stops an operation. If the guest wants it confirmed, it stays on the list until its completion comes.
    fn cancel(&mut self, id: u32, confirm: bool) {
        if let Some(operation) = self.awaited.get(&id) {
            operation.abort();
        }
        if !confirm {
            self.awaited.remove(&id);
        }
    }

    /// Waits for the next completion that the guest waits for, and takes those that are there with it, as far as
    /// they are one batch.
    async fn next_batch(&mut self) -> Option<Vec<Completion>> {
        let mut batch = Vec::new();
        while batch.is_empty() {
            if self.awaited.is_empty() {
                return None;
            }
            // Open for as long as there are effects, which hold a sender.
            let first = self.finished.recv().await?;
            let mut n_bytes = self.collect(*first, &mut batch);
            while n_bytes < BATCH_BYTES
                && let Ok(next) = self.finished.try_recv()
            {
                n_bytes += self.collect(*next, &mut batch);
            }
        }
        Some(batch)
    }

    /// Adds a completion, if the guest waits for it. Gives its size in bytes.
    fn collect(&mut self, completion: Completion, batch: &mut Vec<Completion>) -> usize {
        if self.awaited.remove(&completion.id).is_none() {
            return 0;
        }
        let n_bytes = wire::encoded_bytes(&completion.outcome);
        batch.push(completion);
        n_bytes
    }
}

/// Says how an operation ended when nothing of it is left, be it that it was stopped.
struct CompleteOnDrop {
    id: u32,
    completions: mpsc::UnboundedSender<Box<Completion>>,
    outcome: Option<Outcome>,
    /// For an operation that has a VM of its own, which a script worker drops a little later.
    gone: Option<Gone>,
    io: tokio::runtime::Handle,
}

impl Drop for CompleteOnDrop {
    fn drop(&mut self) {
        let stopped = || Err(OperationError::new(ErrorKind::Cancelled, "the operation was stopped"));
        let outcome = self.outcome.take().unwrap_or_else(stopped);
        let completion = Box::new(Completion { id: self.id, outcome });
        let completions = self.completions.clone();
        // Nobody listens when the VM has ended meanwhile; then nobody needs the outcome.
        let still_there = self.gone.take_if(|gone| gone.try_recv() == Err(TryRecvError::Empty));
        match still_there {
            Some(gone) => drop(self.io.spawn(async move {
                // It never sends anything.
                let _ = gone.await;
                let _ = completions.send(completion);
            })),
            None => drop(completions.send(completion)),
        }
    }
}

/// Cuts an outcome that is larger than what a guest can take in: a body that does not fit is an error of
/// its operation, not the end of the VM.
fn within(limit_bytes: usize, completion: Completion) -> Completion {
    let Completion { id, outcome } = completion;
    let outcome = match outcome {
        outcome if wire::encoded_bytes(&outcome) > limit_bytes => Err(OperationError::limit(
            "memory",
            format!("the reply is larger than the {limit_bytes} bytes that fit into the script's memory"),
        )),
        other => other,
    };
    Completion { id, outcome }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, path::Path};

    use neoc_abi::time;

    use super::*;
    use crate::policy::Tenant;

    /// A line to the broker with nobody at its end who keeps to any limit.
    fn effects(io: &tokio::runtime::Runtime) -> Effects {
        let mut tenant = Tenant::without_grants("a", "a.luau");
        tenant.limits.pending_operations = NonZeroU32::MIN;
        tenant.limits.timers = NonZeroU32::MIN;
        let tenant = Arc::new(tenant);
        let broker = Arc::new(Broker::new([&tenant]));
        let capabilities = Arc::new(Capabilities::none(Arc::clone(&broker)));
        let caller = broker.caller(&tenant, "request".into()).expect("an account");
        let modules = Arc::new(Folder::of_script(Path::new("absent/a.luau"), None));
        Effects::new(broker, capabilities, caller, modules, io.handle().clone())
    }

    fn wait() -> Call {
        let operation = Operation::Time(time::Operation::Wait { seconds: 1e9 });
        Call { site: None, scope: 0, narrowing: None, operation }
    }

    #[test]
    fn a_guest_that_keeps_to_no_limit_has_no_more_under_way_than_a_bound_of_the_hosts() {
        let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("builds");
        let mut effects = effects(&io);
        let outcomes: Vec<_> = (0..200).map(|id| effects.submit(id, wait())).collect();
        let refused = outcomes.iter().position(Option::is_some).expect("one is refused");
        assert_eq!(refused, 2 + SPARE_OPERATIONS);
        for outcome in &outcomes[refused..] {
            let Some(Err(error)) = outcome else { panic!("{outcome:?}") };
            assert_eq!(error.limit.as_deref(), Some("pending_operations"));
        }
        // What was stopped makes room, once it is gone.
        (0..100).for_each(|id| effects.cancel(id, true));
        let gone = io.block_on(async {
            let mut gone = 0;
            while gone < 100 {
                gone += effects.next_batch().await.expect("some are under way").len();
            }
            gone
        });
        assert_eq!(gone, 100);
        while effects.running.len() > 38 {
            effects.running.try_join_next();
            std::thread::yield_now();
        }
        assert!(effects.submit(200, wait()).is_none());
    }
}
