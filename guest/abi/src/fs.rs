//! `std:fs`: files below the granted directories.

use serde::{Deserialize, Serialize};

/// What a script asks of the file system. Paths are as the script sees them, such as `/data/a.txt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Read a whole file.
    Read {
        /// The file.
        path: String,
    },
    /// Create or replace a file; readers see the old or the new content, never half.
    Write {
        /// The file.
        path: String,
        /// The new content.
        #[serde(with = "serde_bytes")]
        content: Vec<u8>,
    },
    /// List a directory.
    List {
        /// The directory.
        path: String,
    },
    /// Remove a file or an empty directory.
    Remove {
        /// What to remove.
        path: String,
    },
}

impl Operation {
    /// The path, as the script wrote it.
    pub fn path(&self) -> &str {
        match self {
            Self::Read { path } | Self::Write { path, .. } | Self::List { path } | Self::Remove { path } => path,
        }
    }

    /// Whether the operation changes anything.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Remove { .. })
    }
}

/// A reply to [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Read`].
    Content(#[serde(with = "serde_bytes")] Vec<u8>),
    /// To [`Operation::Write`] and [`Operation::Remove`].
    Done,
    /// To [`Operation::List`]: names, sorted by bytes; a directory's name ends in `/`.
    Names(Vec<String>),
}
