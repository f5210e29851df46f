//! The contract between the host and the guest.
//!
//! Both sides compile this crate, so a type here is written once and cannot drift. Values cross the
//! wall as postcard bytes; the functions that carry them are listed in `docs/ARCHITECTURE.md`.
//!
//! | module | holds |
//! |---|---|
//! | [`api`] | all that a script may call, and which of it yields |
//! | [`event`] | what the host starts a VM with, and what the VM ends with |
//! | [`error`] | the error value a script can catch |
//! | [`http`], [`fs`], [`kv`], [`time`], [`detach`], [`module`], [`net`], [`workers`] | operation and reply of one capability each |
//! | [`narrowing`] | a module's table that can do less |
//! | [`secret`] | texts with secrets in them, by name |
//! | [`value`] | values on their way from one VM to another |
//! | [`survey`] | what the texts of a script spell out |
//! | [`log`] | a line that the script printed |
//! | [`mod@wire`] | the encoding |

pub mod api;
pub mod detach;
pub mod error;
pub mod event;
pub mod fs;
pub mod http;
pub mod kv;
pub mod log;
pub mod module;
pub mod narrowing;
pub mod net;
pub mod secret;
pub mod survey;
pub mod time;
pub mod value;
pub mod wire;
pub mod workers;

use serde::{Deserialize, Serialize};

pub use error::{ErrorKind, OperationError};

/// An effect that a script asks for. One variant per capability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Operation {
    /// `vnd:hyper`.
    Http(http::Operation),
    /// `std:fs`.
    Fs(fs::Operation),
    /// `std:kv`.
    Kv(kv::Operation),
    /// `task.wait` of `std:task`.
    Time(time::Operation),
    /// `task.detach` of `std:task`.
    Detach(detach::Operation),
    /// `require`.
    Module(module::Operation),
    /// `std:workers`.
    Workers(workers::Operation),
    /// `std:net`.
    Net(net::Operation),
    /// `require` of a module's table that can do less.
    Narrow(narrowing::Operation),
}

impl Operation {
    /// Whether a narrowing of the table that it came from decides about it. What is done with a connection that is
    /// open is decided already.
    pub fn can_be_narrowed(&self) -> bool {
        match self {
            Self::Http(_) | Self::Fs(_) | Self::Kv(_) | Self::Net(net::Operation::Open { .. }) => true,
            Self::Time(_) | Self::Detach(_) | Self::Module(_) | Self::Workers(_) | Self::Net(_) | Self::Narrow(_) => {
                false
            }
        }
    }
}

/// What a VM submits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Where in the script. Absent: no function of a script is on the stack of the coroutine that calls.
    pub site: Option<Site>,
    /// Which module calls, by its place in [`event::Bundle::narrowed`], counted from 1. 0: any other, which may do all
    /// that its tenant may.
    pub scope: u32,
    /// What the script has narrowed the module's table to that the called function is from. Only with what
    /// [`Operation::can_be_narrowed`].
    pub narrowing: Option<narrowing::Narrowing>,
    /// The effect.
    pub operation: Operation,
}

/// A line of a script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The file, as in tracebacks.
    pub module: String,
    /// The line, from 1.
    pub line: u32,
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.module, self.line)
    }
}

/// The result of an [`Operation`]; the variants match.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Http`].
    Http(http::Reply),
    /// To [`Operation::Fs`].
    Fs(fs::Reply),
    /// To [`Operation::Kv`].
    Kv(kv::Reply),
    /// To [`Operation::Time`].
    Time(time::Reply),
    /// To [`Operation::Detach`].
    Detach(detach::Reply),
    /// To [`Operation::Module`].
    Module(module::Reply),
    /// To [`Operation::Workers`].
    Workers(workers::Reply),
    /// To [`Operation::Net`].
    Net(net::Reply),
    /// To [`Operation::Narrow`].
    Narrow(narrowing::Reply),
}

/// How an operation ended.
pub type Outcome = Result<Reply, OperationError>;

/// A finished operation. The host delivers them in batches, as `Vec<Completion>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The number that the guest gave when it submitted the operation.
    pub id: u32,
    /// How it ended.
    pub outcome: Outcome,
}
