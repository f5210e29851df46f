//! The fair queue: which tenant's guest a script worker runs next.
//!
//! Each tenant has a virtual time: how much of the workers' time its guests have had, over its weight. The next turn
//! is that of the waiting tenant with the least. So a tenant with a hundred busy requests gets no more than one with
//! one, and a tenant with few short requests never waits behind others' long ones for more than the slices that run.
//!
//! Who comes back after a rest begins at the present, which is the virtual time of whoever had the last turn: it is
//! next, but has no claim to the time that it did not use. Who is ahead of the present stays so, however short its
//! rest: giving up a slice early gains nothing.
//!
//! Who is next because it has come back lays a [`Claim`] to a worker: the watcher ends a slice early for it. So where
//! all workers are with guests that compute, it waits for about a tick and not for a slice.
//!
//! The idea is that of start-time fair queueing (Goyal, Vin and Cheng, 1996), as in the schedulers of Linux.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::preempt::SLICE;

/// Tenants that are remembered though they have nothing to run, before those that need not be are forgotten.
const MIN_REMEMBERED: usize = 64;

/// A tenant counts as quick again after so many turns since a long one.
const N_QUICK_TURNS: u32 = 16;

/// A tenant's part in the workers' time.
#[derive(Debug, Clone)]
pub struct Share {
    /// Whose line.
    pub tenant: Arc<str>,
    /// Its time is in proportion to it, where several want all.
    pub weight: NonZeroU32,
    /// How long its turns have been of late.
    pace: Arc<Pace>,
}

/// How long a tenant's turns have been of late.
#[derive(Debug, Default)]
pub struct Pace {
    /// Turns until it counts as quick.
    n_turns: AtomicU32,
}

/// Whether whoever is next has come back after a rest. Else it has waited since its last turn, like the others.
#[derive(Debug, Clone, Default)]
pub struct Claim(Arc<AtomicBool>);

/// What runs of a tenant's. It goes back to [`FairQueue::end`].
#[derive(Debug)]
pub struct Turn {
    tenant: Arc<str>,
    /// Virtual time that it was charged in advance.
    charged: u64,
    weight: NonZeroU32,
    pace: Arc<Pace>,
}

/// Runnable guests, one line per tenant.
pub struct FairQueue<T> {
    lines: Mutex<Lines<T>>,
    arrival: Condvar,
}

struct Lines<T> {
    /// Tenants that have somebody waiting or running, or that are ahead of the present.
    by_tenant: HashMap<Arc<str>, Line<T>>,
    /// Those with somebody waiting, the next one first.
    waiting: BTreeSet<Place>,
    /// Whether the first of those has rested.
    claim: Claim,
    /// The present.
    now: u64,
    n_running: usize,
    n_arrivals: u64,
    /// How many tenants there may be before some are forgotten.
    forget_at: usize,
    closed: bool,
}

struct Line<T> {
    items: VecDeque<T>,
    n_running: u32,
    weight: NonZeroU32,
    pace: Arc<Pace>,
    /// Nanoseconds of the workers' time over the weight, with what runs now charged in advance as whole slices.
    virtual_time: u64,
    /// Whether it has waited or run since it last had nothing to run. Of two with the same virtual time, who comes
    /// back after a rest is first.
    is_continuing: bool,
    arrival: u64,
}

/// A line among those that wait: by virtual time, then as [`Line`] says, then by arrival.
type Place = (u64, bool, u64, Arc<str>);

// === impl Share ===

impl Share {
    /// That of a tenant that has had no turn yet.
    pub fn new(tenant: Arc<str>, weight: NonZeroU32) -> Self {
        Self { tenant, weight, pace: Arc::default() }
    }

    /// Whether none of the tenant's last turns was long.
    pub fn is_quick(&self) -> bool {
        self.pace.is_quick()
    }
}

// === impl Pace ===

impl Pace {
    fn note(&self, is_long: bool) {
        let n_turns = self.n_turns.load(Ordering::Relaxed);
        if is_long {
            self.n_turns.store(N_QUICK_TURNS, Ordering::Relaxed);
        } else if n_turns > 0 {
            // Two at once may count as one.
            self.n_turns.store(n_turns - 1, Ordering::Relaxed);
        }
    }

    fn is_quick(&self) -> bool {
        self.n_turns.load(Ordering::Relaxed) == 0
    }
}

// === impl Claim ===

impl Claim {
    /// Whether there is one now.
    pub fn is_laid(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sees who is next of those that wait.
    fn note(&self, waiting: &BTreeSet<Place>) {
        self.0.store(waiting.first().is_some_and(|(_, is_continuing, ..)| !is_continuing), Ordering::Relaxed);
    }
}

// === impl FairQueue ===

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        let lines = Lines {
            by_tenant: HashMap::new(),
            waiting: BTreeSet::new(),
            claim: Claim::default(),
            now: 0,
            n_running: 0,
            n_arrivals: 0,
            forget_at: MIN_REMEMBERED,
            closed: false,
        };
        Self { lines: Mutex::new(lines), arrival: Condvar::new() }
    }
}

impl<T> FairQueue<T> {
    /// What tells whether somebody should not have to wait for the end of a slice.
    pub fn claim(&self) -> Claim {
        self.lines.lock().claim.clone()
    }

    /// Appends to the tenant's line, and calls a worker. Never waits.
    pub fn push(&self, share: &Share, item: T) {
        self.push_quietly(share, item);
        self.call();
    }

    /// Appends to the tenant's line. Whoever does so sees to it that somebody begins a turn.
    pub fn push_quietly(&self, share: &Share, item: T) {
        let mut lines = self.lines.lock();
        if !lines.closed {
            lines.push(share, item);
        }
    }

    /// Calls a worker that rests, if there is one.
    pub fn call(&self) {
        self.arrival.notify_one();
    }

    /// Begins the next turn; waits while all lines are empty. None once closed.
    pub fn begin(&self) -> Option<(Turn, T)> {
        let mut lines = self.lines.lock();
        loop {
            if lines.closed {
                return None;
            }
            if let Some(next) = lines.begin() {
                return Some(next);
            }
            self.arrival.wait(&mut lines);
        }
    }

    /// Begins the next turn if its tenant is quick, and `may` it. Else it is a worker's, and those behind it, too: they
    /// are called.
    pub fn begin_if_quick(&self, may: impl FnOnce(&T) -> bool) -> Option<(Turn, T)> {
        self.lines_if_quick(may)?.begin()
    }

    /// Whether [`FairQueue::begin_if_quick`] would begin a turn. Else it calls as that does.
    pub fn is_next_quick(&self, may: impl FnOnce(&T) -> bool) -> bool {
        self.lines_if_quick(may).is_some()
    }

    fn lines_if_quick(&self, may: impl FnOnce(&T) -> bool) -> Option<MutexGuard<'_, Lines<T>>> {
        let lines = self.lines.lock();
        let (line, item) = lines.next()?;
        if line.pace.is_quick() && may(item) {
            return Some(lines);
        }
        let is_alone = lines.waiting.len() == 1;
        drop(lines);
        if is_alone {
            self.arrival.notify_one();
        } else {
            self.arrival.notify_all();
        }
        None
    }

    /// Ends a turn that took `time`. `is_long`: the tenant does not count as quick for some turns.
    pub fn end(&self, turn: Turn, time: Duration, is_long: bool) {
        turn.pace.note(is_long);
        self.lines.lock().end(turn, time);
    }

    /// Ends every worker and drops what still waits.
    pub fn close(&self) {
        let mut lines = self.lines.lock();
        lines.closed = true;
        lines.waiting.clear();
        lines.claim.note(&lines.waiting);
        let dropped = std::mem::take(&mut lines.by_tenant);
        // Dropping a guest may wake another, which takes the lock again.
        drop(lines);
        drop(dropped);
        self.arrival.notify_all();
    }
}

// === impl Lines ===

impl<T> Lines<T> {
    fn push(&mut self, share: &Share, item: T) {
        let Self { by_tenant, waiting, claim, now, n_arrivals, .. } = self;
        let line = by_tenant.entry(Arc::clone(&share.tenant)).or_insert_with(|| Line {
            items: VecDeque::new(),
            n_running: 0,
            weight: share.weight,
            pace: Arc::clone(&share.pace),
            virtual_time: *now,
            is_continuing: false,
            arrival: 0,
        });
        line.weight = share.weight;
        if !Arc::ptr_eq(&line.pace, &share.pace) {
            line.pace = Arc::clone(&share.pace);
        }
        if line.items.is_empty() {
            line.is_continuing = line.n_running > 0;
            if !line.is_continuing {
                line.virtual_time = line.virtual_time.max(*now);
            }
            *n_arrivals += 1;
            line.arrival = *n_arrivals;
            waiting.insert(line.place(&share.tenant));
            claim.note(waiting);
        }
        line.items.push_back(item);
    }

    /// Whose turn is next.
    fn next(&self) -> Option<(&Line<T>, &T)> {
        let (.., tenant) = self.waiting.first()?;
        let line = self.by_tenant.get(tenant)?;
        Some((line, line.items.front()?))
    }

    fn begin(&mut self) -> Option<(Turn, T)> {
        let (virtual_time, _, _, tenant) = self.waiting.pop_first()?;
        let line = self.by_tenant.get_mut(&tenant)?;
        let item = line.items.pop_front()?;
        self.now = self.now.max(virtual_time);
        let charged = over(SLICE, line.weight);
        let turn = Turn { charged, weight: line.weight, pace: Arc::clone(&line.pace), tenant };
        self.n_running += 1;
        line.n_running += 1;
        line.is_continuing = true;
        line.virtual_time = virtual_time.saturating_add(turn.charged);
        if !line.items.is_empty() {
            self.n_arrivals += 1;
            line.arrival = self.n_arrivals;
            self.waiting.insert(line.place(&turn.tenant));
        }
        self.claim.note(&self.waiting);
        Some((turn, item))
    }

    fn end(&mut self, turn: Turn, time: Duration) {
        let Turn { tenant, charged, weight, .. } = turn;
        self.n_running = self.n_running.saturating_sub(1);
        if self.n_running == 0 && self.waiting.is_empty() {
            // Nobody waited for anybody: all begin anew.
            self.by_tenant.clear();
        }
        // Gone, too, when the queue was closed meanwhile.
        let Some(line) = self.by_tenant.get_mut(&tenant) else { return };
        let is_waiting = self.waiting.remove(&line.place(&tenant));
        line.n_running = line.n_running.saturating_sub(1);
        line.virtual_time = line.virtual_time.saturating_sub(charged).saturating_add(over(time, weight));
        if is_waiting {
            self.waiting.insert(line.place(&tenant));
            self.claim.note(&self.waiting);
        }
        if self.by_tenant.len() >= self.forget_at {
            let now = self.now;
            self.by_tenant.retain(|_, line| !line.items.is_empty() || line.n_running > 0 || line.virtual_time > now);
            self.forget_at = MIN_REMEMBERED.max(self.by_tenant.len().saturating_mul(2));
        }
    }
}

impl<T> Line<T> {
    /// Among those that wait.
    fn place(&self, tenant: &Arc<str>) -> Place {
        (self.virtual_time, self.is_continuing, self.arrival, Arc::clone(tenant))
    }
}

/// What a time counts for a tenant of some weight.
fn over(time: Duration, weight: NonZeroU32) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / u64::from(weight.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(tenant: &str, weight: u32) -> Share {
        Share::new(tenant.into(), NonZeroU32::new(weight).expect("not 0"))
    }

    /// One worker and some tenants that always have something to run, for `n` turns, each as long as its tenant likes
    /// it. Gives how many milliseconds each tenant had.
    fn milliseconds(tenants: &[(Share, u64)], n: usize) -> Vec<u64> {
        let queue = FairQueue::default();
        let mut had = vec![0; tenants.len()];
        for (index, (share, _)) in tenants.iter().enumerate() {
            queue.push(share, index);
        }
        for _ in 0..n {
            let (turn, index) = queue.begin().expect("somebody waits");
            let (share, length) = &tenants[index];
            had[index] += length;
            // A guest that is not done comes back while its turn still runs.
            queue.push(share, index);
            queue.end(turn, Duration::from_millis(*length), false);
        }
        had
    }

    #[test]
    fn a_tenants_time_is_in_proportion_to_its_weight() {
        let had = milliseconds(&[(share("light", 1), 5), (share("heavy", 3), 5)], 400);
        assert_eq!(had, [500, 1500]);
    }

    #[test]
    fn a_tenant_that_gives_up_its_slices_early_gets_no_less_time_and_no_more() {
        let had = milliseconds(&[(share("long", 1), 5), (share("short", 1), 1)], 600);
        assert_eq!(had, [500, 500]);
    }

    #[test]
    fn a_tenant_with_many_runnable_requests_gets_no_more_turns() {
        let (busy, calm) = (share("busy", 1), share("calm", 1));
        let queue = FairQueue::default();
        for name in ["b0", "b1", "b2"] {
            queue.push(&busy, name);
        }
        queue.push(&calm, "c0");
        let order = [(); 4].map(|()| {
            let (turn, name) = queue.begin().expect("somebody waits");
            queue.end(turn, SLICE, false);
            name
        });
        assert_eq!(order, ["b0", "c0", "b1", "b2"]);
    }

    #[test]
    fn a_tenant_that_comes_back_after_a_rest_is_next() {
        let queue = FairQueue::default();
        let busy: Vec<_> = (0..8).map(|index| share(&format!("busy {index}"), 1)).collect();
        busy.iter().for_each(|share| queue.push(share, "busy"));
        for round in 0..100 {
            let (turn, item) = queue.begin().expect("somebody waits");
            let share = busy.iter().find(|share| share.tenant == turn.tenant);
            if let Some(share) = share {
                queue.push(share, item);
            }
            if round % 10 == 9 {
                // It arrives while others run.
                queue.push(&self::share("calm", 1), "calm");
            }
            queue.end(turn, SLICE, false);
            if round % 10 == 9 {
                let (turn, item) = queue.begin().expect("somebody waits");
                assert_eq!(item, "calm", "round {round}");
                queue.end(turn, Duration::from_micros(50), false);
            }
        }
    }

    #[test]
    fn who_is_next_after_a_rest_has_a_claim_and_who_only_waits_has_none() {
        let (busy, other, calm) = (share("busy", 1), share("other", 1), share("calm", 1));
        let queue = FairQueue::default();
        assert!(!queue.claim().is_laid());
        queue.push(&busy, &busy);
        assert!(queue.claim().is_laid());
        let (busy_turn, _) = queue.begin().expect("somebody waits");
        assert!(!queue.claim().is_laid(), "it has what it claimed");
        // At the end of a slice: it would have gone on.
        queue.push(&busy, &busy);
        assert!(!queue.claim().is_laid());
        queue.end(busy_turn, SLICE, false);
        queue.push(&other, &other);
        assert!(queue.claim().is_laid());
        let (other_turn, _) = queue.begin().expect("somebody waits");
        queue.push(&other, &other);
        queue.end(other_turn, SLICE, false);
        assert!(!queue.claim().is_laid());
        // A rest does not make up for what it has had: it is not next, and waits like the others.
        let (busy_turn, _) = queue.begin().expect("somebody waits");
        queue.end(busy_turn, SLICE, false);
        queue.push(&busy, &busy);
        assert!(!queue.claim().is_laid());
        queue.push(&calm, &calm);
        assert!(queue.claim().is_laid());
    }

    #[test]
    fn a_rest_saves_no_time_up_and_forgives_none() {
        let (busy, napping) = (share("busy", 1), share("napping", 1));
        let queue = FairQueue::default();
        queue.push(&busy, &busy);
        queue.push(&napping, &napping);
        let mut had = HashMap::from([(&*busy.tenant, 0_u64), (&*napping.tenant, 0)]);
        let mut is_asleep = false;
        for _ in 0..1000 {
            let (turn, share) = queue.begin().expect("somebody waits");
            *had.get_mut(&*share.tenant).expect("known") += 5;
            if share.tenant == napping.tenant {
                // It goes to sleep after each slice, and wakes while the other one runs.
                is_asleep = true;
            } else {
                queue.push(share, share);
                if std::mem::take(&mut is_asleep) {
                    queue.push(&napping, &napping);
                }
            }
            queue.end(turn, SLICE, false);
        }
        let (busy, napping) = (had["busy"], had["napping"]);
        assert!(busy.abs_diff(napping) <= 10, "{busy} {napping}");
    }

    #[test]
    fn what_runs_counts_before_it_ends() {
        let (wide, narrow) = (share("wide", 1), share("narrow", 1));
        let queue = FairQueue::default();
        for item in ["w0", "w1", "w2"] {
            queue.push(&wide, item);
        }
        queue.push(&narrow, "n0");
        // Two workers at once: the second takes the other tenant's.
        let (_first, item) = queue.begin().expect("somebody waits");
        let (_second, other) = queue.begin().expect("somebody waits");
        assert_eq!((item, other), ("w0", "n0"));
    }

    #[test]
    fn tenants_with_nothing_to_run_are_forgotten() {
        let queue = FairQueue::default();
        let busy = share("busy", 1);
        queue.push(&busy, ());
        let mut most = 0;
        for index in 0..10_000 {
            queue.push(&share(&format!("tenant {index}"), 1), ());
            for _ in 0..2 {
                let (turn, ()) = queue.begin().expect("somebody waits");
                if turn.tenant == busy.tenant {
                    queue.push(&busy, ());
                }
                queue.end(turn, Duration::from_micros(50), false);
            }
            most = most.max(queue.lines.lock().by_tenant.len());
        }
        assert!(most <= 2 * MIN_REMEMBERED, "{most}");
    }

    #[test]
    fn a_closed_queue_gives_nothing_out() {
        let queue = FairQueue::default();
        queue.push(&share("a", 1), 1);
        queue.close();
        assert!(queue.begin().is_none());
        queue.push(&share("a", 1), 2);
        assert!(queue.begin().is_none());
    }

    #[test]
    fn a_turn_that_is_not_only_for_workers_is_the_next_one_of_a_quick_tenant() {
        let queue = FairQueue::default();
        let (quick, slow) = (share("quick", 1), share("slow", 1));
        queue.push(&slow, "slow");
        let (turn, _) = queue.begin().expect("waits");
        queue.end(turn, SLICE, true);
        for turn_number in 0..=N_QUICK_TURNS {
            queue.push(&slow, "slow");
            let next = queue.begin_if_quick(|_| true);
            assert_eq!(next.is_some(), turn_number == N_QUICK_TURNS, "{turn_number}");
            let (turn, _) = next.or_else(|| queue.begin()).expect("waits");
            queue.end(turn, Duration::from_micros(50), false);
        }
        queue.push(&quick, "quick");
        assert!(queue.begin_if_quick(|item| *item != "quick").is_none(), "it may not");
        queue.push(&slow, "slow");
        let (_turn, item) = queue.begin_if_quick(|_| true).expect("both are quick");
        assert_eq!(item, "quick", "whose turn it is");
    }
}
