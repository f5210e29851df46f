//! Workers: further VMs of a request. Who runs VMs is no business of this layer, so it comes in from above.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use neoc_abi::{OperationError, workers::Reply};
use tokio::sync::OwnedSemaphorePermit;

use crate::broker::workers::Permit;

/// Runs a permitted call in a VM of its own, which keeps the place for as long as it lives. Given by
/// whoever runs the request itself. Cancelled by dropping the future.
pub type Launcher =
    Arc<dyn Fn(Permit, OwnedSemaphorePermit) -> BoxFuture<'static, Result<Reply, OperationError>> + Send + Sync>;

/// Makes one call, once there is a place for it among the request's workers.
///
/// # Errors
/// What the worker failed with; of kind `limit` when its VM was killed or there was none for it.
pub async fn perform(launcher: Option<&Launcher>, permit: Permit) -> Result<Reply, OperationError> {
    let launcher = launcher.ok_or_else(|| OperationError::io("workers: there are none here"))?;
    // In line as long as the request lives: the line is its own, and moves as its workers end.
    let place = permit.places().acquire_owned().await.map_err(|_| OperationError::io("workers: there are none"))?;
    launcher(permit, place).await
}
