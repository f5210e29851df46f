//! Each folder below `tests/cases` is a test: a script, its policy, what must come of it.
//!
//! | file | holds |
//! |---|---|
//! | `main.luau` | the script |
//! | `expected.toml` | how it is run and what must come of it, see [`Expected`] |
//! | `policy.toml` | tables of tenant `case`, optional; `UPSTREAM` stands for a test server's address |
//! | any other | lies beside the script, in folders as here: its modules |

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::support::{client::Answer, host::Host, neoc, output, repository, upstream::Upstream};

/// What must come of a case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    /// What the case shows, as a claim.
    claim: String,
    /// Under `neoc run`.
    run: Option<ExpectedRun>,
    /// As a tenant of a running host.
    host: Option<ExpectedHost>,
    /// As a tenant of a running host, with several requests, one after the other.
    #[serde(default)]
    calls: Vec<Call>,
    /// What the log of that host holds.
    #[serde(default)]
    log: ExpectedLog,
    /// What lies in the data folder beforehand, or beside the script.
    #[serde(default)]
    setup: Vec<Setup>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedRun {
    #[serde(default)]
    arguments: Vec<String>,
    exit: i32,
    /// The whole of standard output.
    #[serde(default)]
    stdout: String,
    /// Standard error holds each of these.
    #[serde(default)]
    stderr_contains: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedHost {
    status: u16,
    /// The whole body. Absent: any.
    body: Option<String>,
    /// The log holds each of these.
    #[serde(default)]
    log_contains: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    #[serde(default = "default_path")]
    path: String,
    /// A POST with a body of so many bytes.
    post_bytes: Option<usize>,
    /// So often.
    #[serde(default = "once")]
    times: u32,
    status: u16,
    /// The whole body. Absent: any.
    body: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ExpectedLog {
    /// Each of these.
    contains: Vec<String>,
    /// None of these.
    lacks: Vec<String>,
}

fn default_path() -> String {
    "/case/x".into()
}

fn once() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Setup {
    /// Below the data folder.
    path: String,
    /// The path is below the script's folder instead.
    #[serde(default)]
    beside_script: bool,
    /// A file with this content.
    file: Option<String>,
    /// A symbolic link to this.
    symlink: Option<String>,
    /// A FIFO.
    #[serde(default)]
    fifo: bool,
}

const CANARY: &str = r#"return function() return "alive" end"#;

#[test]
fn every_case_ends_as_expected() {
    let mut folders = Vec::new();
    find_cases(&repository().join("tests/cases"), &mut folders);
    assert!(folders.len() > 15, "only {} cases found", folders.len());
    let only = std::env::var("CASE").unwrap_or_default();
    let failures: Vec<String> = folders
        .iter()
        .filter(|folder| folder.to_string_lossy().contains(&only))
        .flat_map(|folder| check(folder).into_iter().map(move |problem| format!("{}: {problem}", folder.display())))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Limits that bound nothing, with what shows them instead: a share of time is the scheduler's own test.
const NO_BOUNDS: [&str; 1] = ["weight"];

#[test]
fn every_limit_of_a_policy_has_a_case_that_goes_over_it() {
    let commented = fs::read_to_string(repository().join("policies/commented.toml")).unwrap();
    let commented: toml::Table = toml::from_str(&commented).unwrap();
    // The policy's own tests see to it that all keys are shown there.
    let limits = commented["tenant"]["acme"]["limits"].as_table().unwrap();
    assert!(limits.len() > 20, "{limits:?}");
    for key in limits.keys().filter(|key| !NO_BOUNDS.contains(&key.as_str())) {
        let case = repository().join("tests/cases/limits").join(key);
        let policy = fs::read_to_string(case.join("policy.toml")).unwrap_or_else(|error| panic!("{key}: {error}"));
        let policy: toml::Table = toml::from_str(&policy.replace("UPSTREAM", "a.example")).unwrap();
        assert!(policy["tenant"]["case"]["limits"].get(key).is_some(), "{key} is not set in {}", case.display());
    }
}

fn find_cases(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        if entry.join("main.luau").exists() {
            found.push(entry);
        } else if entry.is_dir() {
            find_cases(&entry, found);
        }
    }
}

/// Runs a case each way that it asks for; gives what was not as expected.
fn check(case: &Path) -> Vec<String> {
    let expected: Expected = toml::from_str(&fs::read_to_string(case.join("expected.toml")).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", case.display()));
    let is_run = expected.run.is_some() || expected.host.is_some() || !expected.calls.is_empty();
    assert!(!expected.claim.is_empty() && is_run, "{}", case.display());
    let mut problems = Vec::new();
    if let Some(run) = &expected.run {
        problems.extend(check_run(case, run, &expected.setup));
    }
    let mut calls = expected.calls.clone();
    if let Some(ExpectedHost { status, body, .. }) = &expected.host {
        calls.push(Call { path: default_path(), post_bytes: None, times: 1, status: *status, body: body.clone() });
    }
    if !calls.is_empty() {
        let mut log = expected.log;
        log.contains.extend(expected.host.map(|host| host.log_contains).unwrap_or_default());
        problems.extend(check_host(case, &calls, &log, &expected.setup));
    }
    problems
}

fn check_run(case: &Path, expected: &ExpectedRun, setup: &[Setup]) -> Vec<String> {
    let (folder, _upstream) = prepare(case, setup);
    let mut command = neoc();
    command.current_dir(folder.path().join("scripts")).args(["run", "main.luau"]);
    if case.join("policy.toml").exists() {
        command.args(["--policy", "../policy.toml", "--tenant", "case"]);
    }
    let got = output(command.arg("--").args(&expected.arguments));
    let mut problems = Vec::new();
    if got.exit != expected.exit {
        problems.push(format!(
            "run: exit {}, expected {}\nstdout: {}\nstderr: {}",
            got.exit, expected.exit, got.stdout, got.stderr
        ));
    }
    if got.stdout != expected.stdout {
        problems
            .push(format!("run: expected stdout\n{}\ngot\n{}\nstderr: {}", expected.stdout, got.stdout, got.stderr));
    }
    problems.extend(missing("run: stderr", &got.stderr, &expected.stderr_contains));
    problems
}

fn check_host(case: &Path, calls: &[Call], expected: &ExpectedLog, setup: &[Setup]) -> Vec<String> {
    let (folder, _upstream) = prepare(case, setup);
    let mut host = Host::start(folder.path());
    let pid = host.pid();
    let mut problems = Vec::new();
    for call in calls.iter().flat_map(|call| std::iter::repeat_n(call, call.times.try_into().unwrap())) {
        let Answer { status, body, .. } = match call.post_bytes {
            Some(bytes) => host.post(&call.path, &"x".repeat(bytes)),
            None => host.get(&call.path),
        };
        if status != call.status || call.body.as_ref().is_some_and(|expected| *expected != body) {
            let Call { path, status: expected, body: expected_body, .. } = call;
            problems.push(format!("host: {path}: got {status} {body:?}, expected {expected} {expected_body:?}"));
        }
    }
    // Whatever the case did, the host lives and the other tenant's next request is answered.
    let canary = host.get("/canary");
    if !host.is_alive() || host.pid() != pid || canary.body != "alive" {
        problems.push(format!("host: the canary got {} {:?}", canary.status, canary.body));
    }
    let log = host.stop();
    if !problems.is_empty() {
        problems.push(format!("host: log:\n{log}"));
    }
    problems.extend(missing("host: log", &log, &expected.contains));
    let found: Vec<_> = expected.lacks.iter().filter(|part| log.contains(*part)).collect();
    if !found.is_empty() {
        problems.push(format!("host: log holds {found:?}:\n{log}"));
    }
    problems
}

fn missing(what: &str, text: &str, parts: &[String]) -> Option<String> {
    let missing: Vec<_> = parts.iter().filter(|part| !text.contains(*part)).collect();
    (!missing.is_empty()).then(|| format!("{what} lacks {missing:?}:\n{text}"))
}

/// A folder with a whole policy: the case's tenant with its script in `scripts`, and a canary beside it.
fn prepare(case: &Path, setup: &[Setup]) -> (tempfile::TempDir, Upstream) {
    let (folder, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let address = upstream.address.to_string();
    copy_scripts(case, &folder.path().join("scripts"), &address);
    fs::write(folder.path().join("canary.luau"), CANARY).unwrap();
    let tables = fs::read_to_string(case.join("policy.toml")).unwrap_or_default().replace("UPSTREAM", &address);
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = 16\n\n\
         [tenant.canary]\nscript = \"canary.luau\"\nroutes = [\"/canary\"]\n\n\
         [tenant.case]\nscript = \"scripts/main.luau\"\nroutes = [\"/case/*\"]\n\n{tables}"
    );
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    for Setup { path, beside_script, file, symlink, fifo } in setup {
        let path = folder.path().join(if *beside_script { "scripts" } else { "data" }).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if let Some(content) = file {
            fs::write(&path, content).unwrap();
        }
        if let Some(target) = symlink {
            std::os::unix::fs::symlink(target, &path).unwrap();
        }
        if *fifo {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        }
    }
    (folder, upstream)
}

/// Copies a case's script and its modules.
fn copy_scripts(from: &Path, to: &Path, address: &str) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            copy_scripts(&path, &to.join(name), address);
        } else if name != "expected.toml" && name != "policy.toml" {
            let text = fs::read_to_string(&path).unwrap().replace("UPSTREAM", address);
            fs::write(to.join(name), text).unwrap();
        }
    }
}
