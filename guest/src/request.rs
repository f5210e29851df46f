//! A request as the table that a handler gets, and a handler's answer.
//!
//! Tables of the script are read raw: none of its metamethods runs.

use mlua::{Lua, LuaString, Table, Thread, Value};
use neoc_abi::event::{Request, Response};
use serde_bytes::ByteBuf;

use crate::plain::{self, Plain};
use crate::stdlib::arguments::type_name;
use crate::stdlib::headers;
use crate::{failure, memory};

/// The names of a request's parts.
const NAMES: [&str; 5] = ["method", "path", "query", "headers", "body"];

/// The names as strings of the script's. While somebody holds them, they need not be made for each request.
///
/// # Errors
/// When there is no memory for them.
pub fn names(lua: &Lua) -> mlua::Result<Vec<LuaString>> {
    NAMES.iter().map(|name| lua.create_string(name)).collect()
}

/// Makes the table, as the next argument of a thread.
///
/// # Errors
/// When there is no memory for it.
pub fn give(lua: &Lua, thread: &Thread, request: &Request<'_>) -> mlua::Result<()> {
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
    let fields: Vec<_> = NAMES.into_iter().zip(values).collect();
    plain::give(lua, thread, &Plain::Table(&fields))
}

/// Reads a handler's answer: a string, or a table with `status`, `headers` and `body`.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn response(lua: &Lua, value: &Value) -> Result<Response, String> {
    match value {
        Value::String(text) => Ok(Response {
            status: 200,
            headers: vec![("content-type".to_owned(), ByteBuf::from(b"text/plain; charset=utf-8"))],
            body: copy(lua, text)?,
        }),
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
    let mut response = Response { status: 200, headers: Vec::new(), body: Vec::new() };
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
