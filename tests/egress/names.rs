//! What a name server can answer: NET-09, NET-10, NET-18.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use hickory_resolver::proto::op::ResponseCode;

use super::{Lab, Outcome, redirect};
use crate::support::{
    dns::{Answer, NameServer},
    echo::Echo,
    tripwire::Tripwire,
    upstream::Upstream,
};

/// The one address that the rules name.
const VETTED: &str = "127.0.0.1";

/// Addresses that they do not. Tripwires listen there, on the port of the one that is vetted.
const FORBIDDEN: [&str; 4] = ["127.0.0.2", "127.0.0.3", "127.255.255.254", "::1"];

fn addresses(addresses: &[&str]) -> Answer {
    Answer::Addresses(addresses.iter().map(|address| address.parse().unwrap()).collect(), 60)
}

/// The same answer, of which nothing may be kept.
fn fleeting(address: &str) -> Box<Answer> {
    Box::new(Answer::Addresses(vec![address.parse().unwrap()], 0))
}

/// `n` forbidden addresses.
fn many(n: u16) -> Vec<IpAddr> {
    (0..n).map(|n| Ipv4Addr::from([127, 1, (n >> 8) as u8, n as u8]).into()).collect()
}

fn name_server() -> NameServer {
    let with_vetted = |mut list: Vec<IpAddr>| {
        list.insert(3, VETTED.parse().unwrap());
        Answer::Addresses(list, 60)
    };
    NameServer::start([
        ("good.test", addresses(&[VETTED])),
        ("loopback.test", addresses(&["127.0.0.2"])),
        ("v6.test", addresses(&["::1"])),
        ("private.test", addresses(&["10.0.0.1"])),
        ("metadata.test", addresses(&["169.254.169.254"])),
        ("mapped.test", addresses(&["::ffff:127.0.0.2"])),
        ("unspecified.test", addresses(&["0.0.0.0"])),
        ("broadcast.test", addresses(&["255.255.255.255"])),
        ("mixed.test", addresses(&["127.0.0.2", VETTED, "127.0.0.3", "::1"])),
        ("alias.test", Answer::Alias("loopback.test")),
        ("long-alias.test", Answer::Alias("alias.test")),
        ("good-alias.test", Answer::Alias("good.test")),
        ("loop.test", Answer::Alias("loop-back.test")),
        ("loop-back.test", Answer::Alias("loop.test")),
        ("none.test", addresses(&[])),
        ("many.test", Answer::Addresses(many(500), 60)),
        ("many-good.test", with_vetted(many(500))),
        ("failing.test", Answer::Failure(ResponseCode::ServFail)),
        ("refusing.test", Answer::Failure(ResponseCode::Refused)),
        ("silent.test", Answer::Silence),
        ("garbage.test", Answer::Garbage),
        ("rebinding.test", Answer::Then(fleeting(VETTED), fleeting("127.0.0.2"))),
        ("fleeting.test", *fleeting(VETTED)),
    ])
}

/// A name and how a call to it ends: `ok`, or the error's kind and what its message says.
const NAMES: &[(&str, &str, &str)] = &[
    ("good.test", "ok", ""),
    ("good-alias.test", "ok", ""),
    ("mixed.test", "ok", ""),
    ("many-good.test", "ok", ""),
    ("loopback.test", "denied", ""),
    ("v6.test", "denied", ""),
    ("private.test", "denied", ""),
    ("metadata.test", "denied", ""),
    ("mapped.test", "denied", ""),
    ("unspecified.test", "denied", ""),
    ("broadcast.test", "denied", ""),
    ("alias.test", "denied", ""),
    ("long-alias.test", "denied", ""),
    ("many.test", "denied", ""),
    ("loop.test", "io", ""),
    ("none.test", "io", "the name has no address"),
    ("absent.test", "io", "the name does not exist"),
    ("failing.test", "io", "the name server failed"),
    ("refusing.test", "io", "the name server failed"),
];

/// Names that tests of their own are about.
const OTHERS: [&str; 5] = ["silent.test", "garbage.test", "rebinding.test", "fleeting.test", "db"];

/// The entry points, each with a port of the server that answers it.
fn entries(upstream: &Upstream, echo: &Echo) -> [(&'static str, u16); 4] {
    let (http, raw) = (upstream.address.port(), echo.address.port());
    [("get", http), ("redirect", http), ("tcp", raw), ("udp", raw)]
}

struct Servers {
    upstream: Upstream,
    echo: Echo,
    names: NameServer,
    tripwires: [Tripwire; 2],
    lab: Lab,
}

impl Servers {
    fn start() -> Self {
        let (upstream, echo, names) = (Upstream::start(), Echo::start(), name_server());
        let tripwires = [upstream.address, echo.address].map(|address| Tripwire::on(&FORBIDDEN, address.port()));
        let (http, raw) = (upstream.address.port(), echo.address.port());
        let vetted = format!("addresses = [\"{VETTED}/32\"]\n");
        // A wildcard needs two labels behind it, so each name is written out.
        let hosts = |scheme: &str, port: u16| {
            let names = NAMES.iter().map(|(name, ..)| *name).chain(OTHERS);
            names.map(|name| format!("\"{scheme}://{name}:{port}\"")).collect::<Vec<_>>().join(", ")
        };
        let grants = format!(
            "[[tenant.t.allow.http]]\nhosts = [{}, \"http://127.0.0.1:{http}\"]\n{vetted}\
             [[tenant.t.allow.net]]\nhosts = [{}, {}]\n{vetted}",
            hosts("http", http),
            hosts("tcp", raw),
            hosts("udp", raw),
        );
        let lab = Lab::new(&grants, names.address);
        Self { upstream, echo, names, tripwires, lab }
    }

    /// Tries names by an entry point.
    fn run(&self, entry: &str, port: u16, names: &[&str]) -> Vec<Outcome> {
        let target = |name: &&str| match entry {
            "redirect" => redirect(self.upstream.address, &format!("http://{name}:{port}/")),
            "get" => format!("http://{name}:{port}/"),
            scheme => format!("{scheme}://{name}:{port}"),
        };
        self.lab.run(entry, &names.iter().map(target).collect::<Vec<_>>())
    }

    fn check_tripwires(&self) {
        self.tripwires.iter().for_each(Tripwire::check);
    }
}

#[test]
fn only_addresses_that_a_rule_names_are_dialled_whatever_a_name_resolves_to() {
    let servers = Servers::start();
    let names: Vec<_> = NAMES.iter().map(|(name, ..)| *name).collect();
    for (entry, port) in entries(&servers.upstream, &servers.echo) {
        for (outcome, (name, kind, message)) in servers.run(entry, port, &names).iter().zip(NAMES) {
            assert_eq!(outcome.kind, *kind, "{entry} {name}: {}", outcome.message);
            assert!(outcome.message.contains(message), "{entry} {name}: {}", outcome.message);
            // What a private name resolves to is none of a script's business.
            assert!(!outcome.message.contains("127.") && !outcome.message.contains("10.0"), "{}", outcome.message);
        }
    }
    servers.check_tripwires();
}

#[test]
fn an_answer_that_changes_after_the_check_leads_nowhere() {
    for entry in ["get", "redirect", "tcp", "udp"] {
        let servers = Servers::start();
        let port = entries(&servers.upstream, &servers.echo).iter().find(|(name, _)| *name == entry).unwrap().1;
        let kinds: Vec<_> =
            servers.run(entry, port, &["rebinding.test"; 3]).into_iter().map(|outcome| outcome.kind).collect();
        assert_eq!(kinds, ["ok", "denied", "denied"], "{entry}");
        servers.check_tripwires();
    }
}

#[test]
fn an_answer_is_kept_as_long_as_it_says_and_one_of_no_time_not_at_all() {
    let servers = Servers::start();
    let port = servers.echo.address.port();
    let outcomes = servers.run("tcp", port, &["good.test", "good.test", "good.test", "fleeting.test", "fleeting.test"]);
    assert!(outcomes.iter().all(|outcome| outcome.kind == "ok"), "{outcomes:?}");
    assert_eq!((servers.names.n_queries("good.test"), servers.names.n_queries("fleeting.test")), (1, 2));
}

#[test]
fn a_name_server_that_is_silent_or_dead_or_mad_costs_two_seconds_at_most() {
    let servers = Servers::start();
    let port = servers.echo.address.port();
    let begin = Instant::now();
    for outcome in servers.run("tcp", port, &["silent.test", "garbage.test"]) {
        assert!(["timeout", "io"].contains(&outcome.kind.as_str()), "{outcome:?}");
        assert!(outcome.message.contains("name"), "{outcome:?}");
    }
    // Far less than the three seconds each that the calls would wait for a connection.
    assert!(begin.elapsed().as_secs() < 20);
    let nobody = {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let lab = Lab::new("[[tenant.t.allow.net]]\nhosts = [\"tcp://good.test:80\"]\n", nobody);
    let outcome = &lab.run("tcp", &["tcp://good.test:80".to_owned()])[0];
    assert!(["timeout", "io"].contains(&outcome.kind.as_str()), "{outcome:?}");
}

#[test]
fn names_are_asked_for_as_they_are_written_and_no_file_is_looked_into() {
    let servers = Servers::start();
    let port = servers.echo.address.port();
    let outcomes = servers.run("tcp", port, &["db"]);
    assert!(outcomes[0].message.contains("the name does not exist"), "{outcomes:?}");
    // No search domain was tried: neither the environment's nor the system's.
    assert_eq!(servers.names.names(), ["db"]);
    // Names of the machine's hosts file are names like any other.
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let words = hosts.lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.split_whitespace().skip(1));
    let of_file: Vec<_> = words
        .filter(|word| !word.starts_with('#') && !word.contains("localhost"))
        .filter(|word| {
            word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte))
        })
        .collect();
    for name in of_file {
        let names = NameServer::start([]);
        let grants =
            format!("[[tenant.t.allow.net]]\nhosts = [\"tcp://{name}:80\"]\naddresses = [\"0.0.0.0/0\", \"::/0\"]\n");
        let outcome = &Lab::new(&grants, names.address).run("tcp", &[format!("tcp://{name}:80")])[0];
        assert!(outcome.message.contains("the name does not exist"), "{name}: {outcome:?}");
        assert_eq!(names.names(), [name]);
    }
}
