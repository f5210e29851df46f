//! `std:task`: tasks and time. What a task returned or raised is kept by the Luau part.

use std::future::{Future, poll_fn};
use std::pin::pin;

use mlua::{Lua, Value};
use neoc_abi::time::{Operation, Reply};
use neoc_abi::{Operation as AnyOperation, Reply as AnyReply};

use super::arguments::Arguments;
use super::{Answer, Body, Function, Module};
use crate::{operation, scheduler};

/// The longest wait, in seconds. A wait for ever is a wait for the end of the script's time.
const MAX_WAIT_SECONDS: f64 = 1e9;

/// The module.
pub const MODULE: Module = Module {
    name: "std:task",
    functions: &[
        Function { name: "_spawn", body: Body::Local(spawn) },
        Function { name: "_await", body: Body::Yields(|_, arguments| Box::pin(join(arguments))) },
        Function { name: "wait", body: Body::Yields(|_, arguments| Box::pin(wait(arguments))) },
    ],
    luau: Some(include_str!("task.luau")),
    constants: None,
};

/// Takes the body of the task, gives its number.
fn spawn(lua: &Lua, arguments: Arguments) -> Answer {
    let [body, ..] = arguments.values;
    let Value::Function(body) = body else { return Ok(Value::Nil) };
    Ok(Value::Number(scheduler::spawn(lua, body)?.into()))
}

/// Takes the number of a task, returns when it has ended.
async fn join(arguments: Arguments) -> Answer {
    if let Some(id) = number(&arguments.values[0]) {
        scheduler::join(id as u32).await?;
    }
    Ok(Value::Nil)
}

async fn wait(arguments: Arguments) -> Answer {
    let seconds = match &arguments.values[0] {
        Value::Nil => 0.0,
        value => number(value).ok_or_else(|| arguments.mismatch("seconds", "a number", value))?,
    };
    // NaN and negative times are no time.
    let seconds = if seconds > 0.0 { seconds.min(MAX_WAIT_SECONDS) } else { 0.0 };
    let mut yielded = false;
    let mut waiting = pin!(operation::perform(&arguments.api, AnyOperation::Time(Operation::Wait { seconds })));
    let reply = poll_fn(|context| {
        let polled = waiting.as_mut().poll(context);
        yielded |= polled.is_pending();
        polled
    })
    .await?;
    // Others run in between even when the host has answered at once.
    if !yielded {
        scheduler::yield_once().await;
    }
    match reply {
        AnyReply::Time(Reply::Waited { seconds }) => Ok(Value::Number(seconds)),
        AnyReply::Http(_) | AnyReply::Fs(_) | AnyReply::Kv(_) | AnyReply::Module(_) => Err(super::mismatched_reply()),
    }
}

fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::Integer(integer) => Some(integer as f64),
        Value::Number(number) => Some(number),
        _ => None,
    }
}
