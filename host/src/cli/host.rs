//! `neoc host`: serve the tenants of a policy.

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{default_cache_dir, load_policy, logging, reload::Follower};
use crate::{
    runtime::{GUEST, Runtime, Settings},
    server::{Bound, Service},
};

/// For so many processors there is one thread that does I/O, the broker, timers and sockets, and runs scripts while
/// their turns are short. Here, with two, a second such thread serves no more requests, and each costs a third more.
const PROCESSORS_PER_IO_THREAD: usize = 4;

/// Threads for file and store operations.
const BLOCKING_THREADS: usize = 32;

/// Arguments of `neoc host`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The policy file.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
}

/// One more than work: the last is the runtime's reserve.
fn n_io_threads() -> usize {
    let n_processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    1 + (n_processors / PROCESSORS_PER_IO_THREAD).max(1)
}

/// Serves until a signal comes. Exit code 0 when all running requests finished.
pub fn main(arguments: &Arguments) -> super::Result {
    let _guard = logging::start(logging::Format::Json);
    let io = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(n_io_threads())
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
