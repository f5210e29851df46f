//! An HTTP request as the script gets it: body read within bounds, query decoded.

use std::time::Duration;

use bytes::BytesMut;
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use neoc_abi::{
    event::{Event, Request, Written},
    wire,
};
use serde_bytes::Bytes;

/// Longest pause within a body.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a body was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Over the tenant's limit.
    TooLarge,
    /// The client stalled.
    TooSlow,
    /// The client went away or broke its own framing.
    Broken,
}

/// Reads the whole body, of at most so many bytes.
///
/// # Errors
/// See [`BodyError`].
pub async fn read_body(mut body: Incoming, most_bytes: u64) -> Result<Vec<u8>, BodyError> {
    if body.size_hint().lower() > most_bytes {
        return Err(BodyError::TooLarge);
    }
    let mut content = BytesMut::new();
    while !body.is_end_stream() {
        let frame = tokio::time::timeout(BODY_IDLE_TIMEOUT, body.frame()).await.map_err(|_| BodyError::TooSlow)?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        if u64::try_from(content.len() + data.len()).map_or(true, |bytes| bytes > most_bytes) {
            return Err(BodyError::TooLarge);
        }
        content.extend_from_slice(&data);
    }
    Ok(content.into())
}

/// The request as the script gets it.
///
/// # Errors
/// None in practice: each request has a form in a message.
pub fn event(parts: &Parts, body: &[u8]) -> Result<Written, wire::Error> {
    let query = parts.uri.query().unwrap_or_default();
    let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
    let request = Request {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: query.iter().map(|(name, value)| (&**name, &**value)).collect(),
        headers: parts.headers.iter().map(|(name, value)| (name.as_str(), Bytes::new(value.as_bytes()))).collect(),
        body: Bytes::new(body),
    };
    Event::Request(request).write()
}
