//! JSON text to tables, straight into the script's heap: nothing is built beside it.

use std::cell::Cell;
use std::fmt;

use mlua::{Lua, Table, Value};
use neoc_abi::OperationError;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{MAX_DEPTH, Markers};
use crate::failure::Failure;
use crate::memory;
use crate::stdlib::Answer;

/// JSON text as a value.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Invalid`] with line and column, and Luau's own error when there is no memory.
pub fn decode(lua: &Lua, markers: &Markers, text: &[u8]) -> Answer {
    // serde_json unescapes strings in a buffer of its own.
    memory::reserve(lua, text.len())?;
    let failed = Cell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let seed = Seed { lua, markers, failed: &failed, depth: 0 };
    let decoded = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    decoded.map_err(|error| match failed.take() {
        Some(error) => Failure::Luau(error),
        None => Failure::Operation(OperationError::invalid(format!("json.decode: {error}"))),
    })
}

/// Reads one value, inside `depth` others.
#[derive(Clone, Copy)]
struct Seed<'a> {
    lua: &'a Lua,
    markers: &'a Markers,
    /// Where an error of Luau's is left on its way through serde.
    failed: &'a Cell<Option<mlua::Error>>,
    depth: usize,
}

impl Seed<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }

    fn luau<T, E: Error>(&self, result: mlua::Result<T>) -> Result<T, E> {
        result.map_err(|error| {
            self.failed.set(Some(error));
            E::custom("out of memory")
        })
    }

    fn table<E: Error>(&self) -> Result<Table, E> {
        self.luau(self.lua.create_table())
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(self.markers.null.clone())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    // Luau has doubles only: of integers above 2^53 it gets the nearest.
    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(self.luau(self.lua.create_string(value))?))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let table = self.table()?;
        while let Some(item) = items.next_element_seed(seed)? {
            self.luau(table.raw_push(item))?;
        }
        Ok(Value::Table(table))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let table = self.table()?;
        let mut is_empty = true;
        // Of several values of one key, the last wins.
        while let Some(key) = entries.next_key_seed(seed)? {
            let value = entries.next_value_seed(seed)?;
            self.luau(table.raw_set(key, value))?;
            is_empty = false;
        }
        if is_empty {
            self.luau(table.set_metatable(Some(self.markers.object.clone())))?;
        }
        Ok(Value::Table(table))
    }
}
