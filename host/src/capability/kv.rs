//! The key-value store: one redb file for all tenants, keys kept apart by tenant.
//!
//! redb writes one transaction at a time and syncs each to disk. So one thread writes, and takes all
//! writes that wait into one transaction: a write costs a sync when the host is idle, and a share of
//! one when it is busy. A reply comes after the sync, so an acknowledged write survives a crash.
//!
//! How much each tenant has is counted in the same transaction, so the count is right after a crash too.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{Arc, mpsc},
    thread,
};

use neoc_abi::{
    OperationError,
    kv::{Operation, Reply},
};
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, TableHandle};
use tokio::sync::oneshot;

use super::OpenError;
use crate::{
    broker::kv::Permit,
    limits::{Exceeded, Owner},
    policy::shown_bytes,
};

/// Tenant and key to value. redb writes the tenant's length before its bytes, so no key of one
/// tenant can spell another's.
const ENTRIES: TableDefinition<(&str, &[u8]), &[u8]> = TableDefinition::new("entries");

/// Tenant to the bytes of its keys and values.
const USAGE: TableDefinition<&str, u64> = TableDefinition::new("usage");

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
    /// What the tenant may have in the store, in bytes.
    most_bytes: u64,
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
        prepare(&database)?;
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
    let (tenant, most_bytes) = (caller.tenant().name.clone(), caller.tenant().limits.kv_bytes);
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
    let (writes, write) = (store.writes.clone(), Write { tenant, most_bytes, change, done });
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
        match commit(database, &batch) {
            Ok(replies) => {
                for (write, reply) in batch.into_iter().zip(replies) {
                    // A script that ended meanwhile does not wait for its reply.
                    let _ = write.done.send(reply);
                }
            }
            Err(error) => {
                for write in batch {
                    let _ = write.done.send(Err(failed(&error)));
                }
            }
        }
    }
}

/// Makes the tables, and counts what is in a store that was made before its tenants' bytes were counted.
fn prepare(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    let is_counted = transaction.list_tables()?.any(|table| table.name() == USAGE.name());
    {
        let (entries, mut usage) = (transaction.open_table(ENTRIES)?, transaction.open_table(USAGE)?);
        if !is_counted {
            let mut counted: HashMap<String, u64> = HashMap::new();
            for entry in entries.iter()? {
                let (at, value) = entry?;
                let (tenant, key) = at.value();
                *counted.entry(tenant.to_owned()).or_default() += entry_bytes(key, value.value());
            }
            for (tenant, bytes) in &counted {
                usage.insert(tenant.as_str(), bytes)?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Does a batch in one transaction. Gives the reply to each write: one that is over its tenant's limit changes
/// nothing, and the others do not mind.
fn commit(database: &Database, batch: &[Write]) -> Result<Vec<Result<Reply, OperationError>>, redb::Error> {
    let transaction = database.begin_write()?;
    let replies = {
        let (mut entries, mut usage) = (transaction.open_table(ENTRIES)?, transaction.open_table(USAGE)?);
        batch.iter().map(|write| apply(&mut entries, &mut usage, write)).collect::<Result<_, _>>()?
    };
    transaction.commit()?;
    Ok(replies)
}

type Entries<'t> = Table<'t, (&'static str, &'static [u8]), &'static [u8]>;

fn apply(
    entries: &mut Entries<'_>,
    usage: &mut Table<'_, &'static str, u64>,
    write: &Write,
) -> Result<Result<Reply, OperationError>, redb::Error> {
    let Write { tenant, most_bytes, change, done: _ } = write;
    let (Change::Set { key, .. } | Change::Delete { key }) = change;
    let at = (tenant.as_str(), key.as_slice());
    let before = entries.get(at)?.map(|value| entry_bytes(key, value.value()));
    let used = usage.get(tenant.as_str())?.map_or(0, |bytes| bytes.value());
    let others = used.saturating_sub(before.unwrap_or(0));
    let (now, reply) = match change {
        Change::Set { value, .. } => {
            let now = others.saturating_add(entry_bytes(key, value));
            // What makes it less is welcome, also where the limit was lowered meanwhile.
            if now > *most_bytes && now > used {
                let exceeded = Exceeded::new(Owner::Tenant, "kv", shown_bytes(*most_bytes));
                return Ok(Err(exceeded.what("keys and values in its store").at("kv.set")));
            }
            entries.insert(at, value.as_slice())?;
            (now, Reply::Stored)
        }
        Change::Delete { .. } => {
            entries.remove(at)?;
            (others, Reply::Deleted(before.is_some()))
        }
    };
    usage.insert(tenant.as_str(), now)?;
    Ok(Ok(reply))
}

/// What an entry counts for.
fn entry_bytes(key: &[u8], value: &[u8]) -> u64 {
    u64::try_from(key.len() + value.len()).unwrap_or(u64::MAX)
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
        let write = Write { tenant: tenant.into(), most_bytes: 100, change, done };
        store.writes.send(write).expect("the writer runs");
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

    /// What a tenant has, as it is counted and as it is.
    fn usage(store: &Store, tenant: &str) -> (u64, u64) {
        let transaction = store.database.begin_read().expect("begins");
        let counted = transaction.open_table(USAGE).expect("there").get(tenant).expect("reads");
        let entries = transaction.open_table(ENTRIES).expect("there");
        let real = entries.iter().expect("reads").map(|entry| entry.expect("reads")).filter_map(|(at, value)| {
            let (of, key) = at.value();
            (of == tenant).then(|| entry_bytes(key, value.value()))
        });
        (counted.map_or(0, |bytes| bytes.value()), real.sum())
    }

    fn limit(result: Result<Reply, OperationError>) -> Option<String> {
        result.err().and_then(|error| error.limit)
    }

    #[test]
    fn the_last_byte_fits_and_one_more_does_not() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let store = Store::open(folder.path()).expect("opens");
        let over = Some("kv".to_owned());
        assert_eq!(limit(write(&store, "a", set(b"key", &[0; 98]))), over);
        assert_eq!((usage(&store, "a"), limit(write(&store, "a", set(b"key", &[0; 97])))), ((0, 0), None));
        assert_eq!(usage(&store, "a"), (100, 100));
        // Another of the same size takes its place; an empty value is not free; others have their own.
        assert_eq!(limit(write(&store, "a", set(b"key", &[1; 97]))), None);
        assert_eq!(limit(write(&store, "a", set(b"k", b""))), over);
        assert_eq!(limit(write(&store, "b", set(b"k", &[0; 99]))), None);
        assert_eq!(write(&store, "a", Change::Delete { key: b"key".to_vec() }), Ok(Reply::Deleted(true)));
        assert_eq!((usage(&store, "a"), usage(&store, "b")), ((0, 0), (100, 100)));
    }

    #[test]
    fn the_count_is_right_after_any_writes_and_after_the_store_is_opened_again() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let mut store = Store::open(folder.path()).expect("opens");
        let mut random = 7_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from((random >> 33) % below).expect("fits")
        };
        for round in 0..200 {
            let key = vec![b'k'; next(4) + 1];
            let change =
                if next(3) == 0 { Change::Delete { key } } else { Change::Set { key, value: vec![0; next(60)] } };
            let _ = write(&store, "a", change);
            let (counted, real) = usage(&store, "a");
            assert!(counted == real && real <= 100, "{round}: {counted} {real}");
            if round % 50 == 49 {
                drop(store);
                store = open_again(folder.path());
            }
        }
    }

    #[test]
    fn a_store_from_before_there_were_counts_is_counted() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let store = Store::open(folder.path()).expect("opens");
        write(&store, "a", set(b"key", b"value")).expect("writes");
        write(&store, "b", set(b"k", b"")).expect("writes");
        let transaction = store.database.begin_write().expect("begins");
        transaction.delete_table(USAGE).expect("deletes");
        transaction.commit().expect("commits");
        drop(store);
        let store = open_again(folder.path());
        assert_eq!((usage(&store, "a"), usage(&store, "b")), ((8, 8), (1, 1)));
    }
}
