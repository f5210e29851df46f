//! A call's arguments: taken one by one, each with a clear message when it is not what it must be.
//!
//! Nothing is coerced. What a check has seen is a copy, so what is checked is what is used.

use mlua::{Lua, Table, Value};
use neoc_abi::OperationError;

use crate::failure::Failure;
use crate::memory;

/// Longest text, such as a URL or a path, in bytes. Contents have no limit here.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// The arguments of one call. No function takes more than three.
pub struct Arguments {
    /// The VM that calls.
    pub lua: Lua,
    /// The function's name in messages, such as `kv.get`.
    pub api: &'static str,
    /// The values; absent ones are nil.
    pub values: [Value; 3],
}

impl Arguments {
    /// A string argument: any bytes.
    ///
    /// # Errors
    /// [`neoc_abi::ErrorKind::Invalid`] for any other type, like all functions here, and Luau's own error
    /// when there is no memory for the copy.
    pub fn bytes(&self, index: usize, name: &str) -> Result<Vec<u8>, Failure> {
        match &self.values[index] {
            Value::String(text) => Ok(memory::copy(&self.lua, text)?),
            other => Err(self.mismatch(name, "a string", other).into()),
        }
    }

    /// A string argument that is text.
    ///
    /// # Errors
    /// When the string is not UTF-8 or longer than 64 KiB.
    pub fn text(&self, index: usize, name: &str) -> Result<String, OperationError> {
        text(self.api, name, &self.values[index])
    }

    /// A table argument that may be absent.
    ///
    /// # Errors
    /// When it is neither a table nor nil.
    pub fn optional_table(&self, index: usize, name: &str) -> Result<Option<Table>, OperationError> {
        match &self.values[index] {
            Value::Nil => Ok(None),
            Value::Table(table) => Ok(Some(table.clone())),
            other => Err(self.mismatch(name, "a table", other)),
        }
    }

    /// A table argument.
    ///
    /// # Errors
    /// When it is not a table.
    pub fn table(&self, index: usize, name: &str) -> Result<Table, OperationError> {
        match &self.values[index] {
            Value::Table(table) => Ok(table.clone()),
            other => Err(self.mismatch(name, "a table", other)),
        }
    }

    /// The name of the function that the script called: a function of a Luau part is told it as its last argument.
    pub fn label(&self) -> String {
        let told = self.values.iter().rev().find_map(|value| match value {
            Value::String(name) if self.is_internal() => Some(name.to_string_lossy()),
            _ => None,
        });
        told.unwrap_or_else(|| self.api.to_string())
    }

    /// Whether a Luau part calls, and not a script.
    fn is_internal(&self) -> bool {
        self.api.contains("._")
    }

    /// The error for an argument of the wrong type.
    pub fn mismatch(&self, name: &str, expected: &str, value: &Value) -> OperationError {
        mismatch(self.api, name, expected, value)
    }
}

/// A string that must be text.
///
/// # Errors
/// When it is not a string, not UTF-8, or longer than 64 KiB.
pub fn text(api: &str, name: &str, value: &Value) -> Result<String, OperationError> {
    match value {
        Value::String(text) => match text.to_str() {
            Ok(text) if text.len() <= MAX_TEXT_BYTES => Ok(text.to_owned()),
            Ok(text) => {
                let message = format!("{api}: {name} must have at most {MAX_TEXT_BYTES} bytes, got {}", text.len());
                Err(OperationError::invalid(message))
            }
            Err(_) => Err(OperationError::invalid(format!("{api}: {name} must be UTF-8"))),
        },
        other => Err(mismatch(api, name, "a string", other)),
    }
}

/// A time that must be more than none, in seconds as a script gives it.
///
/// # Errors
/// When it is no number, NaN, or not more than 0.
pub fn milliseconds(api: &str, name: &str, value: &Value) -> Result<u64, OperationError> {
    let seconds = match *value {
        Value::Integer(seconds) => seconds as f64,
        Value::Number(seconds) => seconds,
        ref other => return Err(mismatch(api, name, "a number of seconds", other)),
    };
    if seconds.is_nan() || seconds <= 0.0 {
        return Err(OperationError::invalid(format!("{api}: {name} must be more than 0 seconds, got {seconds}")));
    }
    // The conversion saturates, and a timeout of a million years is as good as none.
    Ok((seconds * 1000.0).ceil() as u64)
}

/// The error for a value of the wrong type, such as `kv.get: key must be a string, got nil`.
pub fn mismatch(api: &str, name: &str, expected: &str, value: &Value) -> OperationError {
    OperationError::invalid(format!("{api}: {name} must be {expected}, got {}", type_name(value)))
}

/// A value's type, as a script's author knows it.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "number",
        other => other.type_name(),
    }
}
