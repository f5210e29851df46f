//! `[tenant.NAME.allow.detach]`: tasks that go on after the answer, and what they may use then.

use std::{num::NonZeroU32, ops::Range, time::Duration};

use super::{
    Place,
    error::{Broken, Errors, child},
    fix::Remedy,
    raw::DetachToml,
    refusal::{Reason, Refusal},
    units,
};

/// The capability's name in errors, logs and metrics.
pub const CAPABILITY: &str = "detach";

pub(super) const MAX_TASKS: u32 = 1000;
pub(super) const MAX_CPU: Duration = Duration::from_secs(5 * 60);
pub(super) const MAX_WALL: Duration = Duration::from_secs(60 * 60);

/// What the detached tasks of one request may use, together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Tasks that one request may detach. 1 to 1000.
    pub tasks: NonZeroU32,
    /// Computing time from the answer on.
    pub cpu: Duration,
    /// Time from the answer on, with everything.
    pub wall: Duration,
    /// Where the policy file grants it.
    pub place: Place,
}

impl Grant {
    /// A grant that names no key.
    pub(super) fn with_defaults(place: Place) -> Self {
        Self {
            tasks: const { NonZeroU32::new(10).expect("10 is not 0") },
            cpu: Duration::from_millis(50),
            wall: Duration::from_secs(30),
            place,
        }
    }
}

/// Decides on a call.
///
/// # Errors
/// [`Reason::NotGranted`] without a grant.
pub fn decide(grant: Option<&Grant>) -> Result<&Grant, Refusal> {
    grant.ok_or_else(|| Refusal::new(CAPABILITY, "task", Reason::NotGranted).remedy(Remedy::Detach))
}

/// Converts the table; an absent key takes its default.
pub(super) fn enforce(raw: DetachToml, at: &str, span: &Range<usize>, errors: &mut Errors<'_>) -> Grant {
    let DetachToml { tasks, cpu, wall } = raw;
    let place = errors.place(span);
    let default = Grant::with_defaults(place.clone());
    Grant {
        tasks: errors.value(&child(at, "tasks"), tasks.as_ref(), self::tasks).unwrap_or(default.tasks),
        cpu: errors.value(&child(at, "cpu"), cpu.as_ref(), |text| time(text, MAX_CPU)).unwrap_or(default.cpu),
        wall: errors.value(&child(at, "wall"), wall.as_ref(), |text| time(text, MAX_WALL)).unwrap_or(default.wall),
        place,
    }
}

fn tasks(number: &i64) -> Result<NonZeroU32, Broken> {
    u32::try_from(*number)
        .ok()
        .filter(|number| *number <= MAX_TASKS)
        .and_then(NonZeroU32::new)
        .ok_or_else(|| Broken::new("1 to 1000 tasks").write("10; to allow none, leave the table out"))
}

fn time(text: &str, most: Duration) -> Result<Duration, Broken> {
    let example = "\"10 s\"";
    let time = units::duration(text, example)?;
    if time.is_zero() || time > most {
        return Err(Broken::new(format!("1 ms to {}", units::shown_time(most))).write(example));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detaching_is_refused_until_it_is_granted() {
        assert_eq!(decide(None).map_err(|refusal| refusal.reason).err(), Some(Reason::NotGranted));
    }

    #[test]
    fn tasks_are_counted_from_one_and_times_have_ends() {
        for (number, accepted) in [(0, false), (1, true), (1000, true), (1001, false), (-1, false)] {
            assert_eq!(tasks(&number).is_ok(), accepted, "{number}");
        }
        for (text, accepted) in [("0 ms", false), ("1 ms", true), ("5 m", true), ("300001 ms", false)] {
            assert_eq!(time(text, MAX_CPU).is_ok(), accepted, "{text}");
        }
    }
}
