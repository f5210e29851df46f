//! The one connector, for every outbound byte: resolve, ask the broker about each address, dial one that it
//! permits, compare the peer.
//!
//! Nothing from the environment counts: no proxy variables, no hosts file, no search domains.

mod resolver;
pub mod tls;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use neoc_abi::ErrorKind;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

use self::resolver::Resolver;
use super::per_tenant::PerTenant;
use crate::broker::egress::{AddressPermit, Destination};

/// Connects for all tenants.
pub struct Connector {
    /// Whom to ask for names. Empty: the system's.
    name_servers: Vec<SocketAddr>,
    resolvers: PerTenant<Resolver>,
    tls: tls::Client,
}

/// A connection, encrypted or not.
pub type Stream = Box<dyn Duplex>;

/// What can be read from and written to.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A socket that is connected to one address.
pub struct Peer {
    /// The socket.
    pub socket: UdpSocket,
    /// Whom it sends to and hears.
    pub address: SocketAddr,
}

/// A connection that did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectError {
    /// Every address of the host was refused; this is the first of them. For the operator alone.
    AddressRefused(IpAddr),
    /// What the script gets to know of a failure. It names no address.
    Failed(ErrorKind, &'static str),
    /// It took longer than it may.
    TimedOut(&'static str),
}

/// The addresses of this machine's interfaces, in no order.
///
/// # Errors
/// When the system does not list them.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.iter().map(if_addrs::Interface::ip).collect())
}

// === impl Connector ===

impl Connector {
    /// A connector that asks these name servers; those of the system, if there are none.
    pub fn new(name_servers: &[SocketAddr]) -> Self {
        Self { name_servers: name_servers.to_vec(), resolvers: PerTenant::default(), tls: tls::Client::default() }
    }

    /// Connects, and greets by TLS where that is asked for. All of it takes at most `within`.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        &self,
        destination: &Destination,
        protocol: tls::Protocol,
        within: Duration,
    ) -> Result<Stream, ConnectError> {
        let deadline = Instant::now() + within;
        let stream = self.dial(destination, deadline).await?;
        // Small messages should not wait for the kernel to gather more.
        let _ = stream.set_nodelay(true);
        if !destination.is_tls() {
            return Ok(Box::new(stream));
        }
        let greeting = self.tls.greet(destination.host(), protocol, stream);
        match timeout_at(deadline, greeting).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(what)) => Err(ConnectError::Failed(ErrorKind::Io, what)),
            Err(_) => Err(ConnectError::TimedOut("the TLS handshake was not done")),
        }
    }

    /// Makes a socket for datagrams. Nothing is sent.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn bind(&self, destination: &Destination, within: Duration) -> Result<Peer, ConnectError> {
        for permit in self.permitted(destination, Instant::now() + within).await? {
            if let Ok(socket) = connected(&permit).await {
                return Ok(Peer { socket, address: permit.address() });
            }
        }
        Err(ConnectError::Failed(ErrorKind::Io, "no way leads there"))
    }

    async fn dial(&self, destination: &Destination, deadline: Instant) -> Result<TcpStream, ConnectError> {
        let permits = self.permitted(destination, deadline).await?;
        let mut last = ConnectError::TimedOut("no connection came");
        let n_permits = permits.len();
        for (index, permit) in permits.into_iter().enumerate() {
            // Each address has an even share of what is left, so that a dead one leaves time for the next.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(n_permits - index).unwrap_or(u32::MAX);
            last = match timeout_at(Instant::now() + share, TcpStream::connect(permit.address())).await {
                Ok(Ok(stream)) if is_peer(stream.peer_addr(), &permit) => {
                    destination.note_dialled(&permit);
                    return Ok(stream);
                }
                Ok(_) => ConnectError::Failed(ErrorKind::Io, "connection refused"),
                Err(_) => ConnectError::TimedOut("no connection came"),
            };
        }
        Err(last)
    }

    /// The addresses of the host that may be dialled. Never empty.
    async fn permitted(
        &self,
        destination: &Destination,
        deadline: Instant,
    ) -> Result<Vec<AddressPermit>, ConnectError> {
        let addresses = timeout_at(deadline, self.resolve(destination))
            .await
            .map_err(|_| ConnectError::TimedOut("the name did not resolve"))??;
        let port = destination.port();
        // Each address on its own: a name may have public and private ones.
        let permits: Vec<_> =
            addresses.iter().filter_map(|ip| destination.permit(SocketAddr::new(*ip, port))).collect();
        match addresses.first() {
            Some(first) if permits.is_empty() => Err(ConnectError::AddressRefused(*first)),
            Some(_) => Ok(permits),
            None => Err(ConnectError::Failed(ErrorKind::Io, "the name has no address")),
        }
    }

    async fn resolve(&self, destination: &Destination) -> Result<Vec<IpAddr>, ConnectError> {
        let name = match destination.host() {
            url::Host::Ipv4(address) => return Ok(vec![(*address).into()]),
            url::Host::Ipv6(address) => return Ok(vec![(*address).into()]),
            url::Host::Domain(name) => name,
        };
        if name == "localhost" || name.ends_with(".localhost") {
            // Loopback by definition (RFC 6761, 6.3): no resolver is asked, so none can say otherwise.
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let resolver = self.resolvers.of(destination.tenant(), || Resolver::new(&self.name_servers));
        resolver.resolve(name).await
    }
}

async fn connected(permit: &AddressPermit) -> io::Result<UdpSocket> {
    let here: IpAddr = match permit.address() {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((here, 0)).await?;
    socket.connect(permit.address()).await?;
    if is_peer(socket.peer_addr(), permit) { Ok(socket) } else { Err(io::ErrorKind::NotConnected.into()) }
}

/// Whether the other end is the address that was permitted.
fn is_peer(peer: io::Result<SocketAddr>, permit: &AddressPermit) -> bool {
    peer.is_ok_and(|peer| peer == permit.address())
}
