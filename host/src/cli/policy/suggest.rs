//! `neoc policy suggest`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::recorded;
use crate::{
    audit::record::Outcome,
    cli::{self, load_policy, this_machine},
    policy::{Policy, Tenant, suggest::Suggestion},
};

/// Arguments of `neoc policy suggest`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The audit file.
    #[arg(long, value_name = "FILE")]
    audit: PathBuf,
    /// The policy to add to: only what it refuses is printed. Without one, all that was recorded.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// Prints TOML to put at the end of a policy file.
pub fn main(arguments: &Arguments) -> cli::Result {
    let policy = arguments.policy.as_deref().map(load_policy).transpose()?;
    let recorded = recorded::read(&arguments.audit)?;
    let machine = this_machine(policy.as_ref().map(|policy| &policy.host))?;
    let mut suggestion = Suggestion::default();
    for ((tenant, module, call, outcome), n) in &recorded.calls {
        // What was allowed under the policy that is given needs nothing more of it.
        if policy.is_none() || *outcome != Outcome::Allow {
            suggestion.add(&known_or_new(policy.as_ref(), tenant), &machine, call, module.as_deref(), *n);
        }
    }
    for ((tenant, limit), n) in &recorded.limits {
        suggestion.limit_hit(tenant, limit, *n);
    }
    print!("{}", suggestion.to_toml());
    Ok(ExitCode::SUCCESS)
}

fn known_or_new(policy: Option<&Policy>, name: &str) -> Tenant {
    let known = policy.and_then(|policy| policy.tenant(name));
    known.map_or_else(|| Tenant::without_grants(name, ""), |tenant| Tenant::clone(tenant))
}
