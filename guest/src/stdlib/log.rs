//! `std:log`: lines for the operator, and `print`.

use mlua::Value;
use neoc_abi::log::Level;

use super::arguments::Arguments;
use super::{Answer, Body, Function, Module};
use crate::{host, scheduler};

/// The module. `print` is put among the globals by the prelude.
pub const MODULE: Module = Module {
    name: "std:log",
    functions: &[
        Function { name: "_print", body: Body::Local(|_, arguments| write(Level::Print, &arguments)) },
        Function { name: "_debug", body: Body::Local(|_, arguments| write(Level::Debug, &arguments)) },
        Function { name: "_info", body: Body::Local(|_, arguments| write(Level::Info, &arguments)) },
        Function { name: "_warn", body: Body::Local(|_, arguments| write(Level::Warn, &arguments)) },
        Function { name: "_error", body: Body::Local(|_, arguments| write(Level::Error, &arguments)) },
    ],
    luau: &[include_str!("log.luau")],
    constants: None,
};

/// The Luau part gives one string; see `log.luau`.
fn write(level: Level, arguments: &Arguments) -> Answer {
    if let Value::String(text) = &arguments.values[0] {
        host::log(scheduler::request(), level, &text.as_bytes());
    }
    Ok(Value::Nil)
}
