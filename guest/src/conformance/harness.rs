//! What is done with the globals of apicalls.luau and exceptions.luau once they have run: their functions
//! are called from outside of Luau.

use mlua::{Error, Function, Lua, MultiValue, Table};

use super::claim;

/// For apicalls.luau.
pub fn api_calls(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    let function = |name: &str| globals.get::<Function>(name);
    claim(function("add")?.call::<f64>((40, 2))? == 42.0, "40 + 2 to be 42")?;

    let make = function("create_with_tm")?;
    let (one, same, other): (Table, Table, Table) = (make.call(1)?, make.call(1)?, make.call(2)?);
    claim(one != same && one.equals(&same)?, "__eq to be called for equal tables")?;
    claim(!one.equals(&other)?, "__eq to be called for different tables")?;

    let next = function("incuv")?;
    let copy = next.deep_clone()?;
    claim(next.call::<f64>(())? == 1.0 && next.call::<f64>(())? == 2.0, "an upvalue to count")?;
    claim(copy.call::<f64>(())? == 3.0, "a copy to share the upvalue")?;

    let pi = function("getpi")?;
    let other_pi = pi.deep_clone()?;
    let environment = lua.create_table()?;
    environment.set("pi", 42)?;
    other_pi.set_environment(environment)?;
    claim(other_pi.call::<f64>(())? == 42.0, "a copy to have its own environment")?;
    claim(pi.call::<f64>(())? < 4.0, "the original to keep its environment")?;

    let large: mlua::Result<()> = function("largealloc")?.call(());
    claim(matches!(large, Err(Error::MemoryError(_))), "an error of memory")?;
    claim(function("oops")?.call::<String>(())? == "oops", "a string")?;
    for n_results in [0, 1, 100, 7000] {
        let results: MultiValue = function("getnresults")?.call(n_results)?;
        claim(results.len() == n_results, "as many results as asked for")?;
    }
    Ok(())
}

/// For exceptions.luau.
pub fn exceptions(_lua: &Lua, globals: &Table) -> mlua::Result<()> {
    let call = |name: &str| globals.get::<Function>(name)?.call::<()>(());
    let message = |name: &str| call(name).err().map(|error| error.to_string()).unwrap_or_default();
    call("empty_function")?;
    claim(message("infinite_recursion_error").contains("stack overflow"), "a stack overflow")?;
    claim(message("pass_number_to_error").contains("42"), "the number that was raised")?;
    claim(message("pass_string_to_error").contains("string argument"), "the string that was raised")?;
    claim(call("pass_table_to_error").is_err(), "an error that is a table")?;
    claim(matches!(call("large_allocation_error"), Err(Error::MemoryError(_))), "an error of memory")
}
