//! `[tenant.NAME.allow.log]`: which lines of a script are kept.
//!
//! Logging is the one thing that is granted without being named. A script that may not say what went wrong
//! cannot be operated, what it says goes nowhere but to its operator, and `limits.log` bounds how much.

use neoc_abi::log::Level;

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
