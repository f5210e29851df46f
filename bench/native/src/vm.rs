//! A native Luau VM with a handler, and the two calls that the measured handlers make.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mlua::{
    Function, Lua, Table,
    chunk::{ChunkMode, Compiler},
};

thread_local! {
    /// One pool of connections for all VMs.
    static CLIENT: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
}

/// A VM whose script has run, with the handler that it returned.
pub struct Vm {
    lua: Lua,
    handler: Function,
}

/// A VM as a program gets it. Luau only takes its fast paths for builtins in a sandboxed VM.
pub fn sandboxed() -> mlua::Result<Lua> {
    let lua = Lua::new();
    lua.globals().set("require", lua.create_function(require)?)?;
    lua.sandbox(true)?;
    Ok(lua)
}

/// Compiles a handler's script.
pub fn compile(source: &[u8]) -> mlua::Result<Vec<u8>> {
    Compiler::new().compile(source)
}

// === impl Vm ===

impl Vm {
    /// Makes a VM and runs the script in it.
    pub fn load(bytecode: &[u8]) -> mlua::Result<Self> {
        let lua = sandboxed()?;
        let handler = lua.load(bytecode).set_mode(ChunkMode::Binary).eval()?;
        Ok(Self { lua, handler })
    }

    /// Calls the handler.
    pub async fn answer(&self, request: &Parts) -> mlua::Result<String> {
        let table = self.lua.create_table()?;
        table.set("method", request.method.as_str())?;
        table.set("path", request.uri.path())?;
        let headers = self.lua.create_table()?;
        for (name, value) in &request.headers {
            headers.set(name.as_str(), self.lua.create_string(value.as_bytes())?)?;
        }
        table.set("headers", headers)?;
        self.handler.call_async(table).await
    }
}

/// The modules under the names that they have in neoc, so that both run the same scripts.
fn require(lua: &Lua, name: String) -> mlua::Result<Table> {
    let module = lua.create_table()?;
    match name.as_str() {
        "vnd:hyper" => module.set("get", lua.create_async_function(get)?)?,
        "std:task" => module.set("wait", lua.create_async_function(wait)?)?,
        _ => return Err(mlua::Error::runtime(format!("no module {name}"))),
    }
    Ok(module)
}

async fn get(lua: Lua, url: String) -> mlua::Result<Table> {
    let url = url.parse().map_err(mlua::Error::external)?;
    let answer = CLIENT.with(|client| client.get(url)).await.map_err(mlua::Error::external)?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(mlua::Error::external)?.to_bytes();
    let table = lua.create_table()?;
    table.set("status", status)?;
    table.set("body", lua.create_string(&body)?)?;
    Ok(table)
}

async fn wait(_: Lua, seconds: f64) -> mlua::Result<()> {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    Ok(())
}
