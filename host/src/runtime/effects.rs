//! A request's line to the broker: who asks, and what its effects are done with.

use std::sync::Arc;

use neoc_abi::event;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    broker::{Broker, Caller, Permit},
    capability::{
        Capabilities,
        module::Folder,
        workers::{Gone, Launch, Launcher, Place},
    },
};

/// What one request, or one worker of it, does its effects with.
pub struct Effects {
    pub(super) line: Arc<Line>,
    pub(super) caller: Arc<Caller>,
    /// Starts workers. Absent in a worker, and without a grant.
    launcher: Option<Launcher>,
    /// What a worker takes up among those of its request.
    held: Option<Held>,
}

/// What all requests of a tenant do their effects with, under one policy.
pub struct Line {
    pub(super) broker: Arc<Broker>,
    pub(super) capabilities: Arc<Capabilities>,
    /// The script's own modules.
    pub(super) modules: Arc<Folder>,
    pub(super) io: tokio::runtime::Handle,
}

/// A place among the request's workers, and bytes of arguments.
pub type Held = (Place, OwnedSemaphorePermit);

// === impl Line ===

impl Line {
    /// A line to `broker`, for the requests of a script whose own modules are `modules`.
    pub fn new(
        broker: Arc<Broker>,
        capabilities: Arc<Capabilities>,
        modules: Arc<Folder>,
        io: tokio::runtime::Handle,
    ) -> Arc<Self> {
        Arc::new(Self { broker, capabilities, modules, io })
    }

    /// The effects of a worker.
    pub fn worker(self: &Arc<Self>, caller: Arc<Caller>, held: Held) -> Effects {
        Effects { held: Some(held), ..Effects::new(self, caller) }
    }
}

// === impl Effects ===

impl Effects {
    /// The line of a request of `tenant`'s, with nothing at its end.
    #[cfg(test)]
    pub fn of(tenant: crate::policy::Tenant, io: tokio::runtime::Handle) -> Self {
        let tenant = Arc::new(tenant);
        let broker = Arc::new(Broker::new([&tenant]));
        let capabilities = Arc::new(Capabilities::none(Arc::clone(&broker)));
        let caller = broker.caller(&tenant, "request".into()).expect("an account");
        let modules = Arc::new(Folder::of_script(std::path::Path::new("absent/a.luau"), None));
        Self::new(&Line::new(broker, capabilities, modules, io), caller)
    }

    /// The effects of `caller`.
    pub fn new(line: &Arc<Line>, caller: Arc<Caller>) -> Self {
        Self { line: Arc::clone(line), caller, launcher: None, held: None }
    }

    /// What workers do their effects with.
    pub(super) fn line(&self) -> Arc<Line> {
        Arc::clone(&self.line)
    }

    /// What the guest is to keep to.
    pub(super) fn limits(&self) -> event::Limits {
        let limits = &self.caller.tenant().limits;
        event::Limits {
            pending_operations: limits.pending_operations.get(),
            tasks: limits.tasks.get(),
            timers: limits.timers.get(),
        }
    }

    /// Whether it needs a launcher.
    pub(super) fn has_workers(&self) -> bool {
        self.caller.has_workers()
    }

    /// What is to be kept until the VM is gone.
    pub(super) fn take_held(&mut self) -> Option<Held> {
        self.held.take()
    }

    pub(super) fn set_launcher(&mut self, launcher: Launcher) {
        self.launcher = Some(launcher);
    }

    pub(super) fn launch_for(&self, permit: &Permit) -> Option<(Launch, Gone)> {
        let launcher = self.launcher.as_ref().filter(|_| matches!(permit, Permit::Workers(_)))?;
        Some(Launch::new(Arc::clone(launcher)))
    }
}
