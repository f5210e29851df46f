//! The file that has a line for every decision, and the log without it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use neoc::policy::{
    Policy, Reason,
    keys::{Form, Key},
};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    dns::{Answer, NameServer},
    host::Host,
    neoc, output, repository, runs,
    upstream::Upstream,
    wait_until,
};

const HOST: &str = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = 32\naudit = \"audit.jsonl\"\n";
const TENANT: &str = "[tenant.a]\nscript = \"main.luau\"\nroutes = [\"/a\"]\n";

fn start(script: &str, policy: &str) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("main.luau"), script).unwrap();
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let host = Host::start(folder.path());
    (folder, host)
}

fn records(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// Capability, operation, target, address, outcome and reason.
fn summary(record: &Value) -> String {
    let text = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
    ["capability", "operation", "target", "address", "outcome", "reason"].map(text).join(" ")
}

#[test]
fn every_decision_is_a_record_and_a_redirect_is_one_of_its_own() {
    let upstream = Upstream::start();
    let (there, origin) = (upstream.url("/there"), upstream.url(""));
    let script = format!(
        "local fs, hyper, kv = require('std:fs'), require('vnd:hyper'), require('std:kv')
        return function()
            pcall(hyper.get, '{origin}/redirect/302?{there}?secret=1')
            pcall(hyper.get, '{origin}/redirect/302?http://user:secret@127.0.0.1/x')
            pcall(hyper.get, 'http://localhost:1/x?secret=1')
            pcall(kv.get, 'k')
            pcall(fs.read, '/data/x')
            return 'ok'
        end"
    );
    let grants = format!(
        "{TENANT}[[tenant.a.allow.http]]\nhosts = [\"{origin}\"]\naddresses = [\"127.0.0.0/8\"]\n[tenant.a.allow.kv]\n"
    );
    let (folder, host) = start(&script, &format!("{HOST}{grants}"));
    let answer = host.get("/a");
    assert_eq!(answer.body, "ok");
    let log = host.stop();
    let records = records(&folder.path().join("audit.jsonl"));
    let expected = [
        format!("http GET {origin}/redirect/302 - allow -"),
        format!("http GET {origin}/redirect/302 127.0.0.1 allow -"),
        format!("http GET {there} - allow -"),
        format!("http GET {there} 127.0.0.1 allow -"),
        format!("http GET {origin}/redirect/302 - allow -"),
        format!("http GET {origin}/redirect/302 127.0.0.1 allow -"),
        "http GET …@127.0.0.1/x - refuse bad_target".to_owned(),
        "http GET http://localhost:1/x - refuse host_not_allowed".to_owned(),
        "kv get k - allow -".to_owned(),
        "fs read /data/x - refuse not_granted".to_owned(),
    ];
    assert_eq!(records.iter().map(summary).collect::<Vec<_>>(), expected);
    for record in &records {
        let keys: Vec<_> = record.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 14, "every record has every key: {keys:?}");
        assert_eq!(record["tenant"], "a");
        assert_eq!(record["request"], answer.headers["x-request-id"].as_str());
        assert_eq!(record["policy"].as_str().unwrap().len(), 12);
        let site = record["site"].as_str().unwrap();
        assert!(site.starts_with("main.luau:"), "{site}");
        // Whatever is allowed is by a line of the policy.
        let rule = record["rule"].as_str().unwrap_or("-");
        assert_eq!(rule.contains("policy.toml:"), record["outcome"] == "allow", "{record}");
        assert!(record["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(record["outcome"] == "refuse" && record["reason"] != "bad_target", record["fix"].is_string());
    }
    assert!(!log.contains("secret"), "{log}");
    assert!(!log.contains("\"outcome\":\"refuse\",\"reason\":\"not_granted\",\"rule\""), "the file has it: {log}");
}

#[test]
fn a_rotated_file_loses_no_record() {
    let script = "local kv = require('std:kv') return function() return tostring(kv.get('k')) end";
    let (folder, host) = start(script, &format!("{HOST}{TENANT}[tenant.a.allow.kv]\n"));
    let file = |name: &str| folder.path().join(name);
    let n_records = |name: &str| records(&file(name)).len();
    for _ in 0..5 {
        host.get("/a");
    }
    wait_until("five records", || n_records("audit.jsonl") == 5);
    fs::rename(file("audit.jsonl"), file("audit.jsonl.1")).unwrap();
    host.signal(Signal::HUP);
    wait_until("a new file", || file("audit.jsonl").exists());
    host.get("/a");
    // Moved without a word.
    wait_until("one record", || n_records("audit.jsonl") == 1);
    fs::rename(file("audit.jsonl"), file("audit.jsonl.2")).unwrap();
    host.get("/a");
    host.stop();
    assert_eq!(["audit.jsonl.1", "audit.jsonl.2", "audit.jsonl"].map(n_records), [5, 1, 1]);
}

#[test]
fn a_file_that_is_no_file_stops_the_start_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("main.luau"), "return function() end").unwrap();
    fs::create_dir(folder.path().join("audit.jsonl")).unwrap();
    fs::write(folder.path().join("policy.toml"), format!("{HOST}{TENANT}")).unwrap();
    let mut command = neoc();
    let output = output(command.current_dir(folder.path()).args(["host", "--policy", "policy.toml"]));
    assert_eq!(output.exit, 1);
    assert!(output.stderr.contains("host.audit"), "{}", output.stderr);
}

#[test]
fn without_a_file_a_flood_of_refusals_is_cut_in_the_log_and_counted() {
    let script = "local kv = require('std:kv')
        return function() for _ = 1, 3000 do pcall(kv.get, 'k') end return 'ok' end";
    let policy = format!("{HOST}{TENANT}[tenant.a.limits]\ncpu = \"5 s\"\noperations = \"100000/s\"\n");
    let (_folder, host) = start(script, &policy.replace("audit = \"audit.jsonl\"\n", ""));
    assert_eq!(host.get("/a").body, "ok");
    let log = host.stop();
    let n_lines = log.lines().filter(|line| line.contains("\"operation_target\":\"k\"")).count();
    assert!((20..1500).contains(&n_lines), "{n_lines} lines");
    let counted = "\"capability\":\"kv\",\"outcome\":\"refuse\",\"reason\":\"not_granted\",\"count\":3000";
    assert!(log.contains(counted), "{log}");
    let left_out = format!("left out of the log, over their tenants' parts of it\",\"count\":{}", 3000 - n_lines);
    assert!(log.contains(&left_out), "{log}");
}

#[test]
fn without_a_file_the_log_says_of_a_refusal_what_the_file_says() {
    let upstream = Upstream::start();
    let names = NameServer::start([("ten.test", Answer::Addresses(vec!["10.0.0.1".parse().unwrap()], 60))]);
    let folder = tempfile::tempdir().unwrap();
    let call = "local fs, hyper = require('std:fs'), require('vnd:hyper')";
    let lib = format!("{call} pcall(hyper.get, '{}')\nreturn true", upstream.url("/x"));
    let script = format!(
        "{call} pcall(hyper.get, 'http://ten.test/')\npcall(fs.write, '/a \"b\"\\27[2J', '')\n\
         pcall(fs.write, '/data/é \"x\"', '')\nrequire('./lib')"
    );
    fs::write(folder.path().join("main.luau"), script).unwrap();
    fs::write(folder.path().join("lib.luau"), lib).unwrap();
    let policy = format!(
        "{HOST}dns = [\"{}\"]\n{TENANT}[tenant.a.module.lib]\n[[tenant.a.allow.http]]\n\
         hosts = [\"http://ten.test\", \"{}\"]\naddresses = [\"127.0.0.0/8\"]\n",
        names.address,
        upstream.url("")
    );
    let run = |policy: &str| {
        fs::write(folder.path().join("policy.toml"), policy).unwrap();
        let mut command = neoc();
        command.current_dir(folder.path()).env("NEOC_LOG", runs::WITH_REFUSALS);
        let got = command.args(["run", "main.luau", "--policy", "policy.toml", "--tenant", "a"]).output().unwrap();
        let stderr = String::from_utf8(got.stderr).unwrap();
        assert!(got.status.success(), "{stderr}");
        stderr
    };
    // What differs between two runs, and between two files of which one has a line less.
    let alike = |mut record: Value| {
        for key in ["time", "policy", "request", "rule"] {
            assert!(record[key].is_string() || key == "rule", "{key}: {record}");
            record[key].take();
        }
        record.as_object_mut().unwrap().retain(|key, value| !value.is_null() && key != "detail");
        record
    };
    assert_eq!(run(&policy), "");
    let of_file: Vec<_> = records(&folder.path().join("audit.jsonl"))
        .into_iter()
        .filter(|record| record["outcome"] == "refuse")
        .map(alike)
        .collect();
    let (of_log, others) = runs::split(&run(&policy.replace("audit = \"audit.jsonl\"\n", "")));
    assert_eq!((of_file.len(), others.as_str()), (4, ""));
    let has = |key: &str| of_file.iter().any(|record| record[key].is_string());
    assert!(["module", "address", "fix", "site"].into_iter().all(has), "{of_file:?}");
    assert_eq!(of_log.into_iter().map(alike).collect::<Vec<_>>(), of_file);
}

/// The keys of `[tenant.NAME.limits]`.
fn limits(keys: &[Key], inside: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    for key in keys {
        if inside == "limits" {
            found.push(key.name);
        } else if let Form::Table(keys) | Form::Tables(keys) | Form::Named(keys, _) = key.form {
            found.extend(limits(keys, key.name));
        }
    }
    found
}

#[test]
fn the_label_of_a_limit_is_its_key_and_no_reasons() {
    let keys = limits(Policy::keys(), "");
    let reasons = Reason::ALL.map(Reason::as_str);
    assert!(keys.len() > 10 && keys.iter().all(|key| !reasons.contains(key)), "{keys:?}");
    // Bounds that are not a key of the table: of the grant of detached tasks, of the host, and of the guest's wire.
    let others = ["detached_tasks", "instances", "value_bytes"];
    let mut n_labels = 0;
    for file in rust_files(&repository().join("host/src")) {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for call in code.split("Exceeded::new(").skip(1) {
            // Where the key is handed through, the place that names it is another.
            let arguments: String = call.chars().take_while(|c| *c != ')').collect();
            let Some(label) = arguments.split('"').nth(1) else { continue };
            assert!(keys.contains(&label) || others.contains(&label), "{}: {label}", file.display());
            n_labels += 1;
        }
    }
    assert!(n_labels > 8, "only {n_labels} labels found");
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}
