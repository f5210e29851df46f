//! `vnd:hyper`: outbound HTTP.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::secret::Template;

/// What a script asks of HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// One request, followed to its last redirect.
    Request(Request),
}

/// An outbound request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Upper-case method.
    pub method: String,
    /// The URL as the script wrote it. The host parses it once and decides on what it parsed.
    pub url: String,
    /// Names and values as the script gave them; the host checks them.
    pub headers: Vec<(String, ByteBuf)>,
    /// Further headers, whose values have secrets in them.
    pub secret_headers: Vec<(String, Template)>,
    /// The body. Absent is as empty.
    pub body: Option<ByteBuf>,
    /// How long what may take.
    pub timeouts: Timeouts,
    /// Whether the body is asked for compressed, and unpacked by the host.
    pub decompress: bool,
}

/// How long the parts of an exchange may take, in milliseconds. Absent: the host's defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// For resolving the name, connecting, and the TLS handshake. Default: 5 s.
    pub connect_ms: Option<u64>,
    /// From the request to the answer's head. Default: the total if there is one, else 10 s.
    pub first_byte_ms: Option<u64>,
    /// Between two pieces of the body. Default: 15 s.
    pub between_bytes_ms: Option<u64>,
    /// For everything, redirects included. Default: what is left of the script's own time.
    pub total_ms: Option<u64>,
}

/// A reply to [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Request`]. Any status is a reply, not an error.
    Response(Response),
}

/// An upstream's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// Lower-case names, in order. Values are bytes.
    pub headers: Vec<(String, ByteBuf)>,
    /// The whole body.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}
