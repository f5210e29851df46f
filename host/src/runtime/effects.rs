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
    pub(super) line: Line,
    pub(super) caller: Arc<Caller>,
    /// Starts workers. Absent in a worker, and without a grant.
    launcher: Option<Launcher>,
    /// What a worker takes up among those of its request.
    held: Option<Held>,
}

/// What all VMs of a request do their effects with.
#[derive(Clone)]
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
    /// The effects of a worker.
    pub fn worker(&self, caller: Arc<Caller>, held: Held) -> Effects {
        Effects { held: Some(held), ..Effects::on(self.clone(), caller) }
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
        Self::new(broker, capabilities, caller, modules, io)
    }

    /// A line for `caller`, whose script's own modules are `modules`.
    pub fn new(
        broker: Arc<Broker>,
        capabilities: Arc<Capabilities>,
        caller: Arc<Caller>,
        modules: Arc<Folder>,
        io: tokio::runtime::Handle,
    ) -> Self {
        Self::on(Line { broker, capabilities, modules, io }, caller)
    }

    fn on(line: Line, caller: Arc<Caller>) -> Self {
        Self { line, caller, launcher: None, held: None }
    }

    /// What workers do their effects with.
    pub(super) fn line(&self) -> Line {
        self.line.clone()
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
