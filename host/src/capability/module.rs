//! The text of a tenant's own modules: files below the folder of its script.
//!
//! A [`Folder`] belongs to one load of a tenant. What was once read from it stays as it was for all VMs of
//! that load, so that a request never runs half of an old version and half of a new one; and nothing is read
//! that no script asks for, because the folder may be anything, a home directory even.
//!
//! Links are followed, but only below the folder: some deployments make every file a link. Where the data of
//! tenants lies below the folder, it is out of reach: what another tenant has written is no module.

use std::{
    collections::HashMap,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use cap_std::{
    ambient_authority,
    fs::{Dir, MetadataExt},
};
use neoc_abi::{
    OperationError,
    module::{MAX_SOURCE_BYTES, Reply},
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::fs::open_regular;
use crate::broker::module::Permit;

/// Most files of one load.
const MAX_FILES: usize = 1000;

/// Most bytes of all files of one load.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Most answers that are kept. There is about one for each file, unless a guest asks for odd combinations.
const MAX_ANSWERS: usize = 4 * MAX_FILES;

/// Look-ups of one tenant on blocking threads at once.
const THREADS_PER_TENANT: usize = 4;

/// A tenant's script folder, and what was read from it since the tenant was loaded.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    data_dir: Option<PathBuf>,
    /// Opened for the first module: a script of one file needs no descriptor.
    root: OnceLock<Root>,
    known: Mutex<Known>,
    threads: Arc<Semaphore>,
}

#[derive(Debug)]
struct Root {
    dir: Dir,
    /// The folder that holds the tenants' data. None: there is none.
    data: Option<Identity>,
}

/// A file or a folder, however it is reached.
type Identity = (u64, u64);

/// What scripts have been told, and will be told again.
#[derive(Debug, Default)]
struct Known {
    /// Texts by path.
    sources: HashMap<String, Arc<[u8]>>,
    /// Bytes of all texts.
    n_bytes: usize,
    /// For the paths of an operation, which of them were there. Only where any was: what is absent may come.
    answers: HashMap<Vec<String>, Vec<u32>>,
}

impl Folder {
    /// The folder of a script. `data_dir`, where tenants' files and keys live, is no part of it.
    pub fn of_script(script: &Path, data_dir: Option<&Path>) -> Self {
        let parent = script.parent().filter(|parent| !parent.as_os_str().is_empty());
        Self {
            path: parent.unwrap_or(Path::new(".")).to_owned(),
            data_dir: data_dir.map(Path::to_owned),
            root: OnceLock::new(),
            known: Mutex::default(),
            threads: Arc::new(Semaphore::new(THREADS_PER_TENANT)),
        }
    }

    /// Looks for files, on a blocking thread.
    ///
    /// # Errors
    /// As [`Folder::find_now`].
    pub async fn find(self: &Arc<Self>, permit: Permit) -> Result<Reply, OperationError> {
        let failed = || OperationError::io("require: the look-up failed");
        let thread = Arc::clone(&self.threads).acquire_owned().await.map_err(|_| failed())?;
        let folder = Arc::clone(self);
        let work = move || {
            let _thread = thread;
            folder.find_now(permit)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| failed())?
    }

    /// What a script was told before. Never touches the disk.
    pub fn recall(&self, permit: &Permit) -> Option<Reply> {
        self.known.lock().recall(permit.paths())
    }

    /// Looks for files. Waits for the disk.
    ///
    /// # Errors
    /// Of kind `invalid` for a link that leads out of the folder and for what is no regular file, `limit` for
    /// what is too large or too much, `io` when the disk fails. All name the path below the folder only.
    pub fn find_now(&self, permit: Permit) -> Result<Reply, OperationError> {
        self.look_up(permit.paths())
    }

    fn look_up(&self, paths: &[String]) -> Result<Reply, OperationError> {
        if let Some(reply) = self.known.lock().recall(paths) {
            return Ok(reply);
        }
        let root = self.root().map_err(|_| OperationError::io("require: the script's folder cannot be opened"))?;
        let mut present = Vec::new();
        for (index, path) in (0..).zip(paths) {
            // The first one's text is wanted, of the others it is enough to know that they are there.
            let wanted = present.is_empty();
            let known = self.known.lock().sources.contains_key(path);
            if known || self.look(root, path, wanted).map_err(|problem| problem.explain(path))? {
                present.push(index);
            }
        }
        Ok(self.known.lock().keep_answer(paths, &present))
    }

    /// Whether every file that was read is on the disk as it was, and found in the same way. Waits for the disk.
    pub fn is_current(&self) -> bool {
        let answers: Vec<_> = {
            let known = self.known.lock();
            known.answers.iter().map(|(paths, present)| (paths.clone(), known.reply(paths, present))).collect()
        };
        if answers.is_empty() {
            return true;
        }
        let now =
            Self { path: self.path.clone(), data_dir: self.data_dir.clone(), ..Self::of_script(Path::new(""), None) };
        answers.into_iter().all(|(paths, reply)| now.look_up(&paths).is_ok_and(|found| found == reply))
    }

    fn root(&self) -> io::Result<&Root> {
        if let Some(root) = self.root.get() {
            return Ok(root);
        }
        let dir = Dir::open_ambient_dir(&self.path, ambient_authority())?;
        // Absent until a tenant has data, and made before scripts are loaded.
        let data = self.data_dir.as_ref().and_then(|path| Dir::open_ambient_dir(path, ambient_authority()).ok());
        let data = data.map(|data| data.dir_metadata()).transpose()?;
        let data = data.map(|data| (data.dev(), data.ino()));
        Ok(self.root.get_or_init(|| Root { dir, data }))
    }

    /// Whether the file is there; keeps its text if that is wanted.
    fn look(&self, root: &Root, path: &str, wanted: bool) -> Result<bool, Problem> {
        let file = match open_regular(&root.dir, Path::new(path)) {
            Ok(file) => file,
            Err(error) => return Problem::of_open(error).map_or(Ok(false), Err),
        };
        if root.holds_data(path).map_err(Problem::of_disk)? {
            return Err(Problem::Data);
        }
        if wanted {
            let limit = u64::try_from(MAX_SOURCE_BYTES).unwrap_or(u64::MAX);
            let mut source = Vec::new();
            file.take(limit + 1).read_to_end(&mut source).map_err(Problem::of_disk)?;
            if source.len() > MAX_SOURCE_BYTES {
                return Err(Problem::TooLarge);
            }
            self.known.lock().keep_source(path, source)?;
        }
        Ok(true)
    }
}

// === impl Root ===

impl Root {
    /// Whether a file, which is there, is some tenant's data. Links are resolved first.
    fn holds_data(&self, path: &str) -> io::Result<bool> {
        let Some(data) = self.data else { return Ok(false) };
        let real = self.dir.canonicalize(path)?;
        // The last of them is the folder itself.
        for folder in real.ancestors().skip(1) {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let metadata = self.dir.metadata(folder)?;
            if (metadata.dev(), metadata.ino()) == data {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

// === impl Known ===

impl Known {
    fn recall(&self, paths: &[String]) -> Option<Reply> {
        self.answers.get(paths).map(|present| self.reply(paths, present))
    }

    fn reply(&self, paths: &[String], present: &[u32]) -> Reply {
        let first = present.first().and_then(|index| paths.get(usize::try_from(*index).ok()?));
        let source = first.and_then(|path| self.sources.get(path)).map(|source| source.to_vec());
        Reply::Found { present: present.to_vec(), source: source.unwrap_or_default() }
    }

    /// Keeps a text, unless another VM was faster: then that one's is the text of this load.
    fn keep_source(&mut self, path: &str, source: Vec<u8>) -> Result<(), Problem> {
        if self.sources.contains_key(path) {
            return Ok(());
        }
        let n_bytes = self.n_bytes + source.len();
        if self.sources.len() >= MAX_FILES || n_bytes > MAX_BYTES {
            return Err(Problem::TooMuch);
        }
        self.n_bytes = n_bytes;
        self.sources.insert(path.to_owned(), source.into());
        Ok(())
    }

    /// Keeps an answer, unless another VM was faster; gives the one that holds.
    fn keep_answer(&mut self, paths: &[String], present: &[u32]) -> Reply {
        if let Some(reply) = self.recall(paths) {
            return reply;
        }
        if !present.is_empty() && self.answers.len() < MAX_ANSWERS {
            self.answers.insert(paths.to_vec(), present.to_vec());
        }
        self.reply(paths, present)
    }
}

/// Why a file that is there cannot be had.
#[derive(Debug)]
enum Problem {
    /// A link leads out of the folder.
    Outside,
    /// A FIFO, a device, a socket.
    Irregular,
    /// It lies in the folder of the tenants' data.
    Data,
    /// It is too long for a source text.
    TooLarge,
    /// It would be one file too many, or too many bytes.
    TooMuch,
    /// The disk, or the file's permissions.
    Disk(io::ErrorKind),
}

impl Problem {
    /// None: there is no such file.
    fn of_open(error: io::Error) -> Option<Self> {
        // Errors of the system have a number; the two below are cap-std's and ours.
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory, _) => None,
            (io::ErrorKind::PermissionDenied, None) if error.get_ref().is_some() => Some(Self::Outside),
            (io::ErrorKind::PermissionDenied, None) => Some(Self::Irregular),
            _ => Some(Self::of_disk(error)),
        }
    }

    fn of_disk(error: io::Error) -> Self {
        Self::Disk(error.kind())
    }

    fn explain(&self, path: &str) -> OperationError {
        match self {
            Self::Outside => {
                OperationError::invalid(format!("require: {path}: a link leads out of the script's folder"))
            }
            Self::Irregular => OperationError::invalid(format!("require: {path}: is no regular file")),
            Self::Data => {
                OperationError::invalid(format!("require: {path}: lies in the data folder, where no module is"))
            }
            Self::TooLarge => {
                let message = format!("require: {path}: longer than {MAX_SOURCE_BYTES} bytes");
                OperationError::limit("source", message)
            }
            Self::TooMuch => {
                let message = format!(
                    "require: {path}: one too many; a script may have {MAX_FILES} modules, of {} MiB together",
                    MAX_BYTES >> 20
                );
                OperationError::limit("modules", message)
            }
            Self::Disk(io::ErrorKind::PermissionDenied) => {
                OperationError::io(format!("require: {path}: its permissions keep the host from reading it"))
            }
            Self::Disk(_) => OperationError::io(format!("require: {path}: cannot be read")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs as system, os::unix::fs::symlink};

    use neoc_abi::{ErrorKind, module::Operation};

    use super::*;

    /// A folder with files, and what is beside it.
    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
        let outer = tempfile::tempdir().expect("makes a folder");
        for (path, content) in files {
            let path = outer.path().join("scripts").join(path);
            system::create_dir_all(path.parent().expect("has a parent")).expect("makes a folder");
            system::write(path, content).expect("writes");
        }
        let folder =
            Folder::of_script(&outer.path().join("scripts/main.luau"), Some(&outer.path().join("scripts/data")));
        (outer, folder)
    }

    fn find(folder: &Folder, paths: &[&str]) -> Result<Reply, OperationError> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        folder.find_now(Permit::while_loading(Operation::Find { paths }).expect("plain paths"))
    }

    fn found(present: &[u32], source: &str) -> Reply {
        Reply::Found { present: present.to_vec(), source: source.into() }
    }

    #[test]
    fn the_first_that_is_there_gives_its_text() {
        let (_outer, folder) = folder(&[("a.lua", "A"), ("a/init.luau", "I"), ("x.luau/y.luau", "Y")]);
        let reply = find(&folder, &["a.luau", "a.lua", "a/init.luau"]).expect("finds");
        assert_eq!(reply, found(&[1, 2], "A"));
        assert_eq!(find(&folder, &["b.luau"]).expect("answers"), found(&[], ""));
        // A folder is no file, and nothing lies below a file.
        assert_eq!(find(&folder, &["x.luau", "a.lua/b.luau"]).expect("answers"), found(&[], ""));
    }

    #[test]
    fn what_was_there_stays_as_it_was_and_what_was_not_may_come() {
        let (outer, folder) = folder(&[("a.luau", "old")]);
        let write = |path: &str| system::write(outer.path().join("scripts").join(path), "new").expect("writes");
        assert_eq!(find(&folder, &["a.luau", "a.lua"]).expect("finds"), found(&[0], "old"));
        assert_eq!(find(&folder, &["b.luau", "b.lua"]).expect("answers"), found(&[], ""));
        for path in ["a.luau", "a.lua", "b.lua"] {
            write(path);
        }
        assert_eq!(find(&folder, &["a.luau", "a.lua"]).expect("finds"), found(&[0], "old"));
        assert_eq!(find(&folder, &["a.luau"]).expect("finds"), found(&[0], "old"));
        assert_eq!(find(&folder, &["b.luau", "b.lua"]).expect("finds"), found(&[1], "new"));
        system::remove_file(outer.path().join("scripts/a.luau")).expect("removes");
        assert_eq!(find(&folder, &["a.luau", "a.lua"]).expect("finds"), found(&[0], "old"));
    }

    #[test]
    fn a_link_is_followed_below_the_folder_only() {
        let (outer, folder) = folder(&[("real/a.luau", "A")]);
        let scripts = outer.path().join("scripts");
        system::write(outer.path().join("secret.luau"), "secret").expect("writes");
        for (target, link) in [
            ("real/a.luau", "file.luau"),
            ("real", "lib"),
            ("../secret.luau", "out.luau"),
            ("..", "up"),
            ("/etc/hostname", "absolute.luau"),
            ("loop.luau", "loop.luau"),
            ("nowhere.luau", "dangling.luau"),
        ] {
            symlink(target, scripts.join(link)).expect("links");
        }
        assert_eq!(find(&folder, &["file.luau"]).expect("finds"), found(&[0], "A"));
        assert_eq!(find(&folder, &["lib/a.luau"]).expect("finds"), found(&[0], "A"));
        assert_eq!(find(&folder, &["dangling.luau"]).expect("answers"), found(&[], ""));
        for path in ["out.luau", "up/secret.luau", "up/absent.luau", "absolute.luau"] {
            let error = find(&folder, &[path]).expect_err(path);
            let expected = format!("require: {path}: a link leads out of the script's folder");
            assert_eq!((error.kind, error.message), (ErrorKind::Invalid, expected));
        }
        assert_eq!(find(&folder, &["loop.luau"]).expect_err("a loop").kind, ErrorKind::Io);
    }

    #[test]
    fn a_fifo_is_refused_at_once() {
        let (outer, folder) = folder(&[("a.luau", "A")]);
        let fifo = outer.path().join("scripts/fifo.luau");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).expect("makes a fifo");
        for paths in [["fifo.luau", "a.luau"], ["a.luau", "fifo.luau"]] {
            let error = find(&folder, &paths).expect_err("a fifo");
            assert_eq!(error.message, "require: fifo.luau: is no regular file");
        }
    }

    #[test]
    fn what_tenants_have_written_is_no_module() {
        let (outer, folder) =
            folder(&[("data/other/a.luau", "secret"), ("data.luau", "mine"), ("b/data/a.luau", "mine")]);
        symlink("data/other", outer.path().join("scripts/lib")).expect("links");
        for path in ["data/other/a.luau", "lib/a.luau"] {
            assert_eq!(find(&folder, &[path]).expect_err(path).kind, ErrorKind::Invalid);
        }
        for path in ["data.luau", "b/data/a.luau"] {
            assert_eq!(find(&folder, &[path]).expect("finds"), found(&[0], "mine"));
        }
        let inside =
            Folder::of_script(&outer.path().join("scripts/data/a.luau"), Some(&outer.path().join("scripts/data")));
        assert_eq!(find(&inside, &["other/a.luau"]).expect_err("data").kind, ErrorKind::Invalid);
    }

    #[test]
    fn sizes_and_numbers_are_bounded() {
        let (outer, folder) = folder(&[("a.luau", "A")]);
        let scripts = outer.path().join("scripts");
        system::write(scripts.join("full.luau"), vec![b' '; MAX_SOURCE_BYTES]).expect("writes");
        system::write(scripts.join("over.luau"), vec![b' '; MAX_SOURCE_BYTES + 1]).expect("writes");
        assert!(find(&folder, &["full.luau"]).is_ok());
        let error = find(&folder, &["over.luau"]).expect_err("too long");
        assert_eq!((error.kind, error.limit.as_deref()), (ErrorKind::Limit, Some("source")));
        for index in 1..MAX_FILES {
            system::write(scripts.join(format!("{index}.luau")), "").expect("writes");
            assert!(find(&folder, &[&format!("{index}.luau")]).is_ok(), "{index}");
        }
        let error = find(&folder, &["a.luau"]).expect_err("too many");
        assert_eq!((error.kind, error.limit.as_deref()), (ErrorKind::Limit, Some("modules")));
    }

    #[test]
    fn all_texts_together_are_bounded() {
        let mut known = Known::default();
        let text = || vec![b' '; MAX_SOURCE_BYTES];
        for index in 0..MAX_BYTES / MAX_SOURCE_BYTES {
            assert!(known.keep_source(&index.to_string(), text()).is_ok(), "{index}");
        }
        assert!(known.keep_source("0", text()).is_ok(), "one that is known costs nothing");
        assert!(matches!(known.keep_source("one more", b" ".to_vec()), Err(Problem::TooMuch)));
    }
}
