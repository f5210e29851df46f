//! `[[tenant.NAME.allow.fs]]`: granted directories, and the decision on a path.
//!
//! A script's path is taken apart by text alone, before any file system sees it. What two systems read
//! differently is refused on all of them rather than made plain: `..`, `.`, `//`, `\`, drive letters,
//! names that Windows reserves, control characters, a final slash. What is left has one meaning, and
//! the capability resolves it below the granted directory without ever leaving that.
//!
//! The grant with the longest path that covers a path decides on it. Two grants may have the same path
//! only if they have the same directory too; then either may allow the call.

use std::{fmt, ops::Range, path::PathBuf};

use toml::Spanned;

use super::{
    Place,
    error::{Broken, Errors, child},
    fix::Remedy,
    raw::{DenyFsToml, FsToml, ModuleFsToml},
    refusal::{Reason, Refusal},
};

/// The capability's name in errors, logs and metrics.
pub const CAPABILITY: &str = "fs";

/// Longest path, in bytes.
const MAX_PATH_BYTES: usize = 4096;
/// Longest name of a file or directory, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// Most names in a path.
const MAX_DEPTH: usize = 32;

/// A granted directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The directory as the script sees it.
    pub path: VirtualPath,
    /// The directory itself, below the host's data folder.
    pub dir: PathBuf,
    /// What may be done in it.
    pub access: Access,
    /// Where the policy file grants it.
    pub place: Place,
}

/// A file or directory that is denied, with all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deny {
    /// As the script sees it.
    pub path: VirtualPath,
    /// Where the policy file denies it.
    pub place: Place,
}

/// An absolute path in a script's eyes, in its one spelling: `/data`, or `/` for the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VirtualPath(String);

/// What may be done in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read files and list directories.
    Read,
    /// Also create, replace and remove.
    ReadWrite,
}

/// Where a script's path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<'a> {
    /// The grant that allows it.
    pub grant: &'a Grant,
    /// Its place among the tenant's grants.
    pub grant_index: usize,
    /// The way from the granted directory. `.` is that directory itself.
    pub relative: PathBuf,
}

// === impl VirtualPath ===

impl VirtualPath {
    /// The path, with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes a path in its one spelling.
    ///
    /// # Errors
    /// What is wrong with it, in words that a script may see.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_PATH_BYTES {
            return Err("the path has more than 4096 bytes");
        }
        let Some(names) = text.strip_prefix('/') else {
            return Err("a path is absolute: it starts with /");
        };
        if names.is_empty() {
            return Ok(Self(text.to_owned()));
        }
        if names.ends_with('/') {
            return Err("a path ends in a name, not in /");
        }
        if names.split('/').count() > MAX_DEPTH {
            return Err("the path has more than 32 names");
        }
        names.split('/').try_for_each(check_name)?;
        Ok(Self(text.to_owned()))
    }

    /// The names below `parent`, with slashes between. `None` when the path is not there.
    fn below(&self, parent: &Self) -> Option<&str> {
        // The root ends in a slash, other paths do not: compare without.
        let rest = self.0.strip_prefix(parent.0.trim_end_matches('/'))?;
        if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
    }
}

impl fmt::Display for VirtualPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("a path has one / between two names");
    }
    if name == "." || name == ".." {
        return Err("a path has no . and no ..");
    }
    if name.len() > MAX_NAME_BYTES {
        return Err("a name has more than 255 bytes");
    }
    if name.chars().any(char::is_control) {
        return Err("a name has no control characters");
    }
    if name.contains(['\\', ':']) {
        return Err("a name has no backslash and no colon");
    }
    if name.ends_with(['.', ' ']) {
        return Err("a name does not end in a dot or a space");
    }
    if is_device(name) {
        return Err("the name means a device on some systems");
    }
    Ok(())
}

/// Whether Windows takes a name for a device, whatever its extension.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_lowercase();
    if ["con", "prn", "aux", "nul", "conin$", "conout$"].contains(&stem.as_str()) {
        return true;
    }
    let number = stem.strip_prefix("com").or_else(|| stem.strip_prefix("lpt"));
    number.is_some_and(|number| ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "¹", "²", "³"].contains(&number))
}

// === impl Access ===

impl Access {
    /// As in the policy file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadWrite => "read-write",
        }
    }

    /// Whether a call that writes, or one that does not, is allowed.
    pub fn allows(self, writes: bool) -> bool {
        !writes || self == Self::ReadWrite
    }

    fn parse(text: &str) -> Result<Self, Broken> {
        match text {
            "read" => Ok(Self::Read),
            "read-write" => Ok(Self::ReadWrite),
            _ => Err(Broken::new("read or read-write").write("\"read\"")),
        }
    }
}

// === The decision ===

/// Decides on a path as the script wrote it.
///
/// # Errors
/// [`Reason::BadTarget`], [`Reason::DeniedByRule`], [`Reason::NotGranted`], [`Reason::PathNotGranted`] or
/// [`Reason::PathNotWritable`].
pub fn decide<'a>(grants: &'a [Grant], denied: &[Deny], path: &str, writes: bool) -> Result<Located<'a>, Refusal> {
    let refuse = |reason| Refusal::new(CAPABILITY, path, reason);
    let asked = VirtualPath::parse(path).map_err(|why| refuse(Reason::BadTarget).note(why))?;
    // By the path as it is written: a link to a denied file has a name of its own.
    if let Some(deny) = denied.iter().find(|deny| asked.below(&deny.path).is_some()) {
        return Err(refuse(Reason::DeniedByRule).near(&deny.place));
    }
    if writes && asked.0 == "/" {
        return Err(refuse(Reason::BadTarget).note("the root is neither written nor removed"));
    }
    let access = if writes { Access::ReadWrite } else { Access::Read };
    let covering =
        grants.iter().enumerate().filter_map(|(index, grant)| Some((index, grant, asked.below(&grant.path)?)));
    // The longest path first; among equal ones, which have one directory, any that allows the call.
    let best = covering
        .max_by_key(|(index, grant, _)| (grant.path.0.len(), grant.access.allows(writes), std::cmp::Reverse(*index)));
    let Some((grant_index, grant, below)) = best else {
        let reason = if grants.is_empty() { Reason::NotGranted } else { Reason::PathNotGranted };
        let path = path_to_grant(&asked, writes);
        return Err(refuse(reason).remedy(Remedy::Fs { path, dir: None, access }));
    };
    // Before the access, which would not help.
    if writes && below.is_empty() {
        let refusal = refuse(Reason::BadTarget).note("the granted directory itself is neither written nor removed");
        return Err(refusal.near(&grant.place));
    }
    if !grant.access.allows(writes) {
        let remedy = Remedy::Fs { path: grant.path.0.clone(), dir: Some(dir_text(grant)), access };
        return Err(refuse(Reason::PathNotWritable).near(&grant.place).remedy(remedy));
    }
    Ok(Located { grant, grant_index, relative: PathBuf::from(if below.is_empty() { "." } else { below }) })
}

/// The directory that a fix grants: the first of the path. A path of one name is taken for a directory
/// that is listed, unless it is written to or its dot makes it look like a file in the root.
fn path_to_grant(asked: &VirtualPath, writes: bool) -> String {
    let names = asked.0.trim_start_matches('/');
    match names.split_once('/') {
        Some((first, _)) => format!("/{first}"),
        None if writes || names.contains('.') => "/".to_owned(),
        None => asked.0.clone(),
    }
}

fn dir_text(grant: &Grant) -> String {
    grant.dir.to_string_lossy().into_owned()
}

// === Conversion ===

pub(super) fn enforce(raw: Vec<Spanned<FsToml>>, at: &str, errors: &mut Errors<'_>) -> Vec<Grant> {
    let mut grants: Vec<Grant> = Vec::with_capacity(raw.len());
    for (index, grant) in raw.into_iter().enumerate() {
        let at = format!("{at}[{index}]");
        let span = grant.span();
        let FsToml { path, dir, access } = grant.into_inner();
        for (key, absent, example) in [
            ("path", path.is_none(), "\"/data\""),
            ("dir", dir.is_none(), "\"acme-data\""),
            ("access", access.is_none(), "\"read\""),
        ] {
            if absent {
                errors.missing(&at, key, span.clone(), example);
            }
        }
        let place = path.as_ref().map_or(span.clone(), Spanned::span);
        let path = errors.value(&child(&at, "path"), path.as_ref(), |text| {
            VirtualPath::parse(text).map_err(|rule| Broken::new(rule).write("\"/data\""))
        });
        let dir = errors.value(&child(&at, "dir"), dir.as_ref(), |text| self::dir(text));
        let access = errors.value(&child(&at, "access"), access.as_ref(), |text| Access::parse(text));
        if let (Some(path), Some(dir), Some(access)) = (path, dir, access) {
            let grant = Grant { path, dir, access, place: errors.place(&span) };
            refuse_contradiction(&grants, &grant, &child(&at, "path"), place, errors);
            grants.push(grant);
        }
    }
    grants
}

pub(super) fn enforce_deny(raw: Vec<Spanned<DenyFsToml>>, at: &str, errors: &mut Errors<'_>) -> Vec<Deny> {
    let mut denied = Vec::with_capacity(raw.len());
    for (index, deny) in raw.into_iter().enumerate() {
        let (at, span) = (format!("{at}[{index}]"), deny.span());
        let DenyFsToml { path } = deny.into_inner();
        if path.is_none() {
            errors.missing(&at, "path", span.clone(), "\"/data/private\"");
        }
        let path = errors.value(&child(&at, "path"), path.as_ref(), |text| {
            VirtualPath::parse(text).map_err(|rule| Broken::new(rule).write("\"/data/private\""))
        });
        denied.extend(path.map(|path| Deny { path, place: errors.place(&span) }));
    }
    denied
}

fn refuse_contradiction(earlier: &[Grant], grant: &Grant, key: &str, place: Range<usize>, errors: &mut Errors<'_>) {
    let same_path = earlier.iter().filter(|other| other.path == grant.path);
    for other in same_path {
        if other.dir != grant.dir {
            let rule = format!("the same path as at {}, with another directory", other.place);
            errors.add(key, place.clone(), Broken::new(rule).help("give each directory a path of its own"));
            return;
        }
        if other.access == grant.access {
            let rule = format!("the same grant as at {}", other.place);
            errors.add(key, place.clone(), Broken::new(rule).help("leave one of them out"));
            return;
        }
    }
}

/// Converts the directories of a module: what it may see of its tenant's.
pub(super) fn enforce_of_module(raw: Vec<Spanned<ModuleFsToml>>, at: &str, errors: &mut Errors<'_>) -> Vec<Grant> {
    let mut grants = Vec::with_capacity(raw.len());
    for (index, grant) in raw.into_iter().enumerate() {
        let (at, span) = (format!("{at}[{index}]"), grant.span());
        let place = errors.place(&span);
        // Nothing is opened by it: it is asked beside the grant that has the directory.
        let new = |(path, access)| Grant { path, dir: PathBuf::new(), access, place };
        grants.extend(module_grant(grant.into_inner(), &at, &span, errors).map(new));
    }
    grants
}

/// Converts a narrowing: a path, and what may be done there and below. None: it is wrong.
pub(super) fn enforce_of_narrowing(raw: ModuleFsToml, errors: &mut Errors<'_>) -> Option<(VirtualPath, Access)> {
    module_grant(raw, "", &(0..0), errors)
}

fn module_grant(
    raw: ModuleFsToml,
    at: &str,
    span: &Range<usize>,
    errors: &mut Errors<'_>,
) -> Option<(VirtualPath, Access)> {
    let ModuleFsToml { path, access } = raw;
    for (key, absent, example) in
        [("path", path.is_none(), "\"/data/cache\""), ("access", access.is_none(), "\"read\"")]
    {
        if absent {
            errors.missing(at, key, span.clone(), example);
        }
    }
    let path = errors.value(&child(at, "path"), path.as_ref(), |text| {
        VirtualPath::parse(text).map_err(|rule| Broken::new(rule).write("\"/data/cache\""))
    });
    let access = errors.value(&child(at, "access"), access.as_ref(), |text| Access::parse(text));
    path.zip(access)
}

/// The key of a narrowing that leaves a call out. None: it names the call, or the path is none.
pub(super) fn left_out(within: &VirtualPath, access: Access, path: &str, writes: bool) -> Option<&'static str> {
    let asked = VirtualPath::parse(path).ok()?;
    match asked.below(within) {
        None => Some("path"),
        Some(_) if !access.allows(writes) => Some("access"),
        Some(_) => None,
    }
}

/// A directory below the data folder.
fn dir(text: &str) -> Result<PathBuf, Broken> {
    let example = "\"acme-data\"";
    if text.starts_with('/') {
        return Err(Broken::new("a directory below data_dir, not an absolute path").write(example));
    }
    if text.trim() != text {
        return Err(Broken::new("spaces around a directory").write(example));
    }
    // The rules for a script's path fit here as well; they keep the file the same on every system.
    VirtualPath::parse(&format!("/{text}"))
        .map_err(|rule| Broken::new(format!("a directory below data_dir: {rule}")).write(example))?;
    if text.is_empty() {
        return Err(Broken::new("data_dir itself holds the host's own files, and every tenant's").write(example));
    }
    if text.starts_with('.') {
        return Err(Broken::new("names that start with a dot are the host's own").write(example));
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_path_is_refused_with_all_below_it() {
        let grants = [grant("/", "all", Access::ReadWrite), grant("/data", "d", Access::ReadWrite)];
        let place = Place::new(std::path::Path::new("p.toml"), 9);
        let denied = [Deny { path: VirtualPath::parse("/data/private").expect("a path"), place: place.clone() }];
        for (path, allowed) in [
            ("/data", true),
            ("/data/private", false),
            ("/data/private/x/y", false),
            ("/data/private2", true),
            ("/private", true),
        ] {
            let decision = decide(&grants, &denied, path, false).map_err(|refusal| (refusal.reason, refusal.rule));
            assert_eq!(decision.is_ok(), allowed, "{path}");
            if let Err(refusal) = decision {
                assert_eq!(refusal, (Reason::DeniedByRule, Some(place.clone())), "{path}");
            }
        }
    }

    fn grant(path: &str, dir: &str, access: Access) -> Grant {
        Grant {
            path: VirtualPath::parse(path).expect(path),
            dir: self::dir(dir).expect(dir),
            access,
            place: Place::new(std::path::Path::new("p.toml"), 1),
        }
    }

    fn grants() -> Vec<Grant> {
        vec![
            grant("/data", "acme-data", Access::ReadWrite),
            grant("/data/public", "acme-public", Access::Read),
            grant("/logs", "acme-logs", Access::Read),
            grant("/logs", "acme-logs", Access::ReadWrite),
        ]
    }

    #[test]
    fn the_longest_grant_decides() {
        for (path, writes, expected) in [
            ("/data/a.txt", false, Ok((0, "a.txt"))),
            ("/data/a/b/c", true, Ok((0, "a/b/c"))),
            ("/data", false, Ok((0, "."))),
            ("/data/publication", true, Ok((0, "publication"))),
            ("/data/public/x", false, Ok((1, "x"))),
            ("/data/public", false, Ok((1, "."))),
            ("/data/public/x", true, Err(Reason::PathNotWritable)),
            ("/data", true, Err(Reason::BadTarget)),
            ("/logs/x", false, Ok((2, "x"))),
            ("/logs/x", true, Ok((3, "x"))),
            ("/database", false, Err(Reason::PathNotGranted)),
            ("/Data/x", false, Err(Reason::PathNotGranted)),
            ("/", false, Err(Reason::PathNotGranted)),
            ("/etc/passwd", false, Err(Reason::PathNotGranted)),
        ] {
            let grants = grants();
            let decision = decide(&grants, &[], path, writes);
            let decision =
                decision.map(|located| (located.grant_index, located.relative)).map_err(|refusal| refusal.reason);
            assert_eq!(decision, expected.map(|(index, relative)| (index, PathBuf::from(relative))), "{path} {writes}");
        }
        assert_eq!(decide(&[], &[], "/data/x", false).map_err(|refusal| refusal.reason), Err(Reason::NotGranted));
    }

    #[test]
    fn a_grant_of_the_root_covers_everything() {
        let grants = [grant("/", "acme", Access::Read)];
        for (path, relative) in [("/", "."), ("/x", "x"), ("/a/b", "a/b")] {
            assert_eq!(
                decide(&grants, &[], path, false).map(|located| located.relative).ok(),
                Some(PathBuf::from(relative)),
                "{path}"
            );
        }
    }

    #[test]
    fn a_path_that_could_be_read_two_ways_is_refused() {
        let deepest = "/a".repeat(32);
        let longest = format!("/data/{}", "n".repeat(255));
        for path in [
            "/data/x",
            "/data/.hidden",
            "/data/a b",
            "/data/é",
            "/data/...x",
            "/data/com",
            "/data/com10",
            "/data/console",
            &deepest,
            &longest,
        ] {
            assert!(VirtualPath::parse(path).is_ok(), "{path}");
        }
        let too_deep = "/a".repeat(33);
        let too_long_name = format!("/data/{}", "n".repeat(256));
        let too_long = "/nnnnnnnnnn".repeat(400);
        for path in [
            "",
            "x",
            "../x",
            "a/../../x",
            "//etc",
            "./././../x",
            "a/..//../x",
            "/data/../x",
            "/data/..",
            "/data/.",
            "/./data",
            "/data//x",
            "//data/x",
            "/data/",
            "//",
            "/data/x/",
            "/data/x\0",
            "/data/x\ny",
            "/data/\u{7f}",
            "C:\\x",
            "C:x",
            "/C:/x",
            "/data/C:x",
            "\\\\host\\share",
            "/data/a\\..\\b",
            "/data/CON",
            "/data/com1",
            "/data/COM¹",
            "/data/aux.txt",
            "/data/nul .txt",
            "/data/LPT9.log",
            "/data/x.",
            "/data/x ",
            "/data/..x/..",
            "~/x",
            "file:///data/x",
            &too_deep,
            &too_long_name,
            &too_long,
        ] {
            assert_eq!(
                decide(&grants(), &[], path, false).map_err(|refusal| refusal.reason),
                Err(Reason::BadTarget),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_refusal_holds_the_scripts_path_and_no_directory_of_the_hosts() {
        let grants = grants();
        let refusal = decide(&grants, &[], "/data/public/x", true).expect_err("read only");
        assert_eq!(refusal.message(), "fs denied: /data/public/x: the grant that covers this path is for reading");
    }

    #[test]
    fn a_directory_lies_below_the_data_folder_and_is_not_the_hosts_own() {
        for text in ["acme-data", "acme/data", "a.b", "tenants/acme/data"] {
            assert_eq!(dir(text), Ok(PathBuf::from(text)), "{text}");
        }
        for text in [
            "", ".", "..", "/", "/srv", "../x", "a/../b", "a/", "a//b", "./a", ".neoc", "a\\b", "C:", " a", "a ",
            "a\0", "a/..",
        ] {
            assert!(dir(text).is_err(), "{text:?}");
        }
    }
}
