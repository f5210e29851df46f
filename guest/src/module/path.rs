//! What a module's name means, from text to text, as in Luau's RFCs of require by string.
//!
//! A *module* is a path below the script's folder without extension; one may stand for any of several files:
//!
//! | module | files |
//! |---|---|
//! | `lib/util` | `lib/util.luau`, `lib/util.lua`, `lib/util/init.luau`, `lib/util/init.lua` |
//! | empty: the folder itself | `init.luau`, `init.lua` |
//!
//! So the code in `lib/init.luau` is that of the module `lib`: what is beside it is beside the folder, and
//! `@self` is the folder.
//!
//! Each module has one spelling. What could mean something else to a file system is refused here, before the
//! host is asked.

use neoc_abi::module::MAX_PATH_BYTES;

/// Why a name is refused, to be read after the name.
pub type Rule = &'static str;

/// The longest of what is added to a module to make a file of it.
const LONGEST_ENDING: &str = "/init.luau";

const OUTSIDE: Rule = "leads out of the script's folder";

/// A name as a script writes it, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// `./a` or `../a`: from the folder that the requiring module is in.
    Relative(&'a str),
    /// `@self` or `@self/a`: from the requiring module itself.
    OfItself(&'a str),
    /// `@alias` or `@alias/a`. Aliases are written in any case.
    Aliased {
        /// In lower case.
        alias: String,
        /// The way from there. Empty: the alias is the module.
        rest: &'a str,
    },
}

/// Takes a name apart.
///
/// # Errors
/// When it begins with something else, or the alias is none.
pub fn parse(name: &str) -> Result<Name<'_>, Rule> {
    if name.starts_with("./") || name.starts_with("../") {
        return Ok(Name::Relative(name));
    }
    let aliased = name.strip_prefix('@').ok_or("must start with ./, ../ or @")?;
    let (alias, rest) = aliased.split_once('/').unwrap_or((aliased, ""));
    if aliased.ends_with('/') {
        return Err("ends with a slash");
    }
    let alias = to_alias(alias).ok_or("has an alias that is not made of letters, digits, - _ and .")?;
    Ok(if alias == "self" { Name::OfItself(rest) } else { Name::Aliased { alias, rest } })
}

/// An alias as it is compared. None: it is none.
pub fn to_alias(text: &str) -> Option<String> {
    // As in Luau's own configuration, one @ may come first.
    let plain = text.strip_prefix('@').unwrap_or(text);
    let is_plain = plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (!text.is_empty() && is_plain && !matches!(text, "." | "..")).then(|| text.to_ascii_lowercase())
}

/// The module that a file holds.
pub fn module_of(file: &str) -> &str {
    let stem = file.strip_suffix(".luau").or_else(|| file.strip_suffix(".lua")).unwrap_or(file);
    if stem == "init" { "" } else { stem.strip_suffix("/init").unwrap_or(stem) }
}

/// The folder that a file or a module is in. None: it is the script's folder itself.
pub fn parent(path: &str) -> Option<&str> {
    match path.rsplit_once('/') {
        Some((folder, _)) => Some(folder),
        None => (!path.is_empty()).then_some(""),
    }
}

/// Goes from a folder the way that is written. A module when `way` is one, else a folder.
///
/// # Errors
/// When it leads above the script's folder, or is spelled so that a file system could take it for something else.
pub fn walk(folder: &str, way: &str) -> Result<String, Rule> {
    let mut names: Vec<&str> = folder.split('/').filter(|name| !name.is_empty()).collect();
    for name in way.split('/').filter(|_| !way.is_empty()) {
        match name {
            "." => {}
            ".." => drop(names.pop().ok_or(OUTSIDE)?),
            "" => return Err("has an empty name between its slashes, or after the last"),
            hidden if hidden.starts_with('.') => return Err("has a name that starts with a dot"),
            name if name.contains('\\') => return Err("has a backslash; folders are separated by /"),
            name if name.contains(|character: char| character.is_control() || character == ':') => {
                return Err("has a colon or a control character");
            }
            name => names.push(name),
        }
    }
    let path = names.join("/");
    if path.len() + LONGEST_ENDING.len() > MAX_PATH_BYTES {
        return Err("is too long; a module's path has at most 200 bytes");
    }
    Ok(path)
}

/// Refuses a second spelling of a folder's module.
///
/// # Errors
/// When the last name is `init`.
pub fn check_module(module: String) -> Result<String, Rule> {
    if module == "init" || module.ends_with("/init") {
        return Err("names an init file; require its folder, or from inside it @self");
    }
    Ok(module)
}

/// The files that can hold a module, in the order in which they are looked for.
pub fn candidates(module: &str) -> Vec<String> {
    if module.is_empty() {
        return vec!["init.luau".to_owned(), "init.lua".to_owned()];
    }
    [".luau", ".lua", "/init.luau", "/init.lua"].iter().map(|ending| format!("{module}{ending}")).collect()
}

/// A folder and those around it, up to the script's.
pub fn and_above(folder: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(folder), |folder| parent(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a name means in a file, without aliases.
    fn resolve(file: &str, name: &str) -> Result<String, Rule> {
        let module = module_of(file);
        let path = match parse(name)? {
            Name::Relative(way) => walk(parent(module).ok_or(OUTSIDE)?, way)?,
            Name::OfItself(way) => walk(module, way)?,
            Name::Aliased { .. } => return Err("an alias"),
        };
        check_module(path)
    }

    #[test]
    fn names_mean_what_the_rfcs_say() {
        for (file, name, module) in [
            ("main.luau", "./a", "a"),
            ("main.luau", "./a/b", "a/b"),
            ("main.luau", "./a/./b", "a/b"),
            ("main.luau", "./a/../b", "b"),
            ("lib/a.luau", "./b", "lib/b"),
            ("lib/a.lua", "../b", "b"),
            ("lib/a.luau", "../lib/b", "lib/b"),
            ("lib/a.luau", "./../b", "b"),
            // An init file is its folder: what is beside it is beside the folder.
            ("lib/init.luau", "./b", "b"),
            ("lib/init.lua", "./lib/b", "lib/b"),
            ("lib/init.luau", "@self/b", "lib/b"),
            ("lib/init.luau", "@SELF/b/c", "lib/b/c"),
            ("lib/deep/init.luau", "../b", "b"),
            ("lib/deep/init.luau", "./b", "lib/b"),
            ("init.luau", "@self/b", "b"),
            // Of another file, @self is the folder of its name.
            ("lib/a.luau", "@self/b", "lib/a/b"),
            ("lib/a.luau", "@self", "lib/a"),
            ("lib/a.luau", "@self/../b", "lib/b"),
            ("main.luau", "./init/a", "init/a"),
            ("main.luau", "./a b", "a b"),
            ("main.luau", "./é", "é"),
            ("main.luau", "./a.b", "a.b"),
            ("main.luau", "./a...", "a..."),
            // The folder itself, by way of one of its modules.
            ("lib/a.luau", "./.", "lib"),
            ("lib/a.luau", "./..", ""),
        ] {
            assert_eq!(resolve(file, name).as_deref(), Ok(module), "{name} in {file}");
        }
    }

    #[test]
    fn no_spelling_leads_out_of_the_folder() {
        let (long, deep) = (format!("./{}", "a".repeat(191)), "../".repeat(5000) + "x");
        for (file, name) in [
            ("main.luau", "../x"),
            ("main.luau", "./../x"),
            ("main.luau", "./a/../../x"),
            ("main.luau", "./a/b/../../../x"),
            ("lib/a.luau", "../../x"),
            ("lib/a.luau", "../.."),
            ("lib/a.luau", "@self/../../../x"),
            ("lib/init.luau", "../x"),
            ("init.luau", "./x"),
            ("init.luau", "@self/../x"),
            ("main.luau", &deep),
            ("main.luau", "/etc/passwd"),
            ("main.luau", "//x"),
            ("main.luau", "x"),
            ("main.luau", "x/y"),
            ("main.luau", ""),
            ("main.luau", "."),
            ("main.luau", ".."),
            ("main.luau", "C:/x"),
            ("main.luau", "C:\\x"),
            ("main.luau", "file:///etc/passwd"),
            ("main.luau", "~/x"),
            ("main.luau", "./C:/x"),
            ("main.luau", "./x:y"),
            ("main.luau", ".\\x"),
            ("main.luau", "./..\\x"),
            ("main.luau", "./a\\..\\x"),
            ("main.luau", "./a\0"),
            ("main.luau", "./a\n"),
            ("main.luau", "./"),
            ("main.luau", ".//x"),
            ("main.luau", "./a//b"),
            ("main.luau", "./a/"),
            ("main.luau", "./.git/x"),
            ("main.luau", "./.x"),
            ("main.luau", "./.../x"),
            ("main.luau", "./.luaurc"),
            ("main.luau", &long),
            ("main.luau", "./init"),
            ("main.luau", "./a/init"),
            ("main.luau", "@"),
            ("main.luau", "@/x"),
            ("main.luau", "@./x"),
            ("main.luau", "@../x"),
            ("main.luau", "@a b/x"),
            ("main.luau", "@self/"),
            ("main.luau", "@self//x"),
            ("main.luau", "@self/.."),
        ] {
            let resolved = resolve(file, name);
            // `@self/..` of the script itself is the folder's own module, which is inside.
            if name == "@self/.." {
                assert_eq!(resolved.as_deref(), Ok(""));
            } else {
                assert!(resolved.is_err(), "{name:?} in {file}: {resolved:?}");
            }
        }
    }

    #[test]
    fn every_candidate_is_a_path_that_tracebacks_can_show() {
        let longest = walk("", &format!("./{}", "a".repeat(190))).expect("just fits");
        assert!(candidates(&longest).iter().all(|path| path.len() <= MAX_PATH_BYTES));
        assert_eq!(candidates("a"), ["a.luau", "a.lua", "a/init.luau", "a/init.lua"]);
        assert_eq!(candidates(""), ["init.luau", "init.lua"]);
    }

    #[test]
    fn the_folders_above_end_with_the_scripts_own() {
        assert_eq!(and_above("a/b").collect::<Vec<_>>(), ["a/b", "a", ""]);
        assert_eq!(and_above("").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn aliases_are_compared_in_lower_case() {
        assert_eq!(parse("@Lib/a"), Ok(Name::Aliased { alias: "lib".into(), rest: "a" }));
        assert_eq!(parse("@lib.2-x_y"), Ok(Name::Aliased { alias: "lib.2-x_y".into(), rest: "" }));
        assert_eq!(parse("@@lib/a/b"), Ok(Name::Aliased { alias: "@lib".into(), rest: "a/b" }));
    }
}
