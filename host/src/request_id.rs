//! Names for requests: what a client reports is what the operator finds in the log.

use std::sync::Arc;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A fresh name: 16 hexadecimal digits. They are random, so they tell nothing about load.
pub fn fresh() -> Arc<str> {
    named(rand::random())
}

fn named(number: u64) -> Arc<str> {
    let mut name = [0; 16];
    for (index, digit) in name.iter_mut().enumerate() {
        *digit = DIGITS[(number >> (60 - 4 * index)) as usize % DIGITS.len()];
    }
    // Digits are text.
    std::str::from_utf8(&name).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_number_in_hexadecimal() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            assert_eq!(*named(number), format!("{number:016x}"));
        }
    }
}
