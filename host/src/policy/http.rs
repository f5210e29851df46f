//! `[[tenant.NAME.allow.http]]`: rules for outbound HTTP, and the decision on a call.
//!
//! A call is decided in two steps, because the address of a name is not known at first:
//!
//! 1. [`decide`]: origin and method, and the address where the URL itself tells it. Every rule that
//!    allows origin and method goes into the [`HttpMatch`].
//! 2. [`check_address`]: each address, on its way to the socket. It passes if one of the matched rules
//!    lets it pass; a rule that did not match in step 1 has no say.
//!
//! So a rule allows a call or it does not, by itself; rules never combine, and one more rule only adds.
//! A pool of connections must be keyed by the [`HttpMatch`] too: a connection opened under a rule that
//! names `10.0.0.0/8` must not serve a call that only matched a rule without.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use toml::Spanned;
use url::{Host, Url};

pub use super::target::{TargetError, parse_redirect, parse_target};
use super::{
    address::{self, Class},
    error::{Broken, Errors, child},
    fix::Remedy,
    origin::OriginPattern,
    raw::HttpToml,
    refusal::{Reason, Refusal},
};

/// The capability's name in errors, logs and metrics.
pub const CAPABILITY: &str = "http";

/// Longest method, in bytes.
const MAX_METHOD_BYTES: usize = 32;

/// Methods that no rule allows: one opens a tunnel past every check, the others echo secrets.
const REFUSED_METHODS: [&str; 3] = ["CONNECT", "TRACE", "TRACK"];

/// One rule as enforced.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where a call may go. Never empty.
    pub origins: Vec<OriginPattern>,
    /// Private and special networks that the hosts may resolve to. Public addresses need no name.
    pub addresses: Vec<IpNet>,
    /// Absent: all but those that no rule allows.
    pub methods: Option<Vec<Method>>,
    /// Where the policy file has the rule.
    pub line: u32,
}

/// An upper-case HTTP method that a call may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method(String);

/// The rules that allow a call, as indices into the tenant's rules. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpMatch {
    rules: Vec<usize>,
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

// === The decision ===

/// Decides on a call. `url` comes from [`parse_target`] or [`parse_redirect`].
///
/// # Errors
/// Any [`Reason`] of a host, a method or an address.
pub fn decide(rules: &[Rule], method: &str, url: &Url) -> Result<HttpMatch, Refusal> {
    let call = Call { rules, method, url };
    let matched = call.find_rules()?;
    let known = known_addresses(url.host());
    // `localhost` has two addresses; one that passes is enough to go on.
    match known.first() {
        Some(first) if !known.iter().any(|address| allows_address(rules, &matched, *address)) => {
            Err(call.refuse_address(&matched, *first))
        }
        _ => Ok(matched),
    }
}

/// Whether a matched call may be connected to an address. To be asked of every address before it is
/// dialled, and of the peer's address afterwards.
pub fn allows_address(rules: &[Rule], matched: &HttpMatch, address: IpAddr) -> bool {
    let mut matched = matched.rules.iter().filter_map(|index| rules.get(*index));
    matched.any(|rule| address::check(rule.addresses.iter(), address).is_ok())
}

/// [`allows_address`], with a refusal that says why not.
///
/// # Errors
/// [`Reason::AddressNotAllowed`] or [`Reason::AddressNeverAllowed`].
pub fn check_address(
    rules: &[Rule],
    matched: &HttpMatch,
    method: &str,
    url: &Url,
    address: IpAddr,
) -> Result<(), Refusal> {
    if allows_address(rules, matched, address) {
        return Ok(());
    }
    Err(Call { rules, method, url }.refuse_address(matched, address))
}

/// A call, for the words of its refusal.
struct Call<'a> {
    rules: &'a [Rule],
    method: &'a str,
    url: &'a Url,
}

impl Call<'_> {
    fn find_rules(&self) -> Result<HttpMatch, Refusal> {
        let Self { rules, method, url } = self;
        if !is_method(method) || REFUSED_METHODS.contains(method) {
            return Err(self.refuse(Reason::MethodNotAllowed).note("a method that no rule can allow"));
        }
        let mut matched = Vec::new();
        let mut nearest = None;
        for (index, rule) in rules.iter().enumerate() {
            if rule.origins.iter().any(|origin| origin.matches(url)) {
                if rule.allows_method(method) {
                    matched.push(index);
                }
                nearest = nearest.or(Some((index, rule.line)));
            }
        }
        if !matched.is_empty() {
            return Ok(HttpMatch { rules: matched });
        }
        let refusal = match nearest {
            Some((index, line)) => self.refuse(Reason::MethodNotAllowed).near(index, line),
            None if rules.is_empty() => self.refuse(Reason::NotGranted),
            None => self.refuse(Reason::HostNotAllowed),
        };
        Err(self.with_remedy(refusal, None))
    }

    fn refuse_address(&self, matched: &HttpMatch, address: IpAddr) -> Refusal {
        let address = address.to_canonical();
        let (reason, what) = match address::classify(address) {
            Class::Never(what) => (Reason::AddressNeverAllowed, what),
            Class::Special(what) => (Reason::AddressNotAllowed, what),
            // Only without any rule: then nothing passes.
            Class::Public => (Reason::AddressNotAllowed, "public"),
        };
        let refusal = self.refuse(reason).operator_note(format!("the address is {address}, {what}"));
        let first = matched.rules[0];
        let refusal = match self.rules.get(first) {
            Some(rule) => refusal.near(first, rule.line),
            None => refusal,
        };
        self.with_remedy(refusal, Some(address))
    }

    fn refuse(&self, reason: Reason) -> Refusal {
        // Without the query: it may hold secrets, and the record of a refusal is kept.
        let target = format!("{} {}{}", self.method, self.url.origin().ascii_serialization(), self.url.path());
        Refusal::new(CAPABILITY, &target, reason)
    }

    /// Adds what would allow the call, unless nothing would.
    fn with_remedy(&self, refusal: Refusal, resolved: Option<IpAddr>) -> Refusal {
        let known = known_addresses(self.url.host());
        // A script may be told an address that stands in its own URL, and no other.
        let addresses_are_known = resolved.is_none_or(|address| known.contains(&address));
        let addresses = if addresses_are_known { known } else { resolved.into_iter().collect() };
        if addresses.iter().any(|address| matches!(address::classify(*address), Class::Never(_))) {
            return refusal;
        }
        refusal.remedy(Remedy::Http {
            origin: self.url.origin().ascii_serialization(),
            method: self.method.to_owned(),
            addresses: addresses.into_iter().flat_map(networks).collect(),
            addresses_are_known,
        })
    }
}

impl Rule {
    fn allows_method(&self, method: &str) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.iter().any(|known| known.as_str() == method))
    }
}

/// The addresses of a host that needs no resolving, in their canonical form.
pub(super) fn known_addresses(host: Option<Host<&str>>) -> Vec<IpAddr> {
    match host {
        Some(Host::Ipv4(address)) => vec![address.into()],
        Some(Host::Ipv6(address)) => vec![IpAddr::from(address).to_canonical()],
        // Every name below `localhost` is loopback by definition (RFC 6761).
        Some(Host::Domain(name)) if name == "localhost" || name.ends_with(".localhost") => {
            vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        }
        _ => Vec::new(),
    }
}

/// The networks that a rule names to let an address pass: none for a public one, else itself, and a
/// special one that it carries.
pub(super) fn networks(address: IpAddr) -> Vec<String> {
    let address = address.to_canonical();
    let special = |address: &IpAddr| address::classify(*address) != Class::Public;
    let both = [Some(address), address::inside(address)].into_iter().flatten();
    both.filter(special).map(|address| IpNet::from(address).to_string()).collect()
}

fn is_method(text: &str) -> bool {
    (1..=MAX_METHOD_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || b"-_".contains(&byte))
}

// === Conversion ===

pub(super) fn enforce(raw: Vec<Spanned<HttpToml>>, at: &str, errors: &mut Errors<'_>) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(raw.len());
    for (index, rule) in raw.into_iter().enumerate() {
        let at = format!("{at}[{index}]");
        let span = rule.span();
        let HttpToml { hosts, addresses, methods } = rule.into_inner();
        match &hosts {
            None => errors.missing(&at, "hosts", span.clone(), "[\"https://api.example.com\"]"),
            Some(hosts) if hosts.is_empty() => {
                let broken =
                    Broken::new("a rule without hosts allows nothing").write("hosts = [\"https://api.example.com\"]");
                errors.add_without_value(&child(&at, "hosts"), span.clone(), broken);
            }
            Some(_) => {}
        }
        if methods.as_ref().is_some_and(Vec::is_empty) {
            let broken = Broken::new("a rule without methods allows nothing").help("leave the key out to allow all");
            errors.add_without_value(&child(&at, "methods"), span.clone(), broken);
        }
        rules.push(Rule {
            origins: errors.list(&child(&at, "hosts"), &hosts.unwrap_or_default(), OriginPattern::parse),
            addresses: errors.list(&child(&at, "addresses"), &addresses.unwrap_or_default(), network),
            methods: methods.map(|methods| errors.list(&child(&at, "methods"), &methods, Method::parse)),
            line: errors.line(&span),
        });
    }
    rules
}

pub(super) fn network(text: &str) -> Result<IpNet, Broken> {
    let example = "\"127.0.0.0/8\"";
    let Ok(network) = IpNet::from_str(text) else {
        return Err(match IpAddr::from_str(text) {
            Ok(address) => {
                Broken::new("a network has a prefix length").write(format_args!("\"{}\"", IpNet::from(address)))
            }
            Err(_) => Broken::new("not a network").write(example),
        });
    };
    if network.addr().to_canonical() != network.addr() {
        return Err(Broken::new("IPv4-mapped addresses are judged as IPv4; write the IPv4 network").write(example));
    }
    if network.to_string() != text {
        return Err(Broken::new("a network has one spelling").write(format_args!("\"{}\"", network.trunc())));
    }
    if network.trunc() != network {
        let rule = "bits are set behind the prefix";
        return Err(Broken::new(rule).write(format_args!(
            "\"{}\" or \"{}\"",
            network.trunc(),
            IpNet::from(network.addr())
        )));
    }
    // A network may hold such addresses; naming nothing else can only be meant to reach them.
    if matches!(
        (address::classify(network.network()), address::classify(network.broadcast())),
        (Class::Never(_), Class::Never(_))
    ) {
        return Err(Broken::new("link-local and metadata addresses are refused, also when named").help("leave it out"));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(origins: &[&str], addresses: &[&str], methods: Option<&[&str]>) -> Rule {
        Rule {
            origins: origins.iter().map(|text| OriginPattern::parse(text).expect(text)).collect(),
            addresses: addresses.iter().map(|text| network(text).expect(text)).collect(),
            methods: methods.map(|methods| methods.iter().map(|text| Method::parse(text).expect(text)).collect()),
            line: 1,
        }
    }

    fn rules() -> Vec<Rule> {
        vec![
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
        ]
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
            let decision =
                decide(&rules(), method, &url(target)).map(|matched| matched.rules).map_err(|refusal| refusal.reason);
            assert_eq!(decision, expected, "{method} {target}");
        }
        assert_eq!(
            decide(&[], "GET", &url("https://a.example")).map_err(|refusal| refusal.reason),
            Err(Reason::NotGranted)
        );
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
            let matched = decide(&rules(), method, &url(target)).expect(target);
            let address: IpAddr = address.parse().expect(address);
            let decision =
                check_address(&rules(), &matched, method, &url(target), address).map_err(|refusal| refusal.reason);
            assert_eq!(decision, expected, "{method} {target} at {address}");
        }
    }

    #[test]
    fn a_match_that_belongs_to_other_rules_allows_nothing() {
        let matched = decide(&rules(), "GET", &url("https://api.example.com/")).expect("allowed");
        let address = "93.184.215.14".parse().expect("an address");
        assert!(check_address(&[], &matched, "GET", &url("https://api.example.com/"), address).is_err());
    }

    #[test]
    fn a_script_never_learns_what_a_name_resolved_to() {
        let target = url("https://api.example.com/x?token=secret");
        let matched = decide(&rules(), "GET", &target).expect("allowed");
        let address = "192.168.7.9".parse().expect("an address");
        let refusal = check_address(&rules(), &matched, "GET", &target, address).expect_err("private");
        let refusal = refusal.with_fix(&super::super::Tenant::without_grants("acme", "main.luau"));
        let detail = refusal.operator_detail();
        assert_eq!(
            detail,
            "http denied: GET https://api.example.com/x: the host has a private or special address that no rule names \
             [address_not_allowed]; the address is 192.168.7.9, private use; rule: tenant.acme.allow.http[0], line 1"
        );
        assert!(refusal.operator_fix().is_some_and(|fix| fix.contains("\"192.168.7.9/32\"")));
        let error = neoc_abi::OperationError::from(refusal);
        assert_eq!(error.fix, None);
        assert!(!format!("{error:?}").contains("192.168"), "{error:?}");
    }

    #[test]
    fn a_query_is_not_repeated() {
        let refusal = decide(&rules(), "GET", &url("https://other.example/x?token=secret#y")).expect_err("not granted");
        assert_eq!(refusal.target, "GET https://other.example/x");
    }

    #[test]
    fn networks_have_one_spelling() {
        for text in ["127.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "::/0", "::1/128", "fc00::/7", "192.168.0.0/16"] {
            assert!(network(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "*",
            "127.0.0.1",
            "::1",
            "127.0.0.1/8",
            "127.0.0.0/33",
            "127.0.0.0/-1",
            "127.0.0.0/08",
            "127.0.0.0 /8",
            " 127.0.0.0/8",
            "127/8",
            "0x7f.0.0.0/8",
            "::ffff:127.0.0.0/104",
            "0:0::1/128",
            "FC00::/7",
            "localhost",
            "127.0.0.0/255.0.0.0",
            "169.254.0.0/16",
            "169.254.169.254/32",
            "fe80::/10",
            "fe80::/64",
            "100.100.100.200/32",
            "fd00:ec2::254/128",
            "10.0.0.0/33",
            "10.0.0.0/",
        ] {
            assert!(network(text).is_err(), "{text:?}");
        }
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
