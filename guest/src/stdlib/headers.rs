//! Header lists: as the contract has them, and as a script does.

use std::borrow::Cow;

use mlua::Value;
use neoc_abi::secret::Template;
use serde_bytes::ByteBuf;

use super::{arguments::type_name, secret};
use crate::plain::{Field, Plain};

/// Most bytes of all names and values that a script may give.
const MAX_BYTES: usize = 64 * 1024;

/// Headers by their lower-case names, as a script's table has them; repeated ones joined by a comma and a space.
pub type Joined<'a> = Vec<(&'a str, Cow<'a, [u8]>)>;

/// Joins what is repeated. Of the few headers that the host lets pass, each is looked for among those before it.
pub fn joined<'a>(headers: impl ExactSizeIterator<Item = (&'a str, &'a [u8])>) -> Joined<'a> {
    let mut joined = Joined::with_capacity(headers.len());
    for (name, value) in headers {
        match joined.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => {
                let values = values.to_mut();
                values.extend_from_slice(b", ");
                values.extend_from_slice(value);
            }
            None => joined.push((name, Cow::Borrowed(value))),
        }
    }
    joined
}

/// The fields of a script's table of headers.
pub fn fields<'a>(joined: &'a Joined<'_>) -> Vec<Field<'a>> {
    joined.iter().map(|(name, value)| (*name, Plain::String(value))).collect()
}

/// Headers as a script gives them, sorted by name.
#[derive(Debug, Default)]
pub struct Headers {
    /// Whose values are known.
    pub plain: Vec<(String, ByteBuf)>,
    /// Whose values have secrets in them.
    pub secret: Vec<(String, Template)>,
}

/// Headers for a client of the script's: no secret is for it.
///
/// # Errors
/// As [`from_value`], and for a secret.
pub fn plain(value: &Value) -> Result<Vec<(String, ByteBuf)>, String> {
    let Headers { plain, secret } = from_value(value)?;
    match secret.first() {
        None => Ok(plain),
        Some((name, _)) => Err(format!("header {name:.100}: a secret goes to the origins that it is bound to alone")),
    }
}

/// A table of name to a string, a number, an array of strings, or a secret. Whether a name or a value is legal
/// is for the host to judge.
///
/// # Errors
/// A sentence that says what is wrong with them.
pub fn from_value(value: &Value) -> Result<Headers, String> {
    let Value::Table(table) = value else {
        return Err(format!("headers must be a table, got {}", type_name(value)));
    };
    let (mut headers, mut room) = (Headers::default(), MAX_BYTES);
    for pair in table.pairs::<Value, Value>() {
        let (name, value) = pair.map_err(|error| error.to_string())?;
        let Value::String(name) = &name else {
            return Err(format!("headers must have string keys, got a {}", type_name(&name)));
        };
        let Ok(name) = name.to_str() else { return Err("headers must have UTF-8 names".to_owned()) };
        push(&mut headers, &mut room, &name, &value)?;
    }
    // A table has no order of its own. The sort is stable, so an array keeps its order.
    headers.plain.sort_by(|(left, _), (right, _)| left.cmp(right));
    headers.secret.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(headers)
}

fn push(headers: &mut Headers, room: &mut usize, name: &str, value: &Value) -> Result<(), String> {
    let wrong = |value: &Value| {
        Err(format!("header {name:.100} must be a string, a number or an array of strings, got {}", type_name(value)))
    };
    let mut take = |bytes: usize| {
        // Before the copy is made. The empty ones cost something, too.
        let taken = name.len().saturating_add(bytes).saturating_add(1);
        *room = room.checked_sub(taken).ok_or_else(|| format!("headers must have at most {MAX_BYTES} bytes"))?;
        Ok::<_, String>(())
    };
    if let Some(template) = secret::template(value) {
        take(template.named_bytes())?;
        headers.secret.push((name.to_owned(), template));
        return Ok(());
    }
    let mut add = |value: &[u8]| {
        take(value.len())?;
        headers.plain.push((name.to_owned(), ByteBuf::from(value)));
        Ok::<_, String>(())
    };
    match value {
        Value::String(text) => add(&text.as_bytes()),
        Value::Integer(number) => add(number.to_string().as_bytes()),
        Value::Number(number) => add(number.to_string().as_bytes()),
        Value::Table(values) => {
            for value in values.sequence_values::<Value>() {
                let value = value.map_err(|error| error.to_string())?;
                let Value::String(text) = &value else { return wrong(&value) };
                add(&text.as_bytes())?;
            }
            Ok(())
        }
        other => wrong(other),
    }
}
