//! One connection to an upstream: an exchange at a time, nothing left running when it is dropped.
//!
//! Nobody polls a connection but whoever uses it, so dropping the use closes the socket at once.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;

use super::head::{Checked, Head};
use crate::capability::connect::Stream;

type Driver = http1::Connection<TokioIo<Checked<Stream>>, Full<Bytes>>;

/// A connection on which nothing is under way, or one exchange.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// None once it has ended.
    driver: Option<Driver>,
    failure: Option<Arc<hyper::Error>>,
    head: Head,
}

/// Why an exchange failed. Shared, because the request's future and the connection may both fail.
pub type Failure = Arc<hyper::Error>;

// === impl Connection ===

impl Connection {
    /// Speaks HTTP/1.1 on a fresh stream.
    ///
    /// # Errors
    /// None in practice: nothing is sent yet.
    pub async fn new(stream: Stream) -> Result<Box<Self>, Failure> {
        let (stream, head) = Checked::new(stream);
        let (sender, driver) =
            http1::Builder::new().max_buf_size(64 * 1024).max_headers(64).handshake(TokioIo::new(stream)).await?;
        Ok(Box::new(Self { sender, driver: Some(driver), failure: None, head }))
    }

    /// Sends a request; gives the head of the answer.
    ///
    /// # Errors
    /// What hyper says.
    pub async fn send(&mut self, request: http::Request<Full<Bytes>>) -> Result<http::Response<Incoming>, Failure> {
        self.head.expect();
        let answer = self.sender.send_request(request);
        let answer = self.drive(answer).await;
        // The connection knows more of why than the request does.
        answer.map_err(|error| self.failure.take().unwrap_or_else(|| Arc::new(error)))
    }

    /// Waits for a future of this connection's, and does the connection's work meanwhile.
    pub async fn drive<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        poll_fn(|context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(value);
            }
            self.poll_driver(context);
            future.as_mut().poll(context)
        })
        .await
    }

    /// Whether it can serve another request. To be asked when an answer was read to its end.
    pub fn is_reusable(&mut self) -> bool {
        !self.has_ended() && self.sender.is_ready()
    }

    /// Whether the other end has closed it, or sent what nobody asked for.
    pub fn has_ended(&mut self) -> bool {
        self.poll_driver(&mut Context::from_waker(Waker::noop()));
        self.driver.is_none()
    }

    fn poll_driver(&mut self, context: &mut Context<'_>) {
        let Some(driver) = &mut self.driver else { return };
        if let Poll::Ready(ended) = Pin::new(driver).poll(context) {
            self.driver = None;
            self.failure = ended.err().map(Arc::new);
        }
    }
}
