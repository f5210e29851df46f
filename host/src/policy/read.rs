//! From text to [`PolicyToml`], with every wrong key and type reported, not only the first.
//!
//! serde stops at its first error. So the file is parsed to a tree once, and each table is taken apart:
//! unknown keys are reported and dropped, then every key is tried alone, and those that fail are
//! reported and dropped. What is left always deserialises. The types keep `deny_unknown_fields`, so
//! a whole file read at once by serde accepts exactly the same texts.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    error::{Broken, Errors, child},
    raw::{AllowToml, PolicyToml, TableToml, TenantToml},
};

/// Longest policy file, in bytes.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

/// Reads a file's text. `None` when it is no TOML; then nothing more can be said about it.
pub(super) fn read(source: &str, errors: &mut Errors<'_>) -> Option<PolicyToml> {
    if source.len() > MAX_FILE_BYTES {
        let rule = format!("{} bytes: a policy file has at most 1 MiB", source.len());
        errors.add_without_value("", 0..0, Broken::new(rule).help("split the tenants over several hosts"));
        return None;
    }
    // The parser would skip it; an editor that writes one may write other bytes that nobody sees.
    if source.starts_with('\u{feff}') {
        let broken = Broken::new("the file starts with a byte order mark").help("save it as UTF-8 without BOM");
        errors.add_without_value("", 0..0, broken);
        return None;
    }
    let (document, faults) = DeTable::parse_recoverable(source);
    if faults.is_empty() {
        return Some(policy(document.into_inner(), errors));
    }
    // Behind the first fault of a line the parser guesses, and its further faults mislead.
    let mut last_line = 0;
    for fault in faults {
        let span = fault.span().unwrap_or(0..0);
        let line = errors.line(&span);
        if line != last_line {
            last_line = line;
            errors.add_without_value("", span, Broken::new(format!("not TOML: {}", fault.message())));
        }
    }
    None
}

fn policy(mut table: DeTable<'_>, errors: &mut Errors<'_>) -> PolicyToml {
    let host = take(&mut table, "host")
        .and_then(|value| as_table("host", "[host]", value, errors))
        .map(|(table, _)| keys("host", table, errors))
        .unwrap_or_default();
    let tenants = take(&mut table, "tenant")
        .and_then(|value| as_table("tenant", "[tenant.acme]", value, errors))
        .map(|(table, _)| table)
        .unwrap_or_default();
    let mut tenant = std::collections::BTreeMap::new();
    for (name, value) in tenants {
        let at = child("tenant", name.get_ref());
        if let Some((table, span)) = as_table(&at, &format!("[{at}]"), value, errors) {
            let name = Spanned::new(name.span(), name.into_inner().into_owned());
            tenant.insert(name, Spanned::new(span, self::tenant(&at, table, errors)));
        }
    }
    // All known keys are taken out; this finds those that are not known.
    let _: PolicyToml = keys("", table, errors);
    PolicyToml { host, tenant }
}

fn tenant(at: &str, mut table: DeTable<'_>, errors: &mut Errors<'_>) -> TenantToml {
    let limits_at = child(at, "limits");
    let limits = take(&mut table, "limits")
        .and_then(|value| as_table(&limits_at, &format!("[{limits_at}]"), value, errors))
        .map(|(table, _)| keys(&limits_at, table, errors))
        .unwrap_or_default();
    let allow_at = child(at, "allow");
    let allow = take(&mut table, "allow")
        .and_then(|value| as_table(&allow_at, &format!("[{allow_at}.kv]"), value, errors))
        .map(|(table, _)| allow(&allow_at, table, errors))
        .unwrap_or_default();
    let deny_at = child(at, "deny");
    let deny = take(&mut table, "deny")
        .and_then(|value| as_table(&deny_at, &format!("[{deny_at}]"), value, errors))
        .map(|(mut table, _)| {
            let net = grants(&child(&deny_at, "net"), take(&mut table, "net"), errors);
            let _: super::raw::DenyToml = keys(&deny_at, table, errors);
            super::raw::DenyToml { net }
        })
        .unwrap_or_default();
    TenantToml { limits, allow, deny, ..keys(at, table, errors) }
}

fn allow(at: &str, mut table: DeTable<'_>, errors: &mut Errors<'_>) -> AllowToml {
    let http = grants(&child(at, "http"), take(&mut table, "http"), errors);
    let net = grants(&child(at, "net"), take(&mut table, "net"), errors);
    let fs = grants(&child(at, "fs"), take(&mut table, "fs"), errors);
    let kv = grant(&child(at, "kv"), take(&mut table, "kv"), errors);
    let detach = grant(&child(at, "detach"), take(&mut table, "detach"), errors);
    let workers = grant(&child(at, "workers"), take(&mut table, "workers"), errors);
    // As above.
    let _: AllowToml = keys(at, table, errors);
    AllowToml { http, net, fs, kv, detach, workers }
}

/// The `[table]` of a grant that stands once.
fn grant<T: TableToml>(at: &str, value: Option<Spanned<DeValue<'_>>>, errors: &mut Errors<'_>) -> Option<Spanned<T>> {
    let (table, span) = as_table(at, &format!("[{at}]"), value?, errors)?;
    Some(Spanned::new(span, keys(at, table, errors)))
}

/// The tables of a `[[list]]`.
fn grants<T: TableToml>(at: &str, list: Option<Spanned<DeValue<'_>>>, errors: &mut Errors<'_>) -> Vec<Spanned<T>> {
    let header = format!("[[{at}]]");
    let Some(list) = list else { return Vec::new() };
    let span = list.span();
    let DeValue::Array(list) = list.into_inner() else {
        let broken = Broken::new("a list of grants, each with a header of its own").write(header);
        errors.add_without_value(at, span, broken);
        return Vec::new();
    };
    let mut good = Vec::with_capacity(list.len());
    for (index, value) in list.into_iter().enumerate() {
        let at = format!("{at}[{index}]");
        if let Some((table, span)) = as_table(&at, &header, value, errors) {
            good.push(Spanned::new(span, keys(&at, table, errors)));
        }
    }
    good
}

/// Reads the keys of one table, each for itself.
fn keys<T: TableToml>(at: &str, table: DeTable<'_>, errors: &mut Errors<'_>) -> T {
    let mut good = DeTable::new();
    for (key, value) in table {
        let path = child(at, key.get_ref());
        let Some((_, example)) = T::KEYS.iter().find(|(known, _)| *known == key.get_ref()) else {
            errors.add_without_value(&path, key.span(), unknown_key(key.get_ref(), T::KEYS));
            continue;
        };
        let mut alone = DeTable::new();
        alone.insert(key.clone(), value.clone());
        match deserialize::<T>(alone, value.span()) {
            Ok(_) => _ = good.insert(key, value),
            Err(fault) => {
                // A list's fault lies in one element; point at that.
                let span = fault.span().unwrap_or_else(|| value.span());
                errors.add(&path, span, Broken::new(type_of(example)).write(example));
            }
        }
    }
    deserialize(good, 0..0).unwrap_or_default()
}

fn deserialize<T: TableToml>(table: DeTable<'_>, span: Range<usize>) -> Result<T, toml::de::Error> {
    T::deserialize(ValueDeserializer::from(Spanned::new(span, DeValue::Table(table))))
}

fn take<'i>(table: &mut DeTable<'i>, key: &str) -> Option<Spanned<DeValue<'i>>> {
    table.remove(key)
}

fn as_table<'i>(
    at: &str,
    header: &str,
    value: Spanned<DeValue<'i>>,
    errors: &mut Errors<'_>,
) -> Option<(DeTable<'i>, Range<usize>)> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some((table, span)),
        _ => {
            errors.add(at, span, Broken::new("a table, under a header of its own").write(header));
            None
        }
    }
}

/// What kind of value an example is.
fn type_of(example: &str) -> &'static str {
    match example.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'[') => "a list of strings",
        Some(b'{') => "a table",
        _ => "a whole number",
    }
}

fn unknown_key(key: &str, known: &[(&str, &str)]) -> Broken {
    let broken = Broken::new("unknown key");
    let nearest = known.iter().map(|(name, _)| (distance(key, name), *name)).min();
    match nearest {
        None => broken.help("leave the table empty"),
        Some((distance, name)) if distance <= 2 => broken.help(format!("did you mean \"{name}\"?")),
        Some(_) => {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
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

    fn read_whole(source: &str) -> Result<PolicyToml, String> {
        let mut errors = Errors::new(Path::new("p.toml"), source);
        let raw = read(source, &mut errors);
        errors.finish().map_err(|errors| errors.to_string())?;
        raw.ok_or_else(|| "no error and no policy".to_owned())
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
        let full = "#".repeat(MAX_FILE_BYTES);
        assert!(read_whole(&full).is_ok());
        let over = read_whole(&format!("{full}#")).expect_err("too long");
        assert!(over.starts_with("p.toml:1:1: 1048577 bytes: a policy file has at most 1 MiB"), "{over}");
    }
}
