//! `print` and `std:log`.

use serde::{Deserialize, Serialize};

/// Longest line that a policy may allow, in bytes. The guest cuts longer ones, and the host those that are
/// over the tenant's own limit.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// `print`: goes to standard output under `neoc run`.
    Print,
    /// `log.debug`.
    Debug,
    /// `log.info`.
    Info,
    /// `log.warn`.
    Warn,
    /// `log.error`.
    Error,
}

/// A line that the script wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How much it matters.
    pub level: Level,
    /// The text. May hold any character; the host escapes it.
    pub text: String,
}
