//! Permits for `std:fs`.

use std::{path::PathBuf, sync::Arc};

use neoc_abi::fs::Operation;

use super::{Basis, Caller, Decided};
use crate::policy::{fs, module::Asked};

/// Leave to do one operation at one place below a granted directory.
pub struct Permit {
    caller: Arc<Caller>,
    grant_index: usize,
    relative: PathBuf,
    operation: Operation,
}

impl Permit {
    /// Who asked.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Which of the tenant's grants covers the place.
    pub fn grant_index(&self) -> usize {
        self.grant_index
    }

    /// The place below the grant's directory, and what to do there.
    pub fn into_parts(self) -> (PathBuf, Operation) {
        (self.relative, self.operation)
    }
}

/// Decides by the longest grant that covers the path.
pub(super) fn authorize(caller: &Arc<Caller>, operation: Operation) -> Decided<Permit> {
    let asked = Asked::Fs(operation.path(), operation.writes());
    caller.check_narrowing(asked)?;
    // In report mode too: there are no directories but the granted ones, and no quota for one granted for reading.
    let located = fs::decide(
        &caller.principal.tenant.allow.fs,
        &caller.principal.tenant.deny.fs,
        operation.path(),
        operation.writes(),
    )
    .map_err(|refusal| caller.refuse(refusal))?;
    caller.check_module(asked)?;
    let basis = Basis { rule: Some(located.grant.place.clone()), reported: None };
    let (grant_index, relative) = (located.grant_index, located.relative);
    Ok((Permit { caller: Arc::clone(caller), grant_index, relative, operation }, basis))
}
