//! Errors: as a script catches them, and as the log shows them.
//!
//! A script catches a frozen table with a locked metatable, made of an [`OperationError`]. What a script
//! raises itself may be any value, and is never trusted: none of its metamethods is called here.

use mlua::{Lua, MultiValue, Table, Value};
use neoc_abi::error::{MAX_ERROR_TEXT_BYTES, truncate_at_char};
use neoc_abi::event::ScriptError;
use neoc_abi::{ErrorKind, OperationError};

use crate::caller;

/// What Luau raises when the heap is full.
const NOT_ENOUGH_MEMORY: &str = "not enough memory";

/// The metatable of the error tables, kept by the VM.
pub struct ErrorMetatable(pub Table);

/// Why a function of a module fails.
pub enum Failure {
    /// With an error value that names its kind.
    Operation(OperationError),
    /// With an error of Luau's own, such as "not enough memory".
    Luau(mlua::Error),
}

impl From<OperationError> for Failure {
    fn from(error: OperationError) -> Self {
        Self::Operation(error)
    }
}

impl From<mlua::Error> for Failure {
    fn from(error: mlua::Error) -> Self {
        Self::Luau(error)
    }
}

impl Failure {
    /// The value that a script catches.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn into_value(self, lua: &Lua) -> mlua::Result<Value> {
        match self {
            Self::Operation(mut error) => {
                // One from another VM says where it happened there.
                error.site = error.site.or_else(|| caller::site(lua).map(|site| site.to_string()));
                Ok(Value::Table(error_table(lua, error)?))
            }
            Self::Luau(error) => Ok(Value::String(lua.create_string(describe_error(&error))?)),
        }
    }

    /// The failure for another VM. What Luau itself fails with here is that memory ran out.
    pub fn into_operation_error(self) -> OperationError {
        match self {
            Self::Operation(error) => error,
            Self::Luau(error) => OperationError::limit("memory", describe_error(&error)),
        }
    }
}

/// Makes the table that a script catches.
///
/// # Errors
/// When there is no memory for it.
pub fn error_table(lua: &Lua, error: OperationError) -> mlua::Result<Table> {
    let OperationError { kind, message, capability, target, fix, limit, retry_after_ms, reason, rule, site, traceback } =
        error;
    let table = lua.create_table()?;
    table.raw_set("kind", kind.as_str())?;
    table.raw_set("message", message)?;
    table.raw_set("capability", capability)?;
    table.raw_set("target", target)?;
    table.raw_set("fix", fix)?;
    table.raw_set("limit", limit)?;
    table.raw_set("retry_after", retry_after_ms.map(|ms| ms as f64 / 1000.0))?;
    for (name, value) in [("reason", reason), ("rule", rule), ("site", site)] {
        table.raw_set(name, value)?;
    }
    table.raw_set("traceback", traceback)?;
    if let Some(metatable) = lua.app_data_ref::<ErrorMetatable>() {
        table.set_metatable(Some(metatable.0.clone()))?;
    }
    // Several tasks may hold the same error value.
    table.set_readonly(true);
    Ok(table)
}

/// The error that a table was made of.
fn from_error_table(table: &Table) -> OperationError {
    let text = |name: &str| text_field(table, name);
    let kind = text("kind").and_then(|kind| ErrorKind::from_name(&kind)).unwrap_or(ErrorKind::Failed);
    let retry_after: Option<f64> = table.raw_get("retry_after").ok().flatten();
    OperationError {
        capability: text("capability"),
        target: text("target"),
        fix: text("fix"),
        limit: text("limit"),
        retry_after_ms: retry_after.map(|seconds| (seconds * 1000.0) as u64),
        reason: text("reason"),
        rule: text("rule"),
        site: text("site"),
        traceback: text("traceback"),
        ..OperationError::new(kind, text("message").unwrap_or_default())
    }
}

fn text_field(table: &Table, name: &str) -> Option<String> {
    match table.raw_get(name) {
        Ok(Value::String(text)) => Some(text.to_string_lossy()),
        _ => None,
    }
}

/// An error table as one line, such as `denied: http GET https://x/: no rule allows it`.
pub fn error_line(table: &Table) -> String {
    let field = |name: &str| text_field(table, name);
    let kind = field("kind").unwrap_or_default();
    let message = field("message").unwrap_or_default();
    match (field("capability"), field("target")) {
        (Some(capability), Some(target)) => format!("{kind}: {capability} {target}: {message}"),
        _ => format!("{kind}: {message}"),
    }
}

/// What a script raised, as one line.
fn describe(lua: &Lua, value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string_lossy(),
        Value::Table(table) if is_ours(lua, table) => error_line(table),
        Value::Table(table) => match table.raw_get("message") {
            Ok(Value::String(message)) => format!("(error object is a table) {}", message.to_string_lossy()),
            _ => "(error object is a table)".to_owned(),
        },
        Value::Error(error) => describe_error(error),
        Value::Nil | Value::Boolean(_) | Value::Integer(_) | Value::Number(_) => {
            format!("(error object is {})", value.to_string().unwrap_or_default())
        }
        other => format!("(error object is a {})", other.type_name()),
    }
}

fn is_ours(lua: &Lua, table: &Table) -> bool {
    let Some(ours) = lua.app_data_ref::<ErrorMetatable>() else { return false };
    table.metatable().is_some_and(|metatable| metatable == ours.0)
}

/// An error of mlua's without the tracebacks and prefixes that it adds.
pub fn describe_error(error: &mlua::Error) -> String {
    match error {
        mlua::Error::CallbackError { cause, .. } => describe_error(cause),
        mlua::Error::SyntaxError { message, .. } => message.clone(),
        mlua::Error::RuntimeError(message) | mlua::Error::MemoryError(message) => {
            message.lines().next().unwrap_or_default().to_owned()
        }
        other => other.to_string(),
    }
}

/// A script's failure, from the prelude's `{error =, trace =}`.
pub fn script_error(lua: &Lua, failure: &Value) -> ScriptError {
    let Value::Table(failure) = failure else { return from_message(describe(lua, failure)) };
    let error = failure.raw_get("error").unwrap_or(Value::Nil);
    let trace = match failure.raw_get("trace") {
        Ok(Value::String(trace)) => script_frames(&trace.to_string_lossy()),
        _ => String::new(),
    };
    let mut message = describe(lua, &error);
    // Luau puts the position before a string only.
    if !matches!(error, Value::String(_))
        && let Some(position) = trace.lines().find_map(position)
    {
        message = format!("{position}: {message}");
    }
    // What failed in another VM comes first, as with tasks.
    let trace = match elsewhere(lua, &error) {
        Some(elsewhere) => format!("{elsewhere}\ncalled from:\n{trace}"),
        None => trace,
    };
    ScriptError { traceback: shorten(trace), ..from_message(message) }
}

/// The traceback that an error of ours brought from another VM.
fn elsewhere(lua: &Lua, error: &Value) -> Option<String> {
    match error {
        Value::Table(table) if is_ours(lua, table) => text_field(table, "traceback"),
        _ => None,
    }
}

/// What a worker's caller gets for what the worker raised, from the prelude's `{error =, trace =}`. An error
/// of ours stays what it is, so that the caller can branch on it.
pub fn worker_error(lua: &Lua, failure: &Value) -> OperationError {
    let ScriptError { message, traceback } = script_error(lua, failure);
    let raised = match failure {
        Value::Table(failure) => failure.raw_get("error").unwrap_or(Value::Nil),
        _ => Value::Nil,
    };
    let error = match raised {
        Value::Table(table) if is_ours(lua, &table) => from_error_table(&table),
        Value::String(text) if text == NOT_ENOUGH_MEMORY => OperationError::limit("memory", message),
        _ => OperationError::new(ErrorKind::Failed, message),
    };
    OperationError { traceback: Some(traceback).filter(|traceback| !traceback.is_empty()), ..error }
}

/// The `main.luau:3` of a frame such as `main.luau:3 function f`.
fn position(frame: &str) -> Option<&str> {
    frame.split_whitespace().next().filter(|position| position.ends_with(|last: char| last.is_ascii_digit()))
}

/// Where a call stands that has the VM stand still, such as `main.luau:3: task.wait`.
pub fn stall_place(lua: &Lua, api: &str) -> String {
    format!("{}: {api}", caller::site(lua).map(|site| site.to_string()).unwrap_or_default())
}

/// A failure that has no traceback.
pub fn from_message(message: impl Into<String>) -> ScriptError {
    let mut message = message.into();
    truncate_at_char(&mut message, MAX_ERROR_TEXT_BYTES);
    ScriptError { message, traceback: String::new() }
}

/// The frames that the author of the script knows: not ours, not mlua's, not Luau's built-in functions.
fn script_frames(trace: &str) -> String {
    let is_foreign = |line: &str| caller::FOREIGN.iter().any(|name| line.starts_with(name));
    let frames = trace.lines().filter(|line| !line.is_empty() && !is_foreign(line));
    frames.collect::<Vec<_>>().join("\n")
}

/// Keeps the first and the last frames of a traceback that is too long.
fn shorten(trace: String) -> String {
    const HEAD_BYTES: usize = MAX_ERROR_TEXT_BYTES * 3 / 4;
    const TAIL_BYTES: usize = MAX_ERROR_TEXT_BYTES / 4 - 8;
    if trace.len() <= MAX_ERROR_TEXT_BYTES {
        return trace;
    }
    let head = &trace[..trace.floor_char_boundary(HEAD_BYTES)];
    let tail = &trace[trace.ceil_char_boundary(trace.len() - TAIL_BYTES)..];
    // Whole lines only.
    let head = head.rsplit_once('\n').map_or(head, |(lines, _)| lines);
    let tail = tail.split_once('\n').map_or(tail, |(_, lines)| lines);
    format!("{head}\n...\n{tail}")
}

/// What Luau raises when the heap is full, made while there was room.
pub struct NotEnoughMemory(pub Value);

impl NotEnoughMemory {
    /// Makes it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(lua: &Lua) -> mlua::Result<Self> {
        Ok(Self(Value::String(lua.create_string(NOT_ENOUGH_MEMORY)?)))
    }
}

fn not_enough_memory(lua: &Lua) -> Value {
    lua.app_data_ref::<NotEnoughMemory>().map_or(Value::Nil, |kept| kept.0.clone())
}

/// What a function of a module gives to the prelude: whether it went well, and its value.
pub fn answer(lua: &Lua, result: Result<Value, Failure>) -> mlua::Result<MultiValue> {
    let (ok, value) = match result {
        Ok(value) => (true, value),
        // Without the memory for the error's table a script gets Luau's own words, and no error of mlua's.
        Err(failure) => (false, failure.into_value(lua).unwrap_or_else(|_| not_enough_memory(lua))),
    };
    Ok(MultiValue::from_iter([Value::Boolean(ok), value]))
}
