//! Luau's own test files, in the guest: compiled to WebAssembly, by the product's runtime, engine, limits and
//! preemption. `guest/build.sh conformance` builds that guest and fetches the files; docs/CONFORMANCE.md says
//! what runs. `CASE=name` filters the files, `NEOC_UPDATE=1` writes the table of the page anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use neoc::{
    policy::Preemption,
    runtime::{GUEST, LoadError, MAX_MEMORY_BYTES},
};
use neoc_abi::event::Finish;
use serde::Deserialize;

use crate::support::{
    repository,
    sandbox::{INSTANCES, Sandbox},
};

/// How many files there are. Another number is another version of them, to be looked at.
const N_FILES: usize = 57;

/// How many must pass, whatever is listed.
const MIN_PASSED: usize = 40;

/// CPU time for one file. They need 0.3 s at most.
const CPU: Duration = Duration::from_secs(5);

/// `tests/conformance.toml`: files that do not pass, each with the reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lists {
    /// With Luau's own libraries.
    not_applicable: Vec<Listed>,
    /// With those that a tenant's script sees, which are fewer.
    differs: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    file: String,
    reason: String,
}

#[test]
fn each_of_luaus_test_files_passes_or_is_listed_with_the_reason() {
    let (files, lists) = (files(), Lists::read());
    let only = std::env::var("CASE").unwrap_or_default();
    let selected = files.iter().filter(|(file, _)| file.contains(&only));
    let guest = fs::read(built("neoc_guest_conformance.wasm")).unwrap();
    let sandbox = Sandbox::start(Preemption::Safepoint, guest.into(), MAX_MEMORY_BYTES);
    let run_all = |libraries: &str, excluded: BTreeSet<&str>| {
        let runs = selected.clone().filter(|(file, _)| !excluded.contains(file.as_str())).map(|(file, source)| {
            let (sandbox, name) = (&sandbox, format!("{libraries}/{file}"));
            async move { (file.as_str(), run(sandbox, &name, source).await) }
        });
        let runs: Vec<_> = runs.collect();
        let at_once = usize::try_from(INSTANCES).unwrap() / 2;
        sandbox.io.block_on(stream::iter(runs).buffer_unordered(at_once).collect::<BTreeMap<_, _>>())
    };

    let with_luaus = run_all("luau", BTreeSet::new());
    let mut problems = problems("not_applicable", &with_luaus, &lists.not_applicable);
    let with_ours = run_all("neoc", names(&lists.not_applicable));
    problems.extend(self::problems("differs", &with_ours, &lists.differs));
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));

    let passed = with_luaus.values().filter(|outcome| outcome.is_ok()).count();
    assert!(!only.is_empty() || passed >= MIN_PASSED, "{passed} files pass");
}

#[test]
fn the_lists_name_files_and_the_page_names_them_all() {
    let (files, lists) = (files(), Lists::read());
    for Listed { file, reason } in lists.not_applicable.iter().chain(&lists.differs) {
        assert!(files.contains_key(file) && !reason.is_empty(), "tests/conformance.toml lists {file}");
    }
    let page = repository().join("docs/CONFORMANCE.md");
    let text = fs::read_to_string(&page).unwrap();
    let (begin, end) = ("<!-- files -->\n", "<!-- end of files -->\n");
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let expected = format!("{before}{begin}{}{end}{after}", table(&files, &lists));
    if std::env::var_os("NEOC_UPDATE").is_some() {
        fs::write(&page, expected).unwrap();
    } else {
        assert!(text == expected, "docs/CONFORMANCE.md is out of date; NEOC_UPDATE=1 writes it anew");
    }
}

#[test]
fn the_products_guest_has_nothing_of_these_tests() {
    let has = |guest: &[u8], native: &str| guest.windows(native.len()).any(|bytes| bytes == native.as_bytes());
    let ours = fs::read(built("neoc_guest_conformance.wasm")).unwrap();
    for native in ["hostresume", "setblockallocations", "getcoverage", "is_native_if_supported"] {
        assert!(has(&ours, native) && !has(GUEST, native), "{native}");
    }
}

fn built(name: &str) -> PathBuf {
    let path = repository().join("guest/build").join(name);
    assert!(path.exists(), "{} is missing; guest/build.sh conformance makes it", path.display());
    path
}

/// The files by name. They lie in a crate, which is fetched and not compiled.
fn files() -> BTreeMap<String, Vec<u8>> {
    let metadata: serde_json::Value =
        serde_json::from_slice(&fs::read(built("conformance/metadata.json")).unwrap()).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "luau-vm").unwrap();
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    let folder = manifest.with_file_name("tests/fixtures/conformance");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let files: BTreeMap<_, _> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect();
    assert_eq!(files.len(), N_FILES, "files in {}", folder.display());
    files
}

/// Loads and runs a file. The slash in its name has the guest of these tests take it for one.
async fn run(sandbox: &Sandbox, name: &str, source: &[u8]) -> Result<(), String> {
    let image = sandbox.load(name, source).await.map_err(|error| match error {
        LoadError::Script(error) => error.message,
        LoadError::Failed(failure) => failure.to_string(),
    })?;
    match sandbox.run(&image, CPU).await.map_err(|failure| failure.to_string())?.finish {
        Finish::Failed(error) => Err(format!("{}\n{}", error.message, error.traceback)),
        Finish::Done | Finish::Response(_) | Finish::Worked(_) | Finish::Surveyed(_) => Ok(()),
    }
}

/// Where outcomes and list do not agree.
fn problems(list: &str, outcomes: &BTreeMap<&str, Result<(), String>>, listed: &[Listed]) -> Vec<String> {
    let listed = names(listed);
    let problem = |(file, outcome): (&&str, &Result<(), String>)| match (outcome, listed.contains(file)) {
        (Ok(()), true) => Some(format!("{file} passes, and tests/conformance.toml lists it under {list}")),
        (Err(error), false) => Some(format!("{file} does not pass, and is not listed under {list}: {error}")),
        _ => None,
    };
    outcomes.iter().filter_map(problem).collect()
}

fn names(listed: &[Listed]) -> BTreeSet<&str> {
    listed.iter().map(|listed| listed.file.as_str()).collect()
}

// === impl Lists ===

impl Lists {
    fn read() -> Self {
        toml::from_str(&fs::read_to_string(repository().join("tests/conformance.toml")).unwrap()).unwrap()
    }
}

/// The page's table, as the lists have it.
fn table(files: &BTreeMap<String, Vec<u8>>, lists: &Lists) -> String {
    let reason = |listed: &[Listed], file: &str| {
        listed.iter().find(|listed| listed.file == file).map(|listed| listed.reason.clone())
    };
    let rows = files.keys().map(|file| {
        let (luaus, ours) = match reason(&lists.not_applicable, file) {
            Some(reason) => (reason, String::new()),
            None => ("passes".to_owned(), reason(&lists.differs, file).unwrap_or_else(|| "passes".to_owned())),
        };
        format!("| {file} | {luaus} | {ours} |\n")
    });
    let n_listed = lists.not_applicable.len();
    let n_differ = lists.differs.len();
    let counts = format!(
        "{} of {} files pass with Luau's libraries, {} of these with a script's.\n\n",
        files.len() - n_listed,
        files.len(),
        files.len() - n_listed - n_differ,
    );
    counts + "| file | with Luau's libraries | with a script's |\n|---|---|---|\n" + &rows.collect::<String>()
}
