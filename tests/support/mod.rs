//! A running host, a sandbox without a host, an HTTP client, and what there is at the other end of a connection:
//! upstreams good and bad, echoes, name servers, tripwires; what every refusal says, and what its fix does.

pub mod client;
pub mod dns;
pub mod echo;
pub mod host;
pub mod hostile;
pub mod neighbours;
mod packed;
pub mod pastes;
pub mod refusals;
pub mod runs;
pub mod sandbox;
pub mod tripwire;
pub mod upstream;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// How long a test waits for what should happen at once. Generous: only a failing test takes it.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// The program under test. Its compiled image is cached below the build folder, so that only the
/// first test of a fresh clone compiles it.
pub fn neoc() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_neoc"));
    command.env("NEOC_CACHE_DIR", cache_dir()).env_remove("NEOC_LOG").env_remove("RUST_BACKTRACE");
    command
}

pub fn cache_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("neoc-cache")
}

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub struct Output {
    pub exit: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end. All that a `neoc run` has refused is looked at, see [`refusals`].
pub fn output(command: &mut Command) -> Output {
    let run = runs::Run::of(command);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Output {
        exit: output.status.code().expect("the program ended by a signal"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: run.map_or(stderr.clone(), |run| run.check(&stderr)),
    }
}

/// This machine, with a host that listens there.
pub fn machine(listener: Option<std::net::SocketAddr>) -> neoc::policy::Machine {
    let interfaces = if_addrs::get_if_addrs().unwrap();
    neoc::policy::Machine::new(interfaces.iter().map(if_addrs::Interface::ip), listener)
}

/// Waits until something has happened elsewhere. Fails the test when it does not happen at all.
pub fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !happened() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Runs a script from its text, without a policy.
pub fn run_script(source: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("script.luau"), source).unwrap();
    output(neoc().current_dir(folder.path()).args(["run", "script.luau"]).args(arguments))
}
