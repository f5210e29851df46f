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
        }
    );
    let acme = policy.tenant("acme").expect("there");
    assert_eq!(acme.script, Path::new("policies/../examples/hello/main.luau"));
    assert_eq!((acme.limits.memory_bytes, acme.limits.connections.get()), (16 << 20, 8));
    assert_eq!((acme.limits.cpu.as_millis(), acme.limits.wall.as_secs()), (40, 20));
    assert_eq!((acme.limits.requests.count.get(), acme.limits.requests.per.as_secs()), (100, 1));
    assert_eq!((acme.limits.operations.count.get(), acme.limits.operations.per.as_secs()), (500, 60));
    assert_eq!(acme.allow.http.iter().map(|rule| rule.line).collect::<Vec<_>>(), [21, 26]);
    assert_eq!(acme.allow.fs.iter().map(|grant| grant.line).collect::<Vec<_>>(), [29, 34]);
    assert_eq!(acme.allow.kv, Some(kv::Grant { line: 39 }));
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
    let tenants = (0..10_000).map(|n| format!("[tenant.t{n}]\nscript = \"x.luau\"\nroutes = [\"/t{n}/*\", \"t{n}.localhost/*\"]\n"));
    let policy = parse(&tenants.collect::<String>());
    assert_eq!(policy.tenant("t9999").map(|tenant| tenant.name.as_str()), Some("t9999"));
    assert_eq!(policy.route(None, "/t777/x").map(|tenant| tenant.name.as_str()), Some("t777"));
    assert_eq!(policy.route(Some("t4242.localhost:8080"), "/").map(|tenant| tenant.name.as_str()), Some("t4242"));
}

#[test]
fn the_committed_policies_are_valid() {
    for (name, tenants) in [("minimal.toml", 1), ("commented.toml", 1)] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name);
        let source = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let policy = Policy::parse(&source, &file).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(policy.tenants.len(), tenants, "{name}");
    }
}

#[test]
fn the_commented_policy_shows_every_key() {
    let source = include_str!("../../../policies/commented.toml");
    let keys = [raw::HostToml::KEYS, raw::TenantToml::KEYS, raw::LimitsToml::KEYS, raw::AllowToml::KEYS, raw::HttpToml::KEYS, raw::FsToml::KEYS];
    use raw::TableToml as _;
    for (key, _) in keys.concat() {
        let shown = source.contains(&format!("{key} = ")) || source.contains(&format!(".{key}]"));
        assert!(shown, "{key}");
    }
}
