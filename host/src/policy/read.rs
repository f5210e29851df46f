//! From text to [`PolicyToml`], with every wrong key and type reported, not only the first.
//!
//! serde stops at its first error. So each file is parsed to a tree, and the tree is cleaned by the tables of
//! keys: a key that is unknown, or whose value has another form than its table says, is reported and dropped.
//! What is left always deserialises. On the way each span becomes one in all files together.

use std::{
    collections::{BTreeSet, btree_map::Entry},
    ops::Range,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    error::{Broken, Errors, child},
    keys::{Form, Key, TableToml},
    raw::PolicyToml,
    source::{Include, Source},
};

/// What an included file may hold.
const INCLUDED: [&str; 2] = ["profile", "tenant"];

/// Reads the files. The first one is the main file; what the others hold is added to it.
pub(super) fn read(errors: &mut Errors<'_>) -> PolicyToml {
    let mut policy = PolicyToml::default();
    let mut index = 0;
    while let Some((source, start)) = errors.sources().get(index) {
        if let Some(mut document) = parse(source, start, errors) {
            if index > 0 {
                refuse_what_is_the_main_files(&mut document, start, errors);
            }
            let raw = deserialize(clean("", document, start, PolicyToml::KEYS, errors), start, errors);
            if index == 0 {
                policy = raw;
            } else {
                merge(&mut policy, raw, errors);
            }
        } else {
            policy.is_whole = false;
        }
        index += 1;
    }
    policy
}

/// Where the main file says to look for others.
pub(super) fn includes(main: &Source) -> Vec<Include> {
    let sources = std::slice::from_ref(main);
    let mut errors = Errors::new(sources);
    let include = parse(main, 0, &mut errors)
        .and_then(|mut document| document.remove("include").map(|value| ("include".into(), value)))
        .map(|(key, value)| DeTable::from_iter([(Spanned::new(0..0, key), value)]))
        .map(|table| clean("", table, 0, PolicyToml::KEYS, &mut errors))
        .map(|table| deserialize::<PolicyToml>(table, 0, &mut errors));
    let patterns = include.and_then(|raw| raw.include).unwrap_or_default();
    let include = |(index, text): (usize, Spanned<String>)| {
        let (key, span) = (format!("include[{index}]"), text.span());
        Include { pattern: text.into_inner(), key, span }
    };
    patterns.into_iter().enumerate().map(include).collect()
}

/// Reads a table that stands in no file, as if it stood at the top of the only source.
pub(super) fn table<T: TableToml>(table: DeTable<'_>, errors: &mut Errors<'_>) -> T {
    deserialize(clean("", table, 0, T::KEYS, errors), 0, errors)
}

/// The tree of a file. `None` when it is no TOML; then nothing more can be said about it.
fn parse<'s>(source: &'s Source, start: usize, errors: &mut Errors<'_>) -> Option<DeTable<'s>> {
    let text: &str = &source.text;
    if let Some(why) = source.cut {
        let end = start + text.len();
        errors.add_without_value(
            "",
            end..end,
            Broken::new(why).help(if text.is_empty() {
                "split it: tenants may stand in files of their own, which the main file includes"
            } else {
                "save it as UTF-8"
            }),
        );
        return None;
    }
    // The parser would skip it; an editor that writes one may write other bytes that nobody sees.
    if text.starts_with('\u{feff}') {
        let broken = Broken::new("the file starts with a byte order mark").help("save it as UTF-8 without BOM");
        errors.add_without_value("", start..start, broken);
        return None;
    }
    let (document, faults) = DeTable::parse_recoverable(text);
    if faults.is_empty() {
        return Some(document.into_inner());
    }
    // Behind the first fault of a line the parser guesses, and its further faults mislead.
    let mut lines = BTreeSet::new();
    for fault in faults {
        let span = shift(fault.span().unwrap_or(0..0), start);
        if lines.insert(errors.place(&span).line) {
            errors.add_without_value("", span, Broken::new(format!("not TOML: {}", fault.message())));
        }
    }
    None
}

fn refuse_what_is_the_main_files(document: &mut DeTable<'_>, start: usize, errors: &mut Errors<'_>) {
    let keys: Vec<_> = document.keys().map(|key| (key.get_ref().to_string(), key.span())).collect();
    for (key, span) in keys {
        if PolicyToml::KEYS.iter().any(|known| known.name == key) && !INCLUDED.contains(&key.as_str()) {
            document.remove(key.as_str());
            let broken = Broken::new("only the main file has this").help("move it there");
            errors.add_without_value(&key, shift(span, start), broken);
        }
    }
}

/// Adds what an included file holds.
fn merge(policy: &mut PolicyToml, from: PolicyToml, errors: &mut Errors<'_>) {
    let PolicyToml { include: _, host: _, defaults: _, profile, tenant, is_whole: _ } = from;
    for (name, table) in profile {
        let again = name.span();
        match policy.profile.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert(table)),
            Entry::Occupied(entry) => twice("profile", again, entry.key(), errors),
        }
    }
    for (name, table) in tenant {
        let again = name.span();
        match policy.tenant.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert(table)),
            Entry::Occupied(entry) => twice("tenant", again, entry.key(), errors),
        }
    }
}

/// A table that another file has too. `again` is within the later file.
fn twice(what: &str, again: Range<usize>, first: &Spanned<String>, errors: &mut Errors<'_>) {
    let place = errors.place(&first.span());
    let broken = Broken::new(format!("the same {what} stands at {place}")).help("give each name to one table");
    errors.add_without_value(&child(what, first.get_ref()), again, broken);
}

/// Drops what the tables of keys do not allow, and says so. Spans become spans in all files together.
fn clean<'i>(at: &str, table: DeTable<'i>, start: usize, keys: &[Key], errors: &mut Errors<'_>) -> DeTable<'i> {
    let mut good = DeTable::new();
    for (name, value) in table {
        let path = child(at, name.get_ref());
        let span = shift(name.span(), start);
        let Some(key) = keys.iter().find(|key| key.name == name.get_ref()) else {
            errors.add_without_value(&path, span, unknown_key(name.get_ref(), keys));
            continue;
        };
        if let Some(value) = form(&path, value, start, key, errors) {
            good.insert(Spanned::new(span, name.into_inner()), value);
        }
    }
    good
}

/// A value, if it has its key's form.
fn form<'i>(
    at: &str,
    value: Spanned<DeValue<'i>>,
    start: usize,
    key: &Key,
    errors: &mut Errors<'_>,
) -> Option<Spanned<DeValue<'i>>> {
    let span = shift(value.span(), start);
    let wrong = |span: Range<usize>, example: &str, errors: &mut Errors<'_>| {
        errors.add(at, span, Broken::new(key.form.rule()).write(example));
        None
    };
    let good = match (key.form, value.into_inner()) {
        (Form::Table(keys), DeValue::Table(table)) => DeValue::Table(clean(at, table, start, keys, errors)),
        (Form::Table(_), _) => return wrong(span, &format!("[{at}]"), errors),
        (Form::Named(keys, _), DeValue::Table(tables)) => DeValue::Table(named(at, tables, start, keys, errors)),
        (Form::Named(..), _) => return wrong(span, &format!("[{at}.acme]"), errors),
        (Form::Tables(keys), DeValue::Array(list)) => {
            let mut good = Vec::with_capacity(list.len());
            for (index, value) in list.into_iter().enumerate() {
                let (at, span) = (format!("{at}[{index}]"), shift(value.span(), start));
                match value.into_inner() {
                    DeValue::Table(table) => {
                        let table = DeValue::Table(clean(&at, table, start, keys, errors));
                        good.push(Spanned::new(span, table));
                    }
                    _ => errors.add(&at, span, Broken::new("a table").write(key.example)),
                }
            }
            DeValue::Array(good.into_iter().collect())
        }
        (Form::Tables(_), _) => return wrong(span, &format!("[[{at}]]"), errors),
        (Form::Texts(_) | Form::TextOrTexts(_), DeValue::Array(list)) => {
            let mut good = Vec::with_capacity(list.len());
            for value in list {
                let span = shift(value.span(), start);
                if !matches!(value.get_ref(), DeValue::String(_)) {
                    return wrong(span, key.example, errors);
                }
                good.push(Spanned::new(span, value.into_inner()));
            }
            DeValue::Array(good.into_iter().collect())
        }
        (Form::TextOrTexts(_), value @ DeValue::String(_)) => {
            DeValue::Array([Spanned::new(span.clone(), value)].into_iter().collect())
        }
        (Form::Texts(_) | Form::TextOrTexts(_), _) => return wrong(span, key.example, errors),
        (Form::Count { .. }, value) => {
            let number = ValueDeserializer::from(Spanned::new(span.clone(), value.clone()));
            match <i64 as serde::Deserialize>::deserialize(number) {
                Ok(_) => value,
                Err(_) => return wrong(span, key.example, errors),
            }
        }
        (_, value @ DeValue::String(_)) => value,
        _ => return wrong(span, key.example, errors),
    };
    Some(Spanned::new(span, good))
}

/// Tables by name.
fn named<'i>(at: &str, tables: DeTable<'i>, start: usize, keys: &[Key], errors: &mut Errors<'_>) -> DeTable<'i> {
    let mut good = DeTable::new();
    for (name, value) in tables {
        let at = child(at, name.get_ref());
        let (name_span, span) = (shift(name.span(), start), shift(value.span(), start));
        match value.into_inner() {
            DeValue::Table(table) => {
                let table = DeValue::Table(clean(&at, table, start, keys, errors));
                good.insert(Spanned::new(name_span, name.into_inner()), Spanned::new(span, table));
            }
            _ => {
                let broken = Broken::new("a table, under a header of its own").write(format_args!("[{at}]"));
                errors.add(&at, span, broken);
            }
        }
    }
    good
}

fn deserialize<T: TableToml>(table: DeTable<'_>, start: usize, errors: &mut Errors<'_>) -> T {
    T::deserialize(ValueDeserializer::from(Spanned::new(start..start, DeValue::Table(table)))).unwrap_or_else(|fault| {
        // A table of keys that does not tell what its struct takes. The file is refused, rather than a part of it lost.
        let span = fault.span().unwrap_or(start..start);
        errors.add("", span, Broken::new(fault.message()));
        T::default()
    })
}

fn shift(span: Range<usize>, start: usize) -> Range<usize> {
    span.start + start..span.end + start
}

fn unknown_key(key: &str, known: &[Key]) -> Broken {
    let broken = Broken::new("unknown key");
    let nearest = known.iter().map(|known| (distance(key, known.name), known.name)).min();
    match nearest {
        None => broken.help("leave the table empty"),
        Some((distance, name)) if distance <= 2 => broken.help(format!("did you mean \"{name}\"?")),
        Some(_) => {
            let names: Vec<&str> = known.iter().map(|known| known.name).collect();
            broken.help(format!("the keys here are {}", names.join(", ")))
        }
    }
}

/// How many characters must be put in, taken out or replaced to make one of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    // Names longer than any key are far from all of them; a row for each of their characters is waste.
    if one.len() > 64 {
        return usize::MAX;
    }
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, left) in one.chars().zip(1..) {
        let mut diagonal = std::mem::replace(&mut row[0], left);
        for (column, character) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(above != *character);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read_whole(text: &str) -> Result<PolicyToml, String> {
        let sources = [Source::from_bytes(Path::new("p.toml"), text.as_bytes().to_vec())];
        let mut errors = Errors::new(&sources);
        let raw = read(&mut errors);
        errors.finish().map_err(|errors| errors.to_string())?;
        Ok(raw)
    }

    #[test]
    fn reading_key_by_key_gives_what_serde_gives_at_once() {
        for source in ["", "[host]\nworkers = 2", super::super::tests::EXAMPLE] {
            assert_eq!(read_whole(source), Ok(toml::from_str(source).expect("valid")), "{source}");
        }
    }

    #[test]
    fn near_names_are_suggested_and_far_ones_listed() {
        for (key, other, expected) in
            [("", "", 0), ("hosts", "hosts", 0), ("host", "hosts", 1), ("memroy", "memory", 2), ("x", "memory", 6)]
        {
            assert_eq!(distance(key, other), expected, "{key} {other}");
        }
    }

    #[test]
    fn nesting_deeper_than_the_parser_goes_is_an_error_with_a_line() {
        let deep = format!("a = {}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(read_whole(&deep).expect_err("too deep").starts_with("p.toml:1:"));
        let dotted = format!("[{}a]", "a.".repeat(10_000));
        assert!(read_whole(&dotted).expect_err("too deep").starts_with("p.toml:1:"));
    }

    #[test]
    fn a_file_over_one_mebibyte_is_refused_before_it_is_parsed() {
        let full = "#".repeat(super::super::source::MAX_FILE_BYTES);
        assert!(read_whole(&full).is_ok());
        let over = read_whole(&format!("{full}#")).expect_err("too long");
        assert!(over.starts_with("p.toml:1:1: a policy file has at most 1 MiB"), "{over}");
    }
}
