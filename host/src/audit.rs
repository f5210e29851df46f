//! One structured record and one counter per decision of the broker.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// What the broker decided about one operation. Allowed and refused ones have the same fields.
#[derive(Debug)]
pub struct Decision<'a> {
    /// Who asked.
    pub tenant: &'a str,
    /// In which request.
    pub request: &'a str,
    /// Which capability, such as `http`.
    pub capability: &'static str,
    /// What the call aimed at. May hold any character; the log's format escapes it.
    pub target: &'a str,
    /// Whether it was permitted.
    pub outcome: Outcome<'a>,
}

/// How a decision went.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// Permitted.
    Allow,
    /// Refused.
    Refuse {
        /// The stable label of the reason, also that of the counter.
        reason: &'static str,
        /// What the operator needs to know and the script must not.
        detail: &'a str,
    },
}

/// Counts decisions by capability and reason. Both come from closed sets, so the map is bounded.
#[derive(Debug, Default)]
pub struct Audit {
    counters: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Audit {
    /// Counts and logs a decision.
    pub fn record(&self, decision: &Decision<'_>) {
        let Decision { tenant, request, capability, target, outcome } = decision;
        let reason = match outcome {
            Outcome::Allow => {
                tracing::debug!(target: "neoc::audit", tenant, request, capability, operation_target = target, outcome = "allow");
                "allow"
            }
            Outcome::Refuse { reason, detail } => {
                tracing::info!(target: "neoc::audit", tenant, request, capability, operation_target = target, outcome = "refuse", reason, detail);
                reason
            }
        };
        *self.counters.lock().entry((capability, reason)).or_default() += 1;
    }

    /// Decisions so far with this capability and reason; `allow` counts the permitted ones.
    pub fn count(&self, capability: &'static str, reason: &'static str) -> u64 {
        self.counters.lock().get(&(capability, reason)).copied().unwrap_or(0)
    }

    /// All counters, by capability and reason.
    pub fn counters(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.counters.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_decision_is_counted_under_its_reason() {
        let audit = Audit::default();
        let decide = |outcome| {
            audit.record(&Decision { tenant: "a", request: "1", capability: "kv", target: "k", outcome });
        };
        decide(Outcome::Allow);
        decide(Outcome::Refuse { reason: "not_granted", detail: "" });
        decide(Outcome::Refuse { reason: "not_granted", detail: "" });
        assert_eq!((audit.count("kv", "allow"), audit.count("kv", "not_granted")), (1, 2));
    }
}
