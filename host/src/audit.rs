//! One structured record and one counter per decision of the broker.
//!
//! With `[host] audit` every decision is a line of that file, see [`record`]; a thread of its own writes it,
//! see `file`. Without, refusals go to the log, each tenant's within a quota. Neither ever waits.

mod file;
pub mod record;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Display},
    net::IpAddr,
    num::NonZeroU32,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

pub use self::file::OpenError;
use self::{
    file::AuditFile,
    record::{Outcome, Record},
};
use crate::{limits::RateLimiter, policy::Rate};

/// Refusals of one tenant that the log takes a second.
const LOGGED_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("it is not 0");

/// What the broker decided about one operation. Allowed and refused ones have the same fields.
pub struct Decision<'a> {
    /// By which policy.
    pub policy: &'a str,
    /// Who asked.
    pub tenant: &'a str,
    /// In which request.
    pub request: &'a str,
    /// From where in the script, such as `main.luau:12`.
    pub site: Option<&'a dyn Display>,
    /// The module that asked, where the policy gives it less than its tenant has.
    pub module: Option<&'a str>,
    /// Which capability, such as `http`.
    pub capability: &'static str,
    /// What of it, such as `GET` or `read`.
    pub operation: &'a str,
    /// What the call aimed at, without a query. May hold any character; both formats escape it.
    pub target: &'a str,
    /// The address that was judged, where one was.
    pub address: Option<IpAddr>,
    /// The rule that decided, such as `policies/demo.toml:12`.
    pub rule: Option<&'a dyn Display>,
    /// How it went.
    pub verdict: Verdict<'a>,
}

/// How a decision went.
#[derive(Debug, Clone, Copy)]
pub enum Verdict<'a> {
    /// Permitted.
    Allow,
    /// Against the policy, and let pass all the same: the tenant is in report mode.
    Report(Why<'a>),
    /// Refused.
    Refuse(Why<'a>),
}

/// Why a call is against the policy or over a limit.
#[derive(Debug, Clone, Copy)]
pub struct Why<'a> {
    /// The stable label of the reason, also that of the counter.
    pub reason: &'static str,
    /// What the operator needs to know and the script must not.
    pub detail: &'a str,
    /// TOML that would allow it.
    pub fix: Option<&'a str>,
}

/// What is counted together: capability, outcome, reason. The reason of what was permitted is `allow`. The
/// outcome of a limit that is hit once something is under way is [`LIMIT`], its reason the limit's policy key.
pub type Label = (&'static str, &'static str, &'static str);

/// The outcome of what was permitted, and went over a limit on its way.
pub const LIMIT: &str = "limit";

/// Counts and records decisions.
#[derive(Default)]
pub struct Audit {
    /// All labels come from closed sets, so the map is bounded.
    counters: Mutex<BTreeMap<Label, u64>>,
    file: Option<AuditFile>,
    n_left_out: AtomicU64,
}

/// A tenant's part of the log, for its refusals.
pub struct Quota {
    lines: RateLimiter,
    n_left_out: AtomicU64,
}

// === impl Audit ===

impl Audit {
    /// An audit that writes every decision to a file, appending to what it holds.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn to_file(path: &Path) -> Result<Self, OpenError> {
        Ok(Self { file: Some(AuditFile::open(path)?), ..Self::default() })
    }

    /// Counts and records a decision. Never waits.
    pub fn record(&self, decision: &Decision<'_>, quota: &Quota) {
        let (outcome, why) = decision.verdict.parts();
        let reason = why.map_or("allow", |why| why.reason);
        *self.counters.lock().entry((decision.capability, outcome.as_str(), reason)).or_default() += 1;
        match (&self.file, why) {
            (Some(file), _) if !decision.is_free() => file.write(&decision.as_record(record::now())),
            (None, Some(why)) if quota.take_line() => log(decision, outcome, &why, quota),
            (None, Some(_)) => drop(self.n_left_out.fetch_add(1, Ordering::Relaxed)),
            (None, None) => {
                let Decision { tenant, request, capability, operation, target, .. } = decision;
                tracing::debug!(target: "neoc::audit", tenant, request, capability, operation, operation_target = target, outcome = "allow");
            }
            (Some(_), _) => {}
        }
    }

    /// Counts a limit that something went over on its way: an effect that was permitted, or a `request`. Never
    /// waits.
    pub fn count_limit(&self, what: &'static str, limit: &'static str) {
        *self.counters.lock().entry((what, LIMIT, limit)).or_default() += 1;
    }

    /// As [`Audit::count_limit`], for an effect of a tenant; the log says so, within its quota.
    pub fn record_limit(
        &self,
        (tenant, request): (&str, &str),
        capability: &'static str,
        limit: &'static str,
        detail: &str,
        quota: &Quota,
    ) {
        self.count_limit(capability, limit);
        if quota.take_line() {
            tracing::info!(target: "neoc::audit", tenant, request, capability, outcome = LIMIT, reason = limit, detail);
        } else {
            self.n_left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Closes the file and opens what its name leads to now, in its own time.
    pub fn reopen(&self) {
        if let Some(file) = &self.file {
            file.reopen();
        }
    }

    /// Waits until all that was recorded is written. What is recorded afterwards is lost.
    pub fn close(&self) {
        if let Some(file) = &self.file {
            file.close();
        }
    }

    /// Records that found no room in the queue or on the disk.
    pub fn n_lost(&self) -> u64 {
        self.file.as_ref().map_or(0, AuditFile::n_lost)
    }

    /// Refusals that were over a tenant's part of the log.
    pub fn n_left_out(&self) -> u64 {
        self.n_left_out.load(Ordering::Relaxed)
    }

    /// All counters.
    pub fn counters(&self) -> BTreeMap<Label, u64> {
        self.counters.lock().clone()
    }
}

/// Writes a refusal, or what would be one, to the log.
fn log(decision: &Decision<'_>, outcome: Outcome, why: &Why<'_>, quota: &Quota) {
    let Decision { tenant, request, capability, operation, .. } = decision;
    let left_out = quota.n_left_out.swap(0, Ordering::Relaxed);
    if left_out > 0 {
        tracing::warn!(target: "neoc::audit", tenant, left_out, "refusals over the tenant's part of the log were left out");
    }
    let record = decision.as_record(String::new());
    let (policy, module, address) =
        (&*record.policy, record.module.as_deref(), record.address.map(tracing::field::display));
    let (site, rule, reason) = (record.site.as_deref(), record.rule.as_deref(), why.reason);
    tracing::info!(target: "neoc::audit", policy, tenant, request, site, module, capability, operation,
        operation_target = &*record.target, address, outcome = outcome.as_str(), reason, rule, detail = why.detail,
        fix = why.fix);
}

// === impl Decision ===

impl Decision<'_> {
    /// Whether it is only counted: a permitted wait or look at a module of one's own, which no policy decides on.
    fn is_free(&self) -> bool {
        ["time", "module"].contains(&self.capability) && matches!(self.verdict, Verdict::Allow)
    }

    fn as_record(&self, time: String) -> Record<'_> {
        let Self { policy, tenant, request, site, module, capability, operation, target, address, rule, verdict } =
            self;
        let (outcome, why) = verdict.parts();
        Record {
            time: time.into(),
            policy: Cow::Borrowed(policy),
            tenant: Cow::Borrowed(tenant),
            request: Cow::Borrowed(request),
            site: site.map(|site| site.to_string().into()),
            module: module.map(Cow::Borrowed),
            capability: Cow::Borrowed(capability),
            operation: record::shown(operation),
            target: record::shown(target),
            address: *address,
            outcome,
            reason: why.map(|why| Cow::Borrowed(why.reason)),
            rule: rule.map(|rule| rule.to_string().into()),
            fix: why.and_then(|why| why.fix).map(Cow::Borrowed),
        }
    }
}

impl Verdict<'_> {
    fn parts(&self) -> (Outcome, Option<Why<'_>>) {
        match self {
            Self::Allow => (Outcome::Allow, None),
            Self::Report(why) => (Outcome::Report, Some(*why)),
            Self::Refuse(why) => (Outcome::Refuse, Some(*why)),
        }
    }
}

// === impl Quota ===

impl Quota {
    /// Takes room for one line, or counts it as left out.
    fn take_line(&self) -> bool {
        let taken = self.lines.try_take().is_ok();
        if !taken {
            self.n_left_out.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self { lines: RateLimiter::new(Rate::per_second(LOGGED_PER_SECOND)), n_left_out: AtomicU64::new(0) }
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(audit: &Audit, verdict: Verdict<'_>) {
        let decision = Decision {
            policy: "0123456789ab",
            tenant: "a",
            request: "1",
            site: Some(&"main.luau:3"),
            module: None,
            capability: "kv",
            operation: "get",
            target: "k\n",
            address: None,
            rule: None,
            verdict,
        };
        audit.record(&decision, &Quota::default());
    }

    #[test]
    fn a_limit_on_the_way_is_counted_under_its_key() {
        let (audit, quota) = (Audit::default(), Quota::default());
        audit.record_limit(("a", "1"), "http", "ingress", "", &quota);
        audit.record_limit(("a", "2"), "http", "ingress", "", &quota);
        audit.count_limit("request", "cpu");
        let expected = [(("http", LIMIT, "ingress"), 2), (("request", LIMIT, "cpu"), 1)];
        assert_eq!(audit.counters(), BTreeMap::from(expected));
    }

    #[test]
    fn every_decision_is_counted_under_its_outcome_and_reason() {
        let audit = Audit::default();
        let why = Why { reason: "not_granted", detail: "", fix: None };
        for verdict in [Verdict::Allow, Verdict::Refuse(why), Verdict::Refuse(why), Verdict::Report(why)] {
            decide(&audit, verdict);
        }
        let expected =
            [(("kv", "allow", "allow"), 1), (("kv", "refuse", "not_granted"), 2), (("kv", "report", "not_granted"), 1)];
        assert_eq!(audit.counters(), BTreeMap::from(expected));
    }

    #[test]
    fn every_decision_is_a_line_of_the_file() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let path = folder.path().join("audit.jsonl");
        let audit = Audit::to_file(&path).expect("opens");
        decide(&audit, Verdict::Allow);
        decide(&audit, Verdict::Refuse(Why { reason: "not_granted", detail: "d", fix: Some("[x]\n") }));
        audit.close();
        let text = std::fs::read_to_string(&path).expect("reads");
        let lines: Vec<_> = text.lines().map(|line| line.split_once("\"policy\"").expect("a record").1).collect();
        let same = ":\"0123456789ab\",\"tenant\":\"a\",\"request\":\"1\",\"site\":\"main.luau:3\",\"module\":null,\"capability\":\"kv\",\
            \"operation\":\"get\",\"target\":\"k\\n\",\"address\":null,\"outcome\":";
        assert_eq!(
            lines,
            [
                format!("{same}\"allow\",\"reason\":null,\"rule\":null,\"fix\":null}}"),
                format!("{same}\"refuse\",\"reason\":\"not_granted\",\"rule\":null,\"fix\":\"[x]\\n\"}}"),
            ]
        );
    }
}
