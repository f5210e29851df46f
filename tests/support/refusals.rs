//! What every refusal says to the operator, wherever in the tests it comes up: who asked, from which line of the script,
//! for what, which rule stood in the way, and what would allow it, which is [pasted](pastes). Read from audit files, and
//! from the log of what has none.
//!
//! Not seen are those that the log leaves out, over 20 a second of one tenant, and those of a broker that a test asks
//! itself, without a program around it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use neoc::{
    audit::record::Record,
    policy::{Machine, Reason},
};
use serde::Deserialize as _;
use serde_json::Value;

use super::pastes;

/// Fails if a refusal in the log of a host lacks a part.
pub fn check_log(log: &str, machine: &Machine) {
    let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    // The sums at the end are no refusals.
    let of_audit = records.filter(|record| record["target"] == "neoc::audit" && record["count"].is_null());
    check(of_audit.map(of_log), machine);
}

/// The record that a line of the log is.
pub fn of_log(mut line: Value) -> Value {
    // What a log line's own target is named like.
    line["target"] = line["operation_target"].take();
    line["time"] = "".into();
    line
}

/// Fails if a refusal in an audit file lacks a part. The last line may be half written, when the host was killed.
pub fn check_file(file: &Path, machine: &Machine) {
    let text = fs::read_to_string(file).unwrap_or_default();
    check(text.lines().filter_map(|line| serde_json::from_str(line).ok()), machine);
}

/// Fails if one of these records is a refusal that lacks a part, or whose fix does not do what it says.
pub fn check(records: impl Iterator<Item = Value>, machine: &Machine) {
    let problems: Vec<_> =
        records.filter_map(|record| Some(format!("{}: {record}", problem(&record, machine)?))).collect();
    assert!(problems.is_empty(), "refusals that do not say all, or what is not so:\n{}", problems.join("\n"));
}

/// What is wrong with a record, if it is one of a refusal.
pub fn problem(record: &Value, machine: &Machine) -> Option<String> {
    if !is_refusal(record) {
        return None;
    }
    if let Some(part) = lacks(record, machine) {
        return Some(part.to_owned());
    }
    match Record::deserialize(record) {
        Ok(record) => pastes::problem(&record, machine),
        Err(error) => Some(error.to_string()),
    }
}

fn is_refusal(record: &Value) -> bool {
    ["refuse", "report"].contains(&record["outcome"].as_str().unwrap_or_default())
}

/// What a refusal on this machine does not say. None for what is no refusal.
pub fn lacks(record: &Value, machine: &Machine) -> Option<&'static str> {
    let text = |key: &str| record[key].as_str().unwrap_or_default();
    if !is_refusal(record) {
        return None;
    }
    let is_place = |text: &str| {
        text.rsplit_once(':')
            .is_some_and(|(file, line)| !file.is_empty() && line.parse().is_ok_and(|line: u32| line > 0))
    };
    if let Some(absent) =
        ["tenant", "request", "capability", "operation", "reason"].iter().find(|key| text(key).is_empty())
    {
        return Some(absent);
    }
    let by_policy = Reason::ALL.into_iter().find(|reason| reason.as_str() == text("reason"));
    if !is_place(text("site")) {
        return Some("site");
    }
    // The others are limits, and arguments that make no sense: no rule decides about them.
    let reason = by_policy?;
    // There is one thing only to detach, and a script may aim at nothing.
    let may_be_empty = text("capability") == "detach" || reason == Reason::BadTarget;
    if !record["target"].is_string() || (text("target").is_empty() && !may_be_empty) {
        return Some("target");
    }
    let (needs_rule, needs_fix) = match reason {
        Reason::NotGranted | Reason::HostNotAllowed | Reason::PathNotGranted | Reason::SecretNotBound => (false, true),
        // What no rule can allow.
        Reason::MethodNotAllowed if ["CONNECT", "TRACE"].contains(&text("operation")) => (false, false),
        Reason::PathNotAllowed | Reason::MethodNotAllowed | Reason::AddressNotAllowed | Reason::PathNotWritable => {
            (true, true)
        }
        Reason::AddressNeverAllowed | Reason::OwnListener | Reason::BadTarget | Reason::NarrowedByScript => {
            (false, false)
        }
        Reason::DeniedByRule => (true, false),
    };
    let rule = record["rule"].as_str();
    // In report mode a call has come that far without any.
    if rule.is_some_and(|rule| !is_place(rule)) || (rule.is_none() && needs_rule && text("outcome") == "refuse") {
        return Some("rule");
    }
    let is_grant = |fix: &str| {
        let parsed = toml::from_str::<toml::Table>(fix).ok();
        parsed.is_some_and(|fix| fix["tenant"].get(text("tenant")).is_some())
    };
    match record["fix"].as_str() {
        Some(fix) => (!needs_fix || !is_grant(fix)).then_some("fix"),
        None => (needs_fix && is_open_to_rules(text("target"), machine)).then_some("fix"),
    }
}

/// Whether a rule could allow each address that a target names, if it names any.
fn is_open_to_rules(target: &str, machine: &Machine) -> bool {
    let (scheme, rest) = target.split_once("://").unwrap_or_default();
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).unwrap_or((authority, ""));
    let port = port.parse().unwrap_or(if scheme == "https" { 443 } else { 80 });
    let addresses: Vec<IpAddr> = match host.trim_matches(['[', ']']).parse() {
        Ok(address) => vec![address],
        Err(_) if host == "localhost" || host.ends_with(".localhost") => {
            vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        }
        Err(_) => Vec::new(),
    };
    addresses.into_iter().all(|address| machine.is_open_to_rules(SocketAddr::new(address, port)))
}
