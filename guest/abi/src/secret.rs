//! `std:secret`: a tenant's secrets, by name. No value ever crosses the wall; the host puts it in on the way out.

use serde::{Deserialize, Serialize};

/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// Most pieces of one text.
pub const MAX_PIECES: usize = 16;

/// A text with secrets in it, such as the value of a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// One after the other, without anything between.
    pub pieces: Vec<Piece>,
}

/// A part of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// As it is.
    Text(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The secret with this name.
    Secret(String),
    /// A user, a colon and the secret with this name, as base64.
    Basic {
        /// Whose secret it is.
        user: String,
        /// Its name.
        secret: String,
    },
}

impl Template {
    /// The secrets in it, by name.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Secret(secret) | Piece::Basic { secret, .. } => Some(secret.as_str()),
        })
    }

    /// How long it is with the secrets' names in their place, in bytes: all that may be told of its length.
    pub fn named_bytes(&self) -> usize {
        let bytes = |piece: &Piece| match piece {
            Piece::Text(text) => text.len(),
            Piece::Secret(secret) => secret.len(),
            Piece::Basic { user, secret } => user.len() + secret.len(),
        };
        self.pieces.iter().map(bytes).sum()
    }
}

/// Whether a text may name a secret: 1 to 63 of `a-z`, `0-9`, `_` and `-`.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}
