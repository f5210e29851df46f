//! How natives are written: functions in the manner of C that Luau calls.

use std::ffi::CStr;

use mlua::ffi::{lua_CFunction, lua_Continuation, lua_State, lua_pushcclosurek, luaL_error};
use mlua::{Function, Lua, Table};

/// Declares natives. Each body says what it does to the stack of `$state`, by Luau's C functions, and
/// gives the number of its results. One with `$status` is what goes on after a yield or a call.
macro_rules! natives {
    ($($(#[$attribute:meta])* fn $name:ident($state:ident $(, $status:ident)?) $body:block)*) => {$(
        $(#[$attribute])*
        unsafe extern "C-unwind" fn $name(
            $state: *mut mlua::ffi::lua_State
            $(, $status: std::os::raw::c_int)?
        ) -> std::os::raw::c_int {
            // SAFETY: Luau calls a native with the state that it runs on, and with room for LUA_MINSTACK
            // values; the body pushes fewer, and holds nothing that an error would have to drop.
            unsafe { $body }
        }
    )*};
}

pub(super) use natives;

/// Sets a global to a native, with what goes on after it has yielded or called.
///
/// # Errors
/// When there is no memory.
pub fn set(
    lua: &Lua,
    globals: &Table,
    name: &'static CStr,
    native: lua_CFunction,
    continuation: Option<lua_Continuation>,
) -> mlua::Result<()> {
    let function = function(lua, Some(name), native, continuation)?;
    globals.raw_set(lua.create_string(name.to_bytes())?, function)
}

/// Makes a function of a native. Messages about its arguments have its `name`, if it has one.
///
/// # Errors
/// When there is no memory.
pub fn function(
    lua: &Lua,
    name: Option<&'static CStr>,
    native: lua_CFunction,
    continuation: Option<lua_Continuation>,
) -> mlua::Result<Function> {
    let name = name.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: this pushes one value, for which there is room; the name lives for ever.
    unsafe { lua.exec_raw((), |state| lua_pushcclosurek(state, native, name, 0, continuation)) }
}

/// Raises an error where a claim of a native about its stack does not hold.
///
/// # Safety
/// `state` is the one that a native was called with.
pub unsafe fn claim(state: *mut lua_State, holds: bool, message: &'static CStr) {
    if !holds {
        // SAFETY: the caller vouches for the state, and the message has no place for an argument.
        unsafe { luaL_error(state, message.as_ptr()) };
    }
}
