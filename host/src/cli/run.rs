//! `neoc run`: one script, to its end, in the same sandbox.

use std::{error::Error, fs, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use neoc_abi::event::{Event, Finish, Mode, Module, ScriptError};

use super::{default_cache_dir, load_policy, logging, this_machine};
use crate::{
    audit::Audit,
    broker::Broker,
    capability::{Capabilities, module::Folder},
    policy::{Host, Tenant},
    request_id,
    runtime::{CpuBudget, Effects, GUEST, Job, Line, LoadError, Runtime, Settings, Share, Source},
    script_log::ScriptLog,
    tenant::chunk_name,
};

/// VMs of one command without its workers: the one that loads the script, the one that runs it, and room
/// between.
const INSTANCES: u32 = 4;

/// Arguments of `neoc run`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The script.
    script: PathBuf,
    /// What the script gets as `...`. Write `--` before arguments that start with a dash.
    arguments: Vec<String>,
    /// The policy file. Without one every effect is refused.
    #[arg(long, value_name = "FILE", requires = "tenant")]
    policy: Option<PathBuf>,
    /// The tenant of the policy whose grants and limits apply.
    #[arg(long, value_name = "NAME", requires = "policy")]
    tenant: Option<String>,
}

/// Runs the script. Exit code 1, and a traceback on standard error, when it fails.
pub fn main(arguments: Arguments) -> super::Result {
    let _guard = logging::start(logging::Format::Terse);
    let Setting { tenant, host, version } = setting(&arguments)?;
    let source = fs::read(&arguments.script)
        .map_err(|error| format!("cannot read the script {}: {error}", arguments.script.display()))?;
    let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let cache_dir = host.as_ref().and_then(|host| host.cache_dir.clone()).unwrap_or_else(default_cache_dir);
    let preemption = host.as_ref().map(|host| host.preemption).unwrap_or_default();
    let workers = tenant.usable_workers().map_or(0, |grant| grant.count.get());
    let instances = INSTANCES + workers;
    let settings = Settings { instances, workers: None, cache_dir, preemption, guest: GUEST.into() };
    let runtime = Arc::new(Runtime::start(&settings, io.handle())?);
    let audit = host.as_ref().and_then(|host| host.audit.as_deref()).map(Audit::to_file).transpose()?;
    // Nobody serves here.
    let machine = this_machine(None)?;
    let broker = Arc::new(Broker::with_audit(Arc::new(audit.unwrap_or_default()), &version, machine, [&tenant]));
    let capabilities = Arc::new(match &host {
        Some(host) => Capabilities::open(host, std::slice::from_ref(&tenant), Arc::clone(&broker))?,
        None => Capabilities::none(Arc::clone(&broker)),
    });
    let modules = Folder::of_script(&arguments.script, host.as_ref().map(|host| host.data_dir.as_path()));
    let memory_bytes = usize::try_from(tenant.limits.memory_bytes)?;
    let entry = Module { name: chunk_name(&arguments.script), source };
    let narrowed = tenant.narrowed().map(str::to_owned).collect();
    let source = Source { entry, mode: Mode::Script, memory_bytes, modules: Arc::new(modules), narrowed };
    let result = io.block_on(run(&runtime, &broker, &capabilities, &tenant, source, arguments.arguments));
    io.shutdown_background();
    broker.decisions().close();
    result
}

/// As what the script runs.
struct Setting {
    tenant: Arc<Tenant>,
    /// Absent without a policy.
    host: Option<Host>,
    /// Of the policy.
    version: String,
}

/// The tenant to run as.
fn setting(arguments: &Arguments) -> Result<Setting, Box<dyn Error>> {
    let (Some(file), Some(name)) = (&arguments.policy, &arguments.tenant) else {
        let tenant = Arc::new(Tenant::without_grants("run", &arguments.script));
        return Ok(Setting { tenant, host: None, version: String::new() });
    };
    let policy = load_policy(file)?;
    let tenant = policy.tenant(name).cloned().ok_or_else(|| {
        let names: Vec<_> = policy.tenants.iter().map(|tenant| tenant.name.as_str()).collect();
        format!("{}: no tenant {name:?}; it has {}", file.display(), names.join(", "))
    })?;
    let version = policy.version();
    Ok(Setting { tenant, host: Some(policy.host), version })
}

async fn run(
    runtime: &Arc<Runtime>,
    broker: &Arc<Broker>,
    capabilities: &Arc<Capabilities>,
    tenant: &Arc<Tenant>,
    source: Source,
    arguments: Vec<String>,
) -> super::Result {
    let share = Share::new(tenant.name.as_str().into(), tenant.limits.weight);
    let (memory_bytes, modules) = (source.memory_bytes, Arc::clone(&source.modules));
    let image = match runtime.load(&share, source, ScriptLog::terminal(tenant.allow.log)).await {
        Ok(image) => Arc::new(image),
        Err(LoadError::Script(error)) => return Ok(fail(&error)),
        Err(LoadError::Failed(failure)) => return Err(failure.into()),
    };
    let caller = broker.caller(tenant, request_id::fresh()).ok_or("the tenant has no account")?;
    let io = tokio::runtime::Handle::current();
    let line = Line::new(Arc::clone(broker), Arc::clone(capabilities), modules, io);
    let job = Job {
        share,
        image,
        resident: None,
        event: Event::Run(arguments).write()?,
        memory_bytes,
        cpu: CpuBudget::new(tenant.limits.cpu),
        wall: tenant.limits.wall,
        log: ScriptLog::terminal(tenant.allow.log),
        effects: Effects::new(&line, caller),
        detach: tenant.usable_detach(),
    };
    let ended = runtime.run(job).await?;
    // The script's detached tasks have their own time.
    runtime.idle().await;
    match ended.finish {
        Finish::Failed(error) => Ok(fail(&error)),
        Finish::Done | Finish::Response(_) | Finish::Worked(_) | Finish::Surveyed(_) => Ok(ExitCode::SUCCESS),
    }
}

/// Prints a script's failure.
fn fail(error: &ScriptError) -> ExitCode {
    eprintln!("{}", error.message);
    if !error.traceback.is_empty() {
        eprintln!("{}", error.traceback.trim_end());
    }
    ExitCode::FAILURE
}
