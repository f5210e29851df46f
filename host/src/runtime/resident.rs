//! The VM of a tenant whose requests share one: `isolation = "tenant"`.
//!
//! It begins with the first request, from the tenant's image, and lives until a call into it traps or is killed,
//! or the tenant is gone. Its requests take turns call by call: each call into the guest is for one request, that is
//! charged for it, and belongs to nobody else. What tasks of other requests do in that call, because it has woken
//! them, is charged to it as well.
//!
//! A request that ends before its script has an end, by its time or because its client left, has its tasks
//! cancelled in the VM, and goes on counting among those at once until their cleanups are done.

mod house;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};

use self::house::serve;
use super::{Ended, Failure, Job, Runtime, Share, SharedImage, memory::Witnessed, wait_for_place};

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
    job: Box<Job>,
    deadline: Instant,
    place: OwnedSemaphorePermit,
    end: oneshot::Sender<Result<Ended, Setback>>,
    /// Absent where no task may go on after the answer.
    over: Option<oneshot::Sender<Failure>>,
}

/// Why a visit comes to no end.
enum Setback {
    /// Its VM was ended, or there was none for it.
    Failed(Failure),
    /// The VM was gone before the visit began: another is to be had.
    TooLate(Box<Visit>),
}

/// That somebody waits for a request's end. Dropping it cancels the request.
struct Presence {
    number: u32,
    /// None: it has ended.
    line: Option<Line>,
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
                Ok(()) => return Presence { number, line: Some(line.clone()) },
                Err(refused) => command = refused.0,
            }
        }
        let (sender, commands) = mpsc::unbounded_channel();
        // Its other end is in `commands`.
        let _ = sender.send(command);
        *line = Some(sender.clone());
        let live = live(Arc::clone(runtime), self.share.clone(), Arc::clone(&self.image), self.memory_bytes, commands);
        tokio::spawn(live);
        Presence { number, line: Some(sender) }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            // The VM may be gone.
            let _ = line.send(Command::Cancel(self.number));
        }
    }
}

/// Runs a job in the tenant's VM until its script has an end. Dropping the future cancels it; only tasks that were
/// detached go on, once the end is there.
///
/// # Errors
/// Why the VM was killed, or had no place.
pub async fn run(runtime: &Arc<Runtime>, resident: &Arc<Resident>, job: Box<Job>) -> Result<Ended, Failure> {
    let wall = job.wall;
    let detach = job.detach.clone().map(|grant| (grant, job.log.clone()));
    let deadline = Instant::now() + wall;
    let visit = async {
        let place = wait_for_place(&resident.places).await.ok_or(Failure::Crowded(MAX_AT_ONCE))?;
        // 0 is the number of who has a VM alone.
        let number = resident.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        let (end, mut ended) = oneshot::channel();
        let (over, is_over) = detach.is_some().then(oneshot::channel).unzip();
        let mut visit = Box::new(Visit { number, job, deadline, place, end, over });
        loop {
            let presence = resident.admit(runtime, visit);
            match ended.await {
                Ok(Ok(ended)) => return Ok((ended, presence, is_over)),
                Ok(Err(Setback::Failed(failure))) => return Err(failure),
                Ok(Err(Setback::TooLate(again))) => visit = again,
                Err(_) => return Err(Failure::Internal("a script worker panicked".into())),
            }
            (visit.end, ended) = oneshot::channel();
        }
    };
    let visit = tokio::time::timeout_at(deadline, visit).await.ok();
    // The VM has heard of the deadline as well, and may have been the first to act on it.
    let visit = visit.filter(|_| Instant::now() < deadline).ok_or(Failure::Wall(wall))?;
    let (ended, mut presence, is_over) = visit?;
    if !ended.has_detached {
        presence.line = None;
    }
    if let Some(((grant, log), is_over)) = detach.zip(is_over)
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
                failure.report_detached(&log);
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
    let life = Box::pin(Witnessed::new(async move {
        let mut commands = on_worker.lock().await;
        serve(&worker, &tenant, &image, memory_bytes, &mut commands).await
    }));
    let lived = runtime.by_turns(&share, true, life);
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
