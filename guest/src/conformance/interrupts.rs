//! What is done with the functions of interrupt.luau: each is called with an interrupt that must come at
//! the right lines, or that ends what would never end.
//!
//! In the guest the interrupt is the host's: it may put [`pause`] in the place of ours, from outside and at
//! any time. So [`pause`] puts ours back, and calls it.

use std::cell::Cell;
use std::os::raw::c_int;

use mlua::ffi::*;
use mlua::{Function, Lua, Table};

use super::claim;
use crate::interrupt;

/// An interrupt, as Luau calls it.
type Interrupt = unsafe extern "C-unwind" fn(*mut lua_State, c_int);

thread_local! {
    static OURS: Cell<Option<Interrupt>> = const { Cell::new(None) };
    /// How often ours was called since it was set.
    static CALLS: Cell<usize> = const { Cell::new(0) };
    /// The first call that came at another line than it should have.
    static WRONG: Cell<Option<(usize, c_int)>> = const { Cell::new(None) };
}

/// What the host sets Luau's interrupt to.
pub fn function() -> Interrupt {
    pause
}

unsafe extern "C-unwind" fn pause(state: *mut lua_State, collector_phase: c_int) {
    // SAFETY: Luau calls with a valid state, as it would call the product's own; and so it would call ours.
    unsafe {
        interrupt::function()(state, collector_phase);
        if collector_phase < 0
            && let Some(ours) = OURS.get()
        {
            (*lua_callbacks(state)).interrupt = Some(ours);
            ours(state, collector_phase);
        }
    }
}

/// Calls all functions of the file.
pub fn drive(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    let outcome = drive_all(lua, globals);
    set(lua, None)?;
    outcome
}

fn drive_all(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    let function = |name: &str| globals.get::<Function>(name);
    set(lua, Some(expect_lines))?;
    let statuses = resume(lua, function("test")?, 2)?;
    claim(WRONG.get().is_none(), &format!("interrupts at {LINES:?}; wrong was {:?}", WRONG.get()))?;
    claim(statuses == [LUA_YIELD, LUA_OK] && CALLS.get() == LINES.len(), "test to yield once, and all interrupts")?;
    for number in 1..=10 {
        set(lua, Some(yield_at_eleventh))?;
        let statuses = resume(lua, function(&format!("infloop{number}"))?, 1)?;
        claim(statuses == [LUA_YIELD], &format!("infloop{number} to be interrupted"))?;
    }
    for number in 1..=6 {
        set(lua, Some(fail_at_thousandth))?;
        let statuses = resume(lua, function(&format!("hang{number}"))?, 1)?;
        claim(statuses == [LUA_ERRRUN], &format!("hang{number} to fail"))?;
    }
    set(lua, Some(fail_at_thousandth))?;
    claim(resume(lua, function("hangpcall")?, 1)? == [LUA_OK], "hangpcall to catch the interrupt's error")
}

fn set(lua: &Lua, ours: Option<Interrupt>) -> mlua::Result<()> {
    OURS.set(ours);
    CALLS.set(0);
    WRONG.set(None);
    // SAFETY: the callbacks live as long as the VM. A pause that the host has just asked for it asks for again.
    unsafe { lua.exec_raw::<()>((), |state| (*lua_callbacks(state)).interrupt = ours) }
}

/// Resumes a function as a coroutine, so many times; gives how each time ended.
fn resume(lua: &Lua, function: Function, times: usize) -> mlua::Result<Vec<c_int>> {
    let mut statuses = Vec::new();
    let go = |state: *mut lua_State| {
        // SAFETY: the function is on the stack, and there is room for the thread.
        unsafe {
            let thread = lua_newthread(state);
            lua_xpush(state, thread, -2);
            statuses.extend((0..times).map(|_| lua_resume_(thread, std::ptr::null_mut(), 0)));
            lua_settop(state, 0);
        }
    };
    // SAFETY: `go` leaves nothing on the stack.
    unsafe { lua.exec_raw::<()>(function, go) }?;
    Ok(statuses)
}

/// Where `test` is interrupted: calls, returns, and the ends of loops.
const LINES: [c_int; 22] = [11, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 20, 15, 15, 15, 15, 18, 25, 23, 26];

fn count() -> usize {
    CALLS.set(CALLS.get() + 1);
    CALLS.get()
}

unsafe extern "C-unwind" fn expect_lines(state: *mut lua_State, collector_phase: c_int) {
    if collector_phase >= 0 {
        return;
    }
    let calls = count();
    // SAFETY: Luau calls with a valid state, at a place where it can yield.
    unsafe {
        let mut frame: lua_Debug = std::mem::zeroed();
        lua_getinfo(state, 0, c"l".as_ptr(), &raw mut frame);
        if LINES.get(calls - 1) != Some(&frame.currentline) && WRONG.get().is_none() {
            WRONG.set(Some((calls, frame.currentline)));
        }
        if calls == 4 {
            lua_yield(state, 0);
        }
    }
}

unsafe extern "C-unwind" fn yield_at_eleventh(state: *mut lua_State, collector_phase: c_int) {
    if collector_phase < 0 && count() == 11 {
        // SAFETY: Luau calls with a valid state, at a place where it can yield.
        unsafe { lua_yield(state, 0) };
    }
}

unsafe extern "C-unwind" fn fail_at_thousandth(state: *mut lua_State, collector_phase: c_int) {
    if collector_phase < 0 && count() == 1000 {
        CALLS.set(0);
        // SAFETY: Luau calls with a valid state, at a place where it can fail.
        unsafe { luaL_error(state, c"timeout".as_ptr()) };
    }
}
