//! What would allow a refused call: its fix works, and gives nothing else.

use super::*;

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

[[tenant.acme.allow.http]]
hosts = ["https://paths.example.com", "https://denied.example.com"]
paths = ["/v1/*"]

[[tenant.acme.deny.http]]
hosts = ["https://denied.example.com"]

[[tenant.acme.allow.fs]]
path = "/data"
dir = "acme-data"
access = "read"

[[tenant.acme.deny.fs]]
path = "/data/private"

[tenant.zoe]
script = "z.luau"
"#;

/// A call and what is decided on it.
type Ask = Box<dyn Fn(&Tenant) -> Result<(), Refusal>>;

fn http_call(method: &'static str, url: &'static str) -> Ask {
    Box::new(move |tenant| {
        let url = http::parse_target(url).expect(url);
        http::decide(&tenant.allow.http, &Machine::default(), method, &url)
            .map(drop)
            .map_err(|refusal| refusal.with_fix(tenant))
    })
}

fn http_connection(url: &'static str, address: &'static str) -> Ask {
    Box::new(move |tenant| {
        let (url, address) = (http::parse_target(url).expect(url), address.parse().expect(address));
        let rules = &tenant.allow.http;
        let matched = http::decide(rules, &Machine::default(), "GET", &url)?;
        http::check_address(rules, &Machine::default(), &matched, "GET", &url, address)
            .map_err(|refusal| refusal.with_fix(tenant))
    })
}

fn fs_call(path: &'static str, writes: bool) -> Ask {
    Box::new(move |tenant| {
        fs::decide(&tenant.allow.fs, &tenant.deny.fs, path, writes)
            .map(drop)
            .map_err(|refusal| refusal.with_fix(tenant))
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
        ("acme", Reason::PathNotAllowed, http_call("GET", "https://paths.example.com/v2/x")),
        ("acme", Reason::PathNotAllowed, http_call("GET", "https://paths.example.com/v1//x")),
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
fn a_fix_allows_its_call_and_no_neighbour_of_it() {
    let calls = [
        ("POST", "https://api.example.com/v1/x"),
        ("GET", "https://other.example.com/v1/x?q=1"),
        ("GET", "http://192.168.0.1:81/v1/x"),
        ("GET", "http://10.0.0.1/v1/x"),
    ];
    for call in calls {
        let (method, text) = call;
        let refusal = refused(STRICT, "acme", &http_call(method, text)).expect("refused under the strict policy");
        let fixed = format!("{STRICT}{}", refusal.fix.expect("it has a fix"));
        assert!(refused(&fixed, "acme", &http_call(method, text)).is_none(), "{fixed}");
        let other = |from: &str, to: &str| -> (&'static str, &'static str) { (method, text.replace(from, to).leak()) };
        let neighbours = [
            other("/v1/x", "/v1/y"),
            other("/v1/x", "/v1/x/y"),
            other("/v1/x", "/v1"),
            other("/v1/x", "/v1/%78"),
            other("com/", "com:8081/"),
            other("0.1", "0.2"),
            other("://", "://sub."),
            ("PUT", text),
        ];
        for (method, neighbour) in neighbours {
            let Ok(url) = http::parse_target(neighbour) else { continue };
            // An address has no `com`, a name no `0.1`.
            if (method, neighbour) == (call.0, call.1) {
                continue;
            }
            let policy = parse(&fixed);
            let rules = &policy.tenant("acme").expect("it is there").allow.http;
            assert!(http::decide(rules, &Machine::default(), method, &url).is_err(), "{method} {neighbour}\n{fixed}");
        }
    }
}

#[test]
fn a_fix_says_where_it_allows_more_paths_than_the_one_that_was_asked_for() {
    let fix =
        |url| refused(STRICT, "zoe", &http_call("GET", url)).and_then(|refusal| refusal.fix).expect("it has a fix");
    for (url, expected) in [
        ("https://a.example/v1", "paths = [\"/v1\"]\n"),
        ("https://a.example/v1/*", "# every path below is allowed\npaths = [\"/v1/*\"]\n"),
        ("https://a.example/*", "# every path below is allowed\npaths = [\"/*\"]\n"),
        ("https://a.example/*/x", "# every path is allowed\n"),
        ("https://a.example/v1//x", "# every path is allowed\n"),
    ] {
        let fix = fix(url);
        assert_eq!(fix.split_once("methods = [\"GET\"]\n").map(|(_, paths)| paths), Some(expected), "{url}");
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
        http_call("GET", "https://denied.example.com/v1/x"),
        fs_call("/data/private/x", false),
        // A directory that is granted, for reading too, and the one that would be.
        fs_call("/data", true),
        fs_call("/", true),
    ] {
        let refusal = refused(STRICT, "acme", &ask).expect("refused");
        assert_eq!((&refusal.fix, refusal.operator_fix()), (&None, None), "{refusal}");
    }
}

#[test]
fn a_refusal_names_the_rule_that_came_nearest() {
    let rule = |ask: Ask| refused(STRICT, "acme", &ask).expect("refused").rule.map(|place| place.to_string());
    assert_eq!(rule(http_call("POST", "https://api.example.com/")).as_deref(), Some("policies/demo.toml:5"));
    assert_eq!(rule(http_call("GET", "http://10.0.0.1/")).as_deref(), Some("policies/demo.toml:10"));
    assert_eq!(rule(fs_call("/data/x", true)).as_deref(), Some("policies/demo.toml:20"));
    assert_eq!(rule(http_call("GET", "https://denied.example.com/")).as_deref(), Some("policies/demo.toml:17"));
    assert_eq!(rule(fs_call("/data/private", false)).as_deref(), Some("policies/demo.toml:25"));
    assert_eq!(rule(http_call("GET", "https://other.example.com/")), None);
}

#[test]
fn an_address_is_refused_alike_where_no_rule_matched_as_in_report_mode() {
    let url = http::parse_target("https://db.internal/").expect("a URL");
    let matched = http::HttpMatch::none();
    let policy = parse(STRICT);
    let tenant = policy.tenant("zoe").expect("there");
    let refuse = |address: &str| {
        let address = address.parse().expect(address);
        http::check_address(&tenant.allow.http, &Machine::default(), &matched, "GET", &url, address)
            .expect_err("not public")
            .with_fix(tenant)
    };
    let private = refuse("10.0.0.5");
    assert!(private.operator_fix().is_some_and(|fix| fix.contains("addresses = [\"10.0.0.5/32\"]")), "{private}");
    let never = refuse("169.254.169.254");
    assert_eq!((never.reason, never.is_open_to_rules()), (Reason::AddressNeverAllowed, false));
}
