//! `require("std:kv", { prefix = "a:" })`: a module's table that can do less, for good.
//!
//! What the script gives is copied as it is then, past all metatables. The host says whether it makes sense, and
//! judges each call by it; here it is only kept, as one string of the VM, where no script can reach or change it.

use mlua::{Lua, LuaString, Table, Value};
use neoc_abi::event::ALONE;
use neoc_abi::narrowing::{Given, MAX_BYTES, MAX_KEYS, MAX_PATTERNS, Narrowing, Operation, Reply};
use neoc_abi::{Operation as AnyOperation, OperationError, Reply as AnyReply, wire};

use super::arguments::text;
use super::{Module, fs, hyper, kv, net};
use crate::failure::Failure;
use crate::{caller, host, memory, operation};

/// Modules whose calls have something that a script can name.
const NARROWABLE: &[&Module] = &[&hyper::MODULE, &net::MODULE, &fs::MODULE, &kv::MODULE];

/// Takes what a script gave `require` beside the name of a module of ours; gives the module, and what its functions
/// are to keep.
///
/// # Errors
/// Of kind `invalid`, when it is no narrowing of this module, and what the host answers.
pub fn of_script(lua: &Lua, name: &str, given: &Value) -> Result<(&'static Module, LuaString), Failure> {
    let Some(module) = NARROWABLE.iter().find(|module| module.name == name) else {
        return Err(OperationError::invalid(format!("require: {name} takes no second argument")).into());
    };
    let Value::Table(table) = given else {
        let problem = super::arguments::mismatch("require", "the second argument", "a table", given);
        return Err(problem.into());
    };
    let narrowing = read(name, table)?;
    ask(name, narrowing.clone())?;
    let bytes = wire::encode(&narrowing).map_err(|_| OperationError::invalid("require: it cannot be written"))?;
    Ok((module, memory::string(lua, &bytes)?))
}

/// What a function keeps, for one of its calls.
pub fn of_function(kept: &LuaString) -> Option<Narrowing> {
    // It was written here.
    wire::decode(&kept.as_bytes()).ok()
}

fn read(name: &str, table: &Table) -> Result<Narrowing, Failure> {
    let api = format!("require: {name}");
    let mut left = MAX_BYTES;
    let mut fields = Vec::new();
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        let key = copy(&api, "a key", &key, &mut left)?;
        let given = match &value {
            Value::String(_) => Given::Text(copy(&api, &key, &value, &mut left)?),
            Value::Table(list) => read_list(&api, &key, list, &mut left)?,
            _ => Given::Other,
        };
        fields.push((key, given));
        if fields.len() > MAX_KEYS {
            break;
        }
    }
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    let narrowing = Narrowing { fields };
    narrowing.check_size().map_err(|much| OperationError::invalid(format!("{api}: {much}")))?;
    Ok(narrowing)
}

/// A list of strings, up to one too many; anything else is for the host to name.
fn read_list(api: &str, key: &str, list: &Table, left: &mut usize) -> Result<Given, Failure> {
    let n = list.raw_len().min(MAX_PATTERNS + 1);
    let n_fields = list.pairs::<Value, Value>().take(n + 1).count();
    let mut texts = Vec::with_capacity(n);
    for index in 1..=n {
        match list.raw_get(index)? {
            value @ Value::String(_) => texts.push(copy(api, key, &value, left)?),
            _ => return Ok(Given::Other),
        }
    }
    Ok(if n_fields > n && n <= MAX_PATTERNS { Given::Other } else { Given::Texts(texts) })
}

/// A string of the script's, if it is not too long to be looked at.
fn copy(api: &str, name: &str, value: &Value, left: &mut usize) -> Result<String, Failure> {
    let n_bytes = value.as_string().map_or(0, |text| text.as_bytes().len());
    *left = left
        .checked_sub(n_bytes)
        .ok_or_else(|| OperationError::invalid(format!("{api}: at most {MAX_BYTES} bytes in all")))?;
    Ok(text(api, name, value)?)
}

/// Asks the host whether the module can be narrowed so. It answers at once, while a script is loaded too.
fn ask(name: &str, narrowing: Narrowing) -> Result<(), Failure> {
    let question = AnyOperation::Narrow(Operation::Check { module: name.to_owned(), narrowing });
    let outcome = if operation::check_open("require").is_ok() {
        operation::perform_at_once("require", question)
    } else {
        host::submit(ALONE, 0, &caller::call(question))
            .unwrap_or_else(|| Err(OperationError::io("require: the host gave no answer")))
    };
    match outcome? {
        AnyReply::Narrow(Reply::Checked) => Ok(()),
        _ => Err(super::mismatched_reply()),
    }
}
