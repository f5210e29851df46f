//! Tables to JSON text. Tables are read raw: no metamethod of the script's runs.

use std::io::{self, Write};
use std::os::raw::c_void;

use mlua::{Lua, Table, Value};
use neoc_abi::OperationError;

use super::{MAX_DEPTH, Markers};
use crate::failure::Failure;
use crate::memory;
use crate::stdlib::arguments::type_name;

/// Longest text, in bytes. It is made outside the script's heap, so it has a limit of its own.
const MAX_TEXT_BYTES: usize = 8 * 1024 * 1024;

/// Integers below this are written without an exponent, as JavaScript does.
const MAX_PLAIN_INTEGER: f64 = 1e21;

/// A value as JSON text.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Invalid`] for what JSON does not have, [`neoc_abi::ErrorKind::Limit`] for a text
/// that is too long, and Luau's own error when there is no memory.
pub fn encode(lua: &Lua, markers: &Markers, value: &Value) -> Result<Vec<u8>, Failure> {
    let mut encoder = Encoder { lua, markers, text: Vec::new(), path: Vec::new() };
    encoder.value(value)?;
    Ok(encoder.text)
}

struct Encoder<'a> {
    lua: &'a Lua,
    markers: &'a Markers,
    text: Vec<u8>,
    /// The tables around the present value.
    path: Vec<*const c_void>,
}

/// How a table is written.
enum Shape {
    Array,
    Object(Keys),
}

/// The keys of an object: one text and where each ends in it, because thousands of small strings would each
/// have to be asked for.
#[derive(Default)]
struct Keys {
    text: String,
    /// Start and end, later in the order of the keys.
    ranges: Vec<(usize, usize)>,
}

fn invalid(rule: impl std::fmt::Display) -> Failure {
    OperationError::invalid(format!("json.encode: {rule}")).into()
}

fn too_long() -> Failure {
    let message = format!("json.encode: the text is longer than {MAX_TEXT_BYTES} bytes");
    OperationError::limit("json_bytes", message).into()
}

impl Encoder<'_> {
    /// Adds to the text. Growing copies it, so both must fit.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let length = self.text.len() + bytes.len();
        if length > MAX_TEXT_BYTES {
            return Err(too_long());
        }
        if length > self.text.capacity() {
            memory::reserve(self.lua, length * 2)?;
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn value(&mut self, value: &Value) -> Result<(), Failure> {
        match value {
            Value::Boolean(boolean) => self.put(boolean.to_string().as_bytes()),
            Value::Integer(integer) => self.number(*integer as f64),
            Value::Number(number) => self.number(*number),
            Value::String(text) => match text.to_str() {
                Ok(text) => self.string(&text),
                Err(_) => Err(invalid("a string is not UTF-8")),
            },
            Value::Table(table) => self.table(table),
            null if *null == self.markers.null => self.put(b"null"),
            other => Err(invalid(format_args!("a {} has no JSON form", type_name(other)))),
        }
    }

    fn number(&mut self, number: f64) -> Result<(), Failure> {
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
        self.put(text.as_bytes())
    }

    fn string(&mut self, text: &str) -> Result<(), Failure> {
        let mut sink = Sink { encoder: self, failure: None };
        let written = serde_json::to_writer(&mut sink, text);
        match (written, sink.failure) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(failure)) => Err(failure),
            (Err(error), None) => Err(invalid(error)),
        }
    }

    fn table(&mut self, table: &Table) -> Result<(), Failure> {
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

    fn array(&mut self, table: &Table) -> Result<(), Failure> {
        self.put(b"[")?;
        for index in 1..=table.raw_len() {
            if index > 1 {
                self.put(b",")?;
            }
            self.value(&table.raw_get(index)?)?;
        }
        self.put(b"]")
    }

    fn object(&mut self, table: &Table, keys: &Keys) -> Result<(), Failure> {
        self.put(b"{")?;
        for (index, &(start, end)) in keys.ranges.iter().enumerate() {
            if index > 0 {
                self.put(b",")?;
            }
            let key = &keys.text[start..end];
            self.string(key)?;
            self.put(b":")?;
            self.value(&table.raw_get(key)?)?;
        }
        self.put(b"}")
    }

    fn shape(&self, table: &Table) -> Result<Shape, Failure> {
        let marker = table.metatable();
        let is_object = marker.as_ref() == Some(&self.markers.object);
        let is_array = marker.as_ref() == Some(&self.markers.array);
        let (mut keys, mut n_indices, mut last_index) = (Keys::default(), 0, 0.0_f64);
        for pair in table.pairs::<Value, Value>() {
            let (key, _) = pair?;
            match key {
                Value::String(key) => match key.to_str() {
                    Ok(key) => keys.add(self.lua, &key)?,
                    Err(_) => return Err(invalid("a key is not UTF-8")),
                },
                Value::Integer(index) if index > 0 => {
                    n_indices += 1;
                    last_index = last_index.max(index as f64);
                }
                other => return Err(invalid(format_args!("a key is {}", describe_key(&other)))),
            }
        }
        match (keys.ranges.is_empty(), n_indices == 0) {
            (false, false) => Err(invalid("a table has both string keys and indices")),
            (false, true) if is_array => Err(invalid("a table marked as an array has string keys")),
            (false, true) => Ok(Shape::Object(keys.sorted())),
            (true, true) if is_object => Ok(Shape::Object(keys)),
            (true, false) if is_object => Err(invalid("a table marked as an object has indices")),
            (true, _) if last_index != f64::from(n_indices) => Err(invalid("an array has holes")),
            (true, _) => Ok(Shape::Array),
        }
    }
}

impl Keys {
    fn add(&mut self, lua: &Lua, key: &str) -> Result<(), Failure> {
        let start = self.text.len();
        let end = start + key.len();
        if end > MAX_TEXT_BYTES {
            return Err(too_long());
        }
        if end > self.text.capacity() {
            memory::reserve(lua, end * 2)?;
        }
        if self.ranges.len() == self.ranges.capacity() {
            memory::reserve(lua, self.ranges.len() * 2 * size_of::<(usize, usize)>())?;
        }
        self.text.push_str(key);
        self.ranges.push((start, end));
        Ok(())
    }

    fn sorted(mut self) -> Self {
        let text = &self.text;
        self.ranges.sort_unstable_by_key(|&(start, end)| &text[start..end]);
        self
    }
}

fn describe_key(key: &Value) -> String {
    match key {
        Value::Integer(_) | Value::Number(_) => "a number other than 1, 2, 3 and so on".to_owned(),
        other => format!("a {}", type_name(other)),
    }
}

/// Where serde_json writes an escaped string.
struct Sink<'a, 'b> {
    encoder: &'a mut Encoder<'b>,
    failure: Option<Failure>,
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.encoder.put(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(failure) => {
                self.failure = Some(failure);
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
