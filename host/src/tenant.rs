//! A tenant that serves: its policy, its loaded script, its meters.

use std::{fs, io, path::Path, sync::Arc};

use neoc_abi::{
    event::{Mode, Module, ScriptError},
    survey::Survey,
};

use crate::{
    capability::module::Folder,
    limits::RateLimiter,
    policy::{self, Isolation},
    runtime::{Failure, LoadError, MAX_MEMORY_BYTES, Resident, Runtime, Share, SharedImage, Source},
    script_log::{Quota, ScriptLog},
};

/// A tenant with its script loaded.
pub struct Tenant {
    /// Its name.
    pub name: Arc<str>,
    /// Its part in the script workers' time.
    pub share: Share,
    /// What it may do.
    pub policy: Arc<policy::Tenant>,
    /// Its script.
    pub image: SharedImage,
    /// The VM that its requests share. None: each has its own.
    pub resident: Option<Arc<Resident>>,
    /// Its script's own modules.
    pub modules: Arc<Folder>,
    /// Inbound requests.
    pub requests: Arc<RateLimiter>,
    /// Its share of the log.
    pub log_quota: Arc<Quota>,
    /// Of the entry module's text, to see whether it changed.
    entry: blake3::Hash,
}

/// Why a tenant's script cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScriptProblem {
    /// The file cannot be read.
    #[error("{key} = {path:?}: cannot read the script: {source}")]
    Unreadable {
        /// The policy key.
        key: String,
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The script does not compile, or its top level fails.
    #[error("{key}: {}", .error.message)]
    Broken {
        /// The policy key.
        key: String,
        /// What Luau said.
        error: ScriptError,
    },
    /// Its VM was killed while it loaded.
    #[error("{key}: {failure}")]
    Killed {
        /// The policy key.
        key: String,
        /// Why.
        failure: Failure,
    },
}

impl Tenant {
    /// Reads and loads the tenant's script. What lies in `data_dir` is no module of it.
    ///
    /// # Errors
    /// See [`ScriptProblem`].
    pub async fn load(
        policy: Arc<policy::Tenant>,
        data_dir: &Path,
        runtime: &Arc<Runtime>,
    ) -> Result<Self, ScriptProblem> {
        let log_quota = Arc::new(Quota::new(&policy));
        let requests = Arc::new(RateLimiter::new(policy.limits.requests));
        Self::load_with(policy, data_dir, runtime, requests, log_quota).await
    }

    /// Compiles the tenant's script, looks at its text and at those of its modules, and runs nothing.
    ///
    /// # Errors
    /// See [`ScriptProblem`].
    pub async fn survey(
        policy: &Arc<policy::Tenant>,
        data_dir: &Path,
        runtime: &Arc<Runtime>,
    ) -> Result<Survey, ScriptProblem> {
        let name: Arc<str> = policy.name.as_str().into();
        let share = Share::new(Arc::clone(&name), policy.limits.weight);
        let log = ScriptLog::tenant("load".into(), Arc::new(Quota::new(policy)));
        let key = format!("tenant.{name}.script");
        let modules = Arc::new(Folder::of_script(&policy.script, Some(data_dir)));
        let source = read(policy, modules, Mode::Check, &key)?;
        runtime.load(&share, source.clone(), log.clone()).await.map_err(|error| not_loaded(error, &key))?;
        // The modules may be more than a VM of the tenant's could hold at once: it need not load them all.
        let source = Source { memory_bytes: MAX_MEMORY_BYTES, ..source };
        runtime.survey(&share, source, log).await.map_err(|error| not_loaded(error, &key))
    }

    /// The tenant under another policy of the same host. What it has used of its rates stays used, where the
    /// rate is the same; its script is loaded again only if it changed, and until then its requests go on sharing
    /// the VM that they share. Says whether it was.
    ///
    /// # Errors
    /// See [`ScriptProblem`].
    pub async fn successor(
        self: &Arc<Self>,
        policy: Arc<policy::Tenant>,
        data_dir: &Path,
        runtime: &Arc<Runtime>,
    ) -> Result<(Self, bool), ScriptProblem> {
        let same_rate = self.policy.limits.requests == policy.limits.requests;
        let requests = match same_rate {
            true => Arc::clone(&self.requests),
            false => Arc::new(RateLimiter::new(policy.limits.requests)),
        };
        let same_log = self.policy.limits.log == policy.limits.log
            && self.policy.limits.log_line_bytes == policy.limits.log_line_bytes
            && self.policy.allow.log == policy.allow.log;
        let log_quota = if same_log { Arc::clone(&self.log_quota) } else { Arc::new(Quota::new(&policy)) };
        if !self.is_current(&policy).await {
            let loaded = Self::load_with(policy, data_dir, runtime, requests, log_quota).await?;
            return Ok((loaded, true));
        }
        let share = Share::new(Arc::clone(&self.name), policy.limits.weight);
        let (name, image, modules) = (Arc::clone(&self.name), Arc::clone(&self.image), Arc::clone(&self.modules));
        let is_same = self.policy.isolation == policy.isolation && self.share.weight == share.weight;
        let resident = if is_same { self.resident.clone() } else { resident(&policy, &share, &image) };
        Ok((Self { name, share, policy, image, resident, modules, requests, log_quota, entry: self.entry }, false))
    }

    /// Whether the loaded script is the one that this policy names, as it is on the disk.
    async fn is_current(self: &Arc<Self>, policy: &policy::Tenant) -> bool {
        let same_memory = self.policy.limits.memory_bytes == policy.limits.memory_bytes;
        if self.policy.script != policy.script || !same_memory || !self.policy.narrowed().eq(policy.narrowed()) {
            return false;
        }
        let tenant = Arc::clone(self);
        let work = move || {
            fs::read(&tenant.policy.script).is_ok_and(|source| blake3::hash(&source) == tenant.entry)
                && tenant.modules.is_current()
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(false)
    }

    async fn load_with(
        policy: Arc<policy::Tenant>,
        data_dir: &Path,
        runtime: &Arc<Runtime>,
        requests: Arc<RateLimiter>,
        log_quota: Arc<Quota>,
    ) -> Result<Self, ScriptProblem> {
        let name: Arc<str> = policy.name.as_str().into();
        let share = Share::new(Arc::clone(&name), policy.limits.weight);
        let log = ScriptLog::tenant("load".into(), Arc::clone(&log_quota));
        let key = format!("tenant.{name}.script");
        let modules = Arc::new(Folder::of_script(&policy.script, Some(data_dir)));
        let source = read(&policy, Arc::clone(&modules), Mode::Handler, &key)?;
        let entry = blake3::hash(&source.entry.source);
        let image = runtime.load(&share, source, log).await.map_err(|error| not_loaded(error, &key))?;
        tracing::info!(tenant = %name, image_bytes = image.copied_bytes(), image_pages = image.n_pages(), "loaded");
        let image = Arc::new(image);
        let resident = resident(&policy, &share, &image);
        Ok(Self { name, share, image, resident, modules, requests, log_quota, policy, entry })
    }
}

/// The VM that the requests of a tenant share, where they do.
fn resident(policy: &policy::Tenant, share: &Share, image: &SharedImage) -> Option<Arc<Resident>> {
    let memory_bytes = usize::try_from(policy.limits.memory_bytes).unwrap_or(usize::MAX);
    let is_shared = policy.isolation == Isolation::Tenant;
    is_shared.then(|| Resident::new(share.clone(), Arc::clone(image), memory_bytes))
}

fn not_loaded(error: LoadError, key: &str) -> ScriptProblem {
    let key = key.to_owned();
    match error {
        LoadError::Script(error) => ScriptProblem::Broken { key, error },
        LoadError::Failed(failure) => ScriptProblem::Killed { key, failure },
    }
}

fn read(policy: &policy::Tenant, modules: Arc<Folder>, mode: Mode, key: &str) -> Result<Source, ScriptProblem> {
    let source = fs::read(&policy.script).map_err(|source| ScriptProblem::Unreadable {
        key: key.to_owned(),
        path: policy.script.display().to_string(),
        source,
    })?;
    let memory_bytes = usize::try_from(policy.limits.memory_bytes).unwrap_or(usize::MAX);
    let narrowed = policy.narrowed().map(str::to_owned).collect();
    let entry = Module { name: chunk_name(&policy.script), source };
    Ok(Source { entry, mode, memory_bytes, modules, narrowed })
}

/// A script's name in tracebacks: like that of its modules, the way from its folder. Its author knows no
/// folder of the host's.
pub fn chunk_name(script: &Path) -> String {
    script.file_name().unwrap_or(script.as_os_str()).to_string_lossy().into_owned()
}
