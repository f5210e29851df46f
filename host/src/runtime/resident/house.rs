//! A VM that requests share, and all who are in it: whose call comes next, who is charged for it, who is told what.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use neoc_abi::{
    Completion,
    event::{Finish, ScriptError, Terms},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::Instant,
};

use super::{
    super::{
        Ended, Failure, Job, LOAD_CPU, Runtime, SharedImage,
        meter::{CpuBudget, CpuMeter},
        random_seed,
        requests::{Change, Requests},
        state::{Reach, State},
        turn,
        vm::{FOLD_AFTER, Vm},
    },
    Command, Setback, Visit,
};
use crate::{policy::detach::Grant, script_log::ScriptLog};

/// CPU time for the cleanups of a request that has none left. What is over it ends the VM.
const CLEANUP_CPU: Duration = Duration::from_millis(10);

/// A request in the VM.
struct Guest {
    cpu: Arc<CpuBudget>,
    detach: Option<Grant>,
    /// Where its end goes, until it has one.
    end: Option<oneshot::Sender<Result<Ended, Setback>>>,
    /// Dropped when all its tasks have ended; told why if that is not of their own. Absent where none may outlive it.
    over: Option<oneshot::Sender<Failure>>,
    _place: OwnedSemaphorePermit,
}

/// The VM and all who are in it.
struct House {
    vm: Box<Vm>,
    guests: BTreeMap<u32, Guest>,
    /// Those whose answers are out, and whose detached tasks may begin.
    outlived: VecDeque<u32>,
}

/// Why the VM is called.
enum Occasion {
    Command(Command),
    /// What has come back for a request.
    Completions(u32, Vec<Completion>),
}

/// Why a VM ends, and whose call it was.
struct Fall {
    number: u32,
    failure: Failure,
}

/// Makes the VM and serves until it is not needed any more, or has fallen.
///
/// # Errors
/// Why there is no VM.
pub(super) async fn serve(
    runtime: &Runtime,
    tenant: &str,
    image: &SharedImage,
    memory_bytes: usize,
    commands: &mut mpsc::UnboundedReceiver<Command>,
) -> Result<(), Failure> {
    // Nothing runs on this budget: each call is some request's.
    let meter = CpuMeter::new(CpuBudget::new(LOAD_CPU));
    let state = State::new(memory_bytes, meter, ScriptLog::discard(), Reach::Requests(Requests::default()));
    let vm = runtime.ready(image, state).await;
    let vm = vm.map_err(|error| Failure::from_wasmtime(&error, LOAD_CPU))?;
    let mut house = House { vm, guests: BTreeMap::new(), outlived: VecDeque::new() };
    if let Err(fall) = house.serve(commands).await {
        house.fall(tenant, fall);
    }
    Ok(())
}

// === impl House ===

impl House {
    /// Serves until nobody is there and nobody can come.
    async fn serve(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), Fall> {
        loop {
            if let Some(number) = self.outlived.pop_front() {
                self.complete(number, Vec::new()).await?;
            } else {
                match self.occasion(commands).await {
                    Some(Occasion::Command(Command::Begin(visit))) => self.begin(visit).await?,
                    Some(Occasion::Command(Command::Cancel(number))) => self.cancel(number).await?,
                    Some(Occasion::Completions(number, batch)) => self.complete(number, batch).await?,
                    // Those who are still there wait for nothing that could come.
                    None => return Ok(()),
                }
            }
            // As for any VM: the next turn is in the tenant's line.
            turn::breathe().await;
        }
    }

    /// Waits for the next one; after some time with the VM folded. None when nothing can come any more.
    async fn occasion(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Option<Occasion> {
        // Where much is going on it is there, and needs no timer.
        if let Some(occasion) = self.next_occasion(commands).now_or_never() {
            return occasion;
        }
        match tokio::time::timeout(FOLD_AFTER, self.next_occasion(commands)).await {
            Ok(occasion) => occasion,
            Err(_) => {
                self.vm.fold();
                self.next_occasion(commands).await
            }
        }
    }

    async fn next_occasion(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Option<Occasion> {
        tokio::select! {
            Some(command) = commands.recv() => Some(Occasion::Command(command)),
            Some((number, batch)) = self.vm.next_batch() => Some(Occasion::Completions(number, batch)),
            else => None,
        }
    }

    async fn begin(&mut self, visit: Box<Visit>) -> Result<(), Fall> {
        let Visit { number, job, deadline, place, end, over } = *visit;
        if end.is_closed() {
            return Ok(());
        }
        let Job { event, cpu, log, effects, detach, .. } = *job;
        let terms = Terms { request: number, random_seed: random_seed(), limits: effects.limits() };
        self.requests(number)?.enter(number, effects, log, Some(deadline));
        self.guests.insert(number, Guest { cpu, detach, end: Some(end), over, _place: place });
        self.charge_to(number);
        let started = self.vm.start_beside(event, &terms).await;
        if self.judge(number, started)?.is_none() {
            let error = ScriptError { message: "not enough memory for the request".into(), traceback: String::new() };
            self.requests(number)?.finish(number, Finish::Failed(error), 0);
        }
        self.settle(number)
    }

    async fn cancel(&mut self, number: u32) -> Result<(), Fall> {
        let Some(guest) = self.guests.get(&number) else { return Ok(()) };
        if guest.cpu.is_exceeded() {
            guest.cpu.renew(CLEANUP_CPU);
        }
        self.charge_to(number);
        self.requests(number)?.begin_cleanup(number);
        let cancelled = self.vm.cancel_request(number).await;
        self.judge(number, cancelled)?;
        self.settle(number)
    }

    async fn complete(&mut self, number: u32, batch: Vec<Completion>) -> Result<(), Fall> {
        let Some(guest) = self.guests.get_mut(&number) else { return Ok(()) };
        if guest.cpu.is_exceeded() {
            // Its workers have used it up, or it has as it gave its turn away: no reason for others to end.
            guest.fail(Failure::Cpu(guest.cpu.last_given()));
            self.cancel(number).await?;
        }
        self.charge_to(number);
        let completed = self.vm.complete(batch).await;
        self.judge(number, completed)?;
        self.settle(number)
    }

    /// Takes notice of what the guest has said in a call for `caller`.
    fn settle(&mut self, caller: u32) -> Result<(), Fall> {
        while let Some(Change { number, end, is_over, n_stalls }) = self.requests(caller)?.next_change() {
            let Some(guest) = self.guests.get_mut(&number) else { continue };
            if let Some((finish, n_left)) = end
                && let Some(end) = guest.end.take()
            {
                let ended = Ended { finish, cpu: guest.cpu.used(), n_stalls, has_detached: n_left > 0 };
                // Nobody waits for it when the client has left.
                let _ = end.send(Ok(ended));
                // Without a grant the broker let no task be detached. What waits all the same is cancelled with the
                // presence of who waited for the answer.
                if let Some(grant) = guest.detach.as_ref().filter(|_| n_left > 0) {
                    guest.cpu.renew(grant.cpu);
                    let deadline = Instant::now() + grant.wall;
                    self.outlived.push_back(number);
                    self.requests(caller)?.extend(number, deadline);
                }
            }
            if is_over {
                self.guests.remove(&number);
                self.requests(caller)?.leave(number);
            }
        }
        Ok(())
    }

    fn charge_to(&self, number: u32) {
        if let Some(guest) = self.guests.get(&number) {
            self.vm.charge_to(&guest.cpu);
        }
    }

    fn requests(&mut self, number: u32) -> Result<&mut Requests, Fall> {
        self.vm.requests().map_err(|error| Fall { number, failure: Failure::Internal(error.to_string()) })
    }

    fn judge<T>(&self, number: u32, called: wasmtime::Result<T>) -> Result<T, Fall> {
        called.map_err(|error| {
            let cpu = self.guests.get(&number).map_or(LOAD_CPU, |guest| guest.cpu.last_given());
            Fall { number, failure: Failure::from_wasmtime(&error, cpu) }
        })
    }

    /// Tells everybody that the VM is no more.
    fn fall(self, tenant: &str, fall: Fall) {
        let Fall { number, failure } = fall;
        let n_requests = self.guests.len();
        tracing::warn!(target: "neoc::request", tenant, n_requests, reason = failure.as_str(),
            "the tenant's VM was ended, with the requests in it; the next one begins with new state");
        // First, so that none of them is answered while anything of it is left.
        drop(self.vm);
        for (other, mut guest) in self.guests {
            guest.fail(if other == number { failure.clone() } else { Failure::Lost });
        }
    }
}

// === impl Guest ===

impl Guest {
    /// Tells whoever waits that it has failed. Nobody does when the client has left.
    fn fail(&mut self, failure: Failure) {
        let _ = match (self.end.take(), self.over.take()) {
            (Some(end), _) => end.send(Err(Setback::Failed(failure))).map_err(drop),
            (None, Some(over)) => over.send(failure).map_err(drop),
            (None, None) => Ok(()),
        };
    }
}
