//! Spellings of forbidden addresses, ports, and hosts that look like allowed ones: NET-01, -02, -04 to -06, -12 to -16.

use super::{ENTRIES, Lab, Outcome, redirect, scheme};
use crate::support::{dns::NameServer, tripwire::Tripwire, upstream::Upstream};

/// Hosts that no rule may let through. A rule names each of those that a rule can name.
const HOSTS: &[(&str, &[&str])] = &[
    (
        "NET-01",
        &[
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "0",
            "0.0.0.0",
            "127.0.0.2",
            "127.255.255.255",
            "localhost",
            "LOCALHOST.",
            "foo.localhost",
        ],
    ),
    (
        "NET-02",
        &[
            "2130706433",
            "0x7f000001",
            "017700000001",
            "0177.0.0.1",
            "0x7f.0.0.1",
            "127.0x1",
            "3232235521",
            "2852039166",
            "0x7F.1",
            "127.0.0.1.",
            "127。0。0。1",
            "①②⑦.0.0.1",
            "%31%32%37.0.0.1",
        ],
    ),
    (
        "NET-04",
        &[
            "[::]",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[fe80::1%25eth0]",
            "[fe80::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[ff02::2]",
        ],
    ),
    (
        "NET-05",
        &["[64:ff9b::a00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]"],
    ),
    ("NET-06", &["169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"]),
    ("private", &["10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"]),
];

/// Hosts that stay forbidden where a rule names every address there is.
const NEVER: &[&str] = &[
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[::ffff:a9fe:a9fe]",
];

/// Targets that are not what they look like. PORT is watched by the tripwire; `allowed.test` is allowed on it.
const DISGUISED: &[(&str, &[&str])] = &[
    (
        "NET-13",
        &[
            "//allowed.test@127.0.0.1:PORT/",
            "//allowed.test:80@127.0.0.1:PORT",
            "//127.0.0.1:PORT#@allowed.test",
            "//127.0.0.1:PORT?@allowed.test",
            "//allowed.test\\@127.0.0.1:PORT",
            "//127.0.0.1:PORT\\@allowed.test/",
            "//1.1.1.1 &@127.0.0.1:PORT# @3.3.3.3/",
            "//127.0.0.1:PORT\t@allowed.test/",
            "//[::1]@allowed.test:PORT@127.0.0.1:PORT/",
            "/127.0.0.1:PORT/",
            "///127.0.0.1:PORT/",
            "\\\\127.0.0.1:PORT/",
            "127.0.0.1:PORT",
        ],
    ),
    (
        "NET-14",
        &[
            "//allowed.test.evil.test:PORT/",
            "//notallowed.test:PORT/",
            "//evilallowed.test:PORT/",
            "//allowed.test.:PORT/",
            "//xn--allowed-.test:PORT/",
            "//аllowed.test:PORT/",
            "//allowed。test:PORT/",
            "//allowed.te%73t:PORT/",
            "//sub.allowed.test:PORT/",
            "//test:PORT/",
        ],
    ),
    (
        "NET-16",
        &[
            "//allowed.test:0/",
            "//allowed.test:22/",
            "//allowed.test:25/",
            "//allowed.test:65536/",
            "//allowed.test:+PORT/",
            "//allowed.test:0PORT/",
            "//allowed.test:/",
            "//allowed.test:PORT:80/",
            "//allowed.test: PORT/",
            "//allowed.test:-1/",
        ],
    ),
];

fn names() -> NameServer {
    // Whoever asks for one of these has walked round the check of names.
    NameServer::start([])
}

/// The rules of both capabilities for one host on one port.
fn rules(host: &str, port: u16, addresses: &str) -> String {
    format!(
        "[[tenant.t.allow.http]]\nhosts = [\"http://{host}:{port}\"]\n{addresses}\
         [[tenant.t.allow.net]]\nhosts = [\"tcp://{host}:{port}\", \"tls://{host}:{port}\", \"udp://{host}:{port}\"]\n{addresses}"
    )
}

/// Whether a rule can name the host: whether it is its one spelling.
fn can_be_named(host: &str) -> bool {
    let written = [
        "[64:ff9b::a00:1]",
        "[::ffff:7f00:1]",
        "[::1]",
        "[::]",
        "[fc00::1]",
        "[ff02::2]",
        "[fe80::1]",
        "[fd00:ec2::254]",
    ];
    let is_v4 = host.parse::<std::net::Ipv4Addr>().is_ok();
    is_v4 || written.contains(&host) || host == "localhost" || host == "foo.localhost"
}

fn upstream_rule(upstream: &Upstream) -> String {
    let address = upstream.address;
    format!("[[tenant.t.allow.http]]\nhosts = [\"http://{address}\"]\naddresses = [\"127.0.0.1/32\"]\n")
}

/// Tries the targets by every entry point, `as_target` made of a scheme and a text. None may get anywhere.
fn check_refused(lab: &Lab, upstream: &Upstream, targets: &[String]) {
    for entry in ENTRIES {
        let of_entry: Vec<String> = targets
            .iter()
            .map(|target| {
                let target = format!("{}:{target}", scheme(entry));
                if entry == "redirect" { redirect(upstream.address, &target) } else { target }
            })
            .collect();
        for (Outcome { kind, message, .. }, target) in lab.run(entry, &of_entry).iter().zip(targets) {
            let refused = kind == "denied" || kind == "invalid";
            assert!(refused, "{entry} {target}: {kind}: {message}");
            assert!(!message.contains("does not exist"), "{entry} {target}: its name was asked for");
        }
    }
}

#[test]
fn no_spelling_of_a_forbidden_address_is_reached() {
    let (tripwire, upstream, names) = (Tripwire::everywhere(), Upstream::start(), names());
    let port = tripwire.port;
    let hosts: Vec<&str> = HOSTS.iter().flat_map(|(_, hosts)| hosts.iter().copied()).collect();
    let named: String = hosts.iter().filter(|host| can_be_named(host)).map(|host| rules(host, port, "")).collect();
    let lab = Lab::new(&format!("{named}{}", upstream_rule(&upstream)), names.address);
    let targets: Vec<_> = hosts.iter().map(|host| format!("//{host}:{port}")).collect();
    check_refused(&lab, &upstream, &targets);
    assert_eq!(names.names(), Vec::<String>::new());
    tripwire.check();
}

#[test]
fn metadata_and_link_local_addresses_stay_forbidden_where_a_rule_names_all_there_are() {
    let (tripwire, upstream, names) = (Tripwire::everywhere(), Upstream::start(), names());
    let all = "addresses = [\"0.0.0.0/0\", \"::/0\"]\n";
    let named: String = NEVER.iter().map(|host| rules(host, tripwire.port, all)).collect();
    let lab = Lab::new(&format!("{named}{}", upstream_rule(&upstream)), names.address);
    let targets: Vec<_> = NEVER.iter().map(|host| format!("//{host}:{}", tripwire.port)).collect();
    check_refused(&lab, &upstream, &targets);
    tripwire.check();
}

#[test]
fn nothing_that_looks_like_an_allowed_host_or_port_is_taken_for_it() {
    let (tripwire, upstream, names) = (Tripwire::everywhere(), Upstream::start(), names());
    let allowed = rules("allowed.test", tripwire.port, "");
    let lab = Lab::new(&format!("{allowed}{}", upstream_rule(&upstream)), names.address);
    let port = tripwire.port.to_string();
    let targets: Vec<_> =
        DISGUISED.iter().flat_map(|(_, targets)| *targets).map(|target| target.replace("PORT", &port)).collect();
    check_refused(&lab, &upstream, &targets);
    assert_eq!(names.names(), Vec::<String>::new());
    tripwire.check();
}

#[test]
fn a_grant_of_http_gives_no_tcp_and_a_grant_of_one_scheme_no_other() {
    let (tripwire, upstream, names) = (Tripwire::everywhere(), Upstream::start(), names());
    let port = tripwire.port;
    let loopback = "addresses = [\"127.0.0.0/8\"]\n";
    let http = format!("[[tenant.t.allow.http]]\nhosts = [\"http://127.0.0.1:{port}\"]\n{loopback}");
    let tls = format!("[[tenant.t.allow.net]]\nhosts = [\"tls://127.0.0.1:{port}\"]\n{loopback}");
    let lab = Lab::new(&format!("{http}{tls}{}", upstream_rule(&upstream)), names.address);
    for entry in ["tcp", "udp"] {
        let outcome = &lab.run(entry, &[format!("{entry}://127.0.0.1:{port}")])[0];
        assert_eq!(outcome.kind, "denied", "{entry}: {}", outcome.message);
    }
    tripwire.check();
}
