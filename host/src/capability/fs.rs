//! Files, through cap-std: no path leads out of a granted directory.
//!
//! cap-std resolves each path below an open directory, symbolic links included. Two things it leaves
//! to us: it would block for ever on a FIFO, so everything is opened without blocking and only
//! regular files and directories are accepted; and file operations block a thread, so each runs on a
//! blocking thread, with few at once for one tenant.

use std::{
    collections::HashMap,
    fs as system,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use cap_std::{
    ambient_authority,
    fs::{Dir, File, OpenOptions, OpenOptionsExt},
};
use neoc_abi::{
    OperationError,
    fs::{Operation, Reply},
};
use rustix::fs::OFlags;
use tokio::sync::Semaphore;

use super::OpenError;
use crate::{broker::fs::Permit, policy::Tenant};

/// Longest file that a script reads or writes at once, in bytes.
const MAX_FILE_BYTES: u64 = 10 * 1024 * 1024;

/// Most names in one listing.
const MAX_NAMES: usize = 10_000;

/// File operations of one tenant on blocking threads at once.
const THREADS_PER_TENANT: usize = 4;

/// Every tenant's granted directories, open.
pub struct Directories {
    by_tenant: HashMap<String, TenantDirectories>,
}

struct TenantDirectories {
    /// In the order of the tenant's grants.
    roots: Vec<Arc<Dir>>,
    threads: Arc<Semaphore>,
}

impl Directories {
    /// Opens the directories of all grants; absent ones are made. `before` are those of the policy before:
    /// a tenant that stays gets no further threads.
    ///
    /// # Errors
    /// [`OpenError::Directory`] for the first that cannot be opened.
    pub fn open(data_dir: &Path, tenants: &[Arc<Tenant>], before: Option<&Self>) -> Result<Self, OpenError> {
        let mut by_tenant = HashMap::new();
        for tenant in tenants.iter().filter(|tenant| !tenant.allow.fs.is_empty()) {
            let mut roots = Vec::new();
            for (index, grant) in tenant.allow.fs.iter().enumerate() {
                let path = data_dir.join(&grant.dir);
                let key = || format!("tenant.{}.allow.fs[{index}].dir", tenant.name);
                let root = open_root(&path).map_err(|source| OpenError::Directory { key: key(), path, source })?;
                roots.push(Arc::new(root));
            }
            let before = before.and_then(|before| before.by_tenant.get(&tenant.name));
            let threads = before.map(|before| Arc::clone(&before.threads));
            let threads = threads.unwrap_or_else(|| Arc::new(Semaphore::new(THREADS_PER_TENANT)));
            by_tenant.insert(tenant.name.clone(), TenantDirectories { roots, threads });
        }
        Ok(Self { by_tenant })
    }

    /// No directories.
    pub fn none() -> Self {
        Self { by_tenant: HashMap::new() }
    }

    /// Does one operation.
    ///
    /// # Errors
    /// Of kind `io` or `limit`, naming the path as the script sees it.
    pub async fn perform(&self, permit: Permit) -> Result<Reply, OperationError> {
        let closed = || OperationError::io("fs: the directory is not open");
        let directories = self.by_tenant.get(&permit.caller().tenant().name).ok_or_else(closed)?;
        let root = Arc::clone(directories.roots.get(permit.grant_index()).ok_or_else(closed)?);
        let thread = Arc::clone(&directories.threads).acquire_owned().await.map_err(|_| closed())?;
        let work = move || {
            let _thread = thread;
            let (relative, operation) = permit.into_parts();
            apply(&root, &relative, operation)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| closed())?
    }
}

fn open_root(path: &Path) -> io::Result<Dir> {
    system::create_dir_all(path)?;
    Dir::open_ambient_dir(path, ambient_authority())
}

fn apply(root: &Dir, relative: &Path, operation: Operation) -> Result<Reply, OperationError> {
    let result = match &operation {
        Operation::Read { .. } => read(root, relative).map(Reply::Content),
        Operation::Write { content, .. } => write(root, relative, content).map(|()| Reply::Done),
        Operation::List { .. } => list(root, relative).map(Reply::Names),
        Operation::Remove { .. } => remove(root, relative).map(|()| Reply::Done),
    };
    result.map_err(|error| explain(operation.path(), &error))
}

fn read(root: &Dir, relative: &Path) -> io::Result<Vec<u8>> {
    let file = open_regular(root, relative)?;
    if file.metadata()?.len() > MAX_FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut content = Vec::new();
    // The file may grow while it is read.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
    if u64::try_from(content.len()).is_ok_and(|bytes| bytes > MAX_FILE_BYTES) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(content)
}

/// Opens a regular file; anything else, a FIFO or a device, is refused at once.
pub(super) fn open_regular(root: &Dir, relative: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
    let file = root.open_with(relative, &options)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(file)
}

/// Writes beside the target and renames over it, so that readers never see half a file. A link in
/// the target's place is replaced, not followed.
fn write(root: &Dir, relative: &Path, content: &[u8]) -> io::Result<()> {
    if u64::try_from(content.len()).map_or(true, |bytes| bytes > MAX_FILE_BYTES) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let name = relative.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let parent = match relative.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => &root.open_dir(parent)?,
        _ => root,
    };
    if parent.symlink_metadata(name).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_symlink()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let temporary = format!(".neoc-{:016x}.tmp", rand::random::<u64>());
    let written = parent
        .open_with(&temporary, OpenOptions::new().write(true).create_new(true))
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| parent.rename(&temporary, parent, name));
    if written.is_err() {
        // The first error is the one to report.
        let _ = parent.remove_file(&temporary);
    }
    written
}

fn list(root: &Dir, relative: &Path) -> io::Result<Vec<String>> {
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let mut names = Vec::new();
    for entry in root.read_dir(relative)? {
        let entry = entry?;
        // A name that is not UTF-8 cannot be asked for, so it is not shown either.
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        if entry.file_type()?.is_dir() {
            name.push('/');
        }
        names.push(name);
        if names.len() > MAX_NAMES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn remove(root: &Dir, relative: &Path) -> io::Result<()> {
    if root.symlink_metadata(relative)?.is_dir() { root.remove_dir(relative) } else { root.remove_file(relative) }
}

/// What a script may know of a failure: the path as it wrote it, and the class.
fn explain(path: &str, error: &io::Error) -> OperationError {
    let text = match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory",
        io::ErrorKind::IsADirectory => "is a directory",
        io::ErrorKind::NotADirectory => "is not a directory",
        io::ErrorKind::DirectoryNotEmpty => "the directory is not empty",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no space left",
        io::ErrorKind::FileTooLarge => {
            return OperationError::limit(
                "file",
                format!("fs: {path}: larger than {MAX_FILE_BYTES} bytes or {MAX_NAMES} names"),
            );
        }
        io::ErrorKind::PermissionDenied => {
            "not permitted: it leads out of the granted directory, or is no regular file"
        }
        _ => "the file system failed",
    };
    OperationError::io(format!("fs: {path}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Dir) {
        let folder = tempfile::tempdir().expect("makes a folder");
        let root = open_root(&folder.path().join("root")).expect("opens");
        (folder, root)
    }

    #[test]
    fn no_link_leads_out_of_the_directory() {
        let (folder, root) = folder();
        let outside = folder.path().join("out");
        system::create_dir(&outside).expect("makes a folder");
        system::write(outside.join("secret"), "s").expect("writes");
        std::os::unix::fs::symlink("../out", folder.path().join("root/evil")).expect("links");
        std::os::unix::fs::symlink("evil/", folder.path().join("root/l1")).expect("links");
        for path in ["l1", "l1/", "evil", "evil/", "evil/.", "l1/secret", "evil/secret"] {
            let path = Path::new(path);
            assert!(read(&root, path).is_err(), "read {path:?}");
            assert!(list(&root, path).is_err(), "list {path:?}");
            assert!(write(&root, &path.join("new"), b"x").is_err(), "write {path:?}");
        }
        assert_eq!(system::read_dir(&outside).expect("lists").count(), 1);
    }

    #[test]
    fn a_fifo_is_refused_at_once() {
        let (folder, root) = folder();
        let path = folder.path().join("root/fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).expect("makes a fifo");
        assert_eq!(read(&root, Path::new("fifo")).map_err(|e| e.kind()), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(write(&root, Path::new("fifo"), b"x").map_err(|e| e.kind()), Err(io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let (_folder, root) = folder();
        write(&root, Path::new("a"), b"old").expect("writes");
        let too_large = vec![0; usize::try_from(MAX_FILE_BYTES).expect("fits") + 1];
        assert!(write(&root, Path::new("a"), &too_large).is_err());
        assert_eq!(read(&root, Path::new("a")).expect("reads"), b"old");
        assert_eq!(list(&root, Path::new("")).expect("lists"), ["a"]);
    }

    #[test]
    fn a_listing_is_sorted_and_marks_directories() {
        let (_folder, root) = folder();
        root.create_dir("b").expect("makes a folder");
        write(&root, Path::new("c"), b"").expect("writes");
        write(&root, Path::new("a"), b"").expect("writes");
        assert_eq!(list(&root, Path::new("")).expect("lists"), ["a", "b/", "c"]);
    }
}
