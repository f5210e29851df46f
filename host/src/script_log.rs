//! Where a script's lines go: the tenant's log, or standard output under `neoc run`.

use std::{
    borrow::Cow,
    collections::HashSet,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use neoc_abi::{
    error::truncate_at_char,
    log::{Level, Record},
};
use parking_lot::Mutex;

use crate::{
    limits::RateLimiter,
    policy::{Tenant, log::Grant},
};

/// Places that are remembered for each tenant.
const MAX_STALL_PLACES: usize = 100;

/// The sink for one VM's lines.
#[derive(Clone)]
pub struct ScriptLog(Sink);

#[derive(Clone)]
enum Sink {
    Discard,
    Terminal { grant: Grant, stalls: Arc<Mutex<HashSet<String>>> },
    Tenant { request: Arc<str>, quota: Arc<Quota> },
}

/// A tenant's share of the log.
pub struct Quota {
    /// The tenant's name.
    tenant: String,
    grant: Grant,
    bytes: RateLimiter,
    /// Longest line; a longer one is cut.
    line_bytes: usize,
    lost_lines: AtomicU64,
    /// Where the tenant's VMs have stood still, so that each place is logged once.
    stalls: Mutex<HashSet<String>>,
    n_stalls: AtomicU64,
}

impl Quota {
    /// The quota of a tenant, all unused.
    pub fn new(tenant: &Tenant) -> Self {
        Self {
            tenant: tenant.name.clone(),
            grant: tenant.allow.log,
            bytes: RateLimiter::new(tenant.limits.log),
            line_bytes: usize::try_from(tenant.limits.log_line_bytes).unwrap_or(usize::MAX),
            lost_lines: AtomicU64::new(0),
            stalls: Mutex::default(),
            n_stalls: AtomicU64::new(0),
        }
    }

    /// How often the tenant's VMs have stood still, those that were ended meanwhile included.
    pub fn n_stalls(&self) -> u64 {
        self.n_stalls.load(Ordering::Relaxed)
    }
}

// === impl ScriptLog ===

impl ScriptLog {
    /// Lines go nowhere.
    pub fn discard() -> Self {
        Self(Sink::Discard)
    }

    /// `print` goes to standard output, whatever the grant: it is what the command is run for. Other lines go to
    /// standard error.
    pub fn terminal(grant: Grant) -> Self {
        Self(Sink::Terminal { grant, stalls: Arc::default() })
    }

    /// Lines go to the host's log, with the tenant and the request as fields, within the quota.
    pub fn tenant(request: Arc<str>, quota: Arc<Quota>) -> Self {
        Self(Sink::Tenant { request, quota })
    }

    /// Notes where a VM stood still, because it waited where Luau cannot yield. Each place is logged once.
    pub fn stall(&self, place: String) {
        let known = match &self.0 {
            Sink::Discard => return,
            Sink::Terminal { stalls, .. } => stalls,
            Sink::Tenant { quota, .. } => {
                quota.n_stalls.fetch_add(1, Ordering::Relaxed);
                &quota.stalls
            }
        };
        {
            let mut known = known.lock();
            if known.len() >= MAX_STALL_PLACES || !known.insert(place.clone()) {
                return;
            }
        }
        let text = format!("{place} waits where Luau cannot yield: the whole VM stands still meanwhile");
        self.report(Record { level: Level::Warn, text });
    }

    /// Writes a line of the script's, if the policy keeps those of its level. Never waits for a reader.
    pub fn write(&self, record: Record) {
        let is_kept = match &self.0 {
            Sink::Discard => false,
            Sink::Terminal { grant, .. } => record.level == Level::Print || grant.keeps(record.level),
            Sink::Tenant { quota, .. } => quota.grant.keeps(record.level),
        };
        if is_kept {
            self.report(record);
        }
    }

    /// Writes a line of the host's about the script, whatever its level. Never waits for a reader.
    pub fn report(&self, record: Record) {
        let Record { level, mut text } = record;
        match &self.0 {
            Sink::Discard => {}
            Sink::Terminal { .. } => write_to_terminal(level, &text),
            Sink::Tenant { request, quota } => {
                truncate_at_char(&mut text, quota.line_bytes);
                // An empty line costs one byte, so that a flood of them is bounded too.
                let bytes = u32::try_from(text.len()).unwrap_or(u32::MAX).max(1);
                if quota.bytes.try_take_n(bytes).is_err() {
                    quota.lost_lines.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                let text = visible(&text);
                let lost_lines = quota.lost_lines.swap(0, Ordering::Relaxed);
                if lost_lines > 0 {
                    tracing::warn!(target: "neoc::script", tenant = quota.tenant, lost_lines, limit = "log", "lines over the tenant's limit were dropped");
                }
                write_to_log(&quota.tenant, request, level, &text);
            }
        }
    }
}

/// Spells out what would change how the rest of a line reads: control characters, line separators that
/// are not control characters, and marks that turn the direction of text.
fn visible(text: &str) -> Cow<'_, str> {
    let hides = |c: char| {
        c.is_control() && c != '\t'
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
    };
    if !text.contains(hides) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hides(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// A terminal or a pipe that is gone is no reason to fail: the script's work goes on.
fn write_to_terminal(level: Level, text: &str) {
    let _ = match level {
        Level::Print => writeln!(std::io::stdout().lock(), "{text}"),
        Level::Debug | Level::Info | Level::Warn | Level::Error => {
            writeln!(std::io::stderr().lock(), "{}: {text}", label(level))
        }
    };
}

fn write_to_log(tenant: &str, request: &str, level: Level, text: &str) {
    match level {
        Level::Debug => tracing::debug!(target: "neoc::script", tenant, request, text),
        Level::Print | Level::Info => tracing::info!(target: "neoc::script", tenant, request, text),
        Level::Warn => tracing::warn!(target: "neoc::script", tenant, request, text),
        Level::Error => tracing::error!(target: "neoc::script", tenant, request, text),
    }
}

fn label(level: Level) -> &'static str {
    match level {
        Level::Print => "print",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_changes_how_the_rest_reads() {
        assert_eq!(visible("a\r\nb\u{1b}[2J\u{202e}\u{2028}"), "a\\u{d}\\u{a}b\\u{1b}[2J\\u{202e}\\u{2028}");
        assert_eq!(visible("plain\tÜnïcode"), "plain\tÜnïcode");
    }
}
