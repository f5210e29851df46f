//! What a person sees of a broken policy: each folder of `tests/policies` holds one, and what `neoc check`
//! prints of it. `NEOC_UPDATE=1` writes that again.

use std::{fs, path::Path};

use crate::support::{Output, neoc, output, repository};

fn broken() -> Vec<std::path::PathBuf> {
    let mut folders: Vec<_> =
        fs::read_dir(repository().join("tests/policies")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

fn run(folder: &Path, verb: &[&str]) -> Output {
    output(neoc().current_dir(folder).args(verb).args(["--policy", "policy.toml"]))
}

#[test]
fn each_broken_policy_is_drawn_as_expected() {
    let folders = broken();
    assert!(folders.len() >= 8, "only {} policies found", folders.len());
    for folder in folders {
        let got = run(&folder, &["check"]);
        assert_eq!((got.exit, got.stdout.as_str()), (1, ""), "{}", folder.display());
        let expected = folder.join("expected.txt");
        if std::env::var_os("NEOC_UPDATE").is_some() {
            fs::write(&expected, &got.stderr).unwrap();
        }
        assert_eq!(got.stderr, fs::read_to_string(&expected).unwrap(), "{}", folder.display());
    }
}

#[test]
fn every_verb_draws_the_same() {
    let folder = repository().join("tests/policies/units");
    let expected = run(&folder, &["check"]).stderr;
    let explain = ["policy", "explain", "--tenant", "acme", "kv x"];
    for verb in [&["host"][..], &["run", "absent.luau", "--tenant", "acme"], &explain] {
        assert_eq!(run(&folder, verb).stderr, expected, "{verb:?}");
    }
}
