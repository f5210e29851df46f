//! The sandbox: a fresh VM for every piece of work, on workers of its own.
//!
//! | module | holds |
//! |---|---|
//! | [`engine`] | wasmtime's settings |
//! | [`preempt`], [`safepoint`] | what ends time slices and kills: a watcher, and where the guest can be stopped |
//! | [`epoch`] | the ticker that does so instead, where the policy says so |
//! | [`image`] | the base image: built once, cached on disk |
//! | [`tenant_image`] | a tenant's loaded script, restored into each fresh VM |
//! | [`vm`] | one instance and the calls into it |
//! | [`state`] | what the host keeps beside a VM: meters, and the line to the broker |
//! | [`imports`] | what the guest may call |
//! | [`scheduler`] | worker threads and the fair queue of runnable VMs |

mod clocks;
mod engine;
mod epoch;
mod failure;
mod image;
mod imports;
mod limiter;
mod meter;
mod preempt;
mod safepoint;
mod scheduler;
mod state;
mod tenant_image;
mod vm;

use std::{
    borrow::Cow,
    io,
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use neoc_abi::{
    Completion,
    event::{Bundle, Event, Finish, Mode, Module, SPARE_BYTES, ScriptError, Start},
};
use tokio::sync::{Semaphore, mpsc};
use wasmtime::{InstancePre, Linker};

pub use engine::MAX_MEMORY_BYTES;
pub use failure::Failure;
pub use image::{GUEST, ImageError};
pub use scheduler::Share;
pub use state::Effects;
pub use tenant_image::{SharedImage, TenantImage};

use self::{
    meter::CpuMeter,
    preempt::{Interrupt, Watcher},
    scheduler::Scheduler,
    state::State,
    vm::{Preempt, Vm},
};
use crate::{policy::Preemption, script_log::ScriptLog};

/// CPU time for compiling a script and running its top level.
const LOAD_CPU: Duration = Duration::from_millis(200);

/// Linear memory that Luau's heap may not use, so that the guest can still report an error when the
/// heap is full, in bytes.
const HEAP_RESERVE_BYTES: usize = 1024 * 1024;

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
    image: InstancePre<State>,
    preempt: Preempt,
    /// Memory of a VM with no script in it, to compare with. See [`TenantImage`].
    base_memory: Vec<u8>,
    scheduler: Scheduler,
    /// One permit per slot of the pool; work waits here in order, never inside wasmtime.
    slots: Arc<Semaphore>,
}

/// A script to load.
#[derive(Debug, Clone)]
pub struct Source {
    /// The entry module.
    pub entry: Module,
    /// How it is used.
    pub mode: Mode,
    /// Memory that a VM of it may have, in bytes.
    pub memory_bytes: usize,
}

/// One piece of work for a VM.
pub struct Job {
    /// Whose line it waits in.
    pub share: Share,
    /// The loaded script.
    pub image: SharedImage,
    /// What to do.
    pub event: Event,
    /// Memory for this VM, in bytes.
    pub memory_bytes: usize,
    /// CPU time for it, time parked in I/O not counted.
    pub cpu: Duration,
    /// Time for it, all included.
    pub wall: Duration,
    /// Where its lines go.
    pub log: ScriptLog,
    /// Its line to the broker.
    pub effects: Effects,
    /// Its finished operations.
    pub completions: mpsc::UnboundedReceiver<Completion>,
}

/// Work that came to an end of its own.
#[derive(Debug)]
pub struct Ended {
    /// How the script ended.
    pub finish: Finish,
    /// CPU time it used.
    pub cpu: Duration,
}

impl Runtime {
    /// Starts the sandbox: engine, base image, ticker and workers.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(settings: &Settings, io: &tokio::runtime::Handle) -> Result<Self, StartError> {
        let instances = settings.instances;
        let refused = |source| StartError::Engine { instances, source };
        let engine = engine::build(instances, settings.preemption).map_err(refused)?;
        let module = image::load_or_build(&engine, &settings.guest, settings.preemption, &settings.cache_dir)?;
        let mut linker = Linker::new(&engine);
        imports::link(&mut linker).map_err(refused)?;
        let image = linker.instantiate_pre(&module).map_err(refused)?;
        let watcher = match settings.preemption {
            Preemption::Safepoint => Some(Watcher::start()?),
            Preemption::Epoch => {
                epoch::start(&engine)?;
                None
            }
        };
        let workers = settings.workers.or_else(|| std::thread::available_parallelism().ok());
        let scheduler = Scheduler::start(workers.unwrap_or(NonZeroUsize::MIN), io, watcher.as_ref())?;
        let mut preempt = match watcher {
            // Not known before the first VM, which runs only our own code, and on no worker.
            Some(watcher) => Preempt::Safepoint { watcher, interrupt: Interrupt { offset: 0, function: 0 } },
            None => Preempt::Epoch,
        };
        let (base_memory, found) = examine(&image, &preempt).map_err(refused)?;
        if let Preempt::Safepoint { interrupt, .. } = &mut preempt {
            *interrupt = found;
        }
        let slots = Arc::new(Semaphore::new(usize::try_from(instances).unwrap_or(Semaphore::MAX_PERMITS)));
        Ok(Self { image, preempt, base_memory, scheduler, slots })
    }

    /// Loads a script: compiles it in a VM and, in handler mode, runs its top level there.
    ///
    /// # Errors
    /// [`LoadError::Script`] when the script is at fault, [`LoadError::Failed`] when its VM was killed.
    pub async fn load(
        self: &Arc<Self>,
        share: &Share,
        source: Source,
        log: ScriptLog,
    ) -> Result<TenantImage, LoadError> {
        let runtime = Arc::clone(self);
        self.on_worker(share, async move {
            let failed = |error: wasmtime::Error| LoadError::Failed(Failure::from_wasmtime(&error, LOAD_CPU));
            let used_bytes = runtime.base_memory.len().saturating_sub(SPARE_BYTES);
            let heap_bytes = source.memory_bytes.saturating_sub(used_bytes + HEAP_RESERVE_BYTES);
            let bundle = Bundle {
                entry: source.entry,
                mode: source.mode,
                heap_bytes: u64::try_from(heap_bytes).unwrap_or(u64::MAX),
            };
            let state = State::new(source.memory_bytes, CpuMeter::new(LOAD_CPU), log, None);
            let mut vm = Vm::instantiate(&runtime.image, &runtime.preempt, state).await.map_err(failed)?;
            match vm.load(&bundle).await.map_err(failed)? {
                Finish::Failed(error) => Err(LoadError::Script(error)),
                Finish::Done | Finish::Response(_) => {
                    TenantImage::capture(&mut vm, &runtime.base_memory).await.map_err(failed)
                }
            }
        })
        .await
        .map_err(LoadError::Failed)?
    }

    /// Runs a job in a fresh VM. Dropping the future cancels it and all that it started.
    ///
    /// # Errors
    /// Why its VM was killed.
    pub async fn run(self: &Arc<Self>, job: Job) -> Result<Ended, Failure> {
        let (wall, share) = (job.wall, job.share.clone());
        let deadline = tokio::time::Instant::from_std(Instant::now() + wall);
        let runtime = Arc::clone(self);
        let work = self.on_worker(&share, async move { runtime.drive(job).await });
        tokio::time::timeout_at(deadline, work).await.map_err(|_| Failure::Wall(wall))??
    }

    /// Runs `work` on a script worker, in the tenant's line, once a VM slot is free.
    async fn on_worker<T: Send + 'static>(
        &self,
        share: &Share,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Failure> {
        let slot = tokio::time::timeout(SLOT_WAIT, Arc::clone(&self.slots).acquire_owned()).await;
        let Ok(Ok(slot)) = slot else { return Err(Failure::Capacity) };
        // The slot goes with the work: when this future is dropped, a worker still has to drop the VM.
        let work = async move {
            let result = work.await;
            drop(slot);
            result
        };
        let result = self.scheduler.spawn(share, work).fallible().await;
        result.ok_or_else(|| Failure::Internal("a script worker panicked".into()))
    }

    /// The life of a VM: start it, and deliver what its operations bring until it is done.
    async fn drive(&self, job: Job) -> Result<Ended, Failure> {
        let Job { image, event, memory_bytes, cpu, log, effects, mut completions, .. } = job;
        let failed = |error: wasmtime::Error| Failure::from_wasmtime(&error, cpu);
        let meter = CpuMeter::new(cpu);
        let state = State::new(memory_bytes, Arc::clone(&meter), log, Some(effects));
        let mut vm = self.ready(&image, state).await.map_err(failed)?;
        let start = Start { event, random_seed: random_seed() };
        let mut finish = vm.start(&start).await.map_err(failed)?;
        while finish.is_none() {
            // The sender lives in the VM's own state, so the channel is open as long as the VM lives.
            let Some(first) = completions.recv().await else { break };
            let mut batch = vec![vm::within(memory_bytes / 2, first)];
            while let Ok(next) = completions.try_recv() {
                batch.push(vm::within(memory_bytes / 2, next));
            }
            finish = vm.complete(&batch).await.map_err(failed)?;
        }
        let finish = finish.ok_or_else(|| Failure::Internal("the guest parked without an operation".into()))?;
        Ok(Ended { finish, cpu: meter.used() })
    }

    /// Yields a ready VM: a fresh instance with the tenant's script in it.
    async fn ready(&self, image: &TenantImage, state: State) -> wasmtime::Result<Vm> {
        let mut vm = Vm::instantiate(&self.image, &self.preempt, state).await?;
        image.restore(&mut vm)?;
        Ok(vm)
    }
}

/// Why a script did not load.
#[derive(Debug)]
pub enum LoadError {
    /// The script is at fault: it does not compile, or its top level failed.
    Script(ScriptError),
    /// Its VM was killed.
    Failed(Failure),
}

/// The memory of a VM with no script in it, and where its interrupt is.
fn examine(image: &InstancePre<State>, preempt: &Preempt) -> wasmtime::Result<(Vec<u8>, Interrupt)> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let state = State::new(MAX_MEMORY_BYTES, CpuMeter::new(LOAD_CPU), ScriptLog::discard(), None);
    runtime.block_on(async {
        let mut vm = Vm::instantiate(image, preempt, state).await?;
        let memory = vm.memory()?.to_vec();
        Ok((memory, vm.interrupt().await?))
    })
}

/// A seed that no script can foresee. The generator is the thread's own, seeded by the system: a call
/// of the system for each request would cost more than the seed is worth.
fn random_seed() -> u64 {
    rand::random()
}
