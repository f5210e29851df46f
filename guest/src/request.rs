//! A request as the table that a handler gets, and a handler's answer.
//!
//! Tables of the script are read raw: none of its metamethods runs.

use std::ffi::c_int;

use mlua::ffi::{LUA_TSTRING, lua_toboolean, lua_tolstring, lua_type};
use mlua::state::RawLua;
use mlua::{FromLuaMulti, Lua, LuaString, MultiValue, Table, Thread, Value};
use neoc_abi::event::{Request, Response};

use crate::plain::{self, Plain, Template};
use crate::stdlib::arguments::type_name;
use crate::stdlib::headers;
use crate::{failure, memory};

/// What is the same in each request's table.
///
/// # Errors
/// When there is no memory for it.
pub fn template(lua: &Lua) -> mlua::Result<Template> {
    Template::new(lua, &["method", "path", "query", "headers", "body"])
}

/// Makes the table, as the next argument of a thread.
///
/// # Errors
/// When there is no memory for it.
pub fn give(lua: &Lua, thread: &Thread, template: &Template, request: &Request<'_>) -> mlua::Result<()> {
    let query: Vec<_> = request.query.iter().map(|(name, value)| (*name, Plain::String(value.as_bytes()))).collect();
    let headers = headers::joined(request.headers.iter().map(|(name, value)| (*name, &value[..])));
    let headers = headers::fields(&headers);
    let values = [
        Plain::String(request.method.as_bytes()),
        Plain::String(request.path.as_bytes()),
        Plain::Table(&query),
        Plain::Table(&headers),
        Plain::String(request.body),
    ];
    plain::give(lua, thread, &Plain::Copy(template, &values))
}

/// How a handler's thread ended.
pub enum Returned {
    /// With a text, and no failure: what most handlers return, read without a reference for it.
    Text(Vec<u8>),
    /// With whether it succeeded, and what it returned or failed with.
    Value(bool, Value),
}

impl FromLuaMulti for Returned {
    fn from_lua_multi(values: MultiValue, lua: &Lua) -> mlua::Result<Self> {
        let (ok, value) = FromLuaMulti::from_lua_multi(values, lua)?;
        Ok(Self::Value(ok, value))
    }

    unsafe fn from_stack_multi(n_values: c_int, raw: &RawLua) -> mlua::Result<Self> {
        // SAFETY: the caller vouches for so many values on the stack. A string's bytes are where Luau says as long as the
        // string is on it.
        unsafe {
            let state = raw.state();
            if n_values == 2 && lua_toboolean(state, -2) != 0 && lua_type(state, -1) == LUA_TSTRING {
                let mut n_bytes = 0;
                let start = lua_tolstring(state, -1, &raw mut n_bytes);
                // As in `memory::copy`: there is room for so much, and for the message with it.
                if n_bytes.saturating_mul(2) <= memory::SMALL_BYTES {
                    return Ok(Self::Text(std::slice::from_raw_parts(start.cast(), n_bytes).to_vec()));
                }
            }
            let (ok, value) = FromLuaMulti::from_stack_multi(n_values, raw)?;
            Ok(Self::Value(ok, value))
        }
    }
}

/// Reads a handler's answer: a string, or a table with `status`, `headers` and `body`.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn response(lua: &Lua, value: &Value) -> Result<Response, String> {
    match value {
        Value::String(text) => copy(lua, text).map(Response::text),
        Value::Table(table) => from_table(lua, table),
        other => Err(format!(
            "the handler must return a string or a table with status, headers and body, got {}",
            type_name(other)
        )),
    }
}

fn copy(lua: &Lua, body: &LuaString) -> Result<Vec<u8>, String> {
    memory::copy(lua, body).map_err(|error| failure::describe_error(&error))
}

fn from_table(lua: &Lua, table: &Table) -> Result<Response, String> {
    let mut response = Response { is_text: false, ..Response::text(Vec::new()) };
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|error| error.to_string())?;
        let Value::String(key) = &key else {
            return Err(format!("the handler's answer has a key that is a {}, not a string", type_name(&key)));
        };
        match (&*key.as_bytes(), &value) {
            (b"status", value) => response.status = status(value)?,
            (b"headers", value) => {
                response.headers = headers::plain(value).map_err(|rule| format!("the handler's answer: {rule}"))?;
            }
            (b"body", Value::String(body)) => response.body = copy(lua, body)?,
            (b"body", value) => {
                return Err(format!("the handler's answer: body must be a string, got {}", type_name(value)));
            }
            // A response of vnd:hyper can be handed on as it is.
            (b"ok", _) => {}
            (other, _) => {
                let other = String::from_utf8_lossy(other);
                return Err(format!(
                    "the handler's answer has no field {other:.100}; there are status, headers and body"
                ));
            }
        }
    }
    Ok(response)
}

fn status(value: &Value) -> Result<u16, String> {
    let number = match *value {
        Value::Integer(number) => number as f64,
        Value::Number(number) => number,
        ref other => return Err(format!("the handler's answer: status must be a number, got {}", type_name(other))),
    };
    if number.fract() == 0.0 && (100.0..=599.0).contains(&number) {
        return Ok(number as u16);
    }
    Err(format!("the handler's answer: status must be an integer from 100 to 599, got {number}"))
}
