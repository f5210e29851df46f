//! Why a call is refused: one value for the script, the log and the metrics.
//!
//! | for | text | may hold |
//! |---|---|---|
//! | the script | [`Refusal::message`], `fix` | what the script wrote, and the policy it would take |
//! | the operator's log | [`Refusal::operator_detail`], [`Refusal::operator_fix`] | also the rule's place and the resolved address |
//! | metrics | [`Reason::as_str`] | a label that never changes |
//!
//! A script never learns what a name of its own resolved to: with that it could map a private network
//! by asking. So a fix that needs a resolved address goes to the operator only.

use std::fmt;

use neoc_abi::{ErrorKind, OperationError, error::truncate_at_char};

use super::{Place, fix::Remedy, tenant::Tenant};

/// Longest target that a refusal repeats, in bytes.
const MAX_TARGET_BYTES: usize = 256;

/// What stands in the place of a rule where none came near.
const NO_RULE: &str = "no rule";

/// A refused call.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The capability, such as `http`.
    pub capability: &'static str,
    /// What the call aimed at, as the script wrote it; shortened, without query and control characters.
    pub target: String,
    /// Why.
    pub reason: Reason,
    /// Where the rule stands that came nearest, or that denies the call. Absent: there is none.
    pub rule: Option<Place>,
    /// TOML which, pasted at the end of the policy file, allows this call. Absent where nothing can, or
    /// where it would tell the script what it must not know.
    pub fix: Option<String>,
    detail: Box<Detail>,
}

/// What the texts are made of.
#[derive(Debug, Clone, Default)]
struct Detail {
    /// Words for the script, instead of the reason's own.
    note: Option<String>,
    /// Words for the operator only.
    operator_note: Option<String>,
    remedy: Option<Remedy>,
    operator_fix: Option<String>,
}

/// Why a call is refused. The labels are the same in errors, logs and metrics, and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The tenant has no grant of this capability at all.
    NotGranted,
    /// No rule names this scheme, host and port.
    HostNotAllowed,
    /// The rules that name the host do not list the path.
    PathNotAllowed,
    /// The rules that name the host do not list the method.
    MethodNotAllowed,
    /// The address is private or special and no matching rule names it.
    AddressNotAllowed,
    /// The address is link-local or a metadata service.
    AddressNeverAllowed,
    /// The host itself listens at the address.
    OwnListener,
    /// No grant covers the path.
    PathNotGranted,
    /// The grant that covers the path is for reading.
    PathNotWritable,
    /// The target is spelled in a way that can be read twice.
    BadTarget,
    /// A rule denies it, whatever others allow.
    DeniedByRule,
    /// The secret may not go to this origin.
    SecretNotBound,
    /// The script itself took it away, by what it gave `require`.
    NarrowedByScript,
}

// === impl Reason ===

impl Reason {
    /// Every reason, for tables of metrics.
    pub const ALL: [Self; 13] = [
        Self::NotGranted,
        Self::HostNotAllowed,
        Self::PathNotAllowed,
        Self::MethodNotAllowed,
        Self::AddressNotAllowed,
        Self::AddressNeverAllowed,
        Self::OwnListener,
        Self::PathNotGranted,
        Self::PathNotWritable,
        Self::BadTarget,
        Self::DeniedByRule,
        Self::SecretNotBound,
        Self::NarrowedByScript,
    ];

    /// The stable label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotGranted => "not_granted",
            Self::HostNotAllowed => "host_not_allowed",
            Self::PathNotAllowed => "path_not_allowed",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::AddressNeverAllowed => "address_never_allowed",
            Self::OwnListener => "own_listener",
            Self::PathNotGranted => "path_not_granted",
            Self::PathNotWritable => "path_not_writable",
            Self::BadTarget => "bad_target",
            Self::DeniedByRule => "denied_by_rule",
            Self::SecretNotBound => "secret_not_bound",
            Self::NarrowedByScript => "narrowed_by_script",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::NotGranted => "the policy grants this tenant nothing of the kind",
            Self::HostNotAllowed => "no rule names this scheme, host and port",
            Self::PathNotAllowed => "no rule for this host lists the path",
            Self::MethodNotAllowed => "no rule for this host lists the method",
            Self::AddressNotAllowed => "the host has a private or special address that no rule names",
            Self::AddressNeverAllowed => "the host has a link-local or metadata address, which no rule can allow",
            Self::OwnListener => "this host listens there itself, which no rule can allow",
            Self::PathNotGranted => "no grant covers this path",
            Self::PathNotWritable => "the grant that covers this path is for reading",
            Self::DeniedByRule => "a rule denies it",
            Self::SecretNotBound => "the secret is not bound to this origin",
            Self::NarrowedByScript => "the script itself took this away, by what it gave require",
            Self::BadTarget => "the target is not written in its one spelling",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Refusal ===

impl Refusal {
    /// A refusal that no rule came near to, with no fix.
    pub fn new(capability: &'static str, target: &str, reason: Reason) -> Self {
        Self { capability, target: shown(target), reason, rule: None, fix: None, detail: Box::default() }
    }

    /// Says it in other words than the reason's own. The script sees them.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.detail.note = Some(note.into());
        self
    }

    /// Adds words for the operator's log. The script does not see them.
    pub fn operator_note(mut self, note: impl Into<String>) -> Self {
        self.detail.operator_note = Some(note.into());
        self
    }

    /// Completes the refusal with what only the tenant knows: its name, in the fix.
    pub fn with_fix(mut self, tenant: &Tenant) -> Self {
        let name = &tenant.name;
        if let Some(remedy) = &self.detail.remedy {
            self.fix = remedy.for_script(name);
            self.detail.operator_fix = Some(remedy.for_operator(name));
        }
        self
    }

    /// A refusal by what a module has, not by what its tenant has.
    pub(super) fn in_module(mut self, path: &str, place: &Place) -> Self {
        self.detail.note = Some(format!("{}, for the module {path}", self.words()));
        self.detail.remedy = self.detail.remedy.take().map(|remedy| remedy.in_module(path));
        self.rule.get_or_insert_with(|| place.clone());
        self
    }

    /// One line for the script. Holds no host path and no resolved address.
    pub fn message(&self) -> String {
        let Self { capability, target, .. } = self;
        format!("{capability} denied: {target}: {}", self.words())
    }

    /// Why, without capability and target, which a script's error has as fields of their own.
    fn words(&self) -> &str {
        self.detail.note.as_deref().unwrap_or(self.reason.sentence())
    }

    /// One line for the operator's log, with everything that is known.
    pub fn operator_detail(&self) -> String {
        let mut line = format!("{} [{}]", self.message(), self.reason);
        if let Some(note) = &self.detail.operator_note {
            line.push_str(&format!("; {note}"));
        }
        match &self.rule {
            Some(place) => line.push_str(&format!("; rule: {place}")),
            None => line.push_str("; no rule"),
        }
        line
    }

    /// The TOML that allows the call, for the operator: there even where the script must not see it.
    pub fn operator_fix(&self) -> Option<&str> {
        self.detail.operator_fix.as_deref()
    }

    /// Whether some rule could allow the call.
    pub fn is_open_to_rules(&self) -> bool {
        self.detail.remedy.is_some()
    }

    /// What would allow the call, if anything would.
    pub(super) fn wanted(&self) -> Option<&Remedy> {
        self.detail.remedy.as_ref()
    }

    pub(super) fn near(mut self, rule: &Place) -> Self {
        self.rule = Some(rule.clone());
        self
    }

    pub(super) fn remedy(mut self, remedy: Remedy) -> Self {
        self.detail.remedy = Some(remedy);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for OperationError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.words().to_owned();
        let Refusal { capability, target, reason, rule, fix, detail: _ } = refusal;
        Self {
            capability: Some(capability.to_owned()),
            target: Some(target),
            fix,
            reason: Some(reason.as_str().to_owned()),
            rule: Some(rule.map_or_else(|| NO_RULE.to_owned(), |place| place.in_short())),
            ..Self::new(ErrorKind::Denied, message)
        }
    }
}

/// A target on one line, shortened. Control characters are escaped, so that it cannot forge a log line.
fn shown(target: &str) -> String {
    let mut text = String::new();
    for character in target.chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
        if text.len() > MAX_TARGET_BYTES {
            truncate_at_char(&mut text, MAX_TARGET_BYTES);
            text.push('…');
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::kv, *};

    #[test]
    fn labels_are_fixed_and_differ() {
        let labels: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(
            labels,
            [
                "not_granted",
                "host_not_allowed",
                "path_not_allowed",
                "method_not_allowed",
                "address_not_allowed",
                "address_never_allowed",
                "own_listener",
                "path_not_granted",
                "path_not_writable",
                "bad_target",
                "denied_by_rule",
                "secret_not_bound",
                "narrowed_by_script",
            ]
        );
    }

    #[test]
    fn a_script_gets_kind_capability_target_and_fix() {
        let tenant = Tenant::without_grants("acme", "main.luau");
        let error = OperationError::from(kv::decide(None, "visits").expect_err("not granted").with_fix(&tenant));
        assert_eq!(error.kind, ErrorKind::Denied);
        assert_eq!(error.message, "the policy grants this tenant nothing of the kind");
        assert_eq!(error.capability.as_deref(), Some("kv"));
        assert_eq!(error.target.as_deref(), Some("visits"));
        assert_eq!(error.fix.as_deref(), Some("[tenant.acme.allow.kv]\n"));
    }

    #[test]
    fn a_hostile_target_is_shown_on_one_short_line() {
        assert_eq!(shown("a\r\n\u{1b}[2J"), "a\\r\\n\\u{1b}[2J");
        for target in ["é".repeat(1_000), "\n".repeat(1_000), "x".repeat(257)] {
            let text = shown(&target);
            assert!(text.len() <= MAX_TARGET_BYTES + '…'.len_utf8() && text.ends_with('…'), "{text}");
        }
        assert_eq!(shown(&"x".repeat(256)), "x".repeat(256));
    }
}
