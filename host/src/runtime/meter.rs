//! CPU time: measured by slice, charged against a budget, time parked in I/O not counted.
//!
//! The budget is the request's. Its VM and those of its workers, each with a meter of its own, charge the
//! same one, so more VMs use it up sooner and no later.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use pin_project_lite::pin_project;

use super::{preempt::Target, stopwatch::Stopwatch};

/// CPU time that the VMs of one request may use together, and what they have used of it.
#[derive(Debug)]
pub struct CpuBudget {
    /// What was given last.
    last_given_nanoseconds: AtomicU64,
    /// How much may be used until the VMs are killed.
    limit_nanoseconds: AtomicU64,
    used_nanoseconds: AtomicU64,
    /// Whether several VMs charge it.
    is_shared: AtomicBool,
}

/// Charges one VM's slices to a budget: that of the request for which the VM was entered.
///
/// [`Metered`] does so at the end of a slice, on the worker that runs the VM. Within the slice the VM's
/// own checks do, and the watcher, from its thread.
#[derive(Debug)]
pub struct CpuMeter {
    /// Locked for a moment, by the worker and the watcher.
    charging: Mutex<Charging>,
}

/// What is charged to whom.
#[derive(Debug)]
struct Charging {
    /// Changes between slices only.
    budget: Arc<CpuBudget>,
    /// The slice that runs. None between two.
    slice: Option<Stopwatch>,
    /// How much of the slice is charged.
    charged: Duration,
}

/// The CPU budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the CPU budget is used up")]
pub struct CpuExhausted;

impl CpuBudget {
    /// A budget with nothing used.
    pub fn new(total: Duration) -> Arc<Self> {
        Arc::new(Self {
            last_given_nanoseconds: AtomicU64::new(nanoseconds(total)),
            limit_nanoseconds: AtomicU64::new(nanoseconds(total)),
            used_nanoseconds: AtomicU64::new(0),
            is_shared: AtomicBool::new(false),
        })
    }

    /// What was given last, for messages.
    pub fn last_given(&self) -> Duration {
        Duration::from_nanos(self.last_given_nanoseconds.load(Ordering::Relaxed))
    }

    /// CPU time of all slices so far, as far as they are charged.
    pub fn used(&self) -> Duration {
        Duration::from_nanos(self.used_nanoseconds.load(Ordering::Relaxed))
    }

    /// Says that from now on several VMs charge it.
    pub fn share(&self) {
        self.is_shared.store(true, Ordering::Relaxed);
    }

    /// Gives `budget` from now on, whatever was used before.
    pub fn renew(&self, budget: Duration) {
        let used = self.used_nanoseconds.load(Ordering::Relaxed);
        self.last_given_nanoseconds.store(nanoseconds(budget), Ordering::Relaxed);
        self.limit_nanoseconds.store(used.saturating_add(nanoseconds(budget)), Ordering::Relaxed);
    }

    /// Whether it would be used up after `more` time.
    fn is_exceeded_after(&self, more: Duration) -> bool {
        let used = self.used_nanoseconds.load(Ordering::Relaxed);
        used.saturating_add(nanoseconds(more)) > self.limit_nanoseconds.load(Ordering::Relaxed)
    }

    /// Whether it is used up, as far as is charged.
    pub fn is_exceeded(&self) -> bool {
        self.is_exceeded_after(Duration::ZERO)
    }
}

impl CpuMeter {
    /// A meter that charges `budget`.
    pub fn new(budget: Arc<CpuBudget>) -> Arc<Self> {
        Arc::new(Self { charging: Mutex::new(Charging { budget, slice: None, charged: Duration::ZERO }) })
    }

    /// Charges `budget` from the next slice on.
    pub fn charge_to(&self, budget: &Arc<CpuBudget>) {
        let mut charging = self.charging.lock();
        if !Arc::ptr_eq(&charging.budget, budget) {
            charging.budget = Arc::clone(budget);
        }
    }

    /// Judges the budget in the middle of a slice, on the worker that runs it.
    ///
    /// # Errors
    /// [`CpuExhausted`] when the slices so far and this one are over the budget.
    pub fn check(&self) -> Result<(), CpuExhausted> {
        let mut charging = self.charging.lock();
        if let Some(slice) = charging.slice {
            charging.charge(slice.cpu_time());
        }
        charging.check()
    }

    /// Judges the budget while the VM is off its worker.
    ///
    /// # Errors
    /// [`CpuExhausted`] when the slices so far are over the budget.
    pub fn check_between_slices(&self) -> Result<(), CpuExhausted> {
        self.charging.lock().check()
    }

    /// Whether the budget could be used up after `elapsed` time in this slice, of which not all need be
    /// CPU time. With a shared budget it always could: other VMs use it at the same time.
    pub fn would_exceed(&self, elapsed: Duration) -> bool {
        let budget = &self.charging.lock().budget;
        budget.is_shared.load(Ordering::Relaxed) || budget.is_exceeded_after(elapsed)
    }

    /// Whether the budget is used up when the worker's CPU clock shows `now_nanoseconds`. Charges the slice
    /// up to there, so that the other VMs of a shared budget know.
    pub fn exceeds_at(&self, now_nanoseconds: u64) -> bool {
        let mut charging = self.charging.lock();
        if let Some(slice) = charging.slice {
            charging.charge(slice.cpu_time_at(now_nanoseconds));
        }
        charging.budget.is_exceeded()
    }

    fn begin_slice(&self, slice: Stopwatch) {
        let mut charging = self.charging.lock();
        charging.slice = Some(slice);
        charging.charged = Duration::ZERO;
    }

    fn end_slice(&self) {
        let mut charging = self.charging.lock();
        if let Some(slice) = charging.slice.take() {
            charging.charge(slice.cpu_time());
        }
    }
}

impl Charging {
    /// Charges what the slice has taken so far: each nanosecond once, in whatever order the readings come.
    fn charge(&mut self, taken: Duration) {
        let more = taken.saturating_sub(self.charged);
        self.charged += more;
        self.budget.used_nanoseconds.fetch_add(nanoseconds(more), Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), CpuExhausted> {
        if self.budget.is_exceeded() { Err(CpuExhausted) } else { Ok(()) }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pin_project! {
    /// A call into a VM, with each poll charged as one slice.
    pub struct Metered<'a, F> {
        #[pin]
        call: F,
        meter: &'a CpuMeter,
        target: Option<&'a Arc<Target>>,
    }
}

impl<'a, F> Metered<'a, F> {
    /// Charges what `call` uses to `meter`, and lets the watcher stop it through `target`.
    pub fn new(call: F, meter: &'a CpuMeter, target: Option<&'a Arc<Target>>) -> Self {
        Self { call, meter, target }
    }
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let slice = Stopwatch::start();
        this.meter.begin_slice(slice);
        let result = match this.target {
            Some(target) => target.watch(slice.began(), || this.call.poll(context)),
            None => this.call.poll(context),
        };
        this.meter.end_slice();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A budget, and two meters that charge it.
    fn shared(total: Duration) -> (Arc<CpuBudget>, [Arc<CpuMeter>; 2]) {
        let budget = CpuBudget::new(total);
        let meters = [CpuMeter::new(Arc::clone(&budget)), CpuMeter::new(Arc::clone(&budget))];
        (budget, meters)
    }

    #[test]
    fn a_meter_over_its_budget_says_so_within_the_slice() {
        let meter = CpuMeter::new(CpuBudget::new(Duration::ZERO));
        meter.begin_slice(Stopwatch::start());
        assert_eq!(meter.check(), Err(CpuExhausted));
    }

    #[test]
    fn a_slice_is_charged_once_it_ends() {
        let (budget, [meter, _]) = shared(Duration::from_secs(60));
        meter.begin_slice(Stopwatch::start());
        assert_eq!(budget.used(), Duration::ZERO);
        meter.end_slice();
        assert!(budget.used() > Duration::ZERO);
        assert_eq!(meter.check_between_slices(), Ok(()));
    }

    #[test]
    fn no_time_is_charged_twice() {
        let (budget, [meter, _]) = shared(Duration::from_nanos(100));
        for (taken, used, exceeded) in
            [(40, 40, false), (30, 40, false), (100, 100, false), (101, 101, true), (101, 101, true)]
        {
            assert_eq!(charge(&meter, taken), exceeded, "{taken}");
            assert_eq!(budget.used(), Duration::from_nanos(used), "{taken}");
        }
    }

    #[test]
    fn a_renewed_budget_counts_from_what_was_used() {
        let (budget, [one, other]) = shared(Duration::from_nanos(100));
        assert!(charge(&one, 150));
        budget.renew(Duration::from_nanos(10));
        assert!(!charge(&one, 155) && !charge(&other, 5) && charge(&other, 6));
        assert_eq!(budget.last_given(), Duration::from_nanos(10));
    }

    #[test]
    fn all_meters_of_a_budget_are_over_it_together() {
        let (_, [one, other]) = shared(Duration::from_nanos(100));
        assert!(!charge(&one, 60) && !charge(&other, 40));
        assert_eq!((one.check_between_slices(), other.check_between_slices()), (Ok(()), Ok(())));
        assert!(charge(&other, 41));
        assert_eq!(one.check_between_slices(), Err(CpuExhausted));
    }

    /// Charges a slice that has taken so many nanoseconds so far. Says whether the budget is used up.
    fn charge(meter: &CpuMeter, taken: u64) -> bool {
        let mut charging = meter.charging.lock();
        charging.charge(Duration::from_nanos(taken));
        charging.budget.is_exceeded()
    }
}
