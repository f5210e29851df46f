//! Which module a name means where it is written: [`path`] with the aliases of `.luaurc` files.
//!
//! Pure: where a file must be read first, the answer is which.

use std::collections::BTreeMap;

use neoc_abi::OperationError;
use neoc_abi::error::truncate_at_char;
use neoc_abi::module::CONFIGURATION;

use super::luaurc::{self, Aliases};
use super::path::{self, Name, Rule};

/// Longest name that an error repeats, in bytes.
const MAX_SHOWN_BYTES: usize = 256;

/// The `.luaurc` files that were looked for.
#[derive(Default)]
pub struct Configurations {
    /// By folder. None: there is none.
    by_folder: BTreeMap<String, Option<Aliases>>,
}

/// How far a name is understood.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It is this module.
    Module(String),
    /// These `.luaurc` files must be looked for, nearest first; then it is to be asked again.
    LookFor(Vec<String>),
}

/// What stands between a name and its module.
enum Obstacle {
    Refused(Box<OperationError>),
    Unknown(Vec<String>),
}

// === impl Obstacle ===

impl Obstacle {
    fn refused(message: String) -> Self {
        Self::Refused(Box::new(OperationError::invalid(message)))
    }
}

// === impl Configurations ===

impl Configurations {
    /// Finds the module that `name` means in the file `requirer`.
    ///
    /// # Errors
    /// [`neoc_abi::ErrorKind::Invalid`] for a name that is refused, and for an alias that leads nowhere.
    pub fn resolve(&self, requirer: &str, name: &str) -> Result<Step, OperationError> {
        match self.module(requirer, name) {
            Ok(module) => Ok(Step::Module(module)),
            Err(Obstacle::Unknown(paths)) => Ok(Step::LookFor(paths)),
            Err(Obstacle::Refused(error)) => Err(*error),
        }
    }

    /// Takes the answer for the paths of a [`Step::LookFor`]: which are there, and the text of the first.
    ///
    /// # Errors
    /// [`neoc_abi::ErrorKind::Invalid`] for a text that is no `.luaurc`.
    pub fn learn(&mut self, paths: &[String], present: &[u32], source: &[u8]) -> Result<(), OperationError> {
        let mut present = present.iter().filter_map(|index| usize::try_from(*index).ok());
        let first = present.next();
        let others: Vec<usize> = present.collect();
        for (index, path) in paths.iter().enumerate() {
            let folder = path::parent(path).unwrap_or_default().to_owned();
            if first == Some(index) {
                let aliases = luaurc::parse(source)
                    .map_err(|problem| OperationError::invalid(format!("require: {path}: {problem}")))?;
                self.by_folder.insert(folder, Some(aliases));
            } else if !others.contains(&index) {
                self.by_folder.insert(folder, None);
            }
        }
        Ok(())
    }

    fn module(&self, requirer: &str, name: &str) -> Result<String, Obstacle> {
        let refuse = |rule: Rule| refusal(name, rule);
        let module = path::module_of(requirer);
        let path = match path::parse(name).map_err(refuse)? {
            Name::Relative(way) => {
                let folder = path::parent(module).ok_or_else(|| {
                    refuse("leads out of the script's folder: of an init file, ./ is what is beside its folder, and @self/ what is in it")
                })?;
                path::walk(folder, way).map_err(refuse)?
            }
            Name::OfItself(way) => path::walk(module, way).map_err(refuse)?,
            Name::Aliased { alias, rest } => {
                let folder = path::parent(requirer).unwrap_or_default();
                let target = self.alias(folder, &alias, &mut Vec::new())?;
                path::walk(&target, rest).map_err(refuse)?
            }
        };
        path::check_module(path).map_err(refuse)
    }

    /// Where an alias leads that is used in `folder`. `trail` holds the aliases that have led to it.
    fn alias(&self, folder: &str, alias: &str, trail: &mut Vec<(String, String)>) -> Result<String, Obstacle> {
        let unknown = |folder: &&str| !self.by_folder.contains_key(*folder);
        for place in path::and_above(folder) {
            match self.by_folder.get(place) {
                None => {
                    let paths = path::and_above(place).filter(unknown).map(configuration_in).collect();
                    return Err(Obstacle::Unknown(paths));
                }
                Some(None) => {}
                Some(Some(aliases)) => {
                    if let Some(value) = aliases.get(alias) {
                        return self.follow(place, alias, value, trail);
                    }
                }
            }
        }
        let message = format!("no {CONFIGURATION} in {} or above has this alias", shown(folder));
        Err(refusal(&format!("@{alias}"), &message))
    }

    /// Where the value of an alias leads.
    fn follow(
        &self,
        folder: &str,
        alias: &str,
        value: &str,
        trail: &mut Vec<(String, String)>,
    ) -> Result<String, Obstacle> {
        let file = configuration_in(folder);
        let refuse =
            |rule: &str| Obstacle::refused(format!("require: {file}: the alias {alias:?}: {:?} {rule}", cut(value)));
        let step = (folder.to_owned(), alias.to_owned());
        if trail.contains(&step) {
            return Err(refuse("leads back to itself"));
        }
        trail.push(step);
        // A folder may be written with a slash at its end.
        let way = value.strip_suffix('/').unwrap_or(value);
        if value.starts_with("./") || value.starts_with("../") {
            return path::walk(folder, way).map_err(refuse);
        }
        match path::parse(way).map_err(refuse)? {
            Name::Aliased { alias, rest } => {
                let target = self.alias(folder, &alias, trail)?;
                path::walk(&target, rest).map_err(refuse)
            }
            Name::Relative(_) | Name::OfItself(_) => Err(refuse("must start with ./, ../ or another alias")),
        }
    }
}

fn configuration_in(folder: &str) -> String {
    if folder.is_empty() { CONFIGURATION.to_owned() } else { format!("{folder}/{CONFIGURATION}") }
}

fn refusal(name: &str, rule: &str) -> Obstacle {
    Obstacle::refused(format!("require: {:?} {rule}", cut(name)))
}

/// A folder, as a message names it.
fn shown(folder: &str) -> &str {
    if folder.is_empty() { "the script's folder" } else { folder }
}

fn cut(text: &str) -> String {
    let mut text = text.to_owned();
    truncate_at_char(&mut text, MAX_SHOWN_BYTES);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resolves with these files; gives the module or the message, and what was looked for.
    fn resolve(files: &[(&str, &str)], requirer: &str, name: &str) -> (Result<String, String>, Vec<String>) {
        let (mut configurations, mut looked) = (Configurations::default(), Vec::new());
        loop {
            match configurations.resolve(requirer, name) {
                Err(error) => return (Err(error.message), looked),
                Ok(Step::Module(module)) => return (Ok(module), looked),
                Ok(Step::LookFor(paths)) => {
                    let there = |path: &String| files.iter().find(|(file, _)| file == path);
                    let present: Vec<u32> =
                        (0..).zip(&paths).filter(|(_, p)| there(p).is_some()).map(|(i, _)| i).collect();
                    let source = paths.iter().find_map(there).map_or("", |(_, source)| source);
                    looked.push(paths.join(" "));
                    if let Err(error) = configurations.learn(&paths, &present, source.as_bytes()) {
                        return (Err(error.message), looked);
                    }
                }
            }
        }
    }

    #[test]
    fn the_nearest_configuration_that_has_the_alias_wins() {
        let files = [
            ("a/.luaurc", r#"{"aliases": {"near": "./x", "both": "./x", "up": "../y/", "here": "./"}}"#),
            (".luaurc", r#"{"aliases": {"far": "./z", "both": "./z", "root": "./"}}"#),
        ];
        for (name, module) in [
            ("@near", "a/x"),
            ("@near/m", "a/x/m"),
            ("@NEAR/m", "a/x/m"),
            ("@both/m", "a/x/m"),
            ("@up/m", "y/m"),
            ("@here/m", "a/m"),
            ("@far/m", "z/m"),
            ("@root/m", "m"),
            ("@root", ""),
            ("@far/../m", "m"),
        ] {
            let (resolved, looked) = resolve(&files, "a/b/c.luau", name);
            assert_eq!(resolved.as_deref(), Ok(module), "{name}");
            // One trip for the whole way up, and one more when the nearest has not got it.
            assert_eq!(looked[0], "a/b/.luaurc a/.luaurc .luaurc");
            assert_eq!(looked.len(), if name.contains("far") || name.contains("root") { 2 } else { 1 }, "{name}");
        }
        assert_eq!(resolve(&files, "main.luau", "@both/m").0.as_deref(), Ok("z/m"));
        // An init file looks in its own folder first.
        assert_eq!(resolve(&files, "a/init.luau", "@near/m").0.as_deref(), Ok("a/x/m"));
    }

    #[test]
    fn what_is_known_is_not_looked_for_again() {
        let mut configurations = Configurations::default();
        let paths = ["a/.luaurc".to_owned(), ".luaurc".to_owned()];
        configurations.learn(&paths, &[1], br#"{"aliases": {"x": "./x"}}"#).expect("fine");
        assert_eq!(configurations.resolve("a/b.luau", "@x"), Ok(Step::Module("x".into())));
        assert_eq!(
            configurations.resolve("b/c/d.luau", "@x"),
            Ok(Step::LookFor(vec!["b/c/.luaurc".into(), "b/.luaurc".into()]))
        );
        assert_eq!(configurations.resolve("b/c/d.luau", "./x"), Ok(Step::Module("b/c/x".into())));
    }

    #[test]
    fn an_alias_may_stand_for_another() {
        let files = [
            ("a/.luaurc", r#"{"aliases": {"one": "@two/x", "two": "@Far/y/", "self2": "@self/x"}}"#),
            (".luaurc", r#"{"aliases": {"far": "./far", "a": "@b", "b": "@c/x", "c": "@a/y"}}"#),
        ];
        assert_eq!(resolve(&files, "a/m.luau", "@one/z").0.as_deref(), Ok("far/y/x/z"));
        let message = resolve(&files, "a/m.luau", "@a/z").0.expect_err("a circle");
        assert_eq!(message, "require: .luaurc: the alias \"a\": \"@b\" leads back to itself");
        let message = resolve(&files, "a/m.luau", "@self2/z").0.expect_err("not a place");
        assert!(message.ends_with("must start with ./, ../ or another alias"), "{message}");
    }

    #[test]
    fn no_alias_leads_out_of_the_folder() {
        for value in [
            "../x",
            "./../x",
            "./a/../../x",
            "/etc",
            "x",
            "",
            "C:/x",
            ".\\x",
            "./a//b",
            "./.git",
            "@",
            "~",
            "./a\\u0000",
        ] {
            let source = format!(r#"{{"aliases": {{"a": "{}"}}}}"#, value.replace(".\\x", ".\\\\x"));
            let message = resolve(&[(".luaurc", &source)], "m.luau", "@a/x").0.expect_err(value);
            assert!(message.starts_with("require: .luaurc: the alias \"a\": "), "{value}: {message}");
        }
        let files = [("lib/.luaurc", r#"{"aliases": {"up": "../"}}"#)];
        assert_eq!(resolve(&files, "lib/m.luau", "@up/x").0.as_deref(), Ok("x"));
        for name in ["@up/../x", "@up/../../x", "@up/.luaurc", "@up//x", "@up/x\\y", "@up/lib/init"] {
            assert!(resolve(&files, "lib/m.luau", name).0.is_err(), "{name}");
        }
    }

    #[test]
    fn messages_name_the_path_and_the_rule() {
        let files = [("a/.luaurc", "{\"aliases\": nil}")];
        for (requirer, name, message) in [
            ("main.luau", "../x", "require: \"../x\" leads out of the script's folder"),
            ("main.luau", "./a\0", "require: \"./a\\0\" has a colon or a control character"),
            ("main.luau", "@no/x", "require: \"@no\" no .luaurc in the script's folder or above has this alias"),
            ("b/c.luau", "@no/x", "require: \"@no\" no .luaurc in b or above has this alias"),
            ("a/b.luau", "@no/x", "require: a/.luaurc: expected ident at line 1 column 14"),
        ] {
            assert_eq!(resolve(&files, requirer, name).0, Err(message.to_owned()));
        }
        let long = resolve(&[], "main.luau", &format!("./{}", "é".repeat(10_000))).0.expect_err("long");
        assert!(long.len() < 400, "{long}");
    }
}
