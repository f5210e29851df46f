//! Names to addresses, by DNS alone: no hosts file, no search domains, each name as it is written.
//!
//! Each tenant has a cache of its own, so that none can fill another's or learn from its timing what another
//! asks for. An answer stays as long as its TTL says, and no longer than [`MAX_TTL`]; one of TTL 0 is for the
//! call alone that asked.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::Name},
    system_conf::read_system_conf,
};
use neoc_abi::ErrorKind;
use tokio::time::timeout;

use super::ConnectError;

/// Longest time for one name, with all its aliases.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for one answer of one name server; then it is asked again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(700);

/// Most addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 16;

/// Most names that a tenant's cache holds.
const CACHED_NAMES: u64 = 256;

/// Longest time that an answer is kept.
const MAX_TTL: Duration = Duration::from_secs(300);

/// Longest time that it is kept that a name does not exist.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(10);

/// A tenant's resolver, with its cache.
pub struct Resolver(TokioResolver);

// === impl Resolver ===

impl Resolver {
    /// A resolver with an empty cache that asks these name servers; those of the system, if there are none.
    pub fn new(servers: &[SocketAddr]) -> Self {
        let servers = if servers.is_empty() { of_system() } else { servers.iter().map(server).collect() };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options();
        Self(builder.build().expect("without TLS and DNSSEC nothing is loaded that could fail"))
    }

    /// All addresses of a name, at most [`MAX_ADDRESSES`].
    ///
    /// # Errors
    /// Of kind `io` or `timeout`; [`ConnectError::AddressRefused`] never.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, ConnectError> {
        let mut name = Name::from_ascii(name).map_err(|_| failed("the name is none that DNS can hold"))?;
        // Fully qualified, so that nothing is appended to it.
        name.set_fqdn(true);
        match timeout(TIMEOUT, self.0.lookup_ip(name)).await {
            Ok(Ok(found)) => Ok(found.iter().take(MAX_ADDRESSES).collect()),
            Ok(Err(error)) => Err(explain(&error)),
            Err(_) => Err(ConnectError::TimedOut("the name did not resolve")),
        }
    }
}

fn of_system() -> Vec<NameServerConfig> {
    match read_system_conf() {
        // Its other settings are for people at a terminal.
        Ok((config, _)) => config.into_parts().2,
        Err(error) => {
            tracing::warn!(%error, "no name server is known; names in scripts will not resolve");
            Vec::new()
        }
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.ndots = 0;
    options.timeout = ATTEMPT_TIMEOUT;
    options.attempts = 2;
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = CACHED_NAMES;
    options.positive_min_ttl = Some(Duration::ZERO);
    options.positive_max_ttl = Some(MAX_TTL);
    options.negative_min_ttl = Some(Duration::ZERO);
    options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
    options
}

fn failed(what: &'static str) -> ConnectError {
    ConnectError::Failed(ErrorKind::Io, what)
}

fn explain(error: &NetError) -> ConnectError {
    match error {
        NetError::Timeout => ConnectError::TimedOut("the name did not resolve"),
        NetError::Dns(DnsError::NoRecordsFound(found)) if found.response_code == ResponseCode::NXDomain => {
            failed("the name does not exist")
        }
        NetError::Dns(DnsError::NoRecordsFound(_)) => failed("the name has no address"),
        NetError::NoConnections => failed("no name server is known"),
        _ => failed("the name server failed"),
    }
}
