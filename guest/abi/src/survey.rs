//! What the texts of a script spell out: modules that they require and calls with a literal in them.
//!
//! Found without running anything, so it is good for a warning and for no more: what is computed is not seen,
//! and what is shadowed may be taken for something else.

use serde::{Deserialize, Serialize};

use crate::narrowing::Narrowing;

/// Longest literal that is looked at, in bytes: that of a URL.
pub const MAX_LITERAL_BYTES: usize = 8 * 1024;

/// Longest line that is repeated, in bytes.
pub const MAX_LINE_BYTES: usize = 1_000;

/// A script and all modules of its own that it requires by literal names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// How many texts were looked at. At least 1.
    pub n_files: u32,
    /// What they spell out, text by text, each in its order.
    pub mentions: Vec<Mention>,
    /// Whether there is more, which was left out.
    pub is_cut: bool,
}

/// One thing that a text spells out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mention {
    /// Where.
    pub spot: Spot,
    /// What.
    pub what: What,
}

/// A piece of a line of a script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// The file, as in tracebacks.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
    /// In characters, counted from 1.
    pub column: u32,
    /// The line without its end. Absent: it is longer than [`MAX_LINE_BYTES`], or no text.
    pub text: Option<String>,
    /// Where the piece starts, in bytes of the line.
    pub start: u32,
    /// Where it ends. At the end of the line where it goes on behind that.
    pub end: u32,
}

/// What is spelled out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A module that is required, and cannot be: it is not there, is outside the folder, or does not compile.
    Broken {
        /// As the run would say it.
        message: String,
    },
    /// One of our modules is required.
    Module {
        /// Such as `std:kv`.
        name: String,
        /// What it is narrowed to. Absent: nothing, or what is computed, or the script catches it if it makes no sense.
        narrowing: Option<Narrowing>,
    },
    /// A function of one of our modules is called.
    Call {
        /// Such as `vnd:hyper`.
        module: String,
        /// Such as `get`.
        function: String,
        /// What comes first among the arguments, or the URL in it. Absent: it is computed.
        target: Option<Target>,
        /// Of HTTP, as it is sent; in quotes where it is none. Absent: it is computed, or the call has none.
        method: Option<String>,
    },
    /// A URL of http or https that is in no call that was understood.
    Url(Target),
}

/// A text that a script spells out. By default an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// At most [`MAX_LITERAL_BYTES`].
    pub text: String,
    /// Whether that is all of it. If not, what follows is computed.
    pub is_whole: bool,
}

impl Default for Target {
    fn default() -> Self {
        Self { text: String::new(), is_whole: true }
    }
}
