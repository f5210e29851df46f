//! `[[tenant.NAME.allow.http]]`: rules for outbound HTTP, and the decision on a call.
//!
//! A call is decided in two steps, because the address of a name is not known at first:
//!
//! 1. [`decide`]: origin and method, and the address where the URL itself tells it. Every rule that
//!    allows origin and method goes into the [`HttpMatch`].
//! 2. [`check_address`]: each address, on its way to the socket. It passes if one of the matched rules
//!    lets it pass; a rule that did not match in step 1 has no say.
//!
//! So a rule allows a call or it does not, by itself; rules never combine, and one more rule that allows only
//! adds. A rule that denies (`[[tenant.NAME.deny.http]]`) wins over all that allow. A pool of connections must
//! be keyed by the [`HttpMatch`] too: a connection opened under a rule that names `10.0.0.0/8` must not serve a
//! call that only matched a rule without.
//!
//! [`verdict`] is the decision itself: it allocates nothing when it refuses, because a script may ask in a loop.
//! [`decide`] adds the words.

mod index;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use ipnet::IpNet;
use toml::Spanned;
use url::Url;

use self::index::{Index, OddPath, least};
pub use super::target::{TargetError, parse_redirect, parse_target};
use super::{
    Machine, Place, address,
    error::{Broken, Errors, child},
    fix::Remedy,
    module::all_networks,
    origin::OriginPattern,
    path::PathPattern,
    raw::{DenyHttpToml, HttpToml, ModuleHttpToml, Text},
    refusal::{Reason, Refusal},
};

/// The capability's name in errors, logs and metrics.
pub const CAPABILITY: &str = "http";

/// Longest method, in bytes.
const MAX_METHOD_BYTES: usize = 32;

/// Methods that no rule allows: one opens a tunnel past every check, the others echo secrets.
const REFUSED_METHODS: [&str; 3] = ["CONNECT", "TRACE", "TRACK"];

/// The rules of one tenant.
#[derive(Clone, Default)]
pub struct Rules {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    allow_index: Index,
    deny_index: Index,
}

/// One rule as enforced.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where a call may go. Never empty.
    pub origins: Vec<OriginPattern>,
    /// Private and special networks that the hosts may resolve to. Public addresses need no name. A rule that
    /// denies has none: it denies them all.
    pub addresses: Vec<IpNet>,
    /// Absent: all but those that no rule allows.
    pub methods: Option<Vec<Method>>,
    /// Absent: all.
    pub paths: Option<Vec<PathPattern>>,
    /// Where the policy file has the rule.
    pub place: Place,
}

/// An upper-case HTTP method that a call may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method(String);

/// The rules that allow a call, as indices into the tenant's rules. Empty for a call that only report mode lets pass.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpMatch {
    rules: Vec<usize>,
}

// === impl HttpMatch ===

impl HttpMatch {
    /// No rule.
    pub fn none() -> Self {
        Self { rules: Vec::new() }
    }
}

// === impl Method ===

impl Method {
    /// The method.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Result<Self, Broken> {
        if REFUSED_METHODS.contains(&text) {
            return Err(Broken::new("a method that is never sent").help("leave it out"));
        }
        if !is_method(text) {
            let example =
                if is_method(&text.to_ascii_uppercase()) { text.to_ascii_uppercase() } else { "GET".to_owned() };
            return Err(Broken::new("a method is in upper-case letters").write(format_args!("\"{example}\"")));
        }
        Ok(Self(text.to_owned()))
    }
}

// === impl Rules ===

impl Rules {
    fn new(allow: Vec<Rule>, deny: Vec<Rule>) -> Self {
        let allow_index = Index::new(&allow, OddPath::FitsNone);
        let deny_index = Index::new(&deny, OddPath::FitsAll);
        Self { allow, deny, allow_index, deny_index }
    }

    /// Whether nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty()
    }

    /// The rules that allow, in the file's order.
    pub fn iter(&self) -> std::slice::Iter<'_, Rule> {
        self.allow.iter()
    }

    fn get(&self, index: usize) -> Option<&Rule> {
        self.allow.get(index)
    }
}

/// Without the indices, which follow from the rules and have no order of their own.
impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("allow", &self.allow).field("deny", &self.deny).finish_non_exhaustive()
    }
}

// === The decision ===

/// Why a call is refused, before it is put into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Why.
    pub reason: Reason,
    nearest: Nearest,
}

/// The rule that stands in the way, or came nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nearest {
    None,
    /// None, as in report mode, for an address that would need one.
    Address(IpAddr),
    /// One of those that allow; with the address that it does not let pass.
    Allow(usize, Option<IpAddr>),
    /// One of those that deny.
    Deny(usize),
}

/// Decides on a call. `url` comes from [`parse_target`] or [`parse_redirect`]. Allocates nothing when it refuses.
///
/// # Errors
/// Any [`Reason`] of a host, a path, a method or an address.
pub fn verdict(rules: &Rules, machine: &Machine, method: &str, url: &Url) -> Result<HttpMatch, Verdict> {
    let refuse = |reason, nearest| Err(Verdict { reason, nearest });
    if !is_method(method) || REFUSED_METHODS.contains(&method) {
        return refuse(Reason::MethodNotAllowed, Nearest::None);
    }
    if let Some(index) = denied_by(rules, method, url) {
        return refuse(Reason::DeniedByRule, Nearest::Deny(index));
    }
    let known = address::known(url.host());
    let (mut first_match, mut is_open) = (None::<usize>, known.is_empty());
    let found = rules.allow_index.find(url, |index| {
        let Some(rule) = rules.get(index).filter(|rule| rule.allows_method(method)) else { return };
        first_match = least(first_match, index);
        // `localhost` has two addresses; one that passes is enough to go on.
        is_open |= known.iter().any(|address| machine.check(rule.addresses.iter(), at(url, *address)).is_ok());
    });
    let Some(first_match) = first_match else {
        return match (found.of_path, found.of_origin) {
            (Some(index), _) => refuse(Reason::MethodNotAllowed, Nearest::Allow(index, None)),
            (None, Some(index)) => refuse(Reason::PathNotAllowed, Nearest::Allow(index, None)),
            (None, None) if rules.is_empty() => refuse(Reason::NotGranted, Nearest::None),
            (None, None) => refuse(Reason::HostNotAllowed, Nearest::None),
        };
    };
    let never = known.iter().find(|address| !machine.is_open_to_rules(at(url, **address)));
    if let Some(address) = never.or(known.first()).filter(|_| !is_open) {
        return refuse(machine.reason(at(url, *address)).0, Nearest::Allow(first_match, Some(*address)));
    }
    let mut matched = Vec::new();
    rules.allow_index.find(url, |index| {
        if rules.get(index).is_some_and(|rule| rule.allows_method(method)) {
            matched.push(index);
        }
    });
    matched.sort_unstable();
    matched.dedup();
    Ok(HttpMatch { rules: matched })
}

/// The first rule that denies a call.
fn denied_by(rules: &Rules, method: &str, url: &Url) -> Option<usize> {
    let mut first = None;
    rules.deny_index.find(url, |index| {
        if rules.deny.get(index).is_some_and(|rule| rule.allows_method(method)) {
            first = least(first, index);
        }
    });
    first
}

/// [`verdict`], with a refusal in words.
///
/// # Errors
/// As [`verdict`].
pub fn decide(rules: &Rules, machine: &Machine, method: &str, url: &Url) -> Result<HttpMatch, Refusal> {
    let call = Call { rules, machine, method, url, is_path_known: true };
    verdict(rules, machine, method, url).map_err(|verdict| call.explain(verdict))
}

/// A call as its refusal shows it: without the query, which may hold secrets, and the record of a refusal is kept.
pub(super) fn shown(method: &str, url: &Url) -> String {
    format!("{method} {}{}", url.origin().ascii_serialization(), url.path())
}

/// The list of the rules that leaves a call out, by its key. None: they name it. Addresses do not count.
pub(super) fn left_out(rules: &Rules, method: &str, url: &Url) -> Option<&'static str> {
    let mut is_named = false;
    let found = rules.allow_index.find(url, |index| {
        is_named |= rules.get(index).is_some_and(|rule| rule.allows_method(method));
    });
    match (found.of_origin, found.of_path) {
        _ if is_named => None,
        (_, Some(_)) => Some("methods"),
        (Some(_), None) => Some("paths"),
        (None, None) => Some("hosts"),
    }
}

/// Whether every call is refused whose URL begins so, of which the rest of the path, and perhaps the method, is not
/// known. `method`: None, it may be any.
///
/// # Errors
/// The refusal of all these calls. Without one, some of them may be allowed or not.
pub fn decide_start(rules: &Rules, machine: &Machine, method: Option<&str>, url: &Url) -> Result<(), Refusal> {
    let given = method.unwrap_or("GET");
    let Err(found) = verdict(rules, machine, given, url) else { return Ok(()) };
    let is_certain = match found.reason {
        Reason::NotGranted | Reason::HostNotAllowed | Reason::AddressNeverAllowed => true,
        // Another rule may name the other address of `localhost`, where nobody of ours listens.
        Reason::OwnListener => {
            address::known(url.host()).iter().all(|address| !machine.is_open_to_rules(at(url, *address)))
        }
        // The rule may be for this very path, or for some methods: then it does not deny what is odd.
        Reason::DeniedByRule => {
            let mut longer = url.clone();
            longer.set_path(&format!("{}~", url.path()));
            let is_denied = |method, url| denied_by(rules, method, url).is_some();
            is_denied(given, &longer) && (method.is_some() || is_denied("-", url))
        }
        // One that no rule can allow.
        Reason::MethodNotAllowed => found.nearest == Nearest::None,
        _ => false,
    };
    let call = Call { rules, machine, method: given, url, is_path_known: false };
    if is_certain { Err(call.explain(found)) } else { Ok(()) }
}

/// Whether a matched call may be connected to an address. To be asked of every address before it is
/// dialled, and of the peer's address afterwards.
pub fn allows_address(rules: &Rules, machine: &Machine, matched: &HttpMatch, to: SocketAddr) -> bool {
    // Without a rule, as in report mode, no private address is named.
    if matched.rules.is_empty() {
        return machine.check([].iter(), to).is_ok();
    }
    let mut matched = matched.rules.iter().filter_map(|index| rules.get(*index));
    matched.any(|rule| machine.check(rule.addresses.iter(), to).is_ok())
}

/// Where the rule stands that allows a call, as far as its address is known.
pub fn place(rules: &Rules, machine: &Machine, matched: &HttpMatch, url: &Url) -> Option<Place> {
    place_at(rules, machine, matched, url, &address::known(url.host()))
}

/// Where the first of the matched rules stands that lets one of these addresses pass; without addresses the first of all.
pub fn place_at(
    rules: &Rules,
    machine: &Machine,
    matched: &HttpMatch,
    url: &Url,
    addresses: &[IpAddr],
) -> Option<Place> {
    let mut matched = matched.rules.iter().filter_map(|index| rules.get(*index));
    let passes =
        |rule: &Rule| addresses.iter().any(|address| machine.check(rule.addresses.iter(), at(url, *address)).is_ok());
    matched.find(|rule| addresses.is_empty() || passes(rule)).map(|rule| rule.place.clone())
}

/// [`allows_address`], with a refusal that says why not.
///
/// # Errors
/// [`Reason::AddressNotAllowed`], [`Reason::AddressNeverAllowed`] or [`Reason::OwnListener`].
pub fn check_address(
    rules: &Rules,
    machine: &Machine,
    matched: &HttpMatch,
    method: &str,
    url: &Url,
    address: IpAddr,
) -> Result<(), Refusal> {
    let to = at(url, address);
    if allows_address(rules, machine, matched, to) {
        return Ok(());
    }
    let nearest =
        matched.rules.first().map_or(Nearest::Address(address), |first| Nearest::Allow(*first, Some(address)));
    let call = Call { rules, machine, method, url, is_path_known: true };
    Err(call.explain(Verdict { reason: machine.reason(to).0, nearest }))
}

/// An address of the URL's host, on the URL's port. A URL that is allowed has one; no listener is on port 0.
fn at(url: &Url, address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, url.port_or_known_default().unwrap_or(0))
}

/// A call, for the words of its refusal.
struct Call<'a> {
    rules: &'a Rules,
    machine: &'a Machine,
    method: &'a str,
    url: &'a Url,
    /// Whether that is the whole path.
    is_path_known: bool,
}

impl Call<'_> {
    fn explain(&self, verdict: Verdict) -> Refusal {
        let Verdict { reason, nearest } = verdict;
        let refusal = self.refuse(reason);
        match nearest {
            Nearest::None if reason == Reason::MethodNotAllowed => refusal.note("a method that no rule can allow"),
            Nearest::None => self.with_remedy(refusal, None),
            Nearest::Address(address) => self.at_address(refusal, address),
            // No fix: it stands in the file on purpose, and nothing that is added could outdo it.
            Nearest::Deny(index) => match self.rules.deny.get(index) {
                Some(rule) => refusal.near(&rule.place),
                None => refusal,
            },
            Nearest::Allow(index, address) => {
                let refusal = match self.rules.get(index) {
                    Some(rule) => refusal.near(&rule.place),
                    None => refusal,
                };
                match address {
                    Some(address) => self.at_address(refusal, address),
                    None => self.with_remedy(refusal, None),
                }
            }
        }
    }

    /// Adds what is to be said of an address.
    fn at_address(&self, refusal: Refusal, address: IpAddr) -> Refusal {
        let address = address.to_canonical();
        let what = self.machine.reason(at(self.url, address)).1;
        self.with_remedy(refusal.operator_note(format!("the address is {address}, {what}")), Some(address))
    }

    fn refuse(&self, reason: Reason) -> Refusal {
        Refusal::new(CAPABILITY, &shown(self.method, self.url), reason)
    }

    /// Adds what would allow the call, unless nothing would.
    fn with_remedy(&self, refusal: Refusal, resolved: Option<IpAddr>) -> Refusal {
        let known = address::known(self.url.host());
        // A script may be told an address that stands in its own URL, and no other.
        let addresses_are_known = resolved.is_none_or(|address| known.contains(&address));
        let addresses: Vec<IpAddr> = if addresses_are_known { known.to_vec() } else { resolved.into_iter().collect() };
        if addresses.iter().any(|address| !self.machine.is_open_to_rules(at(self.url, *address))) {
            return refusal;
        }
        refusal.remedy(Remedy::Http {
            origin: self.url.origin().ascii_serialization(),
            method: self.method.to_owned(),
            path: Some(self.url.path())
                .filter(|path| self.is_path_known && PathPattern::parse(path).is_ok())
                .map(str::to_owned),
            addresses: addresses.into_iter().flat_map(|address| self.machine.networks(address)).collect(),
            addresses_are_known,
        })
    }
}

impl Rule {
    fn allows_method(&self, method: &str) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.iter().any(|known| known.as_str() == method))
    }
}

fn is_method(text: &str) -> bool {
    (1..=MAX_METHOD_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || b"-_".contains(&byte))
}

// === Conversion ===

/// Converts the rules that allow, at `allow_at`, and those that deny, at `deny_at`.
pub(super) fn enforce(
    allow: Vec<Spanned<HttpToml>>,
    allow_at: &str,
    deny: Vec<Spanned<DenyHttpToml>>,
    deny_at: &str,
    errors: &mut Errors<'_>,
) -> Rules {
    let allow = allow.into_iter().enumerate().map(|(index, rule)| {
        let (at, span) = (format!("{allow_at}[{index}]"), rule.span());
        let HttpToml { hosts, addresses, methods, paths } = rule.into_inner();
        let addresses = errors.list(&child(&at, "addresses"), &addresses.unwrap_or_default(), address::parse_network);
        let rule = self::written_rule(&at, span, [hosts, methods, paths], "allows", errors);
        Rule { addresses, ..rule }
    });
    let allow = allow.collect();
    let deny = deny.into_iter().enumerate().map(|(index, rule)| {
        let (at, span) = (format!("{deny_at}[{index}]"), rule.span());
        let DenyHttpToml { hosts, methods, paths } = rule.into_inner();
        self::written_rule(&at, span, [hosts, methods, paths], "denies", errors)
    });
    let deny = deny.collect();
    Rules::new(allow, deny)
}

/// Converts the rules of a module, which leave addresses to its tenant's.
pub(super) fn enforce_of_module(raw: Vec<Spanned<ModuleHttpToml>>, at: &str, errors: &mut Errors<'_>) -> Rules {
    let allow = raw.into_iter().enumerate().map(|(index, rule)| {
        let (at, span) = (format!("{at}[{index}]"), rule.span());
        module_rule(rule.into_inner(), &at, span, errors)
    });
    let allow = allow.collect();
    Rules::new(allow, Vec::new())
}

/// Converts the one rule of a narrowing.
pub(super) fn enforce_of_narrowing(raw: ModuleHttpToml, errors: &mut Errors<'_>) -> Rules {
    Rules::new(vec![module_rule(raw, "", 0..0, errors)], Vec::new())
}

fn module_rule(raw: ModuleHttpToml, at: &str, span: Range<usize>, errors: &mut Errors<'_>) -> Rule {
    let ModuleHttpToml { hosts, methods, paths } = raw;
    let rule = self::written_rule(at, span, [hosts, methods, paths], "allows", errors);
    Rule { addresses: all_networks(), ..rule }
}

/// A rule without addresses. `does`: what it does.
fn written_rule(
    at: &str,
    span: Range<usize>,
    [hosts, methods, paths]: [Option<Vec<Text>>; 3],
    does: &str,
    errors: &mut Errors<'_>,
) -> Rule {
    match &hosts {
        None => errors.missing(at, "hosts", span.clone(), "[\"https://api.example.com\"]"),
        Some(hosts) if hosts.is_empty() => {
            let broken = Broken::new(format!("a rule without hosts {does} nothing"))
                .write("hosts = [\"https://api.example.com\"]");
            errors.add_without_value(&child(at, "hosts"), span.clone(), broken);
        }
        Some(_) => {}
    }
    for (key, list) in [("methods", &methods), ("paths", &paths)] {
        if list.as_ref().is_some_and(Vec::is_empty) {
            let broken = Broken::new(format!("a rule without {key} {does} nothing"))
                .help(format!("leave the key out for all {key}"));
            errors.add_without_value(&child(at, key), span.clone(), broken);
        }
    }
    Rule {
        origins: errors.list(&child(at, "hosts"), &hosts.unwrap_or_default(), OriginPattern::parse),
        addresses: Vec::new(),
        methods: methods.map(|methods| errors.list(&child(at, "methods"), &methods, Method::parse)),
        paths: paths.map(|paths| errors.list(&child(at, "paths"), &paths, PathPattern::parse)),
        place: errors.place(&span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(origins: &[&str], addresses: &[&str], methods: Option<&[&str]>) -> Rule {
        Rule {
            origins: origins.iter().map(|text| OriginPattern::parse(text).expect(text)).collect(),
            addresses: addresses.iter().map(|text| address::parse_network(text).expect(text)).collect(),
            methods: methods.map(|methods| methods.iter().map(|text| Method::parse(text).expect(text)).collect()),
            paths: None,
            place: Place::new(std::path::Path::new("p.toml"), 1),
        }
    }

    fn rules() -> Rules {
        let allow = vec![
            rule(&["https://api.example.com", "https://*.cdn.example.com"], &[], Some(&["GET"])),
            rule(&["http://127.0.0.1:9000", "http://db.internal"], &["127.0.0.0/8", "10.0.0.0/8"], None),
            rule(&["https://api.example.com"], &["10.0.0.0/8"], Some(&["GET", "POST"])),
            rule(
                &["http://10.0.0.1", "http://localhost:1", "http://x.localhost:1", "http://[64:ff9b::7f00:1]"],
                &[],
                None,
            ),
            rule(&["http://x.localhost:1"], &["::1/128"], Some(&["GET"])),
            rule(&["http://169.254.169.254"], &["0.0.0.0/0"], None),
        ];
        Rules::new(allow, Vec::new())
    }

    fn url(text: &str) -> Url {
        parse_target(text).expect(text)
    }

    #[test]
    fn a_call_is_allowed_by_the_rules_that_allow_all_of_it() {
        for (method, target, expected) in [
            ("GET", "https://api.example.com/x", Ok(vec![0, 2])),
            ("POST", "https://api.example.com/x", Ok(vec![2])),
            ("PUT", "https://api.example.com/x", Err(Reason::MethodNotAllowed)),
            ("get", "https://api.example.com/x", Err(Reason::MethodNotAllowed)),
            ("GET", "https://a.cdn.example.com/", Ok(vec![0])),
            ("POST", "https://a.cdn.example.com/", Err(Reason::MethodNotAllowed)),
            ("GET", "https://cdn.example.com/", Err(Reason::HostNotAllowed)),
            ("GET", "http://api.example.com/", Err(Reason::HostNotAllowed)),
            ("GET", "https://api.example.com:8443/", Err(Reason::HostNotAllowed)),
            ("GET", "https://api.example.com.evil.com/", Err(Reason::HostNotAllowed)),
            ("DELETE", "http://127.0.0.1:9000/", Ok(vec![1])),
            ("PROPFIND", "http://127.0.0.1:9000/", Ok(vec![1])),
            ("CONNECT", "http://127.0.0.1:9000/", Err(Reason::MethodNotAllowed)),
            ("TRACE", "http://127.0.0.1:9000/", Err(Reason::MethodNotAllowed)),
            ("", "http://127.0.0.1:9000/", Err(Reason::MethodNotAllowed)),
            ("GET /x HTTP/1.1\r\nX:", "http://127.0.0.1:9000/", Err(Reason::MethodNotAllowed)),
            ("GET", "http://127.0.0.1/", Err(Reason::HostNotAllowed)),
            ("GET", "http://10.0.0.1/", Err(Reason::AddressNotAllowed)),
            ("GET", "http://localhost:1/", Err(Reason::AddressNotAllowed)),
            ("POST", "http://x.localhost:1/", Err(Reason::AddressNotAllowed)),
            ("GET", "http://x.localhost:1/", Ok(vec![3, 4])),
            ("GET", "http://[64:ff9b::7f00:1]/", Err(Reason::AddressNotAllowed)),
            ("GET", "http://169.254.169.254/latest", Err(Reason::AddressNeverAllowed)),
            ("GET", "http://localhost:9000/", Err(Reason::HostNotAllowed)),
        ] {
            let decision = decide(&rules(), &Machine::default(), method, &url(target))
                .map(|matched| matched.rules)
                .map_err(|refusal| refusal.reason);
            assert_eq!(decision, expected, "{method} {target}");
        }
        assert_eq!(
            decide(&Rules::default(), &Machine::default(), "GET", &url("https://a.example"))
                .map_err(|refusal| refusal.reason),
            Err(Reason::NotGranted)
        );
    }

    fn with_paths(rule: Rule, paths: &[&str]) -> Rule {
        let paths = paths.iter().map(|text| PathPattern::parse(text).expect(text)).collect();
        Rule { paths: Some(paths), ..rule }
    }

    #[test]
    fn a_path_is_compared_as_it_is_sent() {
        let api = || rule(&["https://api.example.com"], &[], None);
        let rules = Rules::new(
            vec![
                with_paths(api(), &["/v1/*", "/health"]),
                with_paths(rule(&["https://*.example.com"], &[], Some(&["GET"])), &["/a/b/*"]),
            ],
            Vec::new(),
        );
        for (method, target, expected) in [
            ("GET", "https://api.example.com/v1", Ok(vec![0])),
            ("PUT", "https://api.example.com/v1/", Ok(vec![0])),
            ("GET", "https://api.example.com/v1/x/y?q=/../..", Ok(vec![0])),
            ("GET", "https://api.example.com/v1/x%20y/caf%C3%A9", Ok(vec![0])),
            ("GET", "https://api.example.com/health", Ok(vec![0])),
            ("GET", "https://api.example.com/health#x", Ok(vec![0])),
            ("GET", "https://api.example.com/a/b/c", Ok(vec![1])),
            ("PUT", "https://api.example.com/a/b/c", Err(Reason::MethodNotAllowed)),
            ("GET", "https://x.example.com/a/b", Ok(vec![1])),
            ("GET", "https://x.example.com/a/bc", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/health/", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/healthy", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v10", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/V1/x", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/", Err(Reason::PathNotAllowed)),
            // The parser resolves these before they are compared, and sends them so.
            ("GET", "https://api.example.com/v1/../admin", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v1/%2e%2e/admin", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/x/../v1/y", Ok(vec![0])),
            // These are sent as they are, and servers differ in what they read.
            ("GET", "https://api.example.com/v1//x", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v1/..%2fadmin", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v1/..%2Fadmin", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v1/%5c..%5cadmin", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v1/..;/admin", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v1/x;y", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v1/%61", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v1/%00", Err(Reason::PathNotAllowed)),
            ("GET", "https://api.example.com/v1/%252e", Err(Reason::PathNotAllowed)),
        ] {
            let decision = decide(&rules, &Machine::default(), method, &url(target))
                .map(|found| found.rules)
                .map_err(|refusal| refusal.reason);
            assert_eq!(decision, expected, "{method} {target}");
        }
    }

    #[test]
    fn a_rule_that_denies_wins_over_all_that_allow() {
        let allow = vec![rule(
            &["https://*.example.com", "https://example.com", "http://127.0.0.1:9000"],
            &["127.0.0.0/8"],
            None,
        )];
        let deny = vec![
            rule(&["https://*.internal.example.com"], &[], None),
            with_paths(rule(&["https://api.example.com"], &[], None), &["/admin/*"]),
            with_paths(rule(&["https://*.example.com"], &[], Some(&["DELETE"])), &["/v1/*"]),
            with_paths(rule(&["https://*.example.com"], &[], Some(&["PATCH"])), &["/v2/*"]),
            rule(&["http://127.0.0.1:9000"], &[], Some(&["POST"])),
        ];
        let rules = Rules::new(allow, deny);
        for (method, target, allowed) in [
            ("GET", "https://example.com/admin", true),
            ("GET", "https://api.example.com/", true),
            ("GET", "https://api.example.com/administrator", true),
            ("GET", "https://api.example.com/admin", false),
            ("GET", "https://api.example.com/admin/", false),
            ("GET", "https://api.example.com/x/../admin/y", false),
            ("GET", "https://api.example.com/x//admin", false),
            ("GET", "https://api.example.com/%61dmin", false),
            ("GET", "https://api.example.com/x;/../admin", false),
            ("GET", "https://www.example.com/x//admin", true),
            ("DELETE", "https://www.example.com/x//admin", false),
            // Not the first of the rules with paths for this host, but one of them.
            ("PATCH", "https://www.example.com/x//admin", false),
            ("DELETE", "https://www.example.com/v1/x", false),
            ("DELETE", "https://www.example.com/v2", true),
            ("GET", "https://a.internal.example.com/", false),
            ("GET", "https://internal.example.com/", true),
            ("POST", "http://127.0.0.1:9000/", false),
            ("GET", "http://127.0.0.1:9000/", true),
        ] {
            let decision = decide(&rules, &Machine::default(), method, &url(target));
            assert_eq!(decision.is_ok(), allowed, "{method} {target}: {decision:?}");
            if let Err(refusal) = decision {
                assert_eq!((refusal.reason, refusal.fix), (Reason::DeniedByRule, None), "{method} {target}");
                assert!(refusal.rule.is_some(), "{method} {target}");
            }
        }
    }

    #[test]
    fn the_index_finds_what_a_look_at_every_rule_finds() {
        let hosts = [
            "https://a.example.com",
            "https://*.example.com",
            "https://*.a.example.com",
            "http://a.example.com:8080",
            "http://10.1.2.3",
            "http://[fd12::1]:9",
        ];
        let paths: [Option<&[&str]>; 5] =
            [None, Some(&["/*"]), Some(&["/v1/*", "/"]), Some(&["/v1/x"]), Some(&["/v1/x/*", "/v1/x/y"])];
        let mut allow = Vec::new();
        for host in hosts {
            for paths in paths {
                for methods in [None, Some(&["GET"][..])] {
                    let rule = rule(&[host, "https://a.example.com"], &["10.0.0.0/8", "fd00::/8"], methods);
                    allow.push(match paths {
                        Some(paths) => with_paths(rule, paths),
                        None => rule,
                    });
                }
            }
        }
        let fits = |rule: &Rule, method: &str, url: &Url| {
            let path_fits = |pattern: &PathPattern| match pattern {
                PathPattern::Exact(path) => path == url.path(),
                PathPattern::Below(path) => {
                    url.path() == path
                        || url.path().strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('/'))
                }
            };
            rule.origins.iter().any(|origin| origin.matches(url))
                && rule.allows_method(method)
                && rule.paths.as_ref().is_none_or(|paths| paths.iter().any(path_fits))
        };
        let rules = Rules::new(allow, Vec::new());
        for host in [
            "https://a.example.com",
            "https://b.a.example.com",
            "https://example.com",
            "http://a.example.com:8080",
            "http://10.1.2.3",
            "http://[fd12::1]:9",
            "http://[fd12::1]",
        ] {
            for path in ["", "/", "/v1", "/v1/", "/v1/x", "/v1/x/", "/v1/x/y", "/v1/x/y/z", "/v1x", "/v"] {
                for method in ["GET", "PUT"] {
                    let url = url(&format!("{host}{path}"));
                    let slow: Vec<usize> =
                        (0..rules.allow.len()).filter(|index| fits(&rules.allow[*index], method, &url)).collect();
                    let fast =
                        verdict(&rules, &Machine::default(), method, &url).map(|found| found.rules).unwrap_or_default();
                    assert_eq!(fast, slow, "{method} {url}");
                }
            }
        }
    }

    #[test]
    fn an_address_passes_by_a_rule_that_allows_the_call_and_by_no_other() {
        for (method, target, address, expected) in [
            ("GET", "https://api.example.com/", "93.184.215.14", Ok(())),
            ("GET", "https://api.example.com/", "10.0.0.5", Ok(())),
            ("GET", "https://a.cdn.example.com/", "10.0.0.5", Err(Reason::AddressNotAllowed)),
            ("GET", "https://api.example.com/", "127.0.0.1", Err(Reason::AddressNotAllowed)),
            ("GET", "https://api.example.com/", "::1", Err(Reason::AddressNotAllowed)),
            ("GET", "https://api.example.com/", "169.254.169.254", Err(Reason::AddressNeverAllowed)),
            ("GET", "http://127.0.0.1:9000/", "127.0.0.1", Ok(())),
            ("GET", "http://127.0.0.1:9000/", "::ffff:127.0.0.1", Ok(())),
            ("GET", "http://127.0.0.1:9000/", "192.168.0.1", Err(Reason::AddressNotAllowed)),
        ] {
            let matched = decide(&rules(), &Machine::default(), method, &url(target)).expect(target);
            let address: IpAddr = address.parse().expect(address);
            let decision = check_address(&rules(), &Machine::default(), &matched, method, &url(target), address)
                .map_err(|refusal| refusal.reason);
            assert_eq!(decision, expected, "{method} {target} at {address}");
        }
    }

    #[test]
    fn a_match_that_belongs_to_other_rules_allows_nothing() {
        let matched = decide(&rules(), &Machine::default(), "GET", &url("https://api.example.com/")).expect("allowed");
        let address = "93.184.215.14".parse().expect("an address");
        assert!(
            check_address(
                &Rules::default(),
                &Machine::default(),
                &matched,
                "GET",
                &url("https://api.example.com/"),
                address
            )
            .is_err()
        );
    }

    #[test]
    fn a_script_never_learns_what_a_name_resolved_to() {
        let target = url("https://api.example.com/x?token=secret");
        let matched = decide(&rules(), &Machine::default(), "GET", &target).expect("allowed");
        let address = "192.168.7.9".parse().expect("an address");
        let refusal =
            check_address(&rules(), &Machine::default(), &matched, "GET", &target, address).expect_err("private");
        let refusal = refusal.with_fix(&super::super::Tenant::without_grants("acme", "main.luau"));
        let detail = refusal.operator_detail();
        assert_eq!(
            detail,
            "http denied: GET https://api.example.com/x: the host has a private or special address that no rule names \
             [address_not_allowed]; the address is 192.168.7.9, private use; rule: p.toml:1"
        );
        assert!(refusal.operator_fix().is_some_and(|fix| fix.contains("\"192.168.7.9/32\"")));
        let error = neoc_abi::OperationError::from(refusal);
        assert_eq!(error.fix, None);
        assert!(!format!("{error:?}").contains("192.168"), "{error:?}");
    }

    #[test]
    fn a_url_that_is_not_known_to_its_end_is_refused_where_no_end_helps() {
        let deny = |host: &str, methods, paths: Option<&[&str]>| match paths {
            Some(paths) => with_paths(rule(&[host], &[], methods), paths),
            None => rule(&[host], &[], methods),
        };
        let rules = Rules::new(
            vec![
                with_paths(rule(&["https://a.example"], &[], Some(&["PUT"])), &["/v1/x"]),
                rule(&["https://b.example", "https://c.example", "https://d.example"], &[], None),
                rule(&["http://10.0.0.1", "http://169.254.169.254"], &[], None),
            ],
            vec![
                deny("https://b.example", None, Some(&["/admin/*", "/v1"])),
                deny("https://c.example", Some(&["GET"]), None),
                deny("https://d.example", None, None),
            ],
        );
        let any = None;
        for (method, start, expected) in [
            (any, "https://x.example/", Err(Reason::HostNotAllowed)),
            (Some("GET"), "https://a.example/v1/", Ok(())),
            (any, "https://a.example/v2/", Ok(())),
            (any, "https://b.example/", Ok(())),
            (Some("GET"), "https://b.example/admin/", Err(Reason::DeniedByRule)),
            (any, "https://b.example/admin/", Err(Reason::DeniedByRule)),
            (any, "https://b.example/admin", Ok(())),
            (any, "https://b.example/v1", Ok(())),
            (Some("GET"), "https://c.example/", Err(Reason::DeniedByRule)),
            (Some("PUT"), "https://c.example/", Ok(())),
            (any, "https://c.example/", Ok(())),
            (any, "https://d.example/", Err(Reason::DeniedByRule)),
            (any, "http://10.0.0.1/", Ok(())),
            (any, "http://169.254.169.254/", Err(Reason::AddressNeverAllowed)),
            (Some("TRACE"), "https://a.example/", Err(Reason::MethodNotAllowed)),
        ] {
            let decision = decide_start(&rules, &Machine::default(), method, &url(start));
            assert_eq!(decision.map_err(|refusal| refusal.reason), expected, "{method:?} {start}");
        }
        let names = ["http://127.0.0.1", "http://localhost"];
        let rules = Rules::new(vec![rule(&names, &["127.0.0.0/8"], None)], Vec::new());
        let machine = Machine::new([], Some(([127, 0, 0, 1], 80).into()));
        for (start, expected) in [
            ("http://127.0.0.1/", Err(Reason::OwnListener)),
            // By its other address it may lead elsewhere.
            ("http://localhost/", Ok(())),
        ] {
            let decision = decide_start(&rules, &machine, any, &url(start));
            assert_eq!(decision.map_err(|refusal| refusal.reason), expected, "{start}");
        }
        let tenant = super::super::Tenant::without_grants("acme", "main.luau");
        let refusal = decide_start(&Rules::default(), &Machine::default(), any, &url("https://a.example/v1/"))
            .expect_err("no rules");
        let fix = "[[tenant.acme.allow.http]]\nhosts = [\"https://a.example\"]\nmethods = [\"GET\"]\n# every path is allowed\n";
        assert_eq!(refusal.with_fix(&tenant).fix.as_deref(), Some(fix));
    }

    #[test]
    fn a_query_is_not_repeated() {
        let refusal = decide(&rules(), &Machine::default(), "GET", &url("https://other.example/x?token=secret#y"))
            .expect_err("not granted");
        assert_eq!(refusal.target, "GET https://other.example/x");
    }

    #[test]
    fn methods_are_upper_case_and_harmless() {
        for text in ["GET", "POST", "PROPFIND", "M-SEARCH"] {
            assert!(Method::parse(text).is_ok(), "{text}");
        }
        for text in ["", "get", "Get", "GET ", "*", "GET,POST", "CONNECT", "TRACE", "TRACK", "G\nT"] {
            assert!(Method::parse(text).is_err(), "{text:?}");
        }
    }
}
