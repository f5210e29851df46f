//! Tables to JSON text. Tables are read raw: no metamethod of the script's runs.

use std::os::raw::c_void;

use mlua::{Table, Value};
use neoc_abi::OperationError;

use super::{MAX_DEPTH, Markers};
use crate::stdlib::arguments::type_name;

/// Longest text, in bytes. It is made outside the script's heap, so it has a limit of its own.
const MAX_TEXT_BYTES: usize = 8 * 1024 * 1024;

/// Integers below this are exact in a double; JavaScript, too, writes them without an exponent.
const MAX_PLAIN_INTEGER: f64 = 1e21;

/// A value as JSON text.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Invalid`] for what JSON does not have, [`neoc_abi::ErrorKind::Limit`] for too much.
pub fn encode(markers: &Markers, value: &Value) -> Result<Vec<u8>, OperationError> {
    let mut encoder = Encoder { markers, text: Vec::new(), path: Vec::new() };
    encoder.value(value)?;
    Ok(encoder.text)
}

struct Encoder<'a> {
    markers: &'a Markers,
    text: Vec<u8>,
    /// The tables around the present value.
    path: Vec<*const c_void>,
}

/// How a table is written.
enum Shape {
    Array,
    /// With its keys, sorted.
    Object(Vec<String>),
}

fn invalid(rule: impl std::fmt::Display) -> OperationError {
    OperationError::invalid(format!("json.encode: {rule}"))
}

impl Encoder<'_> {
    fn value(&mut self, value: &Value) -> Result<(), OperationError> {
        if self.text.len() > MAX_TEXT_BYTES {
            let message = format!("json.encode: the text is longer than {MAX_TEXT_BYTES} bytes");
            return Err(OperationError::limit("json_bytes", message));
        }
        match value {
            Value::Boolean(boolean) => self.text.extend_from_slice(boolean.to_string().as_bytes()),
            Value::Integer(integer) => self.number(*integer as f64)?,
            Value::Number(number) => self.number(*number)?,
            Value::String(text) => match text.to_str() {
                Ok(text) => self.string(&text),
                Err(_) => return Err(invalid("a string is not UTF-8")),
            },
            Value::Table(table) => self.table(table)?,
            null if *null == self.markers.null => self.text.extend_from_slice(b"null"),
            other => return Err(invalid(format_args!("a {} has no JSON form", type_name(other)))),
        }
        Ok(())
    }

    fn number(&mut self, number: f64) -> Result<(), OperationError> {
        if !number.is_finite() {
            return Err(invalid(format_args!("{number} has no JSON form")));
        }
        let text = if number.fract() == 0.0 && number.abs() < MAX_PLAIN_INTEGER {
            // Adding 0 makes -0 a 0.
            (number + 0.0).to_string()
        } else {
            // The shortest text that reads as the same double.
            format!("{number:?}")
        };
        self.text.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn string(&mut self, text: &str) {
        serde_json::to_writer(&mut self.text, text).expect("a string always has a JSON form, and a Vec takes it");
    }

    fn table(&mut self, table: &Table) -> Result<(), OperationError> {
        if self.path.contains(&table.to_pointer()) {
            return Err(invalid("a table contains itself"));
        }
        if self.path.len() >= MAX_DEPTH {
            return Err(invalid(format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.path.push(table.to_pointer());
        match self.shape(table)? {
            Shape::Array => self.array(table)?,
            Shape::Object(keys) => self.object(table, &keys)?,
        }
        self.path.pop();
        Ok(())
    }

    fn array(&mut self, table: &Table) -> Result<(), OperationError> {
        self.text.push(b'[');
        for index in 1..=table.raw_len() {
            if index > 1 {
                self.text.push(b',');
            }
            self.value(&table.raw_get(index).map_err(invalid)?)?;
        }
        self.text.push(b']');
        Ok(())
    }

    fn object(&mut self, table: &Table, keys: &[String]) -> Result<(), OperationError> {
        self.text.push(b'{');
        for (index, key) in keys.iter().enumerate() {
            if index > 0 {
                self.text.push(b',');
            }
            self.string(key);
            self.text.push(b':');
            self.value(&table.raw_get(key.as_str()).map_err(invalid)?)?;
        }
        self.text.push(b'}');
        Ok(())
    }

    fn shape(&self, table: &Table) -> Result<Shape, OperationError> {
        let marker = table.metatable();
        let is_object = marker.as_ref() == Some(&self.markers.object);
        let is_array = marker.as_ref() == Some(&self.markers.array);
        let (mut keys, mut n_indices, mut last_index) = (Vec::new(), 0, 0.0_f64);
        for pair in table.pairs::<Value, Value>() {
            let (key, _) = pair.map_err(invalid)?;
            match key {
                Value::String(key) => match key.to_str() {
                    Ok(key) => keys.push(key.to_owned()),
                    Err(_) => return Err(invalid("a key is not UTF-8")),
                },
                Value::Integer(index) if index > 0 => {
                    n_indices += 1;
                    last_index = last_index.max(index as f64);
                }
                other => return Err(invalid(format_args!("a key is {}", describe_key(&other)))),
            }
        }
        match (keys.is_empty(), n_indices == 0) {
            (false, false) => Err(invalid("a table has both string keys and indices")),
            (_, true) if is_object || !keys.is_empty() => {
                if is_array {
                    return Err(invalid("a table marked as an array has string keys"));
                }
                keys.sort_unstable();
                Ok(Shape::Object(keys))
            }
            _ if is_object => Err(invalid("a table marked as an object has indices")),
            _ if last_index != f64::from(n_indices) => Err(invalid("an array has holes")),
            _ => Ok(Shape::Array),
        }
    }
}

fn describe_key(key: &Value) -> String {
    match key {
        Value::Integer(_) | Value::Number(_) => "a number other than 1, 2, 3 and so on".to_owned(),
        other => format!("a {}", type_name(other)),
    }
}
