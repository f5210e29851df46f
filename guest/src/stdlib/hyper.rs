//! `vnd:hyper`: outbound HTTP. Any status is a response; only what prevents one is an error.

use std::cell::RefCell;

use futures::StreamExt;
use mlua::{Lua, Table, Value};
use neoc_abi::http::{Operation, Reply, Request, Response, Timeouts};
use neoc_abi::{Operation as AnyOperation, OperationError, Outcome, Reply as AnyReply};

use super::arguments::{self, Arguments, milliseconds, mismatch};
use super::{Answer, Body, Function, Module, headers};
use crate::failure::Failure;
use crate::plain::{self, Plain, Template};
use crate::scheduler::cancel;
use crate::{memory, operation};

/// How many requests of one `get_all` are on their way at once.
const FAN_OUT: usize = 16;

/// Most requests of one `get_all`.
const MAX_BATCH: usize = 1000;

/// What a request without its body may take, in bytes: the limits of headers and URLs.
const REQUEST_BYTES: usize = 128 * 1024;

/// The module.
pub const MODULE: Module = Module {
    name: "vnd:hyper",
    functions: &[
        Function { name: "get", body: Body::Yields(|lua, arguments| Box::pin(get(lua, arguments))) },
        Function { name: "post", body: Body::Yields(|lua, arguments| Box::pin(post(lua, arguments))) },
        Function { name: "request", body: Body::Yields(|lua, arguments| Box::pin(request(lua, arguments))) },
        Function { name: "get_all", body: Body::Yields(|lua, arguments| Box::pin(get_all(lua, arguments))) },
    ],
    luau: &[],
    constants: None,
};

/// What is the same in each response's table, kept by the VM.
pub struct ResponseTemplate(Template);

impl ResponseTemplate {
    /// Makes it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(lua: &Lua) -> mlua::Result<Self> {
        Ok(Self(Template::new(lua, &["status", "headers", "body", "ok"])?))
    }
}

async fn get(lua: Lua, arguments: Arguments) -> Answer {
    let mut request = empty("GET", arguments.text(0, "url")?);
    apply_options(&mut request, &arguments, 1)?;
    perform(&lua, &arguments, request).await
}

async fn post(lua: Lua, arguments: Arguments) -> Answer {
    let mut request = empty("POST", arguments.text(0, "url")?);
    if !arguments.values[1].is_nil() {
        request.body = Some(arguments.bytes(1, "body")?.into());
    }
    apply_options(&mut request, &arguments, 2)?;
    perform(&lua, &arguments, request).await
}

async fn request(lua: Lua, arguments: Arguments) -> Answer {
    let table = arguments.table(0, "request")?;
    let request = from_table(&arguments, arguments.api, &table, empty("GET", String::new()))?;
    perform(&lua, &arguments, request).await
}

async fn get_all(lua: Lua, arguments: Arguments) -> Answer {
    cancel::refuse().await?;
    let requests = batch(&arguments)?;
    let api = arguments.api;
    let replies = lua.create_table_with_capacity(requests.len(), 0)?;
    // Each reply becomes a table at once, so that the bodies are on the script's own account.
    let memory = RefCell::new(Ok(()));
    futures::stream::iter(requests)
        .map(|request| async move {
            // Once it is cancelled, this call is refused as one, and not for each that has not left.
            if cancel::is_cancelled() {
                return Err(cancel::refusal());
            }
            operation::perform_in_line(api, AnyOperation::Http(Operation::Request(request))).await
        })
        .buffered(FAN_OUT)
        .for_each(|outcome| {
            let stored = item(&lua, outcome).and_then(|value| replies.raw_push(value));
            if let Err(error) = stored {
                *memory.borrow_mut() = Err(error);
            }
            std::future::ready(())
        })
        .await;
    memory.into_inner()?;
    // Not a list of refusals.
    cancel::check()?;
    Ok(Value::Table(replies))
}

/// Reads the whole list before the first request leaves.
fn batch(arguments: &Arguments) -> Result<Vec<Request>, Failure> {
    let api = arguments.api;
    let list = arguments.table(0, "requests")?;
    if list.raw_len() > MAX_BATCH {
        return Err(OperationError::invalid(format!(
            "{api}: at most {MAX_BATCH} requests at once, got {}",
            list.raw_len()
        ))
        .into());
    }
    let mut defaults = empty("GET", String::new());
    apply_options(&mut defaults, arguments, 1)?;
    let mut requests = Vec::with_capacity(list.raw_len());
    for index in 1..=list.raw_len() {
        let name = format!("requests[{index}]");
        // Each has a copy of the headers, and a URL of its own.
        memory::reserve(&arguments.lua, REQUEST_BYTES)?;
        requests.push(match list.raw_get(index)? {
            Value::Table(table) => from_table(arguments, &format!("{api}: {name}"), &table, defaults.clone())?,
            value @ Value::String(_) => Request { url: arguments::text(api, &name, &value)?, ..defaults.clone() },
            value => return Err(mismatch(api, &name, "a URL or a table", &value).into()),
        });
    }
    Ok(requests)
}

fn empty(method: &str, url: String) -> Request {
    let (headers, secret_headers, timeouts) = (Vec::new(), Vec::new(), Timeouts::default());
    Request { method: method.to_owned(), url, headers, secret_headers, body: None, timeouts, decompress: false }
}

/// Reads `{headers =, timeout =, timeouts =, decompress =}`.
fn apply_options(request: &mut Request, arguments: &Arguments, index: usize) -> Result<(), Failure> {
    let Some(options) = arguments.optional_table(index, "options")? else { return Ok(()) };
    for_each_field(arguments.api, &options, |name, value| Ok(apply_option(request, arguments.api, name, value)?))
}

fn apply_option(request: &mut Request, api: &str, name: &str, value: &Value) -> Result<bool, OperationError> {
    match name {
        "headers" => {
            let headers =
                headers::from_value(value).map_err(|rule| OperationError::invalid(format!("{api}: {rule}")))?;
            (request.headers, request.secret_headers) = (headers.plain, headers.secret);
        }
        "timeout" => request.timeouts.total_ms = Some(milliseconds(api, "timeout", value)?),
        "timeouts" => apply_timeouts(&mut request.timeouts, api, value)?,
        "decompress" => match value {
            Value::Boolean(decompress) => request.decompress = *decompress,
            other => return Err(mismatch(api, "decompress", "a boolean", other)),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

/// Reads `{connect =, first_byte =, between_bytes =, total =}`.
fn apply_timeouts(timeouts: &mut Timeouts, api: &str, value: &Value) -> Result<(), OperationError> {
    let Value::Table(table) = value else { return Err(mismatch(api, "timeouts", "a table", value)) };
    let unreadable = |_| OperationError::invalid(format!("{api}: timeouts must be a plain table"));
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(unreadable)?;
        let name = arguments::text(api, "the name of a timeout", &key)?;
        let timeout = match name.as_str() {
            "connect" => &mut timeouts.connect_ms,
            "first_byte" => &mut timeouts.first_byte_ms,
            "between_bytes" => &mut timeouts.between_bytes_ms,
            "total" => &mut timeouts.total_ms,
            _ => return Err(OperationError::invalid(format!("{api}: there is no timeout {name:.100}"))),
        };
        *timeout = Some(milliseconds(api, &format!("timeouts.{name}"), &value)?);
    }
    Ok(())
}

/// Reads `{url =, method =, body =}` and what [`apply_option`] knows.
fn from_table(arguments: &Arguments, api: &str, table: &Table, defaults: Request) -> Result<Request, Failure> {
    let mut request = defaults;
    for_each_field(api, table, |name, value| {
        match (name, value) {
            ("url", value) => request.url = arguments::text(api, "url", value)?,
            ("method", value) => request.method = method(api, value)?,
            ("body", Value::String(body)) => request.body = Some(memory::copy(&arguments.lua, body)?.into()),
            ("body", value) => return Err(mismatch(api, "body", "a string", value).into()),
            (name, value) => return Ok(apply_option(&mut request, api, name, value)?),
        }
        Ok(true)
    })?;
    if request.url.is_empty() {
        return Err(mismatch(api, "url", "a string", &Value::Nil).into());
    }
    Ok(request)
}

/// Calls `field` for each field of a script's table. It says whether it knows the name.
fn for_each_field(
    api: &str,
    table: &Table,
    mut field: impl FnMut(&str, &Value) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        let name = arguments::text(api, "the name of an option", &key)?;
        if !field(&name, &value)? {
            return Err(OperationError::invalid(format!("{api}: there is no option {name:.100}")).into());
        }
    }
    Ok(())
}

fn method(api: &str, value: &Value) -> Result<String, OperationError> {
    let method = arguments::text(api, "method", value)?;
    to_method(&method)
        .ok_or_else(|| OperationError::invalid(format!("{api}: method must be a word such as GET, got {method:.100}")))
}

/// A method as it is sent, which a script may write in any case. None: it is none.
pub fn to_method(written: &str) -> Option<String> {
    let is_word = !written.is_empty() && written.bytes().all(|byte| byte.is_ascii_alphabetic());
    is_word.then(|| written.to_ascii_uppercase())
}

async fn perform(lua: &Lua, arguments: &Arguments, request: Request) -> Answer {
    let outcome = operation::perform(arguments.api, AnyOperation::Http(Operation::Request(request))).await;
    response_table(lua, &response(outcome)?)
}

fn response(outcome: Outcome) -> Result<Response, Failure> {
    match outcome? {
        AnyReply::Http(Reply::Response(response)) => Ok(response),
        _ => Err(super::mismatched_reply()),
    }
}

/// An item of `get_all`: a response, or an error value in its place.
fn item(lua: &Lua, outcome: Outcome) -> mlua::Result<Value> {
    match response(outcome).and_then(|response| response_table(lua, &response)) {
        Ok(value) => Ok(value),
        Err(Failure::Operation(error)) => Failure::Operation(error).into_value(lua),
        Err(Failure::Luau(error)) => Err(error),
    }
}

fn response_table(lua: &Lua, response: &Response) -> Answer {
    let Response { status, headers, body } = response;
    let headers = headers::joined(headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())));
    let headers = headers::fields(&headers);
    let values = [
        Plain::Number((*status).into()),
        Plain::Table(&headers),
        Plain::String(body),
        Plain::Boolean((200..300).contains(status)),
    ];
    let template = lua.app_data_ref::<ResponseTemplate>().ok_or_else(|| mlua::Error::runtime("no template"))?;
    Ok(plain::make(lua, &Plain::Copy(&template.0, &values))?)
}
