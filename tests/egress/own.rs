//! The host's own listener, which no rule opens, on every entry point: NET-08. The public addresses of the machine
//! are tried in [`super::namespace`], where there are some.

use std::{fs, net::IpAddr};

use rustix::process::Signal;
use serde_json::Value;

use super::{ENTRIES, Outcome, redirect, scheme};
use crate::support::{
    dns::{Answer, NameServer},
    echo::Echo,
    host::Host,
    upstream::Upstream,
    wait_until,
};

/// What loopback is called, and what Linux takes for it.
const LOOPBACK: [&str; 7] =
    ["127.0.0.1", "0.0.0.0", "[::ffff:7f00:1]", "localhost", "x.localhost", "own.test", "unspecified.test"];

/// A host at `listen` with two tenants: one that tries, and one that says in the log that it was called.
struct Setting {
    folder: tempfile::TempDir,
    names: NameServer,
    listen: &'static str,
    host: Host,
}

impl Setting {
    fn new(listen: &'static str) -> Self {
        let addresses = |address: &str| Answer::Addresses(vec![address.parse().unwrap()], 60);
        let names =
            NameServer::start([("own.test", addresses("127.0.0.1")), ("unspecified.test", addresses("0.0.0.0"))]);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("caller.luau"), include_str!("script.luau")).unwrap();
        let called = "return function() print('THE HOST WAS CALLED') return 'called' end";
        fs::write(folder.path().join("called.luau"), called).unwrap();
        fs::write(folder.path().join("policy.toml"), policy(listen, &names, "")).unwrap();
        let host = Host::start(folder.path());
        Self { folder, names, listen, host }
    }

    /// Only now that the port is known can rules name it: what is in force after a reload is tried.
    fn grant(&self, grants: &str) {
        fs::write(self.folder.path().join("policy.toml"), policy(self.listen, &self.names, grants)).unwrap();
        let before = self.host.count("the policy was loaded again");
        self.host.signal(Signal::HUP);
        wait_until("the reload", || self.host.count("the policy was loaded again") > before);
    }

    fn try_all(&self, entry: &str, targets: &[String]) -> Vec<Outcome> {
        let answer = self.host.post("/caller", &format!("{entry}\n{}", targets.join("\n")));
        assert_eq!(answer.status, 200, "{entry}: {answer:?}");
        Outcome::of_lines(&answer.body, targets)
    }

    fn port(&self) -> u16 {
        self.host.address.port()
    }
}

fn policy(listen: &str, names: &NameServer, grants: &str) -> String {
    format!(
        "[host]\nlisten = \"{listen}\"\ndata_dir = \"data\"\ninstances = 32\ndns = [\"{}\"]\naudit = \"audit.jsonl\"\n\
         [tenant.called]\nscript = \"called.luau\"\nroutes = [\"/*\"]\n\
         [tenant.t]\nscript = \"caller.luau\"\nroutes = [\"/caller\"]\n{grants}\
         [tenant.t.limits]\noperations = \"100000/s\"\ncpu = \"10 s\"\nwall = \"60 s\"\n",
        names.address
    )
}

/// Rules of both capabilities for these hosts, each on a port, which name every network there is.
fn rules<'a>(hosts: impl Iterator<Item = (&'a str, u16)> + Clone) -> String {
    let all = |scheme: &str| {
        hosts.clone().map(|(host, port)| format!("\"{scheme}://{host}:{port}\"")).collect::<Vec<_>>().join(", ")
    };
    // Without ::1, so that no other address of `localhost` is open than the one where the host may listen.
    let addresses = "addresses = [\"0.0.0.0/0\", \"::/128\"]\n";
    format!(
        "[[tenant.t.allow.http]]\nhosts = [{}]\n{addresses}[[tenant.t.allow.net]]\nhosts = [{}, {}, {}]\n{addresses}",
        all("http"),
        all("tcp"),
        all("tls"),
        all("udp")
    )
}

/// Tries these hosts on the port of the setting's host, by every entry point; none may be reached.
fn check_own(setting: &Setting, upstream: &Upstream, hosts: &[&str]) {
    for entry in ENTRIES {
        let target = |host: &&str| {
            let target = format!("{}://{host}:{}", scheme(entry), setting.port());
            if entry == "redirect" { redirect(upstream.address, &target) } else { target }
        };
        for outcome in setting.try_all(entry, &hosts.iter().map(target).collect::<Vec<_>>()) {
            let Outcome { target, kind, reason, .. } = &outcome;
            assert_eq!((kind.as_str(), reason.as_str()), ("denied", "own_listener"), "{entry} {target}: {outcome:?}");
        }
    }
}

/// The refusals of the audit file: none has a fix, and each names a rule.
fn check_records(setting: Setting, n_least: usize) {
    let folder = setting.folder;
    let log = setting.host.stop();
    assert!(!log.contains("THE HOST WAS CALLED"), "{log}");
    let text = fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let own: Vec<_> = records.filter(|record| record["reason"] == "own_listener").collect();
    assert!(own.len() >= n_least, "{}", own.len());
    for record in own {
        assert_eq!((record["outcome"].as_str(), record["fix"].as_str()), (Some("refuse"), None), "{record}");
        assert!(record["rule"].as_str().is_some_and(|rule| rule.contains("policy.toml:")), "{record}");
    }
}

#[test]
fn no_rule_lets_a_tenant_call_the_host_that_runs_it() {
    let (upstream, setting) = (Upstream::start(), Setting::new("127.0.0.1:0"));
    let own = LOOPBACK.map(|host| (host, setting.port()));
    setting.grant(&rules(own.into_iter().chain([("127.0.0.1", upstream.address.port())])));
    check_own(&setting, &upstream, &LOOPBACK);
    check_records(setting, ENTRIES.len() * LOOPBACK.len());
}

#[test]
fn who_listens_on_all_addresses_is_called_at_none_of_them() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        if listen.starts_with('[') && std::net::TcpListener::bind(listen).is_err() {
            eprintln!("SKIPPED: this machine has no IPv6");
            continue;
        }
        let (upstream, setting) = (Upstream::start(), Setting::new(listen));
        let interfaces = if_addrs::get_if_addrs().unwrap().into_iter().map(|interface| interface.ip());
        let more: Vec<String> = interfaces.filter(IpAddr::is_ipv4).map(|address| address.to_string()).collect();
        let hosts: Vec<&str> =
            LOOPBACK.into_iter().chain(["127.0.0.9", "127.255.0.1"]).chain(more.iter().map(String::as_str)).collect();
        let own = hosts.iter().map(|host| (*host, setting.port()));
        setting.grant(&rules(own.chain([("127.0.0.1", upstream.address.port())])));
        check_own(&setting, &upstream, &hosts);
        check_records(setting, ENTRIES.len() * hosts.len());
    }
}

#[test]
fn report_mode_does_not_let_a_tenant_call_its_host_either() {
    let (upstream, setting) = (Upstream::start(), Setting::new("127.0.0.1:0"));
    let own = LOOPBACK.map(|host| (host, setting.port()));
    for grants in ["", &rules(own.into_iter())] {
        setting.grant(&format!("mode = \"report\"\n{grants}"));
        for entry in ENTRIES {
            let target = |host: &str| {
                let target = format!("{}://{host}:{}", scheme(entry), setting.port());
                if entry == "redirect" { redirect(upstream.address, &target) } else { target }
            };
            for outcome in setting.try_all(entry, &LOOPBACK.map(target)) {
                // Without a rule, the first reason is that there is none, where the address is known.
                let known = ["own_listener", "not_granted"].contains(&outcome.reason.as_str());
                assert!(outcome.kind == "denied" && known, "{entry}: {outcome:?}");
            }
        }
    }
    assert!(upstream.requests() >= 2 * LOOPBACK.len(), "what leads elsewhere passes");
    let log = setting.host.stop();
    assert!(!log.contains("THE HOST WAS CALLED"), "{log}");
}

#[test]
fn another_port_of_loopback_is_as_open_as_its_rule_makes_it() {
    let (upstream, echo, setting) = (Upstream::start(), Echo::start(), Setting::new("127.0.0.1:0"));
    let ports = [upstream.address.port(), echo.address.port()];
    setting.grant(&rules(ports.iter().flat_map(|port| [("127.0.0.1", *port), ("own.test", *port)])));
    for (entry, port) in
        [("get", 0), ("post", 0), ("request", 0), ("get_all", 0), ("redirect", 0), ("tcp", 1), ("udp", 1)]
    {
        let target = |host: &str| {
            let target = format!("{}://{host}:{}", scheme(entry), ports[port]);
            if entry == "redirect" { redirect(upstream.address, &target) } else { target }
        };
        for outcome in setting.try_all(entry, &["127.0.0.1", "own.test"].map(target)) {
            assert_eq!(outcome.kind, "ok", "{entry}: {outcome:?}");
        }
    }
    // What the other tests do not find in the log is there when the host is called.
    assert_eq!(setting.host.get("/x").body, "called");
    assert!(setting.host.stop().contains("THE HOST WAS CALLED"));
}
