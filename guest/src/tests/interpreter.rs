//! What Luau's interpreter does, by the scripts of tests/interpreter. For the guest, interpreter.py splits it;
//! here it is as Luau has it. So what is asserted here is what the tests of the whole program assert of the guest.
//!
//! `NEOC_UPDATE=1 cargo test native_luau` writes what is expected anew. `FAMILY=calls cargo test native_luau_with` fails
//! with all outcomes of one family, to be compared with those of `neoc run` with that argument.

#[path = "../../../tests/interpreter/random.rs"]
mod random;

use std::fs;
use std::path::{Path, PathBuf};

use neoc_abi::event::{Event, Finish, Mode};

use super::Guest;

#[test]
fn native_luau_with_operands_of_every_kind_does_what_is_expected_of_the_guest() {
    check(&fs::read_to_string(folder().join("operands.luau")).expect("a script"), "operands.txt");
}

#[test]
fn native_luau_runs_random_instructions_as_is_expected_of_the_guest() {
    check(&random::script(), "random.txt");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/interpreter")
}

fn check(source: &str, expected: &str) {
    let family = std::env::var("FAMILY").ok();
    let is_whole = family.is_none();
    let printed = run(source, family);
    let expected = folder().join(expected);
    if is_whole && std::env::var_os("NEOC_UPDATE").is_some() {
        fs::write(&expected, &printed).expect("writes");
    }
    assert!(printed == fs::read_to_string(&expected).expect("what is expected"), "{printed}");
}

fn run(source: &str, argument: Option<String>) -> String {
    let (mut guest, loaded) = Guest::load_bytes(source.as_bytes(), Mode::Script, 64 * 1024 * 1024);
    assert_eq!(loaded, Finish::Done);
    guest.start(Event::Run(argument.into_iter().collect()));
    assert_eq!(guest.finish(), Some(Finish::Done));
    guest.logged().into_iter().map(|record| record.text + "\n").collect()
}
