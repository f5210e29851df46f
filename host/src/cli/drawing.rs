//! Errors of a policy, and what is found in scripts, as a person reads them: each below the line that it is about.
//!
//! ```text
//! error: tenant.acme.limits.memory: at most 64 MiB per request
//!   --> policies/demo.toml:12:10
//!    |
//! 12 | memory = "128 MiB"
//!    |          ^^^^^^^^^
//!    |
//!    = help: write for example "32 MiB"
//! ```
//!
//! The log of a running host has the errors on one line each instead.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet as Source};

use crate::policy::{PolicyError, PolicyErrors, Snippet};

/// Draws all of them, and how many there are. `is_styled`: with colours.
pub fn draw(errors: &PolicyErrors, is_styled: bool) -> String {
    let mut text: String = errors.iter().map(|error| draw_one(drawing(error), is_styled)).collect();
    let count = errors.iter().count();
    text.push_str(&format!("{count} error{} in the policy", if count == 1 { "" } else { "s" }));
    text
}

/// Something that is drawn below a line of a file.
#[derive(Debug)]
pub struct Drawing {
    /// How bad it is.
    pub level: Level<'static>,
    /// What it is, on one line.
    pub title: String,
    /// The file.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// The line, and what of it this is about. Absent where it is too long to be drawn.
    pub snippet: Option<Snippet>,
    /// More about it.
    pub note: Option<String>,
    /// What to do.
    pub help: Option<String>,
}

/// Draws one, with a line after it.
pub fn draw_one(drawing: Drawing, is_styled: bool) -> String {
    let renderer = if is_styled { Renderer::styled() } else { Renderer::plain() };
    let Drawing { level, title, file, line, column, snippet, note, help } = drawing;
    let group = Group::with_title(level.primary_title(plain(&title)));
    let group = match snippet {
        Some(Snippet { line: text, span }) => {
            let annotation = AnnotationKind::Primary.span(span);
            group.element(Source::source(plain(&text)).path(file).line_start(line).annotation(annotation))
        }
        None => group.element(Origin::path(file).line(line).char_column(column)),
    };
    let notes = [(Level::NOTE, note), (Level::HELP, help)].into_iter();
    let notes = notes.filter_map(|(level, text)| text.map(|text| level.message(text)));
    format!("{}\n\n", renderer.render(&[notes.fold(group, Group::element)]))
}

fn drawing(error: &PolicyError) -> Drawing {
    let PolicyError { place, column, snippet, key, value: _, rule, help } = error;
    Drawing {
        level: Level::ERROR,
        title: if key.is_empty() { rule.clone() } else { format!("{key}: {rule}") },
        file: place.file.display().to_string(),
        line: place.line as usize,
        column: *column as usize,
        snippet: snippet.clone(),
        note: None,
        help: help.clone(),
    }
}

/// The line without the control characters that the renderer lets pass. Some terminals take them for the start
/// of a command; each is two bytes long, and so is what stands in its place.
fn plain(line: &str) -> String {
    line.replace(|character| matches!(character, '\u{80}'..='\u{9f}'), "·")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::Policy;

    fn drawn(text: &str) -> String {
        let errors = Policy::parse(text, Path::new("p.toml")).expect_err("broken");
        draw(&errors, false)
    }

    #[test]
    fn an_error_stands_below_its_line() {
        let expected = "error: tenant.acme.limits.memory: at most 64 MiB per request\n \
            --> p.toml:4:10\n  \
            |\n\
            4 | memory = \"128 MiB\"\n  \
            |          ^^^^^^^^^\n  \
            |\n  \
            = help: write for example \"32 MiB\"\n\n1 error in the policy";
        let policy = "[tenant.acme]\nscript = \"a.luau\"\n[tenant.acme.limits]\nmemory = \"128 MiB\"\n";
        assert_eq!(drawn(policy), expected);
    }

    #[test]
    fn a_hostile_file_cannot_draw_on_a_terminal() {
        for text in [
            "[host]\nlisten = \"x\u{1b}[2J\"",
            "[host]\n\u{1b}]0;x\u{7} = 1",
            "\u{9b}31m = 1",
            "[tenant.\"\\u001b[2J\"]",
            "a = '\u{202e}'",
        ] {
            let drawn = drawn(text);
            let is_hostile = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
            assert!(!drawn.contains(is_hostile), "{drawn:?}");
        }
    }

    #[test]
    fn what_has_no_end_is_cut() {
        let deep = format!("a = {}{}", "[".repeat(10_000), "]".repeat(10_000));
        let dotted = format!("[{}a]", "a.".repeat(10_000));
        let long = format!("a = \"{}\"", "x".repeat(500_000));
        let list = format!("[[tenant.a.allow.http]]\nhosts = [{}]", "\"*\",".repeat(100_000));
        for text in [deep, dotted, long, list] {
            let drawn = drawn(&text);
            assert!(
                drawn.len() < 1_000_000 && drawn.lines().all(|line| line.chars().count() < 300),
                "{} bytes",
                drawn.len()
            );
        }
    }

    #[test]
    fn every_broken_line_can_be_drawn() {
        let errors = Policy::parse(include_str!("../policy/tests/broken.toml"), Path::new("p.toml"));
        let errors = errors.expect_err("broken");
        let drawn = draw(&errors, true);
        for error in errors.iter() {
            assert!(drawn.contains(&format!("{}:{}", error.place, error.column)), "{error}");
        }
    }
}
