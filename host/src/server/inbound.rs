//! An HTTP request as the script gets it: body read within bounds, query decoded.

use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, request::Parts};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use neoc_abi::event::Request;

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
pub fn request(parts: &Parts, body: Vec<u8>) -> Request {
    let query = parts.uri.query().unwrap_or_default();
    Request {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        headers: headers(&parts.headers),
        body,
    }
}

fn headers(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}
