//! Idle connections of one tenant, for its next requests to the same endpoint under the same rules.
//!
//! A connection out of a pool skips the checks of connecting. So pools are kept apart by tenant and policy
//! (see [`crate::capability::per_tenant`]), and within a pool by [`Endpoint`], which holds the rules that matched.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::oneshot, task::JoinHandle};

use super::connection::Connection;
use crate::broker::egress::Endpoint;

/// Most idle connections of a tenant. The longest idle one makes room. All may be to one endpoint: most tenants have
/// one, and what is not kept has to be connected again.
const MAX_IDLE: usize = 32;

/// Longest time that a connection is kept idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The idle connections, the longest idle first.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<VecDeque<Idle>>,
}

/// A connection and who watches it meanwhile. Dropping it closes the connection.
struct Idle {
    endpoint: Endpoint,
    /// Asks the watcher for the connection.
    wanted: oneshot::Sender<()>,
    watcher: JoinHandle<Option<Connection>>,
}

// === impl Pool ===

impl Pool {
    /// An idle connection to this endpoint, if one is still good.
    pub async fn take(&self, endpoint: &Endpoint) -> Option<Connection> {
        loop {
            let Idle { wanted, watcher, .. } = self.newest(endpoint)?;
            // A watcher that has ended has closed the connection.
            if wanted.send(()).is_ok()
                && let Ok(Some(connection)) = watcher.await
            {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request.
    pub fn put(&self, endpoint: Endpoint, connection: Connection) {
        let (wanted, asked) = oneshot::channel();
        let watcher = tokio::spawn(watch(connection, asked));
        let mut idle = self.idle.lock();
        idle.retain(|idle| !idle.watcher.is_finished());
        if idle.len() >= MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { endpoint, wanted, watcher });
    }

    fn newest(&self, endpoint: &Endpoint) -> Option<Idle> {
        let mut idle = self.idle.lock();
        let index = idle.iter().rposition(|idle| idle.endpoint == *endpoint)?;
        idle.remove(index)
    }
}

/// Keeps a connection until it is wanted; gives nothing when it was closed, misused, or idle for too long.
async fn watch(mut connection: Connection, asked: oneshot::Receiver<()>) -> Option<Connection> {
    tokio::select! {
        biased;
        () = connection.ended() => None,
        wanted = asked => wanted.ok().map(|()| connection),
        () = tokio::time::sleep(IDLE_TIMEOUT) => None,
    }
}
