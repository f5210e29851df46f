//! Where a script's HTTP call leads: its URL, parsed once and strictly.
//!
//! Two parsers that read one text differently are how a check is walked round: one sees the allowed
//! host, the other connects to `10.0.0.1`. So a URL is parsed here, and everything behind this point
//! uses the result; and a text that parsers are known to read differently is refused outright, even
//! where our own reading would be harmless.
//!
//! | text | outcome |
//! |---|---|
//! | no scheme, no host, a port over 65535 | invalid: it is no URL at all |
//! | another scheme than http and https | denied |
//! | white space, control characters, `\` | denied |
//! | user or password before the host | denied |
//! | `127.1`, `2130706433`, `0x7f.1`, `%61.com`, `[0:0:0:0:0:0:0:1]`, non-ASCII hosts | denied: not the host's one spelling |
//! | `host.`, `host:`, `host:0`, `host:080`, `[fe80::1%25eth0]` | denied |
//!
//! `localhost` is a name like any other; what it resolves to is checked when it is known.

use neoc_abi::OperationError;
use url::Url;

use super::{
    http::CAPABILITY,
    origin::{HostFault, canonical_host, check_spelling, split_port},
    refusal::{Reason, Refusal},
};

/// Longest URL, in bytes.
const MAX_URL_BYTES: usize = 8 * 1024;

/// Why a text is not taken for a URL.
#[derive(Debug, Clone)]
pub enum TargetError {
    /// It is no URL; says what is missing. The script's own mistake, not a matter of policy.
    Invalid(String),
    /// It is one that could be read in two ways.
    Denied(Refusal),
}

impl From<TargetError> for OperationError {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Invalid(message) => Self::invalid(message),
            TargetError::Denied(refusal) => refusal.into(),
        }
    }
}

/// Parses the URL of a call.
///
/// # Errors
/// See the table above.
pub fn parse_target(text: &str) -> Result<Url, TargetError> {
    check_characters(text)?;
    let Some((scheme, rest)) = split_scheme(text) else {
        return Err(TargetError::Invalid("the URL has no scheme: it starts with https:// or http://".to_owned()));
    };
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(denied(text, "only http and https are served"));
    }
    let rest = rest.strip_prefix("//").ok_or_else(|| denied(text, "the scheme is followed by //"))?;
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let parsed = Url::parse(text);
    check_authority(text, authority, parsed.as_ref().ok())?;
    parsed.map_err(|error| TargetError::Invalid(format!("the URL cannot be parsed: {error}")))
}

/// Parses the `Location` of a redirect from `base`.
///
/// # Errors
/// As [`parse_target`], and [`TargetError::Denied`] for a relative reference that leaves the origin.
pub fn parse_redirect(base: &Url, location: &str) -> Result<Url, TargetError> {
    check_characters(location)?;
    if split_scheme(location).is_some() {
        return parse_target(location);
    }
    if location.starts_with("//") {
        return parse_target(&format!("{}:{location}", base.scheme()));
    }
    let url =
        base.join(location).map_err(|error| TargetError::Invalid(format!("the redirect cannot be parsed: {error}")))?;
    // By the grammar it cannot differ. If it does all the same, a parser was tricked.
    if url.origin() != base.origin() {
        return Err(denied(location, "a relative redirect stays on its origin"));
    }
    Ok(url)
}

fn check_characters(text: &str) -> Result<(), TargetError> {
    if text.len() > MAX_URL_BYTES {
        return Err(TargetError::Invalid(format!(
            "the URL has {} bytes; at most {MAX_URL_BYTES} are taken",
            text.len()
        )));
    }
    if text.contains('\\') {
        return Err(denied(text, "a URL has no backslash, which some parsers read as a slash"));
    }
    if text.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return Err(denied(text, "a URL has no white space and no control characters; percent-encode them"));
    }
    Ok(())
}

/// Whether host and port are in their one spelling: what `parsed` says that they are, if the URL could be parsed.
fn check_authority(text: &str, authority: &str, parsed: Option<&Url>) -> Result<(), TargetError> {
    if authority.contains('@') {
        return Err(denied(text, "a URL has no user and no password; send them in a header"));
    }
    let (host, port) = match split_port(authority) {
        Some((host, _)) => (host, None),
        None => authority.rsplit_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(TargetError::Invalid("the URL has no host".to_owned()));
    }
    if host.contains('%') && host.starts_with('[') {
        return Err(denied(text, "an address has no zone"));
    }
    let checked = match parsed.and_then(|url| url.host().zip(url.host_str())) {
        Some((parsed, canonical)) => check_spelling(host, &parsed, canonical),
        None => canonical_host(host).map(drop),
    };
    checked.map_err(|fault| match fault {
        HostFault::Malformed => TargetError::Invalid("the URL's host is no name and no address".to_owned()),
        HostFault::FinalDot => denied(text, "the host ends in a dot; write it without"),
        HostFault::OtherSpelling(canonical) => {
            denied(text, format!("the host has one spelling: write {canonical} if that is meant"))
        }
    })?;
    port.map_or(Ok(()), |port| Err(bad_port(text, port)))
}

/// A port that has no spelling, or not its one spelling.
fn bad_port(text: &str, port: &str) -> TargetError {
    match port.parse::<u32>() {
        Ok(number) if number > u32::from(u16::MAX) => TargetError::Invalid("the URL's port is over 65535".to_owned()),
        Ok(0) => denied(text, "port 0 is no port"),
        Ok(number) => denied(text, format!("the port has one spelling: write {number} if that is meant")),
        Err(_) if port.is_empty() => denied(text, "the port is empty; leave out the colon"),
        Err(_) => TargetError::Invalid("the URL's port is no number".to_owned()),
    }
}

/// The scheme and what follows its colon. `None` for a relative reference.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let end = text.find([':', '/', '?', '#']).filter(|end| text[*end..].starts_with(':'))?;
    let scheme = &text[..end];
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    (scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(plain))
        .then_some((scheme, &text[end + 1..]))
}

fn denied(text: &str, why: impl Into<String>) -> TargetError {
    TargetError::Denied(Refusal::new(CAPABILITY, text, Reason::BadTarget).note(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ok`, `invalid` or `denied`.
    fn outcome(result: &Result<Url, TargetError>) -> &'static str {
        match result {
            Ok(_) => "ok",
            Err(TargetError::Invalid(_)) => "invalid",
            Err(TargetError::Denied(refusal)) => {
                assert_eq!((refusal.reason, &refusal.fix), (Reason::BadTarget, &None));
                "denied"
            }
        }
    }

    #[test]
    fn plain_urls_are_taken_as_they_are() {
        for text in [
            "http://a/",
            "https://api.example.com",
            "https://api.example.com:8443/a/b?c=d&e=%20#f",
            "http://127.0.0.1:9000/",
            "http://[::1]:9000/x",
            "http://localhost/",
            "https://xn--bcher-kva.example/",
            "HTTPS://API.example.com/",
            "https://a_b.example.com/",
            "http://10.0.0.1/",
            "https://a.example/@b:c",
            "https://a.example/?q=http://b@c",
            "http://[::ffff:7f00:1]/",
            "https://a.example:65535/",
            "http://[FE80::1]/",
        ] {
            assert_eq!(outcome(&parse_target(text)), "ok", "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_invalid() {
        for text in [
            "",
            "/",
            "//",
            "a",
            "example.com",
            "example.com/x",
            "/x",
            "//example.com/",
            "?",
            "#",
            "http:///",
            "http://",
            "https:///x",
            "http://:80/",
            "http://?x",
            "http://a:65536/",
            "http://a:99999999999/",
            "http://a:b/",
            "http://a:80:80/",
            "http://[::1/",
            "http://[::1]x/",
            "http://::1/",
            "http://a..b/",
            "http://.a/",
            "http://-a/",
            "http://a<b/",
            "http://xn--allowed-.com/",
            "http://1.2.3.4.5/",
            "http://256.256.256.256/",
            "http://[1.2.3.4]/",
            "http://a:-1/",
            ":",
            "://a/",
            "1http://a/",
        ] {
            assert_eq!(outcome(&parse_target(text)), "invalid", "{text}");
        }
        assert_eq!(outcome(&parse_target(&format!("http://a/{}", "x".repeat(MAX_URL_BYTES)))), "invalid");
    }

    #[test]
    fn every_second_spelling_of_a_host_is_denied() {
        for text in [
            "http://127.1/",
            "http://127.0.1/",
            "http://0/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://017700000001/",
            "http://0177.0.0.1/",
            "http://0x7f.0.0.1/",
            "http://0x7f.1/",
            "http://127.0x1/",
            "http://3232235521/",
            "http://2852039166/",
            "http://127.0.0.1./",
            "http://127.0.0.01/",
            "http://%31%32%37.0.0.1/",
            "http://127%2e0.0.1/",
            "http://%6c%6fcalhost/",
            "http://ｅxample.com/",
            "http://１２７.0.0.1/",
            "http://127。0。0。1/",
            "http://bücher.example/",
            "http://\u{430}pple.com/",
            "http://[0:0:0:0:0:0:0:1]/",
            "http://[::0001]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::127.0.0.1]/",
            "http://a\u{ad}b.example/",
        ] {
            assert_eq!(outcome(&parse_target(text)), "denied", "{text}");
        }
    }

    #[test]
    fn every_trick_with_the_rest_of_a_url_is_denied() {
        for text in [
            "http://LOCALHOST./",
            "http://example.com./",
            "http://allowed.com@10.0.0.1/",
            "http://allowed.com:80@10.0.0.1",
            "http://@a/",
            "http://:@a/",
            "http://allowed.com\\@10.0.0.1",
            "http:\\\\a/",
            "http://a\\b/",
            "http://1.1.1.1 &@2.2.2.2# @3.3.3.3/",
            " http://a/",
            "http://a/ ",
            "http://a/\r\nX: y",
            "ht\ttp://a/",
            "http://a\u{0}/",
            "http://a/\u{2028}",
            "http://a:0/",
            "http://a:00/",
            "http://a:00080/",
            "http://a:080/",
            "http://a:+80/",
            "http://a:/",
            "http://[fe80::1%25eth0]/",
            "http://[fe80::1%eth0]/",
            "http:a",
            "http:/a",
            "https:a/b",
            "ftp://a/",
            "file:///etc/passwd",
            "data:,x",
            "javascript:1",
            "ws://a/",
            "unix:/run/x",
            "http+unix://a/",
        ] {
            assert_eq!(outcome(&parse_target(text)), "denied", "{text}");
        }
    }

    #[test]
    fn a_redirect_is_judged_as_a_call_of_its_own() {
        let base = Url::parse("https://api.example.com/a/b?c").expect("a URL");
        for (location, expected) in [
            ("d", "https://api.example.com/a/d"),
            ("/d?e", "https://api.example.com/d?e"),
            ("../../../d", "https://api.example.com/d"),
            ("?e", "https://api.example.com/a/b?e"),
            ("", "https://api.example.com/a/b?c"),
            ("//10.0.0.1/x", "https://10.0.0.1/x"),
            ("http://[::1]/", "http://[::1]/"),
        ] {
            assert_eq!(parse_redirect(&base, location).expect(location).as_str(), expected, "{location}");
        }
        for location in [
            "//127.1/",
            "/\\10.0.0.1/",
            "\\\\10.0.0.1/",
            "https:x",
            "http://u@a/",
            "file:///x",
            " /x",
            "/x\n",
            "///10.0.0.1/x",
        ] {
            assert!(parse_redirect(&base, location).is_err(), "{location}");
        }
    }

    #[test]
    fn a_refused_spelling_is_explained_by_the_scripts_own_text() {
        let error = OperationError::from(parse_target("http://127.1/").expect_err("a second spelling"));
        assert_eq!(error.kind, neoc_abi::ErrorKind::Denied);
        assert_eq!(error.message, "the host has one spelling: write 127.0.0.1 if that is meant");
    }
}
