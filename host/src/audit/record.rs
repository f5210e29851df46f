//! One line of the audit file: what it holds, and how it is read again.
//!
//! ```text
//! {"time":"2026-01-31T12:00:00.000Z","policy":"0f2c…","tenant":"acme","request":"…","site":"main.luau:12",
//!  "module":null,  "capability":"http","operation":"GET","target":"https://api.example.com/v1","address":null,
//!  "outcome":"refuse","reason":"host_not_allowed","rule":null,"fix":"[[tenant.acme.allow.http]]\n…"}
//! ```
//!
//! Every line has every key. A line `{"time":…,"lost":3}` stands for records that there was no room for.

use std::{
    borrow::Cow,
    io::{self, BufRead},
    net::IpAddr,
};

use neoc_abi::error::truncate_at_char;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// Longest target in a record, in bytes.
const MAX_TARGET_BYTES: usize = 1024;

/// Longest line that is read, in bytes. Ours are shorter by far.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<'a> {
    /// When, in UTC, to the millisecond.
    pub time: Cow<'a, str>,
    /// The version of the policy that was in force.
    pub policy: Cow<'a, str>,
    /// Who asked.
    pub tenant: Cow<'a, str>,
    /// In which request.
    pub request: Cow<'a, str>,
    /// From where in the script, such as `main.luau:12`.
    pub site: Option<Cow<'a, str>>,
    /// The module that asked, where the policy gives it less than its tenant has.
    pub module: Option<Cow<'a, str>>,
    /// Such as `http`.
    pub capability: Cow<'a, str>,
    /// Such as `GET` or `read`.
    pub operation: Cow<'a, str>,
    /// A URL without its query, a path, a key. At most 1024 bytes; a longer one ends in `…`.
    pub target: Cow<'a, str>,
    /// The address that was judged, where one was.
    pub address: Option<IpAddr>,
    /// How it went.
    pub outcome: Outcome,
    /// Why it was refused, or would have been.
    pub reason: Option<Cow<'a, str>>,
    /// The rule that decided, as file and line.
    pub rule: Option<Cow<'a, str>>,
    /// TOML that would allow the call.
    pub fix: Option<Cow<'a, str>>,
}

/// How a decision went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Permitted.
    Allow,
    /// Against the policy, and let pass, because the tenant is in report mode.
    Report,
    /// Refused.
    Refuse,
}

/// Records that there was no room for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// When they were counted.
    pub time: String,
    /// How many.
    pub lost: u64,
}

/// What was read of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Decisions.
    pub n_records: u64,
    /// Decisions that are missing, because there was no room for them.
    pub n_lost: u64,
    /// Lines that are no records, such as one that was cut when the disk was full.
    pub n_unreadable: u64,
}

impl Outcome {
    /// As in a record and in counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Report => "report",
            Self::Refuse => "refuse",
        }
    }
}

/// Reads a file line by line. What is no record is counted and passed over.
///
/// # Errors
/// When reading fails.
pub fn read(mut file: impl BufRead, mut each: impl FnMut(Record<'static>)) -> io::Result<Summary> {
    let mut summary = Summary::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if io::Read::take(&mut file, MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(summary);
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if let Ok(record) = serde_json::from_slice(&line) {
            summary.n_records += 1;
            each(record);
        } else if let Ok(Lost { lost, .. }) = serde_json::from_slice(&line) {
            summary.n_lost = summary.n_lost.saturating_add(lost);
        } else {
            summary.n_unreadable += 1;
        }
    }
}

/// The time in UTC, such as `2026-01-31T12:00:00.000Z`.
pub fn now() -> String {
    shown_time(OffsetDateTime::now_utc())
}

fn shown_time(time: OffsetDateTime) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    // The well-known format leaves out a fraction of 0, and shows nanoseconds.
    let whole = time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default();
    format!("{}.{:03}Z", whole.trim_end_matches('Z'), time.millisecond())
}

/// A target as it is recorded: not too long.
pub fn shown(target: &str) -> Cow<'_, str> {
    if target.len() <= MAX_TARGET_BYTES {
        return target.into();
    }
    let mut cut = target.to_owned();
    truncate_at_char(&mut cut, MAX_TARGET_BYTES - '…'.len_utf8());
    cut.push('…');
    cut.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_milliseconds_always() {
        for (seconds, nanoseconds, expected) in [
            (0, 0, "1970-01-01T00:00:00.000Z"),
            (1_769_860_800, 7_900_000, "2026-01-31T12:00:00.007Z"),
            (1_769_860_800, 999_999_999, "2026-01-31T12:00:00.999Z"),
        ] {
            let time = OffsetDateTime::from_unix_timestamp(seconds).expect("in range");
            let time = time.replace_nanosecond(nanoseconds).expect("in range");
            assert_eq!(shown_time(time), expected);
        }
    }

    #[test]
    fn a_cut_line_costs_no_other() {
        let record = Record {
            time: now().into(),
            policy: "p".into(),
            tenant: "a".into(),
            request: "1".into(),
            site: None,
            module: None,
            capability: "http".into(),
            operation: "GET".into(),
            target: "https://a.example/".into(),
            address: Some([10, 0, 0, 1].into()),
            outcome: Outcome::Refuse,
            reason: Some("address_not_allowed".into()),
            rule: Some("p.toml:3".into()),
            fix: None,
        };
        let line = serde_json::to_string(&record).expect("is JSON");
        let half = &line[..line.len() / 2];
        let text = format!("{line}\n{half}\n\n{{\"time\":\"t\",\"lost\":3}}\n{}\n{line}\n{half}", "x".repeat(200_000));
        let mut records = Vec::new();
        let summary = read(text.as_bytes(), |record| records.push(record)).expect("reads");
        assert_eq!(records, [record.clone(), record]);
        assert_eq!((summary.n_records, summary.n_lost), (2, 3));
        assert!(summary.n_unreadable >= 3);
    }

    #[test]
    fn a_long_target_is_cut_at_a_character() {
        assert_eq!(shown(&"x".repeat(1024)), "x".repeat(1024));
        let cut = shown(&"é".repeat(1024)).into_owned();
        assert!(cut.len() <= 1024 && cut.ends_with('…'));
    }
}
