//! Any text as a URL and any address behind it: no crash, and what is allowed is what a rule names.
//!
//! The first line is a script's URL, the second where it is redirected to, and the last 16 bytes are an address.
#![no_main]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::LazyLock,
};

use libfuzzer_sys::fuzz_target;
use neoc_fuzz::policy::{
    Machine, Policy,
    address::{self, Class},
    http::{self, parse_redirect, parse_target},
};
use url::{Host, Url};

/// Names, and one private network.
const POLICY: &str = r#"
[tenant.a]
script = "main.luau"
[[tenant.a.allow.http]]
hosts = ["https://allowed.example", "http://allowed.example", "https://*.allowed.example", "http://localhost:8080"]
[[tenant.a.allow.http]]
hosts = ["http://10.1.2.3", "http://169.254.169.254", "http://127.0.0.1", "http://[::1]", "http://93.184.215.14"]
addresses = ["10.1.0.0/16", "169.0.0.0/8"]
"#;

static TENANT: LazyLock<Policy> =
    LazyLock::new(|| Policy::parse(POLICY, Path::new("policy.toml")).expect("the policy is valid"));

/// Where the host itself listens: in the network that is named.
const LISTENER: &str = "10.1.2.3:8080";

static MACHINE: LazyLock<Machine> = LazyLock::new(|| {
    Machine::new(["10.1.2.3".parse().expect("an address")], Some(LISTENER.parse().expect("an address")))
});

fuzz_target!(|bytes: &[u8]| {
    if let Some(address) = bytes.last_chunk() {
        check_address(*address);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (text, location) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(url) = parse_target(text) else { return };
    check_url(text, &url);
    if let Ok(next) = parse_redirect(&url, location) {
        check_url(location, &next);
    }
});

/// An allowed URL goes where a rule of the policy above says, by a reading of its own.
fn check_url(text: &str, url: &Url) {
    let rules = &TENANT.tenant("a").expect("it is there").allow.http;
    let machine = &*MACHINE;
    let Ok(matched) = http::decide(rules, machine, "GET", url) else { return };
    match url.host().expect("an allowed URL has a host") {
        Host::Domain(name) => {
            assert!(name == "allowed.example" || name.ends_with(".allowed.example"), "{text:?} leads to {name}");
        }
        Host::Ipv4(address) => {
            let named = [Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(93, 184, 215, 14)];
            assert!(named.contains(&address), "{text:?} leads to {address}");
        }
        Host::Ipv6(address) => panic!("{text:?} leads to {address}"),
    }
    assert_eq!((url.username(), url.password()), ("", None), "{text:?}");
    for never in ["169.254.169.254", "127.0.0.1", "::1", "fe80::1", "10.2.0.1", "::ffff:169.254.169.254"] {
        let address: IpAddr = never.parse().expect("an address");
        let to = SocketAddr::new(address, url.port_or_known_default().expect("an allowed URL has a port"));
        assert!(!http::allows_address(rules, machine, &matched, to), "{text:?} may be connected to {address}");
    }
    let listener = LISTENER.parse().expect("an address");
    assert!(!http::allows_address(rules, machine, &matched, listener), "{text:?} may come back to the host");
}

/// An IPv4 address is judged alike in each of its IPv6 spellings, or more strictly.
fn check_address(bytes: [u8; 16]) {
    let v6 = Ipv6Addr::from(bytes);
    let _ = address::classify(v6.into());
    let v4 = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
    let class = address::classify(v4.into());
    assert_eq!(address::classify(v4.to_ipv6_mapped().into()), class, "{v4}");
    let [a, b] = [u16::from_be_bytes([bytes[12], bytes[13]]), u16::from_be_bytes([bytes[14], bytes[15]])];
    for wrapped in [
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b),
        Ipv6Addr::new(0x2002, a, b, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, a, b),
    ] {
        let outer = address::classify(wrapped.into());
        assert_ne!(outer, Class::Public, "{wrapped}");
        assert!(matches!(outer, Class::Never(_)) || !matches!(class, Class::Never(_)), "{wrapped} carries {v4}");
    }
}
