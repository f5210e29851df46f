//! The modules that a script may `require`. [`MODULES`] lists them all; one file each.
//!
//! A function is Rust that gives a value or a [`Failure`]. The prelude wraps it: it waits in another way where
//! Luau cannot yield, and raises the failure as an error value, so no script sees an error of mlua's.

pub mod arguments;
mod fs;
pub mod headers;
pub mod hyper;
mod json;
mod kv;
mod log;
pub mod narrowing;
mod net;
mod secret;
mod task;
pub mod workers;

use futures::future::LocalBoxFuture;
use mlua::{Function as LuaFunction, Lua, Table, Value};

use crate::caller::{Caller, Rights};
use crate::failure::{self, Failure, answer};
use crate::scheduler::block::{self, WaitsFor};
use arguments::Arguments;

/// Every module, in the order of the documentation.
pub const MODULES: &[Module] = &[
    task::MODULE,
    workers::MODULE,
    hyper::MODULE,
    net::MODULE,
    fs::MODULE,
    kv::MODULE,
    json::MODULE,
    secret::MODULE,
    log::MODULE,
];

/// A module.
pub struct Module {
    /// What a script requires, such as `std:kv`.
    pub name: &'static str,
    /// Its functions.
    pub functions: &'static [Function],
    /// The parts of it that are written in Luau: chunks that are given the prelude and the table of the
    /// functions, and complete that table.
    pub luau: &'static [&'static str],
    /// Puts more into the table, before the Luau part sees it.
    pub constants: Option<Constants>,
}

/// A function of a module.
pub struct Function {
    /// Its name in the module. One that starts with `_` is for the module's Luau part alone.
    pub name: &'static str,
    /// What it does.
    pub body: Body,
}

/// What a module's function does, and whether it yields: whether other tasks may run before it returns.
pub enum Body {
    /// Never yields.
    Local(fn(&Lua, Arguments) -> Answer),
    /// Yields until the host has answered.
    Yields(Yielding),
    /// Yields, perhaps until another task has run.
    Joins(Yielding),
}

/// A function that waits.
pub type Yielding = fn(Lua, Arguments) -> LocalBoxFuture<'static, Answer>;

/// Puts constants into a module's table, which comes first; the prelude comes second.
pub type Constants = fn(&Lua, &Table, &Table) -> mlua::Result<()>;

/// What a function gives.
pub type Answer = Result<Value, Failure>;

/// Modules whose functions ask the host for what a policy decides on: a module of the tenant's that has less gets
/// tables of its own.
const SCOPED: &[&Module] = &[&workers::MODULE, &hyper::MODULE, &net::MODULE, &fs::MODULE, &kv::MODULE];

/// Makes the tables of all modules, by name.
///
/// # Errors
/// When there is no memory for them.
pub fn install(lua: &Lua, prelude: &Table) -> mlua::Result<Table> {
    lua.set_app_data(hyper::ResponseTemplate::new(lua)?);
    let modules = lua.create_table()?;
    for module in MODULES {
        modules.raw_set(module.name, table(lua, prelude, module, &Rights::all())?)?;
    }
    Ok(modules)
}

/// Makes the tables of the modules for a scope, by name; `shared` holds those of the whole tenant. What keeps
/// something that all must see alike, such as tasks, is the same table, or a copy of it.
///
/// # Errors
/// When there is no memory for them.
pub fn install_scope(lua: &Lua, prelude: &Table, shared: &Table, scope: u32) -> mlua::Result<Table> {
    let rights = &Rights::of_scope(scope);
    let modules = lua.create_table()?;
    for pair in shared.pairs::<Value, Value>() {
        let (name, table) = pair?;
        modules.raw_set(name, table)?;
    }
    for module in SCOPED {
        modules.raw_set(module.name, table(lua, prelude, module, rights)?)?;
    }
    let tasks = lua.create_table()?;
    for pair in shared.raw_get::<Table>(task::MODULE.name)?.pairs::<Value, Value>() {
        let (name, function) = pair?;
        tasks.raw_set(name, function)?;
    }
    let ask = wrap(lua, prelude, "task.detach", &task::DETACH, rights)?;
    tasks.raw_set("detach", prelude.raw_get::<LuaFunction>("detach_by")?.call::<LuaFunction>(ask)?)?;
    tasks.set_readonly(true);
    modules.raw_set(task::MODULE.name, tasks)?;
    Ok(modules)
}

/// Makes the table of a module, for those who have these rights.
///
/// # Errors
/// When there is no memory for it.
pub fn table(lua: &Lua, prelude: &Table, module: &Module, rights: &Rights) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    for function in module.functions {
        // `vnd:hyper` and `get` make `hyper.get`, the name in messages. It lives as long as the VM: to count who uses it
        // would have each call write to where it lies.
        let api = format!("{}.{}", short_name(module), function.name).leak();
        table.raw_set(function.name, wrap(lua, prelude, api, &function.body, rights)?)?;
    }
    if let Some(constants) = module.constants {
        constants(lua, &table, prelude)?;
    }
    for luau in module.luau {
        lua.load(*luau).set_name("=[neoc]").call::<()>((prelude, &table))?;
    }
    for function in module.functions.iter().filter(|function| function.name.starts_with('_')) {
        table.raw_remove(function.name)?;
    }
    table.set_readonly(true);
    Ok(table)
}

/// Makes a function that a script, or a Luau part of ours, may call; `api` is its name in messages, `rights` what
/// its calls may do.
///
/// # Errors
/// When there is no memory for it.
pub fn wrap(lua: &Lua, prelude: &Table, api: &'static str, body: &Body, rights: &Rights) -> mlua::Result<LuaFunction> {
    match *body {
        Body::Local(body) => {
            let rights = rights.clone();
            let body = lua.create_function(move |lua, (a, b, c): Values| {
                let arguments = Arguments { lua: lua.clone(), api, values: [a, b, c] };
                answer(lua, Caller::new(lua, &rights).run(|| body(lua, arguments)))
            })?;
            prelude.get::<LuaFunction>("wrap_local")?.call(body)
        }
        Body::Yields(body) => wrap_yielding(lua, prelude, api, WaitsFor::Host, body, rights),
        Body::Joins(body) => wrap_yielding(lua, prelude, api, WaitsFor::Tasks, body, rights),
    }
}

/// The arguments of one call; see [`Arguments`].
type Values = (Value, Value, Value);

/// A function that yields where Luau can, and has the VM stand still elsewhere.
fn wrap_yielding(
    lua: &Lua,
    prelude: &Table,
    api: &'static str,
    waits_for: WaitsFor,
    body: Yielding,
    rights: &Rights,
) -> mlua::Result<LuaFunction> {
    let (of_yields, of_blocks) = (rights.clone(), rights.clone());
    let yields = lua.create_async_function(move |lua, (a, b, c): Values| {
        let future = body(lua.clone(), Arguments { lua: lua.clone(), api, values: [a, b, c] });
        let caller = Caller::new(&lua, &of_yields);
        async move { answer(&lua, caller.poll(future).await) }
    })?;
    let blocks = lua.create_function(move |lua, (a, b, c): Values| {
        let arguments = Arguments { lua: lua.clone(), api, values: [a, b, c] };
        let label = arguments.label();
        let future = Caller::new(lua, &of_blocks).poll(body(lua.clone(), arguments));
        let ended = block::block_on(&label, waits_for, || failure::stall_place(lua, &label), future);
        answer(lua, ended.unwrap_or_else(|refused| Err(refused.into())))
    })?;
    prelude.get::<LuaFunction>("wrap_yielding")?.call((yields, blocks))
}

fn short_name(module: &Module) -> &'static str {
    module.name.split_once(':').map_or(module.name, |(_, short)| short)
}

/// The host answered with a reply to some other operation.
pub fn mismatched_reply() -> Failure {
    Failure::Operation(neoc_abi::OperationError::io("the host's reply is for another operation"))
}
