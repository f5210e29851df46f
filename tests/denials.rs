//! A refusal teaches: its `fix`, pasted at the end of the policy, makes the very call work.

use std::{fs, path::Path};

use neoc::policy::{Machine, Policy, call::Call};
use serde_json::json;

use crate::support::{neighbours::Asked, neoc, output, pastes, refusals, upstream::Upstream};

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

#[test]
fn a_refusal_that_its_policy_does_not_give_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.toml");
    fs::write(&file, REFUSING).unwrap();
    pastes::note(&file);
    let version = Policy::parse(REFUSING, Path::new("policy.toml")).unwrap().version();
    let fix =
        "[[tenant.a.allow.http]]\nhosts = [\"https://api.example.com\"]\nmethods = [\"POST\"]\npaths = [\"/v1\"]\n";
    let whole = json!({
        "time": "", "policy": version, "tenant": "a", "request": "1", "site": "main.luau:3", "module": null,
        "capability": "http", "operation": "POST", "target": "https://api.example.com/v1", "address": null,
        "outcome": "refuse", "reason": "method_not_allowed", "rule": "policies/policy.toml:5", "fix": fix,
    });
    assert_eq!(refusals::problem(&whole, &Machine::default()), None);
    for (key, other, expected) in [
        ("policy", "0123456789ab", "is not known"),
        ("reason", "path_not_allowed", "asked again"),
        ("rule", "policies/policy.toml:6", "asked again"),
        ("fix", "[tenant.a.allow.kv]\n", "asked again"),
        ("operation", "GET", "the policy allows it"),
        ("capability", "nothing", "no policy decides on it"),
        ("target", "https://", "it makes no sense"),
        ("module", "vendor/absent", ""),
    ] {
        let mut record = whole.clone();
        record[key] = json!(other);
        let said = refusals::problem(&record, &Machine::default()).unwrap_or_default();
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{key}: {said}");
    }
}

/// A policy of two tenants, of which one has two modules.
const REFUSING: &str = "[tenant.a]\nscript = \"a.luau\"\n[tenant.b]\nscript = \"b.luau\"\n\
    [[tenant.a.allow.http]]\nhosts = [\"https://api.example.com\"]\nmethods = [\"GET\"]\n\
    [[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"a\"\naccess = \"read\"\n\
    [tenant.a.secret.key]\nfrom = \"env:KEY\"\norigins = [\"https://api.example.com\"]\n\
    [tenant.a.module.\"vendor/lib\"]\n[tenant.a.module.\"vendor/other\"]\n";

/// What is said of a fix for a call of tenant a.
fn said_of_fix(call: &str, module: Option<&str>, fix: &str) -> String {
    let (tenant, module) = ("a".to_owned(), module.map(str::to_owned));
    let asked = Asked { tenant, module, call: Call::parse(call).unwrap() };
    pastes::problem_of_fix(REFUSING, &asked, fix).unwrap_or_default()
}

/// What is pasted wherever something is refused in a test is looked at so.
#[test]
fn a_fix_that_allows_too_much_or_nothing_is_noticed() {
    let post =
        "[[tenant.a.allow.http]]\nhosts = [\"https://api.example.com\"]\nmethods = [\"POST\"]\npaths = [\"/v1\"]\n";
    let near = "[[tenant.a.allow.http]]\nhosts = [\"http://10.0.0.1\"]\naddresses = [\"10.0.0.1/32\"]\nmethods = [\"GET\"]\npaths = [\"/\"]\n";
    let net = "[[tenant.a.allow.net]]\nhosts = [\"tcp://db.example.com:5432\"]\n";
    let read = "[[tenant.a.allow.fs]]\npath = \"/other\"\ndir = \"o\"\naccess = \"read\"\n";
    let write = "[[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"a\"\naccess = \"read-write\"\n";
    let secret = "[[tenant.a.secret.key.also]]\norigins = [\"https://b.example\"]\n";
    let kv = "[tenant.a.allow.kv]\n";
    let changes = "changes another call";
    for (call, fix, replaced, by, expected) in [
        ("http POST https://api.example.com/v1", post, "", "", ""),
        ("http POST https://api.example.com/v1", post, "https://api.", "https://*.", changes),
        ("http POST https://api.example.com/v1", post, "com\"]", "com\", \"http://api.example.com:443\"]", changes),
        ("http POST https://api.example.com/v1", post, "com\"]", "com\", \"https://api.example.com:444\"]", changes),
        ("http POST https://api.example.com/v1", post, "com\"]", "com\"]\naddresses = [\"10.0.0.0/8\"]", changes),
        ("http POST https://api.example.com/v1", post, "methods = [\"POST\"]\n", "", changes),
        ("http POST https://api.example.com/v1", post, "[\"POST\"]", "[\"POST\", \"PUT\"]", changes),
        ("http POST https://api.example.com/v1", post, "paths = [\"/v1\"]\n", "", changes),
        ("http POST https://api.example.com/v1", post, "/v1\"", "/v1/*\"", changes),
        ("http POST https://api.example.com/v1", post, "/v1\"", "/v2\"", "does not allow it"),
        ("http POST https://api.example.com/v1", post, "api.", "other.", "does not allow it"),
        ("http POST https://api.example.com/v1", post, "]]", "]", "makes no policy"),
        ("http POST https://api.example.com/v1", post, "hosts", "host", "makes no policy"),
        ("http POST https://api.example.com/v1", post, "tenant.a", "tenant.c", "makes no policy"),
        ("http POST https://api.example.com/v1", post, "tenant.a", "tenant.b", "does not allow it"),
        ("http GET http://10.0.0.1/", near, "", "", ""),
        ("http GET http://10.0.0.1/", near, "0.1/32", "0.0/31", changes),
        ("http GET http://10.0.0.1/", near, "0.1/32", "0.0/24", changes),
        ("net tcp://db.example.com:5432", net, "", "", ""),
        ("net tcp://db.example.com:5432", net, "db.", "*.", changes),
        ("net tcp://db.example.com:5432", net, "2\"]", "2\", \"udp://db.example.com:5432\"]", changes),
        ("net tcp://db.example.com:5432", net, "2\"]", "2\"]\naddresses = [\"192.168.0.0/16\"]", changes),
        ("net tcp://db.example.com:5432", net, "5432", "5433", "does not allow it"),
        ("fs read /other/x", read, "", "", ""),
        ("fs read /other/x", read, "/other", "/", changes),
        ("fs read /other/x", read, "\"read\"", "\"read-write\"", changes),
        ("fs read /other/x", read, "/other", "/others", "does not allow it"),
        ("fs write /data/x", write, "", "", ""),
        ("fs write /data/x", write, "read-write", "read", "makes no policy"),
        ("fs write /data/x", write, "\"a\"", "\"b\"", "makes no policy"),
        ("fs remove /data", write, "", "", "cannot help"),
        ("secret key https://b.example", secret, "", "", ""),
        ("secret key https://b.example", secret, "e\"]", "e\", \"https://b.example:444\"]", changes),
        ("secret key https://b.example", secret, "b.", "c.", "does not allow it"),
        ("kv get k", kv, "", "", ""),
        ("kv get k", kv, "", "[tenant.a.allow.workers]\n", changes),
        ("kv get k", kv, "", "[tenant.b.allow.kv]\n", changes),
        ("kv get k", kv, "kv", "detach", "does not allow it"),
    ] {
        let fix = fix.replacen(replaced, by, 1);
        let said = said_of_fix(call, None, &fix);
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{call}: {said}\n{fix}");
    }
    let get = "[[tenant.a.module.\"vendor/lib\".allow.http]]\nhosts = [\"https://api.example.com\"]\n\
        methods = [\"GET\"]\npaths = [\"/v1\"]\n";
    let others = get.replace("lib", "other");
    for (fix, expected) in [
        (get.to_owned(), ""),
        (format!("{get}{others}"), changes),
        (others, "does not allow it"),
        (get.replace("paths = [\"/v1\"]\n", ""), changes),
    ] {
        let said = said_of_fix("http GET https://api.example.com/v1", Some("vendor/lib"), &fix);
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said}\n{fix}");
    }
}
