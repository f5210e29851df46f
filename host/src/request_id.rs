//! Names for requests: what a client reports is what the operator finds in the log.

use std::{io::Write, sync::Arc};

/// A fresh name: 16 hexadecimal digits. They are random, so they tell nothing about load.
pub fn fresh() -> Arc<str> {
    named(rand::random())
}

fn named(number: u64) -> Arc<str> {
    let mut name = [0; 16];
    // So many digits have room, and are text.
    let _ = write!(&mut name[..], "{number:016x}");
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
