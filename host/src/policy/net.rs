//! `[[tenant.NAME.allow.net]]` and `[[tenant.NAME.deny.net]]`: rules for TCP, TLS and UDP, and the decision on a call.
//!
//! A target is `tcp://host:port`, `tls://host:port` or `udp://host:port`, with the host in its one spelling, as in
//! a URL of `http` (see [`super::target`]); a rule's hosts have the same form, and `*.` in front of a name for its
//! subdomains. The port is always written. As with `http`, a name rule opens no address: a private or special one
//! passes where the matching rule names it, and each is judged on its way to the socket.
//!
//! Multicast and broadcast addresses never pass: one datagram to them reaches many.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
};

use ipnet::IpNet;
use toml::Spanned;
use url::Host;

use super::{
    Machine, Place, address,
    error::{Broken, Errors, child},
    fix::Remedy,
    module::all_networks,
    origin::{HostFault, HostPattern, canonical_host, split_port},
    raw::{DenyNetToml, ModuleNetToml, NetToml, Text},
    refusal::{Reason, Refusal},
    target::TargetError,
};

/// The capability's name in errors, logs and metrics.
pub const CAPABILITY: &str = "net";

const EXAMPLE: &str = "\"tcp://db.example.com:5432\"";

/// Longest target, in bytes.
const MAX_TARGET_BYTES: usize = 1024;

/// One rule that allows, as enforced.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where a call may go. Never empty.
    pub endpoints: Vec<EndpointPattern>,
    /// Private and special networks that the hosts may resolve to. Public addresses need no name.
    pub addresses: Vec<IpNet>,
    /// Where the policy file has the rule.
    pub place: Place,
}

/// One rule that denies, whatever allows it.
#[derive(Debug, Clone)]
pub struct Deny {
    /// Where no call may go. Never empty.
    pub endpoints: Vec<EndpointPattern>,
    /// Where the policy file has the rule.
    pub place: Place,
}

/// What is spoken at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// A stream of bytes.
    Tcp,
    /// The same, encrypted, with a server whose certificate is for the host.
    Tls,
    /// Datagrams.
    Udp,
}

/// Where a call leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How.
    pub scheme: Scheme,
    /// In its one spelling.
    pub host: Host<String>,
    /// 1 to 65535.
    pub port: u16,
}

/// Endpoints of a rule: one host, or the subdomains of one, on one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPattern {
    scheme: Scheme,
    host: HostPattern,
    port: u16,
}

/// The rules that allow a call, as indices into the tenant's rules. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetMatch {
    rules: Vec<usize>,
}

// === impl NetMatch ===

impl NetMatch {
    /// Of a call that no rule allows, and that passes all the same, in report mode.
    pub fn none() -> Self {
        Self { rules: Vec::new() }
    }
}

// === impl Scheme ===

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Tls, Self::Udp];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Udp => "udp",
        }
    }

    fn split(text: &str) -> Option<(Self, &str)> {
        Self::ALL.into_iter().find_map(|scheme| {
            let rest = text.strip_prefix(scheme.as_str())?.strip_prefix("://")?;
            Some((scheme, rest))
        })
    }
}

// === impl Target ===

impl Target {
    /// Parses the target of a call.
    ///
    /// # Errors
    /// [`TargetError::Invalid`] for what is no target, [`TargetError::Denied`] for another spelling of one.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let invalid = |what: &str| TargetError::Invalid(what.to_owned());
        if text.len() > MAX_TARGET_BYTES {
            return Err(invalid("the target is longer than 1024 bytes"));
        }
        let (scheme, authority) = Scheme::split(text)
            .ok_or_else(|| invalid("a target is tcp://host:port, tls://host:port or udp://host:port"))?;
        if authority.contains(['/', '?', '#', '@', '\\', '%'])
            || authority.chars().any(|character| character.is_whitespace() || character.is_control())
        {
            return Err(denied(text, "a target is a scheme, a host and a port, and nothing else"));
        }
        let (host, port) = split_port(authority)
            .ok_or_else(|| denied(text, "a port is 1 to 65535, without a sign and without zeros in front"))?;
        let port = port.ok_or_else(|| invalid("the target has no port"))?;
        let host = canonical_host(host).map_err(|fault| match fault {
            HostFault::Malformed => invalid("the target's host is no name and no address"),
            HostFault::FinalDot => denied(text, "the host ends in a dot; write it without"),
            HostFault::OtherSpelling(canonical) => {
                denied(text, &format!("the host has one spelling: write {canonical} if that is meant"))
            }
        })?;
        Ok(Self { scheme, host, port })
    }

    /// The addresses of a host that needs no resolver.
    pub(super) fn known_addresses(&self) -> Vec<IpAddr> {
        address::known(Some(self.borrowed_host())).to_vec()
    }

    /// An address of the host, on the port.
    pub(super) fn at(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.port)
    }

    fn borrowed_host(&self) -> Host<&str> {
        match &self.host {
            Host::Domain(name) => Host::Domain(name),
            Host::Ipv4(address) => Host::Ipv4(*address),
            Host::Ipv6(address) => Host::Ipv6(*address),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        write!(f, "{}://{host}:{port}", scheme.as_str())
    }
}

fn denied(text: &str, why: &str) -> TargetError {
    TargetError::Denied(Refusal::new(CAPABILITY, text, Reason::BadTarget).note(why))
}

// === impl EndpointPattern ===

impl EndpointPattern {
    /// Parses a pattern as written.
    ///
    /// # Errors
    /// The rule that the text breaks, with an example.
    pub fn parse(text: &str) -> Result<Self, Broken> {
        if text.trim() != text {
            return Err(Broken::new("spaces around an endpoint").write(EXAMPLE));
        }
        let Some((scheme, authority)) = Scheme::split(text) else {
            let rule = "an endpoint starts with tcp://, tls:// or udp://";
            return Err(Broken::new(rule).write(EXAMPLE));
        };
        if authority.contains(['/', '?', '#', '@']) {
            return Err(Broken::new("an endpoint is a scheme, a host and a port, and nothing else").write(EXAMPLE));
        }
        if authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Broken::new("hosts are in lower case").write(format_args!("\"{}\"", text.to_ascii_lowercase())));
        }
        let Some((host, Some(port))) = split_port(authority) else {
            return Err(Broken::new("an endpoint has a port, 1 to 65535").write(EXAMPLE));
        };
        Ok(Self { scheme, host: HostPattern::parse(host)?, port })
    }

    pub(super) fn matches(&self, target: &Target) -> bool {
        let Self { scheme, host, port } = self;
        *scheme == target.scheme && *port == target.port && host.matches(&target.borrowed_host())
    }
}

// === The decision ===

/// Decides on a call.
///
/// # Errors
/// Any [`Reason`] of a host or an address.
pub fn decide(rules: &[Rule], denies: &[Deny], machine: &Machine, target: &Target) -> Result<NetMatch, Refusal> {
    let call = Call { rules, machine, target };
    let denied = denies.iter().find(|deny| deny.endpoints.iter().any(|one| one.matches(target)));
    if let Some(deny) = denied {
        return Err(call.refuse(Reason::DeniedByRule).near(&deny.place));
    }
    let allows = |rule: &Rule| rule.endpoints.iter().any(|endpoint| endpoint.matches(target));
    let matched: Vec<_> = rules.iter().enumerate().filter(|(_, rule)| allows(rule)).map(|(index, _)| index).collect();
    if matched.is_empty() {
        let reason = if rules.is_empty() { Reason::NotGranted } else { Reason::HostNotAllowed };
        return Err(call.with_remedy(call.refuse(reason), None));
    }
    let matched = NetMatch { rules: matched };
    let known = address::known(Some(target.borrowed_host()));
    // `localhost` has two addresses; one that passes is enough to go on.
    let never = known.iter().find(|address| !is_open_to_rules(machine, target.at(**address)));
    match never.or(known.first()) {
        Some(first) if !known.iter().any(|address| allows_address(rules, machine, &matched, target.at(*address))) => {
            Err(call.refuse_address(&matched, *first))
        }
        _ => Ok(matched),
    }
}

/// Whether a matched call may be connected to an address. To be asked of every address before it is
/// dialled.
pub fn allows_address(rules: &[Rule], machine: &Machine, matched: &NetMatch, to: SocketAddr) -> bool {
    let mut matched = matched.rules.iter().filter_map(|index| rules.get(*index));
    !reaches_many(to.ip()) && matched.any(|rule| machine.check(rule.addresses.iter(), to).is_ok())
}

/// The refusal of an address that [`allows_address`] does not let pass.
pub fn refuse_address(
    rules: &[Rule],
    machine: &Machine,
    matched: &NetMatch,
    target: &Target,
    address: IpAddr,
) -> Refusal {
    Call { rules, machine, target }.refuse_address(matched, address)
}

/// Where the rule stands that allows a call; with addresses, the first that lets one of them pass.
pub fn place(
    rules: &[Rule],
    machine: &Machine,
    matched: &NetMatch,
    target: &Target,
    addresses: &[IpAddr],
) -> Option<Place> {
    let mut matched = matched.rules.iter().filter_map(|index| rules.get(*index));
    let passes =
        |rule: &Rule| addresses.iter().any(|address| machine.check(rule.addresses.iter(), target.at(*address)).is_ok());
    matched.find(|rule| addresses.is_empty() || passes(rule)).map(|rule| rule.place.clone())
}

/// Whether a rule could let an address pass.
pub fn is_open_to_rules(machine: &Machine, to: SocketAddr) -> bool {
    !reaches_many(to.ip()) && machine.is_open_to_rules(to)
}

fn reaches_many(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// A call, for the words of its refusal.
struct Call<'a> {
    rules: &'a [Rule],
    machine: &'a Machine,
    target: &'a Target,
}

impl Call<'_> {
    fn refuse(&self, reason: Reason) -> Refusal {
        Refusal::new(CAPABILITY, &self.target.to_string(), reason)
    }

    fn refuse_address(&self, matched: &NetMatch, address: IpAddr) -> Refusal {
        let address = address.to_canonical();
        let (reason, what) = if reaches_many(address) {
            (Reason::AddressNeverAllowed, "one that reaches many")
        } else {
            self.machine.reason(self.target.at(address))
        };
        let refusal = self.refuse(reason).operator_note(format!("the address is {address}, {what}"));
        let refusal = match matched.rules.first().and_then(|first| self.rules.get(*first)) {
            Some(rule) => refusal.near(&rule.place),
            None => refusal,
        };
        self.with_remedy(refusal, Some(address))
    }

    /// Adds what would allow the call, unless nothing would.
    fn with_remedy(&self, refusal: Refusal, resolved: Option<IpAddr>) -> Refusal {
        let known = address::known(Some(self.target.borrowed_host()));
        // A script may be told an address that stands in its own target, and no other.
        let addresses_are_known = resolved.is_none_or(|address| known.contains(&address));
        let addresses: Vec<IpAddr> = if addresses_are_known { known.to_vec() } else { resolved.into_iter().collect() };
        if addresses.iter().any(|address| !is_open_to_rules(self.machine, self.target.at(*address))) {
            return refusal;
        }
        refusal.remedy(Remedy::Net {
            endpoint: self.target.to_string(),
            addresses: addresses.into_iter().flat_map(|address| self.machine.networks(address)).collect(),
            addresses_are_known,
        })
    }
}

// === Conversion ===

pub(super) fn enforce(raw: Vec<Spanned<NetToml>>, at: &str, errors: &mut Errors<'_>) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(raw.len());
    for (index, rule) in raw.into_iter().enumerate() {
        let (at, span) = (format!("{at}[{index}]"), rule.span());
        let NetToml { hosts, addresses } = rule.into_inner();
        rules.push(Rule {
            endpoints: endpoints(hosts, &at, &span, errors),
            addresses: errors.list(&child(&at, "addresses"), &addresses.unwrap_or_default(), address::parse_network),
            place: errors.place(&span),
        });
    }
    rules
}

pub(super) fn enforce_deny(raw: Vec<Spanned<DenyNetToml>>, at: &str, errors: &mut Errors<'_>) -> Vec<Deny> {
    let mut rules = Vec::with_capacity(raw.len());
    for (index, rule) in raw.into_iter().enumerate() {
        let (at, span) = (format!("{at}[{index}]"), rule.span());
        let DenyNetToml { hosts } = rule.into_inner();
        rules.push(Deny { endpoints: endpoints(hosts, &at, &span, errors), place: errors.place(&span) });
    }
    rules
}

/// Converts the rules of a module, which leave addresses to its tenant's.
pub(super) fn enforce_of_module(raw: Vec<Spanned<ModuleNetToml>>, at: &str, errors: &mut Errors<'_>) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(raw.len());
    for (index, rule) in raw.into_iter().enumerate() {
        let (at, span) = (format!("{at}[{index}]"), rule.span());
        let ModuleNetToml { hosts } = rule.into_inner();
        let endpoints = endpoints(hosts, &at, &span, errors);
        rules.push(Rule { endpoints, addresses: all_networks(), place: errors.place(&span) });
    }
    rules
}

/// Converts the endpoints of a narrowing.
pub(super) fn enforce_of_narrowing(raw: ModuleNetToml, errors: &mut Errors<'_>) -> Vec<EndpointPattern> {
    let ModuleNetToml { hosts } = raw;
    endpoints(hosts, "", &(0..0), errors)
}

fn endpoints(hosts: Option<Vec<Text>>, at: &str, span: &Range<usize>, errors: &mut Errors<'_>) -> Vec<EndpointPattern> {
    match &hosts {
        None => errors.missing(at, "hosts", span.clone(), "[\"tcp://db.example.com:5432\"]"),
        Some(hosts) if hosts.is_empty() => {
            let broken = Broken::new("a rule without hosts says nothing").write(format_args!("hosts = [{EXAMPLE}]"));
            errors.add_without_value(&child(at, "hosts"), span.clone(), broken);
        }
        Some(_) => {}
    }
    errors.list(&child(at, "hosts"), &hosts.unwrap_or_default(), EndpointPattern::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        Target::parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}"))
    }

    fn pattern(text: &str) -> EndpointPattern {
        EndpointPattern::parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}"))
    }

    fn rule(endpoint: &str, addresses: &[&str]) -> Rule {
        let addresses = addresses.iter().map(|network| network.parse().expect(network)).collect();
        Rule { endpoints: vec![pattern(endpoint)], addresses, place: Place::new(std::path::Path::new("p.toml"), 1) }
    }

    fn reason(rules: &[Rule], text: &str) -> Option<Reason> {
        decide(rules, &[], &Machine::default(), &target(text)).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn a_target_has_one_spelling() {
        for (text, host, port) in [
            ("tcp://db.example.com:5432", "db.example.com", 5432),
            ("tls://DB.example.com:1", "db.example.com", 1),
            ("udp://127.0.0.1:65535", "127.0.0.1", 65535),
            ("tcp://[::1]:80", "[::1]", 80),
        ] {
            let target = target(text);
            assert_eq!((target.host.to_string().as_str(), target.port), (host, port), "{text}");
        }
        for text in [
            "tcp://127.1:80",
            "tcp://2130706433:80",
            "tcp://0x7f.0.0.1:80",
            "tcp://[0:0:0:0:0:0:0:1]:80",
            "tcp://example.com.:80",
            "tcp://user@example.com:80",
            "tcp://example.com:080",
            "tcp://example.com:+80",
            "tcp://example.com:0",
            "tcp://example.com:65536",
            "tcp://example.com:80/",
            "tcp://example.com:80#x",
            "tcp://example.com:80\n",
            "tcp://exa mple.com:80",
            "tcp://[fe80::1%25eth0]:80",
            "tcp://allowed.com\\@10.0.0.1:80",
        ] {
            assert!(matches!(Target::parse(text), Err(TargetError::Denied(_))), "{text:?}: {:?}", Target::parse(text));
        }
        for text in [
            "",
            "example.com:80",
            "http://example.com",
            "tcp://example.com",
            "TCP://example.com:80",
            "tcp:example.com:80",
            "unix:///tmp/s",
            "tcp://:80",
            "vsock://2:80",
        ] {
            assert!(matches!(Target::parse(text), Err(TargetError::Invalid(_))), "{text:?}: {:?}", Target::parse(text));
        }
    }

    #[test]
    fn scheme_host_and_port_must_all_be_those_of_the_rule() {
        let rules = [rule("tcp://db.example.com:5432", &[]), rule("udp://*.example.com:53", &[])];
        for (text, expected) in [
            ("tcp://db.example.com:5432", None),
            ("udp://a.b.example.com:53", None),
            ("tcp://db.example.com:5433", Some(Reason::HostNotAllowed)),
            ("tls://db.example.com:5432", Some(Reason::HostNotAllowed)),
            ("udp://db.example.com:5432", Some(Reason::HostNotAllowed)),
            ("udp://example.com:53", Some(Reason::HostNotAllowed)),
            ("udp://evilexample.com:53", Some(Reason::HostNotAllowed)),
            ("tcp://example.com.evil.com:5432", Some(Reason::HostNotAllowed)),
        ] {
            assert_eq!(reason(&rules, text), expected, "{text}");
        }
        assert_eq!(reason(&[], "tcp://db.example.com:5432"), Some(Reason::NotGranted));
    }

    #[test]
    fn a_rule_that_denies_wins() {
        let rules = [rule("tcp://*.example.com:5432", &[])];
        let denies = [Deny {
            endpoints: vec![pattern("tcp://db.example.com:5432")],
            place: Place::new(std::path::Path::new("p.toml"), 7),
        }];
        let refusal =
            decide(&rules, &denies, &Machine::default(), &target("tcp://db.example.com:5432")).expect_err("denied");
        assert_eq!((refusal.reason, refusal.fix), (Reason::DeniedByRule, None));
        assert!(decide(&rules, &denies, &Machine::default(), &target("tcp://other.example.com:5432")).is_ok());
    }

    #[test]
    fn special_addresses_must_be_named_and_those_that_reach_many_never_pass() {
        let all = ["0.0.0.0/0", "::/0"];
        for (text, bare, named) in [
            ("udp://8.8.8.8:53", None, None),
            ("udp://127.0.0.1:53", Some(Reason::AddressNotAllowed), None),
            ("udp://localhost:53", Some(Reason::AddressNotAllowed), None),
            ("udp://[::1]:53", Some(Reason::AddressNotAllowed), None),
            ("udp://10.0.0.1:53", Some(Reason::AddressNotAllowed), None),
            ("udp://169.254.169.254:53", Some(Reason::AddressNeverAllowed), Some(Reason::AddressNeverAllowed)),
            ("udp://224.0.0.251:5353", Some(Reason::AddressNeverAllowed), Some(Reason::AddressNeverAllowed)),
            ("udp://255.255.255.255:53", Some(Reason::AddressNeverAllowed), Some(Reason::AddressNeverAllowed)),
            ("udp://[ff02::1]:53", Some(Reason::AddressNeverAllowed), Some(Reason::AddressNeverAllowed)),
        ] {
            assert_eq!(reason(&[rule(text, &[])], text), bare, "{text}");
            assert_eq!(reason(&[rule(text, &all)], text), named, "{text}, everything named");
        }
    }

    #[test]
    fn patterns_are_strict() {
        for text in [
            "",
            "*",
            "tcp://*",
            "tcp://*:80",
            "tcp://*.com:80",
            "tcp://db.example.com",
            "tcp://db.example.com:0",
            "tcp://db.example.com:80/",
            "tcp://DB.example.com:80",
            "tcp://127.1:80",
            "http://db.example.com:80",
            "db.example.com:80",
            " tcp://db.example.com:80",
            "tcp://u@db.example.com:80",
            "tcp://10.0.0.0/8:80",
            "tcp://a*.example.com:80",
        ] {
            assert!(EndpointPattern::parse(text).is_err(), "{text:?}");
        }
    }
}
