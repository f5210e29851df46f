//! `std:workers`: functions that run in VMs of their own, on other processors. The Luau part packs and
//! unpacks what has no fixed number.

use futures::{FutureExt, StreamExt};
use mlua::{Lua, Table, Value};
use neoc_abi::value::Packed;
use neoc_abi::workers::{MAX_MODULE_BYTES, Operation, Reply, Work};
use neoc_abi::{Operation as AnyOperation, OperationError, Reply as AnyReply};

use super::arguments::{self, Arguments, mismatch};
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
        Function { name: "_map", body: Body::Yields(|lua, arguments| Box::pin(map(lua, arguments))) },
    ],
    luau: &[include_str!("workers.luau")],
    constants: None,
};

/// Takes the callee, the packed table of the arguments, and the function's name; gives the packed table of the
/// results.
async fn run(lua: Lua, arguments: Arguments) -> Answer {
    let callee = callee(&arguments)?;
    let packed = match &arguments.values[1] {
        Value::Table(values) => pack(&lua, &callee.api, "args", values)?,
        other => return Err(mismatch(&callee.api, "args", "a table", other).into()),
    };
    Ok(Value::Table(callee.call(&lua, packed, InLine::No).await?))
}

/// Takes the callee, the list, and the function's name; gives the list of the results.
async fn map(lua: Lua, arguments: Arguments) -> Answer {
    let callee = callee(&arguments)?;
    let items = items(&lua, &callee.api, &arguments.values[1])?;
    let results = lua.create_table_with_capacity(items.len(), 0)?;
    let mut calls = futures::stream::iter(items.into_iter().enumerate())
        .map(|(index, item)| callee.call(&lua, item, InLine::Yes).map(move |result| (index, result)))
        .buffer_unordered(FAN_OUT);
    while let Some((index, result)) = calls.next().await {
        let stored = result.and_then(|values| Ok(results.raw_set(index + 1, values.raw_get::<Value>(1)?)?));
        if let Err(failure) = stored {
            // The others are gone before it is raised.
            operation::stop_all().await;
            return Err(failure);
        }
    }
    drop(calls);
    Ok(Value::Table(results))
}

/// Packs the whole list before the first worker starts: what a script changes later is not seen.
fn items(lua: &Lua, api: &str, list: &Value) -> Result<Vec<Packed>, Failure> {
    let Value::Table(list) = list else { return Err(mismatch(api, "list", "a table", list).into()) };
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

/// Packs what a worker's function returned, from a table like that of `table.pack`.
///
/// # Errors
/// As [`Packer::add`].
pub fn pack_results(lua: &Lua, results: &Value) -> Result<Packed, Failure> {
    let Value::Table(results) = results else {
        return Err(mismatch("workers.run", "results", "a table", results).into());
    };
    let packed = pack(lua, "workers.run", "results", results)?;
    // The message to the host is one more copy.
    memory::reserve(lua, packed.len())?;
    Ok(packed)
}

fn pack(lua: &Lua, api: &str, name: &str, values: &Table) -> Result<Packed, Failure> {
    let mut packer = Packer::new(lua, api);
    for index in 1..=values.raw_get::<usize>("n")? {
        packer.add(&format!("{name}[{index}]"), &values.raw_get(index)?)?;
    }
    Ok(packer.take())
}

/// What a call is for: a module's function.
struct Callee {
    /// The name in messages.
    api: String,
    module: String,
    /// Where the module is named.
    file: String,
}

fn callee(arguments: &Arguments) -> Result<Callee, Failure> {
    let api = arguments.label();
    let Value::Table(callee) = &arguments.values[0] else {
        return Err(mismatch(&api, "module", "a table", &arguments.values[0]).into());
    };
    let module = arguments::text(&api, "module", &callee.raw_get("module")?)?;
    let file = arguments::text(&api, "file", &callee.raw_get("file")?)?;
    if module.is_empty() || module.len() > MAX_MODULE_BYTES {
        let rule = format!("{api}: module must have 1 to {MAX_MODULE_BYTES} bytes, got {}", module.len());
        return Err(OperationError::invalid(rule).into());
    }
    Ok(Callee { api, module, file })
}

/// Whether a call waits while many operations are pending, or fails.
enum InLine {
    Yes,
    No,
}

impl Callee {
    /// Has it called in another VM.
    async fn call(&self, lua: &Lua, arguments: Packed, in_line: InLine) -> Result<Table, Failure> {
        // The message to the host is one more copy.
        memory::reserve(lua, arguments.len())?;
        let (module, file) = (self.module.clone(), self.file.clone());
        let operation = AnyOperation::Workers(Operation::Run(Work { module, file, arguments }));
        let reply = match in_line {
            InLine::Yes => operation::perform_in_line(&self.api, operation).await?,
            InLine::No => operation::perform(&self.api, operation).await?,
        };
        match reply {
            AnyReply::Workers(Reply::Returned(results)) => value::unpack_row(lua, &results),
            _ => Err(super::mismatched_reply()),
        }
    }
}
