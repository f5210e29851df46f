//! `[tenant.NAME.module.PATH]`: what a module of the tenant's has at most.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{
    SECRETS, Text,
    allow::{ENDPOINTS, ORIGINS, PATHS},
};
use crate::policy::keys::{Form, Key, REQUIRED, TableToml};

/// `[tenant.NAME.module.PATH]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModuleToml {
    /// `[tenant.NAME.module.PATH.allow]`
    pub allow: ModuleAllowToml,
}

impl TableToml for ModuleToml {
    const KEYS: &'static [Key] = &[Key {
        name: "allow",
        form: Form::Table(ModuleAllowToml::KEYS),
        default: "",
        example: r#"{ http = [{ hosts = ["https://api.example.com"] }] }"#,
        doc: "What of the tenant's grants the module may use. What is not named here it may not, and nothing here grants what the tenant does not have.",
    }];
}

/// `[tenant.NAME.module.PATH.allow]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModuleAllowToml {
    /// `[[tenant.NAME.module.PATH.allow.http]]`
    pub http: Vec<Spanned<ModuleHttpToml>>,
    /// `[[tenant.NAME.module.PATH.allow.net]]`
    pub net: Vec<Spanned<ModuleNetToml>>,
    /// `[[tenant.NAME.module.PATH.allow.fs]]`
    pub fs: Vec<Spanned<ModuleFsToml>>,
    /// `[tenant.NAME.module.PATH.allow.kv]`
    pub kv: Option<Spanned<PresentToml>>,
    /// `[tenant.NAME.module.PATH.allow.detach]`
    pub detach: Option<Spanned<PresentToml>>,
    /// `[tenant.NAME.module.PATH.allow.workers]`
    pub workers: Option<Spanned<PresentToml>>,
    /// `[tenant.NAME.module.PATH.allow.secret.NAME]`
    pub secret: BTreeMap<Text, Spanned<PresentToml>>,
}

impl TableToml for ModuleAllowToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "http",
            form: Form::Tables(ModuleHttpToml::KEYS),
            default: "",
            example: r#"[{ hosts = ["https://api.example.com"] }]"#,
            doc: "Outbound HTTP. A call of the module's needs one of these rules, and one of the tenant's.",
        },
        Key {
            name: "net",
            form: Form::Tables(ModuleNetToml::KEYS),
            default: "",
            example: r#"[{ hosts = ["tcp://db.example.com:5432"] }]"#,
            doc: "Connections and datagrams.",
        },
        Key {
            name: "fs",
            form: Form::Tables(ModuleFsToml::KEYS),
            default: "",
            example: r#"[{ path = "/data/cache", access = "read" }]"#,
            doc: "Directories, as the script sees them. The longest `path` that covers a call decides on it.",
        },
        Key {
            name: "kv",
            form: Form::Table(PresentToml::KEYS),
            default: "",
            example: "{}",
            doc: "The tenant's keys and values, all of them.",
        },
        Key {
            name: "detach",
            form: Form::Table(PresentToml::KEYS),
            default: "",
            example: "{}",
            doc: "Tasks that go on after the answer.",
        },
        Key { name: "workers", form: Form::Table(PresentToml::KEYS), default: "", example: "{}", doc: "Further VMs." },
        Key {
            name: "secret",
            form: Form::Named(PresentToml::KEYS, SECRETS),
            default: "",
            example: "{ api_key = {} }",
            doc: "Secrets of the tenant's that its requests may have in them, by name.",
        },
    ];
}

/// One `[[tenant.NAME.module.PATH.allow.http]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModuleHttpToml {
    /// Origins.
    pub hosts: Option<Vec<Text>>,
    /// Methods; absent: all.
    pub methods: Option<Vec<Text>>,
    /// Paths; absent: all.
    pub paths: Option<Vec<Text>>,
}

impl TableToml for ModuleHttpToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "hosts",
            form: ORIGINS,
            default: REQUIRED,
            example: r#"["https://api.example.com"]"#,
            doc: "Where a call may go, as in the tenant's `allow`. Which addresses that may be, the tenant's rule says.",
        },
        Key {
            name: "methods",
            form: Form::Texts("methods in upper case"),
            default: "(all)",
            example: r#"["GET"]"#,
            doc: "Methods that a call may use.",
        },
        Key {
            name: "paths",
            form: PATHS,
            default: "(all)",
            example: r#"["/v1/*"]"#,
            doc: "Paths that a call may have.",
        },
    ];
}

/// One `[[tenant.NAME.module.PATH.allow.net]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModuleNetToml {
    /// Endpoints.
    pub hosts: Option<Vec<Text>>,
}

impl TableToml for ModuleNetToml {
    const KEYS: &'static [Key] = &[Key {
        name: "hosts",
        form: ENDPOINTS,
        default: REQUIRED,
        example: r#"["tcp://db.example.com:5432"]"#,
        doc: "Where a call may go, as in the tenant's `allow`.",
    }];
}

/// One `[[tenant.NAME.module.PATH.allow.fs]]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModuleFsToml {
    /// The directory as the script sees it.
    pub path: Option<Text>,
    /// What may be done in it.
    pub access: Option<Text>,
}

impl TableToml for ModuleFsToml {
    const KEYS: &'static [Key] = &[
        Key {
            name: "path",
            form: Form::Text("an absolute path"),
            default: REQUIRED,
            example: r#""/data/cache""#,
            doc: "A directory as the script sees it, with all below it.",
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

/// A table without keys: it is there or it is not.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PresentToml {}

impl TableToml for PresentToml {
    const KEYS: &'static [Key] = &[];
}

/// What a script writes for `std:kv`. No file has it: there a module has all keys, or none.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NarrowedKvToml {
    /// What each key begins with.
    pub prefix: Option<Text>,
}

impl TableToml for NarrowedKvToml {
    const KEYS: &'static [Key] = &[Key {
        name: "prefix",
        form: Form::Text("the beginning of a key"),
        default: REQUIRED,
        example: r#""cache:""#,
        doc: "What each key begins with.",
    }];
}
