//! Budgets: so much in all. What is used does not come back.
//!
//! A budget belongs to one request and is charged after the fact, because computing time is only known
//! when it has passed. The charge that goes over is kept, so that a record says what was really used.

use std::time::Duration;

use thiserror::Error;

/// Nothing is left of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the budget is used up")]
pub struct Exhausted;

/// Computing time of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuBudget {
    limit: Duration,
    used: Duration,
}

/// Bytes of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteBudget {
    limit: u64,
    used: u64,
}

// === impl CpuBudget ===

impl CpuBudget {
    /// An unused budget. Zero: the first charge that is not zero exhausts it.
    pub fn new(limit: Duration) -> Self {
        Self { limit, used: Duration::ZERO }
    }

    /// Adds time that was used.
    ///
    /// # Errors
    /// [`Exhausted`] when more than the limit is used now. The limit itself may be used in full.
    pub fn charge(&mut self, time: Duration) -> Result<(), Exhausted> {
        self.used = self.used.saturating_add(time);
        if self.used > self.limit { Err(Exhausted) } else { Ok(()) }
    }

    /// What is left. Zero when it is used up.
    pub fn remaining(&self) -> Duration {
        self.limit.saturating_sub(self.used)
    }

    /// What was used, also beyond the limit.
    pub fn used(&self) -> Duration {
        self.used
    }
}

// === impl ByteBudget ===

impl ByteBudget {
    /// An unused budget.
    pub fn new(limit: u64) -> Self {
        Self { limit, used: 0 }
    }

    /// Takes bytes before they are used, all or none: a body that does not fit is not begun.
    ///
    /// # Errors
    /// [`Exhausted`] when fewer are left; nothing is taken then.
    pub fn try_take(&mut self, bytes: u64) -> Result<(), Exhausted> {
        if bytes > self.remaining() {
            return Err(Exhausted);
        }
        self.used += bytes;
        Ok(())
    }

    /// What is left.
    pub fn remaining(&self) -> u64 {
        self.limit - self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_may_be_used_in_full_and_no_more() {
        let ms = Duration::from_millis;
        for (charges, expected) in [
            (vec![ms(49)], Ok(())),
            (vec![ms(50)], Ok(())),
            (vec![ms(51)], Err(Exhausted)),
            (vec![ms(25), ms(25)], Ok(())),
            (vec![ms(50), Duration::from_nanos(1)], Err(Exhausted)),
            (vec![Duration::MAX, Duration::MAX], Err(Exhausted)),
        ] {
            let mut budget = CpuBudget::new(ms(50));
            let mut last = Ok(());
            for charge in &charges {
                last = budget.charge(*charge);
            }
            assert_eq!(last, expected, "{charges:?}");
        }
    }

    #[test]
    fn what_went_over_is_still_counted() {
        let mut budget = CpuBudget::new(Duration::from_millis(50));
        assert_eq!(budget.charge(Duration::from_millis(70)), Err(Exhausted));
        assert_eq!((budget.used(), budget.remaining()), (Duration::from_millis(70), Duration::ZERO));
    }

    #[test]
    fn bytes_are_taken_all_or_none() {
        let mut budget = ByteBudget::new(10);
        assert_eq!(budget.try_take(7), Ok(()));
        assert_eq!(budget.try_take(4), Err(Exhausted));
        assert_eq!(budget.remaining(), 3);
        assert_eq!(budget.try_take(u64::MAX), Err(Exhausted));
        assert_eq!(budget.try_take(3), Ok(()));
        assert_eq!(budget.try_take(0), Ok(()));
        assert_eq!(budget.try_take(1), Err(Exhausted));
    }
}
