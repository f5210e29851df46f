//! `std:workers`: functions that run in VMs of their own, on other processors. The Luau part packs and
//! unpacks what has no fixed number.

use futures::StreamExt;
use mlua::{Lua, Table, Value};
use neoc_abi::value::Packed;
use neoc_abi::workers::{MAX_MODULE_BYTES, Operation, Reply, Work};
use neoc_abi::{Operation as AnyOperation, OperationError, Reply as AnyReply};

use super::arguments::{self, Arguments};
use super::{Answer, Body, Function, Module};
use crate::failure::Failure;
use crate::value::{self, Packer};
use crate::{memory, operation};

/// How many calls of one `map` the host has at once. It runs as many of them as the policy grants.
const FAN_OUT: usize = 16;

/// Most items of one `map`.
const MAX_BATCH: usize = 1000;

/// The module.
pub const MODULE: Module = Module {
    name: "std:workers",
    functions: &[
        Function { name: "_run", body: Body::Yields(|lua, arguments| Box::pin(run(lua, arguments))) },
        Function { name: "map", body: Body::Yields(|lua, arguments| Box::pin(map(lua, arguments))) },
    ],
    luau: Some(include_str!("workers.luau")),
    constants: None,
};

/// Takes a module's name and the packed table of the arguments; gives the packed table of the results.
async fn run(lua: Lua, arguments: Arguments) -> Answer {
    let module = module(&arguments)?;
    let packed = pack(&lua, &arguments.api, "args", &arguments.table(1, "arguments")?)?;
    Ok(Value::Table(perform(&lua, &arguments.api, module, packed, InLine::No).await?))
}

/// Packs what a worker's function returned, from a table like that of `table.pack`.
///
/// # Errors
/// As [`Packer::add`].
pub fn pack_results(lua: &Lua, results: &Value) -> Result<Packed, Failure> {
    match results {
        Value::Table(results) => {
            let packed = pack(lua, "workers.run", "results", results)?;
            // The message to the host is one more copy.
            memory::reserve(lua, packed.len())?;
            Ok(packed)
        }
        other => Err(arguments::mismatch("workers.run", "results", "a table", other).into()),
    }
}

fn pack(lua: &Lua, api: &str, name: &str, values: &Table) -> Result<Packed, Failure> {
    let mut packer = Packer::new(lua, api);
    for index in 1..=values.raw_get::<usize>("n")? {
        packer.add(&format!("{name}[{index}]"), &values.raw_get(index)?)?;
    }
    Ok(packer.take())
}

async fn map(lua: Lua, arguments: Arguments) -> Answer {
    let (module, items) = (module(&arguments)?, items(&lua, &arguments)?);
    let results = lua.create_table_with_capacity(items.len(), 0)?;
    let mut calls = futures::stream::iter(items.into_iter().enumerate())
        .map(|(index, item)| {
            let (lua, api, module) = (&lua, &arguments.api, module.clone());
            async move { (index, perform(lua, api, module, item, InLine::Yes).await) }
        })
        .buffer_unordered(FAN_OUT);
    while let Some((index, result)) = calls.next().await {
        // Raising it drops the calls that are under way, which cancels them.
        results.raw_set(index + 1, result?.raw_get::<Value>(1)?)?;
    }
    drop(calls);
    Ok(Value::Table(results))
}

/// Packs the whole list before the first worker starts: what a script changes later is not seen.
fn items(lua: &Lua, arguments: &Arguments) -> Result<Vec<Packed>, Failure> {
    let api = &arguments.api;
    let list = arguments.table(1, "list")?;
    if list.raw_len() > MAX_BATCH {
        let message = format!("{api}: at most {MAX_BATCH} items at once, got {}", list.raw_len());
        return Err(OperationError::invalid(message).into());
    }
    let mut packer = Packer::new(lua, api);
    let mut items = Vec::with_capacity(list.raw_len());
    for index in 1..=list.raw_len() {
        packer.add(&format!("list[{index}]"), &list.raw_get(index)?)?;
        items.push(packer.take());
    }
    Ok(items)
}

fn module(arguments: &Arguments) -> Result<String, OperationError> {
    let module = arguments.text(0, "module")?;
    if module.is_empty() || module.len() > MAX_MODULE_BYTES {
        let (api, length) = (&arguments.api, module.len());
        return Err(OperationError::invalid(format!(
            "{api}: module must have 1 to {MAX_MODULE_BYTES} bytes, got {length}"
        )));
    }
    Ok(module)
}

/// Whether a call waits while many operations are pending, or fails.
enum InLine {
    Yes,
    No,
}

async fn perform(lua: &Lua, api: &str, module: String, arguments: Packed, in_line: InLine) -> Result<Table, Failure> {
    // The message to the host is one more copy.
    memory::reserve(lua, arguments.len())?;
    let operation = AnyOperation::Workers(Operation::Run(Work { module, arguments }));
    let reply = match in_line {
        InLine::Yes => operation::perform_in_line(api, operation).await?,
        InLine::No => operation::perform(api, operation).await?,
    };
    match reply {
        AnyReply::Workers(Reply::Returned(results)) => value::unpack_row(lua, &results),
        _ => Err(super::mismatched_reply()),
    }
}
