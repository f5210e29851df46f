//! `neoc check`: all that is wrong with a policy and its scripts.
//!
//! | found | is | exit code |
//! |---|---|---|
//! | a broken policy, a script that does not compile, a module that is not there | an error | 1 |
//! | a call with a literal that the policy refuses, a module without a grant | a warning | 0, or 1 with `--deny-warnings` |
//! | a URL that would be refused if it is called | a note | 0 |

mod finding;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, sync::Arc};

use annotate_snippets::Level;
use clap::Args;

use self::finding::{Finding, Severity};
use super::{
    default_cache_dir,
    drawing::{Drawing, draw_one},
    is_styled, load_policy, logging, this_machine,
};
use crate::{
    policy,
    runtime::{GUEST, Runtime, Settings},
    tenant::Tenant,
};

/// VMs of one command; scripts are compiled one after the other.
const INSTANCES: u32 = 2;

/// Most findings of one tenant that are drawn, of errors and of the rest.
const MAX_DRAWN: usize = 100;

/// Arguments of `neoc check`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The policy file.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Exit with 1 for warnings, too. Notes are none.
    #[arg(long)]
    deny_warnings: bool,
}

/// What was found.
#[derive(Debug, Default)]
struct Tally {
    n_scripts: usize,
    n_errors: usize,
    n_warnings: usize,
    n_notes: usize,
}

/// Checks. Exit code 1, and each problem on standard error, when something is wrong.
pub fn main(arguments: &Arguments) -> super::Result {
    let _guard = logging::start(logging::Format::Terse);
    let policy = load_policy(&arguments.policy)?;
    let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let cache_dir = policy.host.cache_dir.clone().unwrap_or_else(default_cache_dir);
    let preemption = policy.host.preemption;
    let settings = Settings { instances: INSTANCES, workers: None, cache_dir, preemption, guest: GUEST.into() };
    let runtime = Arc::new(Runtime::start(&settings, io.handle())?);
    let machine = this_machine(Some(&policy.host))?;
    let mut tally = Tally::default();
    io.block_on(async {
        for tenant in &policy.tenants {
            match Tenant::survey(tenant, &policy.host.data_dir, &runtime).await {
                Ok(survey) => {
                    tally.n_scripts += usize::try_from(survey.n_files).unwrap_or(usize::MAX);
                    let is_cut = survey.is_cut;
                    tally.report(tenant, finding::judge(tenant, &machine, survey));
                    if is_cut {
                        eprintln!("tenant.{}: its scripts hold more than is looked at\n", tenant.name);
                    }
                }
                Err(problem) => {
                    eprintln!("{}: {problem}", arguments.policy.display());
                    tally.n_errors += 1;
                }
            }
        }
    });
    io.shutdown_background();
    let Tally { n_scripts, n_errors, n_warnings, .. } = tally;
    let counts = format!(
        "{}: {} tenant{}, {n_scripts} script{}, {}",
        arguments.policy.display(),
        policy.tenants.len(),
        plural(policy.tenants.len()),
        plural(n_scripts),
        tally.shown()
    );
    if n_errors > 0 || n_warnings > 0 && arguments.deny_warnings {
        eprintln!("{counts}");
        return Ok(ExitCode::FAILURE);
    }
    println!("{counts}");
    Ok(ExitCode::SUCCESS)
}

// === impl Tally ===

impl Tally {
    /// Counts the findings of a tenant, and draws the first of them.
    fn report(&mut self, tenant: &policy::Tenant, findings: Vec<Finding>) {
        let mut n_left_out = BTreeMap::new();
        let (mut n_errors, mut n_others) = (0, 0);
        for finding in findings {
            let (total, drawn) = match finding.severity {
                Severity::Error => (&mut self.n_errors, &mut n_errors),
                Severity::Warning => (&mut self.n_warnings, &mut n_others),
                Severity::Note => (&mut self.n_notes, &mut n_others),
            };
            *total += 1;
            if *drawn < MAX_DRAWN {
                *drawn += 1;
                eprint!("{}", draw_one(drawing(tenant, finding), is_styled()));
            } else {
                *n_left_out.entry(finding.severity).or_insert(0_usize) += 1;
            }
        }
        if !n_left_out.is_empty() {
            let count = |severity| n_left_out.get(&severity).copied().unwrap_or_default();
            let rest = Self {
                n_scripts: 0,
                n_errors: count(Severity::Error),
                n_warnings: count(Severity::Warning),
                n_notes: count(Severity::Note),
            };
            eprintln!("tenant.{}: and {} more\n", tenant.name, rest.shown());
        }
    }

    /// Such as `1 error, 2 warnings`.
    fn shown(&self) -> String {
        let counts = [(self.n_errors, "error"), (self.n_warnings, "warning"), (self.n_notes, "note")];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        let shown: Vec<_> = counts.map(|(count, what)| format!("{count} {what}{}", plural(count))).collect();
        if shown.is_empty() { "no problems".to_owned() } else { shown.join(", ") }
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn drawing(tenant: &policy::Tenant, finding: Finding) -> Drawing {
    let (file, snippet) = (finding.file(&tenant.script), finding.snippet());
    let Finding { spot, severity, title, note, help } = finding;
    Drawing {
        level: match severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        },
        title,
        file,
        line: usize::try_from(spot.line).unwrap_or(usize::MAX),
        column: usize::try_from(spot.column).unwrap_or(usize::MAX),
        snippet,
        note,
        help,
    }
}
