//! `[tenant.NAME.allow.kv]`: the tenant's own keys. An empty table; its presence is the grant.
//!
//! There is nothing to narrow yet: the store keeps tenants apart by itself, whatever a key looks like.

use std::ops::Range;

use super::{
    Place,
    error::Errors,
    fix::Remedy,
    raw::KvToml,
    refusal::{Reason, Refusal},
};

/// The capability's name in errors, logs and metrics.
pub const CAPABILITY: &str = "kv";

/// A granted store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Where the policy file grants it.
    pub place: Place,
}

/// Decides on a call. `key` is for the refusal's text only.
///
/// # Errors
/// [`Reason::NotGranted`] without a grant.
pub fn decide<'a>(grant: Option<&'a Grant>, key: &str) -> Result<&'a Grant, Refusal> {
    grant.ok_or_else(|| Refusal::new(CAPABILITY, key, Reason::NotGranted).remedy(Remedy::Kv))
}

pub(super) fn enforce(raw: KvToml, span: &Range<usize>, errors: &Errors<'_>) -> Grant {
    let KvToml {} = raw;
    Grant { place: errors.place(span) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_store_is_refused_until_it_is_granted() {
        assert_eq!(decide(None, "visits").map_err(|refusal| refusal.reason).err(), Some(Reason::NotGranted));
        let grant = Grant { place: Place::new(Path::new("p.toml"), 7) };
        assert_eq!(decide(Some(&grant), "visits").map(|grant| grant.place.line).ok(), Some(7));
    }
}
