//! `[tenant.NAME.allow]`: one table for each capability.

use serde::Deserialize;
use toml::Spanned;

use super::Text;
use crate::policy::{
    detach,
    keys::{Form, Key, REQUIRED, TableToml},
    limits, workers,
};

/// What `hosts` of a rule for HTTP hold.
pub(super) const ORIGINS: Form = Form::Texts("origins: `https://name`, `http://address:port`, `https://*.name`");

/// What `paths` of a rule for HTTP hold.
pub(super) const PATHS: Form = Form::Texts("paths: `/health` is that path, `/v1/*` is `/v1` and all below it");

/// What `hosts` of a rule for connections hold.
pub(super) const ENDPOINTS: Form =
    Form::Texts("endpoints: `tcp://name:port`, `tls://…`, `udp://…`, and `*.` before a name");

/// `[tenant.NAME.allow]`: one key per capability.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
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
            name: "net",
            form: Form::Tables(NetToml::KEYS),
            default: "",
            example: r#"[{ hosts = ["tcp://db.example.com:5432"] }]"#,
            doc: "Connections by TCP and TLS, and datagrams by UDP (`std:net`). A grant of `http` gives none of these.",
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
            form: ORIGINS,
            default: REQUIRED,
            example: r#"["https://api.example.com"]"#,
            doc: "Where calls may go: scheme, host and port. A wildcard stands for every subdomain, not for the name itself. A bare `*` is an error.",
        },
        Key {
            name: "addresses",
            form: Form::Texts("networks, as `10.1.0.0/16`"),
            default: "[]",
            example: r#"["127.0.0.0/8"]"#,
            doc: "Private and special networks that the hosts may resolve to. Public addresses need no name here, but those of this machine; link-local addresses, cloud metadata and the host's own listener are refused, also when named.",
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
            form: PATHS,
            default: "(all)",
            example: r#"["/v1/*", "/health"]"#,
            doc: "Paths that a call may have, compared as they are sent, without the query. A path that servers read in two ways, with `//`, `;`, `%2F` or `%2E` in it, fits none.",
        },
    ];
}

/// One `[[tenant.NAME.allow.net]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetToml {
    /// Endpoints.
    pub hosts: Option<Vec<Text>>,
    /// Private and special networks that the hosts may resolve to.
    pub addresses: Option<Vec<Text>>,
}

impl TableToml for NetToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "hosts",
            form: ENDPOINTS,
            default: REQUIRED,
            example: r#"["tcp://db.example.com:5432"]"#,
            doc: "Where calls may go: scheme, host and port. The port is always written.",
        },
        Key {
            name: "addresses",
            form: Form::Texts("networks, as `10.1.0.0/16`"),
            default: "[]",
            example: r#"["10.0.0.0/8"]"#,
            doc: "Private and special networks that the hosts may resolve to, as for `http`. Multicast and broadcast addresses are refused, also when named.",
        },
    ];
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
            default: REQUIRED,
            example: r#""/data""#,
            doc: "The directory as the script sees it.",
        },
        Key {
            name: "dir",
            form: Form::Text("a directory below `data_dir`"),
            default: REQUIRED,
            example: r#""acme-data""#,
            doc: "The directory itself, below the host's `data_dir`. It is made if it is not there.",
        },
        Key {
            name: "access",
            form: Form::Word(&["read", "read-write"]),
            default: REQUIRED,
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
