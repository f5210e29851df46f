//! Finding and reading the files of a policy: what every verb with `--policy` does.

use std::{
    collections::BTreeSet,
    error::Error,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::policy::{Include, MAX_FILE_BYTES, Policy, Source, Unread};

/// Most files of a policy: the main one, and one for each of 10,000 tenants.
const MAX_FILES: usize = 10_001;

/// Most bytes of all files together.
const MAX_BYTES: usize = 64 << 20;

/// A policy's files as they are now.
pub struct PolicyFiles {
    sources: Vec<Source>,
    unread: Vec<Unread>,
}

/// Where the files of a policy are: what tells that one came, went or changed, without reading them all.
#[derive(Debug, Clone)]
pub struct Names {
    main: PathBuf,
    includes: Vec<Include>,
}

/// Reads and parses a policy.
pub fn load_policy(file: &Path) -> Result<Policy, Box<dyn Error>> {
    PolicyFiles::read(file)?.parse()
}

// === impl PolicyFiles ===

impl PolicyFiles {
    /// Reads the main file and those that it includes. A file that cannot be read is an error of
    /// [`PolicyFiles::parse`], at the line that includes it.
    ///
    /// # Errors
    /// When the main file cannot be read.
    pub fn read(main: &Path) -> Result<Self, String> {
        let bytes =
            read_bounded(main).map_err(|error| format!("cannot read the policy {}: {error}", main.display()))?;
        let source = Source::from_bytes(main, bytes);
        let includes = Policy::includes(&source);
        let mut files = Self { sources: vec![source], unread: Vec::new() };
        let mut known = BTreeSet::from([main.to_owned()]);
        let folder = main.parent().unwrap_or(Path::new(""));
        let mut n_bytes = files.sources[0].text.len();
        for include in includes {
            match find(folder, &include.pattern) {
                Ok(found) => {
                    // A file that two patterns name is one file.
                    for file in found.into_iter().filter(|file| known.insert(file.clone())) {
                        n_bytes += files.add(file, &include, n_bytes);
                    }
                }
                Err((rule, help)) => files.unread.push(include.unread(rule, help)),
            }
        }
        Ok(files)
    }

    /// Parses them.
    ///
    /// # Errors
    /// [`crate::policy::PolicyErrors`] with all that is wrong.
    pub fn parse(self) -> Result<Policy, Box<dyn Error>> {
        Ok(Policy::parse_files(self.sources, self.unread)?)
    }

    /// Reads one included file. Returns how long it is.
    fn add(&mut self, file: PathBuf, include: &Include, n_bytes: usize) -> usize {
        let refused = if self.sources.len() >= MAX_FILES {
            Some("a policy has at most 10001 files".to_owned())
        } else if n_bytes > MAX_BYTES {
            Some("the files of a policy have at most 64 MiB together".to_owned())
        } else {
            None
        };
        let bytes = refused.map_or_else(|| read_bounded(&file).map_err(|error| error.to_string()), Err);
        match bytes {
            Ok(bytes) => {
                let n_bytes = bytes.len();
                self.sources.push(Source::from_bytes(&file, bytes));
                n_bytes
            }
            Err(error) => {
                let rule = format!("cannot read {}: {error}", file.display());
                self.unread.push(include.clone().unread(rule, "name files that the host can read"));
                0
            }
        }
    }
}

// === impl Names ===

impl Names {
    /// Reads the main file. One that cannot be read, or is broken, includes nothing.
    pub fn read(main: &Path) -> Self {
        let bytes = read_bounded(main).unwrap_or_default();
        Self { main: main.to_owned(), includes: Policy::includes(&Source::from_bytes(main, bytes)) }
    }

    /// The files that there are now, the main one first.
    pub fn files(&self) -> Vec<PathBuf> {
        let folder = self.main.parent().unwrap_or(Path::new(""));
        let included = self.includes.iter().filter_map(|include| find(folder, &include.pattern).ok()).flatten();
        std::iter::once(self.main.clone()).chain(included).take(MAX_FILES + 1).collect()
    }
}

/// The files that a pattern names, sorted. A pattern's error is a rule, and what to do about it.
fn find(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, (String, &'static str)> {
    let help = "write for example \"tenants/*.toml\"";
    if pattern.is_empty() || pattern.trim() != pattern || pattern.chars().any(char::is_control) {
        return Err(("a path, without spaces around it".to_owned(), help));
    }
    let (parent, name) = pattern.rsplit_once('/').map_or(("", pattern), |(parent, name)| (parent, name));
    let Some((prefix, suffix)) = name.split_once('*') else {
        if parent.contains('*') {
            return Err(("a * stands in the last name only".to_owned(), help));
        }
        return Ok(vec![folder.join(pattern)]);
    };
    if parent.contains('*') || suffix.contains('*') {
        return Err(("one * stands in the last name only".to_owned(), help));
    }
    // The root stays the root.
    let parent = if pattern.starts_with('/') && parent.is_empty() { "/" } else { parent };
    let folder = folder.join(parent);
    let opened = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
    let (mut files, mut is_empty) = (Vec::new(), true);
    let read = |error: io::Error| (format!("cannot read the folder {}: {error}", folder.display()), help);
    for entry in fs::read_dir(opened).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        // What editors and mounts leave beside the files. A name that is no text matches no pattern.
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        is_empty = false;
        if name.len() >= prefix.len() + suffix.len() && name.starts_with(prefix) && name.ends_with(suffix) {
            files.push(folder.join(name));
        }
    }
    if files.is_empty() && !is_empty {
        let rule = format!("no file in {} has such a name", folder.display());
        return Err((rule, "name files that are there; only an empty folder may have none"));
    }
    files.sort();
    Ok(files)
}

/// The bytes of a file, up to one more than it may have. A pipe or a device is refused: reading one may not end.
fn read_bounded(file: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let most = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    File::open(file)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().expect("below the folder")).expect("made");
            fs::write(file, text).expect("written");
        }
        folder
    }

    /// Tenants' names, or the errors without the folder.
    fn load(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let folder = folder(files);
        let policy = load_policy(&folder.path().join("policy.toml"));
        let shown = |error: Box<dyn Error>| error.to_string().replace(&format!("{}/", folder.path().display()), "");
        Ok(policy.map_err(shown)?.tenants.iter().map(|tenant| tenant.name.clone()).collect())
    }

    fn tenant(name: &str) -> String {
        format!("[tenant.{name}]\nscript = \"{name}.luau\"\n")
    }

    #[test]
    fn each_tenant_may_stand_in_a_file_of_its_own() {
        let names = load(&[
            ("policy.toml", "include = [\"more.toml\", \"tenants/t-*.toml\"]\n"),
            ("more.toml", &tenant("z")),
            ("tenants/t-b.toml", &tenant("b")),
            ("tenants/t-a.toml", &tenant("a")),
            ("tenants/.t-hidden.toml", "not TOML"),
            ("tenants/other.toml", "not TOML"),
        ]);
        assert_eq!(names, Ok(vec!["a".into(), "b".into(), "z".into()]));
        let names = load(&[("policy.toml", "include = \"t*.toml\"\n"), ("t1.toml", &tenant("a"))]);
        assert_eq!(names, Ok(vec!["a".into()]));
    }

    #[test]
    fn a_script_is_found_from_the_file_that_names_it() {
        let folder = folder(&[("policy.toml", "include = \"tenants/a.toml\"\n"), ("tenants/a.toml", &tenant("a"))]);
        let policy = load_policy(&folder.path().join("policy.toml")).expect("valid");
        assert_eq!(policy.tenants[0].script, folder.path().join("tenants/a.luau"));
    }

    #[test]
    fn what_is_wrong_in_an_included_file_names_that_file() {
        let errors = load(&[
            ("policy.toml", &format!("include = \"tenants/*.toml\"\n{}", tenant("a"))),
            ("tenants/a.toml", &tenant("a")),
            ("tenants/b.toml", "include = \"x\"\n[host]\nworkers = 1\n[tenant.b]\nscript = 1\n"),
            ("tenants/c.toml", "\na = "),
        ]);
        let expected = "tenants/a.toml:1:9: tenant.a: the same tenant stands at policy.toml:2; give each name to one table\n\
            tenants/b.toml:1:1: include: only the main file has this; move it there\n\
            tenants/b.toml:2:2: host: only the main file has this; move it there\n\
            tenants/b.toml:5:10: tenant.b.script = 1: a string; write for example \"../examples/hello/main.luau\"\n\
            tenants/c.toml:2:5: not TOML: string values must be quoted, expected literal string";
        assert_eq!(errors.expect_err("broken"), expected);
    }

    #[test]
    fn the_same_route_in_two_files_is_an_error_that_names_both() {
        let route = |name| format!("{}routes = [\"/x\"]\n", tenant(name));
        let errors =
            load(&[("policy.toml", "include = \"*-t.toml\"\n"), ("a-t.toml", &route("a")), ("b-t.toml", &route("b"))]);
        let expected = "b-t.toml:3:11: tenant.b.routes[0] = \"/x\": tenant.a has the same route at a-t.toml:3; give each route to one tenant, once";
        assert_eq!(errors.expect_err("twice"), expected);
    }

    #[test]
    fn a_pattern_that_finds_nothing_is_an_error_unless_its_folder_is_empty() {
        let nothing = load(&[("policy.toml", "include = \"tenants/*.toml\"\n"), ("tenants/x.tml", "")]);
        assert!(
            nothing
                .expect_err("none")
                .starts_with("policy.toml:1:11: include[0] = \"tenants/*.toml\": no file in tenants has such a name")
        );
        let absent = load(&[("policy.toml", "include = \"tenants/*.toml\"\n")]);
        assert!(absent.expect_err("absent").contains("cannot read the folder tenants"));
        let empty = load(&[("policy.toml", "include = \"tenants/*.toml\"\n"), ("tenants/.keep", "")]);
        assert_eq!(empty, Ok(Vec::new()));
        let file = load(&[("policy.toml", "include = [\"a.toml\", \"\", \"*/x.toml\", \"**\"]\n")]);
        let errors = file.expect_err("four errors");
        assert!(errors.lines().count() == 4 && errors.contains("cannot read a.toml: "), "{errors}");
    }

    #[test]
    fn a_large_file_is_refused_and_a_pipe_is_not_opened() {
        let folder = folder(&[("policy.toml", "include = [\"large.toml\", \"folder\"]\n"), ("folder/x", "")]);
        File::create(folder.path().join("large.toml")).and_then(|file| file.set_len(100 << 20)).expect("sparse");
        let errors = load_policy(&folder.path().join("policy.toml")).expect_err("refused").to_string();
        assert!(errors.contains("large.toml:1:1: a policy file has at most 1 MiB"), "{errors}");
        assert!(errors.contains("folder: not a file"), "{errors}");
    }

    #[test]
    fn ten_thousand_tenants_in_files_of_their_own_are_read() {
        let folder = folder(&[("policy.toml", "include = \"tenants/*.toml\"\n"), ("tenants/.keep", "")]);
        for n in 0..10_000 {
            let text = format!("{}routes = [\"/t{n}/*\"]\n", tenant(&format!("t{n}")));
            fs::write(folder.path().join(format!("tenants/t{n}.toml")), text).expect("written");
        }
        let policy = load_policy(&folder.path().join("policy.toml")).expect("valid");
        assert_eq!(policy.route(None, "/t4711/x").map(|tenant| tenant.name.as_str()), Some("t4711"));
        fs::write(folder.path().join("tenants/u.toml"), "").expect("written");
        let errors = load_policy(&folder.path().join("policy.toml")).expect_err("one too many").to_string();
        assert!(errors.contains("a policy has at most 10001 files"), "{errors}");
    }
}
