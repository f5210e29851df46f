//! `std:net`: TCP, TLS and UDP. The Luau part makes the objects; a handle is a number that no script sees.

use mlua::{Lua, Table, Value};
use neoc_abi::net::{DEFAULT_BYTES, Kind, MAX_BYTES, MAX_DATAGRAM_BYTES, Operation, Reply, Stopped, Want};
use neoc_abi::{Operation as AnyOperation, OperationError, Reply as AnyReply};

use super::arguments::{self, Arguments, milliseconds, mismatch};
use super::{Answer, Body, Function, Module};
use crate::failure::Failure;
use crate::{memory, operation};

/// The module.
pub const MODULE: Module = Module {
    name: "std:net",
    functions: &[
        Function { name: "_connect", body: Body::Yields(|_, arguments| Box::pin(open(Kind::Connection, arguments))) },
        Function { name: "_udp", body: Body::Yields(|_, arguments| Box::pin(open(Kind::Socket, arguments))) },
        Function { name: "_read", body: Body::Yields(|lua, arguments| Box::pin(read(lua, arguments))) },
        Function { name: "_write", body: Body::Yields(|_, arguments| Box::pin(write(arguments))) },
        Function { name: "_shutdown", body: Body::Yields(|_, arguments| Box::pin(shutdown(arguments))) },
        Function { name: "_send", body: Body::Yields(|_, arguments| Box::pin(send(arguments))) },
        Function { name: "_receive", body: Body::Yields(|lua, arguments| Box::pin(receive(lua, arguments))) },
        Function { name: "_close", body: Body::Local(close) },
    ],
    luau: &[include_str!("net.luau")],
    constants: None,
};

/// Takes the target, options, and the function's name; gives a handle.
async fn open(kind: Kind, arguments: Arguments) -> Answer {
    let api = arguments.label();
    let target = arguments::text(&api, "target", &arguments.values[0])?;
    let timeout_ms = match &arguments.values[1] {
        Value::Nil => None,
        Value::Table(options) => options_timeout(&api, options)?,
        other => return Err(mismatch(&api, "options", "a table", other).into()),
    };
    match perform(&api, Operation::Open { kind, target, timeout_ms }).await? {
        Reply::Opened { handle } => Ok(Value::Number(handle.into())),
        _ => Err(super::mismatched_reply()),
    }
}

fn options_timeout(api: &str, options: &Table) -> Result<Option<u64>, Failure> {
    let mut timeout_ms = None;
    for pair in options.pairs::<Value, Value>() {
        let (key, value) = pair?;
        match arguments::text(api, "the name of an option", &key)?.as_str() {
            "timeout" => timeout_ms = Some(milliseconds(api, "timeout", &value)?),
            other => return Err(OperationError::invalid(format!("{api}: there is no option {other:.100}")).into()),
        }
    }
    Ok(timeout_ms)
}

/// Takes a call, a timeout, and the function's name; gives a table of the bytes and why they are so few.
async fn read(lua: Lua, arguments: Arguments) -> Answer {
    let call = Call::of(&arguments)?;
    let Call { api, handle, .. } = &call;
    let want = call.want()?;
    let timeout_ms = timeout(api, &arguments.values[1])?;
    let Reply::Read { bytes, stopped } = perform(api, Operation::Read { handle: *handle, want, timeout_ms }).await?
    else {
        return Err(super::mismatched_reply());
    };
    let result = lua.create_table_with_capacity(2, 0)?;
    if !bytes.is_empty() || stopped.is_none() {
        result.raw_set(1, memory::string(&lua, &bytes)?)?;
    }
    if let Some(stopped) = stopped {
        let why = match stopped {
            Stopped::Timeout => "timeout",
            Stopped::Closed => "closed",
        };
        result.raw_set(2, why)?;
    }
    Ok(Value::Table(result))
}

/// Takes a call, a timeout, and the function's name.
async fn write(arguments: Arguments) -> Answer {
    let call = Call::of(&arguments)?;
    let Call { api, handle, .. } = &call;
    let timeout_ms = timeout(api, &arguments.values[1])?;
    let bytes = call.bytes(&arguments.lua, MAX_BYTES)?;
    done(perform(api, Operation::Write { handle: *handle, bytes, timeout_ms }).await?)
}

async fn shutdown(arguments: Arguments) -> Answer {
    let Call { api, handle, .. } = Call::of(&arguments)?;
    done(perform(&api, Operation::Shutdown { handle }).await?)
}

async fn send(arguments: Arguments) -> Answer {
    let call = Call::of(&arguments)?;
    let bytes = call.bytes(&arguments.lua, MAX_DATAGRAM_BYTES)?;
    done(perform(&call.api, Operation::Send { handle: call.handle, bytes }).await?)
}

/// Takes a call, a timeout, and the function's name; gives the datagram, or nothing when the time is up.
async fn receive(lua: Lua, arguments: Arguments) -> Answer {
    let Call { api, handle, .. } = Call::of(&arguments)?;
    let timeout_ms = timeout(&api, &arguments.values[1])?;
    match perform(&api, Operation::Receive { handle, timeout_ms }).await? {
        Reply::Datagram(Some(datagram)) => Ok(Value::String(memory::string(&lua, &datagram)?)),
        Reply::Datagram(None) => Ok(Value::Nil),
        _ => Err(super::mismatched_reply()),
    }
}

fn close(_: &Lua, arguments: Arguments) -> Answer {
    let Call { api, handle, .. } = Call::of(&arguments)?;
    match operation::perform_at_once(&api, AnyOperation::Net(Operation::Close { handle }))? {
        AnyReply::Net(reply) => done(reply),
        _ => Err(super::mismatched_reply()),
    }
}

/// What the Luau part packs for a method: the handle, and the method's first argument as `what`.
struct Call {
    /// The name in messages.
    api: String,
    handle: u32,
    what: Value,
    is_line: bool,
}

impl Call {
    fn of(arguments: &Arguments) -> Result<Self, Failure> {
        let api = arguments.label();
        let Value::Table(call) = &arguments.values[0] else {
            return Err(mismatch(&api, "call", "a table", &arguments.values[0]).into());
        };
        let is_line = call.raw_get::<bool>("is_line")?;
        Ok(Self { handle: call.raw_get("handle")?, what: call.raw_get("what")?, is_line, api })
    }

    fn want(&self) -> Result<Want, OperationError> {
        let (name, of) = if self.is_line { ("max", Want::Line as fn(u32) -> Want) } else { ("n", Want::Exactly as _) };
        let number = match self.what {
            Value::Nil if self.is_line => return Ok(Want::Line(DEFAULT_BYTES)),
            Value::Nil => return Ok(Want::Any),
            Value::Integer(number) => number as f64,
            Value::Number(number) => number,
            ref other => return Err(mismatch(&self.api, name, "a number of bytes", other)),
        };
        if number.fract() != 0.0 || !(1.0..=MAX_BYTES as f64).contains(&number) {
            let rule = format!("{}: {name} must be an integer from 1 to {MAX_BYTES}, got {number}", self.api);
            return Err(OperationError::invalid(rule));
        }
        Ok(of(number as u32))
    }

    fn bytes(&self, lua: &Lua, most: usize) -> Result<Vec<u8>, Failure> {
        let Value::String(text) = &self.what else {
            return Err(mismatch(&self.api, "bytes", "a string", &self.what).into());
        };
        let n_bytes = text.as_bytes().len();
        if n_bytes > most {
            let rule = format!("{}: bytes must be at most {most}, got {n_bytes}", self.api);
            return Err(OperationError::invalid(rule).into());
        }
        Ok(memory::copy(lua, text)?)
    }
}

fn timeout(api: &str, value: &Value) -> Result<Option<u64>, OperationError> {
    match value {
        Value::Nil => Ok(None),
        // Looks whether there is something, and does not wait.
        Value::Integer(0) | Value::Number(0.0) => Ok(Some(0)),
        value => milliseconds(api, "timeout", value).map(Some),
    }
}

fn done(reply: Reply) -> Answer {
    match reply {
        Reply::Done => Ok(Value::Nil),
        _ => Err(super::mismatched_reply()),
    }
}

async fn perform(api: &str, operation: Operation) -> Result<Reply, Failure> {
    match operation::perform(api, AnyOperation::Net(operation)).await? {
        AnyReply::Net(reply) => Ok(reply),
        _ => Err(super::mismatched_reply()),
    }
}
