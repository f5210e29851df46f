//! A script on its way into the sandbox: loaded for requests, or looked at without running any of it.

use std::{sync::Arc, time::Duration};

use neoc_abi::{
    event::{Bundle, Finish, Mode, Module, SPARE_BYTES, ScriptError},
    survey::Survey,
};

use super::{
    CpuBudget, Failure, Runtime, Share, TenantImage,
    meter::CpuMeter,
    state::{Reach, State},
    vm::Vm,
};
use crate::{capability::module::Folder, script_log::ScriptLog};

/// CPU time for compiling a script and running its top level.
pub(super) const LOAD_CPU: Duration = Duration::from_millis(200);

/// CPU time for looking at a script and compiling all of its modules, 8 MiB of text at most.
const SURVEY_CPU: Duration = Duration::from_secs(10);

/// Linear memory that Luau's heap may not use, so that the guest can still report an error when the
/// heap is full, in bytes.
const HEAP_RESERVE_BYTES: usize = 1024 * 1024;

/// A script to load.
#[derive(Debug, Clone)]
pub struct Source {
    /// The entry module.
    pub entry: Module,
    /// How it is used.
    pub mode: Mode,
    /// Memory that a VM of it may have, in bytes.
    pub memory_bytes: usize,
    /// Where its own modules are.
    pub modules: Arc<Folder>,
    /// Which of them have less than the tenant.
    pub narrowed: Vec<String>,
}

/// Why a script did not load.
#[derive(Debug)]
pub enum LoadError {
    /// The script is at fault: it does not compile, or its top level failed.
    Script(ScriptError),
    /// Its VM was killed.
    Failed(Failure),
}

impl Runtime {
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
        self.by_turns(share, false, async move {
            let failed = |error: wasmtime::Error| LoadError::Failed(Failure::from_wasmtime(&error, LOAD_CPU));
            match runtime.bring_in(source, log, LOAD_CPU).await.map_err(failed)? {
                (_, Finish::Failed(error)) => Err(LoadError::Script(error)),
                (mut vm, _) => TenantImage::capture(&mut vm, runtime.memories.content()).await.map_err(failed),
            }
        })
        .await
        .map_err(LoadError::Failed)?
    }

    /// Looks at a script and its modules, and runs nothing of them. The mode of the source does not count.
    ///
    /// # Errors
    /// As [`Runtime::load`].
    pub async fn survey(self: &Arc<Self>, share: &Share, source: Source, log: ScriptLog) -> Result<Survey, LoadError> {
        let runtime = Arc::clone(self);
        self.by_turns(share, false, async move {
            let source = Source { mode: Mode::Survey, ..source };
            match runtime.bring_in(source, log, SURVEY_CPU).await {
                Ok((_, Finish::Surveyed(survey))) => Ok(survey),
                Ok((_, Finish::Failed(error))) => Err(LoadError::Script(error)),
                Ok(_) => Err(LoadError::Failed(Failure::Internal("the survey ended as something else".into()))),
                Err(error) => Err(LoadError::Failed(Failure::from_wasmtime(&error, SURVEY_CPU))),
            }
        })
        .await
        .map_err(LoadError::Failed)?
    }

    /// A VM that has been given a script, and how that ended.
    async fn bring_in(&self, source: Source, log: ScriptLog, cpu: Duration) -> wasmtime::Result<(Box<Vm>, Finish)> {
        let Source { entry, mode, memory_bytes, modules, narrowed } = source;
        let used_bytes = self.memories.content().len().saturating_sub(SPARE_BYTES);
        let heap_bytes = memory_bytes.saturating_sub(used_bytes + HEAP_RESERVE_BYTES);
        let heap_bytes = u64::try_from(heap_bytes).unwrap_or(u64::MAX);
        let bundle = Bundle { entry, mode, heap_bytes, narrowed };
        let state = State::new(memory_bytes, CpuMeter::new(CpuBudget::new(cpu)), log, Reach::Modules(modules));
        let mut vm = Vm::instantiate(&self.guest, &self.preempt, state).await?;
        let finish = vm.load(&bundle).await?;
        Ok((vm, finish))
    }
}
