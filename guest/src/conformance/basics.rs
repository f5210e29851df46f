//! Natives that every file gets, and small ones.

use std::ffi::CStr;
use std::os::raw::c_int;

use mlua::ffi::*;
use mlua::{LightUserData, Lua, MultiValue, Table, Value};

use super::native::{natives, set};

/// For every file.
pub fn all(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    set(lua, globals, c"collectgarbage", collect_garbage, None)?;
    set(lua, globals, c"loadstring", load_string, None)?;
    globals.raw_set("print", lua.create_function(|_, _: MultiValue| Ok(()))?)
}

/// For files that ask whether they were compiled to machine code. Here nothing ever is, and "if supported"
/// leaves that open.
pub fn machine_code(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    globals.raw_set("is_native", lua.create_function(|_, ()| Ok(false))?)?;
    globals.raw_set("is_native_if_supported", lua.create_function(|_, ()| Ok(true))?)
}

/// For tables.luau: a light userdata of a number, or of another value's address.
pub fn light_userdata(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    let make = lua.create_function(|_, value: Value| {
        Ok(LightUserData(match value {
            Value::Number(number) => std::ptr::without_provenance_mut(number as usize),
            Value::Integer(number) => std::ptr::without_provenance_mut(number as usize),
            other => other.to_pointer().cast_mut(),
        }))
    })?;
    globals.raw_set("makelud", make)
}

natives! {
    fn collect_garbage(state) {
        let option = CStr::from_ptr(luaL_optstring(state, 1, c"collect".as_ptr()));
        let what = match option.to_bytes() {
            b"stop" => LUA_GCSTOP,
            b"restart" => LUA_GCRESTART,
            b"collect" => LUA_GCCOLLECT,
            b"count" => LUA_GCCOUNT,
            b"isrunning" => LUA_GCISRUNNING,
            b"step" => LUA_GCSTEP,
            b"setgoal" => LUA_GCSETGOAL,
            b"setstepmul" => LUA_GCSETSTEPMUL,
            b"setstepsize" => LUA_GCSETSTEPSIZE,
            _ => luaL_argerror(state, 1, c"no such option".as_ptr()),
        };
        let result = lua_gc(state, what, luaL_optinteger(state, 2, 0) as c_int);
        match what {
            LUA_GCSTEP | LUA_GCISRUNNING => lua_pushboolean(state, result),
            LUA_GCCOUNT => {
                let rest = lua_gc(state, LUA_GCCOUNTB, 0);
                lua_pushnumber(state, f64::from(result) + f64::from(rest) / 1024.0);
            }
            _ => lua_pushnumber(state, f64::from(result)),
        }
        1
    }

    // Compiles a text. Gives the function, or nil and why not.
    fn load_string(state) {
        let mut length = 0;
        let source = luaL_checklstring(state, 1, &raw mut length);
        let name = luaL_optlstring(state, 2, source, std::ptr::null_mut());
        // What is loaded may change the environment.
        lua_setsafeenv(state, LUA_ENVIRONINDEX, 0);
        let mut size = 0;
        let bytecode = luau_compile_(source, length, &mut lua_CompileOptions::default(), &raw mut size);
        let failed = luau_load(state, name, bytecode, size, 0) != 0;
        free(bytecode.cast());
        if !failed {
            return 1;
        }
        lua_pushnil(state);
        lua_insert(state, -2);
        2
    }
}

unsafe extern "C" {
    fn free(memory: *mut u8);
}
