//! What a key of a policy file is: its form, range, default, example and meaning.
//!
//! The tables of keys in `raw` are the one source of the reader, the JSON Schema and docs/POLICY.md. A new
//! key is:
//!
//! 1. a field of its struct in `raw`, `Option<Text>`, `Option<Spanned<i64>>`, `Option<Vec<Text>>` or a table;
//! 2. a [`Key`] in that struct's `KEYS`, in the order in which the document shows them;
//! 3. its conversion, where the struct is taken apart.
//!
//! The reader checks form and spelling by the table alone: what reaches the struct has the right type, and
//! what is wrong was reported with line, column and the key's example. Ranges are checked by the conversion,
//! which knows more; a test holds the tables' ranges and defaults against it.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::units;

/// The default of a key that must be there.
pub const REQUIRED: &str = "(must be there)";

/// A table of the file whose keys are known.
pub trait TableToml: DeserializeOwned + Default {
    /// Every key.
    const KEYS: &'static [Key];
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// As written.
    pub name: &'static str,
    /// What kind of value it has.
    pub form: Form,
    /// The value that it has when it is absent, as TOML; or words in brackets; or empty: see `doc`.
    pub default: &'static str,
    /// A value as TOML, on one line. For tables too: `{}`.
    pub example: &'static str,
    /// What it means, and what happens over a limit: sentences in Markdown.
    pub doc: &'static str,
}

/// Forms of values.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// A string; in words, what it holds.
    Text(&'static str),
    /// One of these strings.
    Word(&'static [&'static str]),
    /// A string such as `"32 MiB"`.
    Size {
        /// In bytes.
        least: u64,
        /// In bytes.
        most: u64,
    },
    /// A string such as `"50 ms"`.
    Time {
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// A string such as `"200/s"`: 1 to so many events in a second, minute or hour.
    Rate {
        /// Events.
        most: u32,
    },
    /// A string such as `"64 KiB/s"`: a size in a second, minute or hour.
    Flow {
        /// In bytes.
        least: u64,
        /// In bytes.
        most: u64,
    },
    /// A whole number.
    Count {
        /// The least.
        least: i64,
        /// The most.
        most: i64,
    },
    /// A list of strings; in words, what each holds.
    Texts(&'static str),
    /// A list of strings, or one string alone.
    TextOrTexts(&'static str),
    /// `[table]`
    Table(&'static [Key]),
    /// `[[table]]`, any number of them.
    Tables(&'static [Key]),
    /// `[table.NAME]`, by name.
    Named(&'static [Key], Names),
}

/// What the names of tables are.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// In words.
    pub words: &'static str,
    /// A regular expression that they all match.
    pub pattern: &'static str,
    /// One of them, as a key of TOML.
    pub example: &'static str,
}

// === impl Form ===

impl Form {
    /// What a value must be, as an error says it.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Word(_) | Self::Size { .. } | Self::Time { .. } => "a string",
            Self::Rate { .. } | Self::Flow { .. } => "a string",
            Self::Count { .. } => "a whole number",
            Self::Texts(_) => "a list of strings",
            Self::TextOrTexts(_) => "a string or a list of strings",
            Self::Table(_) | Self::Named(..) => "a table, under a header of its own",
            Self::Tables(_) => "a list of tables, each under a header of its own",
        }
    }

    /// The range in words, as the document has it. Empty: the form says it all.
    pub fn range(&self) -> String {
        match self {
            Self::Text(what) => (*what).to_owned(),
            Self::Word(words) => words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(" or "),
            Self::Size { least, most } => format!("{} to {}", units::shown_bytes(*least), units::shown_bytes(*most)),
            Self::Time { least, most } => format!("{} to {}", units::shown_time(*least), units::shown_time(*most)),
            Self::Rate { most } => format!("1 to {most} in a second (`/s`), minute (`/m`) or hour (`/h`)"),
            Self::Flow { least, most } => {
                let (least, most) = (units::shown_bytes(*least), units::shown_bytes(*most));
                format!("{least} to {most} in a second (`/s`), minute (`/m`) or hour (`/h`)")
            }
            Self::Count { least, most } => format!("{least} to {most}"),
            Self::Texts(what) => format!("list: {what}"),
            Self::TextOrTexts(what) => format!("one, or a list: {what}"),
            Self::Named(_, names) => names.words.to_owned(),
            Self::Table(_) | Self::Tables(_) => String::new(),
        }
    }
}
