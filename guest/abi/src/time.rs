//! `task.wait`: time that passes outside the guest.

use serde::{Deserialize, Serialize};

/// What a script asks of the clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Operation {
    /// Wait. Always yields once, also for 0.
    Wait {
        /// At least 0; the guest has replaced NaN and negative values by 0.
        seconds: f64,
    },
}

/// A reply to [`Operation`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Wait`].
    Waited {
        /// What really passed, on the monotonic clock.
        seconds: f64,
    },
}
