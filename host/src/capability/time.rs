//! Waiting.

use std::time::Instant;

use neoc_abi::time::Reply;

use crate::broker::time::Permit;

/// Waits. Yields once even for 0.
pub async fn perform(permit: Permit) -> Reply {
    let start = Instant::now();
    tokio::time::sleep(permit.duration()).await;
    Reply::Waited { seconds: start.elapsed().as_secs_f64() }
}
