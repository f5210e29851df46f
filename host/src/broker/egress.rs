//! Where a permitted call may connect. The connector asks about each address on its own, and nothing
//! connects without the permit for that address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use url::{Host, Url};

use super::Caller;
use crate::policy::{Machine, Mode, Tenant, http, net};

/// One host and port of one tenant, and the rules that decide which of its addresses may be dialled.
#[derive(Clone)]
pub struct Destination {
    tenant: Arc<Tenant>,
    machine: Arc<Machine>,
    endpoint: Endpoint,
    /// What it was connected to.
    dialled: OnceLock<IpAddr>,
}

/// What connections are told apart by, within a tenant: one that was opened under a rule that names
/// `10.0.0.0/8` must not serve a call that only matched a rule without.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: Host<String>,
    port: u16,
    tls: bool,
    rules: Rules,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Rules {
    Http(http::HttpMatch),
    Net(net::NetMatch),
}

/// Leave to connect to one address.
pub struct AddressPermit {
    address: SocketAddr,
}

// === impl Destination ===

impl Destination {
    /// Where a URL leads that `rules` of the tenant allow. None for a URL without a host, which no rule allows.
    pub(super) fn of_url(caller: &Caller, url: &Url, rules: &http::HttpMatch) -> Option<Self> {
        let endpoint = Endpoint {
            host: url.host()?.to_owned(),
            port: url.port_or_known_default()?,
            tls: url.scheme() == "https",
            rules: Rules::Http(rules.clone()),
        };
        Some(Self::new(caller, endpoint))
    }

    /// Where a target of `std:net` leads that `rules` of the tenant allow.
    pub(super) fn of_target(caller: &Caller, target: &net::Target, rules: &net::NetMatch) -> Self {
        let net::Target { scheme, host, port } = target.clone();
        let endpoint = Endpoint { host, port, tls: scheme == net::Scheme::Tls, rules: Rules::Net(rules.clone()) };
        Self::new(caller, endpoint)
    }

    fn new(caller: &Caller, endpoint: Endpoint) -> Self {
        let (tenant, machine) = (Arc::clone(&caller.principal.tenant), Arc::clone(&caller.principal.machine));
        Self { tenant, machine, endpoint, dialled: OnceLock::new() }
    }

    /// Whose call it is.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// What its connections may be used for again.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The host, in its canonical form.
    pub fn host(&self) -> &Host<String> {
        &self.endpoint.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.endpoint.port
    }

    /// Whether TLS is spoken, with the host's name.
    pub fn is_tls(&self) -> bool {
        self.endpoint.tls
    }

    /// Notes the address that it was connected to.
    pub fn note_dialled(&self, address: &AddressPermit) {
        // Only the first: a connection is made once.
        let _ = self.dialled.set(address.address.ip());
    }

    /// The address that it was connected to.
    pub fn dialled(&self) -> Option<IpAddr> {
        self.dialled.get().copied()
    }

    /// Permits a connection to one address, or not. In report mode every address passes that a rule could name.
    pub fn permit(&self, address: SocketAddr) -> Option<AddressPermit> {
        let (allow, machine) = (&self.tenant.allow, &*self.machine);
        let (allowed, is_open) = match &self.endpoint.rules {
            Rules::Http(rules) => {
                (http::allows_address(&allow.http, machine, rules, address), machine.is_open_to_rules(address))
            }
            Rules::Net(rules) => {
                (net::allows_address(&allow.net, machine, rules, address), net::is_open_to_rules(machine, address))
            }
        };
        let reported = self.tenant.mode == Mode::Report && is_open;
        (allowed || reported).then_some(AddressPermit { address })
    }
}

impl AddressPermit {
    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
