//! Plain data of ours as a script's values.
//!
//! Under a memory limit mlua makes each string and each field of a table in a protected call of its own. A request's
//! table has a dozen of each, and the calls took longer than what was in them. So a whole value is made in one, which
//! needs no function of its own on the stack.

use std::ffi::{c_int, c_void};

use mlua::ffi::{
    LUA_ERRMEM, LUA_OK, lua_State, lua_checkstack, lua_createtable, lua_gettop, lua_pushboolean, lua_pushlstring,
    lua_pushnumber, lua_rawset, lua_settop, lua_xmove, luaL_error,
};
use mlua::state::RawLua;
use mlua::{Lua, Thread, Value};

unsafe extern "C-unwind" {
    /// In Luau, see patch_crates.py: calls `work` with `data`. After an error the stack is as before, and the error on it.
    fn neoc_protected(
        state: *mut lua_State,
        work: unsafe extern "C-unwind" fn(*mut lua_State, *mut c_void),
        data: *mut c_void,
    ) -> c_int;
}

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
    // SAFETY: the value is on the stack.
    made(lua, plain, |raw| unsafe { raw.pop() })
}

/// Makes a value as the next argument of a thread that has not begun, if need be by collecting the script's garbage.
///
/// # Errors
/// As [`make`].
pub fn give(lua: &Lua, thread: &Thread, plain: &Plain<'_>) -> mlua::Result<()> {
    // SAFETY: the value is on the stack, and a thread has room for twenty when it begins.
    made(lua, plain, |raw| unsafe { Ok(lua_xmove(raw.state(), thread.state(), 1)) })
}

/// Pushes a value and has it taken from the stack.
fn made<T>(lua: &Lua, plain: &Plain<'_>, take: impl Fn(&RawLua) -> mlua::Result<T>) -> mlua::Result<T> {
    let make = || {
        lua.exec_raw_lua(|raw| {
            let state = raw.state();
            let mut plain = plain;
            // SAFETY: `push_to` gets the reference that it expects, and is left by an error of Luau's with nothing to
            // drop. The stack is in the end as it was.
            unsafe {
                let top = lua_gettop(state);
                let made = match neoc_protected(state, push_to, (&raw mut plain).cast()) {
                    LUA_OK => take(raw),
                    LUA_ERRMEM => Err(mlua::Error::MemoryError("not enough memory".to_owned())),
                    _ => Err(mlua::Error::runtime("the stack is full")),
                };
                lua_settop(state, top);
                made
            }
        })
    };
    match make() {
        Err(mlua::Error::MemoryError(_)) => {
            lua.gc_collect()?;
            make()
        }
        made => made,
    }
}

/// Pushes the value that `plain` is a reference to.
///
/// # Safety
/// As for [`push`], and `plain` points to a reference to a [`Plain`].
unsafe extern "C-unwind" fn push_to(state: *mut lua_State, plain: *mut c_void) {
    // SAFETY: the caller vouches for the pointer, and the stack is asked for one place.
    unsafe {
        if lua_checkstack(state, 1) == 0 {
            luaL_error(state, c"stack overflow".as_ptr());
        }
        push(state, *plain.cast::<&Plain<'_>>());
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
