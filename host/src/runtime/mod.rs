//! The sandbox: a VM for every piece of work, or one for all of a tenant, on workers of its own.
//!
//! | module | holds |
//! |---|---|
//! | [`capacity`] | whether the machine has room for it |
//! | [`engine`] | wasmtime's settings |
//! | [`preempt`], [`safepoint`] | what ends time slices and kills: a watcher, and where the guest can be stopped |
//! | [`epoch`] | the ticker that does so instead, where the policy says so |
//! | [`image`] | the base image: built once, cached on disk |
//! | [`memory`] | the places of VMs' memories and stacks, and how they become as new |
//! | [`load`] | a script on its way into the sandbox |
//! | [`tenant_image`] | a tenant's loaded script, restored into each fresh VM |
//! | [`vm`] | one instance and the calls into it |
//! | [`renewal`] | VMs that are made as new for the next request |
//! | [`state`] | what the host keeps beside a VM: meters, and its requests |
//! | [`requests`] | the requests of a VM: their operations, and what has come back for whom |
//! | [`effects`] | a request's line to the broker |
//! | [`imports`] | what the guest may call |
//! | [`workers`] | further VMs for a request that has one |
//! | [`resident`] | the one VM of a tenant whose requests share it |
//! | [`scheduler`] | worker threads |
//! | [`fair_queue`] | whose VM they run next |
//! | [`direct`] | when an I/O thread runs one instead |
//! | [`reserve`] | the I/O thread that steps in for it |
//! | [`turn`] | one turn of a VM |
//! | [`stopwatch`] | the CPU time that it takes |

mod capacity;
mod clocks;
mod direct;
mod effects;
mod engine;
mod epoch;
mod failure;
mod fair_queue;
mod image;
mod imports;
mod limiter;
mod load;
mod memory;
mod meter;
mod preempt;
mod renewal;
mod requests;
mod reserve;
mod resident;
mod safepoint;
mod scheduler;
mod state;
mod stopwatch;
mod tenant_image;
#[cfg(test)]
mod tests;
mod turn;
mod vm;
mod workers;

use std::{
    borrow::Cow,
    io,
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use neoc_abi::{
    Completion,
    event::{ALONE, Finish, Terms, Written},
};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, oneshot};
use wasmtime::Linker;

pub use effects::{Effects, Line};
pub use engine::MAX_MEMORY_BYTES;
pub use failure::Failure;
pub use fair_queue::Share;
pub use image::{GUEST, ImageError};
pub use load::{LoadError, Source};
pub use meter::CpuBudget;
pub use resident::Resident;
pub use tenant_image::{SharedImage, TenantImage};

use self::{
    capacity::{Room, Shortage},
    image::BaseImage,
    load::LOAD_CPU,
    memory::{Memories, Witnessed},
    meter::CpuMeter,
    preempt::{Interrupt, Watcher},
    renewal::Renewed,
    requests::{Change, Requests},
    scheduler::Scheduler,
    state::{Reach, State},
    tenant_image::Dirty,
    vm::{FOLD_AFTER, Guest, Parked, Parking, Preempt, Vm},
};
use crate::{
    policy::{Preemption, detach},
    script_log::ScriptLog,
};

/// Longest time that work waits for a free instance.
const SLOT_WAIT: Duration = Duration::from_secs(1);

/// What the runtime needs to know at start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Most VMs alive at once.
    pub instances: u32,
    /// Script workers. None: one per processor.
    pub workers: Option<NonZeroUsize>,
    /// Where compiled images are kept.
    pub cache_dir: PathBuf,
    /// How running VMs are stopped.
    pub preemption: Preemption,
    /// The VM, as a wasm module: [`GUEST`], unless a test needs another build of it.
    pub guest: Cow<'static, [u8]>,
}

/// Why the runtime does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine has no room for so many instances.
    #[error(transparent)]
    Capacity(#[from] Shortage),
    /// wasmtime refuses the settings, or the machine the address space.
    #[error("cannot set up the sandbox for {instances} instances; lower host.instances if the machine is small")]
    Engine {
        /// What was asked for.
        instances: u32,
        /// What wasmtime said.
        #[source]
        source: wasmtime::Error,
    },
    /// There is no base image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The process may not start its threads.
    #[error("cannot start the worker threads")]
    Threads(#[from] io::Error),
}

/// The sandbox. One per process.
pub struct Runtime {
    guest: Guest,
    preempt: Preempt,
    memories: Arc<Memories>,
    renewed: Renewed,
    scheduler: Scheduler,
    /// One permit per slot of the pool; work waits here in order, never inside wasmtime.
    slots: Arc<Semaphore>,
    n_slots: u32,
    /// Held to read by whoever sees detached tasks to their end.
    outliving: Arc<RwLock<()>>,
}

/// One piece of work for a VM.
pub struct Job {
    /// Whose line it waits in.
    pub share: Share,
    /// The loaded script.
    pub image: SharedImage,
    /// The VM of its tenant's that it is a request in. None: it has one for itself.
    pub resident: Option<Arc<Resident>>,
    /// What to do.
    pub event: Written,
    /// Memory for this VM, in bytes.
    pub memory_bytes: usize,
    /// CPU time for it and its workers, time parked in I/O not counted.
    pub cpu: Arc<CpuBudget>,
    /// Time for it, all included.
    pub wall: Duration,
    /// Where its lines go.
    pub log: ScriptLog,
    /// Its line to the broker.
    pub effects: Effects,
    /// What tasks that go on after the answer may use.
    pub detach: Option<detach::Grant>,
}

/// Work that came to an end of its own.
#[derive(Debug)]
pub struct Ended {
    /// How the script ended.
    pub finish: Finish,
    /// CPU time it used, with its workers.
    pub cpu: Duration,
    /// How often its VM stood still, because the script waited where Luau cannot yield.
    pub n_stalls: u32,
    /// Whether tasks of it go on after the answer.
    pub has_detached: bool,
}

impl Runtime {
    /// Starts the sandbox: engine, base image, ticker and workers. Of `io`'s threads, where it has several, one is kept
    /// in reserve: it does nothing until a script keeps another of them.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(settings: &Settings, io: &tokio::runtime::Handle) -> Result<Self, StartError> {
        let instances = settings.instances;
        let room = Room::of_this_process();
        room.check(instances)?;
        if let Some(most) = room.fewer_waiting(instances) {
            tracing::warn!(
                instances,
                most,
                "memory is short: so many requests that wait at once would fill it; lower host.instances"
            );
        }
        let refused = |source| StartError::Engine { instances, source };
        let memories = Memories::new(settings.preemption == Preemption::Safepoint);
        let engine = engine::build(&memories, settings.preemption).map_err(refused)?;
        let BaseImage { module, content } =
            image::load_or_build(&engine, &settings.guest, settings.preemption, &settings.cache_dir)?;
        memories.fill(content);
        let mut linker = Linker::new(&engine);
        imports::link(&mut linker).map_err(refused)?;
        let guest = linker.instantiate_pre(&module).and_then(Guest::new).map_err(refused)?;
        let watcher = match settings.preemption {
            Preemption::Safepoint => Some(Watcher::start()?),
            Preemption::Epoch => {
                epoch::start(&engine)?;
                None
            }
        };
        let workers = settings.workers.or_else(|| std::thread::available_parallelism().ok());
        let scheduler = Scheduler::start(workers.unwrap_or(NonZeroUsize::MIN), io, watcher)?;
        let mut preempt = match settings.preemption {
            // Not known before the first VM, which runs only our own code, and on no worker.
            Preemption::Safepoint => Preempt::Safepoint(Interrupt { offset: 0, function: 0 }),
            Preemption::Epoch => Preempt::Epoch,
        };
        let found = examine(&guest, &preempt).map_err(refused)?;
        if let Preempt::Safepoint(interrupt) = &mut preempt {
            *interrupt = found;
        }
        let slots = Arc::new(Semaphore::new(usize::try_from(instances).unwrap_or(Semaphore::MAX_PERMITS)));
        let (renewed, outliving) = (Renewed::default(), Arc::default());
        Ok(Self { guest, preempt, memories, renewed, scheduler, slots, n_slots: instances, outliving })
    }

    /// Runs a job in a fresh VM, or in that of its tenant, until its script has an end. Dropping the future cancels
    /// it and all that it started; only tasks that were detached go on, once the end is there.
    ///
    /// # Errors
    /// Why its VM was killed.
    pub fn run(self: &Arc<Self>, job: Job) -> impl Future<Output = Result<Ended, Failure>> + Send {
        // Boxed before it goes on its way: each step on it would have room for the whole of it.
        self.run_boxed(Box::new(job))
    }

    async fn run_boxed(self: &Arc<Self>, mut job: Box<Job>) -> Result<Ended, Failure> {
        if job.effects.has_workers() {
            let launcher = workers::launcher(self, &job);
            job.effects.set_launcher(launcher);
        }
        if let Some(resident) = job.resident.take() {
            return Box::pin(resident::run(self, &resident, job)).await;
        }
        let (wall, share, detach, log) = (job.wall, job.share.clone(), job.detach.clone(), job.log.clone());
        let deadline = tokio::time::Instant::from_std(Instant::now() + wall);
        let (end, mut ended) = oneshot::channel();
        let worker = Arc::clone(self);
        let drive = Box::pin(Witnessed::new(Arc::clone(self).drive(job, end)));
        let mut work = Box::pin(async move { worker.by_turns(&share, true, drive).await });
        let finished = async {
            tokio::select! {
                biased;
                // First, because it may run here and now: then there is nothing to wait for.
                result = &mut work => match (ended.try_recv(), result.and_then(|result| result)) {
                    (Ok(ended), result) => {
                        result.unwrap_or_else(|failure| failure.report_detached(&log));
                        Ok((ended, true))
                    }
                    (Err(_), Ok(())) => Err(Failure::Internal("the guest parked without an operation".into())),
                    (Err(_), Err(failure)) => Err(failure),
                },
                Ok(ended) = &mut ended => Ok((ended, false)),
            }
        };
        let finished = tokio::time::timeout_at(deadline, finished).await.map_err(|_| Failure::Wall(wall))?;
        let (ended, is_over) = finished?;
        if is_over {
            return Ok(ended);
        }
        match detach {
            Some(grant) if ended.has_detached => {
                let seen = Arc::clone(&self.outliving).read_owned().await;
                tokio::spawn(async move {
                    outlive(work, grant.wall, log).await;
                    drop(seen);
                });
            }
            // The VM is dropped before the answer goes out: what follows finds its slot free.
            _ => drop(work.await),
        }
        Ok(ended)
    }

    /// Waits until no VM is alive.
    pub async fn idle(&self) {
        drop(self.outliving.write().await);
        // The slots never close.
        let _all = self.slots.acquire_many(self.n_slots).await;
    }

    /// Runs `work` by the tenant's turns, once a VM slot is free.
    async fn by_turns<T: Send + 'static>(
        &self,
        share: &Share,
        may_be_direct: bool,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Failure> {
        let slot = wait_for_place(&self.slots).await.ok_or(Failure::Capacity)?;
        // The slot goes with the work: when this future is dropped, a worker still has to drop the VM.
        let work = async move {
            let result = work.await;
            drop(slot);
            result
        };
        let result = self.scheduler.spawn(share, may_be_direct, work).fallible().await;
        result.ok_or_else(|| Failure::Internal("a script worker panicked".into()))
    }

    /// The life of a VM: start it, and deliver what its operations bring until all its tasks have ended. How
    /// the script ended goes to `end`, before the tasks that were detached go on.
    async fn drive(self: Arc<Self>, mut given: Box<Job>, end: oneshot::Sender<Ended>) -> Result<(), Failure> {
        // The first local, so dropped last: a worker's place is free when nothing of its VM is left. Nor of its job,
        // which as a parameter would outlive all locals.
        let _held = given.effects.take_held();
        let job = given;
        // The rest stays where it is: what waits has room for all that it has by name.
        let (event, effects) = (job.event, job.effects);
        let (share, cpu, detach) = (&job.share, &job.cpu, &job.detach);
        let failed = |error: wasmtime::Error| Failure::from_wasmtime(&error, cpu.last_given());
        let terms = Terms { request: ALONE, random_seed: random_seed(), limits: effects.limits() };
        let mut requests = Requests::default();
        // Its time ends with the VM.
        requests.enter(ALONE, effects, job.log.clone(), None);
        let meter = CpuMeter::new(Arc::clone(cpu));
        let state = State::new(job.memory_bytes, meter, job.log.clone(), Reach::Requests(requests));
        let mut vm = self.ready(&job.image, state).await.map_err(failed)?;
        let mut n_waiting = vm.start(event, &terms).await.map_err(failed)?;
        let mut end = Some(end);
        loop {
            let requests = vm.requests().map_err(failed)?;
            if let Some(Change { end: Some((finish, _)), n_stalls, .. }) = requests.next_change()
                && let Some(end) = end.take()
            {
                let ended = Ended { finish, cpu: cpu.used(), n_stalls, has_detached: n_waiting > 0 };
                if tracing::enabled!(target: "neoc::pages", tracing::Level::DEBUG) {
                    let Dirty { n_pages, n_regions } =
                        Dirty::between(self.memories.content(), vm.memory().map_err(failed)?);
                    tracing::debug!(target: "neoc::pages", tenant = &*share.tenant, n_pages, n_regions, "to put back");
                }
                // Nobody waits for it when the client has left.
                let _ = end.send(ended);
                // Without a grant the broker let no task be detached. What waits all the same has no business to.
                let Some(grant) = detach else { break };
                cpu.renew(grant.cpu);
                if n_waiting > 0 {
                    n_waiting = vm.complete(Vec::new()).await.map_err(failed)?;
                }
            }
            if n_waiting == 0 {
                break;
            }
            let Some((ready, batch)) = self.wait(vm).await.map_err(failed)? else { return Ok(()) };
            vm = ready;
            turn::breathe().await;
            n_waiting = vm.complete(batch).await.map_err(failed)?;
        }
        self.renewed.keep(vm);
        Ok(())
    }

    /// Waits until an operation has come to its end for the request in `vm`; gives those that have, and the VM to go on
    /// in. None: there is none to wait for, and no VM any more.
    ///
    /// A request that waits needs none, so the next one has this, which is in the processor's caches still.
    async fn wait(&self, mut vm: Box<Vm>) -> wasmtime::Result<Option<(Box<Vm>, Vec<Completion>)>> {
        if let Some(next) = vm.next_batch().now_or_never() {
            return Ok(next.map(|(_, batch)| (vm, batch)));
        }
        let mut vm = match vm.park()? {
            Parking::Left(mut parked, vm) => {
                if let Some(vm) = vm {
                    self.renewed.put(vm);
                }
                let Some((_, batch)) = parked.next_batch().await else { return Ok(None) };
                return Ok(Some((self.resume(parked).await?, batch)));
            }
            Parking::Stays(vm) => vm,
        };
        let next = match tokio::time::timeout(FOLD_AFTER, vm.next_batch()).await {
            Ok(next) => next,
            Err(_) => {
                vm.fold();
                vm.next_batch().await
            }
        };
        Ok(next.map(|(_, batch)| (vm, batch)))
    }

    /// Yields a VM in which a request that was parked goes on.
    async fn resume(&self, parked: Parked) -> wasmtime::Result<Box<Vm>> {
        let (image, state, globals, memory) = parked.into_parts();
        let mut vm = self.ready(&image, state).await?;
        vm.resume(&globals, &memory)?;
        Ok(vm)
    }

    /// Yields a ready VM: one that was made as new if there is any, else a fresh one, with the tenant's script in it.
    async fn ready(&self, image: &SharedImage, state: State) -> wasmtime::Result<Box<Vm>> {
        let mut vm = match self.renewed.take(image) {
            Some(vm) => vm.begin(&self.preempt, state)?,
            // Boxed: it has a long way, and few go it.
            None => Box::pin(Vm::instantiate(&self.guest, &self.preempt, state)).await?,
        };
        vm.give(image, self.memories.content())?;
        Ok(vm)
    }
}

/// Lets the tasks that were detached come to their ends, within their time.
async fn outlive(work: impl Future<Output = Result<Result<(), Failure>, Failure>>, wall: Duration, log: ScriptLog) {
    let failure = match tokio::time::timeout(wall, work).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(failure)) | Err(failure)) => failure,
        Err(_) => Failure::Wall(wall),
    };
    failure.report_detached(&log);
}

/// Where the interrupt of a VM is.
fn examine(guest: &Guest, preempt: &Preempt) -> wasmtime::Result<Interrupt> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let state =
        State::new(MAX_MEMORY_BYTES, CpuMeter::new(CpuBudget::new(LOAD_CPU)), ScriptLog::discard(), Reach::Nothing);
    runtime.block_on(async { Vm::instantiate(guest, preempt, state).await?.interrupt().await })
}

/// Takes a place, in the order of those who wait, for at most [`SLOT_WAIT`].
async fn wait_for_place(places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // A place that is free is so because nobody waits for one, and then a timer would be for nothing.
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Some(place);
    }
    tokio::time::timeout(SLOT_WAIT, Arc::clone(places).acquire_owned()).await.ok()?.ok()
}

/// A seed that no script can foresee. The generator is the thread's own, seeded by the system: a call
/// of the system for each request would cost more than the seed is worth.
fn random_seed() -> u64 {
    rand::random()
}
