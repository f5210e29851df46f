//! What each file needs besides Luau's libraries. A file that is not here needs nothing.
//!
//! Luau's test program (tests/Conformance.test.cpp in its repository) sets up the same by hand, file by file.

use std::os::raw::c_int;

use mlua::ffi::lua_State;
use mlua::{Lua, Table};

use super::{basics, coroutines, debugging, harness, interrupts, memory, userdata, vectors};

/// Adds functions for a file to its globals.
pub type Natives = fn(&Lua, &Table) -> mlua::Result<()>;

/// One run of a file.
pub struct Run {
    /// The file's name.
    pub name: &'static str,
    /// Luau's flags that must be on: for what is not finished, and off by default.
    pub flags: &'static [&'static str],
    /// Besides [`basics::all`].
    pub natives: &'static [Natives],
    /// Whether it must run in the VM's main thread, which to Luau is no coroutine.
    pub in_main_thread: bool,
    /// Of Luau's compiler: 0, 1 or 2.
    pub optimization: c_int,
    /// Of Luau's compiler: 0 for no debug information, 1 for lines, 2 for the names of locals, too.
    pub debug: c_int,
    /// Of Luau's compiler: 0, or 2 to count how often each expression runs.
    pub coverage: c_int,
    /// Sets what Luau shall call while the file runs on this thread.
    pub callbacks: Option<fn(*mut lua_State)>,
    /// What is done when the file yields or is at a breakpoint, before it is resumed. Says how it resumes.
    pub on_pause: Option<fn(*mut lua_State) -> mlua::Result<Resume>>,
    /// What is done with the file's globals once it has returned "OK".
    pub after: Option<fn(&Lua, &Table) -> mlua::Result<()>>,
}

/// How a file that has paused goes on.
pub enum Resume {
    /// As if nothing had happened.
    Plainly,
    /// With the error that it paused at.
    WithError,
}

const PLAIN: Run = Run {
    name: "",
    flags: &[],
    natives: &[],
    in_main_thread: false,
    optimization: 1,
    debug: 1,
    coverage: 0,
    callbacks: None,
    on_pause: None,
    after: None,
};

const CLASSES: &[&str] = &["DebugLuauUserDefinedClasses", "DebugLuauUserDefinedClassesRuntime"];
const FINALIZERS: &[&str] = &["DebugLuauCoroutineFinally"];
const IF_LOCAL: &[&str] = &["LuauExperimentalIfLocalSyntax"];
const INTEGERS: &[&str] = &["LuauIntegerLibrary", "LuauIntegerType2"];
const MOVE: &[&str] = &["LuauTableArrayAdjustCheck", "LuauTableMoveTimeoutFix"];
const VECTORS: &[&str] = &["LuauCompileEmitVectorDouble", "LuauCompileNoFoldVectorEqW"];

const MACHINE_CODE: Natives = basics::machine_code;

const RUNS: &[Run] = &[
    Run { name: "apicalls.luau", natives: &[memory::scarce], after: Some(harness::api_calls), ..PLAIN },
    Run { name: "buffers.luau", natives: &[MACHINE_CODE], ..PLAIN },
    Run { name: "classes.luau", flags: CLASSES, ..PLAIN },
    Run { name: "coroutine.luau", flags: FINALIZERS, in_main_thread: true, ..PLAIN },
    Run { name: "coroutinehost.luau", flags: FINALIZERS, natives: &[coroutines::resuming], ..PLAIN },
    Run { name: "coverage.luau", natives: &[debugging::coverage], coverage: 2, ..PLAIN },
    Run { name: "cyield.luau", natives: &[coroutines::yielding], ..PLAIN },
    DEBUGGER,
    Run { callbacks: Some(debugging::step_to_breakpoints), ..DEBUGGER },
    Run { name: "exceptions.luau", natives: &[memory::scarce], after: Some(harness::exceptions), ..PLAIN },
    Run { name: "gc.luau", natives: &[memory::blockable], ..PLAIN },
    Run { name: "iflocal.luau", flags: IF_LOCAL, ..PLAIN },
    Run { name: "integers.luau", flags: INTEGERS, natives: &[MACHINE_CODE], ..PLAIN },
    Run { name: "integers_regspill.luau", flags: INTEGERS, natives: &[MACHINE_CODE], ..PLAIN },
    Run { name: "interrupt.luau", after: Some(interrupts::drive), ..PLAIN },
    Run { name: "iter.luau", natives: &[MACHINE_CODE, coroutines::iterating], ..PLAIN },
    Run { name: "move.luau", flags: MOVE, ..PLAIN },
    Run { name: "native.luau", natives: &[MACHINE_CODE], ..PLAIN },
    Run { name: "native_integer_spills.luau", flags: INTEGERS, natives: &[MACHINE_CODE], ..PLAIN },
    Run { name: "native_types.luau", natives: &[MACHINE_CODE], ..PLAIN },
    Run { name: "native_userdata.luau", natives: &[vectors::members, userdata::points], ..PLAIN },
    Run {
        name: "ndebug_upvalues.luau",
        optimization: 0,
        debug: 0,
        on_pause: Some(debugging::look_at_upvalue),
        ..PLAIN
    },
    Run { name: "pcall.luau", natives: &[memory::scarce, coroutines::failing], ..PLAIN },
    Run { name: "tables.luau", natives: &[basics::light_userdata], ..PLAIN },
    Run {
        name: "tmerror.luau",
        callbacks: Some(debugging::count_errors),
        after: Some(debugging::three_errors),
        ..PLAIN
    },
    Run {
        name: "tmerror.luau",
        callbacks: Some(debugging::pause_at_errors),
        on_pause: Some(debugging::resume_with_error),
        after: Some(debugging::three_errors),
        ..PLAIN
    },
    Run { name: "udata_direct.luau", natives: &[vectors::members, userdata::points], ..PLAIN },
    Run { name: "userdata.luau", natives: &[userdata::whole_numbers], ..PLAIN },
    Run { optimization: 0, ..VECTOR },
    VECTOR,
    Run { optimization: 2, ..VECTOR },
    Run { optimization: 0, ..VECTOR_LIBRARY },
    VECTOR_LIBRARY,
    Run { optimization: 2, ..VECTOR_LIBRARY },
];

const DEBUGGER: Run = Run {
    name: "debugger.luau",
    flags: FINALIZERS,
    natives: &[debugging::breakpoints],
    debug: 2,
    callbacks: Some(debugging::pause_at_breakpoints),
    on_pause: Some(debugging::look_around),
    after: Some(debugging::all_breakpoints),
    ..PLAIN
};
const VECTOR: Run = Run { name: "vector.luau", flags: VECTORS, natives: &[MACHINE_CODE, vectors::members], ..PLAIN };
const VECTOR_LIBRARY: Run = Run { name: "vector_library.luau", natives: &[MACHINE_CODE], ..PLAIN };

/// The runs of a file: at least one.
pub fn runs(name: &str) -> Vec<&'static Run> {
    let runs: Vec<_> = RUNS.iter().filter(|run| run.name == name).collect();
    if runs.is_empty() { vec![&PLAIN] } else { runs }
}
