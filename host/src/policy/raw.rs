//! The policy file as written: strings, numbers and where they stand.
//!
//! Nothing here is checked beyond its TOML type. Every key is optional, because a key that is wrong is
//! left out and the reading goes on; what must be there is asked for in the conversion. A span stays
//! with every value, so that a rule broken later can still name line and column.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{
    detach, host,
    keys::{Form, Key, TableToml},
    limits, workers,
};

/// Text with its place in the file.
pub type Text = Spanned<String>;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyToml {
    /// Further files.
    pub include: Option<Vec<Text>>,
    /// `[host]`
    pub host: HostToml,
    /// `[defaults]`
    pub defaults: ProfileToml,
    /// `[profile.NAME]`, by name.
    pub profile: BTreeMap<Text, Spanned<ProfileToml>>,
    /// `[tenant.NAME]`, by name.
    pub tenant: BTreeMap<Text, Spanned<TenantToml>>,
    /// Whether all files could be read. What is not there may be in one that could not.
    #[serde(skip)]
    pub is_whole: bool,
}

impl Default for PolicyToml {
    fn default() -> Self {
        Self {
            include: None,
            host: HostToml::default(),
            defaults: ProfileToml::default(),
            profile: BTreeMap::new(),
            tenant: BTreeMap::new(),
            is_whole: true,
        }
    }
}

impl TableToml for PolicyToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "include",
            form: Form::TextOrTexts("files, from this file's folder; one `*` may stand in the last name"),
            default: "",
            example: r#"["tenants/*.toml"]"#,
            doc: "Further files of this policy, read in the order of their names. Only the main file has it. An included file holds `[profile.NAME]` and `[tenant.NAME]` and nothing else, and relative paths in it start at its own folder. Names that start with a dot are passed over. A pattern that finds no file is an error, unless its folder is there and empty.",
        },
        Key {
            name: "host",
            form: Form::Table(HostToml::KEYS),
            default: "",
            example: "{}",
            doc: "What all tenants share. Only the main file has it.",
        },
        Key {
            name: "defaults",
            form: Form::Table(ProfileToml::KEYS),
            default: "",
            example: r#"{ limits = { memory = "16 MiB" } }"#,
            doc: "What every tenant starts from. Only the main file has it.",
        },
        Key {
            name: "profile",
            form: Form::Named(ProfileToml::KEYS, "a profile's name: 1 to 63 of `a-z`, `0-9` and `-`"),
            default: "",
            example: r#"{ web = { limits = { wall = "10 s" } } }"#,
            doc: "What the tenants that extend it start from, before the defaults.",
        },
        Key {
            name: "tenant",
            form: Form::Named(TenantToml::KEYS, "a tenant's name: 1 to 63 of `a-z`, `0-9` and `-`"),
            default: "",
            example: r#"{ acme = { script = "main.luau" } }"#,
            doc: "One tenant.",
        },
    ];
}

/// `[host]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
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
}

impl TableToml for HostToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "listen",
            form: Form::Text("an IP address and a port"),
            default: r#""127.0.0.1:8080""#,
            example: r#""127.0.0.1:8080""#,
            doc: "Where to serve. Port 0 takes any free one. Read at the start only.",
        },
        Key {
            name: "data_dir",
            form: Form::Text("a path"),
            default: r#""data""#,
            example: r#""../data""#,
            doc: "Folder below which every tenant's files and keys live.",
        },
        Key {
            name: "cache_dir",
            form: Form::Text("a path"),
            default: "(the user's cache folder)",
            example: r#""../cache""#,
            doc: "Folder for compiled code.",
        },
        Key {
            name: "instances",
            form: Form::Count { least: 1, most: host::MAX_INSTANCES as i64 },
            default: "1000",
            example: "1000",
            doc: "Instances alive at once, over all tenants: each request has one, and each of its workers. Over it requests wait in line.",
        },
        Key {
            name: "workers",
            form: Form::Count { least: 1, most: host::MAX_WORKERS as i64 },
            default: "(one for each core)",
            example: "2",
            doc: "Threads that run scripts.",
        },
        Key {
            name: "preemption",
            form: Form::Word(&["safepoint", "epoch"]),
            default: r#""safepoint""#,
            example: r#""safepoint""#,
            doc: "How a running script is stopped. `epoch` is slower, and there for the day that the other one is in doubt.",
        },
        Key {
            name: "audit",
            form: Form::Text("a path"),
            default: "(none)",
            example: r#""../audit.jsonl""#,
            doc: "File that gets a line of JSON for every decision. Without one, refusals go to the log, each tenant's within a quota. Read at the start only.",
        },
    ];
}

/// `[tenant.NAME]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantToml {
    /// The entry module's file.
    pub script: Option<Text>,
    /// Which requests are this tenant's.
    pub routes: Option<Vec<Text>>,
    /// The profile that it starts from.
    pub extends: Option<Text>,
    /// `[tenant.NAME.limits]`
    pub limits: LimitsToml,
    /// Whether what the policy refuses is refused.
    pub mode: Option<Text>,
    /// `[tenant.NAME.allow]`
    pub allow: AllowToml,
    /// `[tenant.NAME.deny]`
    pub deny: DenyToml,
}

impl TableToml for TenantToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "script",
            form: Form::Text("a path"),
            default: "(must be there)",
            example: r#""../examples/hello/main.luau""#,
            doc: "The entry module's file. It can require all files below its folder, so that folder should hold nothing of other tenants.",
        },
        Key {
            name: "routes",
            form: Form::Texts("`/path`, `/path/*`, `name/*` or `name/path/*`"),
            default: "[]",
            example: r#"["/acme/*"]"#,
            doc: "Which requests are this tenant's. The longest match wins; no match is 404. `/acme` is that path alone, `/acme/*` all below it as well, `acme.localhost/*` all paths of a host. The same route twice is an error.",
        },
        Key {
            name: "extends",
            form: Form::Text("a profile's name"),
            default: "(none)",
            example: r#""web""#,
            doc: "The profile that it starts from. A limit, a mode or a single grant of its own takes the place of the profile's, and that of the default's; rules in lists add up, those that deny too.",
        },
        Key {
            name: "limits",
            form: Form::Table(LimitsToml::KEYS),
            default: "",
            example: r#"{ memory = "32 MiB" }"#,
            doc: "How much it may use.",
        },
        Key {
            name: "mode",
            form: Form::Word(&["enforce", "report"]),
            default: r#""enforce""#,
            example: r#""enforce""#,
            doc: "`report` lets a call pass that some rule could allow, and records it with the fix that would allow it. What no rule can allow, limits, and files are refused all the same.",
        },
        Key {
            name: "allow",
            form: Form::Table(AllowToml::KEYS),
            default: "",
            example: "{ kv = {} }",
            doc: "What it may do. Nothing is allowed by being absent.",
        },
        Key {
            name: "deny",
            form: Form::Table(DenyToml::KEYS),
            default: "",
            example: r#"{ fs = [{ path = "/data/private" }] }"#,
            doc: "What it may not do, whatever `allow` says: a rule that denies wins over all that allow.",
        },
    ];
}

/// `[defaults]`, `[profile.NAME]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProfileToml {
    /// `[profile.NAME.limits]`
    pub limits: LimitsToml,
    /// Whether what the policy refuses is refused.
    pub mode: Option<Text>,
    /// `[profile.NAME.allow]`
    pub allow: AllowToml,
    /// `[profile.NAME.deny]`
    pub deny: DenyToml,
}

impl TableToml for ProfileToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "limits",
            form: Form::Table(LimitsToml::KEYS),
            default: "",
            example: r#"{ memory = "16 MiB" }"#,
            doc: "As `tenant.NAME.limits`, key by key.",
        },
        Key {
            name: "mode",
            form: Form::Word(&["enforce", "report"]),
            default: r#""enforce""#,
            example: r#""enforce""#,
            doc: "As `tenant.NAME.mode`.",
        },
        Key {
            name: "allow",
            form: Form::Table(AllowToml::KEYS),
            default: "",
            example: "{ kv = {} }",
            doc: "As `tenant.NAME.allow`: its rules are the tenant's as well.",
        },
        Key {
            name: "deny",
            form: Form::Table(DenyToml::KEYS),
            default: "",
            example: r#"{ fs = [{ path = "/data/private" }] }"#,
            doc: "As `tenant.NAME.deny`: no tenant gets round it by a rule of its own.",
        },
    ];
}

/// `[tenant.NAME.limits]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
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
    /// Operations of one VM under way at once.
    pub pending_operations: Option<Spanned<i64>>,
    /// Tasks of one VM alive at once.
    pub tasks: Option<Spanned<i64>>,
    /// Timers of one VM that run at once.
    pub timers: Option<Spanned<i64>>,
    /// Outbound connections at once.
    pub connections: Option<Spanned<i64>>,
    /// Outbound requests and connections of one request.
    pub subrequests: Option<Spanned<i64>>,
    /// Bytes that one request sends.
    pub egress: Option<Text>,
    /// Bytes that one request receives.
    pub ingress: Option<Text>,
    /// Longest body of a request.
    pub request_body: Option<Text>,
    /// Longest body of a response.
    pub response_body: Option<Text>,
    /// Bytes that are logged.
    pub log: Option<Text>,
    /// Longest line of the log.
    pub log_line: Option<Text>,
    /// Bytes in the store.
    pub kv: Option<Text>,
    /// Longest value in the store.
    pub kv_value: Option<Text>,
    /// Bytes in the granted directories.
    pub fs: Option<Text>,
    /// Files in the granted directories.
    pub fs_files: Option<Spanned<i64>>,
    /// Share of the script workers, beside the others'.
    pub weight: Option<Spanned<i64>>,
}

impl TableToml for LimitsToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "memory",
            form: Form::Size { least: limits::MIN_MEMORY_BYTES, most: limits::MAX_MEMORY_BYTES },
            default: r#""32 MiB""#,
            example: r#""32 MiB""#,
            doc: r#"Memory of one request. Over it: "not enough memory" in the script, which can catch it."#,
        },
        Key {
            name: "cpu",
            form: Form::Time { least: limits::MIN_TIME, most: limits::MAX_CPU },
            default: r#""50 ms""#,
            example: r#""50 ms""#,
            doc: "Computing time of one request; time parked in I/O is free. Not more than `wall`. Over it: the request is ended, and the script cannot catch that.",
        },
        Key {
            name: "wall",
            form: Form::Time { least: limits::MIN_TIME, most: limits::MAX_WALL },
            default: r#""30 s""#,
            example: r#""30 s""#,
            doc: "Time from a request's start to its end, with all waiting. Over it: the request is ended.",
        },
        Key {
            name: "requests",
            form: Form::Rate { most: limits::MAX_RATE },
            default: r#""200/s""#,
            example: r#""200/s""#,
            doc: "Inbound requests of the tenant. Over it: 429 with `Retry-After`.",
        },
        Key {
            name: "operations",
            form: Form::Rate { most: limits::MAX_RATE },
            default: r#""1000/s""#,
            example: r#""1000/s""#,
            doc: "Calls of granted capabilities. Over it: an error of kind `limit`, which the script can catch.",
        },
        Key {
            name: "pending_operations",
            form: Form::Count { least: 1, most: limits::MAX_PENDING_OPERATIONS as i64 },
            default: "64",
            example: "64",
            doc: "Calls of one VM under way at once, timers not counted. A worker is a VM of its own. Over it: an error of kind `limit`.",
        },
        Key {
            name: "tasks",
            form: Form::Count { least: 1, most: limits::MAX_TASKS as i64 },
            default: "1000",
            example: "1000",
            doc: "Tasks of one VM that have not ended. Over it: an error of kind `limit`.",
        },
        Key {
            name: "timers",
            form: Form::Count { least: 1, most: limits::MAX_TIMERS as i64 },
            default: "1000",
            example: "1000",
            doc: "Waits and delays of one VM at once. Over it: an error of kind `limit`.",
        },
        Key {
            name: "connections",
            form: Form::Count { least: 1, most: limits::MAX_CONNECTIONS as i64 },
            default: "32",
            example: "32",
            doc: "Outbound connections of the tenant at once. Over it a request waits its turn, no longer than for its own timeout; a socket is refused.",
        },
        Key {
            name: "subrequests",
            form: Form::Count { least: 1, most: limits::MAX_SUBREQUESTS as i64 },
            default: "50",
            example: "50",
            doc: "Outbound requests and connections of one request, redirects counted, with those of its workers and detached tasks. Over it: an error of kind `limit`.",
        },
        Key {
            name: "egress",
            form: Form::Size { least: *limits::TRAFFIC.start(), most: *limits::TRAFFIC.end() },
            default: r#""100 MiB""#,
            example: r#""100 MiB""#,
            doc: "Bytes that one request may send to others, with its workers and detached tasks: URLs, headers and bodies, not what TLS and TCP add. What would go over it is not sent at all. The answer to its client is not counted.",
        },
        Key {
            name: "ingress",
            form: Form::Size { least: *limits::TRAFFIC.start(), most: *limits::TRAFFIC.end() },
            default: r#""500 MiB""#,
            example: r#""500 MiB""#,
            doc: "Bytes that one request may receive from others, with its workers and detached tasks: headers and bodies as they come, before they are unpacked. Over it: an error of kind `limit`. What its client sends is not counted.",
        },
        Key {
            name: "request_body",
            form: Form::Size { least: *limits::BODY.start(), most: *limits::BODY.end() },
            default: r#""10 MiB""#,
            example: r#""10 MiB""#,
            doc: "Longest body of a request. A client's longer one is answered with 413, the script's own is an error of kind `limit`.",
        },
        Key {
            name: "response_body",
            form: Form::Size { least: *limits::BODY.start(), most: *limits::BODY.end() },
            default: r#""10 MiB""#,
            example: r#""10 MiB""#,
            doc: "Longest body of a response, unpacked. An upstream's longer one is an error of kind `limit`; a script that answers with a longer one has failed.",
        },
        Key {
            name: "log",
            form: Form::Flow { least: *limits::LOG.start(), most: *limits::LOG.end() },
            default: r#""64 KiB/s""#,
            example: r#""64 KiB/s""#,
            doc: "Bytes of the script's lines in the log. Lines over it are dropped, and counted.",
        },
        Key {
            name: "log_line",
            form: Form::Size { least: *limits::LOG_LINE.start(), most: *limits::LOG_LINE.end() },
            default: r#""8 KiB""#,
            example: r#""8 KiB""#,
            doc: "Longest line of the log. Not more than `log` allows at once. A longer one is cut.",
        },
        Key {
            name: "kv",
            form: Form::Size { least: *limits::STORE.start(), most: *limits::STORE.end() },
            default: r#""100 MiB""#,
            example: r#""100 MiB""#,
            doc: "Bytes in the tenant's store, keys and values together. Over it: an error of kind `limit`; what makes it less is always possible.",
        },
        Key {
            name: "kv_value",
            form: Form::Size { least: *limits::VALUE.start(), most: *limits::VALUE.end() },
            default: r#""1 MiB""#,
            example: r#""1 MiB""#,
            doc: "Longest value in the store. Over it: an error of kind `limit`.",
        },
        Key {
            name: "fs",
            form: Form::Size { least: *limits::FILES.start(), most: *limits::FILES.end() },
            default: r#""100 MiB""#,
            example: r#""100 MiB""#,
            doc: "Bytes of all files in the tenant's read-write directories. Over it: an error of kind `limit`; what makes it less is always possible. Directories within one another, of other tenants too, are counted as one. Files that the operator adds or removes are noticed before a write is refused, at the latest after 10 seconds, and at the start.",
        },
        Key {
            name: "fs_files",
            form: Form::Count { least: 1, most: limits::MAX_FS_FILES as i64 },
            default: "10000",
            example: "10000",
            doc: "Files and directories in the tenant's read-write directories, counted as for `fs`.",
        },
        Key {
            name: "weight",
            form: Form::Count { least: 1, most: limits::MAX_WEIGHT as i64 },
            default: "1",
            example: "1",
            doc: "Share of the script workers beside other tenants': so many time slices in each turn.",
        },
    ];
}

/// `[tenant.NAME.allow]`: one key per capability.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AllowToml {
    /// `[[tenant.NAME.allow.http]]`
    pub http: Vec<Spanned<HttpToml>>,
    /// `[[tenant.NAME.allow.fs]]`
    pub fs: Vec<Spanned<FsToml>>,
    /// `[tenant.NAME.allow.kv]`
    pub kv: Option<Spanned<KvToml>>,
    /// `[tenant.NAME.allow.detach]`
    pub detach: Option<Spanned<DetachToml>>,
    /// `[tenant.NAME.allow.workers]`
    pub workers: Option<Spanned<WorkersToml>>,
    /// `[tenant.NAME.allow.log]`
    pub log: Option<Spanned<LogToml>>,
}

impl TableToml for AllowToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "http",
            form: Form::Tables(HttpToml::KEYS),
            default: "",
            example: r#"[{ hosts = ["https://api.example.com"] }]"#,
            doc: "Outbound HTTP. A call needs one rule that allows all of it; rules never combine.",
        },
        Key {
            name: "fs",
            form: Form::Tables(FsToml::KEYS),
            default: "",
            example: r#"[{ path = "/data", dir = "acme-data", access = "read" }]"#,
            doc: "Directories. The grant with the longest `path` that covers a call decides on it.",
        },
        Key {
            name: "kv",
            form: Form::Table(KvToml::KEYS),
            default: "",
            example: "{}",
            doc: "Keys and values of the tenant's own. The empty table is the grant.",
        },
        Key {
            name: "detach",
            form: Form::Table(DetachToml::KEYS),
            default: "",
            example: r#"{ tasks = 10, cpu = "50 ms", wall = "30 s" }"#,
            doc: "Tasks that go on after the answer (`task.detach`).",
        },
        Key {
            name: "workers",
            form: Form::Table(WorkersToml::KEYS),
            default: "",
            example: "{}",
            doc: "Further VMs, on other processors, for a request that computes a lot. They share its `cpu` and its `wall`; each has `memory` of its own and takes one of the host's `instances`.",
        },
        Key {
            name: "log",
            form: Form::Table(LogToml::KEYS),
            default: "",
            example: r#"{ level = "info" }"#,
            doc: "Lines of the script's. Logging is the one thing that needs no grant: a script that may not say what went wrong cannot be operated, what it says goes to nobody but its operator, and `limits.log` bounds how much. This table keeps less of it.",
        },
    ];
}

/// One `[[tenant.NAME.allow.http]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpToml {
    /// Origins.
    pub hosts: Option<Vec<Text>>,
    /// Private and special networks that the hosts may resolve to.
    pub addresses: Option<Vec<Text>>,
    /// Methods; absent: all.
    pub methods: Option<Vec<Text>>,
    /// Paths; absent: all.
    pub paths: Option<Vec<Text>>,
}

impl TableToml for HttpToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "hosts",
            form: Form::Texts("origins: `https://name`, `http://address:port`, `https://*.name`"),
            default: "(must be there)",
            example: r#"["https://api.example.com"]"#,
            doc: "Where calls may go: scheme, host and port. A wildcard stands for every subdomain, not for the name itself. A bare `*` is an error.",
        },
        Key {
            name: "addresses",
            form: Form::Texts("networks, as `10.1.0.0/16`"),
            default: "[]",
            example: r#"["127.0.0.0/8"]"#,
            doc: "Private and special networks that the hosts may resolve to. Public addresses need no name here; link-local addresses and cloud metadata are refused, also when named.",
        },
        Key {
            name: "methods",
            form: Form::Texts("methods in upper case"),
            default: "(all but `CONNECT`, `TRACE` and `TRACK`)",
            example: r#"["GET", "POST"]"#,
            doc: "Methods that a call may use.",
        },
        Key {
            name: "paths",
            form: Form::Texts("paths: `/health` is that path, `/v1/*` is `/v1` and all below it"),
            default: "(all)",
            example: r#"["/v1/*", "/health"]"#,
            doc: "Paths that a call may have, compared as they are sent, without the query. A path that servers read in two ways, with `//`, `;`, `%2F` or `%2E` in it, fits none.",
        },
    ];
}

/// `[tenant.NAME.deny]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenyToml {
    /// `[[tenant.NAME.deny.http]]`
    pub http: Vec<Spanned<DenyHttpToml>>,
    /// `[[tenant.NAME.deny.fs]]`
    pub fs: Vec<Spanned<DenyFsToml>>,
}

impl TableToml for DenyToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "http",
            form: Form::Tables(DenyHttpToml::KEYS),
            default: "",
            example: r#"[{ hosts = ["https://admin.example.com"] }]"#,
            doc: "Outbound HTTP that is refused, whatever allows it.",
        },
        Key {
            name: "fs",
            form: Form::Tables(DenyFsToml::KEYS),
            default: "",
            example: r#"[{ path = "/data/private" }]"#,
            doc: "Paths that are refused, whatever grants them.",
        },
    ];
}

/// One `[[tenant.NAME.deny.http]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenyHttpToml {
    /// Origins.
    pub hosts: Option<Vec<Text>>,
    /// Methods; absent: all.
    pub methods: Option<Vec<Text>>,
    /// Paths; absent: all.
    pub paths: Option<Vec<Text>>,
}

impl TableToml for DenyHttpToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "hosts",
            form: Form::Texts("origins: `https://name`, `http://address:port`, `https://*.name`"),
            default: "(must be there)",
            example: r#"["https://admin.example.com"]"#,
            doc: "Where no call may go: scheme, host and port, as in `allow`.",
        },
        Key {
            name: "methods",
            form: Form::Texts("methods in upper case"),
            default: "(all)",
            example: r#"["DELETE"]"#,
            doc: "Methods that no call may use there.",
        },
        Key {
            name: "paths",
            form: Form::Texts("paths: `/health` is that path, `/v1/*` is `/v1` and all below it"),
            default: "(all)",
            example: r#"["/admin/*"]"#,
            doc: "Paths that no call may have there. A path that servers read in two ways is denied by every rule with paths for its host.",
        },
    ];
}

/// One `[[tenant.NAME.deny.fs]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenyFsToml {
    /// The file or directory as the script sees it.
    pub path: Option<Text>,
}

impl TableToml for DenyFsToml {
    const KEYS: &'static [Key] = &[Key {
        name: "path",
        form: Form::Text("an absolute path"),
        default: "(must be there)",
        example: r#""/data/private""#,
        doc: "A file or directory as the script sees it. All below it is refused too.",
    }];
}

/// One `[[tenant.NAME.allow.fs]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
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
    const KEYS: &'static [Key] = &[
        Key {
            name: "path",
            form: Form::Text("an absolute path"),
            default: "(must be there)",
            example: r#""/data""#,
            doc: "The directory as the script sees it.",
        },
        Key {
            name: "dir",
            form: Form::Text("a directory below `data_dir`"),
            default: "(must be there)",
            example: r#""acme-data""#,
            doc: "The directory itself, below the host's `data_dir`. It is made if it is not there.",
        },
        Key {
            name: "access",
            form: Form::Word(&["read", "read-write"]),
            default: "(must be there)",
            example: r#""read""#,
            doc: "What may be done in it.",
        },
    ];
}

/// `[tenant.NAME.allow.kv]`: its presence is the grant.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvToml {}

impl TableToml for KvToml {
    const KEYS: &'static [Key] = &[];
}

/// `[tenant.NAME.allow.detach]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
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
    const KEYS: &'static [Key] = &[
        Key {
            name: "tasks",
            form: Form::Count { least: 1, most: detach::MAX_TASKS as i64 },
            default: "10",
            example: "10",
            doc: "Tasks that one request may detach. Over it: an error of kind `limit`.",
        },
        Key {
            name: "cpu",
            form: Form::Time { least: limits::MIN_TIME, most: detach::MAX_CPU },
            default: r#""50 ms""#,
            example: r#""50 ms""#,
            doc: "Their computing time, together, from the answer on. Over it they are ended.",
        },
        Key {
            name: "wall",
            form: Form::Time { least: limits::MIN_TIME, most: detach::MAX_WALL },
            default: r#""30 s""#,
            example: r#""30 s""#,
            doc: "Their time, with all waiting, from the answer on. Over it they are ended.",
        },
    ];
}

/// `[tenant.NAME.allow.workers]`: its presence is the grant.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkersToml {
    /// VMs of one request at once.
    pub count: Option<Spanned<i64>>,
}

impl TableToml for WorkersToml {
    const KEYS: &'static [Key] = &[Key {
        name: "count",
        form: Form::Count { least: 1, most: workers::MAX_COUNT as i64 },
        default: "2",
        example: "2",
        doc: "VMs of one request at once, beside its own. More wait in line.",
    }];
}

/// `[tenant.NAME.allow.log]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogToml {
    /// `debug`, `info`, `warn` or `error`.
    pub level: Option<Text>,
}

impl TableToml for LogToml {
    const KEYS: &'static [Key] = &[Key {
        name: "level",
        form: Form::Word(&["debug", "info", "warn", "error"]),
        default: r#""debug""#,
        example: r#""info""#,
        doc: "The least level that is kept. `print` counts as `info`.",
    }];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of every key, as one table.
    fn examples<T: TableToml>() -> T {
        let text: String = T::KEYS.iter().map(|key| format!("{} = {}\n", key.name, key.example)).collect();
        toml::from_str(&text).unwrap_or_else(|fault| panic!("every example has its key's type: {fault}\n{text}"))
    }

    #[test]
    fn every_key_is_listed_with_an_example_of_its_type() {
        // Destructured without `..`: a new field fails to compile until it is asserted here.
        let PolicyToml { include, host: _, defaults, profile, tenant, is_whole: _ } = examples();
        assert!(defaults.limits.memory.is_some() && profile.len() == 1);
        let ProfileToml { limits, mode, allow, deny } = examples();
        assert!(limits.memory.is_some() && mode.is_some() && allow.kv.is_some() && deny.fs.len() == 1);
        assert!(include.is_some() && tenant.len() == 1);
        let HostToml { listen, data_dir, cache_dir, instances, workers, preemption, audit } = examples();
        assert!(listen.is_some() && data_dir.is_some() && cache_dir.is_some());
        assert!(instances.is_some() && workers.is_some() && preemption.is_some() && audit.is_some());
        let TenantToml { script, routes, extends, limits, mode, allow, deny } = examples();
        assert!(extends.is_some());
        assert!(deny.fs.len() == 1);
        assert!(script.is_some() && routes.is_some() && mode.is_some());
        assert!(limits.memory.is_some() && allow.kv.is_some());
        let LimitsToml {
            memory,
            cpu,
            wall,
            requests,
            operations,
            pending_operations,
            tasks,
            timers,
            connections,
            subrequests,
            egress,
            ingress,
            request_body,
            response_body,
            log,
            log_line,
            kv,
            kv_value,
            fs,
            fs_files,
            weight,
        } = examples();
        let texts = [memory, cpu, wall, requests, operations, egress, ingress, request_body, response_body, log];
        assert!(texts.iter().chain(&[log_line, kv, kv_value, fs]).all(Option::is_some));
        let numbers = [pending_operations, tasks, timers, connections, subrequests, fs_files, weight];
        assert!(numbers.iter().all(Option::is_some));
        let AllowToml { http, fs, kv, detach, workers, log } = examples();
        assert!(log.is_some());
        assert!(http.len() == 1 && fs.len() == 1 && kv.is_some() && detach.is_some() && workers.is_some());
        let DetachToml { tasks, cpu, wall } = examples();
        assert!(tasks.is_some() && cpu.is_some() && wall.is_some());
        let HttpToml { hosts, addresses, methods, paths } = examples();
        assert!(hosts.is_some() && addresses.is_some() && methods.is_some() && paths.is_some());
        let DenyToml { http, fs } = examples();
        assert!(http.len() == 1 && fs.len() == 1);
        let DenyHttpToml { hosts, methods, paths } = examples();
        assert!(hosts.is_some() && methods.is_some() && paths.is_some());
        let DenyFsToml { path } = examples();
        assert!(path.is_some());
        let FsToml { path, dir, access } = examples();
        assert!(path.is_some() && dir.is_some() && access.is_some());
        let KvToml {} = examples();
        let LogToml { level } = examples();
        assert!(level.is_some());
        let WorkersToml { count } = examples();
        assert!(count.is_some());
    }
}
