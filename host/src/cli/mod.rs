//! The command line: one file per verb.

mod check;
mod drawing;
mod host;
mod logging;
mod policy;
mod policy_files;
mod reload;
mod run;

use std::{
    env,
    error::Error,
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    capability::connect::own_addresses,
    policy::{Host, Machine, PolicyErrors},
};
pub use policy_files::load_policy;

/// Runs untrusted Luau scripts in a sandbox, each allowed only what its policy says.
#[derive(Debug, Parser)]
#[command(name = "neoc", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the tenants of a policy over HTTP, until SIGTERM or SIGINT.
    Host(host::Arguments),
    /// Run one script to its end, in the same sandbox.
    Run(run::Arguments),
    /// Ask what a policy allows, or would allow.
    #[command(subcommand)]
    Policy(policy::Verb),
    /// Say all that is wrong with a policy and its scripts, and run nothing. Exit code 0: no error, though there may be
    /// warnings; 1: errors, or warnings with --deny-warnings.
    Check(check::Arguments),
}

/// What a verb ends with: an exit code, or an error to print.
type Result = std::result::Result<ExitCode, Box<dyn Error>>;

/// Parses the arguments, runs the verb, prints its error.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Host(arguments) => host::main(&arguments),
        Verb::Policy(verb) => policy::main(&verb),
        Verb::Run(arguments) => run::main(arguments),
        Verb::Check(arguments) => check::main(&arguments),
    };
    result.unwrap_or_else(|error| {
        report(&*error);
        ExitCode::FAILURE
    })
}

/// Prints an error and its causes to standard error.
fn report(error: &(dyn Error + 'static)) {
    if let Some(errors) = error.downcast_ref::<PolicyErrors>() {
        eprintln!("{}", drawing::draw(errors, is_styled()));
        return;
    }
    eprintln!("{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because {error}");
        cause = error.source();
    }
}

/// This machine, and where a host of it listens, if there is one.
fn this_machine(host: Option<&Host>) -> std::result::Result<Machine, Box<dyn Error>> {
    let addresses = own_addresses().map_err(|error| format!("cannot list the addresses of this machine: {error}"))?;
    Ok(Machine::new(addresses, host.map(|host| host.listen)))
}

/// Whether standard error takes colours.
fn is_styled() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Where compiled images are kept when the policy does not say.
fn default_cache_dir() -> PathBuf {
    let from = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("NEOC_CACHE_DIR")
        .or_else(|| Some(from("XDG_CACHE_HOME")?.join("neoc")))
        .or_else(|| Some(from("HOME")?.join(".cache/neoc")))
        .unwrap_or_else(|| env::temp_dir().join("neoc-cache"))
}
