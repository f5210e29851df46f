//! Totals: so many in all, such as the bytes of one request. Nothing comes back.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts towards a total. Shared by reference between threads.
#[derive(Debug)]
pub struct Total {
    used: AtomicU64,
    most: u64,
}

/// The total is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedUp;

impl Total {
    /// A total of which nothing is used.
    pub fn new(most: u64) -> Self {
        Self { used: AtomicU64::new(0), most }
    }

    /// What may be used in all.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Counts `n`, or refuses them all. For what has not happened yet. Never waits.
    ///
    /// # Errors
    /// [`UsedUp`]; nothing is counted then.
    pub fn try_take(&self, n: u64) -> Result<(), UsedUp> {
        let fits = |used: u64| used.checked_add(n).filter(|used| *used <= self.most);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(drop).map_err(|_| UsedUp)
    }

    /// Puts back what was taken for something that did not happen after all.
    pub fn put_back(&self, n: u64) {
        let less = |used: u64| Some(used.saturating_sub(n));
        let (Ok(_) | Err(_)) = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Counts `n` in any case, for they have happened, and says whether they were too many.
    ///
    /// # Errors
    /// [`UsedUp`] when the total is passed.
    pub fn add(&self, n: u64) -> Result<(), UsedUp> {
        let add = |used: u64| Some(used.saturating_add(n));
        // The function never gives None, so both hold what was used before.
        let (Ok(before) | Err(before)) = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        if before.saturating_add(n) <= self.most { Ok(()) } else { Err(UsedUp) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_passes_and_one_more_does_not() {
        let total = Total::new(10);
        assert_eq!((total.try_take(9), total.try_take(1), total.try_take(1)), (Ok(()), Ok(()), Err(UsedUp)));
        assert_eq!(total.try_take(0), Ok(()));
    }

    #[test]
    fn what_is_refused_is_not_counted_and_what_has_happened_is() {
        let total = Total::new(10);
        assert_eq!((total.try_take(11), total.try_take(10)), (Err(UsedUp), Ok(())));
        let total = Total::new(10);
        assert_eq!((total.add(11), total.add(0), total.try_take(1)), (Err(UsedUp), Err(UsedUp), Err(UsedUp)));
    }

    #[test]
    fn no_number_is_large_enough_to_begin_again() {
        let total = Total::new(10);
        assert_eq!(
            (total.add(u64::MAX), total.add(u64::MAX), total.try_take(u64::MAX)),
            (Err(UsedUp), Err(UsedUp), Err(UsedUp))
        );
        assert_eq!(total.try_take(1), Err(UsedUp));
    }

    #[test]
    fn threads_together_get_no_more_than_one_would() {
        let total = Total::new(1_000);
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1_000).filter(|_| total.try_take(1).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().expect("does not panic")).sum()
        });
        assert_eq!(taken, 1_000);
    }
}
