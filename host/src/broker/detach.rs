//! Permits for `task.detach`.

use std::sync::{Arc, atomic::Ordering};

use neoc_abi::detach::Operation;

use super::{Caller, Refused};
use crate::policy::detach;

/// Leave to have one more task that goes on after the answer.
pub struct Permit {
    _private: (),
}

/// Decides: the grant, then how many this request has had.
pub(super) fn authorize(caller: &Arc<Caller>, operation: &Operation) -> Result<Permit, Refused> {
    let Operation::Begin = operation;
    let grant = detach::decide(caller.tenant.allow.detach.as_ref()).map_err(|refusal| caller.refuse(refusal))?;
    let most = grant.tasks.get();
    if caller.detached.fetch_add(1, Ordering::Relaxed) >= most {
        return Err(Refused::OverLimit {
            limit: "detached_tasks",
            message: format!("a request may detach {most} tasks"),
            retry_after: None,
        });
    }
    Ok(Permit { _private: () })
}
