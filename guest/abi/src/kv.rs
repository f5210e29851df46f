//! `std:kv`: a tenant's own keys and values.

use serde::{Deserialize, Serialize};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// What a script asks of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Read a value.
    Get {
        /// 1 to [`MAX_KEY_BYTES`] bytes, any bytes.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
    },
    /// Store a value; when the reply comes it survives a crash of the process.
    Set {
        /// 1 to [`MAX_KEY_BYTES`] bytes, any bytes.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
        /// Any bytes, also none. The policy says how many.
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
    },
    /// Remove a key.
    Delete {
        /// 1 to [`MAX_KEY_BYTES`] bytes, any bytes.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
    },
}

impl Operation {
    /// The key.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Get { key } | Self::Set { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// A reply to [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Get`]. Absent keys have no value.
    Value(Option<serde_bytes::ByteBuf>),
    /// To [`Operation::Set`].
    Stored,
    /// To [`Operation::Delete`]: whether there was such a key.
    Deleted(bool),
}
