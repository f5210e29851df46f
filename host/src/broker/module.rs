//! Permits for a tenant's own modules. A tenant may always read them; the rate of operations bounds how often.
//!
//! The guest spells each path in one way. One that is spelled otherwise comes from a guest that was taken
//! over: the capability would not leave the folder for it either, and here it does not get that far.

use neoc_abi::{
    OperationError,
    module::{CONFIGURATION, MAX_PATH_BYTES, MAX_PATHS, Operation},
};

use super::Refused;

/// Leave to look for some files below a tenant's script folder.
pub struct Permit {
    paths: Vec<String>,
}

impl Permit {
    /// The files, by path below the folder.
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// Leave for a script that is being loaded. The operator asks for that, and there is no request yet on
    /// whose account it could be.
    ///
    /// # Errors
    /// Of kind `invalid`, for a path that no guest of ours would send.
    pub fn while_loading(operation: Operation) -> Result<Self, OperationError> {
        Self::judge(operation)
    }

    fn judge(operation: Operation) -> Result<Self, OperationError> {
        let Operation::Find { paths } = operation;
        if paths.is_empty() || paths.len() > MAX_PATHS {
            return Err(OperationError::invalid(format!("module: 1 to {MAX_PATHS} paths, got {}", paths.len())));
        }
        match paths.iter().find(|path| !is_plain(path)) {
            Some(path) => Err(OperationError::invalid(format!("module: {path:?} is no path of a module"))),
            None => Ok(Self { paths }),
        }
    }
}

/// Decides.
pub(super) fn authorize(operation: Operation) -> Result<Permit, Refused> {
    Permit::judge(operation).map_err(Refused::Invalid)
}

/// Whether a path is a source file or a configuration, by plain names all the way.
fn is_plain(path: &str) -> bool {
    let (folders, file) = path.rsplit_once('/').map_or((None, path), |(folders, file)| (Some(folders), file));
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with('.')
            && !name.chars().any(|character| character.is_control() || "\\:".contains(character))
    };
    let is_source = is_name(file) && (file.ends_with(".luau") || file.ends_with(".lua"));
    path.len() <= MAX_PATH_BYTES
        && folders.is_none_or(|folders| folders.split('/').all(is_name))
        && (is_source || file == CONFIGURATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling_and_stays_below_the_folder() {
        for path in ["a.luau", "a.lua", "a/init.luau", ".luaurc", "a/b/.luaurc", "a b/é.luau"] {
            assert!(is_plain(path), "{path}");
        }
        let long = format!("{}.luau", "a".repeat(MAX_PATH_BYTES));
        for path in [
            "",
            "/",
            "/a.luau",
            "../a.luau",
            "a/../b.luau",
            "./a.luau",
            "a//b.luau",
            "a/",
            "a.luau/",
            ".a.luau",
            ".git/a.luau",
            "a\\b.luau",
            "a\0.luau",
            "c:a.luau",
            "a",
            "a.txt",
            "luaurc",
            ".luaurc/a",
            long.as_str(),
        ] {
            assert!(!is_plain(path), "{path}");
        }
    }

    #[test]
    fn an_operation_has_some_paths_and_not_too_many() {
        let find = |n: usize| Permit::judge(Operation::Find { paths: vec!["a.luau".to_owned(); n] });
        assert!(find(1).is_ok() && find(MAX_PATHS).is_ok());
        assert!(find(0).is_err() && find(MAX_PATHS + 1).is_err());
    }
}
