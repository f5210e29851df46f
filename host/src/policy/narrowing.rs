//! What a script itself takes away: `require("vnd:hyper", { hosts = { "https://api.example.com" } })`.
//!
//! The patterns are those of a module's table in the policy ([`super::module`]), and are read by the same code: what
//! is wrong with one is said in the same words. A call of a function from the narrowed table must be named by them,
//! and allowed by the tenant's rules, and by its module's. So a narrowing takes away and never gives, and no mode of
//! the tenant's lifts it.
//!
//! It is asked before the policy, so that what it leaves out has one reason, whatever the policy says.

use std::{ops::Range, path::Path};

use neoc_abi::narrowing::{Given, Narrowing as Written};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    PolicyError,
    error::{Broken, Errors},
    fs::{self, Access, VirtualPath},
    http, kv,
    module::Asked,
    net::{self, EndpointPattern},
    raw::NarrowedKvToml,
    read,
    refusal::{Reason, Refusal},
    source::Source,
};

const EXAMPLE_PREFIX: &str = "\"cache:\"";

/// What is left to the functions of a table.
#[derive(Debug, Clone)]
pub enum Narrowing {
    /// Of `vnd:hyper`.
    Http(Box<http::Rules>),
    /// Of `std:net`.
    Net(Vec<EndpointPattern>),
    /// Of `std:fs`.
    Fs(VirtualPath, Access),
    /// Of `std:kv`: what each key begins with.
    Kv(String),
}

impl Narrowing {
    /// Reads what a script has written for the calls of a capability. The size of it is bounded, see [`Written`].
    ///
    /// # Errors
    /// What is wrong with it, in words for the script: the first fault, in the order of the keys.
    pub fn parse(capability: &str, written: &Written) -> Result<Self, String> {
        written.check_size()?;
        let (table, text) = as_in_a_file(written);
        let sources = [Source::new(Path::new(""), &text)];
        let mut errors = Errors::new(&sources);
        let into = &mut errors;
        let narrowing = match capability {
            http::CAPABILITY => {
                let rules = http::enforce_of_narrowing(read::table(table, into), into);
                Some(Self::Http(Box::new(rules)))
            }
            net::CAPABILITY => Some(Self::Net(net::enforce_of_narrowing(read::table(table, into), into))),
            fs::CAPABILITY => {
                fs::enforce_of_narrowing(read::table(table, into), into).map(|(path, access)| Self::Fs(path, access))
            }
            kv::CAPABILITY => prefix(read::table(table, into), into).map(Self::Kv),
            _ => return Err("it cannot be narrowed".to_owned()),
        };
        errors.finish().map_err(|errors| errors.iter().next().map(in_luau).unwrap_or_default())?;
        // Without an error there is one.
        narrowing.ok_or_else(|| "it cannot be narrowed so".to_owned())
    }

    /// Decides on a call.
    ///
    /// # Errors
    /// [`Reason::NarrowedByScript`]; its words name the key that leaves the call out.
    pub fn decide(&self, asked: Asked<'_>) -> Result<(), Refusal> {
        let left_out = match (self, asked) {
            (Self::Http(rules), Asked::Http(method, url)) => http::left_out(rules, method, url),
            (Self::Net(endpoints), Asked::Net(target)) => {
                let is_named = endpoints.iter().any(|endpoint| endpoint.matches(target));
                (!is_named).then_some("hosts")
            }
            (Self::Fs(within, access), Asked::Fs(path, writes)) => fs::left_out(within, *access, path, writes),
            (Self::Kv(prefix), Asked::Kv(key)) => (!key.starts_with(prefix.as_bytes())).then_some("prefix"),
            // It goes where its request goes, which is judged.
            (_, Asked::Secret(..)) => None,
            // No call comes here with what was read for another capability.
            (Self::Http(_) | Self::Net(_) | Self::Fs(..) | Self::Kv(_), _) => Some("module"),
        };
        let Some(key) = left_out else { return Ok(()) };
        let (capability, target) = asked.parts();
        let note = format!("the script itself took this away, by {key:?} in what it gave require");
        Err(Refusal::new(capability, &target, Reason::NarrowedByScript).note(note))
    }
}

fn prefix(raw: NarrowedKvToml, errors: &mut Errors<'_>) -> Option<String> {
    let NarrowedKvToml { prefix } = raw;
    if prefix.is_none() {
        errors.missing("", "prefix", 0..0, EXAMPLE_PREFIX);
    }
    errors.value("prefix", prefix.as_ref(), |text| {
        let is_some = !text.is_empty();
        is_some
            .then(|| text.clone())
            .ok_or_else(|| Broken::new("an empty prefix leaves nothing out").write(EXAMPLE_PREFIX))
    })
}

/// The table that it would be in a file, and the text of the file as far as errors show it: the values.
fn as_in_a_file(written: &Written) -> (DeTable<'_>, String) {
    let mut text = String::new();
    let mut value = |value: &str| -> Range<usize> {
        let start = text.len();
        text.push_str(&format!("{value:?}"));
        start..text.len()
    };
    let mut table = DeTable::new();
    for (key, given) in &written.fields {
        let given = match given {
            Given::Text(text) => Spanned::new(value(text), DeValue::String(text.into())),
            Given::Texts(texts) => {
                let texts = texts.iter().map(|text| Spanned::new(value(text), DeValue::String(text.into())));
                Spanned::new(0..0, DeValue::Array(texts.collect()))
            }
            // No key has this form.
            Given::Other => Spanned::new(0..0, DeValue::Boolean(false)),
        };
        table.insert(Spanned::new(0..0, key.into()), given);
    }
    (table, text)
}

/// An error in the words for a file, with the lists of Luau.
fn in_luau(error: &PolicyError) -> String {
    let PolicyError { place: _, column: _, snippet: _, key, value, rule, help } = error;
    // Lists are counted in another way there, and the value tells which it is. A key that is none may be long.
    let mut words = format!("{:.100}", key.split('[').next().unwrap_or_default());
    if let Some(value) = value {
        words.push_str(&format!(" = {value}"));
    }
    words.push_str(&format!(": {rule}"));
    if let Some(help) = help {
        let list = help.strip_suffix(']').and_then(|help| help.rsplit_once('['));
        let help = list.map_or_else(|| help.clone(), |(before, list)| format!("{before}{{ {list} }}"));
        words.push_str(&format!("; {help}"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{
        super::{http::parse_target, net::Target},
        *,
    };

    fn text(text: &str) -> Given {
        Given::Text(text.to_owned())
    }

    fn texts(texts: &[&str]) -> Given {
        Given::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    fn parse(capability: &str, fields: &[(&str, Given)]) -> Result<Narrowing, String> {
        let fields = fields.iter().map(|(key, given)| ((*key).to_owned(), given.clone())).collect();
        Narrowing::parse(capability, &Written { fields })
    }

    /// The key that leaves a call out.
    fn left_out(narrowing: &Narrowing, asked: Asked<'_>) -> Option<String> {
        let refusal = narrowing.decide(asked).err()?;
        assert_eq!((refusal.reason, &refusal.rule, &refusal.fix), (Reason::NarrowedByScript, &None, &None));
        assert!(!refusal.is_open_to_rules() && refusal.operator_fix().is_none());
        let message = refusal.message();
        message.split('"').nth(1).map(str::to_owned)
    }

    #[test]
    fn what_is_wrong_is_said_in_the_words_for_a_policy_file() {
        let long = "x".repeat(8 * 1024);
        for (capability, fields, expected) in [
            ("http", vec![], "hosts: missing; write for example hosts = { \"https://api.example.com\" }"),
            (
                "http",
                vec![("methods", texts(&["GET"]))],
                "hosts: missing; write for example hosts = { \"https://api.example.com\" }",
            ),
            (
                "http",
                vec![("hosts", texts(&[]))],
                "hosts: a rule without hosts allows nothing; write for example hosts = { \"https://api.example.com\" }",
            ),
            (
                "http",
                vec![("hosts", texts(&["https://a.example"])), ("methods", texts(&[]))],
                "methods: a rule without methods allows nothing; leave the key out for all methods",
            ),
            (
                "http",
                vec![("hosts", text("https://a.example"))],
                "hosts = \"https://a.example\": a list of strings; write for example { \"https://api.example.com\" }",
            ),
            (
                "http",
                vec![("hosts", Given::Other)],
                "hosts: a list of strings; write for example { \"https://api.example.com\" }",
            ),
            (
                "http",
                vec![("hosts", texts(&["https://a.example", "b.example"]))],
                "hosts = \"b.example\": an origin starts with https:// or http://; write for example \"https://b.example\"",
            ),
            (
                "http",
                vec![("hosts", texts(&["https://a.example"])), ("paths", texts(&["v1"]))],
                "paths = \"v1\": a path begins with /; write for example \"/v1\"",
            ),
            ("http", vec![("host", texts(&["https://a.example"]))], "host: unknown key; did you mean \"hosts\"?"),
            (
                "http",
                vec![("addresses", texts(&["127.0.0.0/8"])), ("hosts", texts(&["https://a.example"]))],
                "addresses: unknown key; the keys here are hosts, methods, paths",
            ),
            (
                "net",
                vec![("hosts", texts(&["tcp://db.example"]))],
                "hosts = \"tcp://db.example\": an endpoint has a port, 1 to 65535; write for example \"tcp://db.example.com:5432\"",
            ),
            ("fs", vec![("path", text("/data"))], "access: missing; write for example access = \"read\""),
            (
                "fs",
                vec![("access", text("write")), ("path", text("/data"))],
                "access = \"write\": read or read-write; write for example \"read\"",
            ),
            (
                "fs",
                vec![("access", text("read")), ("path", text("/data/../x"))],
                "path = \"/data/../x\": a path has no . and no ..; write for example \"/data/cache\"",
            ),
            ("kv", vec![], "prefix: missing; write for example prefix = \"cache:\""),
            (
                "kv",
                vec![("prefix", text(""))],
                "prefix = \"\": an empty prefix leaves nothing out; write for example \"cache:\"",
            ),
            ("kv", vec![("prefix", texts(&["a"]))], "prefix: a string; write for example \"cache:\""),
            ("detach", vec![("hosts", texts(&["a"]))], "it cannot be narrowed"),
            (
                "kv",
                vec![(&long[..8000], text("a"))],
                &format!("{}: unknown key; the keys here are prefix", &long[..100]),
            ),
            ("kv", vec![("a\nb", text("a"))], "\"a\\nb\": unknown key; the keys here are prefix"),
            ("kv", vec![("prefix", text(&long))], "at most 8192 bytes in all"),
            ("http", vec![("hosts", texts(&["https://a.example"; 17]))], "hosts: at most 16 patterns"),
            ("http", vec![("x", Given::Other); 9], "at most 8 keys"),
        ] {
            assert_eq!(parse(capability, &fields).map(drop), Err(expected.to_owned()), "{fields:?}");
        }
    }

    #[test]
    fn all_lists_must_name_a_call_and_the_one_that_does_not_is_named() {
        let http = |fields: &[(&str, Given)]| parse("http", fields).expect("valid");
        let hosts = || ("hosts", texts(&["https://a.example", "https://*.b.example", "http://169.254.169.254"]));
        let (methods, paths) = (("methods", texts(&["GET"])), ("paths", texts(&["/v1/*", "/exact"])));
        let (wide, narrow) = (http(&[hosts()]), http(&[hosts(), methods, paths]));
        for (method, url, of_wide, of_narrow) in [
            ("GET", "https://a.example/v1/x", None, None),
            ("GET", "https://c.b.example/exact", None, None),
            ("PUT", "https://a.example/v1/x", None, Some("methods")),
            ("GET", "https://a.example/v2", None, Some("paths")),
            ("GET", "https://a.example/v1//x", None, Some("paths")),
            ("GET", "https://b.example/v1", Some("hosts"), Some("hosts")),
            ("GET", "http://a.example/v1", Some("hosts"), Some("hosts")),
            ("GET", "https://a.example:444/v1", Some("hosts"), Some("hosts")),
            // Which addresses a call may go to is not for a script to say.
            ("GET", "http://169.254.169.254/v1", None, None),
        ] {
            let url = parse_target(url).expect(url);
            assert_eq!(left_out(&wide, Asked::Http(method, &url)).as_deref(), of_wide, "{method} {url}");
            assert_eq!(left_out(&narrow, Asked::Http(method, &url)).as_deref(), of_narrow, "{method} {url}");
        }
        let net = parse("net", &[("hosts", texts(&["tcp://a.example:1", "udp://*.b.example:2"]))]).expect("valid");
        for (target, expected) in [
            ("tcp://a.example:1", None),
            ("udp://c.b.example:2", None),
            ("tls://a.example:1", Some("hosts")),
            ("tcp://a.example:2", Some("hosts")),
        ] {
            let parsed = Target::parse(target).unwrap_or_else(|error| panic!("{target}: {error:?}"));
            assert_eq!(left_out(&net, Asked::Net(&parsed)).as_deref(), expected, "{target}");
        }
        let fs = |access| parse("fs", &[("access", text(access)), ("path", text("/data/x"))]).expect("valid");
        for (path, writes, of_read, of_write) in [
            ("/data/x", false, None, None),
            ("/data/x/y", false, None, None),
            ("/data/x/y", true, Some("access"), None),
            // It may be a file.
            ("/data/x", true, Some("access"), None),
            ("/data/xy", false, Some("path"), Some("path")),
            ("/data", false, Some("path"), Some("path")),
            // No path at all, which the tenant's own rules say.
            ("/data/x/../y", false, None, None),
        ] {
            assert_eq!(left_out(&fs("read"), Asked::Fs(path, writes)).as_deref(), of_read, "{path}");
            assert_eq!(left_out(&fs("read-write"), Asked::Fs(path, writes)).as_deref(), of_write, "{path}");
        }
        let kv = parse("kv", &[("prefix", text("a:"))]).expect("valid");
        for (key, expected) in
            [(&b"a:"[..], None), (b"a:\xff", None), (b"a", Some("prefix")), (b"b:a:", Some("prefix"))]
        {
            assert_eq!(left_out(&kv, Asked::Kv(key)).as_deref(), expected, "{key:?}");
        }
        assert_eq!(left_out(&kv, Asked::Fs("/data", false)).as_deref(), Some("module"));
    }

    #[test]
    fn whatever_a_guest_sends_is_a_narrowing_or_an_error() {
        let pieces = [
            "",
            "hosts",
            "methods",
            "path",
            "access",
            "prefix",
            "https://a.example",
            "tcp://a:1",
            "/v1/*",
            "/data",
            "read",
            "GET",
            "é\u{0}\n\"",
            "[",
            "]",
            "{",
            "*",
            "\u{10ffff}",
        ];
        // Of xorshift64; the same every time.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).expect("31 bits") % below
        };
        let (mut n_good, mut n_bad) = (0, 0);
        for _ in 0..20_000 {
            let (capability, mut fields) = match random(5) {
                0 => ("http", vec![("hosts".to_owned(), texts(&["https://a.example"]))]),
                1 => ("net", vec![("hosts".to_owned(), texts(&["tcp://a.example:1"]))]),
                2 => ("fs", vec![("access".to_owned(), text("read")), ("path".to_owned(), text("/data"))]),
                3 => ("kv", vec![("prefix".to_owned(), text("a"))]),
                _ => ("detach", vec![]),
            };
            fields.extend((0..random(4)).map(|_| {
                let given = match random(4) {
                    0 | 1 => Given::Texts((0..random(3)).map(|_| pieces[random(pieces.len())].to_owned()).collect()),
                    2 => text(pieces[random(pieces.len())]),
                    _ => Given::Other,
                };
                (pieces[random(pieces.len())].to_owned(), given)
            }));
            match Narrowing::parse(capability, &Written { fields }) {
                Ok(_) => n_good += 1,
                Err(message) => {
                    assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
                    n_bad += 1;
                }
            }
        }
        assert!(n_good > 1000 && n_bad > 10_000, "{n_good} good, {n_bad} bad: it shows nothing");
    }
}
