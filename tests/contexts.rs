//! Every function that yields works wherever a script can call it, and every tag of the registry is true.
//!
//! A tenant for each place runs `contexts/script/main.luau`, which makes one sample call for each request. What
//! came of all calls is a survey; the tests look at it from several sides, and docs/YIELDING.md shows it.
//!
//! | in `contexts` | is |
//! |---|---|
//! | `script/calls` | a sample call of each function, one file for each module: all that a new function needs |
//! | `script/places.luau` | where a call can stand |
//! | `tenant.toml` | what a tenant may do: a new capability needs its grant here |
//! | `document.rs`, `survey.rs` | docs/YIELDING.md; the one run of the program |

mod document;
mod survey;

use std::{collections::BTreeSet, fs, thread};

use neoc_abi::api::{MODULES, Module, Tag};

use self::survey::{Call, Returned, SURVEY};
use crate::support::{host::Host, upstream::Upstream};

/// Where a call may stand, in the order of the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    Handler,
    Task,
    Coroutine,
    ProtectedCall,
    Iterator,
    Module,
    /// Where Luau cannot yield.
    Unyieldable,
}

/// A place of `places.luau`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    name: &'static str,
    /// Of which it is an example.
    context: Context,
}

/// Where a call is made plainly: its result must be that at all places.
const PLAIN: Place = Place { name: "handler", context: Context::Handler };

/// All places.
const PLACES: [Place; 15] = [
    PLAIN,
    Place { name: "spawn", context: Context::Task },
    Place { name: "defer", context: Context::Task },
    Place { name: "finally", context: Context::Task },
    Place { name: "resume", context: Context::Coroutine },
    Place { name: "wrap", context: Context::Coroutine },
    Place { name: "generator", context: Context::Coroutine },
    Place { name: "pcall", context: Context::ProtectedCall },
    Place { name: "xpcall", context: Context::ProtectedCall },
    Place { name: "iterator", context: Context::Iterator },
    Place { name: "module", context: Context::Module },
    Place { name: "metamethod", context: Context::Unyieldable },
    Place { name: "comparator", context: Context::Unyieldable },
    Place { name: "callback", context: Context::Unyieldable },
    Place { name: "failure", context: Context::Unyieldable },
];

/// A function of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Function {
    /// See [`name_of`].
    module: &'static str,
    name: &'static str,
    tag: Tag,
}

/// All functions of the registry.
fn functions() -> impl Iterator<Item = Function> {
    let of = |module: &'static Module| {
        module.functions.iter().map(|&(name, tag)| Function { module: name_of(module), name, tag })
    };
    MODULES.iter().flat_map(of)
}

/// What a script requires; `globals` for what is in no module.
fn name_of(module: &Module) -> &'static str {
    if module.name.is_empty() { "globals" } else { module.name }
}

impl Function {
    fn label(self) -> String {
        label(self.module, self.name)
    }
}

/// A function's name in messages, such as `task.wait`, `channel:put` or `require`.
fn label(module: &str, name: &str) -> String {
    match module.split_once(':') {
        Some((_, module)) if !name.contains(':') => format!("{module}.{name}"),
        _ => name.to_owned(),
    }
}

/// How a call waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    /// Other tasks ran meanwhile.
    Yielding,
    /// The whole VM stood still.
    StandingStill,
}

/// Checks that a call has given what the plain call gave.
fn check_result(call: &Call) -> Result<&Returned, String> {
    let (returned, plain) = (call.returned.as_ref()?, SURVEY.plain(call.function).returned.as_ref()?);
    if returned.result == plain.result {
        Ok(returned)
    } else {
        Err(format!("returned {}, and plainly {}", returned.result, plain.result))
    }
}

/// How a call has waited, as far as it did so as it must, and had the result that it must have.
fn waited(call: &Call) -> Result<Waited, String> {
    let returned = check_result(call)?;
    match (call.place.context == Context::Unyieldable, call.n_stalls) {
        (true, 0) => Err("the VM did not stand still".to_owned()),
        (true, _) => Ok(Waited::StandingStill),
        (false, 0) if returned.ran_meanwhile.is_empty() => Err("no other task ran meanwhile".to_owned()),
        (false, 0) => Ok(Waited::Yielding),
        (false, _) => Err("the VM stood still".to_owned()),
    }
}

#[test]
fn every_function_of_the_registry_has_a_sample_call() {
    let registry: BTreeSet<_> = functions().map(Function::label).collect();
    let (missing, unknown): (Vec<_>, Vec<_>) =
        (registry.difference(&SURVEY.samples).collect(), SURVEY.samples.difference(&registry).collect());
    assert!(missing.is_empty(), "tests/contexts/script/calls has no sample calls of {missing:?}");
    assert!(unknown.is_empty(), "tests/contexts/script/calls has what the registry has not: {unknown:?}");
}

#[test]
fn every_tag_is_true() {
    for function in functions() {
        let returned = SURVEY.plain(function).returned.as_ref();
        let returned = returned.unwrap_or_else(|problem| panic!("{}: {problem}", function.label()));
        let found = if returned.ran_meanwhile.is_empty() { Tag::Never } else { Tag::Yields };
        let (label, tag, ran) = (function.label(), function.tag, &returned.ran_meanwhile);
        assert!(tag == found, "{label} is tagged {tag:?}, and the tasks that ran before it returned were: {ran:?}");
    }
}

/// Has a check look at some calls of functions that yield.
fn check_all<T>(which: impl Fn(&Call) -> bool, check: impl Fn(&Call) -> Result<T, String>) {
    let calls = SURVEY.calls.iter().filter(|call| call.function.tag == Tag::Yields && which(call));
    let problems: Vec<_> = calls.filter_map(|call| Some(format!("{call}: {}", check(call).err()?))).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_yielding_function_works_in_every_context() {
    check_all(|call| call.inner.is_none(), waited);
}

#[test]
fn a_place_may_be_inside_any_other() {
    // In a deferred task, what it waits for may have happened before.
    check_all(|call| call.inner.is_some(), |call| check_result(call).map(drop));
}

#[test]
fn where_luau_cannot_yield_each_call_counts_as_a_stall_and_each_place_is_logged_once() {
    let expected: u64 = SURVEY.calls.iter().map(|call| call.n_stalls).sum();
    assert!(expected > 0 && SURVEY.n_stalls == expected, "{} of {expected} stalls", SURVEY.n_stalls);
    let mut logged = BTreeSet::new();
    for line in &SURVEY.stall_lines {
        assert!(logged.insert(line), "logged twice: {line:?}");
    }
    for call in SURVEY.calls.iter().filter(|call| call.place.context == Context::Unyieldable && call.inner.is_none()) {
        assert!(SURVEY.stall_lines.iter().any(|line| call.is_in(line)), "{call}: not logged");
    }
}

/// A policy whose one tenant runs `script`, which may call the upstream. One thread runs all scripts.
fn start(upstream: &Upstream, script: &str) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\nworkers = 1\n\
         [tenant.a]\nscript = \"main.luau\"\nroutes = [\"/a\"]\n\
         [[tenant.a.allow.http]]\nhosts = [\"http://{}\"]\naddresses = [\"127.0.0.0/8\"]\n",
        upstream.address
    );
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    fs::write(folder.path().join("main.luau"), script.replace("UPSTREAM", &upstream.url(""))).unwrap();
    let host = Host::start(folder.path());
    (folder, host)
}

#[test]
fn a_vm_that_stands_still_holds_up_its_own_tasks_and_no_other_request() {
    let upstream = Upstream::start();
    let script = "local hyper, task = require('vnd:hyper'), require('std:task')
        local pages = setmetatable({}, { __index = function(_, path) return hyper.get('UPSTREAM' .. path).body end })
        return function(request)
            if request.query.gate then return pages['/gate/2'] end
            task.await_all({ task.spawn(function() return pages['/1'] end), task.spawn(function() return pages['/2'] end) })
            return 'both'
        end";
    let (_folder, host) = start(&upstream, script);
    assert_eq!((host.get("/a").body, upstream.requests(), upstream.most_at_once()), ("both".into(), 2, 1));
    thread::scope(|scope| {
        let requests = [0, 1].map(|_| scope.spawn(|| host.get("/a?gate=1").body));
        assert_eq!(requests.map(|request| request.join().unwrap()), ["together", "together"]);
    });
}
