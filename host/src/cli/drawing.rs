//! Errors of a policy as a person reads them: each below the line that it is about.
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

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::policy::{PolicyError, PolicyErrors};

/// Draws all of them, and how many there are. `is_styled`: with colours.
pub fn draw(errors: &PolicyErrors, is_styled: bool) -> String {
    let renderer = if is_styled { Renderer::styled() } else { Renderer::plain() };
    let mut text = String::new();
    for error in errors.iter() {
        text.push_str(&renderer.render(&[group(error)]));
        text.push_str("\n\n");
    }
    let count = errors.iter().count();
    text.push_str(&format!("{count} error{} in the policy", if count == 1 { "" } else { "s" }));
    text
}

fn group(error: &PolicyError) -> Group<'_> {
    let PolicyError { place, column, snippet, key, value: _, rule, help } = error;
    let title = if key.is_empty() { rule.clone() } else { format!("{key}: {rule}") };
    let group = Group::with_title(Level::ERROR.primary_title(title));
    let (file, line) = (place.file.display().to_string(), place.line as usize);
    let group = match snippet {
        Some(snippet) => {
            let annotation = AnnotationKind::Primary.span(snippet.span.clone());
            let source = Snippet::source(plain(&snippet.line)).path(file).line_start(line).annotation(annotation);
            group.element(source)
        }
        None => group.element(Origin::path(file).line(line).char_column(*column as usize)),
    };
    match help {
        Some(help) => group.element(Level::HELP.message(help.as_str())),
        None => group,
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
