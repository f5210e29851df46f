//! `require` of a tenant's own modules: what a name means, which file it is, and its text compiled.
//!
//! | file | holds |
//! |---|---|
//! | [`path`] | names and paths, without aliases. Pure |
//! | [`luaurc`] | the aliases in a `.luaurc`. Pure |
//! | [`resolve`] | names with aliases. Pure |
//! | `require.luau` | who loads, who waits, what a module has returned |
//!
//! The host hands over texts and understands none of them. While a script is loaded it answers at once;
//! afterwards it may take its time, and the task waits as for any operation.

mod luaurc;
pub mod path;
mod resolve;

use mlua::chunk::ChunkMode;
use mlua::{Function as LuaFunction, Lua, Table, Value};
use neoc_abi::error::truncate_at_char;
use neoc_abi::event::ALONE;
use neoc_abi::module::{MAX_SOURCE_BYTES, Operation, Reply};
use neoc_abi::{Operation as AnyOperation, OperationError, Reply as AnyReply};

use crate::caller::{self, Rights};
use crate::failure::{self, Failure};
use crate::stdlib::arguments::Arguments;
use crate::stdlib::{self, Answer, Body, narrowing};
use crate::{host, memory, operation};
use resolve::{Configurations, Step};

/// How many modules may be loading inside one another in one task. Each level stands on the stack of the one
/// before.
const MAX_DEPTH: f64 = 64.0;

/// What a script is told a metatable is that it must not see.
const LOCKED: &str = "locked";

/// What `require.luau` is given, by name.
const FUNCTIONS: &[(&str, Body)] = &[
    ("scoped", Body::Local(scoped)),
    ("scoped_globals", Body::Local(scoped_globals)),
    ("narrowed", Body::Local(narrowed)),
    ("resolve", Body::Yields(|lua, arguments| Box::pin(resolve(lua, arguments)))),
    ("fetch", Body::Yields(|lua, arguments| Box::pin(fetch(lua, arguments)))),
];

/// The metatable of the tables that modules have their globals in.
struct GlobalsMetatable(Table);

/// What the tables of a scope are made from.
struct Shared {
    prelude: Table,
    /// The modules that are ours, as the whole tenant has them.
    builtin: Table,
}

/// Puts `require` among the globals; `builtin` holds the modules that are ours.
///
/// # Errors
/// When there is no memory for it.
pub fn install(lua: &Lua, prelude: &Table, builtin: &Table) -> mlua::Result<()> {
    let metatable = lua.create_table()?;
    metatable.raw_set("__index", lua.globals())?;
    metatable.set_readonly(true);
    lua.set_app_data(GlobalsMetatable(metatable));
    lua.set_app_data(Configurations::default());
    let functions = lua.create_table()?;
    for (name, body) in FUNCTIONS {
        functions.raw_set(*name, stdlib::wrap(lua, prelude, "require", body, &Rights::all())?)?;
    }
    lua.set_app_data(Shared { prelude: prelude.clone(), builtin: builtin.clone() });
    lua.load(include_str!("require.luau")).set_name("=[neoc]").call((prelude, functions, builtin))
}

/// Compiles source text. Bytecode never gets as far as Luau, which trusts it. A module has globals of its own,
/// as in Luau's other hosts; the script's are those of the VM.
///
/// # Errors
/// [`neoc_abi::ErrorKind::Invalid`] when the text is wrong, [`neoc_abi::ErrorKind::Limit`] when there is no
/// memory; the message begins with `name`.
pub fn compile(lua: &Lua, name: &str, source: &[u8], globals: Option<Table>) -> Result<LuaFunction, OperationError> {
    if source.len() > MAX_SOURCE_BYTES {
        let message = format!("{name}: the source has {} bytes, and {MAX_SOURCE_BYTES} is the most", source.len());
        return Err(OperationError::limit("source", message));
    }
    if source.first().is_some_and(|&first| first < 0x20 && !b"\t\n\r".contains(&first)) {
        return Err(OperationError::invalid(format!("{name}: not a source text")));
    }
    let mut chunk = lua.load(source).set_name(format!("={name}")).set_mode(ChunkMode::Text);
    if let Some(globals) = globals {
        chunk = chunk.set_environment(globals);
    }
    chunk.into_function().map_err(|error| {
        let message = failure::describe_error(&error);
        // Luau's compiler allocates beside the script's heap, by C++'s operator new; and there may be no memory
        // left to say that there is none.
        match message.as_str() {
            "std::bad_alloc" | "error in error handling" | "not enough memory" => {
                OperationError::limit("memory", format!("{name}: not enough memory to compile it"))
            }
            _ => OperationError::invalid(message),
        }
    })
}

/// The globals of a module: reads go through to those of the VM, writes stay here.
fn new_globals(lua: &Lua) -> mlua::Result<Table> {
    let globals = lua.create_table()?;
    let metatable = lua.app_data_ref::<GlobalsMetatable>().map(|metatable| metatable.0.clone());
    globals.set_metatable(metatable)?;
    // Nothing is in it yet that the compiled code could miss.
    globals.set_safeenv(true);
    Ok(globals)
}

/// Takes the requiring file and a name, gives the module.
async fn resolve(lua: Lua, arguments: Arguments) -> Answer {
    let requirer = arguments.text(0, "file")?;
    let name = arguments.text(1, "name")?;
    let module = resolve_name(&lua, &requirer, &name).await?;
    Ok(Value::String(lua.create_string(module)?))
}

/// Finds the module that a name means in a file.
///
/// # Errors
/// For a name that is refused, or that an alias leads nowhere; and as [`find`].
pub async fn resolve_name(lua: &Lua, requirer: &str, name: &str) -> Result<String, Failure> {
    loop {
        let step = match lua.app_data_ref::<Configurations>() {
            Some(known) => known.resolve(requirer, name)?,
            None => return Err(lost()),
        };
        let paths = match step {
            Step::Module(module) => return Ok(module),
            Step::LookFor(paths) => paths,
        };
        let (present, source) = find(paths.clone()).await?;
        match lua.app_data_mut::<Configurations>() {
            Some(mut known) => known.learn(&paths, &present, &source)?,
            None => return Err(lost()),
        }
    }
}

/// Takes a module and how deep it is nested; gives its file and its compiled body.
async fn fetch(lua: Lua, arguments: Arguments) -> Answer {
    let module = arguments.text(0, "module")?;
    if as_number(&arguments.values[1]) > MAX_DEPTH {
        let message = format!("require: {module}: modules require one another {MAX_DEPTH} deep, which is the most");
        return Err(OperationError::limit("module_depth", message).into());
    }
    let (file, source) = read(&lua, &module).await?;
    let globals = match &arguments.values[2] {
        Value::Table(globals) => globals.clone(),
        _ => new_globals(&lua)?,
    };
    let body = compile(&lua, &file, &source, Some(globals))
        .map_err(|error| OperationError { message: format!("require: {}", error.message), ..error })?;
    let found = lua.create_table()?;
    found.raw_set("path", file)?;
    found.raw_set("body", body)?;
    Ok(Value::Table(found))
}

/// Takes a scope; gives the modules that are ours, as it has them.
fn scoped(lua: &Lua, arguments: Arguments) -> Answer {
    let shared = lua.app_data_ref::<Shared>().map(|shared| (shared.prelude.clone(), shared.builtin.clone()));
    let Some((prelude, builtin)) = shared else { return Err(lost()) };
    // There are no more scopes than modules in a policy.
    let scope = as_number(&arguments.values[0]) as u32;
    Ok(Value::Table(stdlib::install_scope(lua, &prelude, &builtin, scope)?))
}

/// Takes the name of a module of ours, what a script narrows it to, and the scope of who asks; gives a table of its own.
fn narrowed(lua: &Lua, arguments: Arguments) -> Answer {
    let prelude = lua.app_data_ref::<Shared>().map(|shared| shared.prelude.clone());
    let Some(prelude) = prelude else { return Err(lost()) };
    let name = arguments.text(0, "name")?;
    let (module, kept) = narrowing::of_script(lua, &name, &arguments.values[1])?;
    let rights = Rights { narrowing: Some(kept), ..Rights::of_scope(as_number(&arguments.values[2]) as u32) };
    Ok(Value::Table(stdlib::table(lua, &prelude, module, &rights)?))
}

/// Takes a `require`, and what finds a global that is everybody's; gives globals for a module that has no other
/// `require`, whatever it does with its own.
fn scoped_globals(lua: &Lua, arguments: Arguments) -> Answer {
    let [require, everybodys, _] = arguments.values;
    let metatable = lua.create_table()?;
    metatable.raw_set("__index", everybodys)?;
    metatable.raw_set("__metatable", LOCKED)?;
    metatable.set_readonly(true);
    let globals = lua.create_table()?;
    globals.set_metatable(Some(metatable))?;
    // Luau looks up what compiled code names when it loads it, in the globals of the VM, and takes that for the
    // module's own as long as its globals are safe.
    globals.set_safeenv(false);
    globals.raw_set("require", require)?;
    globals.raw_set("_G", globals.clone())?;
    Ok(Value::Table(globals))
}

/// Reads a module: its file and its text.
///
/// # Errors
/// When no file or more than one could be it; when there is no memory for it; and as [`find`].
pub async fn read(lua: &Lua, module: &str) -> Result<(String, Vec<u8>), Failure> {
    // The longest answer, and the text in it.
    memory::reserve(lua, 2 * MAX_SOURCE_BYTES)
        .map_err(|_| OperationError::limit("memory", format!("require: {module}: not enough memory to load it")))?;
    let candidates = path::candidates(module);
    let (present, source) = find(candidates.clone()).await?;
    Ok((the_one(module, &candidates, &present)?.to_owned(), source))
}

/// Whether a name is for a module of the tenant's own, as far as its first character tells.
pub fn is_own(name: &str) -> bool {
    name.starts_with("./") || name.starts_with("../") || name.starts_with('@') || name.starts_with('/')
}

/// Says that there is no such module of ours.
pub fn no_such_module(name: &str) -> String {
    let mut names: Vec<&str> = stdlib::MODULES.iter().map(|module| module.name).collect();
    names.sort_unstable();
    let mut given = name.to_owned();
    truncate_at_char(&mut given, 100);
    format!("require: no module \"{given}\"; there are {}, and your own under ./, ../ or @", names.join(", "))
}

/// The file that a module is in, of those that could be it.
fn the_one<'a>(module: &str, candidates: &'a [String], present: &[u32]) -> Result<&'a str, OperationError> {
    let files: Vec<&str> =
        present.iter().filter_map(|index| candidates.get(usize::try_from(*index).ok()?)).map(String::as_str).collect();
    match files[..] {
        [file] => Ok(file),
        [] => {
            let mut message = format!("require: no module {module:?}; looked for {}", candidates.join(", "));
            if module.ends_with(".luau") || module.ends_with(".lua") {
                message.push_str("; a module is named without its extension");
            }
            Err(OperationError::io(message))
        }
        _ => {
            let message = format!("require: {module:?} could be any of {}; there must be one only", files.join(", "));
            Err(OperationError::invalid(message))
        }
    }
}

/// Asks the host which files there are; with the text of the first.
async fn find(paths: Vec<String>) -> Result<(Vec<u32>, Vec<u8>), Failure> {
    let operation = AnyOperation::Module(Operation::Find { paths });
    let outcome = if operation::check_open("require").is_ok() {
        operation::perform_in_line("require", operation).await
    } else {
        // A script is being loaded: there is no task that could wait, and the host answers at once.
        host::submit(ALONE, 0, &caller::call(operation))
            .unwrap_or_else(|| Err(OperationError::io("require: the host gave no answer")))
    };
    match outcome? {
        AnyReply::Module(Reply::Found { present, source }) => Ok((present, source)),
        _ => Err(stdlib::mismatched_reply()),
    }
}

fn as_number(value: &Value) -> f64 {
    match *value {
        Value::Integer(number) => number as f64,
        Value::Number(number) => number,
        _ => 0.0,
    }
}

fn lost() -> Failure {
    OperationError::io("require: the VM has lost what it is made from").into()
}
