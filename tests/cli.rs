//! What the verbs print and exit with.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::{Output, neoc, output, repository, run_script};

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn check(folder: &Path) -> Output {
    output(neoc().current_dir(folder).args(["check", "--policy", "policy.toml"]))
}

#[test]
fn run_gives_the_script_its_arguments_and_prints_to_standard_output() {
    let got = run_script("print(select('#', ...), ...)", &["a", "b c"]);
    assert_eq!((got.exit, got.stdout.as_str()), (0, "2\ta\tb c\n"), "{}", got.stderr);
}

#[test]
fn a_failed_script_exits_1_with_a_traceback_that_names_the_line() {
    let got = run_script("local function inner()\n\terror('broken')\nend\ninner()\n", &[]);
    assert_eq!((got.exit, got.stdout.as_str()), (1, ""));
    assert!(got.stderr.starts_with("script.luau:2: broken\n"), "{}", got.stderr);
    assert!(got.stderr.contains("script.luau:2") && got.stderr.contains("script.luau:4"), "{}", got.stderr);
    assert!(!got.stderr.contains("[neoc]"), "our own frames are no part of a script's traceback: {}", got.stderr);
}

#[test]
fn a_script_that_does_not_compile_exits_1_with_the_line() {
    let got = run_script("print('a')\nlocal = 1\n", &[]);
    assert_eq!((got.exit, got.stdout.as_str()), (1, ""));
    assert!(got.stderr.starts_with("script.luau:2: "), "{}", got.stderr);
}

#[test]
fn without_a_policy_every_effect_is_refused() {
    for call in [
        "require('vnd:hyper').get('http://127.0.0.1:1/')",
        "require('std:fs').read('/etc/passwd')",
        "require('std:kv').get('a')",
    ] {
        let got = run_script(&format!("local ok, err = pcall(function() return {call} end) print(ok, err.kind)"), &[]);
        assert_eq!(got.stdout, "false\tdenied\n", "{call}: {}", got.stderr);
    }
}

#[test]
fn a_loop_inside_pcall_ends_by_itself_with_a_clear_message() {
    let got = run_script("while true do pcall(function() while true do end end) end", &[]);
    assert_eq!(got.exit, 1);
    assert!(got.stderr.contains("killed: the script used up its CPU budget of 5000 ms"), "{}", got.stderr);
}

/// LX-09 of the attacks that the cases are named after.
#[test]
fn deeply_nested_source_is_an_error_of_the_script() {
    let nests = [("(", ")"), ("do ", " end"), ("{", "}"), ("function() ", " end"), ("`{", "}`"), ("-", "")];
    for (open, close) in nests {
        let got = run_script(&format!("local x = {}1{}", open.repeat(100_000), close.repeat(100_000)), &[]);
        assert_eq!(got.exit, 1, "{open}");
        assert!(got.stderr.contains("script.luau"), "{open}: {}", got.stderr.chars().take(300).collect::<String>());
    }
}

/// LX-08.
#[test]
fn bytecode_is_never_loaded() {
    for first in ["\u{1b}Lua", "\u{6}", "\u{0}", "\u{3}abc"] {
        let got = run_script(first, &[]);
        assert_eq!(got.exit, 1, "{first:?}");
        assert!(got.stderr.contains("not a source text"), "{first:?}: {}", got.stderr);
    }
}

/// LX-10.
#[test]
fn a_source_over_the_limit_is_refused() {
    let table = format!("return {{{}}}", "1,".repeat(1_000_000));
    let got = run_script(&table, &[]);
    assert_eq!(got.exit, 1);
    assert!(got.stderr.contains("524288 is the most"), "{}", got.stderr);
}

#[test]
fn run_with_a_policy_has_that_tenants_grants() {
    let policy = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\n\
        [tenant.a]\nscript = \"script.luau\"\nroutes = [\"/a\"]\n[tenant.a.allow.kv]\n\
        [tenant.b]\nscript = \"script.luau\"\nroutes = [\"/b\"]\n";
    let script = "local kv = require('std:kv') kv.set('k', 'v') print(kv.get('k'))";
    let folder = folder(&[("policy.toml", policy), ("script.luau", script)]);
    let run = |tenant| {
        output(neoc().current_dir(folder.path()).args([
            "run",
            "script.luau",
            "--policy",
            "policy.toml",
            "--tenant",
            tenant,
        ]))
    };
    assert_eq!(run("a").stdout, "v\n");
    let refused = run("b");
    assert_eq!((refused.exit, refused.stdout.as_str()), (1, ""));
    assert!(refused.stderr.contains("denied"), "{}", refused.stderr);
    let unknown = run("c");
    assert!(unknown.stderr.contains("no tenant \"c\"; it has a, b"), "{}", unknown.stderr);
}

#[test]
fn check_says_all_that_is_wrong_at_once() {
    let policy = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\n\
        [tenant.a]\nscript = \"broken.luau\"\nroutes = [\"/a\"]\n\
        [tenant.b]\nscript = \"absent.luau\"\nroutes = [\"/b\"]\n\
        [tenant.c]\nscript = \"fine.luau\"\nroutes = [\"/c\"]\n";
    let files = [("policy.toml", policy), ("broken.luau", "\n\nlocal ="), ("fine.luau", "return function() end")];
    let got = check(folder(&files).path());
    assert_eq!(got.exit, 1);
    assert!(got.stderr.contains("tenant.a.script: broken.luau:3:"), "{}", got.stderr);
    assert!(got.stderr.contains("tenant.b.script") && got.stderr.contains("absent.luau"), "{}", got.stderr);
    assert!(!got.stderr.contains("tenant.c"), "{}", got.stderr);
}

#[test]
fn check_names_file_line_key_value_and_rule_of_each_policy_error() {
    let policy = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\n\
        [tenant.a]\nscript = \"a.luau\"\nroutes = [\"/a\"]\ncolour = \"red\"\n\
        [tenant.a.limits]\nmemory = \"128 MiB\"\n";
    let got = check(folder(&[("policy.toml", policy), ("a.luau", "return function() end")]).path());
    assert_eq!(got.exit, 1);
    assert!(got.stderr.contains("policy.toml:7:") && got.stderr.contains("colour"), "{}", got.stderr);
    assert!(got.stderr.contains("policy.toml:9:"), "{}", got.stderr);
    assert!(got.stderr.contains("tenant.a.limits.memory") && got.stderr.contains("128 MiB"), "{}", got.stderr);
    assert!(got.stderr.contains("64 MiB"), "{}", got.stderr);
}

#[test]
fn check_of_the_repositorys_policies_finds_no_problem() {
    let entries = ["policies", "examples"].map(|folder| fs::read_dir(repository().join(folder)).unwrap());
    // One of several files is in a folder, with those that it includes; some examples have one, too, or two.
    let policies = entries.into_iter().flatten().map(|entry| entry.unwrap().path());
    let in_folder = |path: PathBuf| ["policy.toml", "upstream.toml"].map(|name| path.join(name)).to_vec();
    let policies = policies.flat_map(|path| if path.is_dir() { in_folder(path) } else { vec![path] });
    for policy in policies.filter(|policy| policy.exists()) {
        let got = output(neoc().args(["check", "--deny-warnings", "--policy"]).arg(&policy));
        assert_eq!(got.exit, 0, "{}: {}", policy.display(), got.stderr);
    }
}

#[test]
fn host_refuses_to_start_on_a_broken_policy() {
    let got = output(neoc().current_dir(folder(&[("policy.toml", "[host")]).path()).args([
        "host",
        "--policy",
        "policy.toml",
    ]));
    assert_eq!((got.exit, got.stdout.as_str()), (1, ""));
    assert!(got.stderr.contains("policy.toml:1:"), "{}", got.stderr);
}

/// LX-02.
#[test]
fn a_script_sees_exactly_the_committed_list_of_names() {
    let walk = fs::read_to_string(repository().join("tests/globals.luau")).unwrap();
    let got = run_script(&walk, &[]);
    let expected = fs::read_to_string(repository().join("guest/globals.txt")).unwrap();
    assert_eq!(got.stdout, expected, "{}", got.stderr);
}

#[test]
fn a_corrupt_cached_image_is_built_again_and_never_run() {
    let folder = folder(&[("script.luau", "print('sound')")]);
    let cache = folder.path().join("cache");
    let run = || {
        let mut command = neoc();
        output(command.current_dir(folder.path()).env("NEOC_CACHE_DIR", &cache).args(["run", "script.luau"]))
    };
    assert_eq!(run().stdout, "sound\n");
    let mut images = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    let image = images.find(|path| path.extension().is_some_and(|extension| extension == "cwasm")).unwrap();
    let mut content = fs::read(&image).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&image, content).unwrap();
    let got = run();
    assert_eq!((got.exit, got.stdout.as_str()), (0, "sound\n"));
    assert!(got.stderr.contains("corrupt"), "{}", got.stderr);
    assert_eq!(run().stderr, "", "the one built in its place is sound");
}
