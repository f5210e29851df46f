//! The sandbox without a host around it: scripts are loaded and run by the product's own runtime.

use std::{
    borrow::Cow,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use neoc::{
    broker::Broker,
    capability::{Capabilities, module::Folder},
    policy::{Preemption, Tenant},
    runtime::{
        CpuBudget, Effects, Ended, Failure, Job, Line, LoadError, Runtime, Settings, Share, SharedImage, Source,
    },
    script_log::ScriptLog,
};
use neoc_abi::event::{Event, Mode, Module};

use super::cache_dir;

/// VMs alive at once.
pub const INSTANCES: u32 = 16;

/// A runtime with two workers, and one tenant that may do nothing.
pub struct Sandbox {
    pub io: tokio::runtime::Runtime,
    runtime: Arc<Runtime>,
    broker: Arc<Broker>,
    capabilities: Arc<Capabilities>,
    tenant: Arc<Tenant>,
    memory_bytes: usize,
}

impl Sandbox {
    /// Starts a runtime of a build of the guest; each VM may have `memory_bytes`.
    pub fn start(preemption: Preemption, guest: Cow<'static, [u8]>, memory_bytes: usize) -> Self {
        let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let workers = NonZeroUsize::new(2);
        let settings = Settings { instances: INSTANCES, workers, cache_dir: cache_dir(), preemption, guest };
        let runtime = Arc::new(Runtime::start(&settings, io.handle()).unwrap());
        let tenant = Arc::new(Tenant::without_grants("test", std::path::Path::new("test.luau")));
        let broker = Arc::new(Broker::new([&tenant]));
        let capabilities = Arc::new(Capabilities::none(Arc::clone(&broker)));
        Self { io, runtime, broker, capabilities, tenant, memory_bytes }
    }

    /// Compiles a script.
    pub async fn load(&self, name: &str, script: impl Into<Vec<u8>>) -> Result<SharedImage, LoadError> {
        let entry = Module { name: name.into(), source: script.into() };
        let (memory_bytes, modules, narrowed) = (self.memory_bytes, no_modules(), Vec::new());
        let source = Source { entry, mode: Mode::Script, memory_bytes, modules, narrowed };
        self.runtime.load(&share(), source, ScriptLog::discard()).await.map(Arc::new)
    }

    /// Runs a script with so much CPU time.
    pub async fn run(&self, image: &SharedImage, cpu: Duration) -> Result<Ended, Failure> {
        let caller = self.broker.caller(&self.tenant, "request".into()).unwrap();
        let io = self.io.handle().clone();
        let (broker, capabilities) = (Arc::clone(&self.broker), Arc::clone(&self.capabilities));
        let effects = Effects::new(&Line::new(broker, capabilities, no_modules(), io), caller);
        let job = Job {
            share: share(),
            image: Arc::clone(image),
            resident: None,
            event: Event::Run(vec![]).write().unwrap(),
            memory_bytes: self.memory_bytes,
            cpu: CpuBudget::new(cpu),
            wall: Duration::from_secs(60),
            log: ScriptLog::discard(),
            effects,
            detach: None,
        };
        self.runtime.run(job).await
    }
}

/// None of these scripts requires anything.
fn no_modules() -> Arc<Folder> {
    Arc::new(Folder::of_script(std::path::Path::new("absent/test.luau"), None))
}

fn share() -> Share {
    Share::new("test".into(), NonZeroU32::MIN)
}
