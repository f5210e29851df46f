//! What a tenant may do: the policy file as written, then as enforced.
//!
//! Pure on purpose: no file is opened, no name resolved, no clock read. A decision is a function of the
//! policy and the call, so a test, `neoc check` and a running host all ask the same code and get the
//! same answer. Whoever decides also gets the words for it: a [`Refusal`] carries the reason's stable
//! label, the rule's place in the file, and the TOML that would allow the call.
//!
//! | module | holds |
//! |---|---|
//! | `source` | the files, and places in them |
//! | `raw`, `keys` | the files as written, every value with its place; what each key is |
//! | `read` | from text to `raw`, with all errors and not only the first |
//! | [`error`] | one line per error: file, line, column, key, value, rule, example |
//! | `units` | `"32 MiB"`, `"50 ms"`, `"200/s"` |
//! | [`keys`], [`schema`], [`document`] | what each key is; the same for editors, and for docs/POLICY.md |
//! | `profile` | what a tenant starts from |
//! | [`host`], [`tenant`], [`limits`], [`route`] | as enforced |
//! | [`http`], [`fs`], [`kv`], [`detach`], [`workers`] | grants of one capability each, and the decision on them |
//! | [`mod@module`], [`narrowing`] | what a module of a tenant's has less, by the policy and by the script itself |
//! | [`secret`] | what a script may use and not read, and where it may go |
//! | [`origin`], [`path`], [`target`], [`address`] | what `http` compares: patterns, a script's URL, a resolved address |
//! | [`machine`] | which addresses are this machine's own, and the decision on one |
//! | [`call`], [`suggest`] | a call as an operator writes it, and the smallest policy for many |
//! | [`changes`] | what differs between two policies |
//! | [`refusal`], `fix` | why a call is refused, and what would allow it |
//!
//! Nothing is allowed by being absent: a missing table grants nothing, an empty file denies everything.

pub mod address;
pub mod call;
pub mod changes;
pub mod detach;
pub mod document;
pub mod error;
mod fix;
pub mod fs;
pub mod host;
pub mod http;
pub mod keys;
pub mod kv;
pub mod limits;
pub mod log;
pub mod machine;
pub mod module;
pub mod narrowing;
pub mod net;
pub mod origin;
pub mod path;
mod profile;
mod raw;
mod read;
pub mod refusal;
pub mod route;
pub mod schema;
pub mod secret;
mod source;
pub mod suggest;
pub mod target;
pub mod tenant;
mod units;
pub mod workers;

#[cfg(test)]
mod tests;

use std::{ops::Range, path::Path, sync::Arc};

use toml::Spanned;

pub use changes::Changes;
pub use error::{PolicyError, PolicyErrors, Snippet};
pub use host::{Host, Preemption};
pub use limits::{Limits, MAX_BODY_BYTES, Rate};
pub use machine::Machine;
pub use module::Module;
pub use narrowing::Narrowing;
pub use refusal::{Reason, Refusal};
pub use route::Route;
pub use source::{Include, MAX_FILE_BYTES, Place, Source, Unread};
pub use tenant::{Allow, Isolation, Mode, Tenant};
pub use units::{shown_bytes, shown_time};

use error::{Broken, Errors};
use keys::{Key, TableToml as _};
use profile::Profiles;
use raw::PolicyToml;
use route::RouteTable;

/// A policy as enforced. Made once from a file, then only read.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What all tenants share.
    pub host: Host,
    /// Sorted by name.
    pub tenants: Vec<Arc<Tenant>>,
    routes: RouteTable,
    sources: Vec<Source>,
}

// === impl Policy ===

impl Policy {
    /// Parses the text of a policy of one file. `file` names it in errors, and relative paths in it start at
    /// its folder; nothing is read from there.
    ///
    /// # Errors
    /// Everything that is wrong, in the file's order.
    pub fn parse(text: &str, file: &Path) -> Result<Self, PolicyErrors> {
        Self::parse_files(vec![Source::from_bytes(file, text.as_bytes().to_vec())], Vec::new())
    }

    /// Parses a policy of several files: the main one first, then those that its [`includes`](Self::includes)
    /// led to, in any order. `unread`: those that led to none.
    ///
    /// # Errors
    /// Everything that is wrong, in the files' order.
    pub fn parse_files(sources: Vec<Source>, unread: Vec<Unread>) -> Result<Self, PolicyErrors> {
        let mut errors = Errors::new(&sources);
        let mut raw = read::read(&mut errors);
        raw.is_whole &= unread.is_empty();
        unread.into_iter().for_each(|unread| errors.unread(unread));
        // Converted in spite of errors, so that the rules broken in good TOML show up in the same run.
        let policy = Self::enforce(raw, &mut errors);
        errors.finish()?;
        Ok(Self { sources, ..policy })
    }

    /// Every key that a policy file may have: what the reader goes by, and the schema and the document.
    pub fn keys() -> &'static [Key] {
        PolicyToml::KEYS
    }

    /// Where a main file says to look for the others. Empty where it is broken; parsing it says how.
    pub fn includes(main: &Source) -> Vec<Include> {
        read::includes(main)
    }

    /// What was parsed, file by file.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(|source| &*source.text)
    }

    /// Names what was parsed: 12 digits of a hash of it. The same files have the same version on every host.
    pub fn version(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for text in self.texts() {
            // With the length, so that no text can pass for two.
            hasher.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.finalize().to_hex()[..12].to_owned()
    }

    /// The tenant that a request belongs to. `host` is the request's `Host` header, port and all;
    /// `path` is as requested, without the query and still percent-encoded.
    pub fn route(&self, host: Option<&str>, path: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(self.route_index(host, path)?)
    }

    /// As [`Policy::route`]: where the tenant stands among all.
    pub fn route_index(&self, host: Option<&str>, path: &str) -> Option<usize> {
        self.routes.find(host, path)
    }

    /// The tenant of this name.
    pub fn tenant(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(self.tenant_index(name)?)
    }

    /// Where the tenant of this name stands among all.
    pub fn tenant_index(&self, name: &str) -> Option<usize> {
        self.tenants.binary_search_by(|tenant| tenant.name.as_str().cmp(name)).ok()
    }

    fn enforce(raw: PolicyToml, errors: &mut Errors<'_>) -> Self {
        let PolicyToml { include: _, host, defaults, profile, tenant, is_whole } = raw;
        let instances_at = host.instances.as_ref().map_or(0..0, Spanned::span);
        let host = host::enforce(host, &errors.sources().folder(&(0..0)), errors);
        let profiles = Profiles::new(defaults, profile, is_whole, errors);
        let mut routes = Vec::new();
        // By name, because the table of the file is sorted by name: the look-up below relies on it.
        let tenants: Vec<Arc<Tenant>> = tenant
            .into_iter()
            .map(|(name, tenant)| Arc::new(tenant::enforce(name, tenant, &profiles, &mut routes, errors)))
            .collect();
        check_instances(&host, instances_at, &tenants, errors);
        let index = |name: &str| tenants.binary_search_by(|tenant| tenant.name.as_str().cmp(name)).ok();
        let routes = RouteTable::build(routes, index, errors);
        Self { host, tenants, routes, sources: Vec::new() }
    }
}

/// Each tenant whose requests share a VM keeps an instance, and there has to be one for somebody else.
fn check_instances(host: &Host, at: Range<usize>, tenants: &[Arc<Tenant>], errors: &mut Errors<'_>) {
    let n_kept = tenants.iter().filter(|tenant| tenant.isolation == Isolation::Tenant).count();
    if usize::try_from(host.instances).is_ok_and(|instances| instances <= n_kept) {
        let rule = format!("more than the {n_kept} that tenants with isolation = \"tenant\" keep");
        errors.add("host.instances", at, Broken::new(rule).write(n_kept + 100));
    }
}
