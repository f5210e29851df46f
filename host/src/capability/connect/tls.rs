//! TLS 1.2 and 1.3, by rustls. The certificate must be for the host's name; there is no way to do without.

use std::sync::Arc;

use rustls::{CertificateError, ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use url::Host;

/// What is spoken through TLS; the server is told by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 and no other version.
    Http,
    /// Whatever the script speaks: nothing is said of it.
    Raw,
}

/// The settings of each protocol.
pub struct Client {
    http: TlsConnector,
    raw: TlsConnector,
}

// === impl Client ===

impl Client {
    /// A client that trusts these roots alone.
    pub fn trusting(roots: RootCertStore) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let raw = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the ring provider supports TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = raw.clone();
        http.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { http: Arc::new(http).into(), raw: Arc::new(raw).into() }
    }

    /// Does the handshake.
    ///
    /// # Errors
    /// What the script gets to know of a failure.
    pub async fn greet(
        &self,
        host: &Host<String>,
        protocol: Protocol,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, &'static str> {
        let connector = match protocol {
            Protocol::Http => &self.http,
            Protocol::Raw => &self.raw,
        };
        let name = match host {
            Host::Domain(name) => {
                ServerName::try_from(name.clone()).map_err(|_| "no certificate can be for this name")?
            }
            Host::Ipv4(address) => std::net::IpAddr::from(*address).into(),
            Host::Ipv6(address) => std::net::IpAddr::from(*address).into(),
        };
        connector.connect(name, stream).await.map_err(|error| explain(&error))
    }
}

impl Default for Client {
    /// A client that trusts the roots of the web.
    fn default() -> Self {
        Self::trusting(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
    }
}

fn explain(error: &std::io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the certificate has expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name"
            }
            CertificateError::UnknownIssuer => "the certificate's issuer is not known",
            _ => "the certificate is not valid",
        },
        Some(rustls::Error::PeerIncompatible(_)) => "the server speaks no TLS that is safe",
        _ => "the TLS handshake failed",
    }
}
