//! What is used up: by a tenant over all its requests, and by one request with its workers and detached tasks.

use std::sync::{Arc, atomic::AtomicU32};

use neoc_abi::OperationError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::workers::Room;
use crate::{
    audit::Quota,
    limits::{Exceeded, Owner, RateLimiter, Total},
    policy::{Limits, Tenant, shown_bytes},
};

/// What a tenant has used, over all its requests.
pub struct Account {
    limits: Limits,
    operations: Arc<RateLimiter>,
    connections: Arc<Semaphore>,
    /// Its part of the log.
    pub(super) refusals: Arc<Quota>,
}

/// What a request and its workers use together: a fan-out multiplies nothing.
pub(super) struct Counts {
    pub(super) subrequests: Total,
    pub(super) traffic: Traffic,
    pub(super) detached: AtomicU32,
    /// Absent without a grant.
    pub(super) workers: Option<Room>,
}

/// The bytes between one request and all that it talks to. What counts is what protocol and script put on
/// the wire, such as a URL, headers and a body; not what TLS and TCP add.
#[derive(Debug)]
pub struct Traffic {
    egress: Total,
    ingress: Total,
}

/// The tenant's slots for outbound connections. Whoever talks to a server holds one as long as it does, and
/// never waits for a second meanwhile: so none waits for itself.
#[derive(Debug, Clone)]
pub struct Connections {
    slots: Arc<Semaphore>,
    most: u32,
}

/// A slot for one connection. It is free again when this is dropped.
#[derive(Debug)]
pub struct Connection {
    _slot: OwnedSemaphorePermit,
}

// === impl Account ===

impl Account {
    pub(super) fn new(tenant: &Tenant) -> Self {
        let limits = tenant.limits.clone();
        let connections = usize::try_from(limits.connections.get()).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            operations: Arc::new(RateLimiter::new(limits.operations)),
            connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            refusals: Arc::default(),
            limits,
        }
    }

    /// The account of the same tenant under another policy. What was used stays used, where the limit is the
    /// same: a reload refills nothing.
    pub(super) fn successor(&self, tenant: &Tenant) -> Self {
        let mut next = Self { refusals: Arc::clone(&self.refusals), ..Self::new(tenant) };
        if next.limits.operations == self.limits.operations {
            next.operations = Arc::clone(&self.operations);
        }
        if next.limits.connections == self.limits.connections {
            next.connections = Arc::clone(&self.connections);
        }
        next
    }

    /// The tenant's slots for outbound connections.
    pub(super) fn connections(&self) -> Connections {
        Connections { slots: Arc::clone(&self.connections), most: self.limits.connections.get() }
    }

    pub(super) fn take_operation(&self) -> Result<(), Exceeded> {
        self.operations.try_take().map_err(|over| {
            Exceeded::new(Owner::Tenant, "operations", self.limits.operations).retry_after(over.retry_after)
        })
    }
}

// === impl Counts ===

impl Counts {
    pub(super) fn new(tenant: &Tenant) -> Self {
        let Limits { subrequests, egress_bytes, ingress_bytes, .. } = tenant.limits;
        Self {
            subrequests: Total::new(subrequests.get().into()),
            traffic: Traffic { egress: Total::new(egress_bytes), ingress: Total::new(ingress_bytes) },
            detached: AtomicU32::new(0),
            workers: tenant.usable_workers().as_ref().map(Room::new),
        }
    }

    /// Counts an outbound request that sends so many bytes, or a connection that a script has for itself.
    ///
    /// # Errors
    /// Over the limit `subrequests` or `egress`; nothing is counted then.
    pub(super) fn take_subrequest(&self, bytes: usize) -> Result<(), Exceeded> {
        self.subrequests.try_take(1).map_err(|_| {
            Exceeded::new(Owner::Request, "subrequests", self.subrequests.most())
                .what("outbound requests and connections, redirects counted")
        })?;
        self.traffic.send(bytes).inspect_err(|_| self.subrequests.put_back(1))
    }
}

// === impl Traffic ===

impl Traffic {
    /// Counts bytes before they are sent.
    ///
    /// # Errors
    /// Over the limit `egress`. Then none of them is counted, and none may be sent.
    pub fn send(&self, bytes: usize) -> Result<(), Exceeded> {
        let used_up = |_| Exceeded::new(Owner::Request, "egress", shown_bytes(self.egress.most()));
        self.egress.try_take(u64::try_from(bytes).unwrap_or(u64::MAX)).map_err(used_up)
    }

    /// Counts bytes that have come.
    ///
    /// # Errors
    /// Over the limit `ingress`. Then the script does not get them.
    pub fn receive(&self, bytes: usize) -> Result<(), Exceeded> {
        let used_up = |_| Exceeded::new(Owner::Request, "ingress", shown_bytes(self.ingress.most()));
        self.ingress.add(u64::try_from(bytes).unwrap_or(u64::MAX)).map_err(used_up)
    }
}

// === impl Connections ===

impl Connections {
    /// Takes a slot, or refuses at once. For a socket, which a script may hold for long: in line for one, it
    /// could wait for itself.
    ///
    /// # Errors
    /// Over the limit `connections`.
    pub fn try_take(&self) -> Result<Connection, Exceeded> {
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        slot.map(|slot| Connection { _slot: slot }).map_err(|_| self.exceeded())
    }

    /// Takes a slot when there is one; the line is served in order. For a request, which ends of its own.
    /// The caller bounds the wait, and gives [`Connections::exceeded`] when it was in vain.
    ///
    /// # Errors
    /// When the host shuts down.
    pub async fn take(&self) -> Result<Connection, OperationError> {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        slot.map(|slot| Connection { _slot: slot }).map_err(|_| OperationError::io("the host is shutting down"))
    }

    /// How many there are.
    pub fn most(&self) -> usize {
        usize::try_from(self.most).unwrap_or(usize::MAX)
    }

    /// There was no slot in time.
    pub fn exceeded(&self) -> Exceeded {
        Exceeded::new(Owner::Tenant, "connections", self.most).what("outbound, at once")
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use futures_util::FutureExt;

    use super::*;

    fn tenant() -> Tenant {
        let mut tenant = Tenant::without_grants("a", "a.luau");
        tenant.limits.connections = NonZeroU32::new(2).expect("not 0");
        tenant.limits.subrequests = NonZeroU32::new(3).expect("not 0");
        tenant.limits.egress_bytes = 1024;
        tenant.limits.ingress_bytes = 2048;
        tenant
    }

    /// The limit that was hit.
    fn hit<T>(result: Result<T, Exceeded>) -> Option<String> {
        result.err().map(|exceeded| format!("{} {}", exceeded.limit, exceeded.value))
    }

    #[test]
    fn a_slot_is_free_again_when_its_connection_is_gone() {
        let connections = Account::new(&tenant()).connections();
        let mut held: Vec<_> = (0..2).map(|_| connections.try_take().expect("free")).collect();
        assert_eq!(hit(connections.try_take()), Some("connections 2".into()));
        held.pop();
        assert_eq!(hit(connections.try_take()), None);
    }

    #[test]
    fn a_wait_that_was_given_up_keeps_no_slot() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
        runtime.block_on(async {
            let connections = Account::new(&tenant()).connections();
            let held: Vec<_> = (0..2).map(|_| connections.try_take().expect("free")).collect();
            let mut wait = Box::pin(connections.take());
            assert!((&mut wait).now_or_never().is_none());
            drop(held);
            // It was handed a slot that it never looked at.
            drop(wait);
            assert!((0..2).map(|_| connections.try_take()).collect::<Result<Vec<_>, _>>().is_ok());
        });
    }

    #[test]
    fn a_request_counts_what_it_sends_before_and_what_comes_in_any_case() {
        let counts = Counts::new(&tenant());
        assert_eq!(hit(counts.traffic.send(1025)), Some("egress 1 KiB".into()));
        assert_eq!((hit(counts.traffic.send(1024)), hit(counts.traffic.send(0))), (None, None));
        assert_eq!(hit(counts.traffic.send(1)), Some("egress 1 KiB".into()));
        assert_eq!((hit(counts.traffic.receive(2048)), hit(counts.traffic.receive(0))), (None, None));
        assert_eq!(hit(counts.traffic.receive(1)), Some("ingress 2 KiB".into()));
        assert_eq!(hit(counts.traffic.receive(0)), Some("ingress 2 KiB".into()));
    }

    #[test]
    fn a_request_may_make_so_many_outbound_requests() {
        let counts = Counts::new(&tenant());
        let hits: Vec<_> = (0..5).map(|_| hit(counts.take_subrequest(0))).collect();
        let over = Some("subrequests 3".to_owned());
        assert_eq!(hits, [None, None, None, over.clone(), over]);
    }

    #[test]
    fn a_request_that_sends_too_much_is_not_counted_as_made() {
        let counts = Counts::new(&tenant());
        for _ in 0..10 {
            assert_eq!(hit(counts.take_subrequest(1025)), Some("egress 1 KiB".into()));
        }
        assert_eq!(hit(counts.take_subrequest(1024)), None);
    }
}
