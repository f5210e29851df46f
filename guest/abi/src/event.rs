//! What the host starts a VM with, and what the VM ends with.

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};

use crate::{OperationError, survey::Survey, value::Packed, wire, workers::Work};

/// Free memory that a VM is born with, in bytes. Growing the memory is a system call that every thread of
/// the host waits for; a request that needs no more than this never makes it.
pub const SPARE_BYTES: usize = 2 * 1024 * 1024;

/// The source text of a tenant. It is parsed and compiled in the guest only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The entry module.
    pub entry: Module,
    /// What the entry module is for.
    pub mode: Mode,
    /// What the VM's own heap may hold, in bytes. A script that goes over it gets "not enough memory".
    pub heap_bytes: u64,
    /// The tenant's modules that have less than the tenant: paths as in its policy. A call of the first one, or of
    /// one below it, is of scope 1, and so on.
    pub narrowed: Vec<String>,
}

/// One Luau source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// The name in tracebacks, such as `main.luau`.
    pub name: String,
    /// The source text.
    #[serde(with = "serde_bytes")]
    pub source: Vec<u8>,
}

/// How the entry module is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// `load` runs its top level, which returns the handler. Effects are refused there.
    Handler,
    /// `load` compiles it; [`Event::Run`] runs its top level, with effects.
    Script,
    /// `load` compiles it, and nothing runs.
    Check,
    /// `load` looks at its text and those of the modules that it requires, which are compiled, and finishes with a
    /// [`Survey`]. Nothing runs.
    Survey,
}

/// The number of a start that has its VM for itself.
pub const ALONE: u32 = 0;

/// What a loaded VM is asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start<'a> {
    /// The work.
    #[serde(borrow)]
    pub event: Event<'a>,
    /// All else.
    pub terms: Terms,
}

/// How a start's work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// [`ALONE`], or what tells the start from all others that the VM has at once.
    pub request: u32,
    /// Seeds `math.random`. Fresh for every start, because a snapshot freezes the old seed.
    pub random_seed: u64,
    /// How much there may be in the VM at once.
    pub limits: Limits,
}

/// How much there may be in one VM at once. The VM keeps these itself, so that a script gets an error that it can
/// catch; the host, which bounds the operations of any VM, does not rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Operations under way, timers not counted.
    pub pending_operations: u32,
    /// Tasks that are alive, the first one not counted.
    pub tasks: u32,
    /// Timers that run.
    pub timers: u32,
}

/// The work of one VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event<'a> {
    /// Call the handler of a [`Mode::Handler`] bundle.
    #[serde(borrow)]
    Request(Request<'a>),
    /// Run the top level of a [`Mode::Script`] bundle with these arguments as `...`.
    Run(Vec<String>),
    /// Call a module's function, for another VM of the same tenant. Any bundle will do.
    Work(Work),
}

/// An inbound HTTP request, as the handler sees it. It borrows its parts: to write it copies them, into one message, and
/// to read it copies none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request<'a> {
    /// `GET`, `POST` and so on.
    pub method: &'a str,
    /// The whole path, as requested, without the query.
    pub path: &'a str,
    /// Decoded query parameters, in order.
    #[serde(borrow)]
    pub query: Vec<(&'a str, &'a str)>,
    /// Lower-case names, in order. Values are bytes.
    #[serde(borrow)]
    pub headers: Vec<(&'a str, &'a Bytes)>,
    /// The body. Empty when there is none.
    pub body: &'a Bytes,
}

/// The message of a [`Start`], as far as its event goes.
#[derive(Debug, Clone)]
pub struct Written(Vec<u8>);

/// The longest [`Terms`] in a message, in bytes: a number of 64 bits takes 10 of them, and one of 32 bits 5.
const TERMS_BYTES: usize = 10 + 4 * 5;

impl Event<'_> {
    /// Writes it.
    ///
    /// # Errors
    /// As [`wire::encode`].
    pub fn write(&self) -> Result<Written, wire::Error> {
        wire::encode_with_room(self, TERMS_BYTES).map(Written)
    }
}

impl Written {
    /// Makes it a whole [`Start`].
    ///
    /// # Errors
    /// As [`wire::encode`].
    pub fn start(self, terms: &Terms) -> Result<Vec<u8>, wire::Error> {
        wire::append(self.0, terms)
    }
}

/// The handler's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// 100 to 599.
    pub status: u16,
    /// Whether the handler returned a text alone. The host says what kind of content that is.
    pub is_text: bool,
    /// Names and values as the script gave them; the host checks them.
    pub headers: Vec<(String, ByteBuf)>,
    /// The body.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

impl Response {
    /// The answer that a text is.
    pub fn text(body: Vec<u8>) -> Self {
        Self { status: 200, is_text: true, headers: Vec::new(), body }
    }
}

/// How a start ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The handler's answer to [`Event::Request`].
    Response(Response),
    /// [`Event::Run`] came to its end.
    Done,
    /// [`Event::Work`] came to its end: what the function returned, one packed value after the other, or
    /// what its caller gets instead.
    Worked(Result<Packed, OperationError>),
    /// The script failed.
    Failed(ScriptError),
    /// A bundle of [`Mode::Survey`] was looked at.
    Surveyed(Survey),
}

/// A script's failure, for the log. Never shown to a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptError {
    /// One readable line, such as `main.luau:3: attempt to index nil`.
    pub message: String,
    /// Luau's traceback, one frame a line, empty where there is none (a syntax error).
    pub traceback: String,
}
