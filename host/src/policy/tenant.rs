//! One tenant: `[tenant.NAME]`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use toml::Spanned;

use super::{
    detach,
    error::{Broken, Errors, child},
    fs,
    host::below,
    http, kv,
    limits::{self, Limits},
    log, net,
    raw::{AllowToml, DenyToml, TenantToml, Text},
    route::{Placed, Route},
    workers,
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
    /// What it may do.
    pub allow: Allow,
    /// What it may not, whatever is allowed.
    pub deny: Deny,
}

/// A tenant's grants. Empty: no effect at all.
#[derive(Debug, Clone, Default)]
pub struct Allow {
    /// Outbound HTTP. A call needs one rule that allows all of it.
    pub http: Vec<http::Rule>,
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

/// What is denied to a tenant.
#[derive(Debug, Clone, Default)]
pub struct Deny {
    /// Connections and datagrams.
    pub net: Vec<net::Deny>,
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
            allow: Allow::default(),
            deny: Deny::default(),
        }
    }
}

/// Converts the table, and adds its routes to those of the whole file. What is wrong is replaced by
/// something harmless: with an error the policy is thrown away, and the rest is still to be looked at.
pub(super) fn enforce(
    name: Text,
    raw: Spanned<TenantToml>,
    folder: &Path,
    all_routes: &mut Vec<Placed>,
    errors: &mut Errors<'_>,
) -> Tenant {
    let at = child("tenant", name.get_ref());
    let span = name.span();
    let TenantToml { script, routes, limits, allow, deny } = raw.into_inner();
    if !is_name(name.get_ref()) {
        let broken = Broken::new("a tenant's name is 1 to 63 of a-z, 0-9 and -").write("[tenant.acme]");
        errors.add_without_value(&at, span.clone(), broken);
    }
    if script.is_none() {
        errors.missing(&at, "script", span, "\"main.luau\"");
    }
    let script = errors.value(&child(&at, "script"), script.as_ref(), |text| below(folder, text, "\"main.luau\""));
    Tenant {
        script: script.unwrap_or_default(),
        routes: self::routes(&child(&at, "routes"), name.get_ref(), &routes.unwrap_or_default(), all_routes, errors),
        limits: limits::enforce(limits, &child(&at, "limits"), errors),
        allow: self::allow(allow, &child(&at, "allow"), errors),
        deny: self::deny(deny, &child(&at, "deny"), errors),
        name: name.into_inner(),
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

fn allow(raw: AllowToml, at: &str, errors: &mut Errors<'_>) -> Allow {
    let AllowToml { http, net, fs, kv, detach, workers } = raw;
    Allow {
        http: http::enforce(http, &child(at, "http"), errors),
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
        log: log::Grant::default(),
    }
}

fn deny(raw: DenyToml, at: &str, errors: &mut Errors<'_>) -> Deny {
    let DenyToml { net } = raw;
    Deny { net: net::enforce_deny(net, &child(at, "net"), errors) }
}

fn is_name(name: &str) -> bool {
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
        assert!(fs::decide(&tenant.allow.fs, "/data/x", false).is_err());
        let url = http::parse_target("https://example.com").expect("a URL");
        assert!(http::decide(&tenant.allow.http, "GET", &url).is_err());
        assert_eq!((tenant.limits.cpu, tenant.limits.wall), (Duration::from_secs(5), Duration::from_secs(60)));
    }
}
