//! Slots: so many things at once.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// A counted set of slots. Clones count together.
#[derive(Debug, Clone)]
pub struct Slots {
    shared: Arc<Shared>,
}

/// One slot that is taken. It comes back when this drops, on whatever way: return, error or panic.
#[derive(Debug)]
#[must_use = "the slot comes back at once when this is dropped"]
pub struct Slot {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    capacity: u32,
    /// Never more than the capacity.
    taken: AtomicU32,
}

// === impl Slots ===

impl Slots {
    /// A set with all slots free. 0: none can be taken.
    pub fn new(capacity: u32) -> Self {
        Self { shared: Arc::new(Shared { capacity, taken: AtomicU32::new(0) }) }
    }

    /// Takes a slot, or says at once that there is none. Never waits.
    pub fn try_take(&self) -> Option<Slot> {
        let capacity = self.shared.capacity;
        let one_more = |taken: u32| (taken < capacity).then_some(taken + 1);
        // Nothing else is published by a slot, so the count alone needs to be right.
        self.shared.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Slot { shared: Arc::clone(&self.shared) })
    }

    /// How many are taken now. Another thread may change it before the caller looks.
    pub fn taken(&self) -> u32 {
        self.shared.taken.load(Ordering::Relaxed)
    }

    /// How many there are.
    pub fn capacity(&self) -> u32 {
        self.shared.capacity
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_comes_back_when_its_guard_drops() {
        let slots = Slots::new(2);
        let first = slots.try_take().expect("free");
        let _second = slots.try_take().expect("free");
        assert!(slots.try_take().is_none());
        drop(first);
        assert_eq!((slots.taken(), slots.capacity()), (1, 2));
        assert!(slots.try_take().is_some());
    }

    #[test]
    fn a_slot_comes_back_from_a_panic() {
        let slots = Slots::new(1);
        let inner = slots.clone();
        let result = std::panic::catch_unwind(move || {
            let _slot = inner.try_take().expect("free");
            panic!("on purpose");
        });
        assert!(result.is_err());
        assert_eq!(slots.taken(), 0);
    }

    #[test]
    fn a_set_of_none_has_none() {
        assert!(Slots::new(0).try_take().is_none());
    }

    #[test]
    fn one_tenant_at_its_limit_leaves_others_alone() {
        let (acme, beta) = (Slots::new(1), Slots::new(1));
        let _held = acme.try_take().expect("free");
        assert!(acme.try_take().is_none());
        assert!(beta.try_take().is_some());
    }

    #[test]
    fn threads_together_never_hold_more_than_there_are() {
        let slots = Slots::new(3);
        let most = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if let Some(_slot) = slots.try_take() {
                            most.fetch_max(slots.taken(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(most.into_inner() <= 3);
        assert_eq!(slots.taken(), 0);
    }
}
