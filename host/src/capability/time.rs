//! Waiting.

use neoc_abi::time::Reply;

use crate::broker::time::Permit;

/// Waits. Yields once even for 0.
pub async fn perform(permit: Permit) -> Reply {
    let since = permit.since();
    if permit.duration().is_zero() {
        // A sleep of no time would take until the timer's next tick.
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep_until((since + permit.duration()).into()).await;
    }
    Reply::Waited { seconds: since.elapsed().as_secs_f64() }
}
