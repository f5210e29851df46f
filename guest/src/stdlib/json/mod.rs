//! `std:json`: JSON text to tables and back. Local: nothing leaves the guest.
//!
//! | Luau | JSON |
//! |---|---|
//! | `json.null` | `null` |
//! | a table with keys 1 to n, or none, or marked by `json.array` | array |
//! | a table with string keys, or marked by `json.object` | object, sorted by key |
//! | nan, the infinities, functions, threads, strings that are not UTF-8 | an error |
//! | sparse and mixed tables, cycles, more than 64 levels | an error |
//!
//! An empty object is decoded as a marked table, so that it is encoded as an object again.

mod decode;
mod encode;

use mlua::{Function as LuaFunction, Lua, Table, Value};
use neoc_abi::OperationError;

use super::arguments::Arguments;
use super::{Answer, Body, Function, Module};
use crate::memory;

/// Deepest nesting, both ways. serde_json's own limit is 128.
const MAX_DEPTH: usize = 64;

/// The module.
pub const MODULE: Module = Module {
    name: "std:json",
    functions: &[
        Function { name: "encode", body: Body::Local(|lua, arguments| encode(lua, &arguments)) },
        Function { name: "decode", body: Body::Local(|lua, arguments| decode(lua, &arguments)) },
        Function { name: "array", body: Body::Local(|lua, arguments| mark(lua, &arguments, |markers| &markers.array)) },
        Function {
            name: "object",
            body: Body::Local(|lua, arguments| mark(lua, &arguments, |markers| &markers.object)),
        },
    ],
    luau: &[],
    constants: Some(constants),
};

/// What stands for what Luau does not have, kept by the VM.
struct Markers {
    /// JSON's null.
    null: Value,
    /// The metatable of what is an array, even if empty.
    array: Table,
    /// The metatable of what is an object, even if empty.
    object: Table,
}

fn constants(lua: &Lua, module: &Table, prelude: &Table) -> mlua::Result<()> {
    let marker = || {
        let metatable = lua.create_table()?;
        metatable.raw_set("__metatable", "locked")?;
        metatable.set_readonly(true);
        Ok::<_, mlua::Error>(metatable)
    };
    let null: Value = prelude.raw_get::<LuaFunction>("proxy")?.call("null")?;
    module.raw_set("null", &null)?;
    lua.set_app_data(Markers { null, array: marker()?, object: marker()? });
    Ok(())
}

fn markers(lua: &Lua) -> mlua::AppDataRef<'_, Markers> {
    lua.app_data_ref().expect("set when the module is made, and never borrowed to be changed")
}

fn encode(lua: &Lua, arguments: &Arguments) -> Answer {
    let text = encode::encode(lua, &markers(lua), &arguments.values[0])?;
    Ok(Value::String(memory::string(lua, &text)?))
}

fn decode(lua: &Lua, arguments: &Arguments) -> Answer {
    let Value::String(text) = &arguments.values[0] else {
        return Err(arguments.mismatch("text", "a string", &arguments.values[0]).into());
    };
    decode::decode(lua, &markers(lua), &text.as_bytes())
}

/// Marks a table in place, and gives it back.
fn mark(lua: &Lua, arguments: &Arguments, marker: fn(&Markers) -> &Table) -> Answer {
    let table = arguments.table(0, "t")?;
    let markers = markers(lua);
    let marked = table.metatable().is_none_or(|metatable| metatable == markers.array || metatable == markers.object);
    if !marked || table.is_readonly() {
        let api = &arguments.api;
        return Err(OperationError::invalid(format!("{api}: t must not be frozen or have a metatable")).into());
    }
    table.set_metatable(Some(marker(&markers).clone()))?;
    Ok(Value::Table(table))
}
