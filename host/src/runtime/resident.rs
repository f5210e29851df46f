//! The VM of a tenant whose requests share one: `isolation = "tenant"`.
//!
//! It begins with the first request, from the tenant's image, and lives until a call into it traps or is killed,
//! or the tenant is gone. Its requests take turns call by call: each call into the guest is for one request, that is
//! charged for it, and belongs to nobody else. What tasks of other requests do in that call, because it has woken
//! them, is charged to it as well.
//!
//! A request that ends before its script has an end, by its time or because its client left, has its tasks
//! cancelled in the VM, and goes on counting among those at once until their cleanups are done.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
};

use neoc_abi::{
    event::{Finish, ScriptError, Start},
    log::{Level, Record},
};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};

use super::{
    Ended, Failure, Job, Runtime, SLOT_WAIT, Share, SharedImage,
    meter::{CpuBudget, CpuMeter},
    random_seed,
    requests::{Change, Requests},
    state::{Reach, State},
    vm::Vm,
};
use crate::script_log::ScriptLog;

/// Requests that one VM has at once. They share its memory: at the most that a policy can give, 256 KiB for each.
const MAX_AT_ONCE: u32 = 256;

/// One tenant's VM, as its requests find it.
pub struct Resident {
    share: Share,
    image: SharedImage,
    memory_bytes: usize,
    /// The way to the VM that is there. None before the first request, and after the last one.
    line: Mutex<Option<Line>>,
    /// One for each request at once. Others wait here, in order.
    places: Arc<Semaphore>,
    /// The last request's number.
    last: AtomicU32,
}

type Line = mpsc::UnboundedSender<Command>;

enum Command {
    Begin(Box<Visit>),
    Cancel(u32),
}

/// A request on its way to the VM.
struct Visit {
    number: u32,
    job: Job,
    deadline: Instant,
    place: OwnedSemaphorePermit,
    end: oneshot::Sender<Result<Ended, Setback>>,
    over: oneshot::Sender<Failure>,
}

/// Why a visit comes to no end.
enum Setback {
    /// Its VM was ended, or there was none for it.
    Failed(Failure),
    /// The VM was gone before the visit began: another is to be had.
    TooLate(Box<Visit>),
}

/// That somebody waits for a request's end. Dropping it cancels the request, if it has not ended.
struct Presence {
    number: u32,
    line: Line,
}

/// A request in the VM.
struct Guest {
    cpu: Arc<CpuBudget>,
    detach: Option<crate::policy::detach::Grant>,
    /// Where its end goes, until it has one.
    end: Option<oneshot::Sender<Result<Ended, Setback>>>,
    /// Dropped when all its tasks have ended; told why if that is not of their own.
    over: oneshot::Sender<Failure>,
    _place: OwnedSemaphorePermit,
}

/// The VM and all who are in it.
struct House {
    vm: Vm,
    guests: BTreeMap<u32, Guest>,
    /// Those whose answers are out, and whose detached tasks may begin.
    outlived: VecDeque<u32>,
}

/// Why a VM ends, and whose call it was.
struct Fall {
    number: u32,
    failure: Failure,
}

// === impl Resident ===

impl Resident {
    /// A tenant without a VM yet.
    pub fn new(share: Share, image: SharedImage, memory_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            share,
            image,
            memory_bytes,
            line: Mutex::default(),
            places: Arc::new(Semaphore::new(usize::try_from(MAX_AT_ONCE).unwrap_or(Semaphore::MAX_PERMITS))),
            last: AtomicU32::new(0),
        })
    }

    /// Lets the VM end with the last of its requests.
    pub fn retire(&self) {
        self.line.lock().take();
    }

    /// Hands a visit to the VM; begins one where there is none.
    fn admit(self: &Arc<Self>, runtime: &Arc<Runtime>, visit: Box<Visit>) -> Presence {
        let mut line = self.line.lock();
        let (number, mut command) = (visit.number, Command::Begin(visit));
        if let Some(line) = &*line {
            match line.send(command) {
                Ok(()) => return Presence { number, line: line.clone() },
                Err(refused) => command = refused.0,
            }
        }
        let (sender, commands) = mpsc::unbounded_channel();
        // Its other end is in `commands`.
        let _ = sender.send(command);
        *line = Some(sender.clone());
        let live = live(Arc::clone(runtime), self.share.clone(), Arc::clone(&self.image), self.memory_bytes, commands);
        tokio::spawn(live);
        Presence { number, line: sender }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // The VM may be gone.
        let _ = self.line.send(Command::Cancel(self.number));
    }
}

/// Runs a job in the tenant's VM until its script has an end. Dropping the future cancels it; only tasks that were
/// detached go on, once the end is there.
///
/// # Errors
/// Why the VM was killed, or had no place.
pub async fn run(runtime: &Arc<Runtime>, resident: &Arc<Resident>, job: Job) -> Result<Ended, Failure> {
    let (wall, detach, log) = (job.wall, job.detach.clone(), job.log.clone());
    let deadline = Instant::now() + wall;
    let visit = async {
        let place = tokio::time::timeout(SLOT_WAIT, Arc::clone(&resident.places).acquire_owned()).await;
        let Ok(Ok(place)) = place else { return Err(Failure::Crowded(MAX_AT_ONCE)) };
        // 0 is the number of who has a VM alone.
        let number = resident.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        let (end, mut ended) = oneshot::channel();
        let (over, is_over) = oneshot::channel();
        let mut visit = Box::new(Visit { number, job, deadline, place, end, over });
        loop {
            let presence = resident.admit(runtime, visit);
            match ended.await {
                Ok(Ok(ended)) => return Ok((ended, presence, is_over)),
                // Its time was over as well, whoever noticed first.
                Ok(Err(Setback::Failed(Failure::Stalled))) => return Err(Failure::Wall(wall)),
                Ok(Err(Setback::Failed(failure))) => return Err(failure),
                Ok(Err(Setback::TooLate(again))) => visit = again,
                Err(_) => return Err(Failure::Internal("a script worker panicked".into())),
            }
            (visit.end, ended) = oneshot::channel();
        }
    };
    let visit = tokio::time::timeout_at(deadline, visit).await.map_err(|_| Failure::Wall(wall))?;
    let (ended, presence, is_over) = visit?;
    if let Some(grant) = detach
        && ended.has_detached
    {
        let seen = Arc::clone(&runtime.outliving).read_owned().await;
        tokio::spawn(async move {
            let failure = match tokio::time::timeout(grant.wall, is_over).await {
                Ok(Ok(failure)) => Some(failure),
                // It is gone: they have come to their ends.
                Ok(Err(_)) => None,
                Err(_) => Some(Failure::Wall(grant.wall)),
            };
            if let Some(failure) = failure {
                log.report(Record { level: Level::Error, text: format!("detached tasks were ended: {failure}") });
            }
            drop(presence);
            drop(seen);
        });
    }
    Ok(ended)
}

/// The life of a VM, from the first command to its end.
async fn live(
    runtime: Arc<Runtime>,
    share: Share,
    image: SharedImage,
    memory_bytes: usize,
    commands: mpsc::UnboundedReceiver<Command>,
) {
    // Out here, so that whoever comes too late is told, also where the VM never began.
    let commands = Arc::new(tokio::sync::Mutex::new(commands));
    let (worker, on_worker) = (Arc::clone(&runtime), Arc::clone(&commands));
    let tenant = Arc::clone(&share.tenant);
    let lived = runtime.on_worker(&share, async move {
        let mut commands = on_worker.lock().await;
        serve(&worker, &tenant, &image, memory_bytes, &mut commands).await
    });
    let failure = match lived.await {
        Ok(Ok(())) => None,
        Ok(Err(failure)) | Err(failure) => Some(failure),
    };
    let mut commands = commands.lock().await;
    commands.close();
    while let Some(command) = commands.recv().await {
        let Command::Begin(visit) = command else { continue };
        match &failure {
            Some(failure) => visit.turn_away(|_| Setback::Failed(failure.clone())),
            None => visit.turn_away(Setback::TooLate),
        }
    }
}

impl Visit {
    fn turn_away(mut self: Box<Self>, setback: impl FnOnce(Box<Self>) -> Setback) {
        let end = std::mem::replace(&mut self.end, oneshot::channel().0);
        // Nobody waits when the client has left.
        let _ = end.send(Err(setback(self)));
    }
}

/// Makes the VM and serves until it is not needed any more, or has fallen.
///
/// # Errors
/// Why there is no VM.
async fn serve(
    runtime: &Runtime,
    tenant: &str,
    image: &SharedImage,
    memory_bytes: usize,
    commands: &mut mpsc::UnboundedReceiver<Command>,
) -> Result<(), Failure> {
    // Nothing runs on this budget: each call is some request's.
    let meter = CpuMeter::new(CpuBudget::new(super::LOAD_CPU));
    let state = State::new(memory_bytes, meter, ScriptLog::discard(), Reach::Requests(Requests::default()));
    let vm = runtime.ready(image, state).await;
    let vm = vm.map_err(|error| Failure::from_wasmtime(&error, super::LOAD_CPU))?;
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
                tokio::select! {
                    Some(command) = commands.recv() => match command {
                        Command::Begin(visit) => self.begin(visit).await?,
                        Command::Cancel(number) => self.cancel(number).await?,
                    },
                    Some((number, batch)) = self.vm.next_batch() => self.complete(number, batch).await?,
                    // Those who are still there wait for nothing that could come.
                    else => return Ok(()),
                }
            }
            // As for any VM: the next call is in the tenant's line.
            yield_once().await;
        }
    }

    async fn begin(&mut self, visit: Box<Visit>) -> Result<(), Fall> {
        let Visit { number, job, deadline, place, end, over } = *visit;
        if end.is_closed() {
            return Ok(());
        }
        let Job { event, cpu, log, effects, detach, .. } = job;
        let start = Start { request: number, event, random_seed: random_seed(), limits: effects.limits() };
        self.requests(number)?.enter(number, effects, log, Some(deadline));
        self.guests.insert(number, Guest { cpu, detach, end: Some(end), over, _place: place });
        self.charge_to(number);
        let started = self.vm.start_beside(&start).await;
        if self.judge(number, started)?.is_none() {
            let error = ScriptError { message: "not enough memory for the request".into(), traceback: String::new() };
            self.requests(number)?.finish(number, Finish::Failed(error), 0);
        }
        self.settle(number)
    }

    async fn cancel(&mut self, number: u32) -> Result<(), Fall> {
        if !self.guests.contains_key(&number) {
            return Ok(());
        }
        self.charge_to(number);
        let cancelled = self.vm.cancel_request(number).await;
        self.judge(number, cancelled)?;
        self.settle(number)
    }

    async fn complete(&mut self, number: u32, batch: Vec<neoc_abi::Completion>) -> Result<(), Fall> {
        if !self.guests.contains_key(&number) {
            return Ok(());
        }
        self.charge_to(number);
        let completed = self.vm.complete(batch).await;
        self.judge(number, completed)?;
        self.settle(number)
    }

    /// Takes notice of what the guest has said in a call for `caller`.
    fn settle(&mut self, caller: u32) -> Result<(), Fall> {
        let requests = self.requests(caller)?;
        let changes = requests.take_changes();
        let changes: Vec<_> = changes.into_iter().map(|change| (requests.n_stalls(change.number), change)).collect();
        for (n_stalls, Change { number, end, is_over }) in changes {
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
            let cpu = self.guests.get(&number).map_or(super::LOAD_CPU, |guest| guest.cpu.last_given());
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
        for (other, guest) in self.guests {
            let failure = if other == number { failure.clone() } else { Failure::Lost };
            // Nobody waits when the client has left.
            let _ = match guest.end {
                Some(end) => end.send(Err(Setback::Failed(failure))).map_err(drop),
                None => guest.over.send(failure).map_err(drop),
            };
        }
    }
}

/// Lets others of the line have their turn.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
