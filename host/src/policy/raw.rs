//! The policy file as written: strings, numbers and where they stand.
//!
//! Nothing here is checked beyond its TOML type. Every key is optional, because a key that is wrong is
//! left out and the reading goes on; what must be there is asked for in the conversion. A span stays
//! with every value, so that a rule broken later can still name line and column.

mod allow;
mod deny;
mod limits;
mod module;

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

pub use self::{
    allow::{AllowToml, DetachToml, FsToml, HttpToml, KvToml, LogToml, NetToml, WorkersToml},
    deny::{DenyFsToml, DenyHttpToml, DenyNetToml, DenyToml},
    limits::LimitsToml,
    module::{ModuleAllowToml, ModuleFsToml, ModuleHttpToml, ModuleNetToml, ModuleToml, NarrowedKvToml},
};
use super::{
    host,
    keys::{Form, Key, Names, REQUIRED, TableToml},
};

const PROFILES: Names =
    Names { words: "a profile's name: 1 to 63 of `a-z`, `0-9` and `-`", pattern: "^[a-z0-9-]{1,63}$", example: "web" };

const TENANTS: Names =
    Names { words: "a tenant's name: 1 to 63 of `a-z`, `0-9` and `-`", pattern: "^[a-z0-9-]{1,63}$", example: "acme" };

const MODULES: Names = Names {
    words: "a module's path from the entry module's folder: `\"vendor/lib\"`, without `./` and extension",
    pattern: "^[A-Za-z0-9_-][A-Za-z0-9_.@-]*(/[A-Za-z0-9_-][A-Za-z0-9_.@-]*)*$",
    example: "\"vendor/lib\"",
};

const SECRETS: Names = Names {
    words: "a secret's name: 1 to 63 of `a-z`, `0-9`, `_` and `-`",
    pattern: "^[a-z0-9_-]{1,63}$",
    example: "api_key",
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
            form: Form::Named(ProfileToml::KEYS, PROFILES),
            default: "",
            example: r#"{ web = { limits = { wall = "10 s" } } }"#,
            doc: "What the tenants that extend it start from, before the defaults.",
        },
        Key {
            name: "tenant",
            form: Form::Named(TenantToml::KEYS, TENANTS),
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
    /// Name servers.
    pub dns: Option<Vec<Text>>,
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
            doc: "Instances alive at once, over all tenants: each request has one, each of its workers, and each tenant with `isolation = \"tenant\"` keeps one. Over it requests wait in line. More than there are such tenants.",
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
            name: "dns",
            form: Form::Texts("a name server's IP address and port"),
            default: "(those of the system)",
            example: r#"["127.0.0.1:53"]"#,
            doc: "Name servers for the hosts that scripts name. Names are resolved by DNS alone: no hosts file, no search domains.",
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
    /// Who shares a VM.
    pub isolation: Option<Text>,
    /// `[tenant.NAME.allow]`
    pub allow: AllowToml,
    /// `[tenant.NAME.deny]`
    pub deny: DenyToml,
    /// `[tenant.NAME.secret.NAME]`, by name.
    pub secret: BTreeMap<Text, Spanned<SecretToml>>,
    /// `[tenant.NAME.module.PATH]`, by path.
    pub module: BTreeMap<Text, Spanned<ModuleToml>>,
}

impl TableToml for TenantToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "script",
            form: Form::Text("a path"),
            default: REQUIRED,
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
            doc: "The profile that it starts from. A limit, a mode, an isolation or a single grant of its own takes the place of the profile's, and that of the default's; rules in lists add up, those that deny too.",
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
            name: "isolation",
            form: Form::Word(&["request", "tenant"]),
            default: r#""request""#,
            example: r#""request""#,
            doc: "`request`: each request has a fresh VM. `tenant`: all requests run in one VM at once, which lives on between them and keeps what the script keeps, until a request of them is killed or the script is loaded again. See below.",
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
        Key {
            name: "secret",
            form: Form::Named(SecretToml::KEYS, SECRETS),
            default: "",
            example: r#"{ api_key = { from = "env:API_KEY", origins = ["https://api.example.com"] } }"#,
            doc: "Secrets that its script may use, and never read: it puts a handle into a header, and the host puts the value in on the way out.",
        },
        Key {
            name: "module",
            form: Form::Named(ModuleToml::KEYS, MODULES),
            default: "",
            example: r#"{ "vendor/lib" = { allow = { http = [{ hosts = ["https://api.example.com"] }] } } }"#,
            doc: "Modules of its own that have less than the rest of its script. A path means that module and all below it; of two paths the longer one counts.",
        },
    ];
}

/// `[tenant.NAME.secret.NAME]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretToml {
    /// The file or the variable that holds it.
    pub from: Option<Text>,
    /// Where it may go.
    pub origins: Option<Vec<Text>>,
    /// `[[tenant.NAME.secret.NAME.also]]`
    pub also: Vec<Spanned<AlsoToml>>,
}

impl TableToml for SecretToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "from",
            form: Form::Text("`file:` and a path, or `env:` and a variable's name"),
            default: REQUIRED,
            example: r#""env:API_KEY""#,
            doc: "Where it is kept: in a file, whose whole content it is but for one line feed at the end, or in a variable of the host's environment, which no script sees. 1 byte to 4 KiB of UTF-8 without control characters. Read at the start and at each reload.",
        },
        Key {
            name: "origins",
            form: Form::Texts("origins: `https://name`, `http://address:port`"),
            default: REQUIRED,
            example: r#"["https://api.example.com"]"#,
            doc: "Where the secret may go: scheme, host and port, without wildcards. It grants no call; `allow.http` does. Who runs such an origin learns the secret, and may show it to the script.",
        },
        Key {
            name: "also",
            form: Form::Tables(AlsoToml::KEYS),
            default: "",
            example: r#"[{ origins = ["https://other.example.com"] }]"#,
            doc: "Further origins, in tables of their own: what the fix of a refused call adds.",
        },
    ];
}

/// One `[[tenant.NAME.secret.NAME.also]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlsoToml {
    /// Where it may go as well.
    pub origins: Option<Vec<Text>>,
}

impl TableToml for AlsoToml {
    const KEYS: &'static [Key] = &[Key {
        name: "origins",
        form: Form::Texts("origins: `https://name`, `http://address:port`"),
        default: REQUIRED,
        example: r#"["https://other.example.com"]"#,
        doc: "As the secret's own `origins`.",
    }];
}

/// `[defaults]`, `[profile.NAME]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProfileToml {
    /// `[profile.NAME.limits]`
    pub limits: LimitsToml,
    /// Whether what the policy refuses is refused.
    pub mode: Option<Text>,
    /// Who shares a VM.
    pub isolation: Option<Text>,
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
            name: "isolation",
            form: Form::Word(&["request", "tenant"]),
            default: r#""request""#,
            example: r#""request""#,
            doc: "As `tenant.NAME.isolation`.",
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
        let ProfileToml { limits, mode, isolation, allow, deny } = examples();
        assert!(isolation.is_some());
        assert!(limits.memory.is_some() && mode.is_some() && allow.kv.is_some() && deny.fs.len() == 1);
        assert!(include.is_some() && tenant.len() == 1);
        let HostToml { listen, data_dir, cache_dir, instances, workers, preemption, dns, audit } = examples();
        assert!(dns.is_some());
        assert!(listen.is_some() && data_dir.is_some() && cache_dir.is_some());
        assert!(instances.is_some() && workers.is_some() && preemption.is_some() && audit.is_some());
        let TenantToml { script, routes, extends, limits, mode, isolation, allow, deny, secret, module } = examples();
        assert!(isolation.is_some());
        assert!(extends.is_some() && secret.len() == 1 && module.len() == 1);
        let SecretToml { from, origins, also } = examples();
        assert!(from.is_some() && origins.is_some() && also.len() == 1);
        let AlsoToml { origins } = examples();
        assert!(origins.is_some());
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
        let AllowToml { http, net, fs, kv, detach, workers, log } = examples();
        assert!(net.len() == 1);
        assert!(log.is_some());
        assert!(http.len() == 1 && fs.len() == 1 && kv.is_some() && detach.is_some() && workers.is_some());
        let DetachToml { tasks, cpu, wall } = examples();
        assert!(tasks.is_some() && cpu.is_some() && wall.is_some());
        let HttpToml { hosts, addresses, methods, paths } = examples();
        assert!(hosts.is_some() && addresses.is_some() && methods.is_some() && paths.is_some());
        let DenyToml { http, net, fs } = examples();
        assert!(http.len() == 1 && net.len() == 1 && fs.len() == 1);
        let NetToml { hosts, addresses } = examples();
        assert!(hosts.is_some() && addresses.is_some());
        let DenyNetToml { hosts } = examples();
        assert!(hosts.is_some());
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
