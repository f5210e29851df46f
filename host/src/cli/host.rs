//! `neoc host`: serve the tenants of a policy.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{default_cache_dir, load_policy, logging, reload::Follower};
use crate::{
    runtime::{GUEST, Runtime, Settings},
    server::{Bound, Service},
};

/// Threads that do I/O: the broker, timers and sockets. Scripts have threads of their own, but may have a turn on all
/// of these but one.
const IO_THREADS: usize = 2;

/// Threads for file and store operations.
const BLOCKING_THREADS: usize = 32;

/// Arguments of `neoc host`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The policy file.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
}

/// Serves until a signal comes. Exit code 0 when all running requests finished.
pub fn main(arguments: &Arguments) -> super::Result {
    let _guard = logging::start(logging::Format::Json);
    let io = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("neoc-io")
        .enable_all()
        .build()?;
    let follower = io.block_on(async { Follower::new(&arguments.policy) })?;
    let policy = load_policy(&arguments.policy)?;
    let settings = Settings {
        instances: policy.host.instances,
        workers: policy.host.workers,
        cache_dir: policy.host.cache_dir.clone().unwrap_or_else(default_cache_dir),
        preemption: policy.host.preemption,
        guest: GUEST.into(),
    };
    let runtime = Arc::new(Runtime::start(&settings, io.handle())?);
    let drained = io.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listen = policy.host.listen;
        let taken = |error| format!("cannot listen on {listen}: {error}");
        let bound = Bound::new(listen).map_err(taken)?;
        let address = bound.address()?;
        let service = Arc::new(Service::load(policy, Arc::clone(&runtime), address).await?);
        let server = bound.listen(Arc::clone(&service)).map_err(taken)?;
        tokio::spawn(follower.follow(Arc::clone(&service)));
        println!("listening on http://{address}");
        let drained = server
            .serve(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("draining: no new connections; running requests may finish");
            })
            .await;
        service.close_audit();
        service.log_decisions();
        Ok::<_, Box<dyn std::error::Error>>(drained)
    })?;
    if !drained {
        tracing::warn!("requests that were not done in time were cut off");
    }
    io.shutdown_background();
    Ok(ExitCode::SUCCESS)
}
