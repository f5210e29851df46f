//! `[tenant.NAME.allow.kv]`: the tenant's own keys. An empty table; its presence is the grant.
//!
//! There is nothing to narrow yet: the store keeps tenants apart by itself, whatever a key looks like.

use std::ops::Range;

use super::{
    error::Errors,
    fix::Remedy,
    raw::KvToml,
    refusal::{Reason, Refusal},
    tenant::Tenant,
};

/// The capability's name in errors, logs and metrics.
pub const CAPABILITY: &str = "kv";

/// A granted store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Where the policy file grants it.
    pub line: u32,
}

/// Decides on a call. `key` is for the refusal's text only.
///
/// # Errors
/// [`Reason::NotGranted`] without a grant.
pub fn decide<'a>(tenant: &'a Tenant, key: &[u8]) -> Result<&'a Grant, Refusal> {
    tenant.allow.kv.as_ref().ok_or_else(|| {
        let key = String::from_utf8_lossy(key);
        Refusal::new(CAPABILITY, &key, Reason::NotGranted).remedy(Remedy::Kv).with_fix(tenant)
    })
}

pub(super) fn enforce(raw: KvToml, span: &Range<usize>, errors: &Errors<'_>) -> Grant {
    let KvToml {} = raw;
    Grant { line: errors.line(span) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_refused_until_it_is_granted() {
        let mut tenant = Tenant::without_grants("acme", "main.luau");
        let refusal = decide(&tenant, b"visits\xff").expect_err("not granted");
        assert_eq!((refusal.reason, refusal.target.as_str()), (Reason::NotGranted, "visits\u{fffd}"));
        tenant.allow.kv = Some(Grant { line: 7 });
        assert_eq!(decide(&tenant, b"visits").map(|grant| grant.line).ok(), Some(7));
    }
}
