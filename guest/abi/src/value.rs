//! Values that cross from one VM to another, as copies: the arguments and results of a worker.
//!
//! A packed value is a row of tokens, a table's own before those of its contents. The host moves it as
//! bytes and never reads it: so no nesting that a guest makes up can reach the host's stack.
//!
//! | value | tokens |
//! |---|---|
//! | nil, a boolean, a number, a string, a buffer, a vector | one |
//! | a table | [`Token::Table`], the values of 1 to `n_array`, then `n_map` times a key and its value |

use serde::{Deserialize, Serialize};

use crate::wire;

/// Most bytes of one packed value, or of one call's arguments together.
pub const MAX_PACKED_BYTES: usize = 10 * 1024 * 1024;

/// Deepest nesting of tables.
pub const MAX_DEPTH: usize = 64;

/// Packed values. Their bytes mean something to guests only.
pub type Packed = serde_bytes::ByteBuf;

/// A value, or the head of a table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Token<'a> {
    /// nil.
    Nil,
    /// true or false.
    Boolean(bool),
    /// Any double, bit by bit.
    Number(f64),
    /// Any bytes.
    #[serde(borrow)]
    String(#[serde(with = "serde_bytes")] &'a [u8]),
    /// Any bytes.
    Buffer(#[serde(with = "serde_bytes")] &'a [u8]),
    /// A vector's three components.
    Vector([f32; 3]),
    /// A table, whose contents follow.
    Table {
        /// Values of the keys 1, 2, 3 and so on.
        n_array: u32,
        /// Pairs of other keys.
        n_map: u32,
    },
}

/// Adds a token to a row.
///
/// # Errors
/// Never in practice: every token has a postcard form.
pub fn put(row: Vec<u8>, token: &Token<'_>) -> Result<Vec<u8>, wire::Error> {
    postcard::to_extend(token, row)
}

/// Takes the first token of a row; gives it with what is left.
///
/// # Errors
/// When the row ends early or holds something else.
pub fn take(row: &[u8]) -> Result<(Token<'_>, &[u8]), wire::Error> {
    postcard::take_from_bytes(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_its_tokens_back_in_order() {
        let tokens = [
            Token::Table { n_array: 2, n_map: u32::MAX },
            Token::Nil,
            Token::Boolean(true),
            Token::Number(-0.0),
            Token::Number(f64::INFINITY),
            Token::String(b"\0\xff"),
            Token::Buffer(b""),
            Token::Vector([0.5, -0.0, f32::MIN]),
        ];
        let row = tokens.iter().try_fold(Vec::new(), put).expect("packs");
        let mut rest = row.as_slice();
        for token in tokens {
            let (taken, after) = take(rest).expect("a token");
            assert_eq!(format!("{taken:?}"), format!("{token:?}"), "with the sign of a zero");
            rest = after;
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_number_keeps_its_bits() {
        for bits in [0x7ff8_0000_0000_0000, 0xfff8_0000_0000_0001, (-0.0_f64).to_bits(), 1] {
            let row = put(Vec::new(), &Token::Number(f64::from_bits(bits))).expect("packs");
            let Ok((Token::Number(number), [])) = take(&row) else { panic!("{row:?}") };
            assert_eq!(number.to_bits(), bits);
        }
    }

    #[test]
    fn a_string_longer_than_its_row_is_refused() {
        let row = put(Vec::new(), &Token::String(b"abc")).expect("packs");
        for end in 0..row.len() {
            assert!(take(&row[..end]).is_err(), "{end}");
        }
    }
}
