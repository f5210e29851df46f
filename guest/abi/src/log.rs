//! `print` and `std:log`.

use serde::{Deserialize, Serialize};

/// Longest line, in bytes; longer ones are cut.
pub const MAX_LINE_BYTES: usize = 8 * 1024;

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
