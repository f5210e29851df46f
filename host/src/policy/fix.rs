//! The TOML that would allow a refused call.
//!
//! It is appended to the policy file, not edited into it: a newcomer pastes it at the end and it works.
//! So it is always a whole table with the tenant's name in its header, and the decisions are made such
//! that one more table can only add: any rule may allow a call.

use super::{fs::Access, secret};

/// What a tenant would have to be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Remedy {
    /// A rule for one origin and one method.
    Http {
        /// As in a rule's `hosts`.
        origin: String,
        /// As in a rule's `methods`.
        method: String,
        /// As in a rule's `paths`. Absent where no rule can name it; then the fix allows every path.
        path: Option<String>,
        /// As in a rule's `addresses`.
        addresses: Vec<String>,
        /// Whether the script wrote the addresses itself, or they say no more than it wrote.
        addresses_are_known: bool,
    },
    /// A rule for one scheme, host and port.
    Net {
        /// As in a rule's `hosts`.
        endpoint: String,
        /// As in a rule's `addresses`.
        addresses: Vec<String>,
        /// As of `Http`.
        addresses_are_known: bool,
    },
    /// A directory.
    Fs {
        /// As the script sees it.
        path: String,
        /// The directory of the grant that covers the path already; absent: a new one.
        dir: Option<String>,
        /// What the call needs.
        access: Access,
    },
    /// The store.
    Kv,
    /// Tasks that go on after the answer.
    Detach,
    /// Workers, as many as by default.
    Workers,
    /// An origin for a secret.
    Secret {
        /// Of the secret.
        name: String,
        /// As in its `origins`.
        origin: String,
        /// Whether the policy has the secret. Else the fix takes it from the variable of its name.
        is_known: bool,
    },
    /// Something that a tenant has, for a module of its own.
    Module {
        /// Of the module.
        path: String,
        /// What it would have to have.
        remedy: Box<Remedy>,
    },
}

impl Remedy {
    /// The same for a module, of what its tenant has already.
    pub(super) fn in_module(self, path: &str) -> Self {
        Self::Module { path: path.to_owned(), remedy: Box::new(self) }
    }

    /// The TOML for the script. `None` where it would tell what a name resolved to.
    pub(super) fn for_script(&self, tenant: &str) -> Option<String> {
        match self {
            Self::Http { addresses_are_known: false, .. } | Self::Net { addresses_are_known: false, .. } => None,
            _ => Some(self.for_operator(tenant)),
        }
    }

    /// The TOML with everything in it.
    pub(super) fn for_operator(&self, tenant: &str) -> String {
        match self {
            Self::Http { origin, method, path, addresses, addresses_are_known: _ } => {
                let mut text = format!("[[tenant.{tenant}.allow.http]]\nhosts = [{}]\n", quoted(origin));
                text.push_str(&addresses_line(addresses));
                text.push_str(&format!("methods = [{}]\n{}", quoted(method), paths_line(path.as_deref())));
                text
            }
            Self::Net { endpoint, addresses, addresses_are_known: _ } => {
                let endpoint = quoted(endpoint);
                format!("[[tenant.{tenant}.allow.net]]\nhosts = [{endpoint}]\n{}", addresses_line(addresses))
            }
            Self::Fs { path, dir, access } => {
                let dir = dir.clone().unwrap_or_else(|| new_dir(tenant, path));
                let (path, dir, access) = (quoted(path), quoted(&dir), quoted(access.as_str()));
                format!("[[tenant.{tenant}.allow.fs]]\npath = {path}\ndir = {dir}\naccess = {access}\n")
            }
            Self::Kv => format!("[tenant.{tenant}.allow.kv]\n"),
            Self::Detach => format!("[tenant.{tenant}.allow.detach]\n"),
            Self::Workers => format!("[tenant.{tenant}.allow.workers]\n"),
            Self::Secret { name, origin, is_known: true } => {
                format!("[[tenant.{tenant}.secret.{name}.also]]\norigins = [{}]\n", quoted(origin))
            }
            Self::Module { path, remedy } => remedy.for_module(&format!("tenant.{tenant}.module.\"{path}\".allow")),
            Self::Secret { name, origin, is_known: false } => {
                let (origin, from) = (quoted(origin), quoted(&secret::likely_source(name)));
                format!("[tenant.{tenant}.secret.{name}]\nfrom = {from}\norigins = [{origin}]\n")
            }
        }
    }
}

impl Remedy {
    /// The TOML for a module, whose table has neither addresses nor directories of its own.
    fn for_module(&self, allow: &str) -> String {
        match self {
            Self::Http { origin, method, path, .. } => {
                let paths = paths_line(path.as_deref());
                format!("[[{allow}.http]]\nhosts = [{}]\nmethods = [{}]\n{paths}", quoted(origin), quoted(method))
            }
            Self::Net { endpoint, .. } => format!("[[{allow}.net]]\nhosts = [{}]\n", quoted(endpoint)),
            Self::Fs { path, access, .. } => {
                format!("[[{allow}.fs]]\npath = {}\naccess = {}\n", quoted(path), quoted(access.as_str()))
            }
            Self::Kv => format!("[{allow}.kv]\n"),
            Self::Detach => format!("[{allow}.detach]\n"),
            Self::Workers => format!("[{allow}.workers]\n"),
            Self::Secret { name, .. } => format!("[{allow}.secret.{name}]\n"),
            Self::Module { remedy, .. } => remedy.for_module(allow),
        }
    }
}

/// Says so where it allows more than the path that was asked for: a script could ask for such a path on purpose.
fn paths_line(path: Option<&str>) -> String {
    match path {
        None => "# every path is allowed\n".to_owned(),
        Some(path) if path.ends_with("/*") => format!("# every path below is allowed\npaths = [{}]\n", quoted(path)),
        Some(path) => format!("paths = [{}]\n", quoted(path)),
    }
}

/// Nothing when there are none to name.
fn addresses_line(addresses: &[String]) -> String {
    if addresses.is_empty() {
        return String::new();
    }
    let addresses: Vec<String> = addresses.iter().map(|address| quoted(address)).collect();
    format!("addresses = [{}]\n", addresses.join(", "))
}

/// A name for a directory that is not there yet: `acme-data` for `/data`.
pub(super) fn new_dir(tenant: &str, path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or("");
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    // The tenant's name in front keeps two tenants that both ask for `/data` apart.
    format!("{tenant}-{}", if plain { name } else { "files" })
}

/// A TOML string. The text holds no control characters; paths and URLs with them are refused before.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_directory_is_named_after_tenant_and_path() {
        for (path, expected) in [
            ("/data", "acme-data"),
            ("/", "acme-files"),
            ("/my data", "acme-files"),
            ("/a/b_2", "acme-b_2"),
            ("/..", "acme-files"),
        ] {
            assert_eq!(new_dir("acme", path), expected, "{path}");
        }
    }

    #[test]
    fn every_text_is_one_toml_string() {
        for text in ["/data", "/a \"b\"", "/é", "\\", "\\\""] {
            let document = format!("x = {}", quoted(text));
            let table: toml::Table = toml::from_str(&document).expect(&document);
            assert_eq!(table["x"].as_str(), Some(text));
        }
    }

    #[test]
    fn a_resolved_address_is_for_the_operator() {
        let remedy = |addresses_are_known| Remedy::Http {
            origin: "https://db.internal".to_owned(),
            method: "GET".to_owned(),
            path: Some("/x".to_owned()),
            addresses: vec!["10.0.0.5/32".to_owned()],
            addresses_are_known,
        };
        let text = "[[tenant.acme.allow.http]]\nhosts = [\"https://db.internal\"]\naddresses = [\"10.0.0.5/32\"]\nmethods = [\"GET\"]\npaths = [\"/x\"]\n";
        assert_eq!(remedy(true).for_script("acme").as_deref(), Some(text));
        assert_eq!(remedy(false).for_script("acme"), None);
        assert_eq!(remedy(false).for_operator("acme"), text);
    }
}
