//! A refusal teaches: its `fix`, pasted at the end of the policy, makes the very call work.

use std::{fs, path::Path};

use crate::support::{neoc, output, upstream::Upstream};

const HEAD: &str = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\n\
    [tenant.a]\nscript = \"script.luau\"\nroutes = [\"/a\"]\n";

/// Prints capability, target and fix of a refused call, or `ok`.
fn script(call: &str) -> String {
    format!(
        "local ok, err = pcall(function() return {call} end)
        if ok then print('ok') return end
        assert(err.kind == 'denied', tostring(err))
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
fn a_metadata_address_has_no_fix() {
    let folder = tempfile::tempdir().unwrap();
    let call = "require('vnd:hyper').get('http://169.254.169.254/latest/')";
    fs::write(folder.path().join("script.luau"), script(call)).unwrap();
    let allowed = "[[tenant.a.allow.http]]\nhosts = [\"http://169.254.169.254\"]\naddresses = [\"0.0.0.0/0\"]\n";
    let printed = run(folder.path(), &format!("{HEAD}{allowed}"));
    assert!(printed.starts_with("http\n") && printed.ends_with("nil\n"), "{printed}");
}
