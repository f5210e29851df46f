//! Permits for `std:workers`: for a call in a further VM of the same tenant.

use std::sync::Arc;

use neoc_abi::{
    OperationError,
    value::MAX_PACKED_BYTES,
    workers::{MAX_MODULE_BYTES, Operation, Work},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Caller, Decided, Refused};
use crate::{
    limits::{Exceeded, Owner},
    policy::{
        module::Asked,
        workers::{self, Grant},
    },
};

/// Most bytes of arguments that the calls of one request hold at once, those in line included. As much as
/// the largest VM.
const MAX_ARGUMENT_BYTES: usize = 64 * 1024 * 1024;

/// What one request's workers share.
#[derive(Debug)]
pub(super) struct Room {
    /// One for each VM that may be there at once.
    places: Arc<Semaphore>,
    /// One for each byte of arguments.
    argument_bytes: Arc<Semaphore>,
}

/// Leave to make one call in a VM of its own.
pub struct Permit {
    caller: Arc<Caller>,
    work: Work,
    places: Arc<Semaphore>,
    argument_bytes: OwnedSemaphorePermit,
}

impl Permit {
    /// Where a place among the request's workers is to be had. Whoever does the call takes one first.
    pub fn places(&self) -> Arc<Semaphore> {
        Arc::clone(&self.places)
    }

    /// Who the worker is to the broker, what it is to do, and what counts its arguments until it is dropped.
    pub fn into_parts(self) -> (Arc<Caller>, Work, OwnedSemaphorePermit) {
        (self.caller, self.work, self.argument_bytes)
    }
}

impl Room {
    pub(super) fn new(grant: &Grant) -> Self {
        let count = usize::try_from(grant.count.get()).unwrap_or(1);
        Self { places: Arc::new(Semaphore::new(count)), argument_bytes: Arc::new(Semaphore::new(MAX_ARGUMENT_BYTES)) }
    }
}

/// Decides: whether a worker asks, the grant, the sizes, then what the request already holds.
pub(super) fn authorize(caller: &Arc<Caller>, operation: Operation) -> Decided<Permit> {
    let Operation::Run(work) = operation;
    if caller.is_worker {
        return Err(invalid("workers: a worker may not start workers itself; let the request start them all"));
    }
    let decided = workers::decide(caller.principal.tenant.allow.workers.as_ref(), &work.module);
    let basis = caller.basis_of(decided.map(|grant| grant.place.clone()), Asked::Workers(&work.module))?;
    check_sizes(&work)?;
    let Some(room) = &caller.counts.workers else { return Err(invalid("workers: this request has none")) };
    let bytes = u32::try_from(work.arguments.len()).unwrap_or(u32::MAX);
    let argument_bytes = Arc::clone(&room.argument_bytes).try_acquire_many_owned(bytes);
    let argument_bytes = argument_bytes
        .map_err(|_| over(MAX_ARGUMENT_BYTES, "arguments of all calls at once, those in line included"))?;
    Ok((Permit { caller: caller.as_worker(), work, places: Arc::clone(&room.places), argument_bytes }, basis))
}

fn check_sizes(work: &Work) -> Result<(), Refused> {
    let Work { module, file, arguments } = work;
    let (module, file, arguments) = (module.len(), file.len(), arguments.len());
    if module == 0 || module > MAX_MODULE_BYTES {
        return Err(invalid(format!("workers: a module's name has 1 to {MAX_MODULE_BYTES} bytes, got {module}")));
    }
    if file > MAX_MODULE_BYTES {
        return Err(invalid(format!("workers: a file's path has at most {MAX_MODULE_BYTES} bytes, got {file}")));
    }
    if arguments > MAX_PACKED_BYTES {
        return Err(over(MAX_PACKED_BYTES, "arguments of one call"));
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> Refused {
    Refused::Invalid(OperationError::invalid(message))
}

fn over(most_bytes: usize, what: &'static str) -> Refused {
    Refused::OverLimit(Exceeded::new(Owner::Request, "value_bytes", most_bytes).what(what))
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, path::Path};

    use super::*;
    use crate::{
        broker::Broker,
        policy::{Place, Tenant},
    };

    fn caller() -> Arc<Caller> {
        let mut tenant = Tenant::without_grants("a", Path::new("a.luau"));
        tenant.allow.workers = Some(Grant { count: NonZeroU32::MIN, place: Place::new(Path::new("p.toml"), 1) });
        let tenant = Arc::new(tenant);
        Broker::new([&tenant]).caller(&tenant, "request".into()).expect("an account")
    }

    fn run(module: &str, argument_bytes: usize) -> Operation {
        Operation::Run(Work { module: module.into(), file: "a.luau".into(), arguments: vec![0; argument_bytes].into() })
    }

    /// The label of a refusal.
    fn refused(caller: &Arc<Caller>, operation: Operation) -> Option<&'static str> {
        authorize(caller, operation).err().map(|refused| refused.label())
    }

    #[test]
    fn names_and_arguments_have_bounds() {
        let caller = caller();
        let long = "m".repeat(MAX_MODULE_BYTES + 1);
        for (module, bytes, expected) in [
            ("./m", 0, None),
            ("./m", MAX_PACKED_BYTES, None),
            ("", 0, Some("invalid")),
            (long.as_str(), 0, Some("invalid")),
            ("./m", MAX_PACKED_BYTES + 1, Some("value_bytes")),
        ] {
            assert_eq!(refused(&caller, run(module, bytes)), expected, "{module:.10} {bytes}");
        }
    }

    #[test]
    fn what_a_requests_calls_hold_together_is_bounded_until_they_end() {
        let caller = caller();
        let mut permits: Vec<_> =
            (0..6).filter_map(|_| authorize(&caller, run("./m", MAX_PACKED_BYTES)).ok()).collect();
        assert_eq!(permits.len(), 6);
        assert_eq!(refused(&caller, run("./m", MAX_PACKED_BYTES)), Some("value_bytes"));
        assert_eq!(refused(&caller, run("./m", 1024)), None);
        permits.pop();
        assert_eq!(refused(&caller, run("./m", MAX_PACKED_BYTES)), None);
    }

    #[test]
    fn a_worker_is_refused_whatever_the_grant() {
        let caller = caller();
        assert!(caller.has_workers() && !caller.as_worker().has_workers());
        assert_eq!(refused(&caller.as_worker(), run("./m", 0)), Some("invalid"));
    }
}
