//! Header lists: as the contract has them, and as a script does.

use std::collections::BTreeMap;

use mlua::{Lua, Table, Value};

use super::arguments::type_name;

/// A script's table of headers: lower-case names; repeated ones joined by a comma and a space.
///
/// # Errors
/// When there is no memory for it.
pub fn to_table(lua: &Lua, headers: Vec<(String, Vec<u8>)>) -> mlua::Result<Table> {
    let mut joined = BTreeMap::<String, Vec<u8>>::new();
    for (name, value) in headers {
        match joined.get_mut(&name) {
            Some(values) => {
                values.extend_from_slice(b", ");
                values.extend_from_slice(&value);
            }
            None => {
                joined.insert(name, value);
            }
        }
    }
    let table = lua.create_table_with_capacity(0, joined.len())?;
    for (name, value) in joined {
        table.raw_set(name, lua.create_string(value)?)?;
    }
    Ok(table)
}

/// Headers as a script gives them, sorted by name: a table of name to a string, a number, or an array of
/// strings. Whether a name or a value is legal is for the host to judge.
///
/// # Errors
/// A sentence that says what is wrong with them.
pub fn from_value(value: &Value) -> Result<Vec<(String, Vec<u8>)>, String> {
    let Value::Table(table) = value else {
        return Err(format!("headers must be a table, got {}", type_name(value)));
    };
    let mut headers = Vec::new();
    for pair in table.pairs::<Value, Value>() {
        let (name, value) = pair.map_err(|error| error.to_string())?;
        let Value::String(name) = &name else {
            return Err(format!("headers must have string keys, got a {}", type_name(&name)));
        };
        let Ok(name) = name.to_str().map(|name| name.to_owned()) else {
            return Err("headers must have UTF-8 names".to_owned());
        };
        push(&mut headers, name, &value)?;
    }
    // A table has no order of its own. The sort is stable, so an array keeps its order.
    headers.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(headers)
}

fn push(headers: &mut Vec<(String, Vec<u8>)>, name: String, value: &Value) -> Result<(), String> {
    let wrong = |value: &Value| {
        Err(format!("header {name:.100} must be a string, a number or an array of strings, got {}", type_name(value)))
    };
    match value {
        Value::String(text) => headers.push((name, text.as_bytes().to_vec())),
        Value::Integer(number) => headers.push((name, number.to_string().into_bytes())),
        Value::Number(number) => headers.push((name, number.to_string().into_bytes())),
        Value::Table(values) => {
            for value in values.sequence_values::<Value>() {
                let value = value.map_err(|error| error.to_string())?;
                let Value::String(text) = &value else { return wrong(&value) };
                headers.push((name.clone(), text.as_bytes().to_vec()));
            }
        }
        other => return wrong(other),
    }
    Ok(())
}
