//! `std:task`: tasks and time. What tasks returned or raised is kept by the Luau part, `task.luau`; channels
//! and semaphores are `channel.luau`. The functions here are what those two are made of.

use std::future::{Future, poll_fn};
use std::pin::pin;

use mlua::{Lua, LuaString, MetaMethod, UserData, UserDataFields, UserDataMethods, Value};
use neoc_abi::{Operation as AnyOperation, OperationError, detach};

use super::arguments::Arguments;
use super::{Answer, Body, Function, Module};
use crate::failure::{Failure, error_table};
use crate::scheduler::cancel::{self, Cancelled};
use crate::scheduler::{self, Ownership, wait};
use crate::{memory, operation};

/// The module.
pub const MODULE: Module = Module {
    name: "std:task",
    functions: &[
        Function { name: "_handle", body: Body::Local(|lua, _| Ok(Value::UserData(lua.create_userdata(Handle)?))) },
        Function { name: "_seconds", body: Body::Local(|_, arguments| seconds(&arguments)) },
        Function { name: "_admit", body: Body::Local(|_, arguments| admit(&arguments)) },
        Function { name: "_start", body: Body::Local(|lua, arguments| begin(lua, &arguments, scheduler::start)) },
        Function { name: "_defer", body: Body::Local(|lua, arguments| begin(lua, &arguments, scheduler::defer)) },
        Function { name: "_succeed", body: Body::Local(|_, arguments| succeed(&arguments)) },
        Function { name: "_detach", body: DETACH },
        Function { name: "_sleep", body: Body::Yields(|_, arguments| Box::pin(sleep(arguments))) },
        Function { name: "_join", body: Body::Joins(|_, arguments| Box::pin(join(arguments))) },
        Function { name: "_join_all", body: Body::Joins(|_, arguments| Box::pin(join_all(arguments))) },
        Function { name: "_cancel", body: Body::Local(|lua, arguments| cancel(lua, &arguments)) },
        Function { name: "_check", body: Body::Local(|_, _| Ok(cancel::check().map(|()| Value::Nil)?)) },
        Function { name: "_is_cancelled", body: Body::Local(|_, _| Ok(Value::Boolean(cancel::is_cancelled()))) },
        Function { name: "_was_cancelled", body: Body::Local(|_, arguments| was_cancelled(&arguments)) },
        Function { name: "_died", body: Body::Local(|lua, _| died(lua)) },
        Function { name: "_ask_for_cleanups", body: Body::Local(|_, _| ask_for_cleanups()) },
        Function { name: "_state", body: Body::Local(|lua, arguments| state(lua, &arguments)) },
        Function { name: "_current", body: Body::Local(|_, _| Ok(from_number(scheduler::current()))) },
        Function { name: "_current_request", body: Body::Local(|_, _| Ok(from_number(scheduler::request()))) },
        Function { name: "_note_failure", body: Body::Local(|_, _| note_failure()) },
        Function { name: "_new_line", body: Body::Local(|_, _| Ok(from_number(wait::new_line()))) },
        Function { name: "_is_empty", body: Body::Local(|_, arguments| is_empty(&arguments)) },
        Function { name: "_wake", body: Body::Local(|_, arguments| wake(&arguments)) },
        Function { name: "_wait_for_owner", body: Body::Joins(|_, arguments| Box::pin(wait_for_owner(arguments))) },
        Function { name: "_wait_in", body: Body::Joins(|_, arguments| Box::pin(wait_in(arguments))) },
    ],
    luau: &[include_str!("task.luau"), include_str!("channel.luau")],
    constants: None,
};

/// Asks for leave to detach one more task.
pub const DETACH: Body = Body::Local(|_, _| begin_detached());

/// What a script holds of a task: an opaque value. What it stands for, the Luau part knows.
struct Handle;

impl UserData for Handle {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_meta_field(MetaMethod::Type, "task");
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_method(MetaMethod::ToString, |_, _, ()| Ok("task"));
    }
}

/// Takes a function's name, an argument's name and the argument; gives the time in seconds. NaN and what is
/// negative are no time.
fn seconds(arguments: &Arguments) -> Answer {
    let [api, name, value] = &arguments.values;
    match to_number(value) {
        Some(seconds) => Ok(Value::Number(if seconds > 0.0 { seconds } else { 0.0 })),
        None => {
            let (api, name) = (text(api), text(name));
            Err(super::arguments::mismatch(&api, &name, "a number", value).into())
        }
    }
}

fn admit(arguments: &Arguments) -> Answer {
    let [api, ownership, _] = &arguments.values;
    let ownership = match text(ownership).as_str() {
        "daemon" => Ownership::Daemon,
        "detached" => Ownership::Detached,
        _ => Ownership::Request,
    };
    Ok(from_number(scheduler::admit(&text(api), ownership)?))
}

fn begin(lua: &Lua, arguments: &Arguments, how: fn(&Lua, u32, mlua::Function) -> Result<(), Failure>) -> Answer {
    if let (id, Value::Function(body)) = (task(&arguments.values[0]), &arguments.values[1]) {
        how(lua, id, body.clone())?;
    }
    Ok(Value::Nil)
}

fn succeed(arguments: &Arguments) -> Answer {
    scheduler::succeed(task(&arguments.values[0]));
    Ok(Value::Nil)
}

/// Asks for leave to have a task that goes on after the answer.
fn begin_detached() -> Answer {
    operation::perform_at_once("task.detach", AnyOperation::Detach(detach::Operation::Begin))?;
    Ok(Value::Nil)
}

fn note_failure() -> Answer {
    scheduler::note_failure();
    Ok(Value::Nil)
}

async fn sleep(arguments: Arguments) -> Answer {
    let (seconds, api) = (to_number(&arguments.values[0]).unwrap_or_default(), text(&arguments.values[1]));
    let (mut yielded, mut sleep) = (false, pin!(operation::sleep(&api, seconds)));
    let slept = poll_fn(|context| {
        let polled = sleep.as_mut().poll(context);
        yielded |= polled.is_pending();
        polled
    })
    .await?;
    // Others run in between even when the host has answered at once.
    if !yielded {
        scheduler::yield_once().await;
        cancel::check()?;
    }
    Ok(Value::Number(slept))
}

/// Takes tasks' numbers, seconds or nil, and a function's name; gives the number of the first that ended, or nil.
async fn join(arguments: Arguments) -> Answer {
    let (ids, seconds, api) = (ids(&arguments)?, to_number(&arguments.values[1]), text(&arguments.values[2]));
    let ended = wait::first_to_end(&api, &ids, seconds).await?;
    Ok(ended.map_or(Value::Nil, from_number))
}

/// As [`join`], until all have ended or one has failed.
async fn join_all(arguments: Arguments) -> Answer {
    let (ids, seconds, api) = (ids(&arguments)?, to_number(&arguments.values[1]), text(&arguments.values[2]));
    let ended = wait::all_to_end(&api, &ids, seconds).await?;
    Ok(ended.map_or(Value::Nil, from_number))
}

fn ids(arguments: &Arguments) -> Result<Vec<u32>, Failure> {
    let Value::Table(list) = &arguments.values[0] else { return Ok(vec![task(&arguments.values[0])]) };
    memory::reserve(&arguments.lua, list.raw_len().saturating_mul(size_of::<u32>()))?;
    Ok(list.sequence_values::<u32>().collect::<mlua::Result<_>>()?)
}

fn cancel(lua: &Lua, arguments: &Arguments) -> Answer {
    let id = task(&arguments.values[0]);
    let outcome = match cancel::cancel(id) {
        Cancelled::No => "no",
        Cancelled::Yes if id == scheduler::current() => "self",
        Cancelled::Yes => "yes",
        Cancelled::Unbegun => "unbegun",
    };
    Ok(Value::String(lua.create_string(outcome)?))
}

fn was_cancelled(arguments: &Arguments) -> Answer {
    Ok(Value::Boolean(cancel::was_cancelled(task(&arguments.values[0]))))
}

/// The error of a task that did not come to its end, and was not cancelled.
fn died(lua: &Lua) -> Answer {
    let error = OperationError::limit("memory", "the task died: not enough memory");
    Ok(Value::Table(error_table(lua, error)?))
}

fn ask_for_cleanups() -> Answer {
    operation::check_open("task.finally")?;
    cancel::ask_for_cleanups();
    Ok(Value::Nil)
}

fn state(lua: &Lua, arguments: &Arguments) -> Answer {
    Ok(match scheduler::state(task(&arguments.values[0])) {
        Some(state) => Value::String(lua.create_string(state)?),
        None => Value::Nil,
    })
}

fn is_empty(arguments: &Arguments) -> Answer {
    Ok(Value::Boolean(wait::is_empty(task(&arguments.values[0]))))
}

/// Takes a line, how many to wake, and what to wake them with; gives how many there were.
fn wake(arguments: &Arguments) -> Answer {
    let [line, n, reason] = &arguments.values;
    let n_woken = wait::wake(task(line), to_number(n).unwrap_or_default() as usize, task(reason));
    Ok(Value::Number(n_woken as f64))
}

/// Takes a line, seconds or nil, and a function's name; gives what it was woken with, or nil.
async fn wait_in(arguments: Arguments) -> Answer {
    let [line, seconds, api] = &arguments.values;
    let woken = wait::wait_in(&text(api), task(line), to_number(seconds)).await?;
    Ok(woken.map_or(Value::Nil, from_number))
}

/// Takes a line, the task that is to wake it, and a function's name.
async fn wait_for_owner(arguments: Arguments) -> Answer {
    let [line, owner, api] = &arguments.values;
    wait::wait_for_owner(&text(api), task(line), task(owner)).await?;
    Ok(Value::Nil)
}

/// A number that came from here, as the Luau part gives it back.
fn task(value: &Value) -> u32 {
    to_number(value).map_or(u32::MAX, |number| number as u32)
}

fn from_number(number: u32) -> Value {
    Value::Number(number.into())
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => LuaString::to_string_lossy(text),
        _ => String::new(),
    }
}

fn to_number(value: &Value) -> Option<f64> {
    match *value {
        Value::Integer(integer) => Some(integer as f64),
        Value::Number(number) => Some(number),
        _ => None,
    }
}
