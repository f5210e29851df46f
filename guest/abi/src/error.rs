//! The error value that a script can catch.

use serde::{Deserialize, Serialize};

/// Longest error text that crosses the wall, in bytes.
pub const MAX_ERROR_TEXT_BYTES: usize = 4096;

/// Why an operation failed, as the script branches on it (`err.kind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The policy does not allow it.
    Denied,
    /// A quota or a size is exhausted.
    Limit,
    /// A deadline passed.
    Timeout,
    /// The task or the request was cancelled.
    Cancelled,
    /// What it was used on is closed.
    Closed,
    /// Another task uses it in the same way.
    Busy,
    /// The outside world failed: connection refused, file absent, disk full.
    Io,
    /// The arguments make no sense.
    Invalid,
    /// The code of a worker failed.
    Failed,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Denied,
        Self::Limit,
        Self::Timeout,
        Self::Cancelled,
        Self::Closed,
        Self::Busy,
        Self::Io,
        Self::Invalid,
        Self::Failed,
    ];

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The stable name that scripts, logs and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Limit => "limit",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
            Self::Busy => "busy",
            Self::Io => "io",
            Self::Invalid => "invalid",
            Self::Failed => "failed",
        }
    }
}

/// A failed operation. A script sees a table with these fields, absent ones as nil.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationError {
    /// The class of the failure.
    pub kind: ErrorKind,
    /// One line for a human. Names no host path, address or process of the operator's.
    pub message: String,
    /// The capability that was refused, such as `http`.
    pub capability: Option<String>,
    /// What the call aimed at, as the script wrote it.
    pub target: Option<String>,
    /// TOML which, pasted into the policy, allows the call.
    pub fix: Option<String>,
    /// The limit that was hit, as its policy key, such as `operations`.
    pub limit: Option<String>,
    /// When a retry can succeed, in milliseconds from now.
    pub retry_after_ms: Option<u64>,
    /// The stable label of why it was refused, such as `host_not_allowed`; the same in logs and counters.
    pub reason: Option<String>,
    /// The rule that stood in the way, by its file and line, or `no rule`. Only where the policy refused.
    pub rule: Option<String>,
    /// The line of the script that made the call, such as `main.luau:12`.
    pub site: Option<String>,
    /// Where it happened in another VM, one frame a line.
    pub traceback: Option<String>,
}

impl OperationError {
    /// An error with a kind and a message, all other fields absent.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        truncate_at_char(&mut message, MAX_ERROR_TEXT_BYTES);
        Self {
            kind,
            message,
            capability: None,
            target: None,
            fix: None,
            limit: None,
            retry_after_ms: None,
            reason: None,
            rule: None,
            site: None,
            traceback: None,
        }
    }

    /// [`ErrorKind::Invalid`]: the arguments make no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// [`ErrorKind::Io`]: the outside world failed.
    pub fn io(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Io, message)
    }

    /// [`ErrorKind::Limit`]: the limit with this policy key is exhausted.
    pub fn limit(limit: &str, message: impl Into<String>) -> Self {
        Self { limit: Some(limit.to_owned()), ..Self::new(ErrorKind::Limit, message) }
    }

    /// [`ErrorKind::Timeout`]: a deadline passed.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Timeout, message)
    }
}

/// Shortens `text` to at most `max_bytes`, never inside a character.
pub fn truncate_at_char(text: &mut String, max_bytes: usize) {
    text.truncate(text.floor_char_boundary(max_bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_text_is_cut_at_a_character() {
        let error = OperationError::io("é".repeat(MAX_ERROR_TEXT_BYTES));
        assert!(error.message.len() <= MAX_ERROR_TEXT_BYTES);
        assert!(error.message.chars().all(|c| c == 'é'));
    }
}
