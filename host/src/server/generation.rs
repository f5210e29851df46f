//! All that one policy makes of a host: what a reload replaces in one step.
//!
//! A request takes the generation that is in force when it comes, and keeps it to its end. So it sees one
//! policy, one set of scripts and one set of open directories, whatever is loaded meanwhile.

use std::{io, net::SocketAddr, sync::Arc};

use crate::{
    audit::{self, Audit},
    broker::{Broker, Principal},
    capability::{Capabilities, OpenError, connect::own_addresses},
    policy::{self, Changes, Host, Machine, Policy},
    runtime::{Line, Runtime},
    tenant::{ScriptProblem, Tenant},
};

/// One policy, in force or ready to be.
pub struct Generation {
    /// What may be done.
    pub policy: Policy,
    /// Every tenant of the policy, in its order.
    pub tenants: Vec<Arc<Served>>,
    /// The door to every effect.
    pub broker: Arc<Broker>,
    /// What the effects work with.
    pub capabilities: Arc<Capabilities>,
    /// Counted from 1, at the start of the host.
    pub number: u64,
}

/// A tenant of a generation's.
pub struct Served {
    /// Its script and its meters.
    pub tenant: Arc<Tenant>,
    /// Who its requests are of.
    pub principal: Arc<Principal>,
    /// What its requests do their effects with.
    pub line: Arc<Line>,
}

/// Why a policy cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// What a grant needs cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Which addresses are this machine's own is not known, so no address can be judged.
    #[error("cannot list the addresses of this machine: {0}")]
    Addresses(#[source] io::Error),
    /// The audit file cannot be written.
    #[error(transparent)]
    Audit(#[from] audit::OpenError),
    /// Scripts that cannot be used, all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Scripts(Vec<ScriptProblem>),
    /// The broker knows nothing of a tenant.
    #[error("tenant.{0} has no account")]
    NoAccount(String),
    /// Keys of `[host]` that differ from those that the host was started with.
    #[error("{} cannot change while the host runs: restart it, or put back what was there", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
}

/// What a reload changed.
#[derive(Debug)]
pub struct Reloaded {
    /// What differs between the two policies.
    pub changes: Changes,
    /// Tenants that stay, and whose script was loaded again, because it changed.
    pub scripts: Vec<String>,
}

impl Generation {
    /// Opens what the grants need and loads every tenant's script. `listener`: where this host listens, which no
    /// tenant may call.
    ///
    /// # Errors
    /// All scripts that cannot be used, at once, or the first directory or store that cannot be opened.
    pub async fn first(policy: Policy, runtime: &Arc<Runtime>, listener: SocketAddr) -> Result<Self, LoadError> {
        let machine = Machine::new(own_addresses().map_err(LoadError::Addresses)?, Some(listener));
        let audit = policy.host.audit.as_deref().map(Audit::to_file).transpose()?.unwrap_or_default();
        let broker = Arc::new(Broker::with_audit(Arc::new(audit), &policy.version(), machine, &policy.tenants));
        let capabilities = Arc::new(Capabilities::open(&policy.host, &policy.tenants, Arc::clone(&broker))?);
        let mut scripts = Scripts::default();
        for tenant in &policy.tenants {
            let loaded = Tenant::load(Arc::clone(tenant), &policy.host.data_dir, runtime).await;
            scripts.add(loaded);
        }
        let tenants = scripts.finish(&broker, &capabilities)?;
        Ok(Self { policy, tenants, broker, capabilities, number: 1 })
    }

    /// Names of the tenants in report mode, sorted.
    pub fn reported(&self) -> Vec<&str> {
        let tenants = self.policy.tenants.iter().filter(|tenant| tenant.mode == policy::Mode::Report);
        tenants.map(|tenant| tenant.name.as_str()).collect()
    }

    /// The generation that comes after this one, complete, and not yet in force. What tenants that stay have
    /// used of their limits goes with it, and scripts that are as they were are not loaded again.
    ///
    /// # Errors
    /// As [`Generation::first`], and [`LoadError::NeedsRestart`]. This generation is as it was then.
    pub async fn successor(&self, policy: Policy, runtime: &Arc<Runtime>) -> Result<(Self, Reloaded), LoadError> {
        let fixed = fixed_keys(&self.policy.host, &policy.host);
        if !fixed.is_empty() {
            return Err(LoadError::NeedsRestart(fixed));
        }
        let machine = self.broker.machine().with_addresses(own_addresses().map_err(LoadError::Addresses)?);
        let broker = Arc::new(self.broker.successor(&policy.version(), machine, &policy.tenants));
        let capabilities = self.capabilities.successor(&policy.host, &policy.tenants, Arc::clone(&broker))?;
        let (mut scripts, mut reloaded) = (Scripts::default(), Vec::new());
        for tenant in &policy.tenants {
            let data_dir = &policy.host.data_dir;
            let before = self.policy.tenant_index(&tenant.name).and_then(|index| self.tenants.get(index));
            let loaded = match before {
                None => Tenant::load(Arc::clone(tenant), data_dir, runtime).await,
                Some(before) => {
                    before.tenant.successor(Arc::clone(tenant), data_dir, runtime).await.map(|(loaded, again)| {
                        reloaded.extend(again.then(|| tenant.name.clone()));
                        loaded
                    })
                }
            };
            scripts.add(loaded);
        }
        let (capabilities, number) = (Arc::new(capabilities), self.number + 1);
        let tenants = scripts.finish(&broker, &capabilities)?;
        let reloaded = Reloaded { changes: Changes::between(&self.policy, &policy), scripts: reloaded };
        Ok((Self { policy, tenants, broker, capabilities, number }, reloaded))
    }
}

/// Scripts on their way: those that loaded, or else all that did not.
#[derive(Default)]
struct Scripts {
    loaded: Vec<Tenant>,
    problems: Vec<ScriptProblem>,
}

impl Scripts {
    fn add(&mut self, loaded: Result<Tenant, ScriptProblem>) {
        match loaded {
            Ok(tenant) => self.loaded.push(tenant),
            Err(problem) => self.problems.push(problem),
        }
    }

    fn finish(self, broker: &Arc<Broker>, capabilities: &Arc<Capabilities>) -> Result<Vec<Arc<Served>>, LoadError> {
        if !self.problems.is_empty() {
            return Err(LoadError::Scripts(self.problems));
        }
        let io = tokio::runtime::Handle::current();
        // In the order of the policy, by which a request finds its tenant: none may be missing.
        let served = self.loaded.into_iter().map(|tenant| {
            let principal = broker.principal(&tenant.policy);
            let principal = principal.ok_or_else(|| LoadError::NoAccount(tenant.name.as_ref().to_owned()))?;
            let modules = Arc::clone(&tenant.modules);
            let line = Line::new(Arc::clone(broker), Arc::clone(capabilities), modules, io.clone());
            Ok(Arc::new(Served { tenant: Arc::new(tenant), principal, line }))
        });
        served.collect()
    }
}

/// The keys of `[host]` that a running host cannot follow, where they differ.
fn fixed_keys(before: &Host, after: &Host) -> Vec<&'static str> {
    // Destructured, so that a new key is decided on here.
    let Host { listen, data_dir, cache_dir, instances, workers, preemption, audit, dns: _ } = before;
    let keys = [
        ("host.listen", *listen == after.listen),
        ("host.data_dir", *data_dir == after.data_dir),
        ("host.cache_dir", *cache_dir == after.cache_dir),
        ("host.instances", *instances == after.instances),
        ("host.workers", *workers == after.workers),
        ("host.preemption", *preemption == after.preemption),
        ("host.audit", *audit == after.audit),
    ];
    keys.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
}
