//! Permits for `vnd:hyper`: for a request, and for each redirect.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use neoc_abi::{
    ErrorKind, OperationError,
    http::Operation,
    secret::{MAX_PIECES, Piece, Template},
};
use serde_bytes::ByteBuf;
use url::Url;

use super::{Basis, Broker, Caller, Connections, Decided, Refused, Traffic, egress::Destination, subject::Subject};
use crate::{
    limits::{Exceeded, Owner},
    policy::{
        http::{self as policy, parse_redirect, parse_target},
        module::Asked,
        secret, shown_bytes,
    },
};

/// Most headers that a script may send.
const MAX_HEADERS: usize = 64;

/// Longest wait for a connection, resolving and TLS included, unless the script says otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for the head of an answer, unless the script says otherwise.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest pause within a body, unless the script says otherwise.
const BETWEEN_BYTES_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest time that a script can ask for. No request lives as long.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Headers that decide where a message ends or who sent it. They are the host's alone.
const HOST_HEADERS: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// Leave to send one request to one origin.
pub struct Permit {
    caller: Arc<Caller>,
    rules: policy::HttpMatch,
    url: Url,
    request: Request,
}

/// The checked parts of a request, apart from its URL.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Headers that a script may set.
    pub headers: HeaderMap,
    /// Headers whose values have secrets in them, by the secrets' names. Each may go to this request's origin.
    pub secret_headers: Vec<(HeaderName, Template)>,
    /// The body.
    pub body: Option<bytes::Bytes>,
    /// How long what may take.
    pub timeouts: Timeouts,
    /// Whether the body is asked for compressed, and unpacked.
    pub decompress: bool,
}

/// How long each part of an exchange may take, redirects included in the total alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For resolving, connecting and the TLS handshake.
    pub connect: Duration,
    /// From the request to the answer's head.
    pub first_byte: Duration,
    /// Between two pieces of the body.
    pub between_bytes: Duration,
    /// For everything. Absent: what is left of the script's own time.
    pub total: Option<Duration>,
}

impl Permit {
    /// Where to.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// What to send.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Where it connects. None for a URL without a host, which no rule allows.
    pub fn destination(&self) -> Option<Destination> {
        Destination::of_url(&self.caller, &self.url, &self.rules)
    }

    /// The tenant's slots for outbound connections.
    pub fn connections(&self) -> Connections {
        self.caller.principal.account.connections()
    }

    /// Where the bytes that it sends and receives are counted.
    pub fn traffic(&self) -> &Traffic {
        &self.caller.counts.traffic
    }

    /// Longest body of its response, when it is unpacked, in bytes.
    pub fn response_body_bytes(&self) -> u64 {
        self.caller.principal.tenant.limits.response_body_bytes
    }
}

// === impl Request ===

impl Request {
    /// Removes what only the first origin may see. For a redirect that leaves it.
    fn drop_credentials(&mut self) {
        for name in [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION] {
            self.headers.remove(name);
        }
        self.secret_headers.clear();
    }

    /// The secrets in it, by name, each once.
    fn secrets(&self) -> BTreeSet<&str> {
        self.secret_headers.iter().flat_map(|(_, template)| template.secrets()).collect()
    }
}

// === impl Timeouts ===

impl From<neoc_abi::http::Timeouts> for Timeouts {
    fn from(asked: neoc_abi::http::Timeouts) -> Self {
        let neoc_abi::http::Timeouts { connect_ms, first_byte_ms, between_bytes_ms, total_ms } = asked;
        let [connect, first_byte, between_bytes, total] = [connect_ms, first_byte_ms, between_bytes_ms, total_ms]
            .map(|ms| ms.map(|ms| Duration::from_millis(ms).min(MAX_TIMEOUT)));
        Self {
            connect: connect.unwrap_or(CONNECT_TIMEOUT),
            // Who gives an exchange 30 s means to wait so long for its first byte.
            first_byte: first_byte.or(total).unwrap_or(FIRST_BYTE_TIMEOUT),
            between_bytes: between_bytes.unwrap_or(BETWEEN_BYTES_TIMEOUT),
            total,
        }
    }
}

/// Decides: the URL's form, headers, the rules, secrets and body, then the counts of outbound requests and bytes.
pub(super) fn authorize(caller: &Arc<Caller>, operation: Operation) -> Decided<Permit> {
    let Operation::Request(request) = operation;
    let neoc_abi::http::Request { method, url, headers, secret_headers, body, timeouts, decompress } = request;
    let method = Method::from_bytes(method.as_bytes())
        .ok()
        .filter(|method| method != Method::CONNECT)
        .ok_or_else(|| Refused::Invalid(OperationError::invalid(format!("hyper: no such method: {method:?}"))))?;
    let url = parse_target(&url).map_err(|error| caller.refuse_target("hyper", error))?;
    if headers.len() + secret_headers.len() > MAX_HEADERS {
        let got = headers.len() + secret_headers.len();
        return Err(invalid(format!("hyper: at most {MAX_HEADERS} headers, got {got}")));
    }
    let headers = checked_headers(headers)?;
    let secret_headers = checked_secret_headers(secret_headers)?;
    let body = body.map(|body| bytes::Bytes::from(body.into_vec()));
    let timeouts = Timeouts::from(timeouts);
    decide(caller, Request { method, headers, secret_headers, body, timeouts, decompress }, url)
}

/// The decision that a first request and a redirect share.
fn decide(caller: &Arc<Caller>, request: Request, url: Url) -> Decided<Permit> {
    let rules = &caller.principal.tenant.allow.http;
    let (matched, decided) = match policy::decide(rules, &caller.principal.machine, request.method.as_str(), &url) {
        Ok(matched) => {
            let place = policy::place(rules, &caller.principal.machine, &matched, &url);
            (matched, Ok(place))
        }
        Err(refusal) => (policy::HttpMatch::none(), Err(refusal)),
    };
    let basis = caller.basis_of(decided, Asked::Http(request.method.as_str(), &url))?;
    let rules = matched;
    check_secrets(caller, &request, &url)?;
    check_body(caller, &request)?;
    caller.counts.take_subrequest(wire_bytes(&request, &url)).map_err(Refused::OverLimit)?;
    Ok((Permit { caller: Arc::clone(caller), rules, url, request }, basis))
}

/// Whether each secret may go there. No report mode lets one go elsewhere.
fn check_secrets(caller: &Caller, request: &Request, url: &Url) -> Result<(), Refused> {
    for name in request.secrets() {
        secret::decide(&caller.principal.tenant.secrets, name, url).map_err(|refusal| caller.refuse(refusal))?;
        caller.check_module(Asked::Secret(name, url))?;
    }
    Ok(())
}

fn check_body(caller: &Caller, request: &Request) -> Result<(), Refused> {
    let bytes = request.body.as_ref().map_or(0, bytes::Bytes::len);
    let most = caller.principal.tenant.limits.request_body_bytes;
    if u64::try_from(bytes).is_ok_and(|bytes| bytes <= most) {
        return Ok(());
    }
    Err(Refused::OverLimit(Exceeded::new(Owner::Request, "request_body", shown_bytes(most))))
}

/// What a request takes on the wire: its method and URL, its headers with their separators, its body. A secret
/// counts as its name does: a script that could see how much of a limit it used up would learn its length.
fn wire_bytes(request: &Request, url: &Url) -> usize {
    let Request { method, headers, secret_headers, body, timeouts: _, decompress: _ } = request;
    let line = method.as_str().len() + url.as_str().len();
    let secret: usize =
        secret_headers.iter().map(|(name, template)| name.as_str().len() + template.named_bytes()).sum();
    line + headers_bytes(headers) + secret + body.as_ref().map_or(0, bytes::Bytes::len)
}

/// What headers take on the wire.
pub fn headers_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}

impl Broker {
    /// Decides about a redirect as about a request of its own.
    ///
    /// # Errors
    /// As [`Broker::authorize`].
    pub fn authorize_redirect(
        &self,
        from: &Permit,
        mut request: Request,
        location: &str,
    ) -> Result<Permit, OperationError> {
        let caller = &from.caller;
        let method = request.method.clone();
        let url = parse_redirect(&from.url, location).map_err(|error| caller.refuse_target("hyper", error));
        let subject = match &url {
            Ok(url) => Subject::request(method.as_str(), url, None),
            Err(_) => Subject::redirect(method.as_str(), location),
        };
        if url.as_ref().is_ok_and(|url| url.origin() != from.url.origin()) {
            request.drop_credentials();
        }
        let taken = caller.principal.account.take_operation().map_err(Refused::OverLimit);
        let decided = taken.and(url).and_then(|url| decide(caller, request, url));
        let permit = self.audit(caller, &subject, decided)?;
        self.record_secrets(&permit);
        Ok(permit)
    }

    /// Records each secret that a request takes along.
    pub(super) fn record_secrets(&self, permit: &Permit) {
        let Permit { caller, url, request, .. } = permit;
        for name in request.secrets() {
            let rule = caller.principal.tenant.secrets.get(name).map(|secret| secret.place.clone());
            // Each was decided on with the request.
            let _ = self.audit(caller, &Subject::secret(name, url), Ok(((), Basis { rule, reported: None })));
        }
    }

    /// Records that a request could not be sent, because [`Destination::permit`] refused its address. Gives what the script gets.
    pub fn refuse_address(&self, permit: &Permit, address: IpAddr) -> OperationError {
        let Permit { caller, url, request, .. } = permit;
        let decided = judge_address(permit, address);
        let subject = Subject::request(request.method.as_str(), url, Some(address));
        match self.audit(caller, &subject, decided) {
            Err(error) => error,
            // Only when the policy were to contradict itself; then nothing was sent either.
            Ok(()) => OperationError::io(format!("hyper: {url}: the connection failed")),
        }
    }

    /// Records the address that a request was connected to. It was permitted before it was dialled.
    pub fn record_address(&self, permit: &Permit, address: IpAddr) {
        let subject = Subject::request(permit.request.method.as_str(), &permit.url, Some(address));
        let _ = self.audit(&permit.caller, &subject, judge_address(permit, address));
    }
}

fn judge_address(permit: &Permit, address: IpAddr) -> Decided<()> {
    let Permit { caller, rules: matched, url, request } = permit;
    let rules = &caller.principal.tenant.allow.http;
    let machine = &caller.principal.machine;
    let decided = policy::check_address(rules, machine, matched, request.method.as_str(), url, address);
    let basis = caller.basis(decided.map(|()| policy::place_at(rules, machine, matched, url, &[address])))?;
    Ok(((), basis))
}

fn checked_headers(headers: Vec<(String, ByteBuf)>) -> Result<HeaderMap, Refused> {
    let mut checked = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let parsed = header_name(&name)?;
        let value = HeaderValue::from_maybe_shared(bytes::Bytes::from(value.into_vec()));
        let value = value.map_err(|_| control_character(&parsed))?;
        checked.append(parsed, value);
    }
    Ok(checked)
}

fn checked_secret_headers(headers: Vec<(String, Template)>) -> Result<Vec<(HeaderName, Template)>, Refused> {
    let check = |(name, template): (String, Template)| {
        let name = header_name(&name)?;
        if template.pieces.len() > MAX_PIECES {
            return Err(invalid(format!("hyper: the value of the header {name} has more than {MAX_PIECES} pieces")));
        }
        let is_plain = |piece: &Piece| match piece {
            Piece::Text(text) => HeaderValue::from_bytes(text).is_ok(),
            Piece::Secret(_) => true,
            Piece::Basic { user, .. } => !user.contains(':') && !user.chars().any(char::is_control),
        };
        if !template.pieces.iter().all(is_plain) {
            return Err(control_character(&name));
        }
        Ok((name, template))
    };
    headers.into_iter().map(check).collect()
}

fn header_name(name: &str) -> Result<HeaderName, Refused> {
    let parsed =
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid(format!("hyper: not a header name: {name:?}")))?;
    if HOST_HEADERS.contains(&parsed.as_str()) || parsed.as_str().starts_with("x-forwarded-") {
        let message = format!("hyper: the header {parsed} is set by the host alone");
        return Err(Refused::Invalid(OperationError::new(ErrorKind::Denied, message)));
    }
    Ok(parsed)
}

fn control_character(name: &HeaderName) -> Refused {
    invalid(format!("hyper: the value of the header {name} has a control character"))
}

fn invalid(message: String) -> Refused {
    Refused::Invalid(OperationError::invalid(message))
}
