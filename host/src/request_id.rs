//! Names for requests: what a client reports is what the operator finds in the log.

use std::sync::Arc;

/// A fresh name: 16 hexadecimal digits. They are random, so they tell nothing about load.
pub fn fresh() -> Arc<str> {
    // Without random numbers no VM starts either; a request that only fails still needs a name.
    let number = getrandom::u64().unwrap_or(0);
    format!("{number:016x}").into()
}
