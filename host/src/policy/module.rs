//! `[tenant.NAME.module.PATH]`: a module of the tenant's own that has less than its tenant.
//!
//! A call of such a module is decided twice: by the tenant's rules, and by the module's. Both must allow it, so a
//! module's table takes away and never gives. It is for code that the tenant's author did not write. The wall
//! between two modules is Luau's, not the sandbox's: the table keeps a library from what it was not meant to do,
//! and a tenant from nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use toml::Spanned;
use url::Url;

use super::{
    Allow, Machine, Place, Reason, Refusal, detach,
    error::{Broken, Errors, child},
    fs, http, kv, log,
    net::{self, Target},
    raw::{ModuleAllowToml, ModuleToml, Text},
    secret, workers,
};

/// Longest path, in bytes.
const MAX_PATH_BYTES: usize = 255;

/// One narrowed module.
#[derive(Debug, Clone)]
pub struct Module {
    /// As in a `require` from the entry module's folder, without `./` and without extension. All below it is meant,
    /// too.
    pub path: String,
    /// Where the policy file has it.
    pub place: Place,
    /// What it may of what its tenant may. Only whether `detach` and `workers` are there counts.
    allow: Allow,
    secrets: BTreeSet<String>,
}

/// A call of a module's, as far as its tenant's rules have allowed it.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// A method and a URL.
    Http(&'a str, &'a Url),
    /// A connection or a socket.
    Net(&'a Target),
    /// A path, and whether it is written.
    Fs(&'a str, bool),
    /// A key: any bytes.
    Kv(&'a [u8]),
    /// A task that goes on after the answer.
    Detach,
    /// A worker, by what it requires.
    Workers(&'a str),
    /// A secret, and where it goes.
    Secret(&'a str, &'a Url),
}

impl Asked<'_> {
    /// The capability, and the target as refusals show it.
    pub(super) fn parts(self) -> (&'static str, String) {
        match self {
            Self::Http(method, url) => (http::CAPABILITY, http::shown(method, url)),
            Self::Net(target) => (net::CAPABILITY, target.to_string()),
            Self::Fs(path, _) => (fs::CAPABILITY, path.to_owned()),
            Self::Kv(key) => (kv::CAPABILITY, String::from_utf8_lossy(key).into_owned()),
            Self::Detach => (detach::CAPABILITY, String::new()),
            Self::Workers(module) => (workers::CAPABILITY, module.to_owned()),
            Self::Secret(name, url) => (secret::CAPABILITY, format!("{name} {}", url.origin().ascii_serialization())),
        }
    }
}

impl Module {
    /// Decides on a call.
    ///
    /// # Errors
    /// As the tenant's own decision, but the fix is for the module.
    pub fn decide(&self, asked: Asked<'_>) -> Result<(), Refusal> {
        let Self { path, place, allow, secrets } = self;
        let decided = match asked {
            // Addresses are the tenant's affair, and so is the machine.
            Asked::Http(method, url) => http::decide(&allow.http, &Machine::default(), method, url).map(drop),
            Asked::Net(target) => net::decide(&allow.net, &[], &Machine::default(), target).map(drop),
            Asked::Fs(path, writes) => fs::decide(&allow.fs, &[], path, writes).map(drop),
            Asked::Kv(key) => kv::decide(allow.kv.as_ref(), &String::from_utf8_lossy(key)).map(drop),
            Asked::Detach => detach::decide(allow.detach.as_ref()).map(drop),
            Asked::Workers(module) => workers::decide(allow.workers.as_ref(), module).map(drop),
            Asked::Secret(name, _) if secrets.contains(name) => Ok(()),
            Asked::Secret(name, url) => Err(secret::refuse(name, url, Reason::NotGranted, true)),
        };
        decided.map_err(|refusal| refusal.in_module(path, place))
    }
}

/// The table that a file's module has, of some: the one with the longest path that is the module or above it.
pub(super) fn of_file<'a>(modules: &'a [Module], file: &str) -> Option<&'a Module> {
    let path = file.strip_suffix(".luau").or_else(|| file.strip_suffix(".lua")).unwrap_or(file);
    let path = path.strip_suffix("/init").unwrap_or(path);
    let covers = |module: &&Module| {
        path.strip_prefix(module.path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    modules.iter().filter(covers).max_by_key(|module| module.path.len())
}

/// The networks of all addresses: a rule with these leaves them to another one.
pub(super) fn all_networks() -> Vec<ipnet::IpNet> {
    let network = |address: IpAddr| ipnet::IpNet::new_assert(address, 0);
    vec![network(std::net::Ipv4Addr::UNSPECIFIED.into()), network(std::net::Ipv6Addr::UNSPECIFIED.into())]
}

/// Converts the tables. `script`: the entry module's file, which has all that its tenant has.
pub(super) fn enforce(
    raw: BTreeMap<Text, Spanned<ModuleToml>>,
    at: &str,
    script: &Path,
    errors: &mut Errors<'_>,
) -> Vec<Module> {
    raw.into_iter().map(|(path, raw)| one(path, raw, at, script, errors)).collect()
}

fn one(path: Text, raw: Spanned<ModuleToml>, at: &str, script: &Path, errors: &mut Errors<'_>) -> Module {
    let (at, place) = (format!("{at}.{:?}", path.get_ref()), errors.place(&raw.span()));
    if !is_path(path.get_ref()) {
        let broken = Broken::new("a module's path from the entry module's folder, without ./ and extension");
        errors.add_without_value(&at, path.span(), broken.write("\"vendor/lib\""));
    }
    if script.file_stem().is_some_and(|stem| *stem == **path.get_ref()) {
        let broken = Broken::new("the entry module has all that its tenant has");
        errors.add_without_value(&at, path.span(), broken.help("narrow a module that it requires"));
    }
    let ModuleToml { allow } = raw.into_inner();
    let ModuleAllowToml { http, net, fs, kv, detach, workers, secret } = allow;
    let at = child(&at, "allow");
    let allow = Allow {
        http: http::enforce_of_module(http, &child(&at, "http"), errors),
        net: net::enforce_of_module(net, &child(&at, "net"), errors),
        fs: fs::enforce_of_module(fs, &child(&at, "fs"), errors),
        kv: kv.map(|kv| kv::Grant { place: errors.place(&kv.span()) }),
        detach: detach.map(|detach| detach::Grant::with_defaults(errors.place(&detach.span()))),
        workers: workers.map(|workers| workers::Grant::with_defaults(errors.place(&workers.span()))),
        log: log::Grant::default(),
    };
    Module { allow, secrets: secret.into_keys().map(Text::into_inner).collect(), path: path.into_inner(), place }
}

/// Whether a text is a module's path in its one spelling.
fn is_path(path: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(['.', '@'])
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.@".contains(&byte))
    };
    path.len() <= MAX_PATH_BYTES
        && path.split('/').all(is_name)
        && !path.ends_with(".luau")
        && !path.ends_with(".lua")
        && !path.ends_with("/init")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Policy, Tenant},
        *,
    };

    fn parse(tables: &str) -> Result<Policy, String> {
        let text = format!("[tenant.a]\nscript = \"lib/a.luau\"\n{tables}");
        Policy::parse(&text, Path::new("p.toml")).map_err(|errors| errors.to_string())
    }

    #[test]
    fn what_is_wrong_with_a_modules_table_is_said_with_its_line() {
        let path = "a module's path from the entry module's folder, without ./ and extension; write for example \"vendor/lib\"";
        for name in ["./lib", "../lib", "/lib", "lib/", "a//b", "lib.luau", "lib/init", "a b", "@self", "", ".git/a"] {
            let expected = format!("p.toml:3:18: tenant.a.module.{name:?}: {path}");
            assert_eq!(parse(&format!("[tenant.a.module.{name:?}]\n")).map(drop), Err(expected), "{name}");
        }
        for (tables, expected) in [
            (
                "[tenant.a.module.a]\n",
                "p.toml:3:18: tenant.a.module.\"a\": the entry module has all that its tenant has; narrow a module that it requires",
            ),
            (
                "[[tenant.a.module.lib.allow.http]]\nmethods = [\"GET\"]\n",
                "p.toml:3:1: tenant.a.module.\"lib\".allow.http[0].hosts: missing; write for example hosts = [\"https://api.example.com\"]",
            ),
            (
                "[[tenant.a.module.lib.allow.fs]]\npath = \"data\"\naccess = \"read\"\n",
                "p.toml:4:8: tenant.a.module.\"lib\".allow.fs[0].path = \"data\": a path is absolute: it starts with /; write for example \"/data/cache\"",
            ),
        ] {
            assert_eq!(parse(tables).map(drop), Err(expected.to_owned()), "{tables}");
        }
    }

    #[test]
    fn a_file_has_the_table_with_the_longest_path_over_it() {
        let policy = parse("[tenant.a.module.lib]\n[tenant.a.module.\"lib/part\"]\n").expect("valid");
        let tenant = policy.tenant("a").expect("there");
        for (file, expected) in [
            ("lib.luau", Some("lib")),
            ("lib/init.lua", Some("lib")),
            ("lib/x.luau", Some("lib")),
            ("lib/part/init.luau", Some("lib/part")),
            ("lib/part/x/y.luau", Some("lib/part")),
            ("lib/partial.luau", Some("lib")),
            ("library.luau", None),
            ("a.luau", None),
        ] {
            assert_eq!(tenant.module_of(file).map(|module| module.path.as_str()), expected, "{file}");
        }
    }

    #[test]
    fn tables_are_in_the_order_of_their_paths_wherever_they_stand() {
        let policy = parse("[tenant.a.module.b]\n[tenant.a.module.\"a/c\".allow.kv]\n[tenant.a.module.\"a-b\"]\n");
        let tenant = Tenant::clone(policy.expect("valid").tenant("a").expect("there"));
        assert_eq!(tenant.narrowed().collect::<Vec<_>>(), ["a-b", "a/c", "b"]);
        assert!(
            tenant.modules[1].decide(Asked::Kv(b"k")).is_ok() && tenant.modules[0].decide(Asked::Kv(b"k")).is_err()
        );
    }
}
