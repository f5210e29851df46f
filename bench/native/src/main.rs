//! What neoc is measured against: native Luau, and the upstream that both call.
//!
//! | command | does |
//! |---|---|
//! | `native run LEVEL FILE` | runs a program, compiled at optimisation level 0 to 2 |
//! | `native serve-bare PORT` | answers `hello PATH` from Rust: what HTTP costs without a script |
//! | `native serve-shared PORT FILE N` | N VMs with the handler loaded; the first one serves every request |
//! | `native serve-fresh PORT FILE` | a new VM for every request, from bytecode compiled once |
//! | `native upstream PORT DELAY_MS` | answers after the delay |
//!
//! One thread each. There is no sandbox, no limit and no check in any of them.

mod server;
mod vm;

use std::{env, error::Error, fs, net::Ipv4Addr, rc::Rc, time::Duration};

use mlua::chunk::Compiler;
use tokio::{net::TcpListener, task::LocalSet};

use server::Answerer;
use vm::Vm;

const USAGE: &str = "usage: native run LEVEL FILE | serve-bare PORT | serve-shared PORT FILE N | \
                     serve-fresh PORT FILE | upstream PORT DELAY_MS";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["run", level, file] => run(level.parse()?, file),
        ["serve-bare", port] => serve(port, Answerer::Bare).await,
        ["serve-shared", port, file, n_vms] => {
            let bytecode = vm::compile(&fs::read(file)?)?;
            let vms = (0..n_vms.parse()?).map(|_| Vm::load(&bytecode)).collect::<mlua::Result<_>>()?;
            serve(port, Answerer::Shared(vms)).await
        }
        ["serve-fresh", port, file] => serve(port, Answerer::Fresh(vm::compile(&fs::read(file)?)?)).await,
        ["upstream", port, delay_ms] => serve(port, Answerer::Upstream(Duration::from_millis(delay_ms.parse()?))).await,
        _ => Err(USAGE.into()),
    }
}

/// Runs a program to its end.
fn run(level: u8, file: &str) -> Result<(), Box<dyn Error>> {
    let lua = vm::sandboxed()?;
    lua.set_compiler(Compiler::new().set_optimization_level(level));
    lua.load(fs::read(file)?).set_name(format!("@{file}")).exec()?;
    Ok(())
}

async fn serve(port: &str, answerer: Answerer) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse()?)).await?;
    LocalSet::new().run_until(server::serve(listener, Rc::new(answerer))).await?;
    Ok(())
}
