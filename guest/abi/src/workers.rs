//! `std:workers`: further VMs of the same tenant.

use serde::{Deserialize, Serialize};

use crate::value::Packed;

/// Longest name of a module, and longest path of the file that it is written in, in bytes.
pub const MAX_MODULE_BYTES: usize = 1024;

/// What a script asks of its workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Call a module's function in a VM of its own.
    Run(Work),
}

/// A call in a VM of its own; see [`crate::event::Event::Work`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// What the worker requires: a module that returns a function.
    pub module: String,
    /// The file in which that name means what it means, such as `lib/a.luau`.
    pub file: String,
    /// The function's arguments: one packed value after the other.
    pub arguments: Packed,
}

impl Operation {
    /// The module.
    pub fn module(&self) -> &str {
        let Self::Run(work) = self;
        &work.module
    }
}

/// A reply to [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Run`]: what the function returned, one packed value after the other.
    Returned(Packed),
}
