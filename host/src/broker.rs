//! The only door to an effect: decides, limits, audits, and hands out the permit the effect takes.
//!
//! A permit's fields are private to its module below, and the effects in [`crate::capability`] take
//! permits by value; an effect that nobody decided about does not compile. A permit carries the very
//! arguments that were judged, so nothing can change between the check and the use. The broker
//! itself never waits.
//!
//! Order within a decision: 1. the tenant's rate, so that a flood of refusals is bounded too
//! 2. the policy 3. counts that a refused call must not use up.

pub mod account;
pub mod detach;
pub mod egress;
pub mod fs;
pub mod http;
pub mod kv;
pub mod module;
pub mod narrowing;
pub mod net;
mod refused;
mod subject;
pub mod time;
pub mod workers;

use std::{collections::HashMap, sync::Arc};

use neoc_abi::{Call, Operation, OperationError, Site};

pub use self::account::{Account, Connection, Connections, Traffic};
use self::{account::Counts, refused::Refused, subject::Subject};
use crate::{
    audit::{Audit, Decision, Verdict, Why},
    policy::{
        self, Limits, Machine, Mode, Module, Narrowing, Place, Refusal, Tenant, module::Asked, target::TargetError,
    },
};

/// The scope of a caller that may do all that its tenant may.
const WHOLE_TENANT: u32 = 0;

/// Decides for all tenants.
pub struct Broker {
    accounts: HashMap<String, Arc<Account>>,
    audit: Arc<Audit>,
    /// Of the policy.
    version: Arc<str>,
    machine: Arc<Machine>,
}

/// Who is held to a policy: a tenant, what it has used, and where it runs.
pub struct Principal {
    tenant: Arc<Tenant>,
    account: Arc<Account>,
    machine: Arc<Machine>,
}

/// Who asks: one request of one tenant.
#[derive(Clone)]
pub struct Caller {
    principal: Arc<Principal>,
    request: Arc<str>,
    counts: Arc<Counts>,
    /// Whether it is a worker of the request that asks.
    is_worker: bool,
    /// From where in the script. Absent before the call, and where no function of a script is on the stack.
    site: Option<Site>,
    /// The module of the tenant's that asks, counted from 1, where it has less than its tenant. 0: any other.
    scope: u32,
    /// What the script has narrowed the table to that the called function is from.
    narrowing: Option<Arc<Narrowing>>,
}

/// Leave to do one operation, with its arguments.
pub enum Permit {
    /// For [`crate::capability::http`].
    Http(Box<http::Permit>),
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
    /// For [`crate::capability::net`].
    Net(net::Permit),
    /// To say that a module can be narrowed so: there is nothing to do.
    Narrow,
}

impl Permit {
    /// The capability's name in errors, logs and metrics.
    pub fn capability(&self) -> &'static str {
        match self {
            Self::Http(_) => policy::http::CAPABILITY,
            Self::Fs(_) => policy::fs::CAPABILITY,
            Self::Kv(_) => policy::kv::CAPABILITY,
            Self::Time(_) => "time",
            Self::Detach(_) => policy::detach::CAPABILITY,
            Self::Module(_) | Self::Narrow => "module",
            Self::Workers(_) => policy::workers::CAPABILITY,
            Self::Net(_) => policy::net::CAPABILITY,
        }
    }
}

/// On what a permit rests.
#[derive(Debug, Default)]
struct Basis {
    /// The rule that allows the call. Absent where no policy decides, or none allows it.
    rule: Option<Place>,
    /// What the call would be refused with, if its tenant were not in report mode.
    reported: Option<Box<Refusal>>,
}

/// A permit and what it rests on, or why there is none.
type Decided<T> = Result<(T, Basis), Refused>;

/// The permit of one capability as one of all.
fn on<T>(permit: impl FnOnce(T) -> Permit) -> impl FnOnce((T, Basis)) -> (Permit, Basis) {
    |(of_one, basis)| (permit(of_one), basis)
}

/// Decides about an operation, which is on the tenant's rate already.
fn decide(caller: &Arc<Caller>, operation: Operation) -> Decided<Permit> {
    match operation {
        Operation::Http(operation) => {
            http::authorize(caller, operation).map(on(|permit| Permit::Http(Box::new(permit))))
        }
        Operation::Fs(operation) => fs::authorize(caller, operation).map(on(Permit::Fs)),
        Operation::Kv(operation) => kv::authorize(caller, operation).map(on(Permit::Kv)),
        Operation::Time(operation) => Ok((Permit::Time(time::authorize(operation)), Basis::default())),
        Operation::Detach(operation) => detach::authorize(caller, &operation).map(on(Permit::Detach)),
        Operation::Module(operation) => {
            module::authorize(operation).map(|permit| (Permit::Module(permit), Basis::default()))
        }
        Operation::Workers(operation) => workers::authorize(caller, operation).map(on(Permit::Workers)),
        Operation::Net(operation) => net::authorize(caller, operation).map(on(Permit::Net)),
        Operation::Narrow(question) => {
            let checked = narrowing::check(&question).map_err(Refused::Invalid);
            checked.map(|()| (Permit::Narrow, Basis::default()))
        }
    }
}

fn why<'a>(refusal: &'a Refusal, detail: &'a str) -> Why<'a> {
    Why { reason: refusal.reason.as_str(), detail, fix: refusal.operator_fix() }
}

impl Broker {
    /// A broker for these tenants, which only counts, and logs refusals.
    pub fn new<'a>(tenants: impl IntoIterator<Item = &'a Arc<Tenant>>) -> Self {
        Self::with_audit(Arc::default(), "", Machine::default(), tenants)
    }

    /// A broker for the tenants of the policy of this version, on this machine.
    pub fn with_audit<'a>(
        audit: Arc<Audit>,
        version: &str,
        machine: Machine,
        tenants: impl IntoIterator<Item = &'a Arc<Tenant>>,
    ) -> Self {
        Self::with_accounts(audit, version, machine, tenants, &HashMap::new())
    }

    /// The broker that comes after this one, for the tenants of another policy. Decisions are counted on, and
    /// a tenant whose limits are the same goes on with what it has used: a reload refills nothing.
    pub fn successor<'a>(
        &self,
        version: &str,
        machine: Machine,
        tenants: impl IntoIterator<Item = &'a Arc<Tenant>>,
    ) -> Self {
        Self::with_accounts(Arc::clone(&self.audit), version, machine, tenants, &self.accounts)
    }

    fn with_accounts<'a>(
        audit: Arc<Audit>,
        version: &str,
        machine: Machine,
        tenants: impl IntoIterator<Item = &'a Arc<Tenant>>,
        before: &HashMap<String, Arc<Account>>,
    ) -> Self {
        let account = |tenant: &Tenant| match before.get(&tenant.name) {
            Some(account) => account.successor(tenant),
            None => Account::new(tenant),
        };
        let accounts = tenants.into_iter().map(|tenant| (tenant.name.clone(), Arc::new(account(tenant)))).collect();
        Self { accounts, audit, version: version.into(), machine: Arc::new(machine) }
    }

    /// Who a tenant's requests are of. None when the tenant is not one of this broker's.
    pub fn principal(&self, tenant: &Arc<Tenant>) -> Option<Arc<Principal>> {
        let account = Arc::clone(self.accounts.get(&tenant.name)?);
        Some(Arc::new(Principal { tenant: Arc::clone(tenant), account, machine: Arc::clone(&self.machine) }))
    }

    /// The caller for one request. None when the tenant is not one of this broker's.
    pub fn caller(&self, tenant: &Arc<Tenant>, request: Arc<str>) -> Option<Arc<Caller>> {
        self.principal(tenant).map(|principal| principal.caller(request))
    }

    /// Decides about one operation. Never waits.
    ///
    /// # Errors
    /// What the script gets instead of the effect: of kind `denied`, `limit` or `invalid`.
    pub fn authorize(&self, caller: &Caller, call: Call) -> Result<Permit, OperationError> {
        let Call { site, scope, narrowing, operation } = call;
        let subject = Subject::of(&operation);
        let taken = caller.principal.account.take_operation().map_err(Refused::OverLimit);
        let read = |written| narrowing::of_call(&operation, &written).map(Arc::new);
        let narrowing = taken.and_then(|()| narrowing.map(read).transpose());
        let (narrowing, refused) = match narrowing {
            Ok(narrowing) => (narrowing, None),
            Err(refused) => (None, Some(refused)),
        };
        let caller = &Arc::new(Caller { site, scope, narrowing, ..caller.clone() });
        let decided = refused.map_or_else(|| decide(caller, operation), Err);
        let permit = self.audit(caller, &subject, decided)?;
        if let Permit::Http(permit) = &permit {
            self.record_secrets(permit);
        }
        Ok(permit)
    }

    /// Records a decision, and turns a refusal into what the script may know of it.
    fn audit<T>(&self, caller: &Caller, subject: &Subject<'_>, decided: Decided<T>) -> Result<T, OperationError> {
        let of_secret = match &decided {
            // The request as such was allowed.
            Err(Refused::NotPermitted(refusal)) => Subject::of_secret(refusal),
            _ => None,
        };
        let subject = of_secret.as_ref().unwrap_or(subject);
        let detail = match &decided {
            Ok((_, Basis { reported: Some(refusal), .. })) => refusal.operator_detail(),
            Ok(_) => String::new(),
            Err(refused) => refused.operator_detail(),
        };
        let (verdict, rule) = match &decided {
            Ok((_, Basis { reported: Some(refusal), .. })) => {
                (Verdict::Report(why(refusal, &detail)), refusal.rule.as_ref())
            }
            Ok((_, Basis { rule, .. })) => (Verdict::Allow, rule.as_ref()),
            Err(Refused::NotPermitted(refusal)) => (Verdict::Refuse(why(refusal, &detail)), refusal.rule.as_ref()),
            Err(refused) => (Verdict::Refuse(Why { reason: refused.label(), detail: &detail, fix: None }), None),
        };
        let decision = Decision {
            policy: &self.version,
            tenant: &caller.principal.tenant.name,
            request: &caller.request,
            site: caller.site.as_ref().map(|site| site as &dyn std::fmt::Display),
            module: caller.module().ok().flatten().map(|module| module.path.as_str()),
            capability: subject.capability,
            operation: &subject.operation,
            target: &subject.target,
            address: subject.address,
            rule: rule.map(|rule| rule as &dyn std::fmt::Display),
            verdict,
        };
        self.audit.record(&decision, &caller.principal.account.refusals);
        decided.map(|(permit, _)| permit).map_err(Refused::into_error)
    }

    /// Counts and logs a limit that a permitted effect went over on its way, such as `ingress`.
    pub fn note_limit(&self, caller: &Caller, capability: &'static str, error: &OperationError) {
        let Some(limit) = error.limit.as_deref().and_then(Limits::key) else { return };
        let who = (caller.principal.tenant.name.as_str(), &*caller.request);
        self.audit.record_limit(who, capability, limit, &error.message, &caller.principal.account.refusals);
    }

    /// The machine that it runs on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Counters of all decisions so far.
    pub fn decisions(&self) -> &Audit {
        &self.audit
    }
}

// === impl Principal ===

impl Principal {
    /// The caller for one request.
    pub fn caller(self: &Arc<Self>, request: Arc<str>) -> Arc<Caller> {
        Arc::new(Caller {
            principal: Arc::clone(self),
            request,
            counts: Arc::new(Counts::new(&self.tenant)),
            is_worker: false,
            site: None,
            scope: WHOLE_TENANT,
            narrowing: None,
        })
    }
}

// === impl Caller ===

impl Caller {
    /// The tenant's policy.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.principal.tenant
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
        Arc::new(Self { is_worker: true, site: None, scope: WHOLE_TENANT, narrowing: None, ..self.clone() })
    }

    /// The module that asks, if it has less than its tenant.
    ///
    /// # Errors
    /// For a number that stands for none: no guest of ours sends one.
    fn module(&self) -> Result<Option<&Module>, Refused> {
        let Some(index) = self.scope.checked_sub(1) else { return Ok(None) };
        let module = usize::try_from(index).ok().and_then(|index| self.principal.tenant.modules.get(index));
        module.map(Some).ok_or_else(|| Refused::Invalid(OperationError::invalid("a call of no module")))
    }

    /// Whether the module that asks may do what its tenant may. In report mode too.
    fn check_module(&self, asked: Asked<'_>) -> Result<(), Refused> {
        match self.module()? {
            Some(module) => module.decide(asked).map_err(|refusal| self.refuse(refusal)),
            None => Ok(()),
        }
    }

    /// Whether the script has left itself the call. In report mode too.
    fn check_narrowing(&self, asked: Asked<'_>) -> Result<(), Refused> {
        let decided = self.narrowing.as_ref().map_or(Ok(()), |narrowing| narrowing.decide(asked));
        decided.map_err(|refusal| self.refuse(refusal))
    }

    /// [`Caller::basis`] of a call that the module which asks must be allowed as well, and that the script must have
    /// left itself.
    fn basis_of(&self, decided: Result<impl Into<Option<Place>>, Refusal>, asked: Asked<'_>) -> Result<Basis, Refused> {
        self.check_narrowing(asked)?;
        let module = self.module()?;
        self.basis(decided.and_then(|place| module.map_or(Ok(()), |module| module.decide(asked)).map(|()| place)))
    }

    /// What a decision of the policy comes to: in report mode a call passes which some rule could allow. What no
    /// rule can allow is refused in either mode, and so is what a rule denies.
    fn basis(&self, decided: Result<impl Into<Option<Place>>, Refusal>) -> Result<Basis, Refused> {
        match decided {
            Ok(rule) => Ok(Basis { rule: rule.into(), reported: None }),
            Err(refusal) if self.principal.tenant.mode == Mode::Report && refusal.is_open_to_rules() => {
                Ok(Basis { rule: None, reported: Some(Box::new(refusal.with_fix(&self.principal.tenant))) })
            }
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    /// What a target comes to that is none, or not in its one spelling. `module` names it in messages.
    fn refuse_target(&self, module: &str, error: TargetError) -> Refused {
        match error {
            TargetError::Invalid(message) => Refused::Invalid(OperationError::invalid(format!("{module}: {message}"))),
            TargetError::Denied(refusal) => self.refuse(refusal),
        }
    }

    /// A refusal with this tenant's name in its rule and its fix.
    fn refuse(&self, refusal: Refusal) -> Refused {
        Refused::NotPermitted(refusal.with_fix(&self.principal.tenant))
    }
}
