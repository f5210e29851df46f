//! A call as an operator would write it, and what a policy says of it.
//!
//! ```text
//! http GET https://api.example.com/v1     fs read /data/a.txt     kv get visits
//! net tcp://db.example.com:5432            workers ./worker          detach
//! secret api_key https://api.example.com
//! ```
//!
//! Judged by the very functions that the broker asks, so that an answer here is the answer of a run.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{
    Machine, Place, Reason, Refusal, Tenant, address, detach, fs, http,
    http::{TargetError, parse_target},
    kv,
    module::Asked,
    net::{self, Target},
    secret, workers,
};

/// A call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// An HTTP request, and the address it goes to, where that is known.
    Http {
        /// Upper-case.
        method: String,
        /// As a script writes it.
        url: String,
        /// Absent: it is judged when it is dialled.
        address: Option<IpAddr>,
    },
    /// A connection or a socket, and the address it goes to, where that is known.
    Net {
        /// As a script writes it.
        target: String,
        /// Absent: it is judged when it is dialled.
        address: Option<IpAddr>,
    },
    /// A file or a directory.
    Fs {
        /// What is done with it.
        action: FileAction,
        /// As a script writes it.
        path: String,
    },
    /// A key of the store.
    Kv {
        /// `get`, `set` or `delete`.
        action: String,
        /// The key.
        key: String,
    },
    /// A secret in a request.
    Secret {
        /// Its name.
        name: String,
        /// Where it goes. What is behind the origin does not count.
        origin: String,
    },
    /// A worker.
    Workers {
        /// What it requires.
        module: String,
    },
    /// A task that goes on after the answer.
    Detach,
}

/// What is done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileAction {
    /// Its content is read.
    Read,
    /// It is created or replaced.
    Write,
    /// A directory is listed.
    List,
    /// It is removed.
    Remove,
}

/// A call that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The rule that allows it.
    pub rule: Place,
    /// Whether addresses are still to be judged, when they are dialled.
    pub is_address_open: bool,
}

/// A call that is not.
#[derive(Debug, Clone)]
pub enum NotAllowed {
    /// The policy refuses it.
    Refused(Refusal),
    /// It makes no sense, whatever the policy says.
    Invalid(String),
}

// === impl Call ===

impl Call {
    /// The forms, for who wrote another.
    pub const FORMS: &'static str = "write it as one of: http GET https://api.example.com/v1, net tcp://db.example.com:5432, \
        fs read /data/a.txt, kv get visits, secret api_key https://api.example.com, workers ./worker, detach";

    /// Takes a call as it is written.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (capability, rest) = split_word(text.trim());
        let (operation, target) = split_word(rest);
        let call = match capability {
            http::CAPABILITY if target.is_empty() && operation.contains("//") => {
                Self::from_parts(capability, "GET", operation, None)
            }
            net::CAPABILITY if target.is_empty() => Self::from_parts(capability, "open", operation, None),
            workers::CAPABILITY | detach::CAPABILITY => Self::from_parts(capability, "", rest, None),
            _ => Self::from_parts(capability, operation, target, None),
        };
        call.ok_or_else(|| format!("{text:?} is no call; {}", Self::FORMS))
    }

    /// A call from the parts of its record. None for what no policy decides on.
    pub fn from_parts(capability: &str, operation: &str, target: &str, address: Option<IpAddr>) -> Option<Self> {
        let target = target.to_owned();
        match capability {
            http::CAPABILITY if !target.is_empty() => {
                Some(Self::Http { method: operation.to_owned(), url: target, address })
            }
            net::CAPABILITY if operation == "open" && !target.is_empty() => Some(Self::Net { target, address }),
            fs::CAPABILITY => {
                let action = FileAction::ALL.into_iter().find(|action| action.as_str() == operation)?;
                Some(Self::Fs { action, path: target })
            }
            kv::CAPABILITY if ["get", "set", "delete"].contains(&operation) => {
                Some(Self::Kv { action: operation.to_owned(), key: target })
            }
            secret::CAPABILITY if !target.is_empty() => {
                Some(Self::Secret { name: operation.to_owned(), origin: target })
            }
            workers::CAPABILITY => Some(Self::Workers { module: target }),
            detach::CAPABILITY => Some(Self::Detach),
            _ => None,
        }
    }

    /// The same call, to an address that is known.
    pub fn at(self, known: Option<IpAddr>) -> Self {
        match self {
            Self::Http { method, url, address } => Self::Http { method, url, address: known.or(address) },
            Self::Net { target, address } => Self::Net { target, address: known.or(address) },
            other => other,
        }
    }

    /// The addresses that it goes to, as far as they are known, with the port.
    pub(super) fn destinations(&self) -> Vec<SocketAddr> {
        let (address, known, port) = match self {
            Self::Http { address, url, .. } => match parse_target(url) {
                Ok(url) => (address, address::known(url.host()).to_vec(), url.port_or_known_default().unwrap_or(0)),
                Err(_) => (address, Vec::new(), 0),
            },
            Self::Net { address, target } => match Target::parse(target) {
                Ok(target) => (address, target.known_addresses(), target.port),
                Err(_) => (address, Vec::new(), 0),
            },
            _ => return Vec::new(),
        };
        address.iter().copied().chain(known).map(|address| SocketAddr::new(address, port)).collect()
    }

    /// [`Call::judge`] of a module that may have less than its tenant. None: of any other.
    ///
    /// # Errors
    /// See [`NotAllowed`].
    pub fn judge_of(&self, tenant: &Tenant, machine: &Machine, module: Option<&str>) -> Result<Allowed, NotAllowed> {
        let allowed = self.judge(tenant, machine)?;
        let module = module.and_then(|path| tenant.modules.iter().find(|module| module.path == path));
        let Some(module) = module else { return Ok(allowed) };
        let url = |text: &str| parse_target(text).map_err(|error| NotAllowed::target(tenant, error));
        let decided = match self {
            Self::Http { method, url: text, .. } => module.decide(Asked::Http(method, &url(text)?)),
            Self::Net { target, .. } => {
                let target = Target::parse(target).map_err(|error| NotAllowed::target(tenant, error))?;
                module.decide(Asked::Net(&target))
            }
            Self::Fs { action, path } => module.decide(Asked::Fs(path, action.writes())),
            Self::Kv { key, .. } => module.decide(Asked::Kv(key.as_bytes())),
            Self::Secret { name, origin } => module.decide(Asked::Secret(name, &url(origin)?)),
            Self::Workers { module: name } => module.decide(Asked::Workers(name)),
            Self::Detach => module.decide(Asked::Detach),
        };
        decided.map(|()| allowed).map_err(|refusal| NotAllowed::Refused(refusal.with_fix(tenant)))
    }

    /// Decides, as a run on this machine does. The tenant's mode does not count: what a tenant in report mode may
    /// not do is refused here.
    ///
    /// # Errors
    /// See [`NotAllowed`].
    pub fn judge(&self, tenant: &Tenant, machine: &Machine) -> Result<Allowed, NotAllowed> {
        let refused = |refusal: Refusal| NotAllowed::Refused(refusal.with_fix(tenant));
        let allow = &tenant.allow;
        let rule = match self {
            Self::Http { method, url, address } => return judge_http(tenant, machine, method, url, *address),
            Self::Net { target, address } => return judge_net(tenant, machine, target, *address),
            Self::Fs { action, path } => {
                fs::decide(&allow.fs, &tenant.deny.fs, path, action.writes()).map(|located| located.grant.place.clone())
            }
            Self::Kv { action: _, key } => kv::decide(allow.kv.as_ref(), key).map(|grant| grant.place.clone()),
            Self::Secret { name, origin } => {
                let url = parse_target(origin).map_err(|error| NotAllowed::target(tenant, error))?;
                secret::decide(&tenant.secrets, name, &url).cloned()
            }
            Self::Workers { module } => {
                workers::decide(allow.workers.as_ref(), module).map(|grant| grant.place.clone())
            }
            Self::Detach => detach::decide(allow.detach.as_ref()).map(|grant| grant.place.clone()),
        };
        rule.map(|rule| Allowed { rule, is_address_open: false }).map_err(refused)
    }
}

/// Judges a URL that a script spells out. `method`: None, it is not known. `is_whole`: whether more may follow.
///
/// # Errors
/// As [`Call::judge`], where each call that this may be is refused.
pub fn judge_url(
    tenant: &Tenant,
    machine: &Machine,
    method: Option<&str>,
    url: &str,
    is_whole: bool,
) -> Result<(), NotAllowed> {
    let is_path_whole = is_whole || url.contains(['?', '#']);
    if let Some(method) = method.filter(|_| is_path_whole) {
        return judge_http(tenant, machine, method, url, None).map(drop);
    }
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    if !is_whole && !authority.contains(['/', '?', '#']) {
        return Ok(());
    }
    let url = match parse_target(url) {
        Ok(url) => url,
        Err(error) if is_whole => return Err(NotAllowed::target(tenant, error)),
        Err(_) => return Ok(()),
    };
    http::decide_start(&tenant.allow.http, machine, method, &url)
        .map_err(|refusal| NotAllowed::Refused(refusal.with_fix(tenant)))
}

fn judge_http(
    tenant: &Tenant,
    machine: &Machine,
    method: &str,
    url: &str,
    address: Option<IpAddr>,
) -> Result<Allowed, NotAllowed> {
    let refused = |refusal: Refusal| NotAllowed::Refused(refusal.with_fix(tenant));
    let rules = &tenant.allow.http;
    let url = parse_target(url).map_err(|error| NotAllowed::target(tenant, error))?;
    let matched = http::decide(rules, machine, method, &url).map_err(refused)?;
    let known = address.map_or_else(|| address::known(url.host()).to_vec(), |address| vec![address]);
    if let Some(address) = address {
        http::check_address(rules, machine, &matched, method, &url, address).map_err(refused)?;
    }
    let rule = http::place_at(rules, machine, &matched, &url, &known).ok_or_else(|| {
        // The decision before allowed it, so there is a rule.
        NotAllowed::Refused(Refusal::new(http::CAPABILITY, url.as_str(), Reason::NotGranted))
    })?;
    Ok(Allowed { rule, is_address_open: known.is_empty() })
}

fn judge_net(tenant: &Tenant, machine: &Machine, target: &str, address: Option<IpAddr>) -> Result<Allowed, NotAllowed> {
    let refused = |refusal: Refusal| NotAllowed::Refused(refusal.with_fix(tenant));
    let rules = &tenant.allow.net;
    let target = Target::parse(target).map_err(|error| NotAllowed::target(tenant, error))?;
    let matched = net::decide(rules, &tenant.deny.net, machine, &target).map_err(refused)?;
    let known = address.map_or_else(|| target.known_addresses(), |address| vec![address]);
    let passes = |address: &IpAddr| net::allows_address(rules, machine, &matched, target.at(*address));
    if let Some(address) = address.filter(|address| !passes(address)) {
        return Err(refused(net::refuse_address(rules, machine, &matched, &target, address)));
    }
    let rule = net::place(rules, machine, &matched, &target, &known).ok_or_else(|| {
        // The decision before allowed it, so there is a rule.
        NotAllowed::Refused(Refusal::new(net::CAPABILITY, &target.to_string(), Reason::NotGranted))
    })?;
    Ok(Allowed { rule, is_address_open: known.is_empty() })
}

/// The first word, and what follows the white space behind it.
fn split_word(text: &str) -> (&str, &str) {
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { method, url, address } => {
                write!(f, "http {method} {url}")?;
                address.map_or(Ok(()), |address| write!(f, " at {address}"))
            }
            Self::Net { target, address } => {
                write!(f, "net {target}")?;
                address.map_or(Ok(()), |address| write!(f, " at {address}"))
            }
            Self::Fs { action, path } => write!(f, "fs {} {path}", action.as_str()),
            Self::Kv { action, key } => write!(f, "kv {action} {key}"),
            Self::Secret { name, origin } => write!(f, "secret {name} {origin}"),
            Self::Workers { module } => write!(f, "{}", format!("workers {module}").trim_end()),
            Self::Detach => f.write_str("detach"),
        }
    }
}

// === impl FileAction ===

impl FileAction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::List, Self::Remove];

    /// As in a call and in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::List => "list",
            Self::Remove => "remove",
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Remove)
    }
}

// === impl NotAllowed ===

impl NotAllowed {
    fn target(tenant: &Tenant, error: TargetError) -> Self {
        match error {
            TargetError::Invalid(message) => Self::Invalid(message),
            TargetError::Denied(refusal) => Self::Refused(refusal.with_fix(tenant)),
        }
    }

    /// The label, as in a record.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason.as_str(),
            Self::Invalid(_) => "invalid",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::Policy, *};

    const POLICY: &str = "[tenant.a]\nscript = \"a.luau\"\n[tenant.a.allow.kv]\n\
        [[tenant.a.allow.http]]\nhosts = [\"https://api.example.com\"]\nmethods = [\"GET\"]\n\
        [[tenant.a.allow.http]]\nhosts = [\"https://api.example.com\"]\naddresses = [\"10.0.0.0/8\"]\nmethods = [\"GET\"]\n\
        [[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"d\"\naccess = \"read\"\n\
        [[tenant.a.allow.net]]\nhosts = [\"tcp://db.example.com:5432\", \"udp://127.0.0.1:53\"]\n\
        [[tenant.a.allow.net]]\nhosts = [\"tcp://db.example.com:5432\"]\naddresses = [\"10.0.0.0/8\"]\n\
        [tenant.a.secret.key]\nfrom = \"env:K\"\norigins = [\"https://api.example.com\"]\n";

    fn judge(text: &str, address: Option<&str>) -> String {
        let policy = Policy::parse(POLICY, Path::new("p.toml")).unwrap_or_else(|errors| panic!("{errors}"));
        let address = address.map(|address| address.parse().expect("an address"));
        let call = Call::parse(text).expect(text).at(address);
        match call.judge(policy.tenant("a").expect("there"), &Machine::default()) {
            Ok(Allowed { rule, is_address_open }) => format!("{rule}{}", if is_address_open { " open" } else { "" }),
            Err(problem) => problem.label().to_owned(),
        }
    }

    #[test]
    fn a_call_is_judged_with_the_rule_that_decides() {
        for (text, address, expected) in [
            ("http GET https://api.example.com/v1", None, "p.toml:4 open"),
            ("http https://api.example.com/v1", Some("93.184.216.34"), "p.toml:4"),
            ("http GET https://api.example.com/v1", Some("10.0.0.1"), "p.toml:7"),
            ("http GET https://api.example.com/v1", Some("192.168.0.1"), "address_not_allowed"),
            ("http GET https://api.example.com/v1", Some("169.254.169.254"), "address_never_allowed"),
            ("http POST https://api.example.com/v1", None, "method_not_allowed"),
            ("http GET https://other.example.com/", None, "host_not_allowed"),
            ("http GET https://u:p@api.example.com/", None, "bad_target"),
            ("http GET https:///x", None, "invalid"),
            ("net tcp://db.example.com:5432", None, "p.toml:15 open"),
            ("net open tcp://db.example.com:5432", Some("10.0.0.1"), "p.toml:17"),
            ("net tcp://db.example.com:5432", Some("127.0.0.1"), "address_not_allowed"),
            ("net tcp://db.example.com:5432", Some("169.254.169.254"), "address_never_allowed"),
            ("net tcp://db.example.com:5433", None, "host_not_allowed"),
            ("net tls://db.example.com:5432", None, "host_not_allowed"),
            ("net udp://127.0.0.1:53", None, "address_not_allowed"),
            ("net tcp://127.1:53", None, "bad_target"),
            ("net db.example.com", None, "invalid"),
            ("fs read /data/a b.txt", None, "p.toml:11"),
            ("fs list /data", None, "p.toml:11"),
            ("fs write /data/x", None, "path_not_writable"),
            ("fs read /data/../x", None, "bad_target"),
            ("kv get k", None, "p.toml:3"),
            ("  kv   set   k v ", None, "p.toml:3"),
            ("secret key https://api.example.com", None, "p.toml:20"),
            ("secret key https://api.example.com/v1", None, "p.toml:20"),
            ("secret key http://api.example.com", None, "secret_not_bound"),
            ("secret other https://api.example.com", None, "not_granted"),
            ("secret key api.example.com", None, "invalid"),
            ("workers", None, "not_granted"),
            ("workers ./w", None, "not_granted"),
            ("detach", None, "not_granted"),
        ] {
            assert_eq!(judge(text, address), expected, "{text} {address:?}");
        }
    }

    #[test]
    fn a_url_in_a_script_is_judged_by_what_is_known_of_it() {
        let policy = Policy::parse(POLICY, Path::new("p.toml")).unwrap_or_else(|errors| panic!("{errors}"));
        let tenant = policy.tenant("a").expect("there");
        for (method, text, is_whole, expected) in [
            (Some("GET"), "https://api.example.com/v1", true, "ok"),
            (Some("POST"), "https://api.example.com/v1", true, "method_not_allowed"),
            (Some("POST"), "https://api.example.com/v1", false, "ok"),
            (Some("POST"), "https://api.example.com/v1?q=", false, "method_not_allowed"),
            (None, "https://api.example.com/v1", true, "ok"),
            (None, "https://other.example.com", true, "host_not_allowed"),
            (None, "https://other.example.com/", false, "host_not_allowed"),
            (None, "https://other.example", false, "ok"),
            (Some("GET"), "https://", false, "ok"),
            (Some("GET"), "https:///", false, "ok"),
            (Some("GET"), "", false, "ok"),
            (Some("GET"), "", true, "invalid"),
            (Some("GET"), "http://127.1/", false, "ok"),
            (None, "http://127.1/", true, "bad_target"),
        ] {
            let label = judge_url(tenant, &Machine::default(), method, text, is_whole)
                .map_or_else(|problem| problem.label(), |()| "ok");
            assert_eq!(label, expected, "{method:?} {text} {is_whole}");
        }
    }

    #[test]
    fn what_is_no_call_is_refused_with_the_forms() {
        for text in
            ["", "http", "get https://a.example", "fs move /a", "kv k", "secret k", "time 3", "https://a.example"]
        {
            assert!(Call::parse(text).expect_err(text).contains(Call::FORMS), "{text}");
        }
    }

    #[test]
    fn a_call_is_shown_as_it_is_written() {
        for text in [
            "http GET https://a.example/x",
            "net udp://a.example:1",
            "fs read /a b",
            "kv get k",
            "secret k https://a.example",
            "workers ./w",
            "workers",
            "detach",
        ] {
            assert_eq!(Call::parse(text).expect(text).to_string(), text);
        }
    }
}
