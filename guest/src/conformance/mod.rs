//! The test profile: Luau's own test files, run in the guest. Nothing of it is in the product's guest; it
//! is compiled with the feature `conformance` only.
//!
//! A script is one of those files then, and its name says which libraries it sees:
//!
//! | name | libraries |
//! |---|---|
//! | `luau/tables.luau` | Luau's, opened anew, as Luau's own test program does |
//! | `neoc/tables.luau` | those of a tenant's script, as the product's guest has them |
//!
//! Either way the file gets the functions that the test program adds ([`files`] says which), and has
//! passed when it returned "OK".

mod basics;
mod coroutines;
mod debugging;
mod files;
mod harness;
mod interrupts;
mod luau;
mod memory;
mod native;
mod neoc;
mod userdata;
mod vectors;

pub use interrupts::function as interrupt_function;

use mlua::{Error, Function, Lua};
use neoc_abi::event::{Module, ScriptError};

use crate::failure;

/// The top level of a script: what runs a test file, where the script is one.
///
/// # Errors
/// When the file does not compile, or what it needs cannot be set up.
pub fn entry(
    lua: &Lua,
    module: &Module,
    compile: impl Fn(&Module) -> Result<Function, ScriptError>,
) -> Result<Function, ScriptError> {
    let Some((libraries, name)) = module.name.split_once('/') else { return compile(module) };
    if libraries == "luau" {
        return luau::entry(lua, name, &module.source).map_err(failed);
    }
    neoc::add_natives(lua, name).map_err(failed)?;
    let file = compile(&Module { name: name.to_owned(), source: module.source.clone() })?;
    neoc::entry(lua, file).map_err(failed)
}

fn failed(error: Error) -> ScriptError {
    failure::from_message(failure::describe_error(&error))
}

/// Fails a file's test from outside of the file.
fn claim(holds: bool, what: &str) -> mlua::Result<()> {
    if holds { Ok(()) } else { Err(Error::runtime(format!("expected {what}"))) }
}
