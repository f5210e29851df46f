//! `[tenant.NAME.allow.workers]`: how many further VMs one request may have at once.

use std::{num::NonZeroU32, ops::Range};

use super::{
    Place,
    error::{Broken, Errors, child},
    fix::Remedy,
    raw::WorkersToml,
    refusal::{Reason, Refusal},
};

/// The capability's name in errors, logs and metrics.
pub const CAPABILITY: &str = "workers";

/// Most VMs of one request at once. Each is as large as the request itself.
pub(super) const MAX_COUNT: u32 = 16;
const DEFAULT_COUNT: NonZeroU32 = NonZeroU32::new(2).expect("it is not 0");

/// Granted workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// VMs of one request at once, beside its own. 1 to 16.
    pub count: NonZeroU32,
    /// Where the policy file grants it.
    pub place: Place,
}

impl Grant {
    /// A grant that names no key.
    pub(super) fn with_defaults(place: Place) -> Self {
        Self { count: DEFAULT_COUNT, place }
    }
}

/// Decides on a call. `module` is for the refusal's text only: all modules are the tenant's own.
///
/// # Errors
/// [`Reason::NotGranted`] without a grant.
pub fn decide<'a>(grant: Option<&'a Grant>, module: &str) -> Result<&'a Grant, Refusal> {
    grant.ok_or_else(|| Refusal::new(CAPABILITY, module, Reason::NotGranted).remedy(Remedy::Workers))
}

pub(super) fn enforce(raw: WorkersToml, at: &str, span: &Range<usize>, errors: &mut Errors<'_>) -> Grant {
    let WorkersToml { count } = raw;
    let count = errors.value(&child(at, "count"), count.as_ref(), self::count);
    let default = Grant::with_defaults(errors.place(span));
    Grant { count: count.unwrap_or(default.count), ..default }
}

fn count(number: &i64) -> Result<NonZeroU32, Broken> {
    u32::try_from(*number)
        .ok()
        .filter(|number| *number <= MAX_COUNT)
        .and_then(NonZeroU32::new)
        .ok_or_else(|| Broken::new("1 to 16 workers").write("2"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn workers_are_refused_until_they_are_granted() {
        assert_eq!(decide(None, "./heavy").map_err(|refusal| refusal.reason).err(), Some(Reason::NotGranted));
        let grant = Grant { count: DEFAULT_COUNT, place: Place::new(Path::new("p.toml"), 7) };
        assert_eq!(decide(Some(&grant), "./heavy").map(|grant| grant.count.get()).ok(), Some(2));
    }

    #[test]
    fn a_request_has_one_to_sixteen_workers() {
        for (number, accepted) in [(-1, false), (0, false), (1, true), (16, true), (17, false), (1 << 32, false)] {
            assert_eq!(count(&number).is_ok(), accepted, "{number}");
        }
    }
}
