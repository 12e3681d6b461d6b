//! The node's memory: one SQLite file, and the only module that speaks SQL.
//!
//! Everything that must survive a crash is a row here, and everything that must change together
//! changes in one transaction: a container with its ports, a state with the panel update that reports
//! it. [`Store::write`] runs a closure inside such a transaction on the one writer thread;
//! [`Store::read`] runs one on a reader. A closure never awaits and should not do anything slow.
//!
//! ```text
//!   write(op, |tx| ..) --try_send--> [queue 256] --> writer thread: BEGIN IMMEDIATE
//!                                                      savepoint per closure
//!                                                    COMMIT (one flush for all that waited)
//!   read(op, |rx| ..)  --2 permits--> blocking thread with its own connection
//!   read_long(op, ..)  --1 permit---> the same, for what may take a while
//! ```
//!
//! Invariant: when `write` has answered `Ok`, the change is on the disk. A closure that fails, or
//! panics, changes nothing. A full queue is [`StoreError::Busy`] at once; nobody waits in line unseen.
//! A caller that goes away while its closure is queued does not stop it.

pub(crate) mod audit;
pub(crate) mod bindings;
pub(crate) mod containers;
pub(crate) mod error;
pub(crate) mod firewall;
pub(crate) mod free_ports;
mod homes;
pub(crate) mod idempotency;
pub(crate) mod leases;
mod meta;
mod migrate;
mod operations;
pub(crate) mod outbox;
pub(crate) mod port_terms;
pub(crate) mod ports;
mod reserve;
pub(crate) mod snapshots;
pub(crate) mod token_index;
pub(crate) mod tokens;
pub(crate) mod trial;
pub(crate) mod usage;
pub(crate) mod volumes;
mod writer;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

pub(crate) use self::error::StoreError;
use self::reserve::Reserve;
use self::token_index::TokenIndex;
use self::writer::Writer;

const READERS: usize = 2;
/// Reads that may walk through many rows have a place of their own: a start waits for none of them.
const LONG_READERS: usize = 1;
/// How often, and in what distance, a write that has to be is tried while the queue is full.
const BUSY_TRIES: u32 = 100;
const BUSY_AGAIN: Duration = Duration::from_millis(20);
/// A program that a killed lightd was about to start holds the lock until it has begun.
const LOCK_TRIES: u32 = 50;
const LOCK_AGAIN: Duration = Duration::from_millis(20);
/// Long enough for a backup tool that holds the file for a moment.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on the store; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    node_id: Uuid,
    tokens: Arc<TokenIndex>,
    writer: Writer,
    idle_readers: Mutex<Vec<Connection>>,
    reader_permits: Arc<Semaphore>,
    long_reader_permits: Arc<Semaphore>,
    reserve: Reserve,
    /// Held for the life of the store, so that two daemons never share one file. `None`: there is no file.
    _lock: Option<File>,
}

/// The inside of a read: sees one unchanging state of the store.
#[derive(Debug)]
pub(crate) struct Read<'c> {
    connection: &'c Connection,
}

/// The inside of a write transaction. Everything a [`Read`] can do, and changes.
#[derive(Debug)]
pub(crate) struct Tx<'c> {
    read: Read<'c>,
    outbox_grew: std::cell::Cell<bool>,
    token_changes: std::cell::RefCell<Vec<token_index::TokenChange>>,
}

impl<'c> std::ops::Deref for Tx<'c> {
    type Target = Read<'c>;
    fn deref(&self) -> &Read<'c> {
        &self.read
    }
}

impl Store {
    /// Opens or makes the store, brings its schema up to date and starts the writer thread. Blocking,
    /// a few milliseconds.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = create_files(path)?;
        Self::open_with(path, Some(lock))
    }

    /// As [`Store::open`], of one that is in memory and goes with its last handle: thousands of them need no
    /// file each. Two of one name are the same.
    #[cfg(feature = "benching")]
    pub(crate) fn in_memory(name: &str) -> Result<Self, StoreError> {
        Self::open_with(Path::new(&format!("file:/{name}?vfs=memdb")), None)
    }

    fn open_with(path: &Path, lock: Option<File>) -> Result<Self, StoreError> {
        let is_file = lock.is_some();
        let mut connection = connect(path)?;
        // A new store need not wait for the disk: the first write that anyone counts on takes what was
        // before it along.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        migrate::migrate(&mut connection, path)?;
        let node_id = node_id(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let reserve = Reserve::beside(path);
        if is_file && let Err(error) = reserve.take() {
            tracing::warn!(%error, "no room is kept for what has to be stored on a full disk");
        }
        let tokens = Arc::new(TokenIndex::new(tokens::all_tokens(&connection)?));
        let writer = Writer::start(connection, Arc::clone(&tokens))
            .map_err(|source| StoreError::Create { path: path.to_owned(), source })?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                node_id,
                tokens,
                writer,
                idle_readers: Mutex::new(Vec::new()),
                reader_permits: Arc::new(Semaphore::new(READERS)),
                long_reader_permits: Arc::new(Semaphore::new(LONG_READERS)),
                reserve,
                _lock: lock,
            }),
        })
    }

    /// This node's random name, made with the store.
    pub(crate) fn node_id(&self) -> Uuid {
        self.inner.node_id
    }

    /// Runs a transaction and answers when it is on the disk. `op` completes "the store failed to …".
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        op: &'static str,
        f: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.writer.write(op, f).await
    }

    /// As [`Store::write`], of what has happened and has to be known: tried again for a while when the store
    /// is busy.
    pub(crate) async fn write_done<T: Send + 'static, F>(
        &self,
        op: &'static str,
        f: F,
    ) -> Result<T, StoreError>
    where
        F: Fn(&Tx<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
    {
        let mut tries = 1..BUSY_TRIES;
        loop {
            match self.write(op, f.clone()).await {
                Err(StoreError::Busy) if tries.next().is_some() => {
                    tokio::time::sleep(BUSY_AGAIN).await;
                }
                done => return done,
            }
        }
    }

    /// Gives up the room that is kept for what has to be stored on a full disk. False if there is none.
    pub(crate) async fn give_up_reserve(&self) -> bool {
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.inner.reserve.give_up()).await.unwrap_or(false)
    }

    /// Takes that room again, where there is any. Blocking.
    pub(crate) fn take_reserve(&self) -> std::io::Result<()> {
        self.inner.reserve.take()
    }

    /// As [`Store::write`], for a thread that may wait.
    pub(crate) fn write_blocking<T: Send + 'static>(
        &self,
        op: &'static str,
        f: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.writer.write_blocking(op, f)
    }

    /// Runs a read on a connection of its own.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        op: &'static str,
        f: impl FnOnce(&Read<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read_with(&self.inner.reader_permits, op, f).await
    }

    /// As [`Store::read`], beside those that somebody waits for who does something.
    pub(crate) async fn read_long<T: Send + 'static>(
        &self,
        op: &'static str,
        f: impl FnOnce(&Read<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read_with(&self.inner.long_reader_permits, op, f).await
    }

    async fn read_with<T: Send + 'static>(
        &self,
        permits: &Arc<Semaphore>,
        op: &'static str,
        f: impl FnOnce(&Read<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let inner = Arc::clone(&self.inner);
        let work = move || {
            let _permit = permit;
            inner.read_blocking(f)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(|error| error.during(op)),
            Err(join) if join.is_panic() => Err(StoreError::Panicked { op }),
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// The tokens in force.
    pub(crate) fn tokens(&self) -> &Arc<TokenIndex> {
        &self.inner.tokens
    }

    /// Told after each commit that added to the outbox. One listener.
    pub(crate) fn outbox_grew(&self) -> Arc<Notify> {
        self.inner.writer.outbox_grew()
    }

    /// Lets queued writes finish, folds the write-ahead log into the file and ends the writer thread.
    /// Later writes are [`StoreError::Closed`]. Blocking; without it nothing is lost either.
    pub(crate) fn close(&self) {
        self.inner.reader_permits.close();
        self.inner.long_reader_permits.close();
        self.inner.lock_readers().clear();
        self.inner.writer.close();
    }
}

impl Inner {
    fn lock_readers(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle_readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_blocking<T>(
        &self,
        f: impl FnOnce(&Read<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let idle = self.lock_readers().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = connect(&self.path)?;
                connection.pragma_update(None, "query_only", true)?;
                connection
            }
        };
        // One transaction, so that several statements see the same state.
        let transaction = connection.unchecked_transaction()?;
        let result = f(&Read { connection: &transaction });
        transaction.finish()?;
        self.lock_readers().push(connection);
        result
    }
}

/// Makes the folder and the database file with no access for others, before SQLite would make them
/// with more; the log beside it inherits its permissions. Takes the lock.
fn create_files(path: &Path) -> Result<File, StoreError> {
    let failed = |source| StoreError::Create { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let private = |path: &Path| {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
    };
    private(path).map_err(failed)?;
    let lock = private(&path.with_extension("lock")).map_err(failed)?;
    for _ in 1..LOCK_TRIES {
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(lock);
        }
        std::thread::sleep(LOCK_AGAIN);
    }
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked { path: path.to_owned() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(32);
        // FULL: a commit is on the disk when it returns, also when the power goes. The cache is small
        // on purpose: the whole store is, and an idle daemon should be too.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
             PRAGMA cache_size = -512; PRAGMA journal_size_limit = 4194304;",
        )?;
        Ok(connection)
    };
    open().map_err(|source| StoreError::Open { path: path.to_owned(), source })
}

/// SQLite's integers have a sign; ours that have none are never near the end of their range.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn node_id(connection: &Connection) -> Result<Uuid, StoreError> {
    let select = "SELECT value FROM meta WHERE key = 'node_id'";
    let stored: Option<String> = connection.query_row(select, [], |row| row.get(0)).optional()?;
    match stored {
        Some(text) => Uuid::try_parse(&text).map_err(|why| StoreError::decode("node id", why)),
        None => {
            let id = Uuid::new_v4();
            let insert = "INSERT INTO meta (key, value) VALUES ('node_id', ?1)";
            connection.execute(insert, [id.to_string()])?;
            Ok(id)
        }
    }
}

#[cfg(test)]
mod port_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
