//! Permits for `task.detach`.

use std::sync::{Arc, atomic::Ordering};

use neoc_abi::{OperationError, detach::Operation};

use super::{Caller, Decided, Refused};
use crate::{
    limits::{Exceeded, Owner},
    policy::{detach, module::Asked},
};

/// Leave to have one more task that goes on after the answer.
pub struct Permit {
    _private: (),
}

/// Decides: whether a worker asks, the grant, then how many this request has had.
pub(super) fn authorize(caller: &Arc<Caller>, operation: &Operation) -> Decided<Permit> {
    let Operation::Begin = operation;
    if caller.is_worker {
        let message = "task.detach: a worker has no answer after which a task could go on";
        return Err(Refused::Invalid(OperationError::invalid(message)));
    }
    let decided = detach::decide(caller.principal.tenant.allow.detach.as_ref()).map(|grant| grant.place.clone());
    let basis = caller.basis_of(decided, Asked::Detach)?;
    let most = caller.principal.tenant.usable_detach().map_or(0, |grant| grant.tasks.get());
    if caller.counts.detached.fetch_add(1, Ordering::Relaxed) >= most {
        return Err(Refused::OverLimit(Exceeded::new(Owner::Request, "detached_tasks", most)));
    }
    Ok((Permit { _private: () }, basis))
}
