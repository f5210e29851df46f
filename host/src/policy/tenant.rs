//! One tenant: `[tenant.NAME]`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use toml::Spanned;

use super::{
    Module, Place, detach,
    error::{Broken, Errors, child},
    fs,
    host::below,
    http, kv,
    limits::{self, Limits},
    log, net,
    profile::Profiles,
    raw::{AllowToml, DenyHttpToml, DenyToml, ProfileToml, TenantToml, Text},
    route::{Placed, Route},
    secret, workers,
};

/// Longest name, in bytes: that of a DNS label, so that a name can be one.
const MAX_NAME_BYTES: usize = 63;

/// A tenant as enforced.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// 1 to 63 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// The entry module's file.
    pub script: PathBuf,
    /// Which requests are this tenant's. Empty: none.
    pub routes: Vec<Route>,
    /// How much it may use.
    pub limits: Limits,
    /// Whether what the policy refuses is refused.
    pub mode: Mode,
    /// Who shares a VM.
    pub isolation: Isolation,
    /// What it may do.
    pub allow: Allow,
    /// What it may not, whatever is allowed.
    pub deny: Deny,
    /// What it may use and not read.
    pub secrets: secret::Secrets,
    /// Modules of its own that have less, sorted by their paths.
    pub modules: Vec<Module>,
}

/// Whether what the policy refuses is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// `"enforce"`: it is.
    #[default]
    Enforce,
    /// `"report"`: it passes, and is recorded, where some rule could allow it.
    Report,
}

/// Which of a tenant's requests share a VM, and with it memory, globals and fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Isolation {
    /// `"request"`: none. Each has a fresh one.
    #[default]
    Request,
    /// `"tenant"`: all. It lives on between them.
    Tenant,
}

/// A tenant's grants. Empty: no effect at all.
#[derive(Debug, Clone, Default)]
pub struct Allow {
    /// Outbound HTTP. A call needs one rule that allows all of it.
    pub http: http::Rules,
    /// Connections and datagrams. A call needs one rule that allows all of it.
    pub net: Vec<net::Rule>,
    /// Directories. The grant with the longest path that covers a call decides.
    pub fs: Vec<fs::Grant>,
    /// The tenant's own store.
    pub kv: Option<kv::Grant>,
    /// Tasks that go on after the answer.
    pub detach: Option<detach::Grant>,
    /// Further VMs for one request.
    pub workers: Option<workers::Grant>,
    /// What is kept of its script's lines. The one grant that need not be named.
    pub log: log::Grant,
}

/// What is denied to a tenant, whatever it is granted. Rules for HTTP are with those that allow, see [`http::Rules`].
#[derive(Debug, Clone, Default)]
pub struct Deny {
    /// Connections and datagrams.
    pub net: Vec<net::Deny>,
    /// Files and directories.
    pub fs: Vec<fs::Deny>,
}

// === impl Tenant ===

impl Tenant {
    /// A tenant for a single script without a policy: no grants, and the budget of a job.
    pub fn without_grants(name: impl Into<String>, script: impl Into<PathBuf>) -> Self {
        let limits = Limits { cpu: Duration::from_secs(5), wall: Duration::from_secs(60), ..Limits::default() };
        Self {
            name: name.into(),
            script: script.into(),
            routes: Vec::new(),
            limits,
            mode: Mode::Enforce,
            isolation: Isolation::Request,
            allow: Allow::default(),
            deny: Deny::default(),
            secrets: secret::Secrets::default(),
            modules: Vec::new(),
        }
    }

    /// What detached tasks get: the grant, and in report mode without one its defaults.
    pub fn usable_detach(&self) -> Option<detach::Grant> {
        self.allow.detach.clone().or_else(|| self.is_reported().then(|| detach::Grant::with_defaults(nowhere())))
    }

    /// What workers get: the grant, and in report mode without one its defaults.
    pub fn usable_workers(&self) -> Option<workers::Grant> {
        self.allow.workers.clone().or_else(|| self.is_reported().then(|| workers::Grant::with_defaults(nowhere())))
    }

    /// The paths of the modules that have less than it has, in the order of their tables.
    pub fn narrowed(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().map(|module| module.path.as_str())
    }

    /// What a file of its script has, by the way from the script's folder, where that is less than it has itself.
    pub fn module_of(&self, file: &str) -> Option<&Module> {
        super::module::of_file(&self.modules, file)
    }

    /// Whether it may come to use the store.
    pub fn may_use_kv(&self) -> bool {
        self.allow.kv.is_some() || self.is_reported()
    }

    fn is_reported(&self) -> bool {
        self.mode == Mode::Report
    }
}

/// The place of what no file grants. Never shown: what is let pass without a grant is recorded without a rule.
fn nowhere() -> Place {
    Place::new(Path::new(""), 0)
}

/// Converts the table, and adds its routes to those of the whole file. What is wrong is replaced by
/// something harmless: with an error the policy is thrown away, and the rest is still to be looked at.
pub(super) fn enforce(
    name: Text,
    raw: Spanned<TenantToml>,
    profiles: &Profiles,
    all_routes: &mut Vec<Placed>,
    errors: &mut Errors<'_>,
) -> Tenant {
    let at = child("tenant", name.get_ref());
    let span = name.span();
    let mut raw = raw.into_inner();
    profiles.complete(&at, &mut raw, errors);
    let TenantToml { script, routes, extends: _, limits, mode, isolation, allow, deny, secret, module } = raw;
    if !is_name(name.get_ref()) {
        let broken = Broken::new("a tenant's name is 1 to 63 of a-z, 0-9 and -").write("[tenant.acme]");
        errors.add_without_value(&at, span.clone(), broken);
    }
    if script.is_none() {
        errors.missing(&at, "script", span, "\"main.luau\"");
    }
    let folder = errors.folder(script.as_ref());
    let script = errors.value(&child(&at, "script"), script.as_ref(), |text| below(&folder, text, "\"main.luau\""));
    let Powers { limits, mode, isolation, allow, deny } =
        powers(&at, ProfileToml { limits, mode, isolation, allow, deny }, errors);
    let modules =
        super::module::enforce(module, &child(&at, "module"), script.as_deref().unwrap_or(Path::new("")), errors);
    Tenant {
        script: script.unwrap_or_default(),
        routes: self::routes(&child(&at, "routes"), name.get_ref(), &routes.unwrap_or_default(), all_routes, errors),
        limits,
        mode,
        isolation,
        allow,
        deny,
        modules,
        secrets: secret::enforce(secret, &child(&at, "secret"), errors),
        name: name.into_inner(),
    }
}

/// Reports what is wrong in what tenants may start from.
pub(super) fn check_profile(at: &str, raw: ProfileToml, errors: &mut Errors<'_>) {
    powers(at, raw, errors);
}

/// What a tenant and a profile both have.
struct Powers {
    limits: Limits,
    mode: Mode,
    isolation: Isolation,
    allow: Allow,
    deny: Deny,
}

fn powers(at: &str, raw: ProfileToml, errors: &mut Errors<'_>) -> Powers {
    let ProfileToml { limits, mode, isolation, allow, deny } = raw;
    let DenyToml { http: deny_http, net: deny_net, fs: deny_fs } = deny;
    let deny_at = child(at, "deny");
    Powers {
        limits: limits::enforce(limits, &child(at, "limits"), errors),
        mode: errors.value(&child(at, "mode"), mode.as_ref(), |text| self::mode(text)).unwrap_or_default(),
        isolation: errors
            .value(&child(at, "isolation"), isolation.as_ref(), |text| self::isolation(text))
            .unwrap_or_default(),
        allow: self::allow(allow, &child(at, "allow"), deny_http, &child(&deny_at, "http"), errors),
        deny: Deny {
            net: net::enforce_deny(deny_net, &child(&deny_at, "net"), errors),
            fs: fs::enforce_deny(deny_fs, &child(&deny_at, "fs"), errors),
        },
    }
}

fn mode(text: &str) -> Result<Mode, Broken> {
    match text {
        "enforce" => Ok(Mode::Enforce),
        "report" => Ok(Mode::Report),
        _ => Err(Broken::new("\"enforce\" or \"report\"").write("\"enforce\"")),
    }
}

fn isolation(text: &str) -> Result<Isolation, Broken> {
    match text {
        "request" => Ok(Isolation::Request),
        "tenant" => Ok(Isolation::Tenant),
        _ => Err(Broken::new("\"request\" or \"tenant\"").write("\"request\"")),
    }
}

fn routes(at: &str, tenant: &str, written: &[Text], all: &mut Vec<Placed>, errors: &mut Errors<'_>) -> Vec<Route> {
    let mut routes = Vec::with_capacity(written.len());
    for (index, text) in written.iter().enumerate() {
        let key = format!("{at}[{index}]");
        if let Some(route) = errors.value(&key, Some(text), |text| Route::parse(text)) {
            all.push(Placed { route: route.clone(), tenant: tenant.to_owned(), key, span: text.span() });
            routes.push(route);
        }
    }
    routes
}

fn allow(
    raw: AllowToml,
    at: &str,
    deny_http: Vec<Spanned<DenyHttpToml>>,
    deny_http_at: &str,
    errors: &mut Errors<'_>,
) -> Allow {
    let AllowToml { http, net, fs, kv, detach, workers, log } = raw;
    Allow {
        http: http::enforce(http, &child(at, "http"), deny_http, deny_http_at, errors),
        net: net::enforce(net, &child(at, "net"), errors),
        fs: fs::enforce(fs, &child(at, "fs"), errors),
        kv: kv.map(|kv| {
            let span = kv.span();
            kv::enforce(kv.into_inner(), &span, errors)
        }),
        detach: detach.map(|detach| {
            let span = detach.span();
            detach::enforce(detach.into_inner(), &child(at, "detach"), &span, errors)
        }),
        workers: workers.map(|workers| {
            let span = workers.span();
            workers::enforce(workers.into_inner(), &child(at, "workers"), &span, errors)
        }),
        log: log.map(|log| log::enforce(log.get_ref(), &child(at, "log"), errors)).unwrap_or_default(),
    }
}

/// Whether a text may name a tenant or a profile.
pub(super) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_short_plain_word() {
        let longest = "a".repeat(63);
        for name in ["a", "acme", "acme-2", "0", longest.as_str()] {
            assert!(is_name(name), "{name}");
        }
        let too_long = "a".repeat(64);
        for name in ["", "Acme", "a.b", "a/b", "a b", "a_b", "é", "..", too_long.as_str()] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_script_without_a_policy_may_compute_and_nothing_else() {
        let tenant = Tenant::without_grants("run", "job.luau");
        assert!(kv::decide(tenant.allow.kv.as_ref(), "k").is_err());
        assert!(workers::decide(tenant.allow.workers.as_ref(), "./m").is_err());
        assert!(fs::decide(&tenant.allow.fs, &tenant.deny.fs, "/data/x", false).is_err());
        let url = http::parse_target("https://example.com").expect("a URL");
        assert!(http::decide(&tenant.allow.http, &super::super::Machine::default(), "GET", &url).is_err());
        assert_eq!((tenant.limits.cpu, tenant.limits.wall), (Duration::from_secs(5), Duration::from_secs(60)));
    }
}
