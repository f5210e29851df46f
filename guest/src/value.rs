//! Values on their way from one VM to another: packed as copies, and unpacked again.
//!
//! Tables are read raw: no metamethod of the script's runs. What has an identity rather than a content, such
//! as a function, does not cross, and the error names the place: `args[1].handlers["on load"]`.

use mlua::{Buffer, Lua, Table, Value, Vector};
use neoc_abi::OperationError;
use neoc_abi::value::{MAX_DEPTH, MAX_PACKED_BYTES, Packed, Token, put, take};

use crate::failure::Failure;
use crate::memory;
use crate::stdlib::arguments::type_name;

/// Most bytes of a token without the string that it may carry.
const TOKEN_BYTES: usize = 16;

/// Longest key that an error repeats, in bytes.
const MAX_SHOWN_KEY_BYTES: usize = 100;

/// Packs values, all of one call together.
pub struct Packer<'a> {
    lua: &'a Lua,
    /// The function's name in messages.
    api: &'a str,
    /// Bytes of the rows that were taken before.
    taken_bytes: usize,
    row: Vec<u8>,
}

/// Why a value does not cross.
enum Fault {
    /// It has no copy. The place grows from the inside out, while the error is on its way.
    NoCopy { place: String, rule: String },
    /// There is too much of it, or no memory for it.
    Other(Failure),
}

impl<'a> Packer<'a> {
    /// A packer for the call of `api`.
    pub fn new(lua: &'a Lua, api: &'a str) -> Self {
        Self { lua, api, taken_bytes: 0, row: Vec::new() }
    }

    /// Adds a value to the row. `name` is its own in messages, such as `args[1]`.
    ///
    /// # Errors
    /// [`neoc_abi::ErrorKind::Invalid`] for what has no copy, [`neoc_abi::ErrorKind::Limit`] for more than
    /// [`MAX_PACKED_BYTES`], and Luau's own error when there is no memory.
    pub fn add(&mut self, name: &str, value: &Value) -> Result<(), Failure> {
        self.value(value, 0).map_err(|fault| match fault {
            Fault::NoCopy { place, rule } => {
                OperationError::invalid(format!("{}: {name}{place}: {rule}", self.api)).into()
            }
            Fault::Other(failure) => failure,
        })
    }

    /// Takes the row, and begins another, whose bytes count with it.
    pub fn take(&mut self) -> Packed {
        self.taken_bytes += self.row.len();
        std::mem::take(&mut self.row).into()
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Fault> {
        match value {
            Value::Nil => self.put(&Token::Nil),
            Value::Boolean(boolean) => self.put(&Token::Boolean(*boolean)),
            Value::Integer(integer) => self.put(&Token::Number(*integer as f64)),
            Value::Number(number) => self.put(&Token::Number(*number)),
            Value::String(text) => self.put(&Token::String(&text.as_bytes())),
            Value::Vector(vector) => self.put(&Token::Vector([vector.x(), vector.y(), vector.z()])),
            Value::Buffer(buffer) => self.buffer(buffer),
            Value::Table(table) => self.table(table, depth),
            other => Err(no_copy(format!("a {} cannot be copied to another VM", type_name(other)))),
        }
    }

    /// Adds to the row. Growing copies it, so both must fit.
    fn put(&mut self, token: &Token<'_>) -> Result<(), Fault> {
        let content_bytes = match token {
            Token::String(bytes) | Token::Buffer(bytes) => bytes.len(),
            _ => 0,
        };
        let length = self.row.len() + TOKEN_BYTES + content_bytes;
        if self.taken_bytes + length > MAX_PACKED_BYTES {
            let message = format!("{}: the values take more than {MAX_PACKED_BYTES} bytes", self.api);
            return Err(Fault::Other(OperationError::limit("value_bytes", message).into()));
        }
        if length > self.row.capacity() {
            let capacity = length.max(self.row.capacity() * 2);
            memory::reserve(self.lua, capacity).map_err(other)?;
            self.row.reserve_exact(capacity - self.row.len());
        }
        let row = put(std::mem::take(&mut self.row), token);
        self.row = row.map_err(|_| no_copy("the value cannot be written".to_owned()))?;
        Ok(())
    }

    fn buffer(&mut self, buffer: &Buffer) -> Result<(), Fault> {
        // mlua gives no view of a buffer, so this is a copy, beside the one in the row.
        memory::reserve(self.lua, buffer.len()).map_err(other)?;
        let content = buffer.to_vec();
        self.put(&Token::Buffer(&content))
    }

    fn table(&mut self, table: &Table, depth: usize) -> Result<(), Fault> {
        if depth >= MAX_DEPTH {
            // A table that contains itself ends here, too.
            return Err(no_copy(format!("nested deeper than {MAX_DEPTH} tables, or in a circle")));
        }
        if table.metatable().is_some() {
            return Err(no_copy("a table with a metatable cannot be copied to another VM".to_owned()));
        }
        let n_array = table.raw_len();
        let n_map = table.pairs::<Value, Value>().filter(|pair| is_other_key(pair, n_array)).count();
        let head = Token::Table {
            n_array: u32::try_from(n_array).unwrap_or(u32::MAX),
            n_map: u32::try_from(n_map).unwrap_or(u32::MAX),
        };
        self.put(&head)?;
        for index in 1..=n_array {
            let value: Value = table.raw_get(index).map_err(other)?;
            self.value(&value, depth + 1).map_err(|fault| fault.at(|| format!("[{index}]")))?;
        }
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair.map_err(other)?;
            if is_index(&key, n_array) {
                continue;
            }
            if matches!(key, Value::Table(_) | Value::Buffer(_)) {
                // A copy is another key.
                return Err(no_copy(format!("a key that is a {} cannot be copied", type_name(&key))));
            }
            self.value(&key, depth + 1)?;
            self.value(&value, depth + 1).map_err(|fault| fault.at(|| shown_key(&key)))?;
        }
        Ok(())
    }
}

fn no_copy(rule: String) -> Fault {
    Fault::NoCopy { place: String::new(), rule }
}

fn other(error: mlua::Error) -> Fault {
    Fault::Other(error.into())
}

impl Fault {
    /// Puts the key of the table around it in front.
    fn at(self, key: impl FnOnce() -> String) -> Self {
        match self {
            Self::NoCopy { place, rule } => Self::NoCopy { place: format!("{}{place}", key()), rule },
            other => other,
        }
    }
}

fn is_other_key(pair: &mlua::Result<(Value, Value)>, n_array: usize) -> bool {
    pair.as_ref().is_ok_and(|(key, _)| !is_index(key, n_array))
}

/// Whether a key is one of 1 to `n_array`.
fn is_index(key: &Value, n_array: usize) -> bool {
    match *key {
        Value::Integer(index) => index >= 1 && usize::try_from(index).is_ok_and(|index| index <= n_array),
        _ => false,
    }
}

/// A key as a script would write it behind a table's name.
fn shown_key(key: &Value) -> String {
    match key {
        Value::String(text) => {
            let text = text.to_string_lossy();
            let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && text.bytes().next().is_some_and(|first| !first.is_ascii_digit());
            let mut shown = if is_name { format!(".{text}") } else { format!("[{text:?}]") };
            neoc_abi::error::truncate_at_char(&mut shown, MAX_SHOWN_KEY_BYTES);
            shown
        }
        Value::Boolean(boolean) => format!("[{boolean}]"),
        Value::Integer(integer) => format!("[{integer}]"),
        Value::Number(number) => format!("[{number}]"),
        other => format!("[a {}]", type_name(other)),
    }
}

/// Unpacks a row of values into a table like that of `table.pack`: the values at 1, 2 and so on, and their
/// number at `n`.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Io`] for bytes that are no packed values, and Luau's own error when there is no
/// memory for them.
pub fn unpack_row(lua: &Lua, row: &[u8]) -> Result<Table, Failure> {
    let mut unpacker = Unpacker { lua, rest: row };
    let table = lua.create_table()?;
    let mut n_values = 0;
    while !unpacker.rest.is_empty() {
        n_values += 1;
        table.raw_set(n_values, unpacker.value(0)?)?;
    }
    table.raw_set("n", n_values)?;
    Ok(table)
}

struct Unpacker<'a> {
    lua: &'a Lua,
    rest: &'a [u8],
}

fn unreadable() -> Failure {
    OperationError::io("the values from the other VM cannot be read").into()
}

impl Unpacker<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, Failure> {
        let (token, rest) = take(self.rest).map_err(|_| unreadable())?;
        self.rest = rest;
        Ok(match token {
            Token::Nil => Value::Nil,
            Token::Boolean(boolean) => Value::Boolean(boolean),
            Token::Number(number) => Value::Number(number),
            Token::String(bytes) => Value::String(memory::string(self.lua, bytes)?),
            Token::Buffer(bytes) => Value::Buffer(self.lua.create_buffer(bytes)?),
            Token::Vector([x, y, z]) => Value::Vector(Vector::new(x, y, z)),
            Token::Table { n_array, n_map } => Value::Table(self.table(n_array, n_map, depth)?),
        })
    }

    fn table(&mut self, n_array: u32, n_map: u32, depth: usize) -> Result<Table, Failure> {
        // A value takes a byte at least: a table that is said to hold more than there are bytes is no table.
        let (n_array, n_map) = (n_array as usize, n_map as usize);
        if depth >= MAX_DEPTH || n_array.saturating_add(n_map) > self.rest.len() {
            return Err(unreadable());
        }
        let table = self.lua.create_table_with_capacity(n_array, n_map)?;
        for index in 1..=n_array {
            table.raw_set(index, self.value(depth + 1)?)?;
        }
        for _ in 0..n_map {
            let key = self.value(depth + 1)?;
            if matches!(key, Value::Nil) || matches!(key, Value::Number(number) if number.is_nan()) {
                return Err(unreadable());
            }
            table.raw_set(key, self.value(depth + 1)?)?;
        }
        Ok(table)
    }
}
