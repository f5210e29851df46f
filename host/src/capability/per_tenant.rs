//! What effects keep for one tenant: made when it first needs it, gone when the tenant is.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use crate::policy::Tenant;

/// One `T` for each tenant as loaded. The same tenant of a later policy is another one: what was decided
/// by the rules of one policy never serves a call under those of the next.
pub struct PerTenant<T> {
    entries: Mutex<HashMap<usize, Entry<T>>>,
}

struct Entry<T> {
    /// Keeps the address from being given to another tenant, but not the tenant alive.
    tenant: Weak<Tenant>,
    value: Arc<T>,
}

// === impl PerTenant ===

impl<T> PerTenant<T> {
    /// The tenant's own, made by `make` if there is none yet. What tenants had that are gone is dropped then.
    pub fn of(&self, tenant: &Arc<Tenant>, make: impl FnOnce() -> T) -> Arc<T> {
        let mut entries = self.entries.lock();
        let key = Arc::as_ptr(tenant).addr();
        if let Some(entry) = entries.get(&key) {
            return Arc::clone(&entry.value);
        }
        entries.retain(|_, entry| entry.tenant.strong_count() > 0);
        let value = Arc::new(make());
        entries.insert(key, Entry { tenant: Arc::downgrade(tenant), value: Arc::clone(&value) });
        value
    }
}

impl<T> Default for PerTenant<T> {
    fn default() -> Self {
        Self { entries: Mutex::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_as_loaded_has_its_own_for_as_long_as_it_is_there() {
        let per_tenant = PerTenant::default();
        let load = || Arc::new(Tenant::without_grants("acme", "main.luau"));
        let (first, second) = (load(), load());
        let value = Arc::downgrade(&per_tenant.of(&first, || 1));
        assert_eq!((*per_tenant.of(&first, || 2), *per_tenant.of(&second, || 3)), (1, 3));
        drop(first);
        let _ = per_tenant.of(&load(), || 4);
        assert_eq!(value.strong_count(), 0);
        assert_eq!(*per_tenant.of(&second, || 5), 3);
    }
}
