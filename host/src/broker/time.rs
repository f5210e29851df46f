//! Permits for `task.wait`. Everybody may wait; the rate of operations bounds how often.

use std::time::{Duration, Instant};

use neoc_abi::time::Operation;

/// Longest wait, in seconds: a day. No request lives as long.
const MAX_WAIT_SECONDS: f64 = 86_400.0;

/// Leave to wait.
pub struct Permit {
    since: Instant,
    duration: Duration,
}

impl Permit {
    /// When the wait began: when the script asked for it, not when a thread came to see to it.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// How long.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// Decides. NaN and negative waits count as 0.
pub(super) fn authorize(operation: Operation) -> Permit {
    let Operation::Wait { seconds } = operation;
    // A comparison, because it is false for NaN.
    let seconds = if seconds > 0.0 { seconds.min(MAX_WAIT_SECONDS) } else { 0.0 };
    Permit { since: Instant::now(), duration: Duration::from_secs_f64(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_makes_no_sense_is_bounded() {
        for (seconds, expected) in [(f64::NAN, 0.0), (-1.0, 0.0), (0.25, 0.25), (f64::INFINITY, MAX_WAIT_SECONDS)] {
            assert_eq!(authorize(Operation::Wait { seconds }).duration().as_secs_f64(), expected, "{seconds}");
        }
    }
}
