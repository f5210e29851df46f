//! Plain data of ours as a script's values.
//!
//! Under a memory limit mlua makes each string and each field of a table in a protected call of its own. A request's
//! table has a dozen of each, and the calls took longer than what was in them. So a whole value is made in one.

use std::ffi::c_int;

use mlua::ffi::{
    lua_State, lua_checkstack, lua_createtable, lua_pushboolean, lua_pushlstring, lua_pushnumber, lua_rawset,
    luaL_error,
};
use mlua::{Lua, Value};

/// Places of the stack that a table needs: its own, a key's and a value's.
const TABLE_PLACES: c_int = 3;

/// A value, not yet made.
pub enum Plain<'a> {
    Boolean(bool),
    Number(f64),
    String(&'a [u8]),
    /// Fields by their names. Of several of one name, the last wins.
    Table(&'a [Field<'a>]),
}

/// A field of a table.
pub type Field<'a> = (&'a str, Plain<'a>);

/// Makes a value, if need be by collecting the script's garbage.
///
/// # Errors
/// [`mlua::Error::MemoryError`] when there is no memory for it.
pub fn make(lua: &Lua, plain: &Plain<'_>) -> mlua::Result<Value> {
    // SAFETY: `push` leaves one value on the stack of the call, and is left by an error of Luau's with nothing to drop.
    let make = || unsafe { lua.exec_raw((), |state| push(state, plain)) };
    match make() {
        Err(mlua::Error::MemoryError(_)) => {
            lua.gc_collect()?;
            make()
        }
        made => made,
    }
}

/// Pushes a value.
///
/// # Safety
/// It is to be called in a protected call, with a free place on the stack.
unsafe fn push(state: *mut lua_State, plain: &Plain<'_>) {
    // SAFETY: the caller vouches for the state and one place; a table asks for what it needs. Strings are given with
    // their lengths, and the table lies where `lua_rawset` looks for it, below a key and a value.
    unsafe {
        match plain {
            Plain::Boolean(boolean) => lua_pushboolean(state, (*boolean).into()),
            Plain::Number(number) => lua_pushnumber(state, *number),
            Plain::String(bytes) => drop(lua_pushlstring(state, bytes.as_ptr().cast(), bytes.len())),
            Plain::Table(fields) => {
                if lua_checkstack(state, TABLE_PLACES) == 0 {
                    luaL_error(state, c"stack overflow".as_ptr());
                }
                lua_createtable(state, 0, c_int::try_from(fields.len()).unwrap_or_default());
                for (name, value) in *fields {
                    lua_pushlstring(state, name.as_ptr().cast(), name.len());
                    push(state, value);
                    lua_rawset(state, -3);
                }
            }
        }
    }
}
