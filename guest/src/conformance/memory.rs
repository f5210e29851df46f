//! Natives that make memory scarce.

use mlua::{Lua, Table};

/// What a file may allocate beside what the VM holds already, in bytes. Luau's test program refuses single
/// blocks of more than 8 MiB to these files; they count on a table of 16 MB to fail and need 10 MiB.
const SCARCE_BYTES: usize = 12 << 20;

/// For files that ask for a table of a million, and expect an error.
pub fn scarce(lua: &Lua, _globals: &Table) -> mlua::Result<()> {
    lua.gc_collect()?;
    lua.set_memory_limit(lua.used_memory() + SCARCE_BYTES)?;
    Ok(())
}

/// For gc.luau: refuses every block from now on, until it is told to stop.
pub fn blockable(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    let before = lua.set_memory_limit(usize::MAX >> 1)?;
    lua.set_memory_limit(before)?;
    let block = lua.create_function(move |lua, block: bool| {
        lua.set_memory_limit(if block { lua.used_memory() } else { before })?;
        Ok(())
    })?;
    globals.raw_set("setblockallocations", block)
}
