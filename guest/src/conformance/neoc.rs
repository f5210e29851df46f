//! A file with the libraries of a tenant's script, run as one.

use mlua::ffi::{
    LUA_GLOBALSINDEX, LUA_LOADED_TABLE, LUA_REGISTRYINDEX, lua_newthread, lua_pushnil, lua_remove, lua_replace,
    lua_setfield, lua_xpush, luaopen_base,
};
use mlua::{Function, Lua, Table};

use super::basics;
use super::files::runs;

/// What Luau has and a script does not, but files use.
const TAKEN_AWAY: [&str; 4] = ["gcinfo", "getfenv", "newproxy", "setfenv"];

const CHECK: &str = r#"
local file = ...
return function()
	local result = file()
	if result ~= "OK" then
		error("expected the file to return OK", 0)
	end
end
"#;

/// Adds to the globals what the file needs besides them. Before it is compiled: it keeps what it finds then.
pub fn add_natives(lua: &Lua, name: &str) -> mlua::Result<()> {
    let globals = lua.globals();
    let all = luau_globals(lua)?;
    for name in TAKEN_AWAY {
        globals.raw_set(name, all.raw_get::<Function>(name)?)?;
    }
    globals.raw_set("_G", &globals)?;
    basics::all(lua, &globals)?;
    runs(name)[0].natives.iter().try_for_each(|add| add(lua, &globals))
}

/// The file, compiled by the product, as one that fails when it does not return "OK".
pub fn entry(lua: &Lua, file: Function) -> mlua::Result<Function> {
    lua.load(CHECK).set_name("=[conformance]").call(file)
}

/// Luau's basic functions, made anew.
fn luau_globals(lua: &Lua) -> mlua::Result<Table> {
    let globals = lua.create_table()?;
    let open = |state| {
        // SAFETY: the globals are on the stack, and there is room for the two values that come onto it.
        unsafe {
            // Luau keeps the libraries that are open, and would add to those.
            lua_pushnil(state);
            lua_setfield(state, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
            let thread = lua_newthread(state);
            lua_xpush(state, thread, -2);
            lua_replace(thread, LUA_GLOBALSINDEX);
            luaopen_base(thread);
            lua_remove(state, -1);
        }
    };
    // SAFETY: `open` leaves the globals on the stack, and nothing else.
    unsafe { lua.exec_raw(globals, open) }
}
