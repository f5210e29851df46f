//! The order of the layers, and documents that match the tree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use neoc_abi::api::{MODULES, Module};

use crate::support::repository;

/// The layers of `host/src`, lowest first; each may use those before it. Modules that share a line
/// of the design's list are one layer here when they need each other.
const LAYERS: [&str; 11] = [
    "policy",
    "limits",
    "audit",
    "broker",
    "capability",
    "script_log",
    "runtime",
    "tenant",
    "request_id",
    "server",
    "cli",
];

/// What the pure layers may not name: runtimes, clocks, files, sockets.
const IMPURE: [&str; 9] = [
    "tokio",
    "wasmtime",
    "hyper",
    "std::fs",
    "std::net::TcpStream",
    "SystemTime",
    "Instant::now",
    "std::env",
    "tracing",
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The files of a layer: `name.rs` and all below `name/`.
fn files_of(layer: &str) -> Vec<PathBuf> {
    let source = repository().join("host/src");
    let mut files = Vec::new();
    if source.join(layer).is_dir() {
        rust_files(&source.join(layer), &mut files);
    }
    let single = source.join(format!("{layer}.rs"));
    if single.exists() {
        files.push(single);
    }
    assert!(!files.is_empty(), "no layer {layer}");
    files
}

/// A file's code, without its tests and comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn no_layer_uses_one_above_it() {
    for (index, layer) in LAYERS.iter().enumerate() {
        for file in files_of(layer) {
            let code = code(&file);
            for above in &LAYERS[index + 1..] {
                // `use crate::{a, b::c}` spans lines, so every mention of the path counts.
                let nested = code.split("use crate::{").skip(1).any(|rest| {
                    let list = rest.split("};").next().unwrap_or_default();
                    list.lines().any(|line| {
                        line.trim_start().starts_with(&format!("{above}::")) || line.trim() == format!("{above},")
                    })
                });
                let direct = code.contains(&format!("crate::{above}::"));
                assert!(!nested && !direct, "{} ({layer}) uses {above}", file.display());
            }
        }
    }
}

#[test]
fn policy_and_limits_are_pure() {
    for file in ["policy", "limits"].into_iter().flat_map(files_of) {
        let code = code(&file);
        for line in code.lines() {
            for impure in IMPURE {
                assert!(!line.contains(impure), "{}: {line}", file.display());
            }
        }
    }
}

#[test]
fn every_module_of_the_library_is_a_layer() {
    let library = fs::read_to_string(repository().join("host/src/lib.rs")).unwrap();
    let modules: Vec<_> = library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mut layers = LAYERS;
    layers.sort_unstable();
    assert_eq!(modules, layers, "rustfmt keeps the list sorted; the order of the layers is in the table above it");
}

#[test]
fn each_capability_has_one_file_in_each_layer() {
    for capability in ["detach", "fs", "http", "kv", "module", "time", "workers"] {
        for layer in ["guest/abi/src", "host/src/broker", "host/src/capability"] {
            let file = repository().join(layer).join(format!("{capability}.rs"));
            assert!(file.exists(), "{}", file.display());
        }
    }
}

#[test]
fn architecture_names_every_module_and_stays_short() {
    let text = fs::read_to_string(repository().join("docs/ARCHITECTURE.md")).unwrap();
    assert!(text.lines().count() <= 150, "{} lines", text.lines().count());
    for folder in ["host/src", "guest/src", "guest/abi/src"] {
        for entry in fs::read_dir(repository().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(text.contains(&name), "docs/ARCHITECTURE.md does not name {folder}/{name}");
        }
    }
    for word in text.split(|c: char| c.is_whitespace() || "`()|,".contains(c)) {
        if word.contains('/') && (word.ends_with(".rs") || word.ends_with(".luau") || word.ends_with(".sh")) {
            assert!(repository().join(word).exists(), "docs/ARCHITECTURE.md names {word}, which is not there");
        }
    }
}

/// The module that a script holds as `owner`, such as `hyper`. Channels and semaphores are made by `task`.
fn module_of(owner: &str) -> Option<&'static Module> {
    let name = if ["channel", "semaphore"].contains(&owner) { "task" } else { owner };
    MODULES.iter().find(|module| module.name.ends_with(&format!(":{name}")))
}

/// What a cell of docs/PORTING.md names of ours, such as `task.wait` or `channel:get`, with its module.
fn names_of_ours(cell: &str) -> Vec<(&'static Module, &str)> {
    let code = cell.split('`').skip(1).step_by(2);
    let words = code.flat_map(|code| code.split(|c: char| !(c.is_alphanumeric() || "_.:".contains(c))));
    words.filter_map(|word| Some((module_of(word.split_once(['.', ':'])?.0)?, word))).collect()
}

#[test]
fn porting_names_only_what_exists_and_says_where_from() {
    let text = fs::read_to_string(repository().join("docs/PORTING.md")).unwrap();
    let (mut n_names, mut in_table) = (0, false);
    for line in text.lines() {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        in_table = line.starts_with('|') && (in_table || cells.get(1) == Some(&"neoc"));
        if !in_table || line.starts_with("|---") {
            continue;
        }
        assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "{line}");
        for (module, word) in cells[1..3].iter().flat_map(|cell| names_of_ours(cell)) {
            let name = word.split_once('.').map_or(word, |(_, function)| function);
            // A constant, not a function.
            let exists = word == "json.null" || module.functions.iter().any(|(function, _)| *function == name);
            assert!(exists, "docs/PORTING.md names {word}, which is not there: {line}");
            n_names += 1;
        }
    }
    assert!(n_names > 100, "only {n_names} names found");
}
