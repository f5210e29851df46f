//! Workers: further VMs of a request. Who runs VMs is no business of this layer, so it comes in from above.

use std::{convert::Infallible, sync::Arc};

use futures_util::future::BoxFuture;
use neoc_abi::{OperationError, workers::Reply};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::broker::workers::Permit;

/// Runs a permitted call in a VM of its own, which keeps the place for as long as it lives. Given by
/// whoever runs the request itself. Cancelled by dropping the future; then the VM is gone a little later.
pub type Launcher = Arc<dyn Fn(Permit, Place) -> BoxFuture<'static, Result<Reply, OperationError>> + Send + Sync>;

/// A place among the workers of a request.
pub struct Place {
    _permit: OwnedSemaphorePermit,
    _presence: oneshot::Sender<Infallible>,
}

/// One use of a launcher.
pub struct Launch {
    launcher: Launcher,
    presence: oneshot::Sender<Infallible>,
}

/// Closes when the VM of a launch is gone, or when there will be none.
pub type Gone = oneshot::Receiver<Infallible>;

#[cfg(test)]
impl Place {
    /// The only place of a request without a launcher.
    pub async fn alone() -> (Self, Gone) {
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.expect("it is never closed");
        let (presence, gone) = oneshot::channel();
        (Self { _permit: permit, _presence: presence }, gone)
    }
}

impl Launch {
    /// A use of `launcher`.
    pub fn new(launcher: Launcher) -> (Self, Gone) {
        let (presence, gone) = oneshot::channel();
        (Self { launcher, presence }, gone)
    }
}

/// Makes one call, once there is a place for it among the request's workers.
///
/// # Errors
/// What the worker failed with; of kind `limit` when its VM was killed or there was none for it.
pub async fn perform(launch: Option<Launch>, permit: Permit) -> Result<Reply, OperationError> {
    let none = || OperationError::io("workers: there are none here");
    let Launch { launcher, presence } = launch.ok_or_else(none)?;
    // In line as long as the request lives: the line is its own, and moves as its workers end.
    let place = permit.places().acquire_owned().await.map_err(|_| none())?;
    launcher(permit, Place { _permit: place, _presence: presence }).await
}
