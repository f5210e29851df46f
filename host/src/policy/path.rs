//! Paths of URLs, as patterns of a rule.
//!
//! | form | matches |
//! |---|---|
//! | `/health` | that path |
//! | `/v1/*` | `/v1` and every path below it |
//! | `/*` | every path |
//!
//! A path is compared as it is sent. Servers read some texts in two ways: `//` as one slash, `%2f` as a slash,
//! `%2e%2e` as the folder above, `;x` as nothing. A path that holds such a thing is no plain path: it fits no
//! pattern that allows, and every rule with paths that denies.

use std::fmt;

use super::error::Broken;

/// Longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 512;

const EXAMPLE: &str = "\"/v1/*\" or \"/health\"";

/// A path, or all below one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPattern {
    /// That path.
    Exact(String),
    /// The path that is held here, without a slash at its end, and all below it.
    Below(String),
}

impl PathPattern {
    /// Parses a pattern as written.
    ///
    /// # Errors
    /// The rule that the text breaks, with an example.
    pub(super) fn parse(text: &str) -> Result<Self, Broken> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(Broken::new(format!("a path has at most {MAX_PATTERN_BYTES} bytes")));
        }
        if !text.starts_with('/') {
            return Err(Broken::new("a path begins with /").write(format_args!("\"/{}\"", text.trim())));
        }
        if text.contains(['?', '#']) {
            return Err(Broken::new("a path has no query; it is not looked at").write(EXAMPLE));
        }
        let (path, below) = match text.strip_suffix("/*") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.contains('*') {
            return Err(Broken::new("* stands alone, as the last segment").write(EXAMPLE));
        }
        if !path.is_empty() && !is_plain(path) {
            let rule = "a path is written in the one way in which all servers read it: no //, no . or .., no ;, \
                        percent-encoded in upper case, and only what has to be";
            return Err(Broken::new(rule).write(EXAMPLE));
        }
        if below && path.ends_with('/') {
            return Err(Broken::new("an empty segment").write(EXAMPLE));
        }
        Ok(if below { Self::Below(path.to_owned()) } else { Self::Exact(path.to_owned()) })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Below(path) => write!(f, "{path}/*"),
        }
    }
}

/// Whether a path is read in one way only: by its characters, with nothing hidden in percent-encodings.
pub fn is_plain(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/') else { return false };
    // A slash at the end is an empty segment that has a meaning.
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    (segments.is_empty() && path.len() == 1) || segments.split('/').all(is_plain_segment)
}

fn is_plain_segment(segment: &str) -> bool {
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let is_plain = match byte {
            b'%' => is_plain_encoding(bytes.next(), bytes.next()),
            byte => byte.is_ascii_alphanumeric() || b"-._~!$&'()+,=:@*".contains(&byte),
        };
        if !is_plain {
            return false;
        }
    }
    !["", ".", ".."].contains(&segment)
}

/// Whether a percent-encoding stands for what cannot be written otherwise, and separates nothing.
fn is_plain_encoding(high: Option<u8>, low: Option<u8>) -> bool {
    let digit = |byte: Option<u8>| {
        let value = char::from(byte?).to_digit(16)?;
        byte.filter(|byte| !byte.is_ascii_lowercase()).and(u8::try_from(value).ok())
    };
    let (Some(high), Some(low)) = (digit(high), digit(low)) else { return false };
    let byte = high * 16 + low;
    !byte.is_ascii_control() && !byte.is_ascii_alphanumeric() && !b"/\\%;-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_one_spelling() {
        for text in ["/", "/*", "/v1/*", "/health", "/a/b.c/*", "/caf%C3%A9", "/a%20b", "/health/", "/a:b@c"] {
            assert_eq!(PathPattern::parse(text).map(|pattern| pattern.to_string()), Ok(text.to_owned()));
        }
        for text in [
            "",
            "*",
            "v1",
            "/v1*",
            "/*/x",
            "/v1/**",
            "//",
            "/a//b",
            "/a//*",
            "/./a",
            "/a/..",
            "/%2e%2e/a",
            "/a%2fb",
            "/a%2Fb",
            "/a%5Cb",
            "/%41",
            "/caf%c3%a9",
            "/a%",
            "/a%2",
            "/a;b",
            "/a?b",
            "/a#b",
            "/é",
            "/a b",
            " /a",
            "/a ",
            "/a\n",
            "/a\\b",
        ] {
            assert!(PathPattern::parse(text).is_err(), "{text:?}");
        }
    }
}
