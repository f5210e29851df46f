//! What a decision of the policy costs with 1,000 rules: no allocation when it refuses, and how long it takes, which
//! is printed and not asserted: `cargo test --test decision -- --nocapture`.

use std::{
    alloc::System,
    fmt::Write as _,
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use neoc::policy::{
    Machine, Policy,
    http::{parse_target, verdict},
    refusal::Reason,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const RULES: usize = 1000;

/// 1,000 rules: a third for hosts of their own, a third for subdomains, a third for paths of one host; some deny.
fn policy() -> Policy {
    let mut text = String::from("[tenant.a]\nscript = \"a.luau\"\n");
    for rule in 0..RULES {
        let (table, host) = match rule % 10 {
            9 => ("deny", format!("https://denied-{rule}.example.com")),
            0..3 => ("allow", format!("https://host-{rule}.example.com")),
            3..6 => ("allow", format!("https://*.zone-{rule}.example.com")),
            _ => ("allow", "https://api.example.com".to_owned()),
        };
        let paths =
            if host.ends_with("api.example.com") { format!("paths = [\"/v{rule}/*\"]\n") } else { String::new() };
        write!(text, "[[tenant.a.{table}.http]]\nhosts = [\"{host}\"]\nmethods = [\"GET\", \"PUT\"]\n{paths}")
            .expect("a string takes all");
    }
    text.push_str(
        "[[tenant.a.allow.http]]\nhosts = [\"http://8.8.4.7\", \"http://127.0.0.1:8080\", \"http://127.0.0.1:8081\"]\n\
         addresses = [\"127.0.0.0/8\"]\n",
    );
    Policy::parse(&text, Path::new("policy.toml")).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What each call must come to; `None`: allowed.
const CALLS: [(&str, &str, Option<Reason>); 15] = [
    ("GET", "https://host-501.example.com/x", None),
    ("GET", "https://a.b.zone-993.example.com/x", None),
    ("GET", "https://api.example.com/v998/x/y", None),
    ("GET", "https://other.example.com/x", Some(Reason::HostNotAllowed)),
    ("GET", "https://a.b.c.d.e.f.g.h.other.example.com/x", Some(Reason::HostNotAllowed)),
    ("GET", "http://host-501.example.com/x", Some(Reason::HostNotAllowed)),
    ("GET", "https://169.254.169.254/latest", Some(Reason::HostNotAllowed)),
    ("POST", "https://host-501.example.com/x", Some(Reason::MethodNotAllowed)),
    ("POST", "https://api.example.com/v998/x", Some(Reason::MethodNotAllowed)),
    ("GET", "https://api.example.com/w/a/b/c/d/e/f/g/h", Some(Reason::PathNotAllowed)),
    ("GET", "https://api.example.com/v998/..%2fx", Some(Reason::PathNotAllowed)),
    ("GET", "http://127.0.0.1:8080/x", Some(Reason::OwnListener)),
    ("GET", "http://127.0.0.1:8081/x", None),
    ("GET", "http://8.8.4.7/x", Some(Reason::AddressNotAllowed)),
    ("GET", "https://denied-999.example.com/x", Some(Reason::DeniedByRule)),
];

#[test]
fn a_refusal_with_a_thousand_rules_allocates_nothing() {
    let policy = policy();
    let rules = &policy.tenant("a").expect("it is there").allow.http;
    let addresses = (0..=255).map(|last| std::net::IpAddr::from([8, 8, 4, last]));
    let machine = &Machine::new(addresses, Some(([127, 0, 0, 1], 8080).into()));
    for (method, text, expected) in CALLS {
        let url = parse_target(text).expect(text);
        let outcome = verdict(rules, machine, method, &url).err().map(|verdict| verdict.reason);
        assert_eq!(outcome, expected, "{method} {text}");
        if expected.is_some() {
            // The test's harness has a thread that may allocate too; it does not in each of these.
            let counts = (0..100).map(|_| {
                let region = Region::new(ALLOCATOR);
                let _ = black_box(verdict(black_box(rules), machine, method, black_box(&url)));
                region.change().allocations
            });
            assert_eq!(counts.min(), Some(0), "{method} {text}");
        }
        let (p50, p99) = measure(|| drop(black_box(verdict(black_box(rules), machine, method, black_box(&url)))));
        let outcome = expected.map_or("allow", Reason::as_str);
        println!("{:5} ns p50 {:5} ns p99  {outcome:20} {method} {text}", p50.as_nanos(), p99.as_nanos());
    }
}

/// Median and 99th percentile of one call.
fn measure(mut call: impl FnMut()) -> (Duration, Duration) {
    let mut times: Vec<_> = (0..20_000)
        .map(|_| {
            let begin = Instant::now();
            call();
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}
