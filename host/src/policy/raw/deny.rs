//! `[tenant.NAME.deny]`: one list for each capability that has rules.

use serde::Deserialize;
use toml::Spanned;

use super::{
    Text,
    allow::{ENDPOINTS, ORIGINS, PATHS},
};
use crate::policy::keys::{Form, Key, REQUIRED, TableToml};

/// `[tenant.NAME.deny]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenyToml {
    /// `[[tenant.NAME.deny.http]]`
    pub http: Vec<Spanned<DenyHttpToml>>,
    /// `[[tenant.NAME.deny.net]]`
    pub net: Vec<Spanned<DenyNetToml>>,
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
            name: "net",
            form: Form::Tables(DenyNetToml::KEYS),
            default: "",
            example: r#"[{ hosts = ["tcp://db.example.com:5432"] }]"#,
            doc: "Connections and datagrams that are refused, whatever allows them.",
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
            form: ORIGINS,
            default: REQUIRED,
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
            form: PATHS,
            default: "(all)",
            example: r#"["/admin/*"]"#,
            doc: "Paths that no call may have there. A path that servers read in two ways is denied by every rule with paths for its host.",
        },
    ];
}

/// One `[[tenant.NAME.deny.net]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenyNetToml {
    /// Endpoints.
    pub hosts: Option<Vec<Text>>,
}

impl TableToml for DenyNetToml {
    const KEYS: &'static [Key] = &[Key {
        name: "hosts",
        form: ENDPOINTS,
        default: REQUIRED,
        example: r#"["tcp://db.example.com:5432"]"#,
        doc: "Where no call may go, as in `allow`.",
    }];
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
        default: REQUIRED,
        example: r#""/data/private""#,
        doc: "A file or directory as the script sees it. All below it is refused too.",
    }];
}
