//! What a tenant starts from: the profile that it extends, and the defaults.
//!
//! Nearer wins, key by key: the tenant's own value, then the profile's, then the default's. Rules in lists add up
//! instead, the tenant's own first; so nothing that a profile or the defaults deny can be allowed by a tenant.
//! A rule keeps the place where it stands, in whichever table that is.

use std::collections::BTreeMap;

use toml::Spanned;

use super::{
    error::{Broken, Errors, child},
    raw::{AllowToml, DenyToml, LimitsToml, ProfileToml, TenantToml, Text},
    tenant,
};

/// Everything that tenants may start from.
pub(super) struct Profiles {
    defaults: ProfileToml,
    by_name: BTreeMap<String, ProfileToml>,
    /// Whether there may be more, in files that could not be read.
    is_whole: bool,
}

impl Profiles {
    /// Takes them, and reports what is wrong in them even if no tenant extends them.
    pub(super) fn new(
        defaults: ProfileToml,
        by_name: BTreeMap<Text, Spanned<ProfileToml>>,
        is_whole: bool,
        errors: &mut Errors<'_>,
    ) -> Self {
        tenant::check_profile("defaults", defaults.clone(), errors);
        let by_name = by_name.into_iter().map(|(name, profile)| {
            let at = child("profile", name.get_ref());
            if !tenant::is_name(name.get_ref()) {
                let broken = Broken::new("a profile's name is 1 to 63 of a-z, 0-9 and -").write("[profile.web]");
                errors.add_without_value(&at, name.span(), broken);
            }
            let profile = profile.into_inner();
            tenant::check_profile(&at, profile.clone(), errors);
            (name.into_inner(), profile)
        });
        let by_name = by_name.collect();
        Self { defaults, by_name, is_whole }
    }

    /// A tenant with all that it starts from.
    pub(super) fn complete(&self, at: &str, tenant: &mut TenantToml, errors: &mut Errors<'_>) {
        if let Some(name) = &tenant.extends {
            match self.by_name.get(name.get_ref()) {
                Some(profile) => add(tenant, profile),
                None if self.is_whole => {
                    let names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
                    let broken = Broken::new("there is no such profile");
                    let broken = match names[..] {
                        [] => broken.help("write one, under [profile.NAME], or leave this out"),
                        _ => broken.help(format!("the profiles are {}", names.join(", "))),
                    };
                    errors.add(&child(at, "extends"), name.span(), broken);
                }
                None => {}
            }
        }
        add(tenant, &self.defaults);
    }
}

/// Adds what is less near.
fn add(tenant: &mut TenantToml, from: &ProfileToml) {
    let ProfileToml { limits, mode, isolation, allow, deny } = from;
    add_limits(&mut tenant.limits, limits);
    add_allow(&mut tenant.allow, allow);
    add_deny(&mut tenant.deny, deny);
    keep(&mut tenant.mode, mode);
    keep(&mut tenant.isolation, isolation);
}

fn add_limits(own: &mut LimitsToml, from: &LimitsToml) {
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
    } = from;
    keep(&mut own.memory, memory);
    keep(&mut own.cpu, cpu);
    keep(&mut own.wall, wall);
    keep(&mut own.requests, requests);
    keep(&mut own.operations, operations);
    keep(&mut own.pending_operations, pending_operations);
    keep(&mut own.tasks, tasks);
    keep(&mut own.timers, timers);
    keep(&mut own.connections, connections);
    keep(&mut own.subrequests, subrequests);
    keep(&mut own.egress, egress);
    keep(&mut own.ingress, ingress);
    keep(&mut own.request_body, request_body);
    keep(&mut own.response_body, response_body);
    keep(&mut own.log, log);
    keep(&mut own.log_line, log_line);
    keep(&mut own.kv, kv);
    keep(&mut own.kv_value, kv_value);
    keep(&mut own.fs, fs);
    keep(&mut own.fs_files, fs_files);
    keep(&mut own.weight, weight);
}

fn add_allow(own: &mut AllowToml, from: &AllowToml) {
    let AllowToml { http, net, fs, kv, detach, workers, log } = from;
    own.http.extend_from_slice(http);
    own.net.extend_from_slice(net);
    own.fs.extend_from_slice(fs);
    keep(&mut own.kv, kv);
    keep(&mut own.detach, detach);
    keep(&mut own.workers, workers);
    keep(&mut own.log, log);
}

fn add_deny(own: &mut DenyToml, from: &DenyToml) {
    let DenyToml { http, net, fs } = from;
    own.http.extend_from_slice(http);
    own.net.extend_from_slice(net);
    own.fs.extend_from_slice(fs);
}

fn keep<T: Clone>(own: &mut Option<T>, other: &Option<T>) {
    if own.is_none() {
        own.clone_from(other);
    }
}
