//! Each operation that a guest can ask for, against grants that do not cover it. The broker is asked itself, so that
//! what a guest would have refused before gets there too.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use neoc::{
    broker::Broker,
    policy::{Machine, Policy},
};
use neoc_abi::{
    Call, ErrorKind, Operation, Site, detach, fs, http, kv, module,
    narrowing::{self, Given, Narrowing},
    net::{self, Kind, Want},
    time, workers,
};

/// Grants that cover all operations of the table, by capability.
const FITTING: [(&str, &str); 6] = [
    ("http", "[[tenant.a.allow.http]]\nhosts = [\"https://a.example\"]\nmethods = [\"GET\"]\npaths = [\"/x/*\"]\n"),
    ("fs", "[[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"a\"\naccess = \"read-write\"\n"),
    ("kv", "[tenant.a.allow.kv]\n"),
    ("detach", "[tenant.a.allow.detach]\n"),
    ("workers", "[tenant.a.allow.workers]\n"),
    ("net", "[[tenant.a.allow.net]]\nhosts = [\"tcp://a.example:1\", \"udp://a.example:1\"]\n"),
];

/// Grants of the same capabilities that cover none of them. The others are all or nothing: there another tenant has
/// the grant.
const WRONG: [(&str, &str); 6] = [
    (
        "http",
        "[[tenant.a.allow.http]]\nhosts = [\"https://a.example\"]\nmethods = [\"POST\"]\n\
         [[tenant.a.allow.http]]\nhosts = [\"https://a.example\"]\npaths = [\"/y/*\"]\n\
         [[tenant.a.allow.http]]\nhosts = [\"http://a.example\", \"https://a.example:444\", \"https://*.a.example\"]\n",
    ),
    (
        "fs",
        "[[tenant.a.allow.fs]]\npath = \"/data/y\"\ndir = \"a\"\naccess = \"read-write\"\n\
         [[tenant.a.allow.fs]]\npath = \"/dat\"\ndir = \"b\"\naccess = \"read-write\"\n",
    ),
    ("kv", "[tenant.b.allow.kv]\n"),
    ("detach", "[tenant.b.allow.detach]\n"),
    ("workers", "[tenant.b.allow.workers]\n"),
    (
        "net",
        "[[tenant.a.allow.net]]\nhosts = [\"tls://a.example:1\", \"tcp://a.example:2\", \"udp://*.a.example:1\"]\n",
    ),
];

/// What an operation needs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Needs {
    /// A grant of this capability.
    Grant(&'static str),
    /// None: it reaches nothing that a grant is for.
    Nothing,
    /// None itself, but what it works on: a handle, which only an operation that needs a grant gives.
    Handle,
}

use Needs::{Grant, Handle, Nothing};

/// Makes the table, and with it a `match` over all operations: a new one does not compile without a row.
macro_rules! table {
    ($($pattern:pat => $needs:expr, $sample:expr;)*) => {
        /// The row of an operation, by its pattern.
        fn row_of(operation: &Operation) -> &'static str {
            match operation { $($pattern => stringify!($pattern),)* }
        }

        fn rows() -> Vec<(&'static str, Needs, Operation)> {
            vec![$((stringify!($pattern), $needs, $sample),)*]
        }
    };
}

table! {
    Operation::Http(http::Operation::Request(_)) => Grant("http"), Operation::Http(http::Operation::Request(request()));
    Operation::Fs(fs::Operation::Read { .. }) => Grant("fs"), Operation::Fs(fs::Operation::Read { path: path() });
    Operation::Fs(fs::Operation::Write { .. }) =>
        Grant("fs"), Operation::Fs(fs::Operation::Write { path: path(), content: b"x".to_vec() });
    Operation::Fs(fs::Operation::List { .. }) => Grant("fs"), Operation::Fs(fs::Operation::List { path: path() });
    Operation::Fs(fs::Operation::Remove { .. }) => Grant("fs"), Operation::Fs(fs::Operation::Remove { path: path() });
    Operation::Kv(kv::Operation::Get { .. }) => Grant("kv"), Operation::Kv(kv::Operation::Get { key: b"k".to_vec() });
    Operation::Kv(kv::Operation::Set { .. }) =>
        Grant("kv"), Operation::Kv(kv::Operation::Set { key: b"k".to_vec(), value: b"v".to_vec() });
    Operation::Kv(kv::Operation::Delete { .. }) =>
        Grant("kv"), Operation::Kv(kv::Operation::Delete { key: b"k".to_vec() });
    Operation::Detach(detach::Operation::Begin) => Grant("detach"), Operation::Detach(detach::Operation::Begin);
    Operation::Workers(workers::Operation::Run(_)) => Grant("workers"), Operation::Workers(workers::Operation::Run(work()));
    Operation::Net(net::Operation::Open { kind: Kind::Connection, .. }) =>
        Grant("net"), open(Kind::Connection, "tcp://a.example:1");
    Operation::Net(net::Operation::Open { kind: Kind::Socket, .. }) =>
        Grant("net"), open(Kind::Socket, "udp://a.example:1");
    Operation::Net(net::Operation::Read { .. }) =>
        Handle, Operation::Net(net::Operation::Read { handle: 1, want: Want::Any, timeout_ms: None });
    Operation::Net(net::Operation::Write { .. }) =>
        Handle, Operation::Net(net::Operation::Write { handle: 1, bytes: b"x".to_vec(), timeout_ms: None });
    Operation::Net(net::Operation::Shutdown { .. }) => Handle, Operation::Net(net::Operation::Shutdown { handle: 1 });
    Operation::Net(net::Operation::Send { .. }) =>
        Handle, Operation::Net(net::Operation::Send { handle: 1, bytes: b"x".to_vec() });
    Operation::Net(net::Operation::Receive { .. }) =>
        Handle, Operation::Net(net::Operation::Receive { handle: 1, timeout_ms: None });
    Operation::Net(net::Operation::Close { .. }) => Handle, Operation::Net(net::Operation::Close { handle: 1 });
    Operation::Time(time::Operation::Wait { .. }) => Nothing, Operation::Time(time::Operation::Wait { seconds: 0.0 });
    Operation::Module(module::Operation::Find { .. }) =>
        Nothing, Operation::Module(module::Operation::Find { paths: vec!["m.luau".into()] });
    Operation::Narrow(narrowing::Operation::Check { .. }) => Nothing, narrow();
}

fn request() -> http::Request {
    http::Request {
        method: "GET".into(),
        url: "https://a.example/x/1".into(),
        headers: vec![],
        secret_headers: vec![],
        body: None,
        timeouts: http::Timeouts::default(),
        decompress: false,
    }
}

fn narrow() -> Operation {
    let fields = vec![("prefix".into(), Given::Text("a:".into()))];
    Operation::Narrow(narrowing::Operation::Check { module: "std:kv".into(), narrowing: Narrowing { fields } })
}

fn path() -> String {
    "/data/x".into()
}

fn work() -> workers::Work {
    workers::Work { module: "./m".into(), file: "a.luau".into(), arguments: vec![].into() }
}

fn open(kind: Kind, target: &str) -> Operation {
    Operation::Net(net::Operation::Open { kind, target: target.into(), timeout_ms: None })
}

/// Tenant `a` with these grants, and tenant `b` beside it.
fn policy(grants: &str) -> Policy {
    let text = format!(
        "[tenant.a]\nscript = \"a.luau\"\nroutes = [\"/a\"]\n[tenant.b]\nscript = \"b.luau\"\nroutes = [\"/b\"]\n{grants}"
    );
    Policy::parse(&text, Path::new("policy.toml")).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// Every grant of the table that fits, but for this capability, where it is `instead`.
fn all_but(capability: &str, instead: &str) -> String {
    let others = FITTING.iter().filter(|(name, _)| *name != capability).map(|(_, grant)| *grant);
    others.chain([instead]).collect()
}

fn grant_in(table: &[(&'static str, &'static str)], capability: &str) -> &'static str {
    BTreeMap::from_iter(table.iter().copied())[capability]
}

/// What a new request of tenant `a` is told: the reason of its refusal, or that it may.
fn ask(broker: &Broker, policy: &Policy, operation: &Operation) -> Result<(), String> {
    let tenant: &Arc<_> = policy.tenant("a").unwrap();
    let caller = broker.caller(tenant, "request".into()).unwrap();
    let site = Some(Site { module: "a.luau".into(), line: 7 });
    match broker.authorize(&caller, Call { site, scope: 0, narrowing: None, operation: operation.clone() }) {
        Ok(_) => Ok(()),
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Denied, "{operation:?}: {}", error.message);
            assert!(error.rule.is_some() && error.capability.is_some() && error.target.is_some(), "{error:?}");
            Err(error.reason.unwrap())
        }
    }
}

#[test]
fn every_operation_is_denied_without_its_grant_with_a_wrong_one_and_once_it_is_taken_away() {
    for (row, needs, operation) in &rows() {
        assert_eq!(row_of(operation), *row, "{operation:?}");
        let Grant(capability) = *needs else { continue };
        let asked = |grants: &str| {
            let policy = policy(grants);
            ask(&Broker::new(&policy.tenants), &policy, operation)
        };
        // It is the grant that is missing below, and nothing else.
        let fitting = grant_in(&FITTING, capability);
        assert_eq!(asked(fitting), Ok(()), "{operation:?}");
        assert_eq!(asked(""), Err("not_granted".into()), "no grant: {operation:?}");
        assert_eq!(asked(&all_but(capability, "")), Err("not_granted".into()), "all others: {operation:?}");
        let wrong = asked(&all_but(capability, grant_in(&WRONG, capability)));
        let expected = match capability {
            "http" => ["method_not_allowed", "path_not_allowed", "host_not_allowed"].as_slice(),
            "fs" => &["path_not_granted"],
            "net" => &["host_not_allowed"],
            _ => &["not_granted"],
        };
        assert!(wrong.as_ref().is_err_and(|reason| expected.contains(&reason.as_str())), "{operation:?}: {wrong:?}");

        // A policy is replaced: new requests have what the new one grants.
        let (before, after) = (policy(fitting), policy(""));
        let broker = Broker::new(&before.tenants);
        assert_eq!(ask(&broker, &before, operation), Ok(()), "{operation:?}");
        let successor = broker.successor("2", Machine::default(), &after.tenants);
        assert_eq!(ask(&successor, &after, operation), Err("not_granted".into()), "taken away: {operation:?}");
    }
}

#[test]
fn what_needs_no_grant_works_on_what_one_gave_or_reaches_nothing() {
    let policy = policy("");
    let broker = Broker::new(&policy.tenants);
    let free: Vec<_> = rows().into_iter().filter(|(_, needs, _)| !matches!(needs, Grant(_))).collect();
    let n_nothing = free.iter().filter(|(_, needs, _)| *needs == Nothing).count();
    assert_eq!(n_nothing, 3, "waiting, a tenant's own modules, and whether a module can be narrowed so");
    for (_, _, operation) in &free {
        assert_eq!(ask(&broker, &policy, operation), Ok(()), "{operation:?}");
    }
}
