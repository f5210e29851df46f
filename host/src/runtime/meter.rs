//! CPU time of one VM: measured by slice, charged against its budget, time parked in I/O not counted.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use rustix::time::{ClockId, clock_gettime};

use super::preempt::Target;

/// What a VM has used of its CPU budget.
///
/// [`Metered`] writes it at both ends of a slice, on the worker that runs the VM. Within the slice the
/// VM's own checks read it, and the watcher's, from its thread.
#[derive(Debug)]
pub struct CpuMeter {
    budget_nanoseconds: AtomicU64,
    /// The part of the budget that was given last.
    last_budget_nanoseconds: AtomicU64,
    used_nanoseconds: AtomicU64,
    /// The worker's CPU clock when the slice began.
    slice_start_nanoseconds: AtomicU64,
}

/// The VM's CPU budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the CPU budget is used up")]
pub struct CpuExhausted;

impl CpuMeter {
    /// A meter with nothing used.
    pub fn new(budget: Duration) -> Arc<Self> {
        Arc::new(Self {
            budget_nanoseconds: AtomicU64::new(nanoseconds(budget)),
            last_budget_nanoseconds: AtomicU64::new(nanoseconds(budget)),
            used_nanoseconds: AtomicU64::new(0),
            slice_start_nanoseconds: AtomicU64::new(0),
        })
    }

    /// CPU time of all finished slices.
    pub fn used(&self) -> Duration {
        Duration::from_nanos(self.used_nanoseconds.load(Ordering::Relaxed))
    }

    /// Gives a new budget from now on, between two slices.
    pub fn renew(&self, budget: Duration) {
        let used = self.used_nanoseconds.load(Ordering::Relaxed);
        self.last_budget_nanoseconds.store(nanoseconds(budget), Ordering::Relaxed);
        self.budget_nanoseconds.store(used.saturating_add(nanoseconds(budget)), Ordering::Relaxed);
    }

    /// The budget that was given last, for messages.
    pub fn last_budget(&self) -> Duration {
        Duration::from_nanos(self.last_budget_nanoseconds.load(Ordering::Relaxed))
    }

    fn budget(&self) -> u64 {
        self.budget_nanoseconds.load(Ordering::Relaxed)
    }

    /// Judges the budget in the middle of a slice.
    ///
    /// # Errors
    /// [`CpuExhausted`] when finished slices and this one are over the budget.
    pub fn check(&self) -> Result<(), CpuExhausted> {
        if self.exceeds_at(thread_cpu_nanoseconds()) { Err(CpuExhausted) } else { Ok(()) }
    }

    /// Judges the budget while the VM is off its worker.
    ///
    /// # Errors
    /// [`CpuExhausted`] when the finished slices are over the budget.
    pub fn check_between_slices(&self) -> Result<(), CpuExhausted> {
        let used = self.used_nanoseconds.load(Ordering::Relaxed);
        if used > self.budget() { Err(CpuExhausted) } else { Ok(()) }
    }

    /// Whether the budget could be used up after `elapsed` time in this slice, of which not all need be
    /// CPU time.
    pub fn would_exceed(&self, elapsed: Duration) -> bool {
        let used = self.used_nanoseconds.load(Ordering::Relaxed);
        used.saturating_add(nanoseconds(elapsed)) > self.budget()
    }

    /// Whether the budget is used up when the worker's CPU clock shows `now_nanoseconds`.
    pub fn exceeds_at(&self, now_nanoseconds: u64) -> bool {
        let slice = now_nanoseconds.saturating_sub(self.slice_start_nanoseconds.load(Ordering::Relaxed));
        self.used_nanoseconds.load(Ordering::Relaxed).saturating_add(slice) > self.budget()
    }

    fn begin_slice(&self) {
        self.slice_start_nanoseconds.store(thread_cpu_nanoseconds(), Ordering::Relaxed);
    }

    fn end_slice(&self) {
        let slice = thread_cpu_nanoseconds().saturating_sub(self.slice_start_nanoseconds.load(Ordering::Relaxed));
        self.used_nanoseconds.fetch_add(slice, Ordering::Relaxed);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// CPU time of the calling thread, in nanoseconds.
pub fn thread_cpu_nanoseconds() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

pin_project! {
    /// A call into a VM, with each poll charged as one slice.
    pub struct Metered<F> {
        #[pin]
        call: F,
        meter: Arc<CpuMeter>,
        target: Option<Target>,
    }
}

impl<F> Metered<F> {
    /// Charges what `call` uses to `meter`, and lets the watcher stop it through `target`.
    pub fn new(call: F, meter: Arc<CpuMeter>, target: Option<Target>) -> Self {
        Self { call, meter, target }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.meter.begin_slice();
        let result = match this.target {
            Some(target) => target.watch(|| this.call.poll(context)),
            None => this.call.poll(context),
        };
        this.meter.end_slice();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_over_its_budget_says_so_within_the_slice() {
        let meter = CpuMeter::new(Duration::ZERO);
        meter.begin_slice();
        while thread_cpu_nanoseconds() == meter.slice_start_nanoseconds.load(Ordering::Relaxed) {}
        assert_eq!(meter.check(), Err(CpuExhausted));
    }

    #[test]
    fn a_slice_is_charged_once_it_ends() {
        let meter = CpuMeter::new(Duration::from_secs(60));
        meter.begin_slice();
        assert_eq!(meter.used(), Duration::ZERO);
        while thread_cpu_nanoseconds() == meter.slice_start_nanoseconds.load(Ordering::Relaxed) {}
        meter.end_slice();
        assert!(meter.used() > Duration::ZERO);
        assert_eq!(meter.check(), Ok(()));
    }
}
