//! Waiting.

use std::time::Instant;

use neoc_abi::time::Reply;

use crate::broker::time::Permit;

/// Waits. Yields once even for 0.
pub async fn perform(permit: Permit) -> Reply {
    let start = Instant::now();
    if permit.duration().is_zero() {
        // A sleep of no time would take until the timer's next tick.
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(permit.duration()).await;
    }
    Reply::Waited { seconds: start.elapsed().as_secs_f64() }
}
