//! `require` of a tenant's own modules: files below the folder of its script.
//!
//! The guest decides what a name means; the host only looks which files there are and hands over their text.

use serde::{Deserialize, Serialize};

/// Longest source text, in bytes. Compiling costs far more memory than the text has.
pub const MAX_SOURCE_BYTES: usize = 512 * 1024;

/// Longest path of a module, in bytes. Luau cuts a chunk's name at 255, and tracebacks name modules by their paths.
pub const MAX_PATH_BYTES: usize = 200;

/// Most paths in one operation. A path of [`MAX_PATH_BYTES`] has no more folders than this.
pub const MAX_PATHS: usize = 128;

/// The file in which a folder names its aliases.
pub const CONFIGURATION: &str = ".luaurc";

/// What the guest asks of the tenant's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// See which of these files are there, and read the first that is: one round trip for a module, whatever
    /// its file is called.
    Find {
        /// Below the folder, such as `lib/util.luau`: plain names with slashes between.
        paths: Vec<String>,
    },
}

impl Operation {
    /// The paths.
    pub fn paths(&self) -> &[String] {
        match self {
            Self::Find { paths } => paths,
        }
    }
}

/// A reply to [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Find`].
    Found {
        /// Which of the paths are there, by index, in order. Empty: none.
        present: Vec<u32>,
        /// The text of the first of them. Empty when there is none.
        #[serde(with = "serde_bytes")]
        source: Vec<u8>,
    },
}
