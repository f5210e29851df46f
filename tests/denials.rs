//! A refusal teaches: its `fix`, pasted at the end of the policy, makes the very call work.

use std::{fs, path::Path};

use neoc::policy::Machine;
use serde_json::json;

use crate::support::{neoc, output, refusals, upstream::Upstream};

const HEAD: &str = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\naudit = \"audit.jsonl\"\n\
    [tenant.a]\nscript = \"script.luau\"\nroutes = [\"/a\"]\n";

/// Prints capability, target and fix of a refused call, or `ok`.
fn script(call: &str) -> String {
    format!(
        "local ok, err = pcall(function() return {call} end)
        if ok then print('ok') return end
        assert(err.kind == 'denied', tostring(err))
        assert(err.site == 'script.luau:1', err.site)
        assert(err.rule == 'no rule' or string.match(err.rule, '^policy%.toml:%d+$'), err.rule)
        assert(string.match(err.reason, '^[a-z_]+$'), err.reason)
        assert(#err.message > 0 and not string.find(tostring(err), '\\n'))
        print(err.capability)
        print(err.target)
        print(err.fix)"
    )
}

fn run(folder: &Path, policy: &str) -> String {
    fs::write(folder.join("policy.toml"), policy).unwrap();
    let mut command = neoc();
    command.current_dir(folder).args(["run", "script.luau", "--policy", "policy.toml", "--tenant", "a"]);
    let got = output(&mut command);
    assert_eq!(got.exit, 0, "{policy}\n{}", got.stderr);
    let audit = folder.join("audit.jsonl");
    assert!(audit.exists());
    refusals::check_file(&audit, &Machine::default());
    got.stdout
}

#[test]
fn each_refusals_fix_pasted_makes_the_call_work() {
    let upstream = Upstream::start();
    let url = upstream.url("/x");
    let origin = upstream.url("");
    let with_host = format!("[[tenant.a.allow.http]]\nhosts = [\"{origin}\"]\n");
    let other_method = format!("{with_host}addresses = [\"127.0.0.0/8\"]\nmethods = [\"POST\"]\n");
    let other_path = format!("{with_host}addresses = [\"127.0.0.0/8\"]\npaths = [\"/y/*\"]\n");
    let endpoint = format!("tcp://{}", upstream.address);
    let connect = format!("require('std:net').connect('{endpoint}')");
    let with_endpoint = format!("[[tenant.a.allow.net]]\nhosts = [\"{endpoint}\"]\n");
    let read_only = "[[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"a\"\naccess = \"read\"\n";
    let cases = [
        (String::new(), "require('std:kv').set('k', 'v')".to_owned(), "kv"),
        (String::new(), "require('std:task').detach(print, 'task')".to_owned(), "detach"),
        (String::new(), "require('std:workers').run('./worker')".to_owned(), "workers"),
        (String::new(), "require('std:workers').map('./worker', { 1 })".to_owned(), "workers"),
        (String::new(), "require('std:fs').write('/data/x', 'y')".to_owned(), "fs"),
        (String::new(), "require('std:fs').list('/data')".to_owned(), "fs"),
        (read_only.to_owned(), "require('std:fs').write('/data/x', 'y')".to_owned(), "fs"),
        (String::new(), format!("require('vnd:hyper').get('{url}')"), "http"),
        (with_host, format!("require('vnd:hyper').get('{url}')"), "http"),
        (other_path, format!("require('vnd:hyper').get('{url}')"), "http"),
        (String::new(), connect.clone(), "net"),
        (with_endpoint, connect, "net"),
        (other_method, format!("require('vnd:hyper').get('{url}')"), "http"),
    ];
    for (grants, call, capability) in cases {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("script.luau"), script(&call)).unwrap();
        fs::write(folder.path().join("worker.luau"), "return function() end").unwrap();
        let mut policy = format!("{HEAD}{grants}");
        // One fix may uncover the next check: the host first, then its address.
        let mut fixes = 0;
        loop {
            let printed = run(folder.path(), &policy);
            if printed.starts_with("ok\n") {
                break;
            }
            let mut lines = printed.splitn(3, '\n');
            assert_eq!(lines.next(), Some(capability), "{call}: {printed}");
            let (target, fix) = (lines.next().unwrap(), lines.next().unwrap());
            assert!(call.contains(target.rsplit(' ').next().unwrap()), "{call}: target {target}");
            assert!(fix.contains("tenant.a.allow"), "{call}: fix {fix}");
            policy.push_str(fix);
            fixes += 1;
            assert!(fixes <= 2, "{call}: still refused after its fixes:\n{policy}\n{printed}");
        }
        assert!(fixes > 0, "{call} was never refused");
    }
}

#[test]
fn what_a_rule_denies_has_no_fix_and_names_the_rule() {
    let folder = tempfile::tempdir().unwrap();
    let grants = "[[tenant.a.allow.http]]\nhosts = [\"https://*.example.com\"]\n\
        [[tenant.a.deny.http]]\nhosts = [\"https://api.example.com\"]\n\
        [[tenant.a.allow.net]]\nhosts = [\"tcp://db.example.com:1\"]\n\
        [[tenant.a.deny.net]]\nhosts = [\"tcp://db.example.com:1\"]\n\
        [[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"a\"\naccess = \"read\"\n\
        [[tenant.a.deny.fs]]\npath = \"/data/private\"\n";
    for (call, rule) in [
        ("require('vnd:hyper').get('https://api.example.com/x')", "policy.toml:10"),
        ("require('std:net').connect('tcp://db.example.com:1')", "policy.toml:14"),
        ("require('std:fs').read('/data/private/x')", "policy.toml:20"),
    ] {
        let script = format!(
            "local _, err = pcall(function() return {call} end)\nprint(err.reason, err.rule, err.fix, err.site)"
        );
        fs::write(folder.path().join("script.luau"), script).unwrap();
        let printed = run(folder.path(), &format!("{HEAD}{grants}"));
        assert_eq!(printed, format!("denied_by_rule\t{rule}\tnil\tscript.luau:1\n"), "{call}");
    }
}

#[test]
fn a_metadata_address_has_no_fix() {
    let folder = tempfile::tempdir().unwrap();
    let call = "require('vnd:hyper').get('http://169.254.169.254/latest/')";
    fs::write(folder.path().join("script.luau"), script(call)).unwrap();
    let allowed = "[[tenant.a.allow.http]]\nhosts = [\"http://169.254.169.254\"]\naddresses = [\"0.0.0.0/0\"]\n";
    let printed = run(folder.path(), &format!("{HEAD}{allowed}"));
    assert!(printed.starts_with("http\n") && printed.ends_with("nil\n"), "{printed}");
}

/// Each test that runs a host or a lab looks at what was refused; this is what it looks for.
#[test]
fn a_refusal_that_does_not_say_all_is_noticed() {
    let whole = json!({
        "tenant": "a", "request": "1", "site": "main.luau:3", "capability": "http", "operation": "GET",
        "target": "https://a.example/", "outcome": "refuse", "reason": "method_not_allowed", "rule": "p.toml:4",
        "fix": "[[tenant.a.allow.http]]\nhosts = [\"https://a.example\"]\n",
    });
    assert_eq!(refusals::lacks(&whole, &Machine::default()), None);
    for key in ["tenant", "request", "site", "capability", "operation", "target", "reason", "rule", "fix"] {
        let mut record = whole.clone();
        record[key] = json!(null);
        assert_eq!(refusals::lacks(&record, &Machine::default()), Some(key));
    }
    for (key, wrong) in [
        ("site", "main.luau"),
        ("rule", "p.toml"),
        ("fix", "grant it"),
        ("fix", "[[tenant.b.allow.http]]\n"),
        ("reason", "denied_by_rule"),
    ] {
        let mut record = whole.clone();
        record[key] = json!(wrong);
        // What a rule denies, no other allows: there is nothing to paste.
        assert_eq!(
            refusals::lacks(&record, &Machine::default()),
            Some(if key == "reason" { "fix" } else { key }),
            "{wrong}"
        );
    }
    let mut allowed = whole;
    (allowed["outcome"], allowed["site"]) = (json!("allow"), json!(null));
    assert_eq!(refusals::lacks(&allowed, &Machine::default()), None);
}
