//! Idle connections of one tenant, for its next requests to the same endpoint under the same rules.
//!
//! A connection out of a pool skips the checks of connecting. So pools are kept apart by tenant and policy
//! (see [`crate::capability::per_tenant`]), and within a pool by [`Endpoint`], which holds the rules that matched.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection::Connection;
use crate::broker::egress::Endpoint;

/// Most idle connections of a tenant, whatever it may have at once.
const MAX_IDLE: usize = 256;

/// Longest time that a connection is kept idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a connection may be idle after the other end has closed it. To watch each of them all the time would cost
/// each request a task; whoever takes one looks at it anyway.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The idle connections.
#[derive(Default)]
pub struct Pool {
    idle: Arc<Mutex<Idle>>,
}

#[derive(Default)]
struct Idle {
    /// The longest idle first.
    connections: VecDeque<Kept>,
    /// Whether somebody sweeps them.
    is_swept: bool,
}

/// A connection that nobody uses. Dropping it closes it.
struct Kept {
    endpoint: Endpoint,
    connection: Box<Connection>,
    until: Instant,
}

// === impl Pool ===

impl Pool {
    /// An idle connection to this endpoint, if one is still good.
    pub fn take(&self, endpoint: &Endpoint) -> Option<Box<Connection>> {
        loop {
            let mut connection = self.newest(endpoint)?;
            if connection.is_reusable() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request. With it there are no more than `most`, which is what the tenant may have
    /// at once: the longest idle one makes room. All may be to one endpoint, for most tenants have one.
    pub fn put(&self, endpoint: Endpoint, connection: Box<Connection>, most: usize) {
        let kept = Kept { endpoint, connection, until: Instant::now() + IDLE_TIMEOUT };
        // Closed when the lock is free: what is declared first is dropped last.
        let _in_excess;
        let mut idle = self.idle.lock();
        _in_excess = (idle.connections.len() >= most.min(MAX_IDLE)).then(|| idle.connections.pop_front());
        idle.connections.push_back(kept);
        if !std::mem::replace(&mut idle.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.idle)));
        }
    }

    fn newest(&self, endpoint: &Endpoint) -> Option<Box<Connection>> {
        let connections = &mut self.idle.lock().connections;
        let index = connections.iter().rposition(|kept| kept.endpoint == *endpoint)?;
        connections.remove(index).map(|kept| kept.connection)
    }
}

/// Closes what was idle for too long, and what the other end has closed or misused, until nothing is idle.
async fn sweep(idle: Weak<Mutex<Idle>>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = idle.lock();
        let now = Instant::now();
        idle.connections.retain_mut(|kept| now < kept.until && !kept.connection.has_ended());
        if idle.connections.is_empty() {
            idle.is_swept = false;
            return;
        }
    }
}
