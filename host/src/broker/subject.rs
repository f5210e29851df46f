//! What an operation is about, for its record.

use std::{borrow::Cow, net::IpAddr};

use neoc_abi::{Operation, detach, fs, http, kv, narrowing, net, time, workers};
use url::Url;

use crate::policy::{self, Refusal};

/// What a decision is about.
#[derive(Debug, Clone)]
pub(super) struct Subject<'a> {
    /// Such as `http`.
    pub capability: &'static str,
    /// Such as `GET` or `read`.
    pub operation: Cow<'a, str>,
    /// What it aims at. Holds no query, no user and no password.
    pub target: String,
    /// The address that is judged.
    pub address: Option<IpAddr>,
}

impl<'a> Subject<'a> {
    /// Of an operation, whose arguments are not judged yet and may be anything.
    pub fn of(operation: &Operation) -> Self {
        let (capability, operation, target): (_, Cow<'_, str>, _) = match operation {
            Operation::Http(http::Operation::Request(request)) => {
                (policy::http::CAPABILITY, request.method.clone().into(), without_secrets(&request.url))
            }
            Operation::Fs(operation) => {
                (policy::fs::CAPABILITY, fs_name(operation).into(), operation.path().to_owned())
            }
            Operation::Kv(operation) => {
                let key = String::from_utf8_lossy(operation.key()).into_owned();
                (policy::kv::CAPABILITY, kv_name(operation).into(), key)
            }
            Operation::Time(time::Operation::Wait { seconds }) => ("time", "wait".into(), seconds.to_string()),
            Operation::Detach(detach::Operation::Begin) => (policy::detach::CAPABILITY, "begin".into(), String::new()),
            Operation::Module(operation) => {
                ("module", "find".into(), operation.paths().first().cloned().unwrap_or_default())
            }
            Operation::Narrow(narrowing::Operation::Check { module, narrowing: _ }) => {
                ("module", "narrow".into(), module.clone())
            }
            Operation::Net(operation) => {
                let (name, target) = net_parts(operation);
                (policy::net::CAPABILITY, name.into(), target)
            }
            Operation::Workers(workers::Operation::Run(work)) => {
                (policy::workers::CAPABILITY, "run".into(), work.module.clone())
            }
        };
        Self { capability, operation, target, address: None }
    }

    /// Of a request to a URL that is parsed.
    pub fn request(method: &'a str, url: &Url, address: Option<IpAddr>) -> Self {
        let target = format!("{}{}", url.origin().ascii_serialization(), url.path());
        Self { capability: policy::http::CAPABILITY, operation: method.into(), target, address }
    }

    /// Of a secret that goes to an origin with a request.
    pub fn secret(name: &'a str, url: &Url) -> Self {
        let target = url.origin().ascii_serialization();
        Self { capability: policy::secret::CAPABILITY, operation: name.into(), target, address: None }
    }

    /// Of a refusal, if it is a secret's.
    pub fn of_secret(refusal: &'a Refusal) -> Option<Self> {
        let Refusal { capability: policy::secret::CAPABILITY, target, .. } = refusal else { return None };
        let (name, origin) = target.split_once(' ')?;
        let (operation, target) = (name.into(), origin.to_owned());
        Some(Self { capability: policy::secret::CAPABILITY, operation, target, address: None })
    }

    /// Of a connection whose target is parsed.
    pub fn connection(target: &policy::net::Target, address: Option<IpAddr>) -> Self {
        Self { capability: policy::net::CAPABILITY, operation: "open".into(), target: target.to_string(), address }
    }

    /// Of a redirect that cannot be parsed.
    pub fn redirect(method: &'a str, location: &str) -> Self {
        let target = without_secrets(location);
        Self { capability: policy::http::CAPABILITY, operation: method.into(), target, address: None }
    }
}

/// What is done, and with what: where to for a connection that is opened, else the handle.
fn net_parts(operation: &net::Operation) -> (&'static str, String) {
    match operation {
        net::Operation::Open { target, .. } => ("open", without_secrets(target)),
        net::Operation::Read { handle, .. } => ("read", handle.to_string()),
        net::Operation::Write { handle, .. } => ("write", handle.to_string()),
        net::Operation::Shutdown { handle } => ("shutdown", handle.to_string()),
        net::Operation::Send { handle, .. } => ("send", handle.to_string()),
        net::Operation::Receive { handle, .. } => ("receive", handle.to_string()),
        net::Operation::Close { handle } => ("close", handle.to_string()),
    }
}

fn fs_name(operation: &fs::Operation) -> &'static str {
    match operation {
        fs::Operation::Read { .. } => "read",
        fs::Operation::Write { .. } => "write",
        fs::Operation::List { .. } => "list",
        fs::Operation::Remove { .. } => "remove",
    }
}

fn kv_name(operation: &kv::Operation) -> &'static str {
    match operation {
        kv::Operation::Get { .. } => "get",
        kv::Operation::Set { .. } => "set",
        kv::Operation::Delete { .. } => "delete",
    }
}

/// The text of a URL without its query and fragment, and without a user and a password before its host.
fn without_secrets(url: &str) -> String {
    let shown = url.split(['?', '#']).next().unwrap_or_default();
    match shown.rsplit_once('@') {
        // One that is no URL may hold them anywhere.
        Some((_, rest)) if policy::http::parse_target(url).is_err() => format!("…@{rest}"),
        _ => shown.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_holds_no_query_and_no_password() {
        for (url, expected) in [
            ("https://a.example/x/y?key=secret#frag", "https://a.example/x/y"),
            ("https://a.example?key=secret", "https://a.example"),
            ("https://user:secret@a.example/x@y", "…@y"),
            ("https://a.example/x@y", "https://a.example/x@y"),
            ("https:/user:secret@a.example", "…@a.example"),
            ("user:secret@a.example/x", "…@a.example/x"),
            ("//user:secret@a.example/x", "…@a.example/x"),
            ("/x?secret", "/x"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(url), expected, "{url}");
        }
    }
}
