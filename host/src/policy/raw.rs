//! The policy file as written: strings, numbers and where they stand.
//!
//! Nothing here is checked beyond its TOML type. Every key is optional, because a key that is wrong is
//! left out and the reading goes on; what must be there is asked for in the conversion. A span stays
//! with every value, so that a rule broken later can still name line and column.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use toml::Spanned;

/// Text with its place in the file.
pub type Text = Spanned<String>;

/// A table of the file whose keys are known.
pub trait TableToml: DeserializeOwned + Default {
    /// Every key with an example of its value. The reader knows by it which keys are unknown, which
    /// name is near to a mistyped one, and what to show when a value has the wrong type.
    const KEYS: &'static [(&'static str, &'static str)];
}

/// The whole file.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyToml {
    /// `[host]`
    pub host: HostToml,
    /// `[tenant.NAME]`, by name.
    pub tenant: BTreeMap<Text, Spanned<TenantToml>>,
}

impl TableToml for PolicyToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[("host", "[host]"), ("tenant", "[tenant.acme]")];
}

/// `[host]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostToml {
    /// Address and port to serve on.
    pub listen: Option<Text>,
    /// Folder below which every tenant's files and keys live.
    pub data_dir: Option<Text>,
    /// Folder for compiled code.
    pub cache_dir: Option<Text>,
    /// Instances alive at once, over all tenants.
    pub instances: Option<Spanned<i64>>,
    /// Threads that run scripts.
    pub workers: Option<Spanned<i64>>,
    /// How a running script is stopped.
    pub preemption: Option<Text>,
    /// File that gets a line for every decision.
    pub audit: Option<Text>,
    /// Name servers.
    pub dns: Option<Vec<Text>>,
}

impl TableToml for HostToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("listen", "\"127.0.0.1:8080\""),
        ("data_dir", "\"../data\""),
        ("cache_dir", "\"../cache\""),
        ("instances", "1000"),
        ("workers", "2"),
        ("preemption", "\"safepoint\""),
        ("dns", "[\"127.0.0.1:53\"]"),
        ("audit", "\"../audit.jsonl\""),
    ];
}

/// `[tenant.NAME]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantToml {
    /// The entry module's file.
    pub script: Option<Text>,
    /// Which requests are this tenant's.
    pub routes: Option<Vec<Text>>,
    /// `[tenant.NAME.limits]`
    pub limits: LimitsToml,
    /// `[tenant.NAME.allow]`
    pub allow: AllowToml,
    /// `[tenant.NAME.deny]`
    pub deny: DenyToml,
}

impl TableToml for TenantToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("script", "\"../examples/hello/main.luau\""),
        ("routes", "[\"/acme/*\"]"),
        ("limits", "{ memory = \"32 MiB\" }"),
        ("allow", "{ kv = {} }"),
        ("deny", "{}"),
    ];
}

/// `[tenant.NAME.limits]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsToml {
    /// Memory of one request.
    pub memory: Option<Text>,
    /// Computing time of one request; time parked in I/O is free.
    pub cpu: Option<Text>,
    /// Time from a request's start to its end.
    pub wall: Option<Text>,
    /// Inbound requests.
    pub requests: Option<Text>,
    /// Broker operations.
    pub operations: Option<Text>,
    /// Outbound connections at once.
    pub connections: Option<Spanned<i64>>,
    /// Share of the script workers, beside the others'.
    pub weight: Option<Spanned<i64>>,
}

impl TableToml for LimitsToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("memory", "\"32 MiB\""),
        ("cpu", "\"50 ms\""),
        ("wall", "\"30 s\""),
        ("requests", "\"200/s\""),
        ("operations", "\"1000/s\""),
        ("connections", "32"),
        ("weight", "1"),
    ];
}

/// `[tenant.NAME.allow]`: one key per capability.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AllowToml {
    /// `[[tenant.NAME.allow.http]]`
    pub http: Vec<Spanned<HttpToml>>,
    /// `[[tenant.NAME.allow.net]]`
    pub net: Vec<Spanned<NetToml>>,
    /// `[[tenant.NAME.allow.fs]]`
    pub fs: Vec<Spanned<FsToml>>,
    /// `[tenant.NAME.allow.kv]`
    pub kv: Option<Spanned<KvToml>>,
    /// `[tenant.NAME.allow.detach]`
    pub detach: Option<Spanned<DetachToml>>,
    /// `[tenant.NAME.allow.workers]`
    pub workers: Option<Spanned<WorkersToml>>,
}

impl TableToml for AllowToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("http", "[{ hosts = [\"https://api.example.com\"] }]"),
        ("net", "[{ hosts = [\"tcp://db.example.com:5432\"] }]"),
        ("fs", "[{ path = \"/data\", dir = \"acme-data\", access = \"read\" }]"),
        ("kv", "{}"),
        ("detach", "{ tasks = 10, cpu = \"50 ms\", wall = \"30 s\" }"),
        ("workers", "{}"),
    ];
}

/// One `[[tenant.NAME.allow.http]]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpToml {
    /// Origins.
    pub hosts: Option<Vec<Text>>,
    /// Private and special networks that the hosts may resolve to.
    pub addresses: Option<Vec<Text>>,
    /// Methods; absent: all.
    pub methods: Option<Vec<Text>>,
}

impl TableToml for HttpToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("hosts", "[\"https://api.example.com\"]"),
        ("addresses", "[\"127.0.0.0/8\"]"),
        ("methods", "[\"GET\", \"POST\"]"),
    ];
}

/// One `[[tenant.NAME.allow.net]]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetToml {
    /// Endpoints.
    pub hosts: Option<Vec<Text>>,
    /// Private and special networks that the hosts may resolve to.
    pub addresses: Option<Vec<Text>>,
}

impl TableToml for NetToml {
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("hosts", "[\"tcp://db.example.com:5432\"]"), ("addresses", "[\"10.0.0.0/8\"]")];
}

/// `[tenant.NAME.deny]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenyToml {
    /// `[[tenant.NAME.deny.net]]`
    pub net: Vec<Spanned<DenyNetToml>>,
}

impl TableToml for DenyToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[("net", "[{ hosts = [\"tcp://db.example.com:5432\"] }]")];
}

/// One `[[tenant.NAME.deny.net]]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenyNetToml {
    /// Endpoints.
    pub hosts: Option<Vec<Text>>,
}

impl TableToml for DenyNetToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[("hosts", "[\"tcp://db.example.com:5432\"]")];
}

/// One `[[tenant.NAME.allow.fs]]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FsToml {
    /// The directory as the script sees it.
    pub path: Option<Text>,
    /// The directory below the host's data folder.
    pub dir: Option<Text>,
    /// `read` or `read-write`.
    pub access: Option<Text>,
}

impl TableToml for FsToml {
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("path", "\"/data\""), ("dir", "\"acme-data\""), ("access", "\"read\"")];
}

/// `[tenant.NAME.allow.kv]`: its presence is the grant.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvToml {}

impl TableToml for KvToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[];
}

/// `[tenant.NAME.allow.detach]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetachToml {
    /// Tasks that one request may detach.
    pub tasks: Option<Spanned<i64>>,
    /// Their computing time from the answer on.
    pub cpu: Option<Text>,
    /// Their time from the answer on.
    pub wall: Option<Text>,
}

impl TableToml for DetachToml {
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("tasks", "10"), ("cpu", "\"50 ms\""), ("wall", "\"30 s\"")];
}

/// `[tenant.NAME.allow.workers]`: its presence is the grant.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkersToml {
    /// VMs of one request at once.
    pub count: Option<Spanned<i64>>,
}

impl TableToml for WorkersToml {
    const KEYS: &'static [(&'static str, &'static str)] = &[("count", "2")];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of every key, as one table.
    fn examples<T: TableToml>() -> T {
        let text: String = T::KEYS.iter().map(|(key, example)| format!("{key} = {example}\n")).collect();
        toml::from_str(&text).expect("every example has its key's type")
    }

    #[test]
    fn every_key_is_listed_with_an_example_of_its_type() {
        // Destructured without `..`: a new field fails to compile until it is asserted here.
        let HostToml { listen, data_dir, cache_dir, instances, workers, preemption, audit, dns: _ } = examples();
        assert!(listen.is_some() && data_dir.is_some() && cache_dir.is_some());
        assert!(instances.is_some() && workers.is_some() && preemption.is_some() && audit.is_some());
        let TenantToml { script, routes, limits, allow, deny: _ } = examples();
        assert!(script.is_some() && routes.is_some());
        assert!(limits.memory.is_some() && allow.kv.is_some());
        let LimitsToml { memory, cpu, wall, requests, operations, connections, weight } = examples();
        assert!(memory.is_some() && cpu.is_some() && wall.is_some());
        assert!(requests.is_some() && operations.is_some() && connections.is_some() && weight.is_some());
        let AllowToml { http, net: _, fs, kv, detach, workers } = examples();
        assert!(http.len() == 1 && fs.len() == 1 && kv.is_some() && detach.is_some() && workers.is_some());
        let DetachToml { tasks, cpu, wall } = examples();
        assert!(tasks.is_some() && cpu.is_some() && wall.is_some());
        let HttpToml { hosts, addresses, methods } = examples();
        assert!(hosts.is_some() && addresses.is_some() && methods.is_some());
        let FsToml { path, dir, access } = examples();
        assert!(path.is_some() && dir.is_some() && access.is_some());
        let KvToml {} = examples();
        let WorkersToml { count } = examples();
        assert!(count.is_some());
    }
}
