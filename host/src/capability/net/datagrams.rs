//! Datagrams to and from one peer.

use std::{net::SocketAddr, time::Duration};

use neoc_abi::{OperationError, net::MAX_DATAGRAM_BYTES};
use tokio::{
    net::UdpSocket,
    sync::{Mutex, Semaphore},
};

use super::{busy, closed, failed, within};
use crate::{
    broker::{self, Traffic},
    capability::connect::Peer,
};

/// A socket for one peer. The kernel sends to nobody else, and drops what others send.
pub struct Datagrams {
    socket: UdpSocket,
    peer: SocketAddr,
    /// Room for one datagram, while a task receives.
    buffer: Mutex<Vec<u8>>,
    closing: Semaphore,
    _slot: broker::Connection,
}

// === impl Datagrams ===

impl Datagrams {
    /// A fresh socket, which holds a slot among the tenant's connections.
    pub fn new(Peer { socket, address }: Peer, slot: broker::Connection) -> Self {
        let (buffer, closing) = (Mutex::new(vec![0; MAX_DATAGRAM_BYTES + 1]), Semaphore::new(0));
        Self { socket, peer: address, buffer, closing, _slot: slot }
    }

    /// Ends whatever is under way, now and later.
    pub fn close(&self) {
        self.closing.close();
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// `closed`, `io`.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), OperationError> {
        // It is connected, so there is no address to name, and none to get wrong.
        tokio::select! {
            biased;
            _ = self.closing.acquire() => Err(closed()),
            sent = self.socket.send(bytes) => sent.map(drop).map_err(|error| failed(&error)),
        }
    }

    /// Receives a datagram. None when the time was up.
    ///
    /// # Errors
    /// `closed`, `busy`, `limit` for the request's bytes, `io`.
    pub async fn receive(
        &self,
        timeout: Option<Duration>,
        traffic: &Traffic,
    ) -> Result<Option<Vec<u8>>, OperationError> {
        let mut buffer = self.buffer.try_lock().map_err(|_| busy("receiving"))?;
        let received = tokio::select! {
            biased;
            _ = self.closing.acquire() => return Err(closed()),
            received = within(timeout, self.receive_from_peer(&mut buffer)) => received,
        };
        let Some(received) = received else { return Ok(None) };
        let n_bytes = received.map_err(|error| failed(&error))?;
        traffic.receive(n_bytes).map_err(|over| over.at("net"))?;
        Ok(Some(buffer[..n_bytes].to_vec()))
    }

    async fn receive_from_peer(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let (n_bytes, from) = self.socket.recv_from(buffer).await?;
            // What came between binding and connecting was not filtered by the kernel.
            if from == self.peer {
                return Ok(n_bytes);
            }
        }
    }
}
