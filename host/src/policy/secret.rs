//! `[tenant.NAME.secret.NAME]`: what a script may use and not read, and the decision on where it may go.
//!
//! The policy knows where a secret is kept and never what it is. It is read elsewhere, and put into a request that
//! was decided on.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use neoc_abi::secret::is_name;
use toml::Spanned;
use url::Url;

use super::{
    Place,
    error::{Broken, Errors, child},
    fix::Remedy,
    host::below,
    origin::OriginPattern,
    raw::{AlsoToml, SecretToml, Text},
    refusal::{Reason, Refusal},
};

/// The name in errors, for what is no capability of its own.
pub const CAPABILITY: &str = "secret";

/// A source.
const EXAMPLE: &str = "\"env:API_KEY\"";

/// Longest name of a variable, in bytes.
const MAX_VARIABLE_BYTES: usize = 128;

/// A tenant's secrets, by name.
pub type Secrets = BTreeMap<String, Secret>;

/// One secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Where its value is.
    pub source: Source,
    /// Where it may go. No wildcards.
    pub origins: Vec<OriginPattern>,
    /// Where the policy file has it.
    pub place: Place,
}

/// Where a secret's value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The content of this file.
    File(PathBuf),
    /// The value of this variable.
    Variable(String),
}

/// Decides whether a secret may go where a request goes. In report mode too: what has left is no secret any more.
/// Gives where the policy has the secret.
///
/// # Errors
/// [`Reason::NotGranted`] for a secret that the policy does not have, [`Reason::SecretNotBound`] for one that is
/// for other origins.
pub fn decide<'a>(secrets: &'a Secrets, name: &str, url: &Url) -> Result<&'a Place, Refusal> {
    let Some(secret) = secrets.get(name) else {
        let refusal = refuse(name, url, Reason::NotGranted, false);
        return Err(refusal.note("the policy has no secret of this name for the tenant"));
    };
    if secret.origins.iter().any(|origin| origin.matches(url)) {
        return Ok(&secret.place);
    }
    Err(refuse(name, url, Reason::SecretNotBound, true).near(&secret.place))
}

/// A refusal to put a secret into a request. `is_known`: whether the policy has one of the name.
pub(super) fn refuse(name: &str, url: &Url, reason: Reason, is_known: bool) -> Refusal {
    let origin = url.origin().ascii_serialization();
    let refusal = Refusal::new(CAPABILITY, &format!("{name} {origin}"), reason);
    // No header of a table can have another name.
    if !is_name(name) {
        return refusal;
    }
    refusal.remedy(Remedy::Secret { name: name.to_owned(), origin, is_known })
}

/// Where a secret's value may well be: in the variable of its name in capitals.
pub(super) fn likely_source(name: &str) -> String {
    let variable = name.to_ascii_uppercase().replace('-', "_");
    let digit = if variable.starts_with(|first: char| first.is_ascii_digit()) { "_" } else { "" };
    format!("env:{digit}{variable}")
}

/// Converts the tables.
pub(super) fn enforce(raw: BTreeMap<Text, Spanned<SecretToml>>, at: &str, errors: &mut Errors<'_>) -> Secrets {
    raw.into_iter().filter_map(|(name, raw)| one(name, raw, at, errors)).collect()
}

/// None: there is an error.
fn one(name: Text, raw: Spanned<SecretToml>, at: &str, errors: &mut Errors<'_>) -> Option<(String, Secret)> {
    let at = child(at, name.get_ref());
    if !is_name(name.get_ref()) {
        let broken = Broken::new("a secret's name is 1 to 63 of a-z, 0-9, _ and -").write("api_key");
        errors.add_without_value(&at, name.span(), broken);
    }
    let span = raw.span();
    let SecretToml { from, origins, also } = raw.into_inner();
    let mut bound = bound(origins, &at, &span, errors);
    for (index, table) in also.into_iter().enumerate() {
        let (at, span) = (format!("{at}.also[{index}]"), table.span());
        let AlsoToml { origins } = table.into_inner();
        bound.extend(self::bound(origins, &at, &span, errors));
    }
    if from.is_none() {
        errors.missing(&at, "from", span.clone(), EXAMPLE);
    }
    let folder = errors.folder(from.as_ref());
    let source = errors.value(&child(&at, "from"), from.as_ref(), |text| source(&folder, text));
    Some((name.into_inner(), Secret { source: source?, origins: bound, place: errors.place(&span) }))
}

fn bound(
    origins: Option<Vec<Text>>,
    at: &str,
    span: &std::ops::Range<usize>,
    errors: &mut Errors<'_>,
) -> Vec<OriginPattern> {
    let example = "[\"https://api.example.com\"]";
    match origins {
        Some(origins) if !origins.is_empty() => errors.list(&child(at, "origins"), &origins, origin),
        Some(_) => {
            let broken = Broken::new("a secret that may go nowhere is of no use");
            errors.add_without_value(
                &child(at, "origins"),
                span.clone(),
                broken.write(format_args!("origins = {example}")),
            );
            Vec::new()
        }
        None => {
            errors.missing(at, "origins", span.clone(), example);
            Vec::new()
        }
    }
}

fn origin(text: &str) -> Result<OriginPattern, Broken> {
    let origin = OriginPattern::parse(text)?;
    if origin.host().0 {
        // Whoever gets hold of one forgotten subdomain would get the secret as well.
        return Err(Broken::new("a secret is bound to origins, without wildcards").write("\"https://api.example.com\""));
    }
    Ok(origin)
}

fn source(folder: &Path, text: &str) -> Result<Source, Broken> {
    match text.split_once(':') {
        Some(("file", path)) => below(folder, path, "\"file:../secrets/api_key\"").map(Source::File),
        Some(("env", variable)) => self::variable(variable).map(Source::Variable),
        _ => Err(Broken::new("`file:` and a path, or `env:` and a variable's name").write(EXAMPLE)),
    }
}

fn variable(text: &str) -> Result<String, Broken> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_variable = (1..=MAX_VARIABLE_BYTES).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with(|first: char| first.is_ascii_digit());
    if is_variable {
        return Ok(text.to_owned());
    }
    Err(Broken::new("a variable's name is letters, digits and _, at most 128").write(EXAMPLE))
}

#[cfg(test)]
mod tests {
    use super::{super::Policy, *};

    const HEAD: &str = "[tenant.a]\nscript = \"a.luau\"\n";

    fn parse(tables: &str) -> Result<Policy, String> {
        Policy::parse(&format!("{HEAD}{tables}"), Path::new("p.toml")).map_err(|errors| errors.to_string())
    }

    fn decided(policy: &Policy, name: &str, url: &str) -> Result<u32, Refusal> {
        let (tenant, url) = (policy.tenant("a").expect("there"), Url::parse(url).expect("a URL"));
        decide(&tenant.secrets, name, &url).map(|place| place.line).map_err(|refusal| refusal.with_fix(tenant))
    }

    #[test]
    fn a_secret_goes_to_its_own_origins_alone() {
        let policy =
            parse("[tenant.a.secret.key]\nfrom = \"env:K\"\norigins = [\"https://a.example\"]\n").expect("valid");
        assert_eq!(decided(&policy, "key", "https://a.example/x?y").expect("bound"), 3);
        for url in [
            "http://a.example/",
            "https://a.example:8443/",
            "https://b.a.example/",
            "https://a.example.b.example/",
            "https://xa.example/",
        ] {
            let refusal = decided(&policy, "key", url).expect_err(url);
            assert_eq!(
                (refusal.reason, refusal.rule.map(|place| place.line)),
                (Reason::SecretNotBound, Some(3)),
                "{url}"
            );
        }
    }

    #[test]
    fn the_fix_binds_the_secret_to_that_origin() {
        let table = "[tenant.a.secret.key]\nfrom = \"file:k\"\norigins = [\"https://a.example\"]\n";
        let url = "http://127.0.0.1:9000/x";
        for (tables, name) in [(table, "key"), (table, "other-2"), ("", "2_key")] {
            let fix =
                decided(&parse(tables).expect("valid"), name, url).expect_err("refused").fix.expect("there is one");
            let policy = parse(&format!("{tables}{fix}")).expect(&fix);
            assert!(decided(&policy, name, url).is_ok(), "{fix}");
            assert!(decided(&policy, name, "http://127.0.0.1:9001/").is_err(), "{fix}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_said_with_its_line() {
        for (table, expected) in [
            (
                "[tenant.a.secret.KEY]\nfrom = \"env:K\"\norigins = [\"https://a.example\"]\n",
                "p.toml:3:18: tenant.a.secret.KEY: a secret's name is 1 to 63 of a-z, 0-9, _ and -; write for example api_key",
            ),
            (
                "[tenant.a.secret.k]\norigins = [\"https://a.example\"]\n",
                "p.toml:3:1: tenant.a.secret.k.from: missing; write for example from = \"env:API_KEY\"",
            ),
            (
                "[tenant.a.secret.k]\nfrom = \"K\"\norigins = [\"https://a.example\"]\n",
                "p.toml:4:8: tenant.a.secret.k.from = \"K\": `file:` and a path, or `env:` and a variable's name; write for example \"env:API_KEY\"",
            ),
            (
                "[tenant.a.secret.k]\nfrom = \"file: k\"\norigins = [\"https://a.example\"]\n",
                "p.toml:4:8: tenant.a.secret.k.from = \"file: k\": a path, without spaces around it; write for example \"file:../secrets/api_key\"",
            ),
            (
                "[tenant.a.secret.k]\nfrom = \"env:K=1\"\norigins = [\"https://a.example\"]\n",
                "p.toml:4:8: tenant.a.secret.k.from = \"env:K=1\": a variable's name is letters, digits and _, at most 128; write for example \"env:API_KEY\"",
            ),
            (
                "[tenant.a.secret.k]\nfrom = \"env:K\"\n",
                "p.toml:3:1: tenant.a.secret.k.origins: missing; write for example origins = [\"https://api.example.com\"]",
            ),
            (
                "[tenant.a.secret.k]\nfrom = \"env:K\"\norigins = []\n",
                "p.toml:3:1: tenant.a.secret.k.origins: a secret that may go nowhere is of no use; write for example origins = [\"https://api.example.com\"]",
            ),
            (
                "[tenant.a.secret.k]\nfrom = \"env:K\"\norigins = [\"https://*.a.example\"]\n",
                "p.toml:5:12: tenant.a.secret.k.origins[0] = \"https://*.a.example\": a secret is bound to origins, without wildcards; write for example \"https://api.example.com\"",
            ),
            (
                "[tenant.a.secret.k]\nvalue = \"hush\"\nfrom = \"env:K\"\norigins = [\"https://a.example\"]\n",
                "p.toml:4:1: tenant.a.secret.k.value: unknown key; the keys here are from, origins, also",
            ),
        ] {
            assert_eq!(parse(table).map(|_| ()), Err(expected.to_owned()), "{table}");
        }
    }
}
