//! Whole policy files: the grammar, the exact text of every error, fixes that work, and files that are
//! broken at random.

use super::*;

/// A file with every key.
pub(super) const EXAMPLE: &str = r#"
[host]
listen = "127.0.0.1:8080"          # "127.0.0.1:0" picks a port
data_dir = "../data"
cache_dir = "../cache"
instances = 2000
workers = 2
preemption = "epoch"
audit = "../audit.jsonl"
[tenant.acme]
script = "../examples/hello/main.luau"
routes = ["/acme/*", "acme.localhost/*"]

[tenant.acme.limits]
memory = "16 MiB"
cpu = "40 ms"
wall = "20 s"
requests = "100/s"
operations = "500/m"
connections = 8
weight = 4

[[tenant.acme.allow.http]]
hosts = ["https://api.example.com", "http://127.0.0.1:9000"]
addresses = ["127.0.0.0/8"]
methods = ["GET", "POST"]

[[tenant.acme.allow.http]]
hosts = ["https://*.example.org"]

[[tenant.acme.allow.fs]]
path = "/data"
dir = "acme-data"
access = "read-write"

[[tenant.acme.allow.fs]]
path = "/public"
dir = "shared/public"
access = "read"

[tenant.acme.allow.kv]

[tenant.acme.allow.workers]
count = 3

[tenant.beta]
script = "/srv/beta.luau"
"#;

fn parse(source: &str) -> Policy {
    Policy::parse(source, Path::new("policies/demo.toml")).unwrap_or_else(|errors| panic!("{errors}\n{source}"))
}

/// What is wrong with a file, one line each.
fn errors(source: &str) -> Vec<String> {
    match Policy::parse(source, Path::new("p.toml")) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    }
}

#[test]
fn every_key_of_a_file_is_enforced_as_written() {
    let policy = parse(EXAMPLE);
    assert_eq!(
        policy.host,
        Host {
            listen: "127.0.0.1:8080".parse().expect("an address"),
            data_dir: "policies/../data".into(),
            cache_dir: Some("policies/../cache".into()),
            instances: 2000,
            workers: std::num::NonZeroUsize::new(2),
            preemption: Preemption::Epoch,
            audit: Some("policies/../audit.jsonl".into()),
            dns: Vec::new(),
        }
    );
    let acme = policy.tenant("acme").expect("there");
    assert_eq!(acme.script, Path::new("policies/../examples/hello/main.luau"));
    assert_eq!((acme.limits.memory_bytes, acme.limits.connections.get()), (16 << 20, 8));
    assert_eq!(acme.limits.weight.get(), 4);
    assert_eq!((acme.limits.cpu.as_millis(), acme.limits.wall.as_secs()), (40, 20));
    assert_eq!((acme.limits.requests.count.get(), acme.limits.requests.per.as_secs()), (100, 1));
    assert_eq!((acme.limits.operations.count.get(), acme.limits.operations.per.as_secs()), (500, 60));
    assert_eq!(acme.allow.http.iter().map(|rule| rule.line).collect::<Vec<_>>(), [23, 28]);
    assert_eq!(acme.allow.fs.iter().map(|grant| grant.line).collect::<Vec<_>>(), [31, 36]);
    assert_eq!(acme.allow.kv, Some(kv::Grant { line: 41 }));
    let count = std::num::NonZeroU32::new(3).expect("not 0");
    assert_eq!(acme.allow.workers, Some(workers::Grant { count, line: 43 }));
    let beta = policy.tenant("beta").expect("there");
    assert_eq!((beta.script.as_path(), beta.limits.clone()), (Path::new("/srv/beta.luau"), Limits::default()));
    assert!(beta.allow.http.is_empty() && beta.allow.fs.is_empty() && beta.allow.kv.is_none());
    assert!(policy.tenant("gamma").is_none());
}

#[test]
fn requests_go_to_the_tenant_that_owns_the_route() {
    let policy = parse(EXAMPLE);
    let owner = |host, path| policy.route(host, path).map(|tenant| tenant.name.clone());
    assert_eq!(owner(None, "/acme/x"), Some("acme".to_owned()));
    assert_eq!(owner(Some("ACME.localhost:8080"), "/"), Some("acme".to_owned()));
    assert_eq!(owner(Some("127.0.0.1:8080"), "/"), None);
}

#[test]
fn an_empty_file_denies_everything() {
    let policy = parse("");
    assert!(policy.tenants.is_empty());
    assert!(policy.route(None, "/").is_none());
    assert!(policy.host.listen.ip().is_loopback());
}

#[test]
fn ten_thousand_tenants_are_found_by_name_and_by_route() {
    let tenants = (0..10_000)
        .map(|n| format!("[tenant.t{n}]\nscript = \"x.luau\"\nroutes = [\"/t{n}/*\", \"t{n}.localhost/*\"]\n"));
    let policy = parse(&tenants.collect::<String>());
    assert_eq!(policy.tenant("t9999").map(|tenant| tenant.name.as_str()), Some("t9999"));
    assert_eq!(policy.route(None, "/t777/x").map(|tenant| tenant.name.as_str()), Some("t777"));
    assert_eq!(policy.route(Some("t4242.localhost:8080"), "/").map(|tenant| tenant.name.as_str()), Some("t4242"));
}

#[test]
fn the_committed_policies_are_valid() {
    for source in [include_str!("../../../policies/minimal.toml"), include_str!("../../../policies/commented.toml")] {
        assert_eq!(parse(source).tenants.len(), 1);
    }
}

#[test]
fn the_commented_policy_shows_every_key() {
    let source = include_str!("../../../policies/commented.toml");
    let keys = [
        raw::HostToml::KEYS,
        raw::TenantToml::KEYS,
        raw::LimitsToml::KEYS,
        raw::AllowToml::KEYS,
        raw::HttpToml::KEYS,
        raw::FsToml::KEYS,
        raw::DetachToml::KEYS,
        raw::WorkersToml::KEYS,
    ];
    use raw::TableToml as _;
    for (key, _) in keys.concat() {
        let shown = source.contains(&format!("{key} = ")) || source.contains(&format!(".{key}]"));
        assert!(shown, "{key}");
    }
}

#[test]
fn every_error_names_place_key_value_rule_and_what_to_write() {
    let found = errors(include_str!("tests/broken.toml"));
    let expected: Vec<&str> = include_str!("tests/broken.txt").lines().collect();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len(), "{}", found.join("\n"));
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_its_line() {
    for (source, expected) in [
        ("\u{feff}[host]", "p.toml:1:1: the file starts with a byte order mark; save it as UTF-8 without BOM"),
        ("a = ", "p.toml:1:5: not TOML: string values must be quoted, expected literal string"),
        ("[host]\ninstances = 1\ninstances = 2", "p.toml:3:1: not TOML: duplicate key"),
        ("[tenant.a]\n[tenant.b]\n[tenant.a]", "p.toml:3:9: not TOML: duplicate key"),
        ("\n[host", "p.toml:2:6: not TOML: unclosed table, expected `]`"),
        (
            "[host]\nlisten = \"x\u{1b}[2J\"",
            "p.toml:2:12: not TOML: invalid basic string, expected non-double-quote visible characters, `\\`",
        ),
        ("host = 3", "p.toml:1:8: host = 3: a table, under a header of its own; write for example [host]"),
        ("tenant = 4", "p.toml:1:10: tenant = 4: a table, under a header of its own; write for example [tenant.acme]"),
        (
            "[tenant]\nscript = 1",
            "p.toml:2:10: tenant.script = 1: a table, under a header of its own; write for example [tenant.script]",
        ),
        (
            "[host]\ninstances = 99999999999999999999",
            "p.toml:2:13: host.instances = 99999999999999999999: a whole number; write for example 1000",
        ),
        ("[host]\nworkers = 1979-05-27", "p.toml:2:11: host.workers = 1979-05-27: a whole number; write for example 2"),
    ] {
        assert_eq!(errors(source), [expected]);
    }
}

#[test]
fn a_file_full_of_errors_is_refused_quickly() {
    let hosts = "\"*\",".repeat(200_000);
    let tenants: String = (0..60_000).map(|n| format!("[tenant.t{n}]\n")).collect();
    let unknown: String = (0..100_000).map(|n| format!("k{n}=1\n")).collect();
    let started = std::time::Instant::now();
    for source in [format!("[[tenant.a.allow.http]]\nhosts = [{hosts}]"), tenants, unknown] {
        assert_eq!(errors(&source).len(), 1_000);
    }
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

// === Fixes ===

/// A policy under which each call of [`each_fix_allows_its_call`] is refused for another reason.
const STRICT: &str = r#"
[tenant.acme]
script = "a.luau"

[[tenant.acme.allow.http]]
hosts = ["https://api.example.com", "http://127.0.0.1:9000", "http://127.0.0.1:9001", "http://localhost:9000", "http://[::1]:9000"]
addresses = ["127.0.0.1/32"]
methods = ["GET"]

[[tenant.acme.allow.http]]
hosts = ["http://10.0.0.1", "http://x.localhost:9000", "https://db.internal", "http://[64:ff9b::7f00:1]"]

[[tenant.acme.allow.fs]]
path = "/data"
dir = "acme-data"
access = "read"

[tenant.zoe]
script = "z.luau"
"#;

/// A call and what is decided on it.
type Ask = Box<dyn Fn(&Tenant) -> Result<(), Refusal>>;

fn http_call(method: &'static str, url: &'static str) -> Ask {
    Box::new(move |tenant| {
        let url = http::parse_target(url).expect(url);
        http::decide(&tenant.allow.http, method, &url).map(drop).map_err(|refusal| refusal.with_fix(tenant))
    })
}

fn http_connection(url: &'static str, address: &'static str) -> Ask {
    Box::new(move |tenant| {
        let (url, address) = (http::parse_target(url).expect(url), address.parse().expect(address));
        let rules = &tenant.allow.http;
        let matched = http::decide(rules, "GET", &url)?;
        http::check_address(rules, &matched, "GET", &url, address).map_err(|refusal| refusal.with_fix(tenant))
    })
}

fn fs_call(path: &'static str, writes: bool) -> Ask {
    Box::new(move |tenant| {
        fs::decide(&tenant.allow.fs, path, writes).map(drop).map_err(|refusal| refusal.with_fix(tenant))
    })
}

fn kv_call() -> Ask {
    Box::new(|tenant| kv::decide(tenant.allow.kv.as_ref(), "k").map(drop).map_err(|refusal| refusal.with_fix(tenant)))
}

fn workers_call() -> Ask {
    Box::new(|tenant| {
        workers::decide(tenant.allow.workers.as_ref(), "./m").map(drop).map_err(|refusal| refusal.with_fix(tenant))
    })
}

fn refused(source: &str, name: &str, ask: &Ask) -> Option<Refusal> {
    ask(parse(source).tenant(name).expect(name)).err()
}

#[test]
fn each_fix_allows_its_call() {
    for (tenant, reason, ask) in [
        ("zoe", Reason::NotGranted, http_call("GET", "https://api.example.com/x")),
        ("zoe", Reason::NotGranted, http_call("PUT", "https://api.example.com:8443/x?y")),
        ("zoe", Reason::NotGranted, http_call("GET", "http://127.0.0.1:9000/x")),
        ("acme", Reason::HostNotAllowed, http_call("GET", "https://other.example.com/")),
        ("acme", Reason::HostNotAllowed, http_call("GET", "http://api.example.com/")),
        ("acme", Reason::HostNotAllowed, http_call("GET", "http://192.168.0.1/")),
        ("acme", Reason::HostNotAllowed, http_call("GET", "http://[fd12::1]:99/")),
        ("acme", Reason::HostNotAllowed, http_call("GET", "http://[::ffff:7f00:2]/")),
        ("acme", Reason::HostNotAllowed, http_call("GET", "http://[2002:7f00:1::]/")),
        ("acme", Reason::HostNotAllowed, http_call("GET", "http://localhost:9001/")),
        ("acme", Reason::MethodNotAllowed, http_call("POST", "https://api.example.com/")),
        ("acme", Reason::MethodNotAllowed, http_call("POST", "http://127.0.0.1:9001/")),
        ("acme", Reason::MethodNotAllowed, http_call("POST", "http://localhost:9000/")),
        ("acme", Reason::AddressNotAllowed, http_call("GET", "http://10.0.0.1/")),
        ("acme", Reason::AddressNotAllowed, http_call("GET", "http://[::1]:9000/")),
        ("acme", Reason::AddressNotAllowed, http_call("GET", "http://x.localhost:9000/")),
        ("acme", Reason::AddressNotAllowed, http_call("GET", "http://[64:ff9b::7f00:1]/")),
        ("acme", Reason::PathNotGranted, fs_call("/other/x.txt", false)),
        ("acme", Reason::PathNotGranted, fs_call("/other", false)),
        ("acme", Reason::PathNotGranted, fs_call("/other/a/b/x.txt", true)),
        ("acme", Reason::PathNotGranted, fs_call("/x.txt", false)),
        ("acme", Reason::PathNotGranted, fs_call("/x", true)),
        ("acme", Reason::PathNotGranted, fs_call("/my \"files\"/x", true)),
        ("acme", Reason::PathNotWritable, fs_call("/data/a/b.txt", true)),
        ("zoe", Reason::NotGranted, fs_call("/data/x", false)),
        ("zoe", Reason::NotGranted, fs_call("/data/x", true)),
        ("zoe", Reason::NotGranted, kv_call()),
        ("zoe", Reason::NotGranted, workers_call()),
    ] {
        let refusal = refused(STRICT, tenant, &ask).expect("refused under the strict policy");
        assert_eq!(refusal.reason, reason, "{refusal}");
        let fix = refusal.fix.clone().unwrap_or_else(|| panic!("{refusal}: no fix"));
        assert_eq!(refusal.operator_fix(), Some(fix.as_str()));
        let after = refused(&format!("{STRICT}{fix}"), tenant, &ask);
        assert!(after.is_none(), "{refusal}\n{fix}{after:?}");
        // The other tenant gets nothing by it.
        let other = if tenant == "acme" { "zoe" } else { "acme" };
        let (before, after) =
            (refused(STRICT, other, &ask).is_some(), refused(&format!("{STRICT}{fix}"), other, &ask).is_some());
        assert_eq!(before, after, "{refusal}\n{fix}");
    }
}

#[test]
fn a_fix_that_tells_a_resolved_address_is_the_operators() {
    let ask = http_connection("https://db.internal/", "10.0.0.5");
    let refusal = refused(STRICT, "acme", &ask).expect("private");
    assert_eq!((refusal.reason, &refusal.fix), (Reason::AddressNotAllowed, &None));
    let fix = refusal.operator_fix().expect("the operator may know");
    assert!(refused(&format!("{STRICT}{fix}"), "acme", &ask).is_none(), "{fix}");
}

#[test]
fn what_nothing_can_allow_has_no_fix() {
    for ask in [
        http_call("GET", "http://169.254.169.254/latest/meta-data"),
        http_call("GET", "http://[fe80::1]/"),
        http_call("GET", "http://[::ffff:a9fe:a9fe]/"),
        http_call("CONNECT", "https://api.example.com/"),
        http_connection("https://db.internal/", "169.254.169.254"),
        fs_call("/data/../x", false),
    ] {
        let refusal = refused(STRICT, "acme", &ask).expect("refused");
        assert_eq!((&refusal.fix, refusal.operator_fix()), (&None, None), "{refusal}");
    }
}

#[test]
fn a_refusal_names_the_rule_that_came_nearest() {
    let rule = |ask: Ask| refused(STRICT, "acme", &ask).expect("refused").rule;
    assert_eq!(
        rule(http_call("POST", "https://api.example.com/")).as_deref(),
        Some("tenant.acme.allow.http[0], line 5")
    );
    assert_eq!(rule(http_call("GET", "http://10.0.0.1/")).as_deref(), Some("tenant.acme.allow.http[1], line 10"));
    assert_eq!(rule(fs_call("/data/x", true)).as_deref(), Some("tenant.acme.allow.fs[0], line 13"));
    assert_eq!(rule(http_call("GET", "https://other.example.com/")), None);
}

// === Files that are broken at random ===

/// Numbers without a pattern that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % end.max(1)
    }
}

#[test]
fn ten_thousand_broken_files_are_refused_or_parsed_and_never_panic() {
    let pieces = [
        "\"",
        "[",
        "]",
        "[[",
        "]]",
        "=",
        ".",
        "\n",
        "#",
        "{",
        "}",
        ",",
        "'",
        "\"\"\"",
        "\\",
        "\\u0000",
        "\0",
        "\u{feff}",
        "é",
        "\u{202e}",
        "-1",
        "0",
        "1e9",
        "99999999999999999999",
        "*",
        "/",
        "//",
        "..",
        "%2e",
        " ",
        "\t",
        "MiB",
        "http://",
        "[::1]",
        "tenant",
        "acme",
        "allow",
        "true",
        "inf",
        "1979-05-27",
    ];
    let mut random = Random(1);
    for round in 0..10_000 {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for _ in 0..=random.below(4) {
            let at = random.below(text.len());
            let end = (at + random.below(24)).min(text.len());
            match random.below(4) {
                0 => drop(text.drain(at..end)),
                1 => drop(text.splice(at..end, pieces[random.below(pieces.len())].chars())),
                2 => drop(text.splice(at..at, pieces[random.below(pieces.len())].chars())),
                // Moves a piece elsewhere, which makes keys and tables double or strange.
                _ => {
                    let copy: Vec<char> = text[at..end].to_vec();
                    let to = random.below(text.len());
                    drop(text.splice(to..to, copy));
                }
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(errors) = Policy::parse(&text, Path::new("p.toml")) {
            assert!(errors.iter().all(|error| error.line >= 1 && error.column >= 1), "round {round}: {errors}");
            assert!(errors.to_string().lines().count() == errors.iter().count(), "round {round}: {errors}");
        }
    }
}
