//! `std:kv`: a tenant's own keys and values. Keys and values are strings, any bytes; nothing is coerced.

use mlua::{Lua, Value};
use neoc_abi::kv::{MAX_KEY_BYTES, Operation, Reply};
use neoc_abi::{Operation as AnyOperation, OperationError, Reply as AnyReply};

use super::arguments::Arguments;
use super::{Answer, Body, Function, Module};
use crate::failure::Failure;
use crate::{memory, operation};

/// The module.
pub const MODULE: Module = Module {
    name: "std:kv",
    functions: &[
        Function { name: "get", body: Body::Yields(|lua, arguments| Box::pin(get(lua, arguments))) },
        Function { name: "set", body: Body::Yields(|_, arguments| Box::pin(set(arguments))) },
        Function { name: "delete", body: Body::Yields(|_, arguments| Box::pin(delete(arguments))) },
    ],
    luau: &[],
    constants: None,
};

async fn get(lua: Lua, arguments: Arguments) -> Answer {
    match perform(&arguments, Operation::Get { key: key(&arguments)? }).await? {
        Reply::Value(Some(value)) => Ok(Value::String(memory::string(&lua, &value)?)),
        Reply::Value(None) => Ok(Value::Nil),
        Reply::Stored | Reply::Deleted(_) => Err(super::mismatched_reply()),
    }
}

async fn set(arguments: Arguments) -> Answer {
    let key = key(&arguments)?;
    let value = arguments.bytes(1, "value")?;
    match perform(&arguments, Operation::Set { key, value }).await? {
        Reply::Stored => Ok(Value::Nil),
        Reply::Value(_) | Reply::Deleted(_) => Err(super::mismatched_reply()),
    }
}

async fn delete(arguments: Arguments) -> Answer {
    match perform(&arguments, Operation::Delete { key: key(&arguments)? }).await? {
        Reply::Deleted(existed) => Ok(Value::Boolean(existed)),
        Reply::Value(_) | Reply::Stored => Err(super::mismatched_reply()),
    }
}

fn key(arguments: &Arguments) -> Result<Vec<u8>, Failure> {
    let key = arguments.bytes(0, "key")?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        let api = arguments.api;
        return Err(OperationError::invalid(format!(
            "{api}: key must have 1 to {MAX_KEY_BYTES} bytes, got {}",
            key.len()
        ))
        .into());
    }
    Ok(key)
}

async fn perform(arguments: &Arguments, operation: Operation) -> Result<Reply, Failure> {
    match operation::perform(arguments.api, AnyOperation::Kv(operation)).await? {
        AnyReply::Kv(reply) => Ok(reply),
        _ => Err(super::mismatched_reply()),
    }
}
