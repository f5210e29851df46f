//! The requests of one VM: whose operations are under way, and what has come back for whom.
//!
//! A VM has one request for itself, or many at once, each with a number of its own. What the guest says for a
//! number is judged and charged as the request that has it; a number that nobody has gets nothing. All requests of
//! a VM are of one tenant, so a guest that was taken over and says another's number gains nothing by it.

mod request;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use futures_channel::mpsc::{self, UnboundedReceiver, UnboundedSender};
use neoc_abi::{Call, Completion, OperationError, Outcome, event::Finish, wire};
use tokio::{task::AbortHandle, time::Instant};

use self::request::Request;
use super::effects::Effects;
use crate::script_log::ScriptLog;

/// After so many bytes of outcomes a batch is closed: the guest has it twice while it reads it, beside all that
/// the script has. The others come in the next one.
const BATCH_BYTES: usize = 1024 * 1024;

/// How long a VM may stand still for a request whose time is over and whose operations are stopped.
const STALL_GRACE: Duration = Duration::from_secs(1);

/// The requests of one VM, by number.
///
/// Dropping it aborts all operations: their sockets close and their permits return.
pub struct Requests {
    by_number: BTreeMap<u32, Box<Request>>,
    /// Those for which something has arrived that was not delivered, in order.
    line: VecDeque<u32>,
    /// Those that the guest has said something of, and of which nobody has heard it yet, in order.
    changed: VecDeque<u32>,
    /// The last handle of a connection, over all requests: one that another request has opened stands for nothing.
    handles: Arc<AtomicU32>,
    completions: UnboundedSender<Arrival>,
    finished: UnboundedReceiver<Arrival>,
}

/// A completion, and for whom. Boxed, because a channel has room for one from the start.
type Arrival = Box<(u32, Completion)>;

/// What the guest has said about a request.
pub struct Change {
    /// The request.
    pub number: u32,
    /// How it ended, and how many of its tasks go on. Absent: that was said before.
    pub end: Option<(Finish, u32)>,
    /// Whether all its tasks have ended.
    pub is_over: bool,
    /// How often the VM stood still for it.
    pub n_stalls: u32,
}

/// The VM stood still for a request until that request's time was over.
#[derive(Debug, thiserror::Error)]
#[error("the request's time is over, and the script waits where Luau cannot yield")]
pub struct StalledForTooLong;

// === impl Requests ===

impl Default for Requests {
    fn default() -> Self {
        let (completions, finished) = mpsc::unbounded();
        let (by_number, line, changed) = (BTreeMap::new(), VecDeque::new(), VecDeque::new());
        Self { by_number, line, changed, handles: Arc::default(), completions, finished }
    }
}

impl Requests {
    /// Adds one. `deadline`: see [`StalledForTooLong`].
    pub fn enter(&mut self, number: u32, effects: Effects, log: ScriptLog, deadline: Option<Instant>) {
        let request = Request::new(effects, log, deadline, &self.handles);
        self.by_number.insert(number, Box::new(request));
    }

    /// Gives a request another deadline, as when its answer is out.
    pub fn extend(&mut self, number: u32, deadline: Instant) {
        if let Some(request) = self.by_number.get_mut(&number) {
            request.deadline = Some(deadline);
        }
    }

    /// Lets a request that is cancelled clean up.
    pub fn begin_cleanup(&mut self, number: u32) {
        if let Some(request) = self.by_number.get_mut(&number) {
            request.is_stopped = false;
            request.deadline = Some(Instant::now() + STALL_GRACE);
        }
    }

    /// Takes one away, with all that it has under way.
    pub fn leave(&mut self, number: u32) {
        self.by_number.remove(&number);
        self.line.retain(|other| *other != number);
    }

    /// Asks the broker, and starts what it permits. An outcome at once is a refusal, or a module whose text is
    /// known already.
    pub fn submit(&mut self, number: u32, id: u32, call: Call) -> Option<Outcome> {
        let Some(request) = self.by_number.get_mut(&number) else {
            return Some(Err(OperationError::invalid("no such request")));
        };
        request.submit(number, id, call, &self.completions)
    }

    /// Stops an operation. If the guest wants it confirmed, it stays on the list until its completion comes.
    pub fn cancel(&mut self, number: u32, id: u32, confirm: bool) {
        let Some(request) = self.by_number.get_mut(&number) else { return };
        if let Some(operation) = request.awaited.get(&id) {
            operation.abort();
        }
        if !confirm {
            request.awaited.remove(&id);
            request.arrived.retain(|completion| completion.id != id);
        }
    }

    /// Where a request's lines go.
    pub fn log(&self, number: u32) -> Option<&ScriptLog> {
        self.by_number.get(&number).map(|request| &request.log)
    }

    /// Counts that the VM stands still for a request.
    pub fn stall(&mut self, number: u32) {
        if let Some(request) = self.by_number.get_mut(&number) {
            request.n_stalls = request.n_stalls.saturating_add(1);
        }
    }

    /// Keeps how a request ended.
    pub fn finish(&mut self, number: u32, finish: Finish, n_left: u32) {
        self.note(number, |request| {
            request.end = Some((finish, n_left));
            request.is_over |= n_left == 0;
        });
    }

    /// Keeps that all tasks of a request have ended.
    pub fn over(&mut self, number: u32) {
        self.note(number, |request| request.is_over = true);
    }

    fn note(&mut self, number: u32, change: impl FnOnce(&mut Request)) {
        let Some(request) = self.by_number.get_mut(&number) else { return };
        change(request);
        if !std::mem::replace(&mut request.is_noted, true) {
            self.changed.push_back(number);
        }
    }

    /// The next thing that the guest has said, if there is one that was not asked for.
    pub fn next_change(&mut self) -> Option<Change> {
        while let Some(number) = self.changed.pop_front() {
            let Some(request) = self.by_number.get_mut(&number) else { continue };
            request.is_noted = false;
            let Request { is_over, n_stalls, .. } = **request;
            return Some(Change { number, end: request.end.take(), is_over, n_stalls });
        }
        None
    }

    /// Waits for operations to finish, and gives those of one request that have, and its number. None when none is
    /// under way. Dropping the future loses nothing.
    pub async fn next_batch(&mut self) -> Option<(u32, Vec<Completion>)> {
        loop {
            self.sort_in();
            if let Some(number) = self.line.pop_front() {
                return Some((number, self.take_batch(number)));
            }
            self.arrive().await?;
        }
    }

    /// Waits where the VM stands still: for operations of one request, or `of_any`, in whose order they come.
    /// None when none is under way.
    ///
    /// # Errors
    /// [`StalledForTooLong`].
    pub async fn wait(&mut self, number: u32, of_any: bool) -> Result<Option<Vec<Completion>>, StalledForTooLong> {
        let Some(deadline) = self.by_number.get(&number).and_then(|request| request.deadline) else {
            return Ok(self.next_of(number, of_any).await);
        };
        if let Ok(batch) = tokio::time::timeout_at(deadline, self.next_of(number, of_any)).await {
            return Ok(batch);
        }
        // With what it waits for, the wait ends; what waits for other tasks may not.
        if let Some(request) = self.by_number.get_mut(&number) {
            request.is_stopped = true;
            request.awaited.values().for_each(AbortHandle::abort);
        }
        let grace = Instant::now() + STALL_GRACE;
        tokio::time::timeout_at(grace, self.next_of(number, false))
            .await
            .ok()
            .flatten()
            .map(Some)
            .ok_or(StalledForTooLong)
    }

    async fn next_of(&mut self, number: u32, of_any: bool) -> Option<Vec<Completion>> {
        if of_any {
            return self.next_batch().await.map(|(_, batch)| batch);
        }
        loop {
            self.sort_in();
            if let Some(index) = self.line.iter().position(|other| *other == number) {
                self.line.remove(index);
                return Some(self.take_batch(number));
            }
            if self.by_number.get(&number)?.awaited.is_empty() {
                return None;
            }
            self.arrive().await?;
        }
    }

    /// Waits for the next completion. None when none is under way.
    async fn arrive(&mut self) -> Option<()> {
        if self.by_number.values().all(|request| request.awaited.is_empty()) {
            return None;
        }
        // Open for as long as this is: it has a sender of its own.
        let (number, completion) = *self.finished.recv().await.ok()?;
        self.collect(number, completion);
        Some(())
    }

    /// Puts what has come in line.
    fn sort_in(&mut self) {
        while let Ok(arrival) = self.finished.try_recv() {
            let (number, completion) = *arrival;
            self.collect(number, completion);
        }
    }

    /// Keeps a completion, if the guest waits for it.
    fn collect(&mut self, number: u32, completion: Completion) {
        let Some(request) = self.by_number.get_mut(&number) else { return };
        let Some(operation) = request.awaited.remove(&completion.id) else { return };
        // It has ended, unless the guest has given its number to another: that would be in nobody's hands from now on.
        operation.abort();
        if request.arrived.is_empty() {
            self.line.push_back(number);
            // Most wait for one thing at a time, and it is large.
            request.arrived.reserve_exact(1);
        }
        request.arrived.push_back(completion);
    }

    /// Takes what has arrived for a request, as far as it is one batch.
    fn take_batch(&mut self, number: u32) -> Vec<Completion> {
        let Some(request) = self.by_number.get_mut(&number) else { return Vec::new() };
        let (mut batch, mut n_bytes) = (Vec::with_capacity(request.arrived.len()), 0);
        while n_bytes < BATCH_BYTES
            && let Some(completion) = request.arrived.pop_front()
        {
            n_bytes += wire::encoded_bytes(&completion.outcome);
            batch.push(completion);
        }
        if !request.arrived.is_empty() {
            self.line.push_back(number);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use neoc_abi::{ErrorKind, Operation, event::ALONE, time};

    use super::{request::SPARE_OPERATIONS, *};
    use crate::policy::Tenant;

    /// One request, of a guest that keeps to no limit.
    fn requests(io: &tokio::runtime::Runtime) -> Requests {
        let mut tenant = Tenant::without_grants("a", "a.luau");
        tenant.limits.pending_operations = NonZeroU32::MIN;
        tenant.limits.timers = NonZeroU32::MIN;
        let effects = Effects::of(tenant, io.handle().clone());
        let mut requests = Requests::default();
        requests.enter(ALONE, effects, ScriptLog::discard(), None);
        requests
    }

    fn wait() -> Call {
        let operation = Operation::Time(time::Operation::Wait { seconds: 1e9 });
        Call { site: None, scope: 0, narrowing: None, operation }
    }

    fn io() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("builds")
    }

    #[test]
    fn a_guest_that_keeps_to_no_limit_has_no_more_under_way_than_a_bound_of_the_hosts() {
        let io = io();
        let mut requests = requests(&io);
        let outcomes: Vec<_> = (0..200).map(|id| requests.submit(ALONE, id, wait())).collect();
        let refused = outcomes.iter().position(Option::is_some).expect("one is refused");
        assert_eq!(refused, 2 + SPARE_OPERATIONS);
        for outcome in &outcomes[refused..] {
            let Some(Err(error)) = outcome else { panic!("{outcome:?}") };
            assert_eq!(error.limit.as_deref(), Some("pending_operations"));
        }
        // What was stopped makes room, once it is gone.
        (0..100).for_each(|id| requests.cancel(ALONE, id, true));
        let gone = io.block_on(async {
            let mut gone = 0;
            while gone < 100 {
                gone += requests.next_batch().await.expect("some are under way").1.len();
            }
            gone
        });
        assert_eq!(gone, 100);
        while requests.by_number[&ALONE].n_running() > 38 {
            std::thread::yield_now();
        }
        assert!(requests.submit(ALONE, 200, wait()).is_none());
    }

    #[test]
    fn operations_of_one_number_end_with_the_first_of_them() {
        let io = io();
        let mut requests = requests(&io);
        for is_stopped in [false, true, false] {
            assert!(requests.submit(ALONE, 1, wait()).is_none());
            if is_stopped {
                requests.cancel(ALONE, 1, false);
            }
        }
        let (number, batch) = io.block_on(requests.next_batch()).expect("one was stopped");
        assert_eq!((number, batch.len(), batch[0].id), (ALONE, 1, 1));
        while requests.by_number[&ALONE].n_running() > 0 {
            std::thread::yield_now();
        }
        assert!(io.block_on(requests.next_batch()).is_none());
    }

    #[test]
    fn a_number_that_nobody_has_gets_nothing() {
        let io = io();
        let mut requests = requests(&io);
        let outcome = requests.submit(7, 1, wait());
        let Some(Err(error)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(error.kind, ErrorKind::Invalid);
        requests.finish(7, Finish::Done, 0);
        requests.over(7);
        requests.stall(7);
        assert!(requests.next_change().is_none() && requests.log(7).is_none());
        assert!(io.block_on(requests.next_batch()).is_none());
        assert!(requests.submit(ALONE, 1, wait()).is_none());
        // What another has under way cannot be stopped under a wrong number.
        requests.cancel(7, 1, false);
        assert_eq!(requests.by_number[&ALONE].awaited.len(), 1);
    }
}
