//! 100,000 spellings of URLs, made of every trick that is known, beside the judgement of another library: what it
//! refuses, we refuse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use antissrf::{AntiSSRFPolicy, PolicyConfigOptions, URIValidator};
use url::{Host, Url};

use super::{Random, http, parse};

const SPELLINGS: usize = 100_000;

const NAME: &str = "allowed.example";

fn one<'a>(random: &mut Random, of: &[&'a str]) -> &'a str {
    of[random.below(of.len())]
}

fn byte(random: &mut Random) -> u8 {
    u8::try_from(random.below(256)).expect("a byte")
}

fn v4(random: &mut Random) -> Ipv4Addr {
    let [a, b, c, d] = [(); 4].map(|()| byte(random));
    match random.below(12) {
        0 => Ipv4Addr::new(127, b, c, d),
        1 => Ipv4Addr::new(10, b, c, d),
        2 => Ipv4Addr::new(192, 168, c, d),
        3 => Ipv4Addr::new(172, 16 + b % 16, c, d),
        4 => Ipv4Addr::new(169, 254, 169, 254),
        5 => Ipv4Addr::new(100, 64 + b % 64, c, d),
        6 => Ipv4Addr::new(
            192,
            [0, 31, 52, 88, 175][usize::from(b % 5)],
            [0, 2, 48, 99, 193, 196][usize::from(c % 6)],
            d,
        ),
        7 => Ipv4Addr::new(0, 0, 0, 0),
        8 => Ipv4Addr::new(168, 63, 129, 16),
        9 => Ipv4Addr::new(198, 18 + b % 2, c, d),
        _ => Ipv4Addr::new(a, b, c, d),
    }
}

/// One of the texts that some parser takes for an IPv4 address.
fn v4_text(random: &mut Random) -> String {
    let address = v4(random);
    let [a, b, c, d] = address.octets();
    let number = |random: &mut Random, value: u32| match random.below(5) {
        0 => format!("{value:#x}"),
        1 => format!("0{value:o}"),
        2 => format!("{value:#X}"),
        3 => format!("0x0{value:x}"),
        _ => value.to_string(),
    };
    match random.below(8) {
        0 => number(random, u32::from(address)),
        1 => format!("{}.{}", number(random, a.into()), number(random, u32::from_be_bytes([0, b, c, d]))),
        2 => format!("{a}.{}.{}", number(random, b.into()), number(random, u32::from_be_bytes([0, 0, c, d]))),
        3 => [a, b, c, d].map(|octet| number(random, octet.into())).join("."),
        4 => address.to_string().chars().map(wide).collect(),
        5 => address.to_string().replace('.', "\u{3002}"),
        _ => address.to_string(),
    }
}

fn wide(character: char) -> char {
    char::from_u32(u32::from(character) + 0xfee0).unwrap_or(character)
}

fn v6_text(random: &mut Random) -> String {
    let inside = v4(random);
    let [a, b, c, d] = inside.octets();
    let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    let prefix = one(
        random,
        &[
            "fe80::",
            "fc00::",
            "fd00:ec2::",
            "ff02::",
            "2001:db8::",
            "2001::",
            "2002::",
            "64:ff9b:1::",
            "2620:4f:8000::",
            "2606:4700::",
        ],
    );
    let address = match random.below(8) {
        0 => inside.to_ipv6_mapped(),
        1 => Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
        2 => Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        3 => Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
        4 => Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, !high, !low),
        5 => Ipv6Addr::LOCALHOST,
        _ => {
            let Ok(prefix) = prefix.parse::<Ipv6Addr>() else { return "[::1]".to_owned() };
            let mut segments = prefix.segments();
            segments[7] = low;
            Ipv6Addr::from(segments)
        }
    };
    match random.below(6) {
        0 => format!("[{}]", address.segments().map(|segment| format!("{segment:x}")).join(":")),
        1 => format!("[{address}%25eth0]"),
        2 => format!("[{}]", address.to_string().to_uppercase()),
        3 => format!("[::ffff:{inside}]"),
        _ => format!("[{address}]"),
    }
}

fn name_text(random: &mut Random) -> String {
    let name = match random.below(16) {
        0 => format!("{NAME}.evil.example"),
        1 => format!("not{NAME}"),
        2 => "\u{430}llowed.example".to_owned(),
        3 => "xn--allowed-.example".to_owned(),
        4 => "localhost".to_owned(),
        5 => format!("{NAME}."),
        6 => NAME.replace('a', "%61"),
        7 => NAME.chars().map(|c| if c.is_ascii_lowercase() { wide(c) } else { c }).collect(),
        8 => format!("a.{NAME}"),
        9 => NAME.replace('.', "\u{3002}"),
        10 => "evil.example".to_owned(),
        11 => format!("a\u{ad}.{NAME}"),
        _ => NAME.to_owned(),
    };
    if random.below(4) == 0 { name.to_uppercase() } else { name }
}

fn host(random: &mut Random) -> String {
    match random.below(3) {
        0 => v4_text(random),
        1 => v6_text(random),
        _ => name_text(random),
    }
}

fn spelling(random: &mut Random) -> String {
    let scheme = one(random, &["http", "http", "http", "https", "HTTP", "hTTps", "ftp", "ws"]);
    let slashes = one(random, &["://", "://", "://", "://", "://", ":", ":/", ":///", ":\\\\", ":/\\"]);
    let host = self::host(random);
    let before = match random.below(10) {
        0 => format!("{}@", self::host(random)),
        1 => format!("{}:80@", self::host(random)),
        2 => format!("{}#@", self::host(random)),
        3 => format!("{}\\@", self::host(random)),
        _ => String::new(),
    };
    let port = one(random, &["", "", "", "", ":80", ":443", ":8080", ":0", ":080", ":+80", ":65536", ":", ":22"]);
    let after = one(
        random,
        &["/", "/x?y=z#w", "", "\\@evil.example/", "#@evil.example", "?@evil.example", "/..//x", " ", "\t/", "\u{0}"],
    );
    format!("{scheme}{slashes}{before}{host}{port}{after}")
}

/// Whether a policy that names just the origin that this URL seems to have, and no network, allows it.
fn allows_its_own_origin(url: &Url) -> bool {
    let origin = url.origin().ascii_serialization();
    let text = format!("[tenant.a]\nscript = \"a.luau\"\n[[tenant.a.allow.http]]\nhosts = [{origin:?}]\n");
    let Ok(policy) = super::Policy::parse(&text, std::path::Path::new("p.toml")) else { return false };
    let tenant = policy.tenant("a").expect("it is there");
    http::decide(&tenant.allow.http, &super::Machine::default(), "GET", url).is_ok()
}

#[test]
fn no_spelling_is_judged_laxer_than_by_another_library() {
    let mut oracle = AntiSSRFPolicy::new(PolicyConfigOptions::ExternalOnlyLatest);
    let names = parse(&format!(
        "[tenant.a]\nscript = \"a.luau\"\n[[tenant.a.allow.http]]\n\
         hosts = [\"http://{NAME}\", \"https://{NAME}\", \"http://*.{NAME}\", \"https://*.{NAME}\"]\n"
    ));
    let names = &names.tenant("a").expect("it is there").allow.http;
    let mut random = Random(0x5eed);
    let (mut n_allowed, mut n_refused_by_both, mut n_stricter) = (0, 0, 0);
    for _ in 0..SPELLINGS {
        let text = spelling(&mut random);
        let ours = http::parse_target(&text);
        let Ok(theirs) = Url::parse(&text) else {
            assert!(ours.is_err(), "{text:?} is no URL, and is taken");
            continue;
        };
        let address = match theirs.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
            _ => None,
        };
        let (we_allow, they_allow) = match address {
            Some(address) => {
                let allowed = oracle.is_network_connection_allowed(&[&address.to_string()]);
                (ours.as_ref().is_ok_and(allows_its_own_origin), allowed.expect("an address"))
            }
            None => {
                let we_allow =
                    ours.as_ref().is_ok_and(|url| http::decide(names, &super::Machine::default(), "GET", url).is_ok());
                (we_allow, URIValidator::in_domain(&text, &[NAME]))
            }
        };
        assert!(!we_allow || they_allow, "{text:?} is refused by the other library, and allowed by us");
        match (we_allow, they_allow) {
            (true, _) => n_allowed += 1,
            (false, true) => n_stricter += 1,
            (false, false) => n_refused_by_both += 1,
        }
    }
    // Enough of each kind that the comparison says something.
    assert!(n_allowed > 500 && n_refused_by_both > 10_000, "{n_allowed} {n_refused_by_both} {n_stricter}");
    println!("{n_allowed} allowed, {n_refused_by_both} refused by both, {n_stricter} refused by us alone");
}
