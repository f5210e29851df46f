//! Where an HTTP grant leads: scheme, host and port, as a pattern.
//!
//! | form | matches |
//! |---|---|
//! | `https://api.example.com` | that host, on port 443 |
//! | `http://127.0.0.1:9000` | that address, on port 9000 |
//! | `http://[::1]:9000` | the same for IPv6, in its shortest spelling |
//! | `https://*.example.com` | every subdomain, at any depth, and not `example.com` itself |
//!
//! A pattern has one spelling: lower case, no final dot, canonical addresses. So has a script's URL by
//! the time it is compared (see [`super::target`]), and comparing needs no cleverness. A wildcard covers
//! whole labels at the front and leaves at least two, because `*com` and `*.com` allow strangers.

use std::fmt;

use url::{Host, Url};

use super::error::Broken;

const EXAMPLE: &str = "\"https://api.example.com\"";

/// An origin, or a family of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginPattern {
    scheme: Scheme,
    host: HostPattern,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostPattern {
    One(Host<String>),
    /// Holds what follows `*.`.
    Subdomains(String),
}

/// Why a text is not the one spelling of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostFault {
    /// No parser would take it for a host.
    Malformed,
    /// It ends in a dot.
    FinalDot,
    /// Parsers take it for the host that is given here.
    OtherSpelling(String),
}

// === impl OriginPattern ===

impl OriginPattern {
    /// Parses a pattern as written.
    ///
    /// # Errors
    /// The rule that the text breaks, with an example.
    pub fn parse(text: &str) -> Result<Self, Broken> {
        let (scheme, rest) = split_scheme(text)?;
        if let Some(end) = rest.find(['/', '?', '#']) {
            let origin = &text[..text.len() - rest.len() + end];
            return Err(Broken::new("an origin has no path and no query").write(format_args!("\"{origin}\"")));
        }
        if rest.contains('@') {
            return Err(Broken::new("an origin has no user and no password").write(EXAMPLE));
        }
        if rest.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Broken::new("hosts are in lower case").write(format_args!("\"{}\"", text.to_ascii_lowercase())));
        }
        let (host, port) =
            split_port(rest).ok_or_else(|| Broken::new("a port is 1 to 65535").write("\"http://127.0.0.1:9000\""))?;
        Ok(Self { scheme, host: HostPattern::parse(host)?, port: port.unwrap_or(scheme.default_port()) })
    }

    /// `http` or `https`.
    pub(super) fn scheme(&self) -> &'static str {
        self.scheme.as_str()
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether it stands for subdomains, and the name above them; or the host, as a URL has it.
    pub(super) fn host(&self) -> (bool, String) {
        match &self.host {
            HostPattern::One(host) => (false, host.to_string()),
            HostPattern::Subdomains(parent) => (true, parent.clone()),
        }
    }

    /// Whether a URL from [`super::target::parse_target`] is of this origin.
    pub fn matches(&self, url: &Url) -> bool {
        let Self { scheme, host, port } = self;
        url.scheme() == scheme.as_str()
            && url.port_or_known_default() == Some(*port)
            && url.host().is_some_and(|asked| host.matches(&asked))
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        write!(f, "{}://", scheme.as_str())?;
        match host {
            HostPattern::One(host) => write!(f, "{host}")?,
            HostPattern::Subdomains(parent) => write!(f, "*.{parent}")?,
        }
        if *port == scheme.default_port() { Ok(()) } else { write!(f, ":{port}") }
    }
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl HostPattern {
    pub(super) fn parse(text: &str) -> Result<Self, Broken> {
        if text == "*" {
            return Err(Broken::new("a bare * allows every host; name the hosts").write(EXAMPLE));
        }
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(parent) => (true, parent),
            None => (false, text),
        };
        if name.contains('*') {
            let broken = Broken::new("a wildcard covers whole labels, at the front");
            return Err(broken.write("\"https://*.example.com\""));
        }
        let host = canonical_host(name).map_err(|fault| fault.in_a_pattern())?;
        match (wildcard, host) {
            (false, host) => Ok(Self::One(host)),
            // `localhost` has no strangers below it.
            (true, Host::Domain(name)) if name.contains('.') || name == "localhost" => Ok(Self::Subdomains(name)),
            (true, _) => {
                let broken = Broken::new("a wildcard needs a name of at least two labels behind it");
                Err(broken.write("\"https://*.example.com\""))
            }
        }
    }

    pub(super) fn matches(&self, asked: &Host<&str>) -> bool {
        match (self, asked) {
            (Self::One(Host::Domain(name)), Host::Domain(asked)) => name == asked,
            (Self::One(Host::Ipv4(address)), Host::Ipv4(asked)) => address == asked,
            (Self::One(Host::Ipv6(address)), Host::Ipv6(asked)) => address == asked,
            // The dot belongs to the match: `evilexample.com` is no subdomain of `example.com`.
            (Self::Subdomains(parent), Host::Domain(asked)) => asked
                .strip_suffix(parent.as_str())
                .and_then(|front| front.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty()),
            _ => false,
        }
    }
}

fn split_scheme(text: &str) -> Result<(Scheme, &str), Broken> {
    if text.trim() != text {
        return Err(Broken::new("spaces around an origin").write(EXAMPLE));
    }
    if text.parse::<ipnet::IpNet>().is_ok() {
        return Err(Broken::new("a range of addresses is no host")
            .help(format!("write addresses = [\"{text}\"], beside hosts")));
    }
    if let Some(rest) = text.strip_prefix("https://") {
        return Ok((Scheme::Https, rest));
    }
    if let Some(rest) = text.strip_prefix("http://") {
        return Ok((Scheme::Http, rest));
    }
    let rule = Broken::new("an origin starts with https:// or http://");
    if text.contains("://") {
        return Err(rule.write(EXAMPLE));
    }
    let with_scheme = format!("https://{text}");
    Err(match OriginPattern::parse(&with_scheme) {
        Ok(_) => rule.write(format_args!("\"{with_scheme}\"")),
        // `*com` is wrong with a scheme too, and that is what to learn from it.
        Err(broken) if text.contains('*') => broken,
        Err(_) => rule.write(EXAMPLE),
    })
}

/// Host and port of an authority without user. `None` when the port is not in its one spelling.
pub(super) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end_of_address = if authority.starts_with('[') { authority.find(']')? } else { 0 };
    let Some(colon) = authority[end_of_address..].find(':').map(|at| at + end_of_address) else {
        return Some((authority, None));
    };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    // `+80`, `00080` and an empty port are taken by some parsers and not by others.
    let plain = port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0');
    Some((host, Some(port.parse().ok().filter(|_| plain)?)))
}

// === Hosts ===

/// The host that a text names, if it is written in the only way this host has.
///
/// The WHATWG parser reads `2130706433`, `0x7f.1`, `127.1` and `017700000001` all as 127.0.0.1, turns
/// `%61` into `a` and full-width letters into plain ones. Other parsers do not, and what one checks the
/// other may reach. So the text must be what the parser gives back, but for the case of letters.
pub(super) fn canonical_host(text: &str) -> Result<Host<String>, HostFault> {
    let parsed = Host::parse(text).map_err(|_| HostFault::Malformed)?;
    check_spelling(text, &parsed, &parsed.to_string())?;
    Ok(parsed)
}

/// As [`canonical_host`], of a text that was parsed: to a host that is written as `canonical`.
pub(super) fn check_spelling<S: AsRef<str>>(text: &str, parsed: &Host<S>, canonical: &str) -> Result<(), HostFault> {
    if !text.eq_ignore_ascii_case(canonical) {
        return Err(HostFault::OtherSpelling(canonical.to_owned()));
    }
    match parsed {
        Host::Domain(name) if name.as_ref().ends_with('.') => Err(HostFault::FinalDot),
        Host::Domain(name) if !is_host_name(name.as_ref()) => Err(HostFault::Malformed),
        _ => Ok(()),
    }
}

/// Whether a text is a host name in lower case: labels of letters, digits, `-` and `_`.
pub(super) fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
    };
    text.len() <= 253 && text.split('.').all(label)
}

impl HostFault {
    fn in_a_pattern(self) -> Broken {
        match self {
            Self::Malformed => Broken::new("not a host name or address").write(EXAMPLE),
            Self::FinalDot => Broken::new("a host has no final dot").write(EXAMPLE),
            Self::OtherSpelling(canonical) => Broken::new("a host has one spelling")
                .help(format!("write \"{canonical}\" for the host, if that is what you mean")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, url: &str, expected: bool) {
        let pattern = OriginPattern::parse(pattern).expect(pattern);
        assert_eq!(pattern.matches(&Url::parse(url).expect(url)), expected, "{pattern} {url}");
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (url, expected) in [
            ("https://api.example.com", true),
            ("https://api.example.com/", true),
            ("https://api.example.com:443/x?y#z", true),
            ("https://api.example.com:8443", false),
            ("http://api.example.com", false),
            ("http://api.example.com:443", false),
            ("https://example.com", false),
            ("https://x.api.example.com", false),
            ("https://api.example.com.evil.com", false),
            ("https://evilapi.example.com", false),
        ] {
            check("https://api.example.com", url, expected);
        }
        check("http://127.0.0.1:9000", "http://127.0.0.1:9000/x", true);
        check("http://127.0.0.1:9000", "http://127.0.0.1:9001/x", false);
        check("http://127.0.0.1:9000", "http://localhost:9000/x", false);
        check("http://[::1]:9000", "http://[::1]:9000/x", true);
        check("http://[::1]:9000", "http://127.0.0.1:9000/x", false);
    }

    #[test]
    fn a_wildcard_covers_subdomains_and_not_the_apex() {
        for (url, expected) in [
            ("https://a.example.com", true),
            ("https://a.b.example.com", true),
            ("https://example.com", false),
            ("https://evilexample.com", false),
            ("https://.example.com", false),
            ("https://a.example.com.evil.com", false),
            ("https://a.example.org", false),
            ("https://127.0.0.1", false),
        ] {
            check("https://*.example.com", url, expected);
        }
        check("http://*.localhost:9000", "http://a.localhost:9000", true);
    }

    #[test]
    fn patterns_that_allow_more_than_they_seem_to_are_refused() {
        for text in [
            "",
            "*",
            "https://*",
            "http://*:80",
            "*com",
            "https://*com",
            "https://*.com",
            "https://*.",
            "https://a.*.com",
            "https://a*.example.com",
            "https://*.*.example.com",
            "10.0.0.0/8",
            "https://10.0.0.0/8",
            "api.example.com",
            "//api.example.com",
            "ftp://api.example.com",
            "HTTPS://api.example.com",
            "https://API.example.com",
            "https://api.example.com.",
            "https://api.example.com/",
            "https://api.example.com/x",
            "https://api.example.com?x",
            "https://api.example.com#x",
            "https://u@api.example.com",
            "https://u:p@api.example.com",
            "https://api.example.com:0",
            "https://api.example.com:65536",
            "https://api.example.com:",
            "https://api.example.com:080",
            "https://api.example.com:+80",
            "https://api.example.com:80:80",
            "http://127.1",
            "http://2130706433",
            "http://0x7f.1",
            "http://0177.0.0.1",
            "http://127.0.0.1.",
            "http://[0:0:0:0:0:0:0:1]",
            "http://[::ffff:127.0.0.1]",
            "http://::1",
            "http://[::1",
            "http://[fe80::1%25eth0]",
            "https://*.127.0.0.1",
            "https://bücher.example",
            "https://a..b",
            "https://a b",
            " https://a.b",
            "https://a.b ",
            "https://a.b\u{0}",
            "https://-a.example.com",
            "https://(a|b).example.com",
            "https://",
            "https://:443",
            "https://%61.example.com",
        ] {
            assert!(OriginPattern::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_pattern_is_shown_as_it_was_written() {
        for text in [
            "https://api.example.com",
            "http://127.0.0.1:9000",
            "http://[::1]:9000",
            "https://*.example.com",
            "https://xn--bcher-kva.example",
            "http://localhost",
            "https://a_b.example.com:8443",
        ] {
            assert_eq!(OriginPattern::parse(text).expect(text).to_string(), text);
        }
    }
}
