//! TCP, TLS and UDP: what a request has open, by handle, and using it.
//!
//! The table belongs to one request and goes with it, so a handle of another request, or one that was guessed,
//! stands for nothing. An operation that is stopped leaves a connection sound if it was reading, and closes it if it was
//! writing, for then nobody knows what the other end has got.

mod connection;
mod datagrams;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use neoc_abi::{ErrorKind, OperationError, Outcome, Reply as AnyReply, net::Reply};
use parking_lot::Mutex;
use tokio::time::timeout;

use self::{connection::Connection, datagrams::Datagrams};
use super::connect::{ConnectError, Connector, tls::Protocol};
use crate::{
    broker::{
        Broker,
        egress::Destination,
        net::{Action, Open, Permit, Use},
    },
    policy::net::Scheme,
};

/// What one request has open, or one worker of it.
pub struct Sockets {
    /// The last handle, of all tables that share it.
    last: Arc<AtomicU32>,
    open: Mutex<HashMap<u32, Socket>>,
}

#[derive(Clone)]
enum Socket {
    Connection(Arc<Connection>),
    Datagrams(Arc<Datagrams>),
}

/// Opens and uses connections.
pub struct Client {
    broker: Arc<Broker>,
    connector: Arc<Connector>,
}

// === impl Client ===

impl Client {
    /// A client that connects by `connector`.
    pub fn new(broker: Arc<Broker>, connector: Arc<Connector>) -> Self {
        Self { broker, connector }
    }

    /// Opens what `sockets` then holds, or uses what it holds already.
    ///
    /// # Errors
    /// Of kind `io`, `timeout`, `limit`, `busy`, `closed`, `invalid`, or `denied` for an address.
    pub async fn perform(&self, sockets: &Sockets, permit: Permit) -> Result<Reply, OperationError> {
        match permit {
            Permit::Open(open) => {
                let socket = self.open(*open).await?;
                Ok(Reply::Opened { handle: sockets.add(socket) })
            }
            Permit::Use(r#use) => sockets.r#use(r#use).await,
        }
    }

    async fn open(&self, open: Open) -> Result<Socket, OperationError> {
        let destination = open.destination();
        if open.target().scheme == Scheme::Udp {
            let peer = self.connector.bind(&destination, open.within()).await;
            let peer = peer.map_err(|error| self.explain(&open, error))?;
            self.record(&open, &destination);
            return Ok(Socket::Datagrams(Arc::new(Datagrams::new(peer, open.into_connection()))));
        }
        let stream = self.connector.connect(&destination, Protocol::Raw, open.within()).await;
        let stream = stream.map_err(|error| self.explain(&open, error))?;
        self.record(&open, &destination);
        Ok(Socket::Connection(Arc::new(Connection::new(stream, open.into_connection()))))
    }

    fn record(&self, open: &Open, destination: &Destination) {
        if let Some(address) = destination.dialled() {
            self.broker.record_peer(open, address);
        }
    }

    fn explain(&self, open: &Open, error: ConnectError) -> OperationError {
        let target = open.target();
        match error {
            ConnectError::AddressRefused(address) => self.broker.refuse_peer(open, address),
            ConnectError::Failed(kind, what) => OperationError::new(kind, format!("net: {target}: {what}")),
            ConnectError::TimedOut(what) => {
                let within_ms = open.within().as_millis();
                OperationError::timeout(format!("net: {target}: {what} within {within_ms} ms"))
            }
        }
    }
}

// === impl Sockets ===

impl Sockets {
    /// An empty table, with handles that no other one has which shares `last`.
    pub fn numbered_by(last: Arc<AtomicU32>) -> Self {
        Self { last, open: Mutex::default() }
    }

    /// Closes what the permit is for, if that is what it permits: closing takes no time.
    ///
    /// # Errors
    /// The permit, for [`Client::perform`].
    pub fn perform_at_once(&self, permit: Permit) -> Result<Outcome, Permit> {
        match permit {
            Permit::Use(Use { action: Action::Close, handle, .. }) => {
                self.close(handle);
                Ok(Ok(AnyReply::Net(Reply::Done)))
            }
            other => Err(other),
        }
    }

    fn add(&self, socket: Socket) -> u32 {
        // Never given again, so that a handle that was closed never stands for another connection.
        let handle = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.open.lock().insert(handle, socket);
        handle
    }

    /// Closes a socket. Does nothing when there is none.
    fn close(&self, handle: u32) {
        let socket = self.open.lock().remove(&handle);
        match socket {
            Some(Socket::Connection(connection)) => connection.close(),
            Some(Socket::Datagrams(datagrams)) => datagrams.close(),
            None => {}
        }
    }

    async fn r#use(&self, r#use: Use) -> Result<Reply, OperationError> {
        let socket = self.open.lock().get(&r#use.handle).cloned().ok_or_else(closed)?;
        let timeout = r#use.timeout;
        let traffic = r#use.traffic();
        match (socket, &r#use.action) {
            (Socket::Connection(connection), Action::Read(want)) => connection.read(*want, timeout, traffic).await,
            (Socket::Connection(connection), Action::Write(bytes)) => {
                connection.write(bytes, timeout).await.map(|()| Reply::Done)
            }
            (Socket::Connection(connection), Action::Shutdown) => connection.shutdown().await.map(|()| Reply::Done),
            (Socket::Datagrams(datagrams), Action::Send(bytes)) => datagrams.send(bytes).await.map(|()| Reply::Done),
            (Socket::Datagrams(datagrams), Action::Receive) => {
                datagrams.receive(timeout, traffic).await.map(|datagram| Reply::Datagram(datagram.map(Into::into)))
            }
            (_, Action::Close) => {
                self.close(r#use.handle);
                Ok(Reply::Done)
            }
            (Socket::Connection(_), Action::Send(_) | Action::Receive)
            | (Socket::Datagrams(_), Action::Read(_) | Action::Write(_) | Action::Shutdown) => {
                Err(OperationError::invalid("net: the handle is for something else"))
            }
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // An operation that is being stopped may hold one a little longer; it must not go on with it.
        let sockets = std::mem::take(self.open.get_mut());
        for socket in sockets.into_values() {
            match socket {
                Socket::Connection(connection) => connection.close(),
                Socket::Datagrams(datagrams) => datagrams.close(),
            }
        }
    }
}

// === For connections and datagrams ===

/// What was used is closed: by the script, by an error, or it never was there.
fn closed() -> OperationError {
    OperationError::new(ErrorKind::Closed, "net: it is closed")
}

fn busy(what: &str) -> OperationError {
    OperationError::new(ErrorKind::Busy, format!("net: another task is {what}"))
}

fn failed(error: &std::io::Error) -> OperationError {
    OperationError::io(match error.kind() {
        std::io::ErrorKind::ConnectionReset => "net: connection reset",
        std::io::ErrorKind::BrokenPipe => "net: the other end reads no more",
        std::io::ErrorKind::ConnectionRefused => "net: nobody listens there",
        std::io::ErrorKind::UnexpectedEof => "net: the connection ended early",
        std::io::ErrorKind::InvalidData => "net: what came is no TLS",
        _ => "net: the connection failed",
    })
}

/// Waits for `work`, at most so long. None when the time was up.
async fn within<T>(time: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
    match time {
        Some(time) => timeout(time, work).await.ok(),
        None => Some(work.await),
    }
}
