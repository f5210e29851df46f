//! `std:fs`: files below the granted directories. Paths are text, contents any bytes.

use mlua::{Lua, Value};
use neoc_abi::fs::{Operation, Reply};
use neoc_abi::{Operation as AnyOperation, Reply as AnyReply};

use super::arguments::Arguments;
use super::{Answer, Body, Function, Module};
use crate::failure::Failure;
use crate::{memory, operation};

/// The module.
pub const MODULE: Module = Module {
    name: "std:fs",
    functions: &[
        Function { name: "read", body: Body::Yields(|lua, arguments| Box::pin(read(lua, arguments))) },
        Function { name: "write", body: Body::Yields(|_, arguments| Box::pin(write(arguments))) },
        Function { name: "list", body: Body::Yields(|lua, arguments| Box::pin(list(lua, arguments))) },
        Function { name: "remove", body: Body::Yields(|_, arguments| Box::pin(remove(arguments))) },
    ],
    luau: &[],
    constants: None,
};

async fn read(lua: Lua, arguments: Arguments) -> Answer {
    let path = arguments.text(0, "path")?;
    match perform(&arguments, Operation::Read { path }).await? {
        Reply::Content(content) => Ok(Value::String(memory::string(&lua, &content)?)),
        Reply::Done | Reply::Names(_) => Err(super::mismatched_reply()),
    }
}

async fn write(arguments: Arguments) -> Answer {
    let path = arguments.text(0, "path")?;
    let content = arguments.bytes(1, "content")?;
    done(perform(&arguments, Operation::Write { path, content }).await?)
}

async fn list(lua: Lua, arguments: Arguments) -> Answer {
    let path = arguments.text(0, "path")?;
    match perform(&arguments, Operation::List { path }).await? {
        Reply::Names(names) => Ok(Value::Table(lua.create_sequence_from(names)?)),
        Reply::Done | Reply::Content(_) => Err(super::mismatched_reply()),
    }
}

async fn remove(arguments: Arguments) -> Answer {
    let path = arguments.text(0, "path")?;
    done(perform(&arguments, Operation::Remove { path }).await?)
}

fn done(reply: Reply) -> Answer {
    match reply {
        Reply::Done => Ok(Value::Nil),
        Reply::Content(_) | Reply::Names(_) => Err(super::mismatched_reply()),
    }
}

async fn perform(arguments: &Arguments, operation: Operation) -> Result<Reply, Failure> {
    match operation::perform(arguments.api, AnyOperation::Fs(operation)).await? {
        AnyReply::Fs(reply) => Ok(reply),
        _ => Err(super::mismatched_reply()),
    }
}
