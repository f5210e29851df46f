//! `[tenant.NAME.allow.log]`: which lines of a script are kept.
//!
//! Logging is the one thing that is granted without being named. A script that may not say what went wrong
//! cannot be operated, what it says goes nowhere but to its operator, and `limits.log` bounds how much.

use neoc_abi::log::Level;

use super::{
    error::{Broken, Errors, child},
    raw::LogToml,
};

const LEVELS: [(&str, Level); 4] =
    [("debug", Level::Debug), ("info", Level::Info), ("warn", Level::Warn), ("error", Level::Error)];

/// What is kept of a script's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The least level that is kept. `print` counts as `info`.
    pub level: Level,
}

// === impl Grant ===

impl Default for Grant {
    /// All of them.
    fn default() -> Self {
        Self { level: Level::Debug }
    }
}

impl Grant {
    /// Whether a line of this level is kept.
    pub fn keeps(&self, level: Level) -> bool {
        rank(level) >= rank(self.level)
    }
}

/// Converts the table; without the key all is kept.
pub(super) fn enforce(raw: &LogToml, at: &str, errors: &mut Errors<'_>) -> Grant {
    let LogToml { level } = raw;
    let level = errors.value(&child(at, "level"), level.as_ref(), |text| self::level(text));
    level.map_or_else(Grant::default, |level| Grant { level })
}

fn level(text: &str) -> Result<Level, Broken> {
    let found = LEVELS.iter().find(|(name, _)| *name == text);
    found.map(|(_, level)| *level).ok_or_else(|| Broken::new("one of debug, info, warn, error").write("\"info\""))
}

fn rank(level: Level) -> u8 {
    match level {
        Level::Debug => 0,
        Level::Print | Level::Info => 1,
        Level::Warn => 2,
        Level::Error => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_below_the_level_are_not_kept() {
        for (least, kept) in [(Level::Debug, 5), (Level::Info, 4), (Level::Warn, 2), (Level::Error, 1)] {
            let levels = [Level::Print, Level::Debug, Level::Info, Level::Warn, Level::Error];
            let grant = Grant { level: least };
            assert_eq!(levels.into_iter().filter(|level| grant.keeps(*level)).count(), kept, "{least:?}");
        }
        assert!(Grant::default().keeps(Level::Debug));
    }
}
