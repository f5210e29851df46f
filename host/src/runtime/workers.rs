//! Workers: further VMs for a request that has one.
//!
//! A worker is a job like any other, in its tenant's line, with a slot of the pool and a memory of its own.
//! The CPU budget is the request's. Its time is, too: a worker is an operation of the request's VM, and
//! dropping that aborts it.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use neoc_abi::{
    ErrorKind, OperationError,
    event::{Event, Finish, ScriptError},
    workers::Reply,
};

use super::{
    Ended, Failure, Job, Runtime, effects::Line, fair_queue::Share, meter::CpuBudget, tenant_image::SharedImage,
};
use crate::{
    broker::workers::Permit,
    capability::workers::{Launcher, Place},
    limits::{Exceeded, Owner},
    policy::shown_time,
    script_log::ScriptLog,
};

/// What a request and its workers have in common.
struct Request {
    runtime: Arc<Runtime>,
    share: Share,
    image: SharedImage,
    memory_bytes: usize,
    cpu: Arc<CpuBudget>,
    /// The request's own, or that of its detached tasks if they have more.
    wall: Duration,
    log: ScriptLog,
    line: Arc<Line>,
}

/// What starts the workers of a job.
pub fn launcher(runtime: &Arc<Runtime>, job: &Job) -> Launcher {
    let request = Arc::new(Request {
        runtime: Arc::clone(runtime),
        share: job.share.clone(),
        image: Arc::clone(&job.image),
        memory_bytes: job.memory_bytes,
        cpu: Arc::clone(&job.cpu),
        wall: job.detach.as_ref().map_or(job.wall, |grant| grant.wall.max(job.wall)),
        log: job.log.clone(),
        line: job.effects.line(),
    });
    Arc::new(move |permit, place| run(Arc::clone(&request), permit, place).boxed())
}

async fn run(request: Arc<Request>, permit: Permit, place: Place) -> Result<Reply, OperationError> {
    let (caller, work, argument_bytes) = permit.into_parts();
    if work.arguments.len() > request.memory_bytes / 2 {
        return Err(OperationError::limit("memory", "the arguments take more than half of a worker's memory"));
    }
    let event = Event::Work(work).write().map_err(|_| OperationError::invalid("the arguments have no form"))?;
    request.cpu.share();
    let effects = request.line.worker(Arc::clone(&caller), (place, argument_bytes));
    let job = Job {
        share: request.share.clone(),
        image: Arc::clone(&request.image),
        resident: None,
        event,
        memory_bytes: request.memory_bytes,
        cpu: Arc::clone(&request.cpu),
        // Never reached: whoever waits for it began earlier.
        wall: request.wall,
        log: request.log.clone(),
        effects,
        detach: None,
    };
    let ended = request.runtime.run(job).await.inspect_err(|failure| {
        let (tenant, request) = (&caller.tenant().name, caller.request());
        tracing::warn!(target: "neoc::request", tenant, request, reason = failure.as_str(), "a worker: {failure}");
    });
    outcome(ended, request.runtime.n_slots)
}

/// What the caller of a worker gets.
fn outcome(ended: Result<Ended, Failure>, n_instances: u32) -> Result<Reply, OperationError> {
    match ended.map(|ended| ended.finish) {
        Ok(Finish::Worked(result)) => result.map(Reply::Returned),
        Ok(Finish::Failed(ScriptError { message, traceback })) => {
            let traceback = Some(traceback).filter(|traceback| !traceback.is_empty());
            Err(OperationError { traceback, ..OperationError::new(ErrorKind::Failed, message) })
        }
        Ok(Finish::Response(_) | Finish::Done | Finish::Surveyed(_)) => {
            Err(OperationError::io("the worker ended as something else"))
        }
        Err(Failure::Cpu(time)) => Err(Exceeded::new(Owner::Request, "cpu", shown_time(time)).at("workers")),
        Err(Failure::Wall(time)) => Err(Exceeded::new(Owner::Request, "wall", shown_time(time)).at("workers")),
        Err(Failure::Capacity) => Err(Exceeded::new(Owner::Host, "instances", n_instances).at("workers")),
        Err(failure @ Failure::Trap(_)) => Err(OperationError::new(ErrorKind::Failed, failure.to_string())),
        Err(Failure::Internal(_) | Failure::Stalled | Failure::Lost | Failure::Crowded(_)) => {
            Err(OperationError::io("internal error"))
        }
    }
}
