//! TLS 1.2 and 1.3, by rustls. The certificate must be for the host's name; there is no way to do without.

use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, pki_types::ServerName};
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
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => "the server speaks no HTTP/1.1",
        Some(rustls::Error::PeerIncompatible(_)) => "the server speaks no TLS that is safe",
        _ => "the TLS handshake failed",
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{io::AsyncWriteExt, net::TcpListener, time::timeout};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// No test waits longer. Only a failing one takes it.
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        roots: RootCertStore,
    }

    impl Authority {
        fn named(name: &str) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().expect("a key");
            let mut roots = RootCertStore::empty();
            roots.add(params.self_signed(&key).expect("a certificate").der().clone()).expect("a root");
            Self { issuer: Issuer::new(params, key), roots }
        }

        /// A server with a certificate of this authority's.
        fn server(&self, params: CertificateParams) -> ServerConfig {
            let key = KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
            server(vec![certificate.der().clone()], &key)
        }
    }

    fn server(chain: Vec<rustls::pki_types::CertificateDer<'static>>, key: &KeyPair) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        builder.expect("versions").with_no_client_auth().with_single_cert(chain, key).expect("a server")
    }

    fn named(name: &str) -> CertificateParams {
        CertificateParams::new([name.to_owned()]).expect("a name")
    }

    /// Greets a server; gives what the script gets to know of a failure, and what ALPN agreed on.
    async fn greet(
        roots: &RootCertStore,
        server: ServerConfig,
        host: Host<String>,
        protocol: Protocol,
    ) -> Result<Option<Vec<u8>>, &'static str> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            // Whether it succeeds is the client's to say.
            let accepted = TlsAcceptor::from(Arc::new(server)).accept(stream).await;
            if let Ok(mut stream) = accepted {
                let _ = stream.shutdown().await;
            }
        });
        let stream = TcpStream::connect(address).await.expect("a connection");
        let client = Client::trusting(roots.clone());
        let greeted = timeout(PATIENCE, client.greet(&host, protocol, stream)).await.expect("no hang");
        serving.abort();
        greeted.map(|stream| stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
    }

    fn domain(name: &str) -> Host<String> {
        Host::Domain(name.to_owned())
    }

    #[tokio::test]
    async fn a_certificate_must_be_for_the_host_valid_now_and_of_a_known_issuer() {
        let authority = Authority::named("ours");
        let local = Host::Ipv4(Ipv4Addr::LOCALHOST);
        let mut with_address = CertificateParams::default();
        with_address.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
        let mut expired = named("a.example");
        (expired.not_before, expired.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
        let mut not_yet = named("a.example");
        (not_yet.not_before, not_yet.not_after) = (rcgen::date_time_ymd(2199, 1, 1), rcgen::date_time_ymd(2200, 1, 1));
        let other_name = Err("the certificate is for another name");
        for (params, host, expected) in [
            (named("a.example"), domain("a.example"), Ok(())),
            (named("*.example.com"), domain("a.example.com"), Ok(())),
            (with_address.clone(), local.clone(), Ok(())),
            (named("b.example"), domain("a.example"), other_name),
            (named("*.example.com"), domain("example.com"), other_name),
            (named("*.example.com"), domain("a.b.example.com"), other_name),
            (named("127.0.0.1.example"), local.clone(), other_name),
            (with_address, Host::Ipv4(Ipv4Addr::new(127, 0, 0, 2)), other_name),
            (expired, domain("a.example"), Err("the certificate has expired")),
            (not_yet, domain("a.example"), Err("the certificate is not valid yet")),
        ] {
            let names = format!("{:?} for {host}", params.subject_alt_names);
            let greeted = greet(&authority.roots, authority.server(params), host, Protocol::Raw).await;
            assert_eq!(greeted.map(drop), expected, "{names}");
        }
        let strangers = Authority::named("another").server(named("a.example"));
        let greeted = greet(&authority.roots, strangers, domain("a.example"), Protocol::Raw).await;
        assert_eq!(greeted, Err("the certificate's issuer is not known"));
        let key = KeyPair::generate().expect("a key");
        let self_signed = named("a.example").self_signed(&key).expect("a certificate");
        let greeted =
            greet(&authority.roots, server(vec![self_signed.der().clone()], &key), domain("a.example"), Protocol::Raw);
        assert!(greeted.await.is_err());
    }

    #[tokio::test]
    async fn a_chain_of_a_megabyte_is_refused() {
        let (authority, key) = (Authority::named("ours"), KeyPair::generate().expect("a key"));
        let certificate = named("a.example").signed_by(&key, &authority.issuer).expect("a certificate").der().clone();
        let n_certificates = (1 << 20) / certificate.len();
        let server = server(vec![certificate; n_certificates], &key);
        assert!(greet(&authority.roots, server, domain("a.example"), Protocol::Raw).await.is_err());
    }

    #[tokio::test]
    async fn http_is_spoken_in_version_1_1_alone() {
        let authority = Authority::named("ours");
        for (offered, protocol, expected) in [
            (&["h2", "http/1.1"][..], Protocol::Http, Ok(Some(b"http/1.1".to_vec()))),
            (&["h2"], Protocol::Http, Err("the server speaks no HTTP/1.1")),
            (&["h2", "http/1.1"], Protocol::Raw, Ok(None)),
            (&[], Protocol::Http, Ok(None)),
        ] {
            let mut server = authority.server(named("a.example"));
            server.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
            let agreed = greet(&authority.roots, server, domain("a.example"), protocol).await;
            assert_eq!(agreed, expected, "{offered:?} {protocol:?}");
        }
    }

    #[tokio::test]
    async fn a_server_of_tls_1_0_is_refused_and_so_is_one_that_speaks_something_else() {
        // A ServerHello of TLS 1.0: record, handshake, version 3.1, random, no session, one cipher, no compression.
        let mut hello = vec![0x16, 3, 1, 0, 42, 2, 0, 0, 38, 3, 1];
        hello.extend([7; 32]);
        hello.extend([0, 0xc0, 0x13, 0]);
        for (bytes, expected) in [
            (hello, "the server speaks no TLS that is safe"),
            (b"HTTP/1.1 400 x\r\n\r\n".to_vec(), "the TLS handshake failed"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
            let (mut other, _) = listener.accept().await.expect("a client");
            other.write_all(&bytes).await.expect("writes");
            let client = Client::default();
            let host = domain("a.example");
            let greeting = client.greet(&host, Protocol::Raw, stream);
            let failed = timeout(PATIENCE, greeting).await.expect("no hang").err();
            assert_eq!(failed, Some(expected));
        }
    }
}
