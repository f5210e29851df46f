//! Luau's interpreter in the guest, which `guest/interpreter.py` splits, does as Luau's own does.
//!
//! | in tests/interpreter | holds |
//! |---|---|
//! | operands.luau | each kind of instruction with operands of every kind; prints a digest for each family |
//! | [`random`] | random programs, and what they call |
//! | *.txt | what native Luau prints |
//! | policy.toml | what the scripts need |
//!
//! The guest's own tests, where the interpreter is as Luau has it, assert the same texts; they say how to write them.

mod random;

use std::fs;

use crate::support::{neoc, output, repository};

#[test]
fn the_guest_does_with_operands_of_every_kind_what_native_luau_does() {
    let source = fs::read_to_string(repository().join("tests/interpreter/operands.luau")).unwrap();
    check(&source, "operands.txt");
}

#[test]
fn the_guest_runs_random_instructions_as_native_luau_does() {
    check(&random::script(), "random.txt");
}

fn check(source: &str, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let texts = repository().join("tests/interpreter");
    fs::write(folder.path().join("main.luau"), source).unwrap();
    fs::copy(texts.join("policy.toml"), folder.path().join("policy.toml")).unwrap();
    let arguments = ["run", "--policy", "policy.toml", "--tenant", "script", "main.luau"];
    let got = output(neoc().current_dir(folder.path()).args(arguments));
    let expected = fs::read_to_string(texts.join(expected)).unwrap();
    let differ: Vec<_> = expected.lines().filter(|line| !got.stdout.lines().any(|got| got == *line)).collect();
    assert!(got.exit == 0 && differ.is_empty(), "not as native Luau: {differ:#?}\n{}", got.stderr);
    assert_eq!(got.stdout, expected);
}
