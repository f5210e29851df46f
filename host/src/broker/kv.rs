//! Permits for `std:kv`.

use std::sync::Arc;

use neoc_abi::{
    OperationError,
    kv::{MAX_KEY_BYTES, Operation},
};

use super::{Caller, Decided, Refused};
use crate::{
    limits::{Exceeded, Owner},
    policy::{kv, module::Asked, shown_bytes},
};

/// Leave to do one operation on the tenant's own keys.
pub struct Permit {
    caller: Arc<Caller>,
    operation: Operation,
}

impl Permit {
    /// Whose keys, and what to do with them.
    pub fn into_parts(self) -> (Arc<Caller>, Operation) {
        (self.caller, self.operation)
    }
}

/// Decides: the grant, then the sizes.
pub(super) fn authorize(caller: &Arc<Caller>, operation: Operation) -> Decided<Permit> {
    let key = String::from_utf8_lossy(operation.key());
    let basis = caller.basis_of(
        kv::decide(caller.principal.tenant.allow.kv.as_ref(), &key).map(|grant| grant.place.clone()),
        Asked::Kv(operation.key()),
    )?;
    check_sizes(caller, &operation)?;
    Ok((Permit { caller: Arc::clone(caller), operation }, basis))
}

fn check_sizes(caller: &Caller, operation: &Operation) -> Result<(), Refused> {
    let key_bytes = operation.key().len();
    if key_bytes == 0 || key_bytes > MAX_KEY_BYTES {
        let message = format!("kv: a key has 1 to {MAX_KEY_BYTES} bytes, got {key_bytes}");
        return Err(Refused::Invalid(OperationError::invalid(message)));
    }
    let most = caller.principal.tenant.limits.kv_value_bytes;
    match operation {
        Operation::Set { value, .. } if u64::try_from(value.len()).map_or(true, |bytes| bytes > most) => {
            let exceeded = Exceeded::new(Owner::Tenant, "kv_value", shown_bytes(most));
            Err(Refused::OverLimit(exceeded.what("bytes of one value")))
        }
        Operation::Get { .. } | Operation::Set { .. } | Operation::Delete { .. } => Ok(()),
    }
}
