//! Coarse clocks for guests: a fine clock is a tool for side channels, and a script needs none.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

/// Finest step that a guest sees.
const RESOLUTION: Duration = Duration::from_millis(1);

/// The clocks of one VM, in whole milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    origin: Instant,
}

impl Clocks {
    /// Clocks of which the monotonic one reads 0 now, so that it tells nothing about the host's uptime.
    pub fn starting_now() -> Self {
        Self { origin: Instant::now() }
    }

    /// Time since the VM began.
    pub fn monotonic(self) -> Duration {
        coarse(self.origin.elapsed())
    }

    /// Time since 1970. A machine whose clock is before that reads 0.
    pub fn wall() -> Duration {
        coarse(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl HostMonotonicClock for Clocks {
    fn resolution(&self) -> u64 {
        as_nanoseconds(RESOLUTION)
    }

    fn now(&self) -> u64 {
        as_nanoseconds(self.monotonic())
    }
}

impl HostWallClock for Clocks {
    fn resolution(&self) -> Duration {
        RESOLUTION
    }

    fn now(&self) -> Duration {
        Self::wall()
    }
}

fn coarse(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Whole nanoseconds, as WASI counts.
pub fn as_nanoseconds(time: Duration) -> u64 {
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
