//! What debuggers and coverage tools do, as debugger.luau, ndebug_upvalues.luau, tmerror.luau and
//! coverage.luau expect it.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_void};

use mlua::ffi::*;
use mlua::{Error, Lua, Table};

use super::claim;
use super::files::Resume;
use super::native::{natives, set};

fn debug_record() -> lua_Debug {
    // SAFETY: it has numbers and pointers only, and zero is a value of each.
    unsafe { std::mem::zeroed() }
}

// === coverage.luau ===

/// Adds `getcoverage`.
pub fn coverage(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    set(lua, globals, c"getcoverage", get_coverage, None)
}

natives! {
    // A list with an entry for the function and each one in it.
    fn get_coverage(state) {
        luaL_checktype(state, 1, LUA_TFUNCTION);
        lua_createtable(state, 0, 0);
        lua_getcoverage(state, 1, state.cast(), add_entry);
        1
    }
}

unsafe extern "C-unwind" fn add_entry(
    state: *mut c_void,
    name: *const c_char,
    line: c_int,
    depth: c_int,
    hits: *const c_int,
    n_lines: usize,
) {
    // SAFETY: Luau passes on the state that `get_coverage` gave, with the list on top of its stack, and a
    // count for each line.
    unsafe {
        let (state, hits) = (state.cast::<lua_State>(), std::slice::from_raw_parts(hits, n_lines));
        lua_createtable(state, 0, 3);
        if !name.is_null() {
            lua_pushstring(state, name);
            lua_setfield(state, -2, c"name".as_ptr());
        }
        lua_pushnumber(state, f64::from(line));
        lua_setfield(state, -2, c"linedefined".as_ptr());
        lua_pushnumber(state, f64::from(depth));
        lua_setfield(state, -2, c"depth".as_ptr());
        for (line, &count) in (0..).zip(hits).filter(|&(_, &count)| count != -1) {
            lua_pushnumber(state, f64::from(count));
            lua_rawseti_(state, -2, line);
        }
        let n_entries = lua_objlen_(state, -2);
        lua_rawseti_(state, -2, n_entries + 1);
    }
}

// === tmerror.luau ===

thread_local! {
    /// The lines at which protected calls failed.
    static ERROR_LINES: RefCell<Vec<c_int>> = RefCell::default();
}

/// Has Luau say where protected calls fail.
pub fn count_errors(thread: *mut lua_State) {
    // SAFETY: the callbacks live as long as the VM, and nothing else looks at them now.
    unsafe { (*lua_callbacks(thread)).debugprotectederror = Some(count_error) };
}

/// The same, and has the file pause there.
pub fn pause_at_errors(thread: *mut lua_State) {
    // SAFETY: as above.
    unsafe { (*lua_callbacks(thread)).debugprotectederror = Some(count_error_and_pause) };
}

unsafe extern "C-unwind" fn count_error(state: *mut lua_State) {
    let mut frame = debug_record();
    let mut level = 0;
    // SAFETY: Luau calls with the state that failed; `what` lives for ever.
    unsafe {
        while lua_getinfo(state, level, c"sl".as_ptr(), &raw mut frame) != 0 && CStr::from_ptr(frame.what) != c"Lua" {
            level += 1;
        }
    }
    ERROR_LINES.with_borrow_mut(|lines| lines.push(frame.currentline));
}

unsafe extern "C-unwind" fn count_error_and_pause(state: *mut lua_State) {
    // SAFETY: Luau calls with the state that failed, which a debugger may pause.
    unsafe {
        count_error(state);
        lua_break(state);
    }
}

/// Goes on where the file paused.
pub fn resume_with_error(_thread: *mut lua_State) -> mlua::Result<Resume> {
    Ok(Resume::WithError)
}

/// Whether the failures were those of the file that no function of Luau's library is in between.
pub fn three_errors(_lua: &Lua, _globals: &Table) -> mlua::Result<()> {
    let lines = ERROR_LINES.take();
    claim(lines == [37, 54, 73], &format!("errors at lines 37, 54 and 73, not {lines:?}"))
}

// === ndebug_upvalues.luau ===

/// Looks at the upvalue of the function that has yielded. It has a value, and no name.
pub fn look_at_upvalue(thread: *mut lua_State) -> mlua::Result<Resume> {
    // SAFETY: the file has yielded, in its function.
    let found = unsafe { upvalue(thread, 1) };
    claim(found == Some((String::new(), Some(5.0))), &format!("an upvalue of 5 without a name, not {found:?}"))?;
    Ok(Resume::Plainly)
}

/// The name and the value of a number.
type Variable = Option<(String, Option<f64>)>;

/// The first upvalue of the function at a level.
///
/// # Safety
/// `thread` does not run, and has a function at that level.
unsafe fn upvalue(thread: *mut lua_State, level: c_int) -> Variable {
    // SAFETY: the caller vouches for the thread.
    unsafe {
        lua_getinfo(thread, level, c"f".as_ptr(), &mut debug_record());
        let name = lua_getupvalue(thread, -1, 1);
        let found = variable(thread, name);
        lua_settop(thread, -2);
        found
    }
}

/// What Luau gave: a name, or null, and with a name the value on top of the stack.
///
/// # Safety
/// As Luau has just given them.
unsafe fn variable(thread: *mut lua_State, name: *const c_char) -> Variable {
    if name.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for the value on the stack and for the name.
    unsafe {
        let mut is_number = 0;
        let number = lua_tonumberx(thread, -1, &raw mut is_number);
        lua_settop(thread, -2);
        Some((CStr::from_ptr(name).to_string_lossy().into_owned(), (is_number != 0).then_some(number)))
    }
}

// === debugger.luau ===

thread_local! {
    /// How often a breakpoint was hit: twice each, because the instruction that it replaces comes after.
    static HITS: Cell<u32> = const { Cell::new(0) };
    /// How many instructions were stepped through. None when they are not.
    static STEPS: Cell<Option<u32>> = const { Cell::new(None) };
    /// The coroutine in which the last breakpoint was, unless that was in the file itself.
    static INTERRUPTED: Cell<*mut lua_State> = const { Cell::new(std::ptr::null_mut()) };
}

/// Adds `breakpoint(line, enabled)`.
pub fn breakpoints(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    set(lua, globals, c"breakpoint", set_breakpoint, None)
}

natives! {
    fn set_breakpoint(state) {
        let (line, enabled) = (luaL_checkinteger_(state, 1), luaL_optboolean(state, 2, 1));
        // The outermost function is the file.
        lua_getinfo(state, lua_stackdepth(state) - 1, c"f".as_ptr(), &mut debug_record());
        lua_breakpoint(state, -1, line, enabled);
        0
    }
}

/// Has the file pause at breakpoints.
pub fn pause_at_breakpoints(thread: *mut lua_State) {
    // SAFETY: the callbacks live as long as the VM, and nothing else looks at them now.
    let callbacks = unsafe { &mut *lua_callbacks(thread) };
    callbacks.debugbreak = Some(on_breakpoint);
    callbacks.debuginterrupt = Some(on_interrupted);
}

/// The same, and has Luau call after each instruction.
pub fn step_to_breakpoints(thread: *mut lua_State) {
    pause_at_breakpoints(thread);
    // SAFETY: the thread does not run; the callbacks as above.
    unsafe {
        lua_singlestep(thread, 1);
        (*lua_callbacks(thread)).debugstep = Some(on_step);
    }
    STEPS.set(Some(0));
}

unsafe extern "C-unwind" fn on_breakpoint(state: *mut lua_State, _frame: *mut lua_Debug) {
    let hits = HITS.get() + 1;
    HITS.set(hits);
    if hits % 2 == 1 {
        // SAFETY: Luau calls with the state that is at a breakpoint.
        unsafe { lua_break(state) };
    }
}

unsafe extern "C-unwind" fn on_interrupted(_state: *mut lua_State, frame: *mut lua_Debug) {
    // SAFETY: Luau calls with a record of its own, in which it names the coroutine.
    INTERRUPTED.set(unsafe { (*frame).userdata.cast() });
}

unsafe extern "C-unwind" fn on_step(_state: *mut lua_State, _frame: *mut lua_Debug) {
    STEPS.set(STEPS.get().map(|steps| steps + 1));
}

/// A local that must be there at a hit: in the coroutine that was interrupted or in the file, at which
/// level, the how manieth, its name, and its value where that is a number.
type Expected = (u32, bool, c_int, c_int, &'static str, Option<f64>);

const LOCALS: [Expected; 12] = [
    (1, false, 0, 1, "b", Some(50.0)),
    (3, false, 0, 1, "a", Some(6.0)),
    (5, false, 1, 1, "a", Some(7.0)),
    (7, false, 1, 1, "a", Some(8.0)),
    (9, false, 1, 1, "a", Some(9.0)),
    (13, false, 0, 1, "a", None),
    (15, false, 2, 1, "x", None),
    (17, true, 0, 1, "arg", Some(21.0)),
    (19, true, 0, 1, "arg", Some(21.0)),
    (21, false, 0, 2, "value", Some(42.0)),
    (23, true, 0, 1, "arg", Some(21.0)),
    (25, true, 0, 1, "arg", Some(21.0)),
];

/// Looks at locals, arguments and upvalues, and lets the coroutine go on that was interrupted.
pub fn look_around(thread: *mut lua_State) -> mlua::Result<Resume> {
    let (hits, interrupted) = (HITS.get(), INTERRUPTED.replace(std::ptr::null_mut()));
    for &(_, in_coroutine, level, index, name, value) in LOCALS.iter().filter(|expected| expected.0 == hits) {
        let place = if in_coroutine { interrupted } else { thread };
        if place.is_null() {
            return Err(Error::runtime(format!("expected hit {hits} to interrupt a coroutine")));
        }
        // SAFETY: both threads are at a breakpoint, and have these levels.
        let found = unsafe { variable(place, lua_getlocal(place, level, index)) };
        claim(found == Some((name.to_owned(), value)), &format!("{name} {value:?} at hit {hits}, not {found:?}"))?;
    }
    if hits == 1 {
        // SAFETY: the file is at a breakpoint, in a function with two arguments.
        unsafe {
            claim(argument(thread, 1) == Some(50.0) && argument(thread, 2) == Some(42.0), "the arguments 50 and 42")?;
            claim(upvalue(thread, 0) == Some(("a".to_owned(), Some(5.0))), "the upvalue a to be 5")?;
        }
    }
    if hits == 15 {
        // SAFETY: as above.
        let second = unsafe { variable(thread, lua_getlocal(thread, 2, 2)) };
        claim(second.is_none(), "locals that are not reached yet to be absent")?;
    }
    if !interrupted.is_null() {
        // SAFETY: the coroutine is at a breakpoint.
        unsafe { lua_resume_(interrupted, std::ptr::null_mut(), 0) };
    }
    Ok(Resume::Plainly)
}

/// # Safety
/// `thread` is at a breakpoint.
unsafe fn argument(thread: *mut lua_State, index: c_int) -> Option<f64> {
    // SAFETY: the caller vouches for the thread.
    unsafe {
        if lua_getargument(thread, 0, index) == 0 {
            return None;
        }
        variable(thread, c"".as_ptr()).and_then(|(_, value)| value)
    }
}

/// Whether each breakpoint was hit.
pub fn all_breakpoints(_lua: &Lua, _globals: &Table) -> mlua::Result<()> {
    let (hits, steps) = (HITS.take(), STEPS.take());
    claim(hits == 26, &format!("13 breakpoints to be hit twice, not {hits} hits"))?;
    claim(steps.is_none_or(|steps| steps > 100), "more than a hundred steps")
}
