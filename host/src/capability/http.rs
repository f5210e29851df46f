//! Outbound HTTP: one connector for every byte, and each redirect a request of its own.
//!
//! Nothing from the environment counts: no proxy variables, no cookie store, no `Alt-Svc`.

mod connector;

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_util::{
    client::legacy::{self, Client as PooledClient},
    rt::{TokioExecutor, TokioTimer},
};
use neoc_abi::{
    OperationError,
    http::{Reply, Response},
};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use self::connector::{ConnectError, Connector};
use crate::{
    broker::{
        Broker, Connection,
        http::{Permit, Reach, Request, headers_bytes},
    },
    limits::{Exceeded, Owner},
    policy::shown_bytes,
};

/// Most redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Longest wait for an upstream's headers, connecting included, when the script names no timeout.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time that a script can ask for. No request lives as long.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest pause within a body.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest time that an idle connection is kept for the next request.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

type Pool = PooledClient<Connector, Full<Bytes>>;

/// The connection pools of all tenants.
pub struct Client {
    broker: Arc<Broker>,
    /// One pool per tenant and set of rules: an idle connection was judged by those rules alone.
    /// Both come from the policy, so the map is bounded.
    pools: Mutex<HashMap<Reach, Pool>>,
}

impl Client {
    /// A client that asks `broker` about each address and each redirect.
    pub fn new(broker: Arc<Broker>) -> Self {
        Self { broker, pools: Mutex::default() }
    }

    /// Sends a request and follows it to its last redirect.
    ///
    /// # Errors
    /// Of kind `io`, `timeout`, `limit`, or `denied` for an address or a redirect.
    pub async fn perform(&self, permit: Permit) -> Result<Reply, OperationError> {
        let Some(timeout_ms) = permit.request().timeout_ms else {
            let line_until = Instant::now() + HEADER_TIMEOUT;
            return self.follow(permit, HEADER_TIMEOUT, line_until).await.map(Reply::Response);
        };
        let (total, url) = (Duration::from_millis(timeout_ms).min(MAX_TIMEOUT), permit.url().clone());
        let deadline = Instant::now() + total;
        // Who is still in line at the deadline hears of the line: what is within is asked first.
        match timeout_at(deadline, self.follow(permit, total, deadline)).await {
            Ok(result) => result.map(Reply::Response),
            Err(_) => Err(timed_out(&url, "it was not done", total)),
        }
    }

    async fn follow(
        &self,
        mut permit: Permit,
        header_timeout: Duration,
        line_until: Instant,
    ) -> Result<Response, OperationError> {
        for _ in 0..=MAX_REDIRECTS {
            // Held until the body is read: it stands for the connection.
            let _connection = connection(&permit, line_until).await?;
            let response = self.send(&permit, header_timeout).await?;
            permit.traffic().receive(headers_bytes(response.headers())).map_err(|over| over.at("hyper"))?;
            let Some(location) = redirect_target(&response) else {
                return read(response, &permit).await;
            };
            let next = next_request(permit.request().clone(), response.status());
            let from = permit.url().origin();
            let mut redirected = self.broker.authorize_redirect(&permit, next, &location)?;
            if redirected.url().origin() != from {
                redirected.drop_credentials();
            }
            permit = redirected;
        }
        Err(OperationError::io(format!("hyper: {}: more than {MAX_REDIRECTS} redirects", permit.url())))
    }

    async fn send(
        &self,
        permit: &Permit,
        header_timeout: Duration,
    ) -> Result<http::Response<Incoming>, OperationError> {
        let url = permit.url();
        let request = build(url, permit.request())?;
        let pool = self.pool(permit);
        match timeout(header_timeout, pool.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(match connect_error(&error) {
                Some(ConnectError::AddressRefused(address)) => self.broker.refuse_address(permit, *address),
                Some(ConnectError::Failed(error)) => error.clone(),
                None => explain(url, &error),
            }),
            Err(_) => Err(timed_out(url, "no answer came", header_timeout)),
        }
    }

    fn pool(&self, permit: &Permit) -> Pool {
        let mut pools = self.pools.lock();
        let pool = pools.entry(permit.reach()).or_insert_with(|| {
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE_TIMEOUT)
                .pool_max_idle_per_host(8)
                // A request that may have reached the upstream is the script's to repeat.
                .retry_canceled_requests(false)
                .http1_max_buf_size(64 * 1024)
                .http1_max_headers(64)
                .build(connector::new(permit.reach()))
        });
        pool.clone()
    }
}

/// A slot for a connection, if there is one in time.
async fn connection(permit: &Permit, line_until: Instant) -> Result<Connection, OperationError> {
    let connections = permit.connections();
    match timeout_at(line_until, connections.take()).await {
        Ok(taken) => taken,
        Err(_) => Err(connections.exceeded().at("hyper")),
    }
}

/// The wire form of a request. Its framing is hyper's, from the body alone.
fn build(url: &Url, request: &Request) -> Result<http::Request<Full<Bytes>>, OperationError> {
    let Request { method, headers, body, timeout_ms: _ } = request;
    let invalid = |_| OperationError::invalid(format!("hyper: {url}: not a URL that can be requested"));
    let uri = Uri::try_from(&url[..url::Position::AfterQuery]).map_err(invalid)?;
    let mut wire = http::Request::new(Full::new(body.clone().unwrap_or_default()));
    *wire.method_mut() = method.clone();
    *wire.uri_mut() = uri;
    *wire.headers_mut() = headers.clone();
    wire.headers_mut().entry(header::USER_AGENT).or_insert(HeaderValue::from_static("neoc"));
    Ok(wire)
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
    // A location that is not text leads nowhere; the script gets the response as it is.
    redirects.then(|| location.to_str().ok().map(str::to_owned))?
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

async fn read(response: http::Response<Incoming>, permit: &Permit) -> Result<Response, OperationError> {
    let (url, most) = (permit.url(), permit.response_body_bytes());
    let (parts, mut body) = response.into_parts();
    if body.size_hint().lower() > most {
        return Err(too_large(url, most));
    }
    let mut content = BytesMut::new();
    loop {
        let frame = timeout_at(Instant::now() + BODY_IDLE_TIMEOUT, body.frame())
            .await
            .map_err(|_| timed_out(url, "the body stalled", BODY_IDLE_TIMEOUT))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| explain(url, &error))?;
        let Ok(data) = frame.into_data() else { continue };
        permit.traffic().receive(data.len()).map_err(|over| over.at("hyper"))?;
        if u64::try_from(content.len() + data.len()).map_or(true, |bytes| bytes > most) {
            return Err(too_large(url, most));
        }
        content.extend_from_slice(&data);
    }
    Ok(Response { status: parts.status.as_u16(), headers: in_order(&parts.headers), body: content.into() })
}

fn in_order(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}

fn too_large(url: &Url, most_bytes: u64) -> OperationError {
    let exceeded = Exceeded::new(Owner::Request, "response_body", shown_bytes(most_bytes));
    exceeded.at(&format!("hyper: {url}"))
}

fn timed_out(url: &Url, what: &str, after: Duration) -> OperationError {
    OperationError::timeout(format!("hyper: {url}: {what} within {} ms", after.as_millis()))
}

/// The errors behind an error, itself first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// Our connector's own error, if that is what failed.
fn connect_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a ConnectError> {
    causes(error).find_map(|error| error.downcast_ref())
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
            std::io::ErrorKind::InvalidData => Some("the TLS handshake failed"),
            _ => None,
        }
    });
    OperationError::io(format!("hyper: {url}: {}", text.unwrap_or("the request failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method) -> Request {
        Request { method, headers: HeaderMap::new(), body: Some(Bytes::from_static(b"x")), timeout_ms: None }
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
