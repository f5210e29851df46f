//! `[tenant.NAME.limits]`.

use serde::Deserialize;
use toml::Spanned;

use super::Text;
use crate::policy::{
    keys::{Form, Key, TableToml},
    limits,
};

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
            doc: r#"Memory of one VM: of one request, or with `isolation = "tenant"` of all that the tenant has at once. Over it: "not enough memory" in the script, which can catch it."#,
        },
        Key {
            name: "cpu",
            form: Form::Time { least: limits::MIN_TIME, most: limits::MAX_CPU },
            default: r#""50 ms""#,
            example: r#""50 ms""#,
            doc: "Computing time of one request; time parked in I/O is free. Not more than `wall`. Over it: the request is ended with its VM, and the script cannot catch that.",
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
            doc: "Calls of one request under way at once, timers not counted. Those of each worker count apart. Over it: an error of kind `limit`.",
        },
        Key {
            name: "tasks",
            form: Form::Count { least: 1, most: limits::MAX_TASKS as i64 },
            default: "1000",
            example: "1000",
            doc: "Tasks of one request that have not ended; those of each worker apart. Over it: an error of kind `limit`.",
        },
        Key {
            name: "timers",
            form: Form::Count { least: 1, most: limits::MAX_TIMERS as i64 },
            default: "1000",
            example: "1000",
            doc: "Waits and delays of one request at once; those of each worker apart. Over it: an error of kind `limit`.",
        },
        Key {
            name: "connections",
            form: Form::Count { least: 1, most: limits::MAX_CONNECTIONS as i64 },
            default: "32",
            example: "32",
            doc: "Outbound connections of the tenant at once; as many, up to 256, are kept idle for later. Over it a request waits its turn, no longer than for its own timeout; a socket is refused.",
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
            doc: "Share of the script workers' time, where several tenants want all of it: twice the weight, twice the time.",
        },
    ];
}
