//! Rates: so many events in a time.
//!
//! A rate of `200/s` lets 200 events pass at once after a quiet second, and one every 5 ms from then
//! on. The burst is the count, always: a limit that is written as 200 a second and lets fewer than 200
//! pass in one would be a riddle, and one that lets more pass would be no limit.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    NotUntil, Quota,
    clock::{Clock, MonotonicClock},
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use thiserror::Error;

use crate::policy::Rate;

/// Counts the events of one tenant and one class. Shared by reference between threads.
pub struct RateLimiter<C: Clock = MonotonicClock> {
    limiter: governor::RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    clock: C,
}

/// An event over the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("over the rate; retry after {retry_after:?}")]
pub struct OverLimit {
    /// From when on the same request can succeed. [`Duration::MAX`]: never, it asks for more than the
    /// rate's whole burst at once.
    pub retry_after: Duration,
}

// === impl RateLimiter ===

impl RateLimiter {
    /// A full limiter on the monotonic clock, so that no change of the wall clock opens or closes it.
    pub fn new(rate: Rate) -> Self {
        Self::with_clock(rate, MonotonicClock)
    }
}

impl<C: Clock + Clone> RateLimiter<C> {
    /// A full limiter on a clock of the caller's.
    pub fn with_clock(rate: Rate, clock: C) -> Self {
        let limiter = governor::RateLimiter::direct_with_clock(quota(rate), clock.clone());
        Self { limiter, clock }
    }

    /// Counts one event, or refuses it at once. Never waits.
    ///
    /// # Errors
    /// [`OverLimit`]; nothing is counted then.
    pub fn try_take(&self) -> Result<(), OverLimit> {
        self.limiter.check().map_err(|until| self.over(&until))
    }

    /// Counts `n` events, such as the bytes of a log line, or refuses them all at once. Never waits.
    ///
    /// # Errors
    /// [`OverLimit`]; nothing is counted then.
    pub fn try_take_n(&self, n: u32) -> Result<(), OverLimit> {
        let Some(n) = NonZeroU32::new(n) else { return Ok(()) };
        match self.limiter.check_n(n) {
            Ok(taken) => taken.map_err(|until| self.over(&until)),
            // More than the burst: refused for good, or one event would wait for ever.
            Err(_) => Err(OverLimit { retry_after: Duration::MAX }),
        }
    }

    fn over(&self, until: &NotUntil<C::Instant>) -> OverLimit {
        OverLimit { retry_after: until.wait_time_from(self.clock.now()) }
    }
}

fn quota(rate: Rate) -> Quota {
    let Rate { count, per } = rate;
    // Governor counts whole nanoseconds. Rounded up, so that never more pass than the policy says, and never 0.
    let nanos = per.as_nanos().div_ceil(count.get().into()).max(1);
    let interval = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    let quota = Quota::with_period(interval).expect("the lines above make it at least 1 ns");
    quota.allow_burst(count)
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn rate(count: u32, seconds: u64) -> Rate {
        Rate { count: NonZeroU32::new(count).expect("not 0"), per: Duration::from_secs(seconds) }
    }

    fn limiter(count: u32, seconds: u64) -> (RateLimiter<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (RateLimiter::with_clock(rate(count, seconds), clock.clone()), clock)
    }

    fn passed(limiter: &RateLimiter<FakeRelativeClock>, tries: u32) -> usize {
        (0..tries).filter(|_| limiter.try_take().is_ok()).count()
    }

    #[test]
    fn the_whole_count_passes_at_once_and_one_more_does_not() {
        for (count, seconds) in [(1, 1), (5, 3600), (200, 1), (1000, 60), (10_000, 1)] {
            let (limiter, _) = limiter(count, seconds);
            assert_eq!(passed(&limiter, count + 10), count as usize, "{count} in {seconds} s");
        }
    }

    #[test]
    fn events_come_back_evenly_over_the_time() {
        let (limiter, clock) = limiter(200, 1);
        assert_eq!(passed(&limiter, 300), 200);
        clock.advance(Duration::from_millis(4));
        assert_eq!(passed(&limiter, 10), 0);
        clock.advance(Duration::from_millis(1));
        assert_eq!(passed(&limiter, 10), 1);
        clock.advance(Duration::from_secs(1));
        assert_eq!(passed(&limiter, 300), 200);
    }

    #[test]
    fn a_refused_event_says_when_to_try_again_and_can_then() {
        let (limiter, clock) = limiter(5, 3600);
        assert_eq!(passed(&limiter, 6), 5);
        let over = limiter.try_take().expect_err("full");
        assert_eq!(over.retry_after, Duration::from_secs(720));
        clock.advance(over.retry_after);
        assert_eq!(limiter.try_take(), Ok(()));
    }

    #[test]
    fn a_batch_is_taken_whole_or_not_at_all() {
        let (limiter, clock) = limiter(10, 1);
        assert_eq!(limiter.try_take_n(0), Ok(()));
        assert_eq!(limiter.try_take_n(7), Ok(()));
        assert!(limiter.try_take_n(4).is_err());
        assert_eq!(limiter.try_take_n(3), Ok(()));
        assert_eq!(limiter.try_take_n(11), Err(OverLimit { retry_after: Duration::MAX }));
        clock.advance(Duration::from_secs(1));
        assert_eq!(limiter.try_take_n(10), Ok(()));
    }

    #[test]
    fn what_does_not_divide_evenly_is_never_too_much() {
        for count in [3, 7, 16 << 20] {
            let (limiter, clock) = limiter(count, 1);
            assert_eq!(limiter.try_take_n(count), Ok(()));
            clock.advance(Duration::from_millis(999));
            assert!(limiter.try_take_n(count).is_err(), "{count}");
        }
    }

    #[test]
    fn one_tenant_at_its_limit_leaves_others_alone() {
        let clock = FakeRelativeClock::default();
        let [acme, beta] = [(); 2].map(|()| RateLimiter::with_clock(rate(3, 1), clock.clone()));
        assert_eq!(passed(&acme, 1_000), 3);
        assert_eq!(passed(&beta, 1_000), 3);
    }

    #[test]
    fn threads_together_get_no_more_than_one_would() {
        let (limiter, _) = limiter(1_000, 1);
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| passed(&limiter, 1_000))).collect();
            threads.into_iter().map(|thread| thread.join().expect("does not panic")).sum()
        });
        assert_eq!(passed, 1_000);
    }

    #[test]
    fn the_highest_rate_of_a_policy_still_limits() {
        let (limiter, _) = limiter(1_000_000, 1);
        assert_eq!(limiter.try_take_n(1_000_000), Ok(()));
        assert!(limiter.try_take().is_err());
        assert!(quota(rate(u32::MAX, 1)).replenish_interval() >= Duration::from_nanos(1));
    }
}
