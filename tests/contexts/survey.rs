//! One run of the program, which makes all calls at all places.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs,
    path::Path,
    sync::LazyLock,
    thread,
};

use neoc_abi::api::{MODULES, Tag};
use serde_json::Value;

use super::{Context, Function, PLACES, PLAIN, Place, functions, label, name_of};
use crate::support::{host::Host, repository, upstream::Upstream};

/// The survey of all tests: it takes far longer to make than to look at.
pub static SURVEY: LazyLock<Survey> = LazyLock::new(Survey::make);

/// Functions that are called at each place inside of each other, one for each way of waiting: for the host, for a
/// task, in a line, for a module.
const NESTED: [&str; 4] = ["kv.get", "task.await", "channel:get", "require"];

/// What came of all calls.
pub struct Survey {
    /// The functions of which there is a sample call, by their labels.
    pub samples: BTreeSet<String>,
    pub calls: Vec<Call>,
    /// The lines that say where a VM stood still: the place, which is the tenant, and the text.
    pub stall_lines: Vec<(String, String)>,
    /// How often any VM stood still, as the host has counted.
    pub n_stalls: u64,
}

/// One call, and what came of it.
pub struct Call {
    pub function: Function,
    pub place: Place,
    /// The place inside of that, where the call stands then.
    pub inner: Option<Place>,
    /// Whether the place was given the function itself, and not a script's own that calls it.
    pub bare: bool,
    pub returned: Result<Returned, String>,
    /// How often the VM stood still.
    pub n_stalls: u64,
    request_id: String,
}

/// What a call gave.
pub struct Returned {
    /// The tasks that ran before it had returned, of two that could.
    pub ran_meanwhile: String,
    pub result: String,
}

// === impl Survey ===

impl Survey {
    fn make() -> Self {
        let upstream = Upstream::start();
        let folder = folder(&upstream.address.to_string());
        let host = Host::start(folder.path());
        let samples = samples(&host);
        // All places at once: each is a tenant of its own.
        let calls = thread::scope(|scope| {
            let calls_at = |place| calls_at(&host, place);
            let places = PLACES.map(|place| scope.spawn(move || calls_at(place)));
            places.into_iter().flat_map(|calls| calls.join().unwrap()).collect()
        });
        Self { samples, calls, stall_lines: Vec::new(), n_stalls: 0 }.read_log(&host.stop())
    }

    /// Adds what only the log says.
    fn read_log(mut self, log: &str) -> Self {
        let (mut n_stalls_of_requests, mut errors) = (HashMap::new(), HashMap::new());
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            if let Some(n_stalls) = line["n_stalls"].as_u64() {
                n_stalls_of_requests.insert(field("request"), n_stalls);
            } else if field("text").contains("Luau cannot yield") {
                self.stall_lines.push((field("tenant"), field("text")));
            } else if field("message") == "stalls since the start" {
                self.n_stalls = line["count"].as_u64().unwrap_or_default();
            } else if field("level") == "ERROR" {
                errors.insert(field("request"), line.to_string());
            }
        }
        for call in &mut self.calls {
            call.n_stalls = n_stalls_of_requests.get(&call.request_id).copied().unwrap_or_default();
            if let (Err(problem), Some(error)) = (&mut call.returned, errors.get(&call.request_id)) {
                problem.push_str(error);
            }
        }
        self
    }

    /// The plain call of a function.
    pub fn plain(&self, function: Function) -> &Call {
        let is_it =
            |call: &&Call| call.function == function && call.place == PLAIN && call.inner.is_none() && !call.bare;
        self.calls.iter().find(is_it).expect("each function of the registry was called plainly")
    }
}

/// Makes all calls at a place.
fn calls_at(host: &Host, place: Place) -> Vec<Call> {
    let mut calls = Vec::new();
    for function in functions().filter(|function| function.tag == Tag::Yields || place == PLAIN) {
        // Twice where the VM stands still, to see that a place is logged once.
        let n_times = if place.context == Context::Unyieldable { 2 } else { 1 };
        for bare in [false, true].repeat(n_times) {
            calls.push(Call::make(host, function, place, None, bare));
        }
    }
    for function in functions().filter(|function| NESTED.contains(&function.label().as_str())) {
        // The one module with a body for calls is not inside itself.
        let inner =
            PLACES.into_iter().filter(|inner| (place.context, inner.context) != (Context::Module, Context::Module));
        calls.extend(inner.map(|inner| Call::make(host, function, place, Some(inner), false)));
    }
    calls
}

/// Asks the script for the names of its sample calls.
fn samples(host: &Host) -> BTreeSet<String> {
    let mut samples = BTreeSet::new();
    for module in MODULES {
        let module = name_of(module);
        let answer = host.get(&format!("/{}/{module}/", PLAIN.name));
        // No file, no names.
        let names: Vec<String> = serde_json::from_str(&answer.body).unwrap_or_default();
        samples.extend(names.iter().map(|name| label(module, name)));
    }
    samples
}

/// A folder with the script, and with a policy of one tenant for each place.
fn folder(upstream: &str) -> tempfile::TempDir {
    let (folder, source) = (tempfile::tempdir().unwrap(), repository().join("tests/contexts"));
    copy(&source.join("script"), folder.path(), upstream);
    let tenant = fs::read_to_string(source.join("tenant.toml")).unwrap().replace("UPSTREAM", upstream);
    let mut policy = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ninstances = 128\n".to_owned();
    for place in PLACES {
        policy.push_str(&tenant.replace("PLACE", place.name));
    }
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

fn copy(from: &Path, to: &Path, upstream: &str) {
    for entry in fs::read_dir(from).unwrap() {
        let (path, copy) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            fs::create_dir(&copy).unwrap();
            self::copy(&path, &copy, upstream);
        } else {
            fs::write(copy, fs::read_to_string(path).unwrap().replace("UPSTREAM", upstream)).unwrap();
        }
    }
}

// === impl Call ===

impl Call {
    fn make(host: &Host, function: Function, place: Place, inner: Option<Place>, bare: bool) -> Self {
        let query = match inner {
            Some(inner) => format!("?in={}", inner.name),
            None if bare => "?bare=1".to_owned(),
            None => String::new(),
        };
        let answer = host.get(&format!("/{}/{}/{}{query}", place.name, function.module, function.name));
        let returned = match answer.body.split_once('\n') {
            Some((ran_meanwhile, result)) if answer.status == 200 => {
                Ok(Returned { ran_meanwhile: ran_meanwhile.to_owned(), result: result.to_owned() })
            }
            _ => Err(format!("{} {}", answer.status, answer.body)),
        };
        let request_id = answer.headers.get("x-request-id").cloned().unwrap_or_default();
        Self { function, place, inner, bare, returned, n_stalls: 0, request_id }
    }

    /// Whether a line says that the VM stood still at this call.
    pub fn is_in(&self, (place, text): &(String, String)) -> bool {
        // Who calls the function: the place itself, or a function of main.luau.
        let file = if self.bare { "places.luau:" } else { "main.luau:" };
        let what = format!(": {} waits where Luau cannot yield", self.function.label());
        place == self.place.name && text.starts_with(file) && text.contains(&what)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.map(|inner| format!(" in {}", inner.name)).unwrap_or_default();
        let bare = if self.bare { ", bare" } else { "" };
        write!(formatter, "{} at {}{inner}{bare}", self.function.label(), self.place.name)
    }
}
