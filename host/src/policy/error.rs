//! What is wrong with a policy file: all of it, each with its place, its rule and what to write instead.
//!
//! One line per error, made of the same five parts in the same order:
//!
//! ```text
//! policies/demo.toml:12:10: tenant.acme.limits.memory = "128 MiB": at most 64 MiB per request; write for example "32 MiB"
//! file             line:col key                         value      rule                        help
//! ```

use std::{collections::HashSet, fmt, ops::Range, path::PathBuf};

use toml::Spanned;

use super::source::{Place, Source, Sources, Unread};

/// Longest part of a value that an error repeats, in characters.
const MAX_SHOWN_CHARS: usize = 80;

/// Most errors that are kept. Each costs a walk along its line, and nobody reads more.
const MAX_ERRORS: usize = 1_000;

/// Every error of a policy's files, up to 1,000 of them, in the files' order. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyErrors(Vec<PolicyError>);

/// One error of a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// File and line.
    pub place: Place,
    /// In characters, counted from 1.
    pub column: u32,
    /// The line, for a drawing. Absent where it is too long to be drawn.
    pub snippet: Option<Snippet>,
    /// The whole key, such as `tenant.acme.allow.http[0].hosts[1]`. Empty where the file is no TOML.
    pub key: String,
    /// The value as written, shortened. Absent where a key is missing.
    pub value: Option<String>,
    /// The rule that is broken.
    pub rule: String,
    /// What to write instead.
    pub help: Option<String>,
}

/// A line of a policy file, and what of it an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snippet {
    /// The line as written, without its end: it may hold control characters.
    pub line: String,
    /// In bytes of the line, between characters. What is on further lines is left out; may be empty.
    pub span: Range<usize>,
}

/// A rule that a value breaks, before its place is known. Parsers of values return it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    rule: String,
    help: Option<String>,
}

/// Collects errors while the file is converted.
pub(super) struct Errors<'s> {
    sources: Sources<'s>,
    /// Each with where it starts in all files together, to sort by.
    found: Vec<(usize, PolicyError)>,
    /// Places and rules of those found: a table that several tenants extend is at fault once.
    seen: HashSet<(usize, String)>,
    /// Keys with an error. One that was dropped for its type is not reported as missing too.
    keys: HashSet<String>,
}

// === impl PolicyErrors ===

impl PolicyErrors {
    /// The errors, in the files' order.
    pub fn iter(&self) -> impl Iterator<Item = &PolicyError> {
        self.0.iter()
    }
}

impl std::error::Error for PolicyErrors {}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, column, snippet: _, key, value, rule, help } = self;
        write!(f, "{place}:{column}: {key}")?;
        if let Some(value) = value {
            write!(f, " = {value}")?;
        }
        let separator = if key.is_empty() { "" } else { ": " };
        write!(f, "{separator}{rule}")?;
        match help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

// === impl Broken ===

impl Broken {
    /// A broken rule, with no help yet.
    pub fn new(rule: impl Into<String>) -> Self {
        Self { rule: rule.into(), help: None }
    }

    /// Adds an example of what to write; it is TOML.
    pub fn write(self, example: impl fmt::Display) -> Self {
        self.help(format!("write for example {example}"))
    }

    /// Adds what to do, in words.
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

// === impl Errors ===

impl<'s> Errors<'s> {
    /// `sources` is not empty; the first one is the main file.
    pub(super) fn new(sources: &'s [Source]) -> Self {
        let sources = Sources::new(sources);
        Self { sources, found: Vec::new(), seen: HashSet::new(), keys: HashSet::new() }
    }

    /// The files.
    pub(super) fn sources(&self) -> &Sources<'s> {
        &self.sources
    }

    /// Records why an element of `include` brings no file.
    pub(super) fn unread(&mut self, unread: Unread) {
        let Unread { include, rule, help } = unread;
        self.add(&include.key, include.span, Broken::new(rule).help(help));
    }

    /// Records that the value at `span` breaks a rule.
    pub(super) fn add(&mut self, key: &str, span: Range<usize>, broken: Broken) {
        let value = self.sources.text(&span).filter(|text| !text.is_empty()).map(shown);
        self.push(key, span, value, broken);
    }

    /// Records an error that has a place but no value, such as a missing key.
    pub(super) fn add_without_value(&mut self, key: &str, span: Range<usize>, broken: Broken) {
        self.push(key, span, None, broken);
    }

    /// Records that the table at `span` lacks a key.
    pub(super) fn missing(&mut self, at: &str, key: &str, span: Range<usize>, example: &str) {
        let path = child(at, key);
        if !self.keys.contains(&path) {
            let broken = Broken::new("missing").write(format_args!("{key} = {example}"));
            self.add_without_value(&path, span, broken);
        }
    }

    /// Parses a value if it is there, and records the rule that it breaks.
    pub(super) fn value<W, T>(
        &mut self,
        key: &str,
        written: Option<&Spanned<W>>,
        parse: impl FnOnce(&W) -> Result<T, Broken>,
    ) -> Option<T> {
        let written = written?;
        parse(written.get_ref()).map_err(|broken| self.add(key, written.span(), broken)).ok()
    }

    /// Parses the elements of a list, and records the rules that they break. Bad elements are left out.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        written: &[Spanned<String>],
        parse: impl Fn(&str) -> Result<T, Broken>,
    ) -> Vec<T> {
        let mut good = Vec::with_capacity(written.len());
        for (index, element) in written.iter().enumerate() {
            good.extend(self.value(&format!("{key}[{index}]"), Some(element), |text| parse(text)));
        }
        good
    }

    /// File and line of a span.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        self.sources.find(span).0
    }

    /// The folder of the file in which a value stands: where its relative paths start.
    pub(super) fn folder<T>(&self, value: Option<&Spanned<T>>) -> PathBuf {
        self.sources.folder(&value.map_or(0..0, Spanned::span))
    }

    /// # Errors
    /// [`PolicyErrors`] when any was recorded.
    pub(super) fn finish(self) -> Result<(), PolicyErrors> {
        let mut found = self.found;
        if found.is_empty() {
            return Ok(());
        }
        // Pieces are converted in the order of the types; a reader goes through the file.
        found.sort_by_key(|(at, _)| *at);
        Err(PolicyErrors(found.into_iter().map(|(_, error)| error).collect()))
    }

    fn push(&mut self, key: &str, span: Range<usize>, value: Option<String>, broken: Broken) {
        let key = key.to_owned();
        self.keys.insert(key.clone());
        let Broken { rule, help } = broken;
        if self.found.len() >= MAX_ERRORS || !self.seen.insert((span.start, rule.clone())) {
            return;
        }
        let at = span.start;
        let (place, column) = self.sources.find(&span);
        let snippet = self.sources.line(&span).map(|(line, span)| Snippet { line: line.to_owned(), span });
        self.found.push((at, PolicyError { place, column, snippet, key, value, rule, help }));
    }
}

/// The key path of `key` below `at`, quoted where TOML needs it.
pub(super) fn child(at: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    match (at, bare) {
        ("", true) => key.to_owned(),
        ("", false) => format!("{key:?}"),
        (_, true) => format!("{at}.{key}"),
        (_, false) => format!("{at}.{key:?}"),
    }
}

/// One line of a value. Control characters are escaped, so a hostile file cannot draw on a terminal.
fn shown(text: &str) -> String {
    let mut chars = text.trim_end().chars();
    let mut line = String::new();
    for character in chars.by_ref().take(MAX_SHOWN_CHARS) {
        match character {
            '\n' | '\r' => line.push(' '),
            character if character.is_control() => line.extend(character.escape_default()),
            character => line.push(character),
        }
    }
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_toml_would_quote_is_quoted() {
        assert_eq!(child("tenant", "acme"), "tenant.acme");
        assert_eq!(child("tenant", "a b"), "tenant.\"a b\"");
        assert_eq!(child("", "host"), "host");
    }

    #[test]
    fn a_long_or_hostile_value_is_shown_on_one_short_line() {
        assert_eq!(shown("\u{1b}[2J\nx"), "\\u{1b}[2J x");
        assert_eq!(shown(&"é".repeat(200)).chars().count(), MAX_SHOWN_CHARS + 1);
    }
}
