//! The tables of keys as a JSON Schema (draft 2020-12), for editors that complete and check TOML.
//!
//! It says what the reader checks by form: which keys there are, of which type, in which unit, which must be
//! there. What the conversion knows beyond, a name's grammar or that two routes collide, is said by `neoc check`.

use serde_json::{Map, Value, json};

use super::{
    Policy,
    keys::{Form, Key, REQUIRED},
};

const NUMBER: &str = "(0|[1-9][0-9]*)";

/// The schema of a policy file.
pub fn schema() -> Value {
    let mut schema = Map::new();
    schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    schema.insert("title".into(), "A policy of neoc".into());
    schema.extend(table(Policy::keys()));
    Value::Object(schema)
}

fn table(keys: &[Key]) -> Map<String, Value> {
    let properties: Map<String, Value> = keys.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    let required: Vec<&str> = keys.iter().filter(|key| key.default == REQUIRED).map(|key| key.name).collect();
    let mut table = Map::new();
    table.insert("type".into(), "object".into());
    table.insert("additionalProperties".into(), false.into());
    table.insert("properties".into(), properties.into());
    if !required.is_empty() {
        table.insert("required".into(), required.into());
    }
    table
}

fn property(key: &Key) -> Value {
    let mut property = form(&key.form);
    property.insert("description".into(), key.doc.into());
    if let Some(default) = from_toml(key.default) {
        property.insert("default".into(), default);
    }
    property.extend(from_toml(key.example).map(|example| ("examples".into(), json!([example]))));
    Value::Object(property)
}

fn form(form: &Form) -> Map<String, Value> {
    let text = || json!({ "type": "string" });
    let texts = || json!({ "type": "array", "items": text() });
    let pattern = |pattern: String| json!({ "type": "string", "pattern": pattern });
    let schema = match form {
        Form::Text(_) => text(),
        Form::Word(words) => json!({ "type": "string", "enum": words }),
        Form::Size { .. } => pattern(format!("^{NUMBER} (B|KiB|MiB|GiB)$")),
        Form::Time { .. } => pattern(format!("^{NUMBER} (ms|s|m)$")),
        Form::Rate { .. } => pattern("^[1-9][0-9]*/(s|m|h)$".to_owned()),
        Form::Flow { .. } => pattern(format!("^{NUMBER} (B|KiB|MiB|GiB)/(s|m|h)$")),
        Form::Count { least, most } => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Form::Texts(_) => texts(),
        Form::TextOrTexts(_) => json!({ "anyOf": [text(), texts()] }),
        Form::Table(keys) => Value::Object(table(keys)),
        Form::Tables(keys) => json!({ "type": "array", "items": table(keys) }),
        Form::Named(keys, names) => json!({
            "type": "object",
            "propertyNames": { "pattern": names.pattern },
            "additionalProperties": table(keys),
        }),
    };
    match schema {
        Value::Object(schema) => schema,
        // Each arm above makes an object.
        _ => Map::new(),
    }
}

/// A value as TOML, as JSON. `None` for words in brackets, and for nothing.
fn from_toml(text: &str) -> Option<Value> {
    let table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    serde_json::to_value(table.get("value")?).ok()
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;

    /// What a value of one key's table looks like, with all that must stand beside it.
    fn within(keys: &[Key], name: &str, value: toml::Value) -> toml::Table {
        let required = keys.iter().filter(|key| key.default == REQUIRED);
        let mut table: toml::Table = required.map(|key| (key.name.to_owned(), example(key.example))).collect();
        table.insert(name.to_owned(), value);
        table
    }

    fn example(text: &str) -> toml::Value {
        let mut table: toml::Table = toml::from_str(&format!("value = {text}")).expect(text);
        table.remove("value").expect(text)
    }

    /// Puts a table where a form has tables.
    fn wrap(form: &Form, table: toml::Table) -> toml::Value {
        match form {
            Form::Tables(_) => toml::Value::Array(vec![table.into()]),
            Form::Named(_, names) => {
                let mut named = example(&format!("{{ {} = {{}} }}", names.example));
                named.as_table_mut().expect("a table").iter_mut().for_each(|(_, value)| *value = table.clone().into());
                named
            }
            _ => table.into(),
        }
    }

    /// A policy around a table that lies somewhere in it.
    type Around<'a> = &'a dyn Fn(toml::Table) -> toml::Table;

    /// Looks at a key: its path, itself, the keys beside it, and what makes a policy of a table of these.
    type Look<'a> = &'a mut dyn FnMut(&str, &Key, &[Key], Around<'_>);

    /// Calls `each` for every key, with its path, the keys beside it, and what makes a policy of a table of these.
    fn walk(path: &str, keys: &[Key], around: Around<'_>, each: Look<'_>) {
        for key in keys {
            let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            each(&path, key, keys, around);
            if let Form::Table(below) | Form::Tables(below) | Form::Named(below, _) = key.form {
                let around = |table: toml::Table| around(within(keys, key.name, wrap(&key.form, table)));
                walk(&path, below, &around, each);
            }
        }
    }

    fn parses(policy: &toml::Table) -> Result<(), String> {
        let text = toml::to_string(policy).expect("a table");
        Policy::parse(&text, Path::new("p.toml")).map(drop).map_err(|errors| format!("{errors}\n{text}"))
    }

    /// A profile for those that extend one, beside what is looked at.
    fn with_profile(mut policy: toml::Table) -> toml::Table {
        if !policy.contains_key("profile") {
            policy.insert("profile".to_owned(), example("{ web = {} }"));
        }
        policy
    }

    #[test]
    fn parser_and_schema_take_each_keys_example_and_default() {
        let validator = jsonschema::validator_for(&schema()).expect("a schema");
        let mut n_keys = 0;
        walk("", Policy::keys(), &|table| table, &mut |path, key, beside, around| {
            n_keys += 1;
            for value in [Some(example(key.example)), from_toml(key.default).map(|_| example(key.default))] {
                let Some(value) = value else { continue };
                let policy = with_profile(around(within(beside, key.name, value)));
                assert_eq!(parses(&policy), Ok(()), "{path}");
                let json = serde_json::to_value(&policy).expect(path);
                let fault = validator.iter_errors(&json).next().map(|fault| fault.to_string());
                assert_eq!(fault, None, "{path}: {policy}");
            }
        });
        assert!(n_keys > 100, "{n_keys}");
    }

    #[test]
    fn parser_and_schema_refuse_unknown_keys_and_other_types() {
        let validator = jsonschema::validator_for(&schema()).expect("a schema");
        let both_refuse = |path: &str, policy: toml::Table| {
            assert!(parses(&policy).is_err(), "{path}: the parser takes {policy}");
            let json = serde_json::to_value(&policy).expect(path);
            assert!(!validator.is_valid(&json), "{path}: the schema takes {policy}");
        };
        walk("", Policy::keys(), &|table| table, &mut |path, key, beside, around| {
            both_refuse(path, around(within(beside, key.name, toml::Value::Float(1.5))));
            let mut unknown = within(beside, key.name, example(key.example));
            unknown.insert(format!("x-{}", key.name), example(key.example));
            both_refuse(path, around(unknown));
            let wrong_units: &[&str] = match key.form {
                Form::Size { .. } => &["10 MB", "10MiB", "1.5 MiB", "-1 B", "010 B"],
                Form::Time { .. } => &["1 h", "5", "0.5 s"],
                Form::Rate { .. } => &["0/s", "5/d", "5"],
                Form::Flow { .. } => &["5 KB/s", "5 KiB", "5/s"],
                Form::Word(_) => &["other", ""],
                _ => &[],
            };
            for wrong in wrong_units {
                both_refuse(path, around(within(beside, key.name, toml::Value::String((*wrong).to_owned()))));
            }
            if key.default == REQUIRED {
                let mut without = within(beside, key.name, example(key.example));
                without.remove(key.name);
                both_refuse(path, around(without));
            }
        });
    }

    /// The edges of a form's range, as values: those that are in it, and their neighbours outside.
    fn edges(form: &Form) -> Option<([toml::Value; 2], Vec<toml::Value>)> {
        let text = |text: String| toml::Value::String(text);
        let bytes = |bytes: u64| text(format!("{bytes} B"));
        let time = |time: Duration| text(format!("{} ms", time.as_millis()));
        Some(match *form {
            Form::Size { least, most } => {
                ([bytes(least), bytes(most)], least.checked_sub(1).into_iter().chain([most + 1]).map(bytes).collect())
            }
            Form::Time { least, most } => {
                let ms = Duration::from_millis(1);
                ([time(least), time(most)], vec![time(least - ms), time(most + ms)])
            }
            Form::Rate { most } => {
                let rate = |count: u32| text(format!("{count}/s"));
                ([rate(1), rate(most)], vec![rate(0), rate(most + 1)])
            }
            Form::Flow { least, most } => {
                let flow = |bytes: u64| text(format!("{bytes} B/s"));
                ([flow(least), flow(most)], vec![flow(least - 1), flow(most + 1)])
            }
            Form::Count { least, most } => ([least.into(), most.into()], vec![(least - 1).into(), (most + 1).into()]),
            _ => return None,
        })
    }

    #[test]
    fn each_keys_range_is_the_parsers() {
        let mut n_ranges = 0;
        walk("", Policy::keys(), &|table| table, &mut |path, key, beside, around| {
            let Some((within_range, outside)) = edges(&key.form) else { return };
            n_ranges += 1;
            let policy = |value: toml::Value| {
                let mut table = within(beside, key.name, value);
                // Two keys are bounded by another one as well, which stands beside them at its most.
                let companion = match path.rsplit_once('.') {
                    Some((at, "cpu")) if at.ends_with("limits") => Some("wall"),
                    Some((at, "log_line")) if at.ends_with("limits") => Some("log"),
                    _ => None,
                };
                if let Some(other) = companion.and_then(|name| beside.iter().find(|other| other.name == name)) {
                    let ([_, most], _) = edges(&other.form).expect("it has a range");
                    table.insert(other.name.to_owned(), most);
                }
                around(table)
            };
            for value in within_range {
                assert_eq!(parses(&policy(value.clone())), Ok(()), "{path} = {value}");
            }
            for value in outside {
                assert!(parses(&policy(value.clone())).is_err(), "{path} = {value}");
            }
        });
        assert!(n_ranges > 40, "{n_ranges}");
    }

    #[test]
    fn the_schema_takes_the_committed_policies() {
        let validator = jsonschema::validator_for(&schema()).expect("a schema");
        for source in [
            include_str!("../../../policies/minimal.toml"),
            include_str!("../../../policies/commented.toml"),
            include_str!("../../../policies/demo.toml"),
        ] {
            let table: toml::Table = toml::from_str(source).expect("TOML");
            let json = serde_json::to_value(&table).expect("JSON");
            assert_eq!(validator.iter_errors(&json).map(|fault| fault.to_string()).next(), None, "{source}");
        }
    }
}
