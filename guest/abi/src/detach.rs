//! `task.detach`: a task that goes on after the answer.

use serde::{Deserialize, Serialize};

/// What a script asks for. Answered at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Leave to have one more task that the request does not wait for.
    Begin,
}

/// A reply to [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Begin`].
    Begun,
}
