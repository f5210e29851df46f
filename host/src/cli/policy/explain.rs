//! `neoc policy explain`.

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use clap::Args;

use crate::{
    cli::{self, load_policy, this_machine},
    policy::call::{Call, NotAllowed},
};

/// What is no call, or of no tenant.
const BAD_USAGE: u8 = 2;

/// Arguments of `neoc policy explain`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The policy file.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Who calls.
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// The address that the host's name leads to. Without it, the address of a name is not judged.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// The module of the tenant's that calls, by the path that it has in the policy. Without it, any that is not there.
    #[arg(long, value_name = "PATH")]
    module: Option<String>,
    /// The call, such as 'http GET https://api.example.com/v1', 'fs read /data/a.txt' or 'kv get visits'.
    #[arg(value_name = "CALL")]
    call: String,
}

/// Says yes or no on standard output, with the line that decides, and what would allow it.
pub fn main(arguments: &Arguments) -> cli::Result {
    let policy = load_policy(&arguments.policy)?;
    let usage = |problem: String| {
        eprintln!("{problem}");
        Ok(ExitCode::from(BAD_USAGE))
    };
    let Some(tenant) = policy.tenant(&arguments.tenant) else {
        let names: Vec<_> = policy.tenants.iter().take(20).map(|tenant| tenant.name.as_str()).collect();
        return usage(format!("no tenant {:?}; there are {}", arguments.tenant, names.join(", ")));
    };
    if let Some(path) = &arguments.module
        && !tenant.modules.iter().any(|module| module.path == *path)
    {
        let paths: Vec<_> = tenant.modules.iter().map(|module| module.path.as_str()).collect();
        return usage(format!("the tenant has no table of a module {path:?}; there are {}", paths.join(", ")));
    }
    let call = match Call::parse(&arguments.call) {
        Ok(call) => call.at(arguments.address),
        Err(problem) => return usage(problem),
    };
    match call.judge_of(tenant, &this_machine(Some(&policy.host))?, arguments.module.as_deref()) {
        Ok(allowed) => {
            println!("allowed: {call}\nby {}", allowed.rule);
            if allowed.is_address_open {
                println!("each address that the name has is judged when it is dialled; --address asks about one");
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(NotAllowed::Invalid(problem)) => usage(format!("{call}: {problem}")),
        Err(NotAllowed::Refused(refusal)) => {
            println!("refused: {}", refusal.operator_detail());
            match refusal.operator_fix() {
                Some(fix) => {
                    println!("this, at the end of the file that has the tenant, allows it:\n\n{}", fix.trim_end())
                }
                None => println!("no rule can allow it"),
            }
            Ok(ExitCode::FAILURE)
        }
    }
}
