//! Whole policy files: the grammar, the exact text of every error, and files that are broken at random.
//!
//! | module | holds |
//! |---|---|
//! | `fixes` | fixes that work, and give nothing else |
//! | `spellings` | URLs, beside the judgement of another library |

mod fixes;
mod spellings;

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
    let at = |line| Place::new(Path::new("policies/demo.toml"), line);
    let acme = policy.tenant("acme").expect("there");
    assert_eq!(acme.script, Path::new("policies/../examples/hello/main.luau"));
    assert_eq!((acme.limits.memory_bytes, acme.limits.connections.get()), (16 << 20, 8));
    assert_eq!(acme.limits.weight.get(), 4);
    assert_eq!((acme.limits.cpu.as_millis(), acme.limits.wall.as_secs()), (40, 20));
    assert_eq!((acme.limits.requests.count.get(), acme.limits.requests.per.as_secs()), (100, 1));
    assert_eq!((acme.limits.operations.count.get(), acme.limits.operations.per.as_secs()), (500, 60));
    assert_eq!(acme.allow.http.iter().map(|rule| rule.place.line).collect::<Vec<_>>(), [23, 28]);
    assert_eq!(acme.allow.fs.iter().map(|grant| grant.place.line).collect::<Vec<_>>(), [31, 36]);
    assert_eq!(acme.allow.kv, Some(kv::Grant { place: at(41) }));
    let count = std::num::NonZeroU32::new(3).expect("not 0");
    assert_eq!(acme.allow.workers, Some(workers::Grant { count, place: at(43) }));
    let beta = policy.tenant("beta").expect("there");
    assert_eq!((beta.script.as_path(), beta.limits.clone()), (Path::new("/srv/beta.luau"), Limits::default()));
    assert!(beta.allow.http.is_empty() && beta.allow.fs.is_empty() && beta.allow.kv.is_none());
    assert!(policy.tenant("gamma").is_none());
}

#[test]
fn every_limit_is_enforced_as_written() {
    let numbers =
        "pending_operations = 1\ntasks = 2\ntimers = 3\nconnections = 4\nsubrequests = 5\nweight = 6\nfs_files = 7\n";
    let sizes = "egress = \"1 KiB\"\ningress = \"2 KiB\"\nrequest_body = \"3 B\"\nresponse_body = \"4 B\"\n\
        log_line = \"85 B\"\nkv = \"6 KiB\"\nkv_value = \"7 B\"\nfs = \"8 KiB\"\nmemory = \"9 MiB\"\n";
    let others = "log = \"10 KiB/m\"\nrequests = \"11/h\"\noperations = \"12/m\"\ncpu = \"13 ms\"\nwall = \"14 s\"\n";
    let policy = parse(&format!(
        "[tenant.a]\nscript = \"a.luau\"\n[tenant.a.limits]\n{numbers}{sizes}{others}\
         [tenant.a.allow.log]\nlevel = \"warn\"\n"
    ));
    let tenant = policy.tenant("a").expect("there");
    let count = |n| std::num::NonZeroU32::new(n).expect("not 0");
    let rate = |n, seconds| Rate { count: count(n), per: std::time::Duration::from_secs(seconds) };
    let expected = Limits {
        pending_operations: count(1),
        tasks: count(2),
        timers: count(3),
        connections: count(4),
        subrequests: count(5),
        weight: count(6),
        fs_files: 7,
        egress_bytes: 1 << 10,
        ingress_bytes: 2 << 10,
        request_body_bytes: 3,
        response_body_bytes: 4,
        log_line_bytes: 85,
        kv_bytes: 6 << 10,
        kv_value_bytes: 7,
        fs_bytes: 8 << 10,
        memory_bytes: 9 << 20,
        log: rate(10 << 10, 60),
        requests: rate(11, 3600),
        operations: rate(12, 60),
        cpu: std::time::Duration::from_millis(13),
        wall: std::time::Duration::from_secs(14),
    };
    assert_eq!(tenant.limits, expected);
    assert_eq!(tenant.allow.log, log::Grant { level: neoc_abi::log::Level::Warn });
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
fn a_tenant_starts_from_its_profile_and_the_defaults() {
    let policy = parse(
        r#"[defaults.limits]
memory = "16 MiB"
cpu = "40 ms"
wall = "20 s"
[defaults.allow.kv]
[[defaults.allow.http]]
hosts = ["https://default.example"]
[[defaults.deny.http]]
hosts = ["https://admin.example"]

[profile.web]
mode = "report"
[profile.web.limits]
cpu = "30 ms"
wall = "10 s"
[profile.web.allow.workers]
count = 2
[[profile.web.allow.http]]
hosts = ["https://web.example"]

[tenant.acme]
script = "a.luau"
extends = "web"
mode = "enforce"
[tenant.acme.limits]
wall = "5 s"
[tenant.acme.allow.workers]
count = 3
[[tenant.acme.allow.http]]
hosts = ["https://acme.example", "https://admin.example"]

[tenant.beta]
script = "b.luau"
extends = "web"

[tenant.gamma]
script = "c.luau"
"#,
    );
    let shown = |name: &str| {
        let Tenant { limits, mode, allow, .. } = &**policy.tenant(name).expect(name);
        let rules: Vec<_> = allow.http.iter().map(|rule| rule.place.line).collect();
        let workers = allow.workers.as_ref().map(|grant| (grant.count.get(), grant.place.line));
        let (cpu, wall) = (limits.cpu.as_millis(), limits.wall.as_secs());
        (limits.memory_bytes >> 20, cpu, wall, *mode, rules, workers, allow.kv.as_ref().map(|grant| grant.place.line))
    };
    assert_eq!(shown("acme"), (16, 30, 5, Mode::Enforce, vec![29, 18, 6], Some((3, 27)), Some(5)));
    assert_eq!(shown("beta"), (16, 30, 10, Mode::Report, vec![18, 6], Some((2, 16)), Some(5)));
    assert_eq!(shown("gamma"), (16, 40, 20, Mode::Enforce, vec![6], None, Some(5)));
    let url = http::parse_target("https://admin.example/").expect("a URL");
    let refusal = http::decide(&policy.tenant("acme").expect("there").allow.http, &Machine::default(), "GET", &url)
        .expect_err("denied");
    assert_eq!(refusal.reason, Reason::DeniedByRule, "no tenant gets round what the defaults deny");
    assert_eq!(refusal.rule.map(|rule| rule.line), Some(8));
}

#[test]
fn what_is_wrong_in_a_profile_is_said_once_and_where_it_stands() {
    let found = errors(
        "[profile.web.limits]\nmemory = \"1 MiB\"\n[[profile.web.allow.http]]\nhosts = [\"*\"]\n\
         [tenant.a]\nscript = \"a.luau\"\nextends = \"web\"\n[tenant.b]\nscript = \"b.luau\"\nextends = \"web\"\n\
         [tenant.c]\nscript = \"c.luau\"\nextends = \"wbe\"\n[profile.Bad]\n[profile.other]\nextends = \"web\"\n",
    );
    assert_eq!(
        found,
        [
            "p.toml:2:10: profile.web.limits.memory = \"1 MiB\": at least 8 MiB, which the VM itself needs; write for example \"32 MiB\"",
            "p.toml:4:10: profile.web.allow.http[0].hosts[0] = \"*\": a bare * allows every host; name the hosts; write for example \"https://api.example.com\"",
            "p.toml:13:11: tenant.c.extends = \"wbe\": there is no such profile; the profiles are Bad, other, web",
            "p.toml:14:10: profile.Bad: a profile's name is 1 to 63 of a-z, 0-9 and -; write for example [profile.web]",
            "p.toml:16:1: profile.other.extends: unknown key; the keys here are limits, mode, isolation, allow, deny",
        ]
    );
    let nothing = errors("[tenant.a]\nscript = \"a.luau\"\nextends = \"web\"\n");
    assert_eq!(
        nothing,
        [
            "p.toml:3:11: tenant.a.extends = \"web\": there is no such profile; write one, under [profile.NAME], or leave this out"
        ]
    );
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

/// Calls `each` for every key of a table and of those below it.
pub(super) fn all_keys(keys: &[keys::Key], each: &mut dyn FnMut(&keys::Key)) {
    for key in keys {
        each(key);
        if let keys::Form::Table(keys) | keys::Form::Tables(keys) | keys::Form::Named(keys, _) = key.form {
            all_keys(keys, each);
        }
    }
}

#[test]
fn the_commented_policy_shows_every_key() {
    let source = include_str!("../../../policies/commented.toml");
    all_keys(Policy::keys(), &mut |key| {
        let forms = [
            format!("{} = ", key.name),
            format!("{}]", key.name),
            format!("[{}.", key.name),
            format!(".{}.", key.name),
        ];
        assert!(forms.iter().any(|form| source.contains(form)), "{}", key.name);
    });
}

#[test]
fn every_error_names_place_key_value_rule_and_what_to_write() {
    let found = errors(include_str!("tests/broken.toml"));
    if std::env::var_os("NEOC_UPDATE").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/policy/tests/broken.txt");
        std::fs::write(file, found.join("\n") + "\n").expect("written");
        return;
    }
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
            assert!(errors.iter().all(|error| error.place.line >= 1 && error.column >= 1), "round {round}: {errors}");
            assert!(errors.to_string().lines().count() == errors.iter().count(), "round {round}: {errors}");
        }
    }
}
