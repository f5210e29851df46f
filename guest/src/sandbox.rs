//! What a script may see: Luau's own libraries without the parts that reach around the sandbox, the
//! functions of the prelude, and nothing that can be changed. `globals.txt` is the whole list.

use std::cell::Cell;
use std::time::Instant;

use mlua::state::{GcIncParams, GcMode};
use mlua::{Lua, LuaOptions, LuaString, StdLib, Table, Value};

use crate::caller::MadeAt;
use crate::failure::{self, ErrorMetatable, NotEnoughMemory};
use crate::module;
use crate::scheduler::block::block_until_woken;
use crate::stdlib;
use neoc_abi::{ErrorKind, OperationError};

/// Globals that go.
///
/// | global | why |
/// |---|---|
/// | `loadstring` | text is compiled once, under the load's own limits |
/// | `getfenv`, `setfenv` | they reach the environment of any function on the stack, and slow down all code |
/// | `newproxy` | userdata whose metatable a script could change |
/// | `integer` | Luau is still working on it |
/// | `collectgarbage`, `gcinfo` | they show what others allocate, and cost time out of proportion |
const REMOVED_GLOBALS: &[&str] =
    &["collectgarbage", "gcinfo", "getfenv", "integer", "loadstring", "newproxy", "setfenv"];

/// The functions of `debug` that stay.
const KEPT_DEBUG: &[&str] = &["info", "traceback"];

/// How much of the heap one step of the collector covers, in KiB. Luau's own 1 KiB keeps pauses short,
/// but lets a script that makes long strings fill its memory with garbage before a cycle ends. Pauses
/// do not matter here: a step is part of the script's time slice.
const GC_STEP_KIBIBYTES: i32 = 1024;

/// Makes a VM with everything in place that a script may see, and gives it with the prelude's table.
///
/// # Errors
/// When there is no memory for it.
pub fn new_vm() -> mlua::Result<(Lua, Table)> {
    let lua = Lua::new_with(StdLib::ALL_SAFE, LuaOptions::default())?;
    let prelude = load_prelude(&lua)?;
    let modules = stdlib::install(&lua, &prelude)?;
    module::install(&lua, &prelude, &modules)?;
    close(&lua)?;
    lua.gc_set_mode(GcMode::Incremental(GcIncParams::default().step_size(GC_STEP_KIBIBYTES)));
    Ok((lua, prelude))
}

fn load_prelude(lua: &Lua) -> mlua::Result<Table> {
    let raw = lua.create_table()?;
    raw.set("globals", lua.globals())?;
    raw.set("pending", Value::LightUserData(Lua::poll_pending()))?;
    raw.set("error_line", lua.create_function(|_, error: Table| Ok(failure::error_line(&error)))?)?;
    raw.set(
        "invalid",
        // What a script wrote may be part of the message, and need not be text.
        lua.create_function(|lua, message: LuaString| {
            failure::error_table(lua, OperationError::invalid(message.to_string_lossy()))
        })?,
    )?;
    raw.set("error", lua.create_function(error)?)?;
    raw.set("freeze", lua.create_function(freeze)?)?;
    raw.set("block", lua.create_function(block)?)?;
    let prelude: Table = lua.load(include_str!("prelude.luau")).set_name("=[neoc]").call(raw)?;
    lua.set_app_data(ErrorMetatable(prelude.get("error_metatable")?));
    lua.set_app_data(MadeAt(prelude.get("made_at")?));
    lua.set_app_data(NotEnoughMemory::new(lua)?);
    Ok(prelude)
}

/// Makes an error value of a kind.
fn error(lua: &Lua, (kind, message): (String, String)) -> mlua::Result<Table> {
    let kind = ErrorKind::from_name(&kind).unwrap_or(ErrorKind::Invalid);
    failure::error_table(lua, OperationError::new(kind, message))
}

/// Makes a table that cannot be changed, and gives it back.
fn freeze(_: &Lua, table: Table) -> mlua::Result<Table> {
    table.set_readonly(true);
    Ok(table)
}

/// Stands still until the current task is woken. Gives an error value where that can never be.
fn block(lua: &Lua, api: String) -> mlua::Result<Option<Table>> {
    let blocked = block_until_woken(&api, || failure::stall_place(lua, &api));
    blocked.err().map(|refused| failure::error_table(lua, refused)).transpose()
}

thread_local! {
    /// When the work of this VM began.
    static ORIGIN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Sets `os.clock` to 0. Luau's own would count from when a snapshot was taken, on another machine perhaps.
pub fn restart_clock() {
    ORIGIN.set(Some(Instant::now()));
}

fn clock(_: &Lua, (): ()) -> mlua::Result<f64> {
    Ok(ORIGIN.get().map_or(0.0, |origin| origin.elapsed().as_secs_f64()))
}

/// Removes what a script must not have, and freezes the rest.
fn close(lua: &Lua) -> mlua::Result<()> {
    let globals = lua.globals();
    globals.get::<Table>("os")?.raw_set("clock", lua.create_function(clock)?)?;
    for name in REMOVED_GLOBALS {
        globals.raw_remove(*name)?;
    }
    let debug: Table = globals.get("debug")?;
    for pair in debug.clone().pairs::<String, Value>() {
        let (name, _) = pair?;
        if !KEPT_DEBUG.contains(&name.as_str()) {
            debug.raw_remove(name)?;
        }
    }
    // `sandbox` freezes the libraries, the metatable of strings and the globals. Vectors have one, too.
    if let Some(metatable) = lua.type_metatable::<mlua::Vector>() {
        metatable.set_readonly(true);
    }
    lua.sandbox(true)
}
