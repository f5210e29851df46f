//! Outbound HTTP: one connector for every byte, and each redirect a request of its own.
//!
//! Nothing from the environment counts: no proxy variables, no cookie store, no `Alt-Svc`.

mod body;
mod connection;
mod head;
mod pool;

use std::{error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use neoc_abi::{
    OperationError,
    http::{Reply, Response},
};
use serde_bytes::ByteBuf;
use tokio::time::{Instant, timeout, timeout_at};
use url::{Position, Url};

use self::{
    body::{BodyError, BodyReader},
    connection::Connection,
    pool::Pool,
};
use super::{
    connect::{ConnectError, Connector, tls::Protocol},
    per_tenant::PerTenant,
    secret::Secrets,
};
use crate::broker::{
    self, Broker,
    egress::Destination,
    http::{Permit, Request, headers_bytes},
};

/// Most redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Sends the requests of all tenants.
pub struct Client {
    broker: Arc<Broker>,
    connector: Arc<Connector>,
    pools: PerTenant<Pool>,
    secrets: Secrets,
}

impl Client {
    /// A client that asks `broker` about each redirect, connects by `connector`, and puts in these secrets.
    pub fn new(broker: Arc<Broker>, connector: Arc<Connector>, secrets: Secrets) -> Self {
        Self { broker, connector, pools: PerTenant::default(), secrets }
    }

    /// Sends a request and follows it to its last redirect.
    ///
    /// # Errors
    /// Of kind `io`, `timeout`, `limit`, or `denied` for an address or a redirect.
    pub async fn perform(&self, permit: Box<Permit>) -> Result<Reply, OperationError> {
        let timeouts = permit.request().timeouts;
        let deadline = Instant::now() + timeouts.first_byte;
        let Some(total) = timeouts.total else {
            return self.follow(permit, deadline).await.map(Reply::Response);
        };
        let url = permit.url().clone();
        // Who is still in line at the deadline hears of the line: what is within is asked first.
        match timeout(total, self.follow(permit, deadline)).await {
            Ok(result) => result.map(Reply::Response),
            Err(_) => Err(timed_out(&url, "total", "it was not done", total)),
        }
    }

    async fn follow(&self, mut permit: Box<Permit>, line_until: Instant) -> Result<Response, OperationError> {
        for _ in 0..=MAX_REDIRECTS {
            // Held until the body is read: it stands for the connection.
            let _slot = slot(&permit, line_until).await?;
            let response = match self.exchange(&permit).await? {
                Answer::Whole(response) => return Ok(response),
                Answer::Redirect(redirect) => redirect,
            };
            let next = next_request(permit.request().clone(), response.status);
            *permit = self.broker.authorize_redirect(&permit, next, &response.location)?;
        }
        Err(OperationError::io(format!("hyper: {}: more than {MAX_REDIRECTS} redirects", permit.url())))
    }

    /// Sends one request and reads its answer, but not the body of a redirect.
    async fn exchange(&self, permit: &Permit) -> Result<Answer, OperationError> {
        let url = permit.url();
        let (mut wire, timeouts) = (build(url, permit.request())?, permit.request().timeouts);
        let destination = permit.destination().ok_or_else(|| cannot_be_requested(url))?;
        // Anew for each hop: what goes to another origin has none left.
        self.secrets.put_into(wire.headers_mut(), &destination.tenant().name, &permit.request().secret_headers)?;
        let pool = self.pools.of(destination.tenant(), Pool::default);
        let mut connection = match pool.take(destination.endpoint()) {
            Some(connection) => connection,
            // Boxed: it has the longest way of all, and few go it.
            None => Box::pin(self.connect(permit, &destination, timeouts.connect)).await?,
        };
        let response = match timeout(timeouts.first_byte, connection.send(wire)).await {
            Ok(answer) => answer.map_err(|error| explain(url, &*error))?,
            Err(_) => return Err(timed_out(url, "first_byte", "no answer came", timeouts.first_byte)),
        };
        permit.traffic().receive(headers_bytes(response.headers())).map_err(|over| over.at("hyper"))?;
        if let Some(location) = redirect_target(&response) {
            // Its body is nobody's business; unread, it ends the connection.
            let (status, has_body) = (response.status(), !response.body().is_end_stream());
            drop(response);
            if !has_body {
                keep(&pool, permit, &destination, connection);
            }
            return Ok(Answer::Redirect(Redirect { status, location }));
        }
        let response = read(response, &mut connection, permit).await?;
        keep(&pool, permit, &destination, connection);
        Ok(Answer::Whole(response))
    }

    async fn connect(
        &self,
        permit: &Permit,
        destination: &Destination,
        within: Duration,
    ) -> Result<Box<Connection>, OperationError> {
        let url = permit.url();
        let stream = self.connector.connect(destination, Protocol::Http, within).await;
        let stream = stream.map_err(|error| match error {
            ConnectError::AddressRefused(address) => self.broker.refuse_address(permit, address),
            ConnectError::Failed(kind, what) => OperationError::new(kind, format!("hyper: {url}: {what}")),
            ConnectError::TimedOut(what) => timed_out(url, "connect", what, within),
        })?;
        if let Some(address) = destination.dialled() {
            self.broker.record_address(permit, address);
        }
        Connection::new(stream).await.map_err(|error| explain(url, &*error))
    }
}

/// Keeps a connection for the next request, if nothing is left unread on it and neither side wants to end it.
fn keep(pool: &Pool, permit: &Permit, destination: &Destination, mut connection: Box<Connection>) {
    if connection.is_reusable() {
        pool.put(destination.endpoint().clone(), connection, permit.connections().most());
    }
}

/// A slot for a connection, if there is one in time.
async fn slot(permit: &Permit, line_until: Instant) -> Result<broker::Connection, OperationError> {
    let connections = permit.connections();
    match timeout_at(line_until, connections.take()).await {
        Ok(taken) => taken,
        Err(_) => Err(connections.exceeded().at("hyper")),
    }
}

/// What an exchange brought.
enum Answer {
    Whole(Response),
    Redirect(Redirect),
}

struct Redirect {
    status: StatusCode,
    location: String,
}

/// The wire form of a request. Its framing comes from the body alone.
fn build(url: &Url, request: &Request) -> Result<http::Request<Full<Bytes>>, OperationError> {
    let Request { method, headers, secret_headers: _, body, timeouts: _, decompress } = request;
    let mut wire = http::Request::new(Full::new(body.clone().unwrap_or_default()));
    *wire.method_mut() = method.clone();
    *wire.uri_mut() = url[Position::BeforePath..Position::AfterQuery].parse().map_err(|_| cannot_be_requested(url))?;
    *wire.headers_mut() = headers.clone();
    let host = &url[Position::BeforeHost..Position::AfterPort];
    let host = HeaderValue::from_str(host).map_err(|_| cannot_be_requested(url))?;
    wire.headers_mut().insert(header::HOST, host);
    wire.headers_mut().entry(header::USER_AGENT).or_insert(HeaderValue::from_static("neoc"));
    let encoding = HeaderValue::from_static(if *decompress { "gzip" } else { "identity" });
    wire.headers_mut().entry(header::ACCEPT_ENCODING).or_insert(encoding);
    // hyper leaves it out; a server may wait for a body that these methods have by their meaning (RFC 9110, 8.6).
    let expects_body = [Method::POST, Method::PUT, Method::PATCH].contains(method);
    if expects_body && body.as_ref().is_none_or(Bytes::is_empty) {
        wire.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    Ok(wire)
}

fn cannot_be_requested(url: &Url) -> OperationError {
    OperationError::invalid(format!("hyper: {url}: not a URL that can be requested"))
}

/// Where a response sends the client, if it does.
fn redirect_target<B>(response: &http::Response<B>) -> Option<String> {
    let redirects = matches!(
        response.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let location = response.headers().get(header::LOCATION)?;
    // Of what is not text nothing is taken for a host: it is refused as any other spelling.
    redirects.then(|| String::from_utf8_lossy(location.as_bytes()).into_owned())
}

/// What to send after a redirect: 303 is always a GET, 301 and 302 turn a POST into one, as browsers do.
fn next_request(mut request: Request, status: StatusCode) -> Request {
    let turns_into_get = match status {
        StatusCode::SEE_OTHER => request.method != Method::HEAD,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => request.method == Method::POST,
        _ => false,
    };
    if turns_into_get {
        request.method = Method::GET;
        request.body = None;
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE] {
            request.headers.remove(name);
        }
    }
    request
}

async fn read(
    response: http::Response<Incoming>,
    connection: &mut Connection,
    permit: &Permit,
) -> Result<Response, OperationError> {
    let (url, request, most) = (permit.url(), permit.request(), permit.response_body_bytes());
    let failed = |error: BodyError| error.into_error(&format!("hyper: {url}"), most);
    let (parts, mut body) = response.into_parts();
    let (status, mut headers) = (parts.status.as_u16(), parts.headers);
    if body.size_hint().lower() > most {
        return Err(failed(BodyError::TooLarge));
    }
    let mut content = BodyReader::new(&mut headers, request.decompress, most).map_err(failed)?;
    // While hyper's headers are there, it cannot use the buffer that they lie in for what comes next.
    let in_order = in_order(&headers);
    drop(headers);
    let between = request.timeouts.between_bytes;
    loop {
        let frame = timeout(between, connection.drive(body.frame()))
            .await
            .map_err(|_| timed_out(url, "between_bytes", "the body stalled and nothing came", between))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| explain(url, &error))?;
        let Ok(data) = frame.into_data() else { continue };
        permit.traffic().receive(data.len()).map_err(|over| over.at("hyper"))?;
        content.push(&data).map_err(failed)?;
    }
    let body = content.finish().map_err(failed)?;
    Ok(Response { status, headers: in_order, body })
}

fn in_order(headers: &HeaderMap) -> Vec<(String, ByteBuf)> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), ByteBuf::from(value.as_bytes()))).collect()
}

/// The error of the timeout with this name.
fn timed_out(url: &Url, name: &str, what: &str, after: Duration) -> OperationError {
    let message = format!("hyper: {url}: {what} within {} ms (timeout: {name})", after.as_millis());
    OperationError { limit: Some(name.to_owned()), ..OperationError::timeout(message) }
}

/// The errors behind an error, itself first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// What a script may know of a failure: the URL it asked for and the class, no address.
fn explain(url: &Url, error: &(dyn Error + 'static)) -> OperationError {
    let text = causes(error).find_map(|error| {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_parse() {
                return Some("the answer is not valid HTTP");
            } else if error.is_incomplete_message() {
                return Some("the connection ended early");
            }
        }
        match error.downcast_ref::<std::io::Error>()?.kind() {
            std::io::ErrorKind::ConnectionReset => Some("connection reset"),
            std::io::ErrorKind::UnexpectedEof => Some("the connection ended early"),
            // What our own look at the head, or TLS, did not like.
            std::io::ErrorKind::InvalidData => Some("the answer is not valid HTTP"),
            _ => None,
        }
    });
    OperationError::io(format!("hyper: {url}: {}", text.unwrap_or("the request failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method) -> Request {
        let body = Some(Bytes::from_static(b"x"));
        Request {
            method,
            headers: HeaderMap::new(),
            secret_headers: Vec::new(),
            body,
            timeouts: neoc_abi::http::Timeouts::default().into(),
            decompress: false,
        }
    }

    #[test]
    fn a_redirect_changes_the_method_only_where_browsers_do() {
        for (status, method, expected) in [
            (301, Method::POST, Method::GET),
            (302, Method::PUT, Method::PUT),
            (303, Method::PUT, Method::GET),
            (303, Method::HEAD, Method::HEAD),
            (307, Method::POST, Method::POST),
            (308, Method::POST, Method::POST),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(next_request(request(method.clone()), status).method, expected, "{status} {method}");
        }
    }

    #[test]
    fn a_request_that_became_a_get_has_no_body() {
        assert_eq!(next_request(request(Method::POST), StatusCode::SEE_OTHER).body, None);
    }
}
