//! Names for requests: what a client reports is what the operator finds in the log.

use std::sync::Arc;

/// A fresh name: 16 hexadecimal digits. They are random, so they tell nothing about load.
pub fn fresh() -> Arc<str> {
    format!("{:016x}", rand::random::<u64>()).into()
}
