//! Calls of an audit file, counted.

use std::{collections::BTreeMap, error::Error, fs::File, io::BufReader, path::Path};

use crate::{
    audit::record::{self, Outcome},
    policy::{Reason, call::Call},
};

/// What an audit file holds, same calls counted together.
#[derive(Debug, Default)]
pub struct Recorded {
    /// By tenant, module, call and outcome.
    pub calls: BTreeMap<(String, Option<String>, Call, Outcome), u64>,
    /// How many calls were refused by what the script took from itself: no policy changes that, and no record says
    /// what it was.
    pub n_narrowed: u64,
    /// Limits that were hit, by tenant and key.
    pub limits: BTreeMap<(String, String), u64>,
}

/// Reads an audit file. What is missing in it is said on standard error.
pub fn read(file: &Path) -> Result<Recorded, Box<dyn Error>> {
    let cannot = |error| format!("cannot read the audit file {}: {error}", file.display());
    let lines = BufReader::new(File::open(file).map_err(cannot)?);
    let mut recorded = Recorded::default();
    let summary = record::read(lines, |record| {
        let tenant = record.tenant.into_owned();
        let of_policy =
            record.reason.as_deref().is_none_or(|reason| Reason::ALL.iter().any(|known| known.as_str() == reason));
        if record.reason.as_deref() == Some(Reason::NarrowedByScript.as_str()) {
            recorded.n_narrowed += 1;
        } else if !of_policy {
            // Arguments that make no sense are no limit.
            if let Some(limit) = record.reason.filter(|reason| reason != "invalid") {
                *recorded.limits.entry((tenant, limit.into_owned())).or_default() += 1;
            }
        } else if let Some(call) =
            Call::from_parts(&record.capability, &record.operation, &record.target, record.address)
        {
            let module = record.module.map(|module| module.into_owned());
            *recorded.calls.entry((tenant, module, call, record.outcome)).or_default() += 1;
        }
    });
    let summary = summary.map_err(cannot)?;
    if summary.n_lost > 0 {
        eprintln!("{}: {} decisions are missing: there was no room for them", file.display(), summary.n_lost);
    }
    if summary.n_unreadable > 0 {
        eprintln!("{}: {} lines are no records", file.display(), summary.n_unreadable);
    }
    Ok(recorded)
}
