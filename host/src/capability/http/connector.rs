//! The one connector: resolve, ask the broker about each address, connect to one that it permits,
//! and compare the peer.
//!
//! hyper-util's own connector skips a custom resolver when the host is an IP literal, so the whole
//! of connecting is done here.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_rustls::HttpsConnector;
use hyper_util::rt::TokioIo;
use neoc_abi::{ErrorKind, OperationError};
use rustls::{ClientConfig, RootCertStore};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tower_service::Service;

use crate::broker::http::Reach;

/// Longest wait for a name to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for one address to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Most addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 16;

/// TLS over [`TcpConnector`].
pub type Connector = HttpsConnector<TcpConnector>;

/// A connector for what `reach` allows.
pub fn new(reach: Reach) -> Connector {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the ring provider supports TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    HttpsConnector::from((TcpConnector { reach }, tls))
}

/// Connects to permitted addresses only.
#[derive(Clone)]
pub struct TcpConnector {
    reach: Reach,
}

/// A connection that did not come about.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// Every address of the name was refused; this is the last one.
    #[error("the address is not permitted")]
    AddressRefused(IpAddr),
    /// What the script gets to know of a failure.
    #[error("{}", .0.message)]
    Failed(OperationError),
}

impl Service<Uri> for TcpConnector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await.map(TokioIo::new) })
    }
}

impl TcpConnector {
    async fn connect(&self, uri: &Uri) -> Result<TcpStream, ConnectError> {
        let no_host = || ConnectError::Failed(OperationError::invalid("hyper: a URL without a host"));
        let host = uri.host().ok_or_else(no_host)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port);
        let mut last = ConnectError::Failed(OperationError::io(format!("hyper: {host}: the name has no address")));
        for address in resolve(host, port).await.map_err(ConnectError::Failed)? {
            // Each address on its own: a name may have public and private ones.
            last = match self.reach.permit(address) {
                None => ConnectError::AddressRefused(address.ip()),
                Some(permit) => match timeout(CONNECT_TIMEOUT, TcpStream::connect(permit.address())).await {
                    Ok(Ok(stream)) if is_peer(&stream, permit.address()) => {
                        // Small requests should not wait for the kernel to gather more.
                        let _ = stream.set_nodelay(true);
                        return Ok(stream);
                    }
                    Ok(_) => failed(ErrorKind::Io, host, port, "connection refused"),
                    Err(_) => failed(ErrorKind::Timeout, host, port, "no connection in time"),
                },
            };
        }
        Err(last)
    }
}

fn failed(kind: ErrorKind, host: &str, port: u16, what: &str) -> ConnectError {
    ConnectError::Failed(OperationError::new(kind, format!("hyper: {host}:{port}: {what}")))
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, OperationError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    if host == "localhost" || host.ends_with(".localhost") {
        // Loopback by definition (RFC 6761, 6.3): no resolver is asked, so none can say otherwise.
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Ok(loopback.map(|ip| SocketAddr::new(ip, port)).into());
    }
    match timeout(RESOLVE_TIMEOUT, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => Ok(addresses.take(MAX_ADDRESSES).collect()),
        Ok(Err(_)) => Err(OperationError::io(format!("hyper: {host}: the name does not resolve"))),
        Err(_) => Err(OperationError::timeout(format!("hyper: {host}: the name did not resolve in time"))),
    }
}

/// Whether the other end is the address that was permitted.
fn is_peer(stream: &TcpStream, permitted: SocketAddr) -> bool {
    stream.peer_addr().is_ok_and(|peer| peer == permitted)
}
