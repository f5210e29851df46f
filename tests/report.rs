//! Report mode, and what is made of its records: suggest, diff, explain.

use std::{fs, path::Path};

use serde_json::Value;

use crate::support::{Output, host::Host, neoc, output, upstream::Upstream};

const HOST: &str = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = 32\naudit = \"audit.jsonl\"\n";
const TENANT: &str = "[tenant.a]\nscript = \"main.luau\"\nroutes = [\"/a\", \"/a/*\"]\n";

/// Calls of every capability; says of each whether it was done.
const SCRIPT: &str = "local fs, hyper, kv, task, workers =
        require('std:fs'), require('vnd:hyper'), require('std:kv'), require('std:task'), require('std:workers')
    local function try(call, ...)
        local ok, err = pcall(call, ...)
        return if ok then 'ok' else err.kind
    end
    return function(request)
        if request.path == '/a/other' then return try(hyper.get, 'OTHER/x') end
        local done = {
            try(hyper.get, 'ORIGIN/x'),
            try(hyper.post, 'ORIGIN/y', 'body'),
            try(hyper.get, 'ORIGIN/redirect/302?NAMED/z'),
            try(kv.set, 'k', 'v'),
            try(kv.get, 'k'),
            try(fs.write, '/data/x', 'y'),
            try(fs.list, '/data'),
            try(workers.run, './worker'),
            try(task.detach, function() end),
        }
        return table.concat(done, ' ')
    end";

struct Setting {
    folder: tempfile::TempDir,
    _upstreams: [Upstream; 2],
}

impl Setting {
    fn new() -> Self {
        let upstreams = [Upstream::start(), Upstream::start()];
        let folder = tempfile::tempdir().unwrap();
        let port = upstreams[0].address.port();
        let script = SCRIPT
            .replace("ORIGIN", &upstreams[0].url(""))
            .replace("NAMED", &format!("http://localhost:{port}"))
            .replace("OTHER", &upstreams[1].url(""));
        fs::write(folder.path().join("main.luau"), script).unwrap();
        fs::write(folder.path().join("worker.luau"), "return function() return 1 end").unwrap();
        Self { folder, _upstreams: upstreams }
    }

    fn policy(&self, name: &str, grants: &str) {
        fs::write(self.folder.path().join(name), format!("{HOST}{TENANT}{grants}")).unwrap();
    }

    fn neoc(&self, arguments: &[&str]) -> Output {
        output(neoc().current_dir(self.folder.path()).args(arguments))
    }

    fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn remove_audit(&self) {
        fs::remove_file(self.folder.path().join("audit.jsonl")).unwrap();
    }
}

fn outcomes(records: &[Value], outcome: &str) -> Vec<String> {
    let matching = records.iter().filter(|record| record["outcome"] == outcome);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    matching.map(|record| ["capability", "operation", "reason"].map(|key| text(&record[key])).join(" ")).collect()
}

const REPORT: &str = "mode = \"report\"\n";
/// Report mode lets no file pass: what is not granted has no directory to go to.
const DIRECTORY: &str = "[[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"a\"\naccess = \"read\"\n";
const ALL_DONE: &str = "ok ok ok ok ok ok ok ok ok";

#[test]
fn what_is_suggested_from_a_recorded_run_lets_it_pass_and_one_more_host_is_refused() {
    let setting = Setting::new();
    setting.policy("policy.toml", &format!("{REPORT}{DIRECTORY}"));
    let host = Host::start(setting.folder.path());
    assert_eq!(host.get("/a").body, "ok ok ok ok ok denied ok ok ok");
    let log = host.stop();
    assert!(log.contains("REPORT MODE") && log.contains("\"tenants\":\"a\""), "{log}");
    let records = setting.records();
    assert_eq!(outcomes(&records, "refuse"), ["fs write path_not_writable"]);
    assert!(outcomes(&records, "report").len() >= 8, "{records:?}");
    for record in &records {
        assert_eq!(record["fix"].is_string(), record["outcome"] != "allow", "{record}");
    }
    for arguments in [
        vec!["policy", "suggest", "--audit", "audit.jsonl"],
        vec!["policy", "suggest", "--audit", "audit.jsonl", "--policy", "policy.toml"],
    ] {
        let suggested = setting.neoc(&arguments);
        assert_eq!((suggested.exit, suggested.stderr.as_str()), (0, ""));
        // Without a policy the directory is a new one.
        let grants = if arguments.len() == 4 { suggested.stdout } else { format!("{DIRECTORY}{}", suggested.stdout) };
        setting.policy("policy.toml", &grants);
        setting.remove_audit();
        let host = Host::start(setting.folder.path());
        assert_eq!(host.get("/a").body, ALL_DONE, "{grants}");
        assert_eq!(host.get("/a/other").body, "denied", "{grants}");
        host.stop();
        let again = setting.records();
        assert_eq!(outcomes(&again, "refuse"), ["http GET host_not_allowed"], "{grants}");
        assert_eq!(outcomes(&again, "report"), Vec::<String>::new());
        // The recorded run once more, for the second way.
        let text: String = records.iter().map(|record| format!("{record}\n")).collect();
        fs::write(setting.folder.path().join("audit.jsonl"), text).unwrap();
        setting.policy("policy.toml", &format!("{REPORT}{DIRECTORY}"));
    }
}

#[test]
fn report_mode_lets_nothing_pass_that_no_rule_can_allow() {
    let script = "local fs, hyper, kv = require('std:fs'), require('vnd:hyper'), require('std:kv')
        return function()
            local done = {}
            for _, url in { 'http://169.254.169.254/', 'http://[fe80::1]/', 'http://127.1/', 'http://u:p@127.0.0.1/' } do
                local ok, err = pcall(hyper.get, url)
                table.insert(done, tostring(ok) .. ' ' .. err.kind)
            end
            for _, path in { '/data/../x', '/other/x', 'x' } do
                local ok, err = pcall(fs.read, path)
                table.insert(done, tostring(ok) .. ' ' .. err.kind)
            end
            local ok, err = pcall(fs.remove, '/data/x')
            table.insert(done, tostring(ok) .. ' ' .. err.kind)
            for i = 1, 20 do
                local ok, err = pcall(kv.get, 'k')
                if not ok then table.insert(done, err.kind .. ' ' .. err.limit) break end
            end
            return table.concat(done, ', ')
        end";
    let setting = Setting::new();
    fs::write(setting.folder.path().join("main.luau"), script).unwrap();
    let limits = "[tenant.a.limits]\noperations = \"12/h\"\n";
    setting.policy("policy.toml", &format!("{REPORT}{limits}{DIRECTORY}"));
    let host = Host::start(setting.folder.path());
    assert_eq!(host.get("/a").body, format!("{}limit operations", "false denied, ".repeat(8)));
    host.stop();
    let refused = outcomes(&setting.records(), "refuse");
    let expected = [
        "http GET not_granted",
        "http GET not_granted",
        "http GET bad_target",
        "http GET bad_target",
        "fs read bad_target",
        "fs read path_not_granted",
        "fs read bad_target",
        "fs remove path_not_writable",
        "kv get operations",
    ];
    assert_eq!(refused, expected);
    let suggested = setting.neoc(&["policy", "suggest", "--audit", "audit.jsonl"]).stdout;
    assert!(suggested.contains("# a: 1 x http GET http://169.254.169.254/: address_never_allowed"), "{suggested}");
    assert!(suggested.contains("# a: the limit operations was hit 1 times"), "{suggested}");
}

#[test]
fn report_mode_lets_nothing_pass_that_a_rule_denies() {
    let script = "local fs, hyper, net = require('std:fs'), require('vnd:hyper'), require('std:net')
        local function try(call, ...)
            local ok, err = pcall(call, ...)
            return if ok then 'ok' else `{err.reason} {err.rule} {err.fix}`
        end
        return function()
            return table.concat({
                try(hyper.get, 'ORIGIN/open'),
                try(hyper.get, 'ORIGIN/private/x'),
                try(hyper.post, 'ORIGIN/open', 'body'),
                try(hyper.get_all, { 'ORIGIN/open' }),
                try(hyper.get, 'ORIGIN/redirect/302?ORIGIN/private/x'),
                try(net.connect, 'tcp://ADDRESS'),
                try(fs.write, '/data/x', 'y'),
                try(fs.read, '/data/private/x'),
            }, '\\n')
        end";
    let setting = Setting::new();
    let upstream = Upstream::start();
    let (origin, address) = (upstream.url(""), upstream.address.to_string());
    let script = script.replace("ORIGIN", &origin).replace("ADDRESS", &address);
    write(setting.folder.path(), "main.luau", &script);
    // Once with nothing that allows it, and once where all of it is allowed too.
    let denied = format!(
        "[[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"a\"\naccess = \"read-write\"\n\
         [[tenant.a.deny.fs]]\npath = \"/data/private\"\n\
         [[tenant.a.deny.http]]\nhosts = [\"{origin}\"]\npaths = [\"/private/*\"]\n\
         [[tenant.a.deny.http]]\nhosts = [\"{origin}\"]\nmethods = [\"POST\"]\n\
         [[tenant.a.deny.net]]\nhosts = [\"tcp://{address}\"]\n"
    );
    let allowed = format!(
        "[[tenant.a.allow.http]]\nhosts = [\"{origin}\"]\nmethods = [\"GET\", \"POST\"]\naddresses = [\"127.0.0.0/8\"]\n\
         [[tenant.a.allow.net]]\nhosts = [\"tcp://{address}\"]\naddresses = [\"127.0.0.0/8\"]\n"
    );
    for (mode, allowed) in [(REPORT, ""), (REPORT, allowed.as_str()), ("", allowed.as_str())] {
        let policy = format!("{mode}{denied}{allowed}");
        setting.policy("policy.toml", &policy);
        let text = fs::read_to_string(setting.folder.path().join("policy.toml")).unwrap();
        let by = |table: &str, nth: usize| {
            let lines = text.lines().enumerate().filter(|(_, line)| line.contains(&format!("deny.{table}]]")));
            format!("denied_by_rule policy.toml:{} nil", lines.map(|(index, _)| index + 1).nth(nth).unwrap())
        };
        let before = upstream.requests();
        let host = Host::start(setting.folder.path());
        let expected = [
            "ok".to_owned(),
            by("http", 0),
            by("http", 1),
            "ok".to_owned(),
            by("http", 0),
            by("net", 0),
            "ok".to_owned(),
            by("fs", 0),
        ];
        assert_eq!(host.get("/a").body.lines().collect::<Vec<_>>(), expected, "{policy}");
        host.stop();
        // Two requests, and the one that was to be redirected.
        assert_eq!(upstream.requests() - before, 3, "{policy}");
        let refused = ["http GET", "http POST", "http GET", "net open", "fs read"];
        let records = setting.records();
        assert_eq!(outcomes(&records, "refuse"), refused.map(|call| format!("{call} denied_by_rule")), "{policy}");
        assert_eq!(outcomes(&records, "report").is_empty(), !allowed.is_empty(), "{records:?}");
        setting.remove_audit();
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}

#[test]
fn explain_says_yes_or_no_by_which_line_and_what_would_help() {
    let folder = tempfile::tempdir().unwrap();
    let policy = "[tenant.a]\nscript = \"main.luau\"\n[[tenant.a.allow.http]]\nhosts = [\"https://api.example.com\"]\n";
    write(folder.path(), "p.toml", policy);
    let explain = |arguments: &[&str]| {
        let all = [&["policy", "explain", "--policy", "p.toml"], arguments].concat();
        output(neoc().current_dir(folder.path()).args(all))
    };
    let yes = explain(&["--tenant", "a", "http GET https://api.example.com/x"]);
    assert_eq!(yes.exit, 0);
    assert!(yes.stdout.contains("allowed: ") && yes.stdout.contains("by p.toml:3"), "{}", yes.stdout);
    assert!(yes.stdout.contains("judged when it is dialled"), "{}", yes.stdout);
    let public = explain(&["--tenant", "a", "http GET https://api.example.com/x", "--address", "93.184.216.34"]);
    assert!(public.exit == 0 && !public.stdout.contains("dialled"), "{}", public.stdout);
    let no = explain(&["--tenant", "a", "http GET https://api.example.com/x", "--address", "10.0.0.1"]);
    assert_eq!(no.exit, 1);
    assert!(no.stdout.contains("address_not_allowed") && no.stdout.contains("p.toml:3"), "{}", no.stdout);
    // What is printed, pasted, helps.
    let fix = no.stdout.split_once("\n\n").unwrap().1;
    write(folder.path(), "p.toml", &format!("{policy}{fix}"));
    assert_eq!(explain(&["--tenant", "a", "http GET https://api.example.com/x", "--address", "10.0.0.1"]).exit, 0);
    let never = explain(&["--tenant", "a", "http GET http://169.254.169.254/"]);
    assert_eq!(never.exit, 1);
    for arguments in [["--tenant", "b", "kv get k"], ["--tenant", "a", "kv k"], ["--tenant", "a", "http GET https://"]]
    {
        assert_eq!(explain(&arguments).exit, 2, "{arguments:?}");
    }
}

#[test]
fn diff_lists_the_recorded_calls_that_flip_with_both_lines() {
    let folder = tempfile::tempdir().unwrap();
    let record = |tenant: &str, capability: &str, operation: &str, target: &str| {
        format!(
            "{{\"time\":\"t\",\"policy\":\"p\",\"tenant\":\"{tenant}\",\"request\":\"1\",\"site\":null,\"capability\":\"{capability}\",\
             \"operation\":\"{operation}\",\"target\":\"{target}\",\"address\":null,\"outcome\":\"allow\",\"reason\":null,\"rule\":null,\"fix\":null}}\n"
        )
    };
    let audit = [
        record("a", "kv", "get", "k"),
        record("a", "kv", "get", "k"),
        record("a", "http", "GET", "https://a.example/x"),
        record("a", "detach", "begin", ""),
        record("gone", "kv", "get", "k"),
        "{\"time\":\"t\",\"lost\":3}\n".to_owned(),
    ];
    write(folder.path(), "audit.jsonl", &audit.concat());
    let tenant = "[tenant.a]\nscript = \"main.luau\"\n";
    write(
        folder.path(),
        "old.toml",
        &format!(
            "{tenant}[tenant.a.allow.kv]\n[tenant.a.allow.detach]\n[tenant.gone]\nscript = \"g.luau\"\n[tenant.gone.allow.kv]\n"
        ),
    );
    write(
        folder.path(),
        "new.toml",
        &format!(
            "{tenant}[tenant.a.allow.detach]\n[[tenant.a.allow.http]]\nhosts = [\"https://a.example\"]\n[tenant.new]\nscript = \"n.luau\"\n"
        ),
    );
    let diff = |old: &str, new: &str| {
        output(neoc().current_dir(folder.path()).args(["policy", "diff", old, new, "--audit", "audit.jsonl"]))
    };
    let got = diff("old.toml", "new.toml");
    let expected = "tenant new: added\ntenant gone: removed\n\
        a: 1 x http GET https://a.example/x: refused: not_granted, no rule -> allowed by new.toml:4\n\
        a: 2 x kv get k: allowed by old.toml:3 -> refused: not_granted, no rule\n\
        gone: 1 x kv get k: allowed by old.toml:7 -> refused: no such tenant\n\
        5 calls: 3 would be refused that were allowed, 1 allowed that were refused\n";
    assert_eq!((got.stdout.as_str(), got.exit), (expected, 1));
    assert!(got.stderr.contains("3 decisions are missing"), "{}", got.stderr);
    assert_eq!(diff("old.toml", "old.toml").exit, 0);
}
