//! A running host follows its policy file: on SIGHUP, and when the file changes.
//!
//! Metadata is compared twice a second instead of asking the system for events: editors replace a file by
//! another one, links are turned to another folder, network file systems tell nobody, and all of that changes
//! what the file's name leads to. A change counts once two looks in a row agree, so that a file that is still
//! being written is left alone.

use std::{
    error::Error,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::policy_files::{Names, load_policy};
use crate::server::Service;

/// Between two looks at the files.
const PERIOD: Duration = Duration::from_millis(500);

/// What a file's name leads to: device, inode, length, times of content and of metadata. None: nothing.
type Mark = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

/// Marks of all files of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Marks(Vec<(PathBuf, Mark)>);

/// Follows one policy file.
pub struct Follower {
    file: PathBuf,
    hang_up: Signal,
    names: Names,
    /// Of what was loaded last, or could not be loaded.
    seen: Marks,
}

impl Follower {
    /// To be made before the file is read, so that no change is missed.
    ///
    /// # Errors
    /// When no handler for SIGHUP can be installed.
    pub fn new(file: &Path) -> std::io::Result<Self> {
        let hang_up = signal(SignalKind::hangup())?;
        let names = Names::read(file);
        let seen = Marks::of(&names.files());
        Ok(Self { file: file.to_owned(), hang_up, names, seen })
    }

    /// Reloads whenever there is a reason to. Never ends.
    pub async fn follow(mut self, service: Arc<Service>) {
        let mut before = self.seen.clone();
        loop {
            let asked = tokio::select! {
                _ = self.hang_up.recv() => true,
                () = tokio::time::sleep(PERIOD) => false,
            };
            if asked {
                service.reopen_audit();
            }
            let names = self.names.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || Marks::of(&names.files())).await else { continue };
            let settled = now == before;
            before.clone_from(&now);
            if asked || (settled && now != self.seen) {
                // A file that cannot be loaded is not tried again until it changes, or SIGHUP asks for it.
                let file = self.file.clone();
                let look = move || {
                    let names = Names::read(&file);
                    let marks = Marks::of(&names.files());
                    (names, marks)
                };
                // The main file may include others than before; they are to be seen before they are read.
                let Ok(seen) = tokio::task::spawn_blocking(look).await else { continue };
                (self.names, self.seen) = seen;
                before.clone_from(&self.seen);
                let (file, service) = (self.file.clone(), Arc::clone(&service));
                let io = tokio::runtime::Handle::current();
                // Reads files and opens directories: not on a thread that serves requests.
                let work = move || io.block_on(reload(&file, &service));
                if tokio::task::spawn_blocking(work).await.is_err() {
                    tracing::error!(target: "neoc::reload", "a reload panicked; the policy before stays in force");
                }
            }
        }
    }
}

impl Marks {
    fn of(files: &[PathBuf]) -> Self {
        let mark = |file: &PathBuf| {
            let metadata = fs::metadata(file).ok()?;
            let (changed, modified) =
                ((metadata.ctime(), metadata.ctime_nsec()), (metadata.mtime(), metadata.mtime_nsec()));
            Some((metadata.dev(), metadata.ino(), metadata.len(), modified, changed))
        };
        Self(files.iter().map(|file| (file.clone(), mark(file))).collect())
    }
}

async fn reload(file: &Path, service: &Service) {
    let result: Result<_, Box<dyn Error>> = match load_policy(file) {
        Ok(policy) => service.reload(policy).await.map_err(Into::into),
        Err(error) => Err(error),
    };
    let status = service.status();
    let (version, number) = (&status.version, status.number);
    match result {
        Ok(reloaded) => {
            let (changes, scripts) = (reloaded.changes, reloaded.scripts.join(" "));
            let (added, removed, keys) = (changes.added.join(" "), changes.removed.join(" "), changes.keys.join(" "));
            tracing::info!(target: "neoc::reload", version, number, added, removed, keys, n_keys = changes.n_keys, scripts,
                "the policy was loaded again");
        }
        Err(error) => {
            let error = words(&*error);
            tracing::error!(target: "neoc::reload", version, number, error,
                "the policy cannot be loaded; the one before stays in force");
        }
    }
}

/// An error with its causes.
fn words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
