//! A module's table that can do less: what a script gives `require` beside the name, as it wrote it.
//!
//! The guest copies it and keeps it with the functions of the table; the host alone knows what the words mean. A guest
//! that leaves it out gets no more than the tenant has anyway.

use serde::{Deserialize, Serialize};

/// Most patterns in a list.
pub const MAX_PATTERNS: usize = 16;

/// Most keys.
pub const MAX_KEYS: usize = 8;

/// Most bytes of all keys and patterns.
pub const MAX_BYTES: usize = 8 * 1024;

/// What a table is narrowed to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Narrowing {
    /// By key, in the order of the keys.
    pub fields: Vec<(String, Given)>,
}

/// A value of a [`Narrowing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Given {
    /// A string.
    Text(String),
    /// A list of strings, or an empty table.
    Texts(Vec<String>),
    /// Anything else: the host says what it should be.
    Other,
}

/// What a script asks of the host while it requires a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Say whether a module can be narrowed like this. Answered at once, while a script is loaded too.
    Check {
        /// As it is required, such as `std:kv`.
        module: String,
        /// What to.
        narrowing: Narrowing,
    },
}

/// A reply to [`Operation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Check`]: it can.
    Checked,
}

impl Narrowing {
    /// Bytes of all keys and patterns.
    pub fn n_bytes(&self) -> usize {
        let bytes_of = |(key, given): &(String, Given)| match given {
            Given::Text(text) => key.len() + text.len(),
            Given::Texts(texts) => key.len() + texts.iter().map(String::len).sum::<usize>(),
            Given::Other => key.len(),
        };
        self.fields.iter().map(bytes_of).sum()
    }

    /// Whether it is small enough to be looked at with each call.
    ///
    /// # Errors
    /// What there is too much of, in words for the script.
    pub fn check_size(&self) -> Result<(), String> {
        if self.fields.len() > MAX_KEYS {
            return Err(format!("at most {MAX_KEYS} keys"));
        }
        let is_long = |given: &Given| matches!(given, Given::Texts(texts) if texts.len() > MAX_PATTERNS);
        if let Some((key, _)) = self.fields.iter().find(|(_, given)| is_long(given)) {
            return Err(format!("{key:.100}: at most {MAX_PATTERNS} patterns"));
        }
        if self.n_bytes() > MAX_BYTES {
            return Err(format!("at most {MAX_BYTES} bytes in all"));
        }
        Ok(())
    }
}
