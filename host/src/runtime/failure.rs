//! Why a VM was destroyed. The script cannot catch these; its owner learns them from here.

use std::time::Duration;

use neoc_abi::log::{Level, Record};
use wasmtime::Trap;

use super::{meter::CpuExhausted, requests::StalledForTooLong};
use crate::{policy::shown_time, script_log::ScriptLog};

/// What ended a VM before its script came to an end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The script used up its CPU time.
    #[error("killed: the script used up its CPU budget of {} ms (limits.cpu)", .0.as_millis())]
    Cpu(Duration),
    /// The script was not done in time.
    #[error("killed: the script was not done within {} ms (limits.wall)", .0.as_millis())]
    Wall(Duration),
    /// All slots for VMs are taken.
    #[error("no free instance (host.instances)")]
    Capacity,
    /// The VM that its tenant's requests share has as many as it can have.
    #[error("the tenant's VM has {0} requests already (isolation = \"tenant\")")]
    Crowded(u32),
    /// The VM stood still for a request whose time was over.
    #[error("killed: the script waited where Luau cannot yield, beyond its request's time (limits.wall)")]
    Stalled,
    /// The VM that it shared with another request was ended by that one.
    #[error("ended with the tenant's VM, by another request (isolation = \"tenant\")")]
    Lost,
    /// The VM broke: a memory error of its own, or no memory where it cannot go on without.
    #[error("killed: the sandbox trapped: {0}")]
    Trap(String),
    /// The host's own fault.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Failure {
    /// Names the cause of an error that wasmtime gave.
    pub fn from_wasmtime(error: &wasmtime::Error, cpu: Duration) -> Self {
        if error.is::<CpuExhausted>() {
            Self::Cpu(cpu)
        } else if error.is::<StalledForTooLong>() {
            Self::Stalled
        } else if let Some(trap) = error.downcast_ref::<Trap>() {
            Self::Trap(trap.to_string())
        } else {
            Self::Internal(format!("{error:#}"))
        }
    }

    /// Tells the tenant that it has ended the tasks that went on after an answer.
    pub fn report_detached(&self, log: &ScriptLog) {
        log.report(Record { level: Level::Error, text: format!("detached tasks were ended: {self}") });
    }

    /// The policy key of the limit that ended it, and its value, if one did.
    pub fn limit(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Cpu(time) => Some(("cpu", shown_time(*time))),
            Self::Wall(time) => Some(("wall", shown_time(*time))),
            Self::Capacity | Self::Crowded(_) | Self::Stalled | Self::Lost | Self::Trap(_) | Self::Internal(_) => None,
        }
    }

    /// The stable name that logs and metrics use.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            Self::Wall(_) => "wall",
            Self::Capacity => "capacity",
            Self::Crowded(_) => "crowded",
            Self::Stalled => "stalled",
            Self::Lost => "lost",
            Self::Trap(_) => "trap",
            Self::Internal(_) => "internal",
        }
    }
}
