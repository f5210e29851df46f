//! `std:secret`: the operator's secrets, to be used and never read. What a script holds is a name; the host puts
//! the value into a request on its way out, for the origins that the secret is bound to.

use mlua::{MetaMethod, UserData, UserDataFields, UserDataMethods, Value};
use neoc_abi::OperationError;
use neoc_abi::secret::{MAX_NAME_BYTES, MAX_PIECES, Piece, Template, is_name};

use super::arguments::Arguments;
use super::{Answer, Body, Function, Module};
use crate::failure::Failure;

/// Longest text between two secrets, and longest user, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// The module.
pub const MODULE: Module = Module {
    name: "std:secret",
    functions: &[
        Function { name: "get", body: Body::Local(|_, arguments| get(&arguments)) },
        Function { name: "format", body: Body::Local(|_, arguments| format_text(&arguments)) },
        Function { name: "basic", body: Body::Local(|_, arguments| basic(&arguments)) },
    ],
    luau: &[],
    constants: None,
};

/// What a script holds of a secret, or of a text with secrets in it.
struct Handle(Template);

impl UserData for Handle {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_meta_field(MetaMethod::Type, "secret");
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_method(MetaMethod::ToString, |_, Self(template), ()| {
            Ok(format!("secret {}", template.secrets().collect::<Vec<_>>().join(", ")))
        });
    }
}

/// What a handle stands for. None: the value is no handle.
pub fn template(value: &Value) -> Option<Template> {
    let Value::UserData(handle) = value else { return None };
    handle.borrow::<Handle>().ok().map(|handle| handle.0.clone())
}

fn get(arguments: &Arguments) -> Answer {
    let name = arguments.text(0, "name")?;
    if !is_name(&name) {
        let rule = format!("a secret's name is 1 to {MAX_NAME_BYTES} of a-z, 0-9, _ and -, got {name:.100}");
        return Err(invalid(arguments, &rule).into());
    }
    handle(arguments, vec![Piece::Secret(name)])
}

/// Fills the `%s` of a pattern with handles, one or two.
fn format_text(arguments: &Arguments) -> Answer {
    let pattern = short(arguments, 0, "pattern")?;
    let mut given = arguments.values[1..].iter().filter(|value| !value.is_nil());
    let (mut pieces, mut text) = (Vec::new(), String::new());
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        match (character, (character == '%').then(|| characters.next()).flatten()) {
            ('%', Some('%')) => text.push('%'),
            ('%', Some('s')) => {
                let value = given.next().ok_or_else(|| invalid(arguments, "there are more %s than secrets"))?;
                let Template { pieces: filled } = template(value).ok_or_else(|| not_a_secret(arguments, value))?;
                push_text(&mut pieces, &mut text);
                pieces.extend(filled);
            }
            ('%', _) => {
                return Err(invalid(arguments, "a pattern has %s for a secret and %% for a percent sign").into());
            }
            (other, _) => text.push(other),
        }
    }
    push_text(&mut pieces, &mut text);
    if given.next().is_some() {
        return Err(invalid(arguments, "there are more secrets than %s").into());
    }
    handle(arguments, pieces)
}

/// The value of an `authorization` header for a user and a secret as the password.
fn basic(arguments: &Arguments) -> Answer {
    let user = short(arguments, 0, "user")?;
    if user.contains(':') || user.chars().any(char::is_control) {
        return Err(invalid(arguments, "a user has no colon and no control character").into());
    }
    match template(&arguments.values[1]).as_ref().map(|template| template.pieces.as_slice()) {
        Some([Piece::Secret(secret)]) => {
            let secret = secret.clone();
            handle(arguments, vec![Piece::Text(b"Basic ".to_vec()), Piece::Basic { user, secret }])
        }
        _ => Err(not_a_secret(arguments, &arguments.values[1]).into()),
    }
}

fn handle(arguments: &Arguments, pieces: Vec<Piece>) -> Answer {
    let template = Template { pieces };
    if template.secrets().next().is_none() {
        return Err(invalid(arguments, "there is no %s for a secret").into());
    }
    if template.pieces.len() > MAX_PIECES {
        return Err(invalid(arguments, &format!("a text has at most {MAX_PIECES} pieces")).into());
    }
    Ok(Value::UserData(arguments.lua.create_userdata(Handle(template))?))
}

fn push_text(pieces: &mut Vec<Piece>, text: &mut String) {
    if !text.is_empty() {
        pieces.push(Piece::Text(std::mem::take(text).into_bytes()));
    }
}

fn short(arguments: &Arguments, index: usize, name: &str) -> Result<String, Failure> {
    let text = arguments.text(index, name)?;
    if text.len() > MAX_TEXT_BYTES {
        return Err(invalid(arguments, &format!("{name} must have at most {MAX_TEXT_BYTES} bytes")).into());
    }
    Ok(text)
}

fn invalid(arguments: &Arguments, rule: &str) -> OperationError {
    OperationError::invalid(format!("{}: {rule}", arguments.api))
}

fn not_a_secret(arguments: &Arguments, value: &Value) -> OperationError {
    arguments.mismatch("secret", "a secret from secret.get", value)
}
