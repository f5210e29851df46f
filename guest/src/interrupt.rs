//! Luau's interrupt, by which the host takes the thread back from a script.
//!
//! Luau's interpreter calls a function through a pointer, when it is set, at each loop and call. The host
//! sets it in our memory, from outside and at any time, once a script has run for long enough; what it sets
//! is [`pause`], which asks the host whether and when to go on.

use std::os::raw::c_int;

use mlua::Lua;
use mlua::ffi::{lua_Callbacks, lua_State, lua_callbacks};

use crate::host;

unsafe extern "C-unwind" {
    /// In mlua's allocator, see patch_crates.py: collects if the heap has grown near its limit, which it
    /// asks for by the very pointer that the host writes to.
    fn neoc_collect_if_wanted(state: *mut lua_State);
}

/// Where the pointer is. The same as long as the VM lives.
///
/// # Errors
/// When there is no memory.
pub fn place(lua: &Lua) -> mlua::Result<*const ()> {
    let mut callbacks: *mut lua_Callbacks = std::ptr::null_mut();
    // SAFETY: asking for the address of the callbacks leaves the state as it is.
    unsafe { lua.exec_raw::<()>((), |state| callbacks = lua_callbacks(state))? };
    // SAFETY: the callbacks live as long as the VM; only the address of the field is taken.
    Ok(unsafe { &raw const (*callbacks).interrupt }.cast())
}

/// What the host sets the pointer to.
pub fn function() -> unsafe extern "C-unwind" fn(*mut lua_State, c_int) {
    pause
}

unsafe extern "C-unwind" fn pause(state: *mut lua_State, collector_phase: c_int) {
    // From within the collector Luau calls with its phase; the next loop or call is soon enough.
    if collector_phase < 0 {
        // SAFETY: Luau calls with a valid state.
        unsafe { (*lua_callbacks(state)).interrupt = None };
        host::pause();
        // SAFETY: as above; an interrupt is a safe point for a collection.
        unsafe { neoc_collect_if_wanted(state) };
    }
}
