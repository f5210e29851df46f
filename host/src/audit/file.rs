//! The audit file: a bounded queue, and one thread that writes.
//!
//! A request never waits for the disk: where the queue is full, or the disk, the record is counted as lost,
//! and the count becomes a line of its own once there is room. The file may be moved or removed while it is
//! written, as `logrotate` does: before each write the name is looked at again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
};

use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::record::{self, Lost, Record};

/// Records that may wait for the disk. One has 300 to 3,000 bytes.
const MAX_WAITING: usize = 8192;

/// Bytes of one write.
const MAX_BATCH_BYTES: usize = 64 * 1024;

/// Why the file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened or made.
    #[error("host.audit: cannot open {}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a pipe, a device.
    #[error("host.audit: {} is no regular file", .0.display())]
    Irregular(PathBuf),
}

/// The way to the thread that writes.
pub struct AuditFile {
    queue: SyncSender<Message>,
    /// Lost, and not yet written as lost.
    lost: Arc<AtomicU64>,
    n_lost: AtomicU64,
    n_lost_on_disk: Arc<AtomicU64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

enum Message {
    Line(Vec<u8>),
    Reopen,
    Close,
}

impl AuditFile {
    /// Opens the file for appending, and makes it when it is absent, readable by its owner only.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file = open(path)?;
        let (queue, messages) = mpsc::sync_channel(MAX_WAITING);
        let (lost, n_lost_on_disk) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let writer = Writer {
            path: path.to_owned(),
            file: Some(file),
            lost: Arc::clone(&lost),
            n_lost: Arc::clone(&n_lost_on_disk),
            torn: false,
            failed: false,
        };
        let thread = thread::Builder::new().name("neoc-audit".into()).spawn(move || writer.run(&messages));
        let thread = thread.map_err(|source| OpenError::System { path: path.to_owned(), source })?;
        let (n_lost, writer) = (AtomicU64::new(0), Mutex::new(Some(thread)));
        Ok(Self { queue, lost, n_lost, n_lost_on_disk, writer })
    }

    /// Puts a record in line, or counts it as lost. Never waits.
    pub fn write(&self, record: &Record<'_>) {
        if self.queue.try_send(Message::Line(line(record))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.n_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks for the file to be opened again.
    pub fn reopen(&self) {
        // With a full queue the next write looks at the name in any case.
        let _ = self.queue.try_send(Message::Reopen);
    }

    /// Waits until all that is in line is written.
    pub fn close(&self) {
        let writer = self.writer.lock().take();
        if let Some(writer) = writer
            && self.queue.send(Message::Close).is_ok()
        {
            // A writer that panicked has nothing left to write.
            let _ = writer.join();
        }
    }

    /// All that were lost so far.
    pub fn n_lost(&self) -> u64 {
        self.n_lost.load(Ordering::Relaxed) + self.n_lost_on_disk.load(Ordering::Relaxed)
    }
}

/// The thread's side.
struct Writer {
    path: PathBuf,
    /// Absent while it cannot be opened.
    file: Option<File>,
    lost: Arc<AtomicU64>,
    n_lost: Arc<AtomicU64>,
    /// Whether the last line was written in part.
    torn: bool,
    /// Whether the last write failed: said once, and again only after one that did not.
    failed: bool,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            let (mut batch, mut n_lines, mut reopen, mut close) = (Vec::new(), 0, false, false);
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Line(line) => {
                        batch.extend_from_slice(&line);
                        n_lines += 1;
                    }
                    Message::Reopen => reopen = true,
                    Message::Close => close = true,
                }
                next = if batch.len() < MAX_BATCH_BYTES && !close { messages.try_recv().ok() } else { None };
            }
            self.write(batch, n_lines, reopen);
            if close {
                return;
            }
        }
    }

    /// Writes some lines, and before them how many there was no room for.
    fn write(&mut self, batch: Vec<u8>, n_lines: u64, reopen: bool) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let mut bytes = if lost > 0 { line(&Lost { time: record::now(), lost }) } else { Vec::new() };
        bytes.extend_from_slice(&batch);
        match self.try_write(&bytes, reopen) {
            Ok(()) if self.failed => {
                self.failed = false;
                tracing::info!(target: "neoc::audit", path = %self.path.display(), "the audit file can be written again");
            }
            Ok(()) => {}
            Err(error) => {
                // What was lost before is still to be told. A part of the batch may be on the disk: then it is
                // counted all the same, for nobody knows where it was cut.
                self.lost.fetch_add(lost + n_lines, Ordering::Relaxed);
                self.n_lost.fetch_add(n_lines, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failed, true) {
                    let path = self.path.display();
                    tracing::warn!(target: "neoc::audit", %path, %error, "the audit file cannot be written; records are lost until it can");
                }
            }
        }
    }

    fn try_write(&mut self, mut bytes: &[u8], reopen: bool) -> io::Result<()> {
        if reopen || self.file.as_ref().is_none_or(|file| !self.is_named(file)) {
            self.file = None;
            self.torn = false;
            self.file = Some(open(&self.path).map_err(|error| match error {
                OpenError::System { source, .. } => source,
                OpenError::Irregular(_) => io::Error::other("it is no regular file"),
            })?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.torn && !bytes.is_empty() {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        while !bytes.is_empty() {
            match file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.torn = bytes.get(n - 1) != Some(&b'\n');
                    bytes = bytes.get(n..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the name still leads to the file.
    fn is_named(&self, file: &File) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        match (fs::metadata(&self.path), file.metadata()) {
            (Ok(named), Ok(open)) => identity(named) == identity(open),
            _ => false,
        }
    }
}

fn open(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::System { path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
    // Without waiting: a pipe without a reader would block for ever.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    let file = file.map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(OpenError::Irregular(path.to_owned()));
    }
    Ok(file)
}

fn line(value: &impl serde::Serialize) -> Vec<u8> {
    // Strings, numbers and addresses: nothing that JSON has no form for.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::{Outcome, Summary};

    fn record(request: String) -> Record<'static> {
        Record {
            time: record::now().into(),
            policy: "p".into(),
            tenant: "a".into(),
            request: request.into(),
            site: None,
            module: None,
            capability: "kv".into(),
            operation: "get".into(),
            target: "k".into(),
            address: None,
            outcome: Outcome::Allow,
            reason: None,
            rule: None,
            fix: None,
        }
    }

    fn read(path: &Path) -> (Summary, Vec<String>) {
        let mut requests = Vec::new();
        let file = io::BufReader::new(File::open(path).expect("opens"));
        let summary = record::read(file, |record| requests.push(record.request.into_owned())).expect("reads");
        (summary, requests)
    }

    /// A writer without a thread.
    fn writer(path: &Path) -> Writer {
        let file = open(path).ok();
        Writer { path: path.to_owned(), file, lost: Arc::default(), n_lost: Arc::default(), torn: false, failed: false }
    }

    #[test]
    fn what_is_there_stays_and_records_are_appended_in_order() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let path = folder.path().join("audit.jsonl");
        for round in 0..2 {
            let file = AuditFile::open(&path).expect("opens");
            (0..100).for_each(|n| file.write(&record(format!("{round}-{n}"))));
            file.close();
            file.close();
        }
        let expected: Vec<_> = (0..2).flat_map(|round| (0..100).map(move |n| format!("{round}-{n}"))).collect();
        assert_eq!(read(&path).1, expected);
        assert_eq!(fs::metadata(&path).expect("is there").mode() & 0o777, 0o600);
    }

    #[test]
    fn only_a_regular_file_is_taken() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("makes a pipe");
        for path in [folder.path(), &pipe, Path::new("/dev/null"), &pipe.join("audit.jsonl")] {
            assert!(AuditFile::open(path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn a_file_that_was_moved_or_removed_is_made_anew() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let (path, old) = (folder.path().join("audit.jsonl"), folder.path().join("audit.jsonl.1"));
        let mut writer = writer(&path);
        writer.write(line(&record("1".into())), 1, false);
        fs::rename(&path, &old).expect("moves");
        writer.write(line(&record("2".into())), 1, false);
        fs::remove_file(&path).expect("removes");
        writer.write(Vec::new(), 0, true);
        writer.write(line(&record("3".into())), 1, false);
        assert_eq!((read(&old).1, read(&path).1), (vec!["1".to_owned()], vec!["3".to_owned()]));
    }

    #[test]
    fn what_found_no_room_is_a_record_of_its_own_later() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let path = folder.path().join("audit.jsonl");
        let mut writer = writer(&path);
        // A device that is always full, in place of the disk.
        writer.file = Some(OpenOptions::new().write(true).open("/dev/full").expect("opens"));
        writer.path = "/dev/full".into();
        writer.write(line(&record("1".into())), 1, false);
        writer.write(line(&record("2".into())), 1, false);
        assert!(writer.failed);
        writer.path.clone_from(&path);
        writer.write(line(&record("3".into())), 1, false);
        let (summary, requests) = read(&path);
        assert_eq!((summary.n_lost, requests, writer.failed), (2, vec!["3".to_owned()], false));
    }

    #[test]
    fn a_line_that_was_cut_costs_no_other() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let path = folder.path().join("audit.jsonl");
        let mut writer = writer(&path);
        writer.try_write(b"{\"time\":\"x", false).expect("writes");
        assert!(writer.torn);
        writer.write(line(&record("1".into())), 1, false);
        let (summary, requests) = read(&path);
        assert_eq!((summary.n_unreadable, requests), (1, vec!["1".to_owned()]));
    }

    #[test]
    fn a_full_queue_is_counted_and_nobody_waits() {
        let (queue, messages) = mpsc::sync_channel(2);
        let lost = Arc::<AtomicU64>::default();
        let file = AuditFile {
            queue,
            lost: Arc::clone(&lost),
            n_lost: AtomicU64::new(0),
            n_lost_on_disk: Arc::default(),
            writer: Mutex::default(),
        };
        (0..5).for_each(|n| file.write(&record(n.to_string())));
        assert_eq!((file.n_lost(), lost.load(Ordering::Relaxed)), (3, 3));
        let folder = tempfile::tempdir().expect("makes a folder");
        let path = folder.path().join("audit.jsonl");
        let mut writer = writer(&path);
        writer.lost = lost;
        drop(file);
        writer.run(&messages);
        let (summary, requests) = read(&path);
        assert_eq!((summary.n_lost, requests), (3, vec!["0".to_owned(), "1".to_owned()]));
    }
}
