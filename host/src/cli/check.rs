//! `neoc check`: all that is wrong with a policy and its scripts.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use neoc_abi::event::Mode;

use super::{default_cache_dir, load_policy, logging};
use crate::{
    runtime::{GUEST, Runtime, Settings},
    tenant::Tenant,
};

/// VMs of one command; scripts are compiled one after the other.
const INSTANCES: u32 = 2;

/// Arguments of `neoc check`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The policy file.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
}

/// Checks. Exit code 1, and each problem on standard error, when something is wrong.
pub fn main(arguments: &Arguments) -> super::Result {
    let _guard = logging::start(logging::Format::Terse);
    let policy = load_policy(&arguments.policy)?;
    let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let cache_dir = policy.host.cache_dir.clone().unwrap_or_else(default_cache_dir);
    let preemption = policy.host.preemption;
    let settings = Settings { instances: INSTANCES, workers: None, cache_dir, preemption, guest: GUEST.into() };
    let runtime = Arc::new(Runtime::start(&settings, io.handle())?);
    let mut n_problems = 0;
    io.block_on(async {
        for tenant in &policy.tenants {
            let data_dir = &policy.host.data_dir;
            if let Err(problem) = Tenant::load(Arc::clone(tenant), data_dir, &runtime, Mode::Check).await {
                eprintln!("{}: {problem}", arguments.policy.display());
                n_problems += 1;
            }
        }
    });
    io.shutdown_background();
    if n_problems > 0 {
        return Ok(ExitCode::FAILURE);
    }
    println!("{}: {} tenants, no problems", arguments.policy.display(), policy.tenants.len());
    Ok(ExitCode::SUCCESS)
}
