//! Permits for `std:kv`.

use std::sync::Arc;

use neoc_abi::{
    OperationError,
    kv::{MAX_KEY_BYTES, MAX_VALUE_BYTES, Operation},
};

use super::{Caller, Refused};
use crate::policy::kv;

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
pub(super) fn authorize(caller: &Arc<Caller>, operation: Operation) -> Result<Permit, Refused> {
    let key = String::from_utf8_lossy(operation.key());
    kv::decide(caller.tenant.allow.kv.as_ref(), &key).map_err(|refusal| caller.refuse(refusal))?;
    check_sizes(&operation).map_err(Refused::Invalid)?;
    Ok(Permit { caller: Arc::clone(caller), operation })
}

fn check_sizes(operation: &Operation) -> Result<(), OperationError> {
    let key_bytes = operation.key().len();
    if key_bytes == 0 || key_bytes > MAX_KEY_BYTES {
        return Err(OperationError::invalid(format!("kv: a key has 1 to {MAX_KEY_BYTES} bytes, got {key_bytes}")));
    }
    if let Operation::Set { value, .. } = operation
        && value.len() > MAX_VALUE_BYTES
    {
        let message = format!("kv.set: a value has at most {MAX_VALUE_BYTES} bytes, got {}", value.len());
        return Err(OperationError::limit("value", message));
    }
    Ok(())
}
