//! `.luaurc`: JSON with comments and trailing commas, of which only the aliases matter here. The other keys
//! are for editors.

use std::collections::BTreeMap;

use serde_json::Value;

use super::path::to_alias;

/// Longest file, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// What a folder calls other places: an alias in lower case, and the path as written.
pub type Aliases = BTreeMap<String, String>;

/// Reads a file.
///
/// # Errors
/// A sentence that says what is wrong with it, and in most cases where.
pub fn parse(source: &[u8]) -> Result<Aliases, String> {
    if source.len() > MAX_BYTES {
        return Err(format!("longer than {MAX_BYTES} bytes"));
    }
    let source = source.strip_prefix("\u{feff}".as_bytes()).unwrap_or(source);
    let value: Value = serde_json::from_slice(&to_json(source)).map_err(|error| error.to_string())?;
    let Value::Object(keys) = value else { return Err("must be an object".to_owned()) };
    let written = match keys.get("aliases") {
        None => return Ok(Aliases::new()),
        Some(Value::Object(aliases)) => aliases,
        Some(_) => return Err("aliases must be an object".to_owned()),
    };
    let mut aliases = Aliases::new();
    for (name, value) in written {
        let alias = to_alias(name).filter(|alias| alias != "self");
        let Some(alias) = alias else { return Err(format!("aliases: {name:?} cannot be an alias")) };
        let Value::String(path) = value else { return Err(format!("aliases: {name:?} must be a string")) };
        if aliases.insert(alias, path.clone()).is_some() {
            return Err(format!("aliases: {name:?} is there twice, in upper and lower case"));
        }
    }
    Ok(aliases)
}

/// Puts spaces where JSON has no word for what is written, so that places in messages stay right.
fn to_json(source: &[u8]) -> Vec<u8> {
    let mut json = source.to_vec();
    let mut rest = 0;
    // The last comma, while nothing but spaces has followed.
    let mut comma = None;
    while let Some(&byte) = json.get(rest) {
        let length = match (byte, json.get(rest + 1)) {
            (b'"', _) => string_bytes(&json[rest..]),
            (b'/', Some(b'/')) => blank(&mut json[rest..], b"\n"),
            (b'/', Some(b'*')) => blank(&mut json[rest..], b"*/"),
            _ => 1,
        };
        match byte {
            b',' => comma = Some(rest),
            b'}' | b']' => {
                if let Some(comma) = comma.take() {
                    json[comma] = b' ';
                }
            }
            b' ' | b'\t' | b'\n' | b'\r' => {}
            // Now a space, if it was a comment.
            _ if json[rest] == b' ' => {}
            _ => comma = None,
        }
        rest += length;
    }
    json
}

/// Length of the string that begins here, with its quotes.
fn string_bytes(json: &[u8]) -> usize {
    let mut escaped = false;
    for (index, &byte) in json.iter().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return index + 1,
            _ => escaped = byte == b'\\' && !escaped,
        }
    }
    json.len()
}

/// Blanks a comment; gives its length. Lines stay lines.
fn blank(json: &mut [u8], end: &[u8]) -> usize {
    // The end of `/*/` is not its beginning.
    let body = json.get(2..).unwrap_or_default();
    let length = body.windows(end.len()).position(|window| window == end);
    let length = length.map_or(json.len(), |length| 2 + length + end.len());
    for byte in json[..length].iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(source: &str) -> Result<Vec<(String, String)>, String> {
        parse(source.as_bytes()).map(|aliases| aliases.into_iter().collect())
    }

    #[test]
    fn comments_and_trailing_commas_are_taken() {
        let source = r#"// "aliases": {"no": "./no"}
            {
                "languageMode": "strict", /* , } */
                "lint": { "*": true, },
                "globals": ["a", "b", /**/],
                "aliases": {
                    "Lib": "./li//b", // no comment inside a string
                    "a": "/* none */ \" // , }", /*/ still a comment /*/
                    "b": "\\",
                },
            } // the end"#;
        let expected = [("a", "/* none */ \" // , }"), ("b", "\\"), ("lib", "./li//b")];
        assert_eq!(pairs(source), Ok(expected.map(|(alias, path)| (alias.into(), path.into())).to_vec()));
        for source in ["{}", "\u{feff}{}", "{//\n}", "{\"aliases\": {}}", "/**/{ }", "{ \"x\": [1,2,], }"] {
            assert_eq!(pairs(source), Ok(vec![]), "{source}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (source, expected) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("[]", "must be an object"),
            ("{\"aliases\": []}", "aliases must be an object"),
            ("{\"aliases\": {\"a\": 1}}", "aliases: \"a\" must be a string"),
            ("{\"aliases\": {\"../a\": \"./a\"}}", "aliases: \"../a\" cannot be an alias"),
            ("{\"aliases\": {\"Self\": \"./a\"}}", "aliases: \"Self\" cannot be an alias"),
            (
                "{\"aliases\": {\"A\": \"./a\", \"a\": \"./b\"}}",
                "aliases: \"a\" is there twice, in upper and lower case",
            ),
            ("// one\n/* two\n */ {\n  \"a\" 1}", "expected `:` at line 4 column 7"),
            ("{\"a\": \"", "EOF while parsing a string at line 1 column 7"),
            ("{\"a\": /* for ever", "EOF while parsing a value at line 1 column 17"),
            ("{,,}", "key must be a string at line 1 column 2"),
        ] {
            assert_eq!(pairs(source), Err(expected.to_owned()), "{source}");
        }
        let deep = "[".repeat(10_000);
        assert!(pairs(&deep).expect_err("deep").contains("recursion limit"));
        assert!(parse(&[0xff, 0xfe]).is_err());
        assert!(pairs(&" ".repeat(MAX_BYTES + 1)).expect_err("long").contains("longer"));
    }
}
