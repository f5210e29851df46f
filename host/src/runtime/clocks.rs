//! Coarse clocks for guests: a fine clock is a tool for side channels, and a script needs none.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

/// Finest step that a guest sees.
const RESOLUTION: Duration = Duration::from_millis(1);

/// A monotonic clock that starts at 0 with the VM, so that it tells nothing about the host's uptime.
pub struct CoarseMonotonic {
    origin: Instant,
}

impl CoarseMonotonic {
    /// A clock that reads 0 now.
    pub fn starting_now() -> Self {
        Self { origin: Instant::now() }
    }
}

impl HostMonotonicClock for CoarseMonotonic {
    fn resolution(&self) -> u64 {
        as_nanoseconds(RESOLUTION)
    }

    fn now(&self) -> u64 {
        as_nanoseconds(coarse(self.origin.elapsed()))
    }
}

/// The wall clock, cut to whole milliseconds.
pub struct CoarseWall;

impl HostWallClock for CoarseWall {
    fn resolution(&self) -> Duration {
        RESOLUTION
    }

    fn now(&self) -> Duration {
        // A machine whose clock is before 1970 reads 1970.
        coarse(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

fn coarse(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn as_nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_sees_whole_milliseconds_only() {
        assert_eq!(coarse(Duration::from_nanos(2_999_999)), Duration::from_millis(2));
        assert_eq!(coarse(Duration::from_nanos(999_999)), Duration::ZERO);
    }
}
