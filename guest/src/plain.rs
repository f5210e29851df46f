//! Plain data of ours as a script's values.
//!
//! Under a memory limit mlua makes each string and each field of a table in a protected call of its own. A request's
//! table has a dozen of each, and the calls took longer than what was in them. So a whole value is made in one, which
//! needs no function of its own on the stack.

use std::ffi::{c_int, c_void};

use mlua::ffi::{
    LUA_ERRMEM, LUA_OK, lua_State, lua_checkstack, lua_clonetable, lua_createtable, lua_gettop, lua_pushboolean,
    lua_pushlstring_, lua_pushnumber, lua_rawset, lua_replace, lua_settop, lua_xmove, luaL_error,
};
use mlua::state::RawLua;
use mlua::{IntoLua, Lua, LuaString, Table, Thread, Value};

unsafe extern "C-unwind" {
    /// In Luau, see patch_crates.py: calls `work` with `data`. After an error the stack is as before, and the error on it.
    fn neoc_protected(
        state: *mut lua_State,
        work: unsafe extern "C-unwind" fn(*mut lua_State, *mut c_void),
        data: *mut c_void,
    ) -> c_int;
}

/// Places of the stack that a value may need: a table's own, a key's and a value's, for tables in tables. None of ours
/// is more than two deep.
const MAX_PLACES: c_int = 3 * 4;

/// A value, not yet made.
pub enum Plain<'a> {
    Boolean(bool),
    Number(f64),
    String(&'a [u8]),
    /// Fields by their names. Of several of one name, the last wins.
    Table(&'a [Field<'a>]),
    /// A copy of a table, with these values for its fields.
    Copy(&'a Template, &'a [Plain<'a>]),
}

/// A table that has all its fields, to be copied: costs less than to make each field.
pub struct Template {
    names: Vec<LuaString>,
    table: Table,
}

impl Template {
    /// One whose fields have these names.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(lua: &Lua, names: &[&str]) -> mlua::Result<Self> {
        let names = names.iter().map(|name| lua.create_string(name)).collect::<mlua::Result<Vec<_>>>()?;
        let table = lua.create_table_with_capacity(0, names.len())?;
        names.iter().try_for_each(|name| table.raw_set(name, false))?;
        Ok(Self { names, table })
    }
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
    made(lua, plain, |raw| {
        // SAFETY: the value is on the stack, and a thread has room for twenty when it begins.
        unsafe { lua_xmove(raw.state(), thread.state(), 1) };
        Ok(())
    })
}

/// Pushes a value and has it taken from the stack.
fn made<T>(lua: &Lua, plain: &Plain<'_>, take: impl Fn(&RawLua) -> mlua::Result<T>) -> mlua::Result<T> {
    let make = || {
        lua.exec_raw_lua(|raw| {
            let state = raw.state();
            let mut given = (raw, plain);
            // SAFETY: `push_given` gets what it expects, and is left by an error of Luau's with nothing to drop. The stack
            // is in the end as it was.
            unsafe {
                let top = lua_gettop(state);
                let made = match neoc_protected(state, push_given, (&raw mut given).cast()) {
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

/// What [`push_given`] is given.
type Given<'a> = (&'a RawLua, &'a Plain<'a>);

/// Pushes a value.
///
/// # Safety
/// As for [`push`], and `given` points to a [`Given`].
unsafe extern "C-unwind" fn push_given(state: *mut lua_State, given: *mut c_void) {
    // SAFETY: the caller vouches for the pointer, and the stack is asked for the places.
    unsafe {
        let (raw, plain) = *given.cast::<Given<'_>>();
        make_room(state, MAX_PLACES);
        push(raw, state, plain);
    }
}

/// Pushes a value.
///
/// # Safety
/// It is to be called in a protected call, with three free places on the stack for each level of tables, and one.
unsafe fn push(raw: &RawLua, state: *mut lua_State, plain: &Plain<'_>) {
    // SAFETY: the caller vouches for the state and the places. Strings are given with their lengths, and the table lies
    // where `lua_rawset` looks for it, below a key and a value.
    unsafe {
        match plain {
            Plain::Boolean(boolean) => lua_pushboolean(state, (*boolean).into()),
            Plain::Number(number) => lua_pushnumber(state, *number),
            Plain::String(bytes) => push_string(state, bytes),
            Plain::Table(fields) => {
                lua_createtable(state, 0, c_int::try_from(fields.len()).unwrap_or_default());
                for (name, value) in *fields {
                    push_string(state, name.as_bytes());
                    push(raw, state, value);
                    lua_rawset(state, -3);
                }
            }
            Plain::Copy(Template { names, table }, values) => {
                push_held(raw, table);
                lua_clonetable(state, -1);
                lua_replace(state, -2);
                for (name, value) in names.iter().zip(*values) {
                    push_held(raw, name);
                    push(raw, state, value);
                    lua_rawset(state, -3);
                }
            }
        }
    }
}

/// # Safety
/// As for [`push`].
unsafe fn make_room(state: *mut lua_State, n_places: c_int) {
    // SAFETY: the caller vouches for the state, and that the call is protected.
    unsafe {
        if lua_checkstack(state, n_places) == 0 {
            luaL_error(state, c"stack overflow".as_ptr());
        }
    }
}

/// # Safety
/// As for [`push`].
unsafe fn push_string(state: *mut lua_State, bytes: &[u8]) {
    // SAFETY: the caller vouches for the state and the place. mlua's function of this name reads the string back.
    unsafe { lua_pushlstring_(state, bytes.as_ptr().cast(), bytes.len()) }
}

/// # Safety
/// As for [`push`].
unsafe fn push_held(raw: &RawLua, value: impl IntoLua) {
    // SAFETY: the caller vouches for the place. What is held is there already, so that this never fails.
    let _ = unsafe { value.push_into_stack(raw) };
}
