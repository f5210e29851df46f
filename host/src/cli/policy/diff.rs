//! `neoc policy diff`.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use clap::Args;

use super::recorded;
use crate::{
    cli::{self, load_policy, this_machine},
    policy::{
        Changes, Machine, Policy,
        call::{Call, NotAllowed},
    },
};

/// Arguments of `neoc policy diff`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The policy before.
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The policy after.
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// The audit file with the calls to judge.
    #[arg(long, value_name = "FILE")]
    audit: PathBuf,
}

/// Prints the calls that flip. Exit code 1 when one of them is refused by the new policy.
pub fn main(arguments: &Arguments) -> cli::Result {
    let (old, new) = (load_policy(&arguments.old)?, load_policy(&arguments.new)?);
    let changes = Changes::between(&old, &new);
    for (what, tenants) in [("added", changes.added), ("removed", changes.removed)] {
        for tenant in tenants {
            println!("tenant {tenant}: {what}");
        }
    }
    let mut calls: BTreeMap<(String, Option<String>, Call), u64> = BTreeMap::new();
    let recorded = recorded::read(&arguments.audit)?;
    for ((tenant, module, call, _), n) in recorded.calls {
        *calls.entry((tenant, module, call)).or_default() += n;
    }
    let machines = (this_machine(Some(&old.host))?, this_machine(Some(&new.host))?);
    let (mut n_refused, mut n_allowed) = (0, 0);
    for ((tenant, module, call), n) in &calls {
        let module = module.as_deref();
        let before = judge(&old, &machines.0, tenant, call, module);
        let after = judge(&new, &machines.1, tenant, call, module);
        match (before.is_ok(), after.is_ok()) {
            (true, false) => n_refused += n,
            (false, true) => n_allowed += n,
            _ => continue,
        }
        let words = |verdict: &Result<String, String>| match verdict {
            Ok(by) => format!("allowed by {by}"),
            Err(why) => format!("refused: {why}"),
        };
        println!("{tenant}: {n} x {call}: {} -> {}", words(&before), words(&after));
    }
    let n_calls: u64 = calls.values().sum();
    println!("{n_calls} calls: {n_refused} would be refused that were allowed, {n_allowed} allowed that were refused");
    if recorded.n_narrowed > 0 {
        println!(
            "{} calls were refused by what the script took from itself, and are under any policy",
            recorded.n_narrowed
        );
    }
    Ok(if n_refused > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// By which line a call is allowed, or why it is not and which line came nearest.
fn judge(
    policy: &Policy,
    machine: &Machine,
    tenant: &str,
    call: &Call,
    module: Option<&str>,
) -> Result<String, String> {
    let tenant = policy.tenant(tenant).ok_or("no such tenant")?;
    match call.judge_of(tenant, machine, module) {
        Ok(allowed) => Ok(allowed.rule.to_string()),
        Err(NotAllowed::Invalid(_)) => Err("invalid".to_owned()),
        Err(NotAllowed::Refused(refusal)) => {
            let rule = refusal.rule.as_ref().map_or("no rule".to_owned(), ToString::to_string);
            Err(format!("{}, {rule}", refusal.reason))
        }
    }
}
