//! Calls that are like another one and not it: what a fix for that one leaves as it is.
//!
//! | fix for | neighbours are |
//! |---|---|
//! | `http` | other methods, schemes, hosts, ports, addresses; other paths, where a rule can name the path |
//! | `net` | other schemes, hosts, ports, addresses |
//! | `fs` | what lies outside the directory; writing, where the call reads |
//! | `secret` | other names, and origins |
//! | `kv`, `workers`, `detach` | nothing of the same capability, for a grant is of all of it |
//!
//! And for each of them the other capabilities, the other tenants, and for a module its tenant and the other modules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use neoc::policy::{
    Machine, Policy, Reason, Refusal,
    address::{Class, classify},
    call::{Call, FileAction, NotAllowed},
    http::parse_target,
    path::is_plain,
};

/// Addresses that no fix for another one may open.
const ADDRESSES: [&str; 5] = ["127.99.88.77", "10.99.88.77", "192.168.99.88", "fd99::77", "169.254.169.254"];

/// Longest path that a rule can name, in bytes.
const MAX_PATTERN_BYTES: usize = 512;

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// A call, and whose it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub tenant: String,
    /// Absent: of one that has all that its tenant has.
    pub module: Option<String>,
    pub call: Call,
}

// === impl Asked ===

impl Asked {
    /// What a policy says. The error is None for what makes no sense under any.
    pub fn judge(&self, policy: &Policy, machine: &Machine) -> Result<(), Option<Refusal>> {
        let tenant = policy.tenant(&self.tenant).ok_or(None)?;
        self.call.judge_of(tenant, machine, self.module.as_deref()).map(drop).map_err(|not| match not {
            NotAllowed::Refused(refusal) => Some(refusal),
            NotAllowed::Invalid(_) => None,
        })
    }
}

/// Checks that two policies say the same of all neighbours of a call, which the first refuses for this reason and the
/// second allows.
///
/// # Errors
/// The first neighbour that they judge differently.
pub fn unchanged(
    before: &Policy,
    after: &Policy,
    asked: &Asked,
    reason: Reason,
    machine: &Machine,
) -> Result<(), String> {
    let judge = |asked: &Asked| [before, after].map(|policy| asked.judge(policy, machine).is_ok());
    // The tenant was allowed it already: the fix is for one of its modules.
    let is_of_module = asked.module.is_some() && Asked { module: None, ..asked.clone() }.judge(before, machine).is_ok();
    let same = same_capability(&asked.call, reason, is_of_module);
    let calls = same.into_iter().chain(other_capabilities(&asked.call));
    let calls = calls.map(|call| Asked { call, ..asked.clone() });
    for neighbour in calls.chain(other_askers(before, asked, is_of_module)).filter(|neighbour| neighbour != asked) {
        let [was, is] = judge(&neighbour);
        if was != is {
            let Asked { tenant, module, call } = &neighbour;
            return Err(format!("{tenant} {} {call}", module.as_deref().unwrap_or_default()));
        }
    }
    Ok(())
}

fn same_capability(call: &Call, reason: Reason, is_of_module: bool) -> Vec<Call> {
    // A module's table has no addresses: they are its tenant's affair.
    let addresses = if is_of_module { Vec::new() } else { other_addresses(call) };
    match call {
        Call::Http { method, url, address } => {
            let new = |method: &str, url: String| Call::Http { method: method.to_owned(), url, address: *address };
            let (origin, path) = split_url(url);
            let methods = METHODS.into_iter().filter(|other| other != method);
            let methods = methods.map(|other| new(other, url.clone()));
            let origins = other_origins(&origin, &["http", "https"]).into_iter();
            let origins = origins.map(|origin| new(method, origin + &path));
            let paths = other_paths(&path).into_iter().map(|path| new(method, origin.clone() + &path));
            methods.chain(origins).chain(paths).chain(addresses).collect()
        }
        Call::Net { target, address } => {
            let targets = other_origins(target, &["tcp", "tls", "udp"]);
            let targets = targets.into_iter().map(|target| Call::Net { target, address: *address });
            targets.chain(addresses).collect()
        }
        Call::Fs { action, path } => {
            let writes = [FileAction::Write, FileAction::Remove].contains(action);
            let directory = directory(path, writes).filter(|_| reason != Reason::PathNotWritable);
            let outside = directory.into_iter().flat_map(|directory| {
                ["/neighbour".to_owned(), "/neighbour/x".to_owned(), format!("{directory}x"), format!("{directory}x/y")]
            });
            let outside = outside.map(|path| Call::Fs { action: *action, path });
            let writing = (!writes).then(|| Call::Fs { action: FileAction::Write, path: format!("{path}/x") });
            outside.chain(writing).collect()
        }
        Call::Secret { name, origin } => {
            let origins = other_origins(origin, &["http", "https"]).into_iter();
            // A module may take along what its tenant may, wherever that goes.
            let origins = origins.filter(|_| !is_of_module);
            let origins = origins.map(|origin| Call::Secret { name: name.clone(), origin });
            let names = [format!("{name}x"), "neighbour".to_owned()].into_iter();
            origins.chain(names.map(|name| Call::Secret { name, origin: origin.clone() })).collect()
        }
        Call::Kv { .. } | Call::Workers { .. } | Call::Detach => Vec::new(),
    }
}

/// The directory that a path makes one grant: the first of its names. None for a file in the root: it takes a grant of
/// the root.
fn directory(path: &str, writes: bool) -> Option<String> {
    let mut names = path.trim_start_matches('/').split('/');
    let (first, next) = (names.next()?, names.next());
    (next.is_some() || !writes && !first.contains('.') && !first.is_empty()).then(|| format!("/{first}"))
}

/// The same, to addresses that are not its own: far ones, and those that differ from its own in one bit. Public ones
/// do not count, for a rule that names a host opens all of them.
fn other_addresses(call: &Call) -> Vec<Call> {
    let (target, address) = match call {
        Call::Http { url, address, .. } => (url, address),
        Call::Net { target, address } => (target, address),
        _ => return Vec::new(),
    };
    let authority = target.split("://").nth(1).unwrap_or_default();
    let written = parse_target(&format!("http://{authority}")).ok().and_then(|url| match url.host()? {
        url::Host::Ipv4(address) => Some(IpAddr::from(address)),
        url::Host::Ipv6(address) => Some(IpAddr::from(address)),
        url::Host::Domain(name) => (name == "localhost").then_some(Ipv4Addr::LOCALHOST.into()),
    });
    let flipped = |own: IpAddr| match own.to_canonical() {
        IpAddr::V4(own) => {
            (0..32).map(|bit| Ipv4Addr::from(u32::from(own) ^ (1 << bit)).into()).collect::<Vec<IpAddr>>()
        }
        IpAddr::V6(own) => (0..128).map(|bit| Ipv6Addr::from(u128::from(own) ^ (1 << bit)).into()).collect(),
    };
    let near = address.or(written).into_iter().flat_map(flipped);
    let far = ADDRESSES.into_iter().map(|address| address.parse().unwrap());
    let is_public = |address: &IpAddr| classify(*address) == Class::Public;
    far.chain(near).filter(|address| !is_public(address)).map(|address| call.clone().at(Some(address))).collect()
}

/// One call of each other capability.
fn other_capabilities(call: &Call) -> impl Iterator<Item = Call> {
    let others = [
        "http GET https://neighbour.example/x",
        "net tcp://neighbour.example:443",
        "fs read /neighbour/x",
        "kv get neighbour",
        "secret neighbour https://neighbour.example",
        "workers ./neighbour",
        "detach",
    ];
    let capability = std::mem::discriminant(call);
    others
        .into_iter()
        .map(|text| Call::parse(text).unwrap())
        .filter(move |other| std::mem::discriminant(other) != capability)
}

/// The same call of others. What its tenant is granted a module may have by its own table: its modules count only where
/// one of them is given something.
fn other_askers(policy: &Policy, asked: &Asked, is_of_module: bool) -> Vec<Asked> {
    let tenants = policy.tenants.iter().filter(|tenant| tenant.name != asked.tenant).take(5);
    let tenants = tenants.map(|tenant| Asked { tenant: tenant.name.clone(), module: None, call: asked.call.clone() });
    let own = policy.tenant(&asked.tenant).filter(|_| is_of_module);
    let modules = own.into_iter().flat_map(|tenant| tenant.narrowed().map(|path| Some(path.to_owned())).chain([None]));
    tenants.chain(modules.map(|module| Asked { module, ..asked.clone() })).collect()
}

/// A URL's scheme, host and port, and its path, which is never empty.
fn split_url(url: &str) -> (String, String) {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    (url[..end].to_owned(), if end == url.len() { "/".to_owned() } else { url[end..].to_owned() })
}

/// Origins that differ in scheme, port, or host.
fn other_origins(origin: &str, schemes: &[&str]) -> Vec<String> {
    let Some((scheme, authority)) = origin.split_once("://") else { return Vec::new() };
    let parsed = parse_target(&format!("{}://{authority}", if scheme == "https" { "https" } else { "http" })).unwrap();
    let (host, port) = (parsed.host_str().unwrap(), parsed.port_or_known_default().unwrap());
    let mut hosts = vec!["neighbour.example".to_owned(), "10.99.88.77".to_owned()];
    match parsed.host() {
        Some(url::Host::Domain(name)) => {
            hosts.extend([format!("sub.{name}"), format!("x{name}"), format!("{name}.example")]);
            hosts.extend(name.split_once('.').map(|(_, parent)| parent.to_owned()));
        }
        Some(url::Host::Ipv4(address)) => hosts.push(Ipv4Addr::from(u32::from(address).wrapping_add(1)).to_string()),
        Some(url::Host::Ipv6(address)) => {
            hosts.push(format!("[{}]", Ipv6Addr::from(u128::from(address).wrapping_add(1))));
        }
        None => {}
    }
    let of_hosts = hosts.into_iter().map(|host| format!("{scheme}://{host}:{port}"));
    let of_schemes = schemes.iter().filter(|other| **other != scheme).map(|scheme| format!("{scheme}://{host}:{port}"));
    let other_port = format!("{scheme}://{host}:{}", port.checked_add(1).unwrap_or(1));
    of_hosts.chain(of_schemes).chain([other_port]).collect()
}

/// Paths beside it, above it and below it. None where no rule can name the path itself: its fix is for all there are.
fn other_paths(path: &str) -> Vec<String> {
    if !is_plain(path) || path.contains('*') || path.len() > MAX_PATTERN_BYTES {
        return Vec::new();
    }
    let stem = path.trim_end_matches('/');
    let parent = stem.rsplit_once('/').map_or("", |(parent, _)| parent);
    let others = [format!("{stem}~"), format!("{stem}/x"), format!("{parent}/"), format!("{parent}/neighbour")];
    others.into_iter().chain(["/neighbour".to_owned(), "/".to_owned()]).filter(|other| other != path).collect()
}
