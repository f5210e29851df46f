//! Private and metadata addresses that are really there: in a network namespace, where they are the machine's own.

use std::process::Command;

use super::{Lab, Outcome, redirect};
use crate::support::{
    dns::{Answer, NameServer},
    output,
    tripwire::Tripwire,
    upstream::Upstream,
};

/// Addresses that the namespace has, and names that resolve to them.
const ADDRESSES: [(&str, &str); 8] = [
    ("10.0.0.1", "ten.test"),
    ("172.16.0.1", "seventeen.test"),
    ("192.168.7.7", "home.test"),
    ("169.254.169.254", "metadata.test"),
    ("100.64.0.1", "carrier.test"),
    ("168.63.129.16", "azure.test"),
    ("fd00::1", "local6.test"),
    ("fd00:ec2::254", "metadata6.test"),
];

/// The test that runs within.
const WITHIN: &str = "egress::namespace::within_a_namespace";

#[test]
fn private_addresses_that_are_there_are_not_reached() {
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
}
