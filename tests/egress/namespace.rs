//! Addresses that are really there: in a network namespace, where they are the machine's own. Private ones and those
//! of metadata services; and public ones, which count like private ones on the machine that has them.

use std::process::Command;

use super::{Lab, Outcome, redirect};
use crate::support::{
    dns::{Answer, NameServer},
    echo::Echo,
    output,
    tripwire::Tripwire,
    upstream::Upstream,
};

/// One that belongs to somebody else, outside.
const PUBLIC: &str = "8.8.4.4";

/// Addresses that the namespace has, and names that resolve to them.
const ADDRESSES: [(&str, &str); 10] = [
    ("10.0.0.1", "ten.test"),
    ("172.16.0.1", "seventeen.test"),
    ("192.168.7.7", "home.test"),
    ("169.254.169.254", "metadata.test"),
    ("100.64.0.1", "carrier.test"),
    ("168.63.129.16", "azure.test"),
    ("fd00::1", "local6.test"),
    ("fd00:ec2::254", "metadata6.test"),
    (PUBLIC, "public.test"),
    ("2606:4700::9", "public6.test"),
];

/// The test that runs within.
const WITHIN: &str = "egress::namespace::within_a_namespace";

#[test]
fn addresses_that_are_there_are_not_reached_unless_named() {
    let addresses: String =
        ADDRESSES.iter().map(|(address, _)| format!("ip address add {address} dev lo &&")).collect();
    let script = format!("ip link set lo up && {addresses} exec \"$0\" --exact {WITHIN} --ignored --nocapture");
    let can = |script: &str| {
        let test = std::env::current_exe().unwrap();
        Command::new("unshare").args(["-U", "-r", "-n", "sh", "-c", script]).arg(test).output()
    };
    let allowed = can("ip link set lo up").is_ok_and(|output| output.status.success());
    if !allowed {
        eprintln!("SKIPPED: this machine allows no network namespaces to this user, or has no `ip`");
        return;
    }
    let mut command = Command::new("unshare");
    let got = output(command.args(["-U", "-r", "-n", "sh", "-c", &script]).arg(std::env::current_exe().unwrap()));
    assert_eq!(got.exit, 0, "{}\n{}", got.stdout, got.stderr);
    assert!(got.stdout.contains("1 passed"), "{}\n{}", got.stdout, got.stderr);
}

#[test]
#[ignore = "runs in a namespace of its own, started by the test above"]
fn within_a_namespace() {
    let (tripwire, upstream) = (Tripwire::everywhere(), Upstream::start());
    let answers = ADDRESSES.map(|(address, name)| (name, Answer::Addresses(vec![address.parse().unwrap()], 60)));
    let (names, port) = (NameServer::start(answers), tripwire.port);
    let hosts = |scheme: &str| {
        let of = |(address, name): &(&str, &str)| {
            let address = if address.contains(':') { format!("[{address}]") } else { (*address).to_owned() };
            format!("\"{scheme}://{address}:{port}\", \"{scheme}://{name}:{port}\"")
        };
        ADDRESSES.iter().map(of).collect::<Vec<_>>().join(", ")
    };
    let grants = format!(
        "[[tenant.t.allow.http]]\nhosts = [{}]\n\
         [[tenant.t.allow.http]]\nhosts = [\"http://{}\"]\naddresses = [\"127.0.0.1/32\"]\n\
         [[tenant.t.allow.net]]\nhosts = [{}, {}, {}]\n",
        hosts("http"),
        upstream.address,
        hosts("tcp"),
        hosts("tls"),
        hosts("udp"),
    );
    let lab = Lab::new(&grants, names.address);
    for entry in super::ENTRIES {
        let targets: Vec<_> = ADDRESSES
            .iter()
            .flat_map(|(address, name)| {
                [if address.contains(':') { format!("[{address}]") } else { (*address).to_owned() }, (*name).to_owned()]
            })
            .map(|host| format!("{}://{host}:{port}", super::scheme(entry)))
            .map(|target| if entry == "redirect" { redirect(upstream.address, &target) } else { target })
            .collect();
        for Outcome { target, kind, message, .. } in lab.run(entry, &targets) {
            assert_eq!(kind, "denied", "{entry} {target}: {message}");
        }
    }
    tripwire.check();
    check_named();
}

/// A rule that names a public address of this machine opens it.
fn check_named() {
    let echo = Echo::on(PUBLIC);
    let endpoint = |scheme: &str| format!("{scheme}://{}", echo.address);
    let hosts = format!("hosts = [\"{}\", \"{}\"]", endpoint("tcp"), endpoint("udp"));
    for (addresses, expected) in [("", "denied"), ("addresses = [\"8.8.4.4/32\"]\n", "ok")] {
        let lab = Lab::new(&format!("[[tenant.t.allow.net]]\n{hosts}\n{addresses}"), echo.address);
        for entry in ["tcp", "udp"] {
            let outcome = &lab.run(entry, &[endpoint(entry)])[0];
            assert_eq!(outcome.kind, expected, "{entry} {addresses}: {outcome:?}");
        }
    }
}
