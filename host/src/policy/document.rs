//! The tables of keys as Markdown, for docs/POLICY.md.

use super::{
    Policy,
    keys::{Form, Key},
};

/// Every key: a section for each table, and a row for each of its keys. What profiles and defaults share with
/// tenants is shown once.
pub fn keys() -> String {
    let mut text = String::new();
    section("", Policy::keys(), &mut text);
    text
}

fn section(header: &str, keys: &[Key], text: &mut String) {
    let title = if header.is_empty() { "The top of the file".to_owned() } else { format!("`{header}`") };
    text.push_str(&format!("### {title}\n\n"));
    if keys.is_empty() {
        text.push_str("No keys: its presence is the grant.\n\n");
        return;
    }
    text.push_str("| key | value | default | example | meaning |\n|---|---|---|---|---|\n");
    for key in keys {
        let Key { name, form, default, example, doc } = key;
        let (value, default, example) = (value(form), code(default), code(example));
        text.push_str(&format!("| `{name}` | {value} | {default} | {example} | {doc} |\n"));
    }
    text.push('\n');
    for key in keys {
        let path = header.trim_matches(['[', ']']);
        let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
        // As a tenant's, which follow.
        if path.starts_with("defaults") || path.starts_with("profile") {
            continue;
        }
        match key.form {
            Form::Table(below) => section(&format!("[{path}]"), below, text),
            Form::Tables(below) => section(&format!("[[{path}]]"), below, text),
            Form::Named(below, _) => section(&format!("[{path}.NAME]"), below, text),
            _ => {}
        }
    }
}

/// The type, unit and range.
fn value(form: &Form) -> String {
    let what = match form {
        Form::Table(_) | Form::Named(..) => "table",
        Form::Tables(_) => "tables",
        Form::Word(_) => "",
        Form::Count { .. } => "number",
        Form::Size { .. } => "size",
        Form::Time { .. } => "time",
        Form::Rate { .. } | Form::Flow { .. } => "rate",
        Form::Text(_) | Form::Texts(_) | Form::TextOrTexts(_) => "text",
    };
    let range = form.range();
    match (what, range.as_str()) {
        (what, "") => what.to_owned(),
        ("", range) => range.to_owned(),
        (what, range) => format!("{what}: {range}"),
    }
}

/// TOML as code; words in brackets as they are.
fn code(text: &str) -> String {
    if text.is_empty() || text.starts_with('(') { text.to_owned() } else { format!("`{text}`") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/POLICY.md");
    const BEGIN: &str =
        "<!-- The tables below are made from the parser's own: NEOC_UPDATE=1 cargo test policy::document -->\n";

    #[test]
    fn the_document_has_the_parsers_keys() {
        let document = include_str!("../../../docs/POLICY.md");
        let (prose, tables) = document.split_once(BEGIN).expect("the line before the tables");
        let expected = format!("\n{}", keys().trim_end().to_owned() + "\n");
        if std::env::var_os("NEOC_UPDATE").is_some() {
            std::fs::write(FILE, format!("{prose}{BEGIN}{expected}")).expect("written");
            return;
        }
        assert_eq!(tables, expected);
    }

    #[test]
    fn every_example_of_the_prose_is_a_policy() {
        let document = include_str!("../../../docs/POLICY.md");
        let mut n_examples = 0;
        for example in document.split("```toml\n").skip(1) {
            let example = example.split("```").next().unwrap_or_default();
            n_examples += 1;
            // An example that needs other files names them; they are not read here.
            let parsed = Policy::parse(example, std::path::Path::new("policy.toml"));
            assert!(parsed.is_ok(), "{}\n{example}", parsed.err().map(|errors| errors.to_string()).unwrap_or_default());
        }
        assert!(n_examples >= 5, "{n_examples}");
    }
}
