//! The key-value store: one redb file for all tenants, keys kept apart by tenant.
//!
//! redb writes one transaction at a time and syncs each to disk. So one thread writes, and takes all
//! writes that wait into one transaction: a write costs a sync when the host is idle, and a share of
//! one when it is busy. A reply comes after the sync, so an acknowledged write survives a crash.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, mpsc},
    thread,
};

use neoc_abi::{
    OperationError,
    kv::{Operation, Reply},
};
use redb::{Database, ReadableDatabase, TableDefinition};
use tokio::sync::oneshot;

use super::OpenError;
use crate::broker::kv::Permit;

/// Tenant and key to value. redb writes the tenant's length before its bytes, so no key of one
/// tenant can spell another's.
const ENTRIES: TableDefinition<(&str, &[u8]), &[u8]> = TableDefinition::new("entries");

/// Writes that may wait for the writer. More wait in their own tasks.
const MAX_WAITING_WRITES: usize = 1024;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or the thread.
    #[error(transparent)]
    System(#[from] io::Error),
    /// The file.
    #[error(transparent)]
    Database(#[from] redb::Error),
}

/// The open store.
pub struct Store {
    database: Arc<Database>,
    writes: mpsc::SyncSender<Write>,
}

struct Write {
    tenant: String,
    change: Change,
    done: oneshot::Sender<Result<Reply, OperationError>>,
}

enum Change {
    Set { key: Vec<u8>, value: Vec<u8> },
    Delete { key: Vec<u8> },
}

impl Store {
    /// Opens `.neoc/kv.redb` in the data folder; both are made when they are absent. No grant can name
    /// a directory that starts with a dot, so no script reaches the file.
    ///
    /// # Errors
    /// When another process has it open, or it is not a store.
    pub fn open(data_dir: &Path) -> Result<Self, OpenError> {
        let folder = data_dir.join(".neoc");
        let path = folder.join("kv.redb");
        Self::open_file(&folder, &path).map_err(|source| OpenError::Store { path, source })
    }

    fn open_file(folder: &Path, path: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder)?;
        let database = Arc::new(Database::create(path).map_err(redb::Error::from)?);
        // So that reading before the first write finds a table.
        let transaction = database.begin_write().map_err(redb::Error::from)?;
        transaction.open_table(ENTRIES).map_err(redb::Error::from)?;
        transaction.commit().map_err(redb::Error::from)?;
        let (writes, waiting) = mpsc::sync_channel(MAX_WAITING_WRITES);
        let writer = Arc::clone(&database);
        // Ends when the store is dropped, after the writes that still wait.
        thread::Builder::new().name("neoc-kv".into()).spawn(move || write_all(&writer, &waiting))?;
        Ok(Self { database, writes })
    }

    fn get(database: &Database, tenant: &str, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
        let table = database.begin_read()?.open_table(ENTRIES)?;
        Ok(table.get((tenant, key))?.map(|value| value.value().to_vec()))
    }
}

/// Does one operation on the tenant's own keys.
///
/// # Errors
/// Of kind `io` when the disk fails.
pub async fn perform(store: Option<&Store>, permit: Permit) -> Result<Reply, OperationError> {
    let store = store.ok_or_else(|| OperationError::io("kv: this host has no store"))?;
    let (caller, operation) = permit.into_parts();
    let tenant = caller.tenant().name.clone();
    let change = match operation {
        Operation::Get { key } => {
            let database = Arc::clone(&store.database);
            let value = on_blocking_thread(move || Store::get(&database, &tenant, &key)).await?;
            return Ok(Reply::Value(value.map(serde_bytes::ByteBuf::from)));
        }
        Operation::Set { key, value } => Change::Set { key, value },
        Operation::Delete { key } => Change::Delete { key },
    };
    let (done, reply) = oneshot::channel();
    let (writes, write) = (store.writes.clone(), Write { tenant, change, done });
    // A full queue waits, so the wait is on a thread that may.
    let sent = match writes.try_send(write) {
        Ok(()) => true,
        Err(mpsc::TrySendError::Disconnected(_)) => false,
        Err(mpsc::TrySendError::Full(write)) => {
            tokio::task::spawn_blocking(move || writes.send(write).is_ok()).await.unwrap_or(false)
        }
    };
    let failed = || OperationError::io("kv: the store is closed");
    if sent { reply.await.map_err(|_| failed())? } else { Err(failed()) }
}

async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, redb::Error> + Send + 'static,
) -> Result<T, OperationError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| failed(&error)),
        Err(_) => Err(OperationError::io("kv: the operation was cancelled")),
    }
}

/// The writer's life: wait for a write, take all that wait with it, commit, reply.
fn write_all(database: &Database, waiting: &mpsc::Receiver<Write>) {
    while let Ok(first) = waiting.recv() {
        let batch: Vec<Write> = std::iter::once(first).chain(waiting.try_iter()).collect();
        let result = commit(database, &batch);
        for (index, write) in batch.into_iter().enumerate() {
            let reply = match &result {
                Ok(existed) => Ok(match write.change {
                    Change::Set { .. } => Reply::Stored,
                    Change::Delete { .. } => Reply::Deleted(existed.get(index).copied().unwrap_or(false)),
                }),
                Err(error) => Err(failed(error)),
            };
            // A script that ended meanwhile does not wait for its reply.
            let _ = write.done.send(reply);
        }
    }
}

/// Writes a batch in one transaction; says of each write whether its key was there before.
fn commit(database: &Database, batch: &[Write]) -> Result<Vec<bool>, redb::Error> {
    let transaction = database.begin_write()?;
    let mut existed = Vec::with_capacity(batch.len());
    {
        let mut table = transaction.open_table(ENTRIES)?;
        for Write { tenant, change, .. } in batch {
            let before = match change {
                Change::Set { key, value } => table.insert((tenant.as_str(), key.as_slice()), value.as_slice())?,
                Change::Delete { key } => table.remove((tenant.as_str(), key.as_slice()))?,
            };
            existed.push(before.is_some());
        }
    }
    transaction.commit()?;
    Ok(existed)
}

/// The operator reads what failed in the log; the script learns only that it did.
fn failed(error: &redb::Error) -> OperationError {
    tracing::error!("the key-value store failed: {error}");
    OperationError::io("kv: the store failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(store: &Store, tenant: &str, change: Change) -> Result<Reply, OperationError> {
        let (done, reply) = oneshot::channel();
        store.writes.send(Write { tenant: tenant.into(), change, done }).expect("the writer runs");
        reply.blocking_recv().expect("the writer replies")
    }

    fn set(key: &[u8], value: &[u8]) -> Change {
        Change::Set { key: key.to_vec(), value: value.to_vec() }
    }

    #[test]
    fn a_value_is_there_after_the_store_is_opened_again() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let store = Store::open(folder.path()).expect("opens");
        assert_eq!(write(&store, "a", set(b"key", b"value")), Ok(Reply::Stored));
        drop(store);
        let store = open_again(folder.path());
        assert_eq!(Store::get(&store.database, "a", b"key").expect("reads"), Some(b"value".to_vec()));
    }

    /// The writer thread lets go of the file a moment after the store is dropped.
    fn open_again(folder: &Path) -> Store {
        loop {
            match Store::open(folder) {
                Ok(store) => return store,
                Err(_) => thread::yield_now(),
            }
        }
    }

    #[test]
    fn no_key_of_one_tenant_is_a_key_of_another() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let store = Store::open(folder.path()).expect("opens");
        write(&store, "a", set(b"bc", b"1")).expect("writes");
        for (tenant, key) in [("ab", &b"c"[..]), ("abc", b""), ("", b"abc")] {
            assert_eq!(Store::get(&store.database, tenant, key).expect("reads"), None, "{tenant} {key:?}");
        }
    }

    #[test]
    fn deleting_says_whether_there_was_such_a_key() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let store = Store::open(folder.path()).expect("opens");
        write(&store, "a", set(b"key", b"")).expect("writes");
        let delete = || Change::Delete { key: b"key".to_vec() };
        assert_eq!(write(&store, "a", delete()), Ok(Reply::Deleted(true)));
        assert_eq!(write(&store, "a", delete()), Ok(Reply::Deleted(false)));
    }
}
