//! All that a script may call, and which of it yields.
//!
//! Between two calls that yield, no other task of the request runs: a script may rely on it. So the tags
//! are part of the contract. Documents and type files are checked against this list, and the tests call
//! each function to see whether its tag is true.

/// Whether other tasks may run before a call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// They may.
    Yields,
    /// They never do.
    Never,
}

/// The functions of one module.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// What a script requires; empty for globals.
    pub name: &'static str,
    /// Function names and tags. A method of what the module makes is written with a colon.
    pub functions: &'static [(&'static str, Tag)],
}

/// Every module, in the order of the documentation.
pub const MODULES: &[Module] = &[
    Module { name: "", functions: &[("print", Tag::Never), ("require", Tag::Yields)] },
    Module {
        name: "std:task",
        functions: &[
            ("spawn", Tag::Never),
            ("defer", Tag::Never),
            ("delay", Tag::Never),
            ("every", Tag::Never),
            ("detach", Tag::Never),
            ("wait", Tag::Yields),
            ("await", Tag::Yields),
            ("try_await", Tag::Yields),
            ("await_any", Tag::Yields),
            ("await_all", Tag::Yields),
            ("cancel", Tag::Never),
            ("finally", Tag::Never),
            ("status", Tag::Never),
            ("current", Tag::Never),
            ("get", Tag::Never),
            ("set", Tag::Never),
            ("channel", Tag::Never),
            ("channel:put", Tag::Yields),
            ("channel:get", Tag::Yields),
            ("channel:close", Tag::Never),
            ("channel:is_closed", Tag::Never),
            ("channel:count", Tag::Never),
            ("semaphore", Tag::Never),
            ("semaphore:acquire", Tag::Yields),
            ("semaphore:release", Tag::Never),
            ("semaphore:free", Tag::Never),
            ("semaphore:with", Tag::Yields),
        ],
    },
    Module { name: "std:workers", functions: &[("run", Tag::Yields), ("map", Tag::Yields)] },
    Module {
        name: "vnd:hyper",
        functions: &[("get", Tag::Yields), ("post", Tag::Yields), ("request", Tag::Yields), ("get_all", Tag::Yields)],
    },
    Module {
        name: "std:net",
        functions: &[
            ("connect", Tag::Yields),
            ("connection:read", Tag::Yields),
            ("connection:read_line", Tag::Yields),
            ("connection:write", Tag::Yields),
            ("connection:shutdown", Tag::Yields),
            ("connection:close", Tag::Never),
            ("udp", Tag::Yields),
            ("socket:send", Tag::Yields),
            ("socket:receive", Tag::Yields),
            ("socket:close", Tag::Never),
        ],
    },
    Module {
        name: "std:fs",
        functions: &[("read", Tag::Yields), ("write", Tag::Yields), ("list", Tag::Yields), ("remove", Tag::Yields)],
    },
    Module { name: "std:kv", functions: &[("get", Tag::Yields), ("set", Tag::Yields), ("delete", Tag::Yields)] },
    Module {
        name: "std:json",
        functions: &[("encode", Tag::Never), ("decode", Tag::Never), ("array", Tag::Never), ("object", Tag::Never)],
    },
    Module { name: "std:secret", functions: &[("get", Tag::Never), ("format", Tag::Never), ("basic", Tag::Never)] },
    Module {
        name: "std:log",
        functions: &[("debug", Tag::Never), ("info", Tag::Never), ("warn", Tag::Never), ("error", Tag::Never)],
    },
];

impl Tag {
    /// The line that ends a function's description in the type files.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Yields => "Yields.",
            Self::Never => "Never yields.",
        }
    }
}
