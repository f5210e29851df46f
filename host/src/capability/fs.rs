//! Files, through cap-std: no path leads out of a granted directory.
//!
//! cap-std resolves each path below an open directory, symbolic links included. Two things it leaves
//! to us: it would block for ever on a FIFO, so everything is opened without blocking and only
//! regular files and directories are accepted; and file operations block a thread, so each runs on a
//! blocking thread, with few at once for one tenant.
//!
//! How much a tenant's directories hold is bounded; see [`quota`].

mod quota;

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

use self::quota::{Area, Areas, Failure, Quota, Size};
use super::OpenError;
use crate::{
    broker::fs::Permit,
    policy::{Limits, Tenant, fs::Access},
};

/// Longest file that a script reads or writes at once, in bytes.
const MAX_FILE_BYTES: u64 = 10 * 1024 * 1024;

/// Most names in one listing.
const MAX_NAMES: usize = 10_000;

/// File operations of one tenant on blocking threads at once.
const THREADS_PER_TENANT: usize = 4;

/// Every tenant's granted directories, open.
pub struct Directories {
    by_tenant: HashMap<String, TenantDirectories>,
    areas: Areas,
}

struct TenantDirectories {
    /// In the order of the tenant's grants.
    roots: Vec<Root>,
    quota: Arc<Quota>,
    threads: Arc<Semaphore>,
}

/// A granted directory.
#[derive(Clone)]
struct Root {
    dir: Arc<Dir>,
    /// Where what is written to it counts. Absent where nothing may be written.
    area: Option<Arc<Area>>,
}

/// A granted directory, to write to.
struct Writable<'a> {
    dir: &'a Dir,
    area: &'a Arc<Area>,
    quota: &'a Quota,
    limits: &'a Limits,
}

impl Directories {
    /// Opens the directories of all grants; absent ones are made. `before` are those of the policy before:
    /// a tenant that stays gets no further threads.
    ///
    /// # Errors
    /// [`OpenError::Directory`] for the first that cannot be opened.
    pub fn open(data_dir: &Path, tenants: &[Arc<Tenant>], before: Option<&Self>) -> Result<Self, OpenError> {
        let open = |tenant: &Tenant, index: usize, dir: &Path| {
            let (key, path) = (format!("tenant.{}.allow.fs[{index}].dir", tenant.name), data_dir.join(dir));
            open_root(&path).map_err(|source| OpenError::Directory { key, path, source })
        };
        let areas = Areas::open(tenants, before.map(|before| &before.areas), open)?;
        let mut by_tenant = HashMap::new();
        for tenant in tenants.iter().filter(|tenant| !tenant.allow.fs.is_empty()) {
            let mut roots = Vec::new();
            for (index, grant) in tenant.allow.fs.iter().enumerate() {
                let dir = open(tenant, index, &grant.dir)?;
                let area = (grant.access == Access::ReadWrite).then(|| areas.area_of(&grant.dir)).flatten();
                roots.push(Root { dir: Arc::new(dir), area });
            }
            let before = before.and_then(|before| before.by_tenant.get(&tenant.name));
            let threads = before.map(|before| Arc::clone(&before.threads));
            let threads = threads.unwrap_or_else(|| Arc::new(Semaphore::new(THREADS_PER_TENANT)));
            let quota = Arc::new(areas.quota(tenant));
            by_tenant.insert(tenant.name.clone(), TenantDirectories { roots, quota, threads });
        }
        Ok(Self { by_tenant, areas })
    }

    /// No directories.
    pub fn none() -> Self {
        Self { by_tenant: HashMap::new(), areas: Areas::none() }
    }

    /// Does one operation.
    ///
    /// # Errors
    /// Of kind `io` or `limit`, naming the path as the script sees it.
    pub async fn perform(&self, permit: Permit) -> Result<Reply, OperationError> {
        let closed = || OperationError::io("fs: the directory is not open");
        let directories = self.by_tenant.get(&permit.caller().tenant().name).ok_or_else(closed)?;
        let root = directories.roots.get(permit.grant_index()).ok_or_else(closed)?.clone();
        let quota = Arc::clone(&directories.quota);
        let tenant = Arc::clone(permit.caller().tenant());
        let thread = Arc::clone(&directories.threads).acquire_owned().await.map_err(|_| closed())?;
        let work = move || {
            let _thread = thread;
            let (relative, operation) = permit.into_parts();
            apply(&root, &quota, &tenant.limits, &relative, operation)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| closed())?
    }
}

fn open_root(path: &Path) -> io::Result<Dir> {
    system::create_dir_all(path)?;
    Dir::open_ambient_dir(path, ambient_authority())
}

fn apply(
    root: &Root,
    quota: &Quota,
    limits: &Limits,
    relative: &Path,
    operation: Operation,
) -> Result<Reply, OperationError> {
    let Root { dir, area } = root;
    let writable = || {
        // The broker lets nobody write where there is none.
        let area = area.as_ref().ok_or(io::ErrorKind::PermissionDenied)?;
        Ok::<_, Failure>(Writable { dir, area, quota, limits })
    };
    let result = match &operation {
        Operation::Read { .. } => read(dir, relative).map(Reply::Content).map_err(Failure::from),
        Operation::Write { content, .. } => {
            writable().and_then(|root| write(&root, relative, content)).map(|()| Reply::Done)
        }
        Operation::List { .. } => list(dir, relative).map(Reply::Names).map_err(Failure::from),
        Operation::Remove { .. } => writable().and_then(|root| remove(&root, relative)).map(|()| Reply::Done),
    };
    result.map_err(|failure| match failure {
        Failure::Io(error) => explain(operation.path(), &error),
        Failure::Over(exceeded) => exceeded.at(&format!("fs: {}", operation.path())),
    })
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
fn write(root: &Writable<'_>, relative: &Path, content: &[u8]) -> Result<(), Failure> {
    let Writable { dir, area, quota, limits } = root;
    let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
    if bytes > MAX_FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let name = relative.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let parent = match relative.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => &dir.open_dir(parent)?,
        _ => *dir,
    };
    let before = || match parent.symlink_metadata(name) {
        Ok(metadata) if !metadata.is_file() && !metadata.is_symlink() => Err(io::ErrorKind::PermissionDenied.into()),
        Ok(metadata) => Ok(Size::of(&metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Size::default()),
        Err(error) => Err(error),
    };
    let after = Size { bytes, files: 1 };
    // Once before, so that a tenant at its limit fills no disk with what is thrown away again.
    quota.check(limits, before, after)?;
    let temporary = format!(".neoc-{:016x}.tmp", rand::random::<u64>());
    let _unfinished = area.begin(temporary.clone());
    let written = parent
        .open_with(&temporary, OpenOptions::new().write(true).create_new(true))
        .and_then(|mut file| file.write_all(content))
        .map_err(Failure::from)
        .and_then(|()| quota.change(area, limits, before, after, || parent.rename(&temporary, parent, name)));
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

fn remove(root: &Writable<'_>, relative: &Path) -> Result<(), Failure> {
    let Writable { dir, area, quota, limits } = root;
    let before = || dir.symlink_metadata(relative).map(|metadata| Size::of(&metadata));
    quota.change(area, limits, before, Size::default(), || match dir.symlink_metadata(relative)?.is_dir() {
        true => dir.remove_dir(relative),
        false => dir.remove_file(relative),
    })
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
    use crate::policy::fs::VirtualPath;

    /// Writes as a tenant with the default limits.
    fn put(dir: &Dir, relative: &Path, content: &[u8]) -> io::Result<()> {
        let (area, quota) = Quota::of_one(dir.try_clone().expect("clones"));
        let limits = Limits::default();
        let root = Writable { dir, area: &area, quota: &quota, limits: &limits };
        write(&root, relative, content).map_err(|failure| match failure {
            Failure::Io(error) => error,
            Failure::Over(exceeded) => panic!("{exceeded}"),
        })
    }

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
            assert!(put(&root, &path.join("new"), b"x").is_err(), "write {path:?}");
        }
        assert_eq!(system::read_dir(&outside).expect("lists").count(), 1);
    }

    #[test]
    fn a_fifo_is_refused_at_once() {
        let (folder, root) = folder();
        let path = folder.path().join("root/fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).expect("makes a fifo");
        assert_eq!(read(&root, Path::new("fifo")).map_err(|e| e.kind()), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(put(&root, Path::new("fifo"), b"x").map_err(|e| e.kind()), Err(io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let (_folder, root) = folder();
        put(&root, Path::new("a"), b"old").expect("writes");
        let too_large = vec![0; usize::try_from(MAX_FILE_BYTES).expect("fits") + 1];
        assert!(put(&root, Path::new("a"), &too_large).is_err());
        assert_eq!(read(&root, Path::new("a")).expect("reads"), b"old");
        assert_eq!(list(&root, Path::new("")).expect("lists"), ["a"]);
    }

    #[test]
    fn a_listing_is_sorted_and_marks_directories() {
        let (_folder, root) = folder();
        root.create_dir("b").expect("makes a folder");
        put(&root, Path::new("c"), b"").expect("writes");
        put(&root, Path::new("a"), b"").expect("writes");
        assert_eq!(list(&root, Path::new("")).expect("lists"), ["a", "b/", "c"]);
    }

    /// A directory with its quota, and a tenant's limits.
    struct Bounded {
        _folder: tempfile::TempDir,
        path: std::path::PathBuf,
        dir: Dir,
        area: Arc<Area>,
        quota: Quota,
        limits: Limits,
    }

    impl Bounded {
        fn new(fs_bytes: u64, fs_files: u64) -> Self {
            let (folder, dir) = folder();
            let (area, quota) = Quota::of_one(dir.try_clone().expect("clones"));
            let limits = Limits { fs_bytes, fs_files, ..Limits::default() };
            Self { path: folder.path().join("root"), _folder: folder, dir, area, quota, limits }
        }

        fn root(&self) -> Writable<'_> {
            Writable { dir: &self.dir, area: &self.area, quota: &self.quota, limits: &self.limits }
        }

        /// The limit that a write hits.
        fn write(&self, name: &str, bytes: usize) -> Option<&'static str> {
            match write(&self.root(), Path::new(name), &vec![0; bytes]) {
                Ok(()) => None,
                Err(Failure::Over(exceeded)) => Some(exceeded.limit),
                Err(Failure::Io(error)) => panic!("{name}: {error}"),
            }
        }

        fn remove(&self, name: &str) -> bool {
            remove(&self.root(), Path::new(name)).is_ok()
        }

        fn assert_counted(&self) {
            let (counted, real) = self.quota.counted_and_real();
            assert_eq!(counted, real);
            assert!(real.bytes <= self.limits.fs_bytes && real.files <= self.limits.fs_files, "{real:?}");
        }
    }

    #[test]
    fn the_last_byte_and_the_last_file_fit_and_one_more_does_not() {
        let bounded = Bounded::new(100, 3);
        assert_eq!(bounded.write("a", 101), Some("fs"));
        assert_eq!((bounded.write("a", 100), bounded.write("b", 1)), (None, Some("fs")));
        // In place of what is there: as much, less, and then there is room for that.
        assert_eq!((bounded.write("a", 100), bounded.write("a", 99), bounded.write("b", 1)), (None, None, None));
        assert_eq!(
            (bounded.write("c", 0), bounded.write("d", 0), bounded.write("c", 0)),
            (None, Some("fs_files"), None)
        );
        assert!(bounded.remove("b") && !bounded.remove("b"));
        assert_eq!((bounded.write("d", 2), bounded.write("d", 1)), (Some("fs"), None));
        bounded.assert_counted();
        assert_eq!(list(&bounded.dir, Path::new("")).expect("lists"), ["a", "c", "d"]);
    }

    #[test]
    fn writers_of_the_same_files_cannot_confuse_the_count() {
        let bounded = Bounded::new(200, 4);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let bounded = &bounded;
                scope.spawn(move || {
                    let mut random = thread;
                    for _ in 0..300 {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let choice = usize::try_from(random >> 40).expect("fits");
                        let name = ["a", "b", "c", "d", "e"][choice % 5];
                        if choice % 7 < 5 {
                            bounded.write(name, choice % 120);
                        } else {
                            bounded.remove(name);
                        }
                    }
                });
            }
        });
        bounded.assert_counted();
    }

    #[test]
    fn what_the_operator_changes_is_found_before_a_write_is_refused() {
        let mut bounded = Bounded::new(100, 10);
        assert_eq!(bounded.write("a", 100), None);
        system::remove_file(bounded.path.join("a")).expect("removes");
        system::create_dir(bounded.path.join("folder")).expect("makes a folder");
        system::write(bounded.path.join("folder/b"), [0; 60]).expect("writes");
        // The count is young.
        assert_eq!(bounded.write("c", 1), Some("fs"));
        bounded.quota.let_counts_be_old();
        assert_eq!((bounded.write("c", 41), bounded.write("c", 40)), (Some("fs"), None));
        bounded.assert_counted();
    }

    #[test]
    fn directories_within_one_another_are_counted_once() {
        let (folder, _) = folder();
        let grant = |dir: &str, access: Access| crate::policy::fs::Grant {
            path: VirtualPath::parse(&format!("/{dir}")).expect("a path"),
            dir: dir.into(),
            access,
            place: crate::policy::Place::new(Path::new("p.toml"), 1),
        };
        let tenant = |name: &str, grants: Vec<_>| {
            let mut tenant = Tenant::without_grants(name, "x.luau");
            tenant.allow.fs = grants;
            Arc::new(tenant)
        };
        let tenants = [
            tenant("a", vec![grant("s", Access::ReadWrite), grant("s/in", Access::ReadWrite)]),
            tenant("b", vec![grant("s/in", Access::ReadWrite), grant("own", Access::ReadWrite)]),
            tenant("c", vec![grant("s", Access::Read)]),
        ];
        let directories = Directories::open(folder.path(), &tenants, None).expect("opens");
        let areas = |name: &str| directories.by_tenant[name].quota.n_areas();
        assert_eq!((areas("a"), areas("b"), areas("c")), (1, 2, 0));
        let area = |name: &str, index: usize| directories.by_tenant[name].roots[index].area.clone();
        let shared = area("a", 0).expect("there");
        assert!(area("a", 1).is_some_and(|area| Arc::ptr_eq(&area, &shared)));
        assert!(area("b", 0).is_some_and(|area| Arc::ptr_eq(&area, &shared)));
        assert!(area("c", 0).is_none());
        // The policy after this one goes on with the same counts.
        let next = Directories::open(folder.path(), &tenants[..1], Some(&directories)).expect("opens");
        assert!(next.by_tenant["a"].roots[0].area.as_ref().is_some_and(|area| Arc::ptr_eq(area, &shared)));
    }
}
