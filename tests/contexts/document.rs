//! docs/YIELDING.md: its tables are what the registry says and what the survey has found.

use std::{collections::BTreeSet, fmt::Write, fs};

use neoc_abi::api::{MODULES, Tag};

use super::{Context, Function, Waited, functions, name_of, survey::SURVEY, waited};
use crate::support::repository;

const PATH: &str = "docs/YIELDING.md";

/// The contexts, with the heads of their columns.
const COLUMNS: [(Context, &str); 7] = [
    (Context::Handler, "handler"),
    (Context::Task, "task"),
    (Context::Coroutine, "coroutine"),
    (Context::ProtectedCall, "protected call"),
    (Context::Iterator, "iterator"),
    (Context::Module, "module"),
    (Context::Unyieldable, "no yield"),
];

#[test]
fn yielding_md_is_what_the_registry_and_the_survey_say() {
    let path = repository().join(PATH);
    let found = fs::read_to_string(&path).unwrap();
    let expected = with_table(&with_table(&found, "functions", &list()), "contexts", &table());
    if std::env::var_os("NEOC_UPDATE").is_some() {
        fs::write(&path, &expected).unwrap();
    } else if found != expected {
        let how = "NEOC_UPDATE=1 cargo test --test neoc yielding_md";
        panic!("{PATH} is out of date; `{how}` makes it:\n{expected}");
    }
}

/// The document with a table in its place.
fn with_table(document: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- {name}: generated -->\n"), "<!-- end -->\n");
    let (before, rest) = document.split_once(&begin).unwrap_or_else(|| panic!("{PATH} lacks {begin:?}"));
    let (_, after) = rest.split_once(end).unwrap_or_else(|| panic!("{PATH} lacks {end:?} after {begin:?}"));
    format!("{before}{begin}\n{table}\n{end}{after}")
}

/// The functions by module.
fn list() -> String {
    let mut text = "| module | yields | never yields |\n|---|---|---|\n".to_owned();
    for module in MODULES {
        let module = name_of(module);
        let names = |tag| {
            let of_module = functions().filter(|function| (function.module, function.tag) == (module, tag));
            of_module.map(|function| format!("`{}`", function.name)).collect::<Vec<_>>().join(", ")
        };
        let shown = if module == "globals" { module.to_owned() } else { format!("`{module}`") };
        let _ = writeln!(text, "| {shown} | {} | {} |", names(Tag::Yields), names(Tag::Never));
    }
    text
}

/// What became of each function that yields in each context.
fn table() -> String {
    let heads: Vec<_> = COLUMNS.iter().map(|(_, head)| *head).collect();
    let mut text = format!("| | {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len() + 1));
    for function in functions().filter(|function| function.tag == Tag::Yields) {
        let cells: Vec<_> = COLUMNS.iter().map(|(context, _)| cell(function, *context)).collect();
        let _ = writeln!(text, "| `{}` | {} |", function.label(), cells.join(" | "));
    }
    text
}

/// What all places of a context have in common.
fn cell(function: Function, context: Context) -> &'static str {
    let calls = SURVEY
        .calls
        .iter()
        .filter(|call| (call.function, call.place.context) == (function, context) && call.inner.is_none());
    let outcomes: BTreeSet<_> = calls
        .map(|call| match waited(call) {
            Ok(Waited::Yielding) => "yields",
            Ok(Waited::StandingStill) => "stands still",
            Err(_) => "fails",
        })
        .collect();
    if outcomes.len() == 1 { outcomes.into_iter().next().unwrap_or("fails") } else { "fails" }
}
