//! The listener: accepts, bounds what a client may hold, drains at the end.

mod generation;
mod inbound;
mod service;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};

pub use generation::{LoadError, Reloaded};
pub use service::Service;

/// Connections that may be open at once.
const MAX_CONNECTIONS: usize = 10_000;

/// Longest wait for a request's headers. A client that sends slower is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for running requests once the host drains.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a failed accept, so that a full table of descriptors does not make it spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Connections that the kernel holds for a busy host.
const BACKLOG: u32 = 1024;

/// An address that is taken and where nobody is heard yet. What is loaded meanwhile knows it.
pub struct Bound {
    socket: TcpSocket,
}

/// A listener, not yet serving.
pub struct Server {
    listener: TcpListener,
    service: Arc<Service>,
}

impl Bound {
    /// Takes an address; port 0 is any that is free.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A host that is started again need not wait for connections of the last one to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { socket })
    }

    /// The address that was really taken.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Listens there.
    ///
    /// # Errors
    /// When another has begun to listen there meanwhile.
    pub fn listen(self, service: Arc<Service>) -> io::Result<Server> {
        Ok(Server { listener: self.socket.listen(BACKLOG)?, service })
    }
}

impl Server {
    /// Serves until `shutdown` comes, then lets running requests finish.
    /// Says whether all of them did.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> bool {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = accept(&self.listener, &connections) => accepted,
            };
            let (stream, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            // Small answers should not wait for the kernel to gather more.
            let _ = stream.set_nodelay(true);
            let service = Arc::clone(&self.service);
            let connection = http1::Builder::new()
                // Without a timer the header timeout does nothing.
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_headers(64)
                .max_buf_size(64 * 1024)
                .half_close(false)
                .serve_connection(
                    TokioIo::new(stream),
                    hyper::service::service_fn(move |request| {
                        service.respond(request).map(Ok::<_, std::convert::Infallible>)
                    }),
                );
            let watched = graceful.watch(connection);
            tokio::spawn(async move {
                // A client that went away or spoke no HTTP is its own affair.
                let _ = watched.await;
                drop(permit);
            });
        }
        drop(self.listener);
        let all_ended = async {
            graceful.shutdown().await;
            self.service.idle().await;
        };
        tokio::time::timeout(DRAIN_TIMEOUT, all_ended).await.is_ok()
    }
}

/// Takes the next connection once there is room for it.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _peer) = listener.accept().await?;
    Ok((stream, permit))
}
