//! The smallest policy that allows a set of calls.
//!
//! Each call that is refused asks for what its refusal's fix would grant; what is asked for is gathered, and
//! tables that say the same are made one. Calls that nothing can allow, and limits that were hit, become
//! comments: the one is a matter of the script, the other of the operator's judgement.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    Machine,
    call::{Call, NotAllowed},
    fix::{Remedy, new_dir, quoted},
    fs::Access,
    secret,
    tenant::Tenant,
};

/// What a number of calls needs, tenant by tenant.
#[derive(Debug, Default)]
pub struct Suggestion {
    tenants: BTreeMap<String, Wanted>,
}

/// What one tenant's calls need, each with how many do.
#[derive(Debug, Default)]
struct Wanted {
    /// By origin.
    http: BTreeMap<String, Origin>,
    /// By endpoint: addresses, and calls.
    net: BTreeMap<String, (BTreeSet<String>, u64)>,
    /// By path.
    fs: BTreeMap<String, Directory>,
    /// By name: whether the policy has it, origins, and calls.
    secrets: BTreeMap<String, (bool, BTreeSet<String>, u64)>,
    kv: u64,
    detach: u64,
    workers: u64,
    /// By key.
    limits: BTreeMap<String, u64>,
    /// Calls that nothing allows, and why.
    never: BTreeMap<(String, &'static str), u64>,
}

/// Most paths of one rule. Of more, the operator has to see what they have in common.
const MAX_PATHS: usize = 20;

#[derive(Debug, Default)]
struct Origin {
    /// Methods by path; `None`: paths that no rule can name.
    paths: BTreeMap<Option<String>, Asked>,
    addresses: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Asked {
    methods: BTreeSet<String>,
    n_calls: u64,
}

/// What one rule allows at an origin: methods, and paths, or all of them.
type Part<'a> = (BTreeSet<&'a String>, Option<BTreeSet<&'a String>>);

#[derive(Debug)]
struct Directory {
    dir: Option<String>,
    access: Access,
    n_calls: u64,
}

impl Suggestion {
    /// Takes `n` calls of the same kind in, unless the tenant's policy allows them. A tenant that has none is
    /// given with [`Tenant::without_grants`].
    pub fn add(&mut self, tenant: &Tenant, machine: &Machine, call: &Call, n: u64) {
        let refusal = match call.judge(tenant, machine) {
            Ok(_) => return,
            Err(NotAllowed::Refused(refusal)) => refusal,
            // A mistake of the script, whatever the policy says.
            Err(NotAllowed::Invalid(_)) => return,
        };
        let wanted = self.tenants.entry(tenant.name.clone()).or_default();
        let address = match call {
            Call::Http { address, .. } | Call::Net { address, .. } => *address,
            _ => None,
        };
        let destinations = call.destinations();
        let never = destinations.iter().find(|to| !machine.is_open_to_rules(**to));
        match refusal.wanted().filter(|_| never.is_none()) {
            Some(remedy) => {
                wanted.add(remedy, n);
                // A host that is not allowed yet has no word on its address; it will be judged all the same.
                if let Some(address) = address {
                    let named = match remedy {
                        Remedy::Http { origin, .. } => wanted.http.get_mut(origin).map(|origin| &mut origin.addresses),
                        Remedy::Net { endpoint, .. } => wanted.net.get_mut(endpoint).map(|(addresses, _)| addresses),
                        _ => None,
                    };
                    named.into_iter().for_each(|named| named.extend(machine.networks(address)));
                }
            }
            None => {
                let reason = never.map_or(refusal.reason, |to| machine.reason(*to).0);
                *wanted.never.entry((call.to_string(), reason.as_str())).or_default() += n;
            }
        }
    }

    /// Notes that a tenant was at a limit, by its policy key, so many times.
    pub fn limit_hit(&mut self, tenant: &str, limit: &str, n: u64) {
        *self.tenants.entry(tenant.to_owned()).or_default().limits.entry(limit.to_owned()).or_default() += n;
    }

    /// TOML to put at the end of a policy file; tenants and tables are sorted. Empty when nothing is needed.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (tenant, wanted) in &self.tenants {
            if !text.is_empty() {
                text.push('\n');
            }
            wanted.write(tenant, &mut text);
        }
        text
    }
}

impl Wanted {
    fn add(&mut self, remedy: &Remedy, n: u64) {
        match remedy {
            Remedy::Http { origin, method, path, addresses, addresses_are_known: _ } => {
                let origin = self.http.entry(origin.clone()).or_default();
                origin.addresses.extend(addresses.iter().cloned());
                let asked = origin.paths.entry(path.clone()).or_default();
                asked.methods.insert(method.clone());
                asked.n_calls += n;
            }
            Remedy::Net { endpoint, addresses, addresses_are_known: _ } => {
                let (known, n_calls) = self.net.entry(endpoint.clone()).or_default();
                known.extend(addresses.iter().cloned());
                *n_calls += n;
            }
            Remedy::Fs { path, dir, access } => {
                let new = || Directory { dir: dir.clone(), access: *access, n_calls: 0 };
                let directory = self.fs.entry(path.clone()).or_insert_with(new);
                if *access == Access::ReadWrite {
                    directory.access = Access::ReadWrite;
                }
                directory.n_calls += n;
            }
            Remedy::Kv => self.kv += n,
            Remedy::Detach => self.detach += n,
            Remedy::Workers => self.workers += n,
            Remedy::Secret { name, origin, is_known } => {
                let new = || (*is_known, BTreeSet::new(), 0);
                let (_, origins, n_calls) = self.secrets.entry(name.clone()).or_insert_with(new);
                origins.insert(origin.clone());
                *n_calls += n;
            }
        }
    }

    fn write(&self, tenant: &str, text: &mut String) {
        let mut line = |words: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{words}");
        };
        for ((call, label), n) in &self.never {
            line(format_args!("# {tenant}: {n} x {}: {label}, which no rule can allow", one_line(call)));
        }
        for (limit, n) in &self.limits {
            line(format_args!(
                "# {tenant}: the limit {} was hit {n} times; see [tenant.{tenant}.limits]",
                one_line(limit)
            ));
        }
        // Origins that need the same are one rule: it allows nothing that was not asked for.
        let mut rules: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, origin) in &self.http {
            for (part, n) in origin.parts() {
                rules.entry((part, &origin.addresses)).or_default().push((name, n));
            }
        }
        for (((methods, paths), addresses), origins) in rules {
            let n: u64 = origins.iter().map(|(_, n)| n).sum();
            let hosts = origins.into_iter().map(|(name, _)| name);
            line(format_args!("[[tenant.{tenant}.allow.http]] # {n} calls"));
            line(format_args!("hosts = [{}]", list(hosts)));
            if !addresses.is_empty() {
                line(format_args!("addresses = [{}]", list(addresses)));
            }
            line(format_args!("methods = [{}]", list(methods)));
            if let Some(paths) = paths {
                line(format_args!("paths = [{}]", list(paths)));
            }
        }
        for (endpoint, (addresses, n)) in &self.net {
            line(format_args!("[[tenant.{tenant}.allow.net]] # {n} calls"));
            line(format_args!("hosts = [{}]", quoted(endpoint)));
            if !addresses.is_empty() {
                line(format_args!("addresses = [{}]", list(addresses)));
            }
        }
        for (path, Directory { dir, access, n_calls }) in &self.fs {
            let dir = dir.clone().unwrap_or_else(|| new_dir(tenant, path));
            line(format_args!("[[tenant.{tenant}.allow.fs]] # {n_calls} calls"));
            line(format_args!("path = {}", quoted(path)));
            line(format_args!("dir = {}", quoted(&dir)));
            line(format_args!("access = {}", quoted(access.as_str())));
        }
        for (name, (is_known, origins, n)) in &self.secrets {
            if *is_known {
                line(format_args!("[[tenant.{tenant}.secret.{name}.also]] # {n} calls"));
            } else {
                line(format_args!("[tenant.{tenant}.secret.{name}] # {n} calls"));
                line(format_args!("from = {}", quoted(&secret::likely_source(name))));
            }
            line(format_args!("origins = [{}]", list(origins)));
        }
        for (capability, n) in [("kv", self.kv), ("detach", self.detach), ("workers", self.workers)] {
            if n > 0 {
                line(format_args!("[tenant.{tenant}.allow.{capability}] # {n} calls"));
            }
        }
    }
}

impl Origin {
    /// What the rules for it allow, with the calls that each was made of. Paths that were asked for by the same
    /// methods are one rule; over [`MAX_PATHS`] of them it names none.
    fn parts(&self) -> BTreeMap<Part<'_>, u64> {
        let mut by_methods: BTreeMap<BTreeSet<&String>, (Option<BTreeSet<&String>>, u64)> = BTreeMap::new();
        for (path, Asked { methods, n_calls }) in &self.paths {
            let (paths, n) = by_methods.entry(methods.iter().collect()).or_insert((Some(BTreeSet::new()), 0));
            *paths = paths.take().zip(path.as_ref()).map(|(mut paths, path)| {
                paths.insert(path);
                paths
            });
            *n += n_calls;
        }
        let few = |paths: Option<BTreeSet<_>>| paths.filter(|paths: &BTreeSet<&String>| paths.len() <= MAX_PATHS);
        by_methods.into_iter().map(|(methods, (paths, n))| ((methods, few(paths)), n)).collect()
    }
}

fn list<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    texts.into_iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ")
}

/// Spelled such that a comment ends with its line, whatever a script wrote.
fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::Policy, *};

    const BASE: &str = "[tenant.a]\nscript = \"a.luau\"\n";

    fn suggest(policy: &str, calls: &[(&str, Option<&str>)]) -> String {
        let policy = Policy::parse(policy, Path::new("p.toml")).unwrap_or_else(|errors| panic!("{errors}"));
        let mut suggestion = Suggestion::default();
        for (call, address) in calls {
            let address = address.map(|address| address.parse().expect("an address"));
            suggestion.add(
                policy.tenant("a").expect("there"),
                &Machine::default(),
                &Call::parse(call).expect(call).at(address),
                1,
            );
        }
        suggestion.to_toml()
    }

    const CALLS: [(&str, Option<&str>); 12] = [
        ("http GET https://b.example/x", None),
        ("http GET https://a.example/x", None),
        ("http POST https://c.example/x", None),
        ("http GET https://c.example/y", None),
        ("http GET https://db.internal/y", Some("10.0.0.5")),
        ("http GET http://127.0.0.1:9/y", None),
        ("fs list /data", None),
        ("fs write /data/x", None),
        ("fs read /logs/x", None),
        ("kv set k", None),
        ("detach", None),
        ("workers ./w", None),
    ];

    #[test]
    fn what_is_suggested_allows_the_calls_and_no_other() {
        let text = suggest(BASE, &CALLS);
        let expected = "[[tenant.a.allow.http]] # 2 calls\nhosts = [\"https://a.example\", \"https://b.example\"]\nmethods = [\"GET\"]\npaths = [\"/x\"]\n\
            [[tenant.a.allow.http]] # 1 calls\nhosts = [\"https://c.example\"]\nmethods = [\"GET\"]\npaths = [\"/y\"]\n\
            [[tenant.a.allow.http]] # 1 calls\nhosts = [\"https://db.internal\"]\naddresses = [\"10.0.0.5/32\"]\nmethods = [\"GET\"]\npaths = [\"/y\"]\n\
            [[tenant.a.allow.http]] # 1 calls\nhosts = [\"http://127.0.0.1:9\"]\naddresses = [\"127.0.0.1/32\"]\nmethods = [\"GET\"]\npaths = [\"/y\"]\n\
            [[tenant.a.allow.http]] # 1 calls\nhosts = [\"https://c.example\"]\nmethods = [\"POST\"]\npaths = [\"/x\"]\n\
            [[tenant.a.allow.fs]] # 2 calls\npath = \"/data\"\ndir = \"a-data\"\naccess = \"read-write\"\n\
            [[tenant.a.allow.fs]] # 1 calls\npath = \"/logs\"\ndir = \"a-logs\"\naccess = \"read\"\n\
            [tenant.a.allow.kv] # 1 calls\n[tenant.a.allow.detach] # 1 calls\n[tenant.a.allow.workers] # 1 calls\n";
        assert_eq!(text, expected);
        let policy =
            Policy::parse(&format!("{BASE}{text}"), Path::new("p.toml")).unwrap_or_else(|errors| panic!("{errors}"));
        let judge = |text: &str, address: Option<&str>| {
            let address = address.map(|address| address.parse().expect("an address"));
            Call::parse(text)
                .expect(text)
                .at(address)
                .judge(policy.tenant("a").expect("there"), &Machine::default())
                .is_ok()
        };
        for (call, address) in CALLS {
            assert!(judge(call, address), "{call}");
        }
        for (call, address) in [
            ("http GET https://d.example/", None),
            ("http POST https://a.example/x", None),
            ("http GET http://a.example/x", None),
            ("http GET https://a.example/y", None),
            ("http POST https://c.example/y", None),
            ("http GET https://a.example/x", Some("10.0.0.5")),
            ("http GET https://db.internal/y", Some("10.0.0.6")),
            ("http GET http://127.0.0.1:10/y", None),
            ("fs write /logs/x", None),
            ("fs read /other/x", None),
        ] {
            assert!(!judge(call, address), "{call}");
        }
        assert_eq!(suggest(&format!("{BASE}{text}"), &CALLS), "", "nothing is missing then");
    }

    #[test]
    fn paths_of_a_rule_are_few_or_all() {
        let calls = |n: usize| (0..n).map(|id| format!("http GET https://a.example/items/{id}")).collect::<Vec<_>>();
        for (n, has_paths) in [(MAX_PATHS, true), (MAX_PATHS + 1, false)] {
            let calls = calls(n);
            let calls: Vec<_> = calls.iter().map(|call| (call.as_str(), None)).collect();
            let text = suggest(BASE, &calls);
            assert_eq!((text.contains("paths = "), text.matches("[[").count()), (has_paths, 1), "{text}");
            assert_eq!(suggest(&format!("{BASE}{text}"), &calls), "", "nothing is missing then");
        }
    }

    #[test]
    fn what_a_policy_has_is_added_to() {
        let policy = format!(
            "{BASE}[[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"mine\"\naccess = \"read\"\n[tenant.a.allow.kv]\n"
        );
        let text = suggest(&policy, &CALLS[6..10]);
        let expected = "[[tenant.a.allow.fs]] # 1 calls\npath = \"/data\"\ndir = \"mine\"\naccess = \"read-write\"\n\
            [[tenant.a.allow.fs]] # 1 calls\npath = \"/logs\"\ndir = \"a-logs\"\naccess = \"read\"\n";
        assert_eq!(text, expected);
        assert!(Policy::parse(&format!("{policy}{text}"), Path::new("p.toml")).is_ok());
    }

    #[test]
    fn what_nothing_allows_is_a_comment_that_ends_with_its_line() {
        let text = suggest(
            BASE,
            &[
                ("http GET http://169.254.169.254/latest", None),
                ("http GET https://a.example/", Some("169.254.169.254")),
                ("fs read /data/../x\n[host]", None),
            ],
        );
        assert!(text.lines().all(|line| line.starts_with("# a: 1 x ")) && text.lines().count() == 3, "{text}");
    }
}
