//! The only door to an effect: decides, limits, audits, and hands out the permit the effect takes.
//!
//! A permit's fields are private to its module below, and the effects in [`crate::capability`] take
//! permits by value; an effect that nobody decided about does not compile. A permit carries the very
//! arguments that were judged, so nothing can change between the check and the use. The broker
//! itself never waits.
//!
//! Order within a decision: 1. the tenant's rate, so that a flood of refusals is bounded too
//! 2. the policy 3. counts that a refused call must not use up.

pub mod detach;
pub mod egress;
pub mod fs;
pub mod http;
pub mod kv;
pub mod module;
pub mod time;
pub mod workers;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use neoc_abi::{Operation, OperationError};
use tokio::sync::Semaphore;

use crate::{
    audit::{Audit, Decision, Outcome},
    limits::RateLimiter,
    policy::{Refusal, Tenant},
};

/// Outbound requests that one inbound request may make, redirects counted.
pub const MAX_SUBREQUESTS: u32 = 50;

/// Decides for all tenants.
pub struct Broker {
    accounts: HashMap<String, Arc<Account>>,
    audit: Audit,
}

/// What a tenant has used of its rates, over all its requests.
pub struct Account {
    operations: RateLimiter,
    connections: Arc<Semaphore>,
}

/// Who asks: one request of one tenant.
pub struct Caller {
    tenant: Arc<Tenant>,
    account: Arc<Account>,
    request: Arc<str>,
    counts: Arc<Counts>,
    /// Whether it is a worker of the request that asks.
    is_worker: bool,
}

/// What a request and its workers use together: a fan-out multiplies nothing.
struct Counts {
    subrequests: AtomicU32,
    detached: AtomicU32,
    /// Absent without a grant.
    workers: Option<workers::Room>,
}

/// Leave to do one operation, with its arguments.
pub enum Permit {
    /// For [`crate::capability::http`].
    Http(http::Permit),
    /// For [`crate::capability::fs`].
    Fs(fs::Permit),
    /// For [`crate::capability::kv`].
    Kv(kv::Permit),
    /// For [`crate::capability::time`].
    Time(time::Permit),
    /// For [`crate::capability::detach`].
    Detach(detach::Permit),
    /// For [`crate::capability::module`].
    Module(module::Permit),
    /// For [`crate::capability::workers`].
    Workers(workers::Permit),
}

/// Why there is no permit.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The policy does not allow it.
    NotPermitted(Refusal),
    /// A limit, with its policy key, and when to try again if time helps.
    OverLimit { limit: &'static str, message: String, retry_after: Option<Duration> },
    /// The arguments make no sense.
    Invalid(OperationError),
}

impl Broker {
    /// A broker for these tenants.
    pub fn new<'a>(tenants: impl IntoIterator<Item = &'a Arc<Tenant>>) -> Self {
        let accounts =
            tenants.into_iter().map(|tenant| (tenant.name.clone(), Arc::new(Account::new(tenant)))).collect();
        Self { accounts, audit: Audit::default() }
    }

    /// The caller for one request. None when the tenant is not one of this broker's.
    pub fn caller(&self, tenant: &Arc<Tenant>, request: Arc<str>) -> Option<Arc<Caller>> {
        let account = Arc::clone(self.accounts.get(&tenant.name)?);
        let workers = tenant.allow.workers.as_ref().map(workers::Room::new);
        let counts = Counts { subrequests: AtomicU32::new(0), detached: AtomicU32::new(0), workers };
        let (tenant, counts) = (Arc::clone(tenant), Arc::new(counts));
        Some(Arc::new(Caller { tenant, account, request, counts, is_worker: false }))
    }

    /// Decides about one operation. Never waits.
    ///
    /// # Errors
    /// What the script gets instead of the effect: of kind `denied`, `limit` or `invalid`.
    pub fn authorize(&self, caller: &Arc<Caller>, operation: Operation) -> Result<Permit, OperationError> {
        let (capability, target) = describe(&operation);
        let decided = caller.take_operation().and_then(|()| match operation {
            Operation::Http(operation) => http::authorize(caller, operation).map(Permit::Http),
            Operation::Fs(operation) => fs::authorize(caller, operation).map(Permit::Fs),
            Operation::Kv(operation) => kv::authorize(caller, operation).map(Permit::Kv),
            Operation::Time(operation) => Ok(Permit::Time(time::authorize(operation))),
            Operation::Detach(operation) => detach::authorize(caller, &operation).map(Permit::Detach),
            Operation::Module(operation) => module::authorize(operation).map(Permit::Module),
            Operation::Workers(operation) => workers::authorize(caller, operation).map(Permit::Workers),
        });
        self.audit(caller, capability, &target, decided)
    }

    /// Records a decision, and turns a refusal into what the script may know of it.
    fn audit<T>(
        &self,
        caller: &Caller,
        capability: &'static str,
        target: &str,
        decided: Result<T, Refused>,
    ) -> Result<T, OperationError> {
        let detail = decided.as_ref().err().map(Refused::operator_detail);
        let outcome = match (&decided, &detail) {
            (Err(refused), Some(detail)) => Outcome::Refuse { reason: refused.label(), detail },
            _ => Outcome::Allow,
        };
        self.audit.record(&Decision {
            tenant: &caller.tenant.name,
            request: &caller.request,
            capability,
            target,
            outcome,
        });
        decided.map_err(Refused::into_error)
    }

    /// Counters of all decisions so far.
    pub fn decisions(&self) -> &Audit {
        &self.audit
    }
}

/// Capability and target of an operation, for the record.
fn describe(operation: &Operation) -> (&'static str, String) {
    match operation {
        Operation::Http(neoc_abi::http::Operation::Request(request)) => {
            ("http", format!("{} {}", request.method, request.url))
        }
        Operation::Fs(operation) => ("fs", operation.path().to_owned()),
        Operation::Kv(operation) => ("kv", String::from_utf8_lossy(operation.key()).into_owned()),
        Operation::Time(neoc_abi::time::Operation::Wait { seconds }) => ("time", format!("wait {seconds}")),
        Operation::Detach(neoc_abi::detach::Operation::Begin) => ("detach", "task".to_owned()),
        Operation::Module(operation) => ("module", operation.paths().first().cloned().unwrap_or_default()),
        Operation::Workers(operation) => ("workers", operation.module().to_owned()),
    }
}

// === impl Account ===

impl Account {
    fn new(tenant: &Tenant) -> Self {
        let connections = usize::try_from(tenant.limits.connections.get()).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            operations: RateLimiter::new(tenant.limits.operations),
            connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
        }
    }
}

// === impl Caller ===

impl Caller {
    /// The tenant's policy.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// The name of the request.
    pub fn request(&self) -> &str {
        &self.request
    }

    /// Whether it may ask for workers at all.
    pub fn has_workers(&self) -> bool {
        self.counts.workers.is_some() && !self.is_worker
    }

    /// A worker of the same request.
    fn as_worker(&self) -> Arc<Self> {
        Arc::new(Self {
            tenant: Arc::clone(&self.tenant),
            account: Arc::clone(&self.account),
            request: Arc::clone(&self.request),
            counts: Arc::clone(&self.counts),
            is_worker: true,
        })
    }

    /// A refusal with this tenant's name in its rule and its fix.
    fn refuse(&self, refusal: Refusal) -> Refused {
        Refused::NotPermitted(refusal.with_fix(&self.tenant))
    }

    fn take_operation(&self) -> Result<(), Refused> {
        self.account.operations.try_take().map_err(|over| Refused::OverLimit {
            limit: "operations",
            message: "the tenant's limit of operations is used up; try again later".into(),
            retry_after: Some(over.retry_after),
        })
    }

    fn take_subrequest(&self) -> Result<(), Refused> {
        if self.counts.subrequests.fetch_add(1, Ordering::Relaxed) < MAX_SUBREQUESTS {
            return Ok(());
        }
        Err(Refused::OverLimit {
            limit: "subrequests",
            message: format!("a request may make {MAX_SUBREQUESTS} outbound requests, redirects counted"),
            retry_after: None,
        })
    }
}

// === impl Refused ===

impl Refused {
    /// The stable label for logs and counters.
    fn label(&self) -> &'static str {
        match self {
            Self::NotPermitted(refusal) => refusal.reason.as_str(),
            Self::OverLimit { limit, .. } => limit,
            Self::Invalid(_) => "invalid",
        }
    }

    fn operator_detail(&self) -> String {
        match self {
            Self::NotPermitted(refusal) => match refusal.operator_fix() {
                Some(fix) => format!("{}; fix: {fix}", refusal.operator_detail()),
                None => refusal.operator_detail(),
            },
            Self::OverLimit { message, .. } => message.clone(),
            Self::Invalid(error) => error.message.clone(),
        }
    }

    fn into_error(self) -> OperationError {
        match self {
            Self::NotPermitted(refusal) => refusal.into(),
            Self::OverLimit { limit, message, retry_after } => {
                // Rounded up: a retry at this very time succeeds.
                let retry_after_ms =
                    retry_after.map(|wait| wait.as_micros().div_ceil(1000).try_into().unwrap_or(u64::MAX));
                OperationError { retry_after_ms, ..OperationError::limit(limit, message) }
            }
            Self::Invalid(error) => error,
        }
    }
}
