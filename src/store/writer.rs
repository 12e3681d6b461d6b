//! The one thread that changes the store.
//!
//! Closures that wait at the same time share one transaction, each inside a savepoint of its own, and
//! so share the one slow thing, the flush at commit. They are answered only after it. When the commit
//! itself fails, all of them are told so and none has happened.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{Notify, mpsc, oneshot};

use super::error::StoreError;
use super::token_index::{TokenChange, TokenIndex};
use super::{Read, Tx};

const QUEUE: usize = 256;
/// How many closures share a transaction at most; bounds how long the first waits for the last.
const BATCH: usize = 64;

/// Runs in the transaction, if there is one, and returns what answers the caller once the
/// transaction's fate is known.
type Job = Box<dyn FnOnce(Result<&Connection, Lost>) -> Done + Send>;

struct Done {
    answer: Box<dyn FnOnce(Result<(), Lost>) + Send>,
    outbox_grew: bool,
    token_changes: Vec<TokenChange>,
    /// What SQLite said to a closure that failed.
    failed: Option<Lost>,
}

/// Why a whole transaction did not happen. An SQL error cannot be cloned for each caller; its code can.
#[derive(Clone, Copy)]
struct Lost(rusqlite::ffi::Error);

impl Lost {
    fn because(why: &rusqlite::Error) -> Self {
        let unknown = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR);
        Self(why.sqlite_error().copied().unwrap_or(unknown))
    }

    fn during(self, op: &'static str) -> StoreError {
        StoreError::sql(op, rusqlite::Error::SqliteFailure(self.0, None))
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    outbox_grew: Arc<Notify>,
}

impl Writer {
    pub(super) fn start(connection: Connection, tokens: Arc<TokenIndex>) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let outbox_grew = Arc::new(Notify::new());
        let notify = Arc::clone(&outbox_grew);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || run(&connection, jobs, &notify, &tokens))?;
        Ok(Self { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)), outbox_grew })
    }

    pub(super) fn outbox_grew(&self) -> Arc<Notify> {
        Arc::clone(&self.outbox_grew)
    }

    pub(super) async fn write<T: Send + 'static>(
        &self,
        op: &'static str,
        f: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move |transaction| {
            let (outcome, told) = match transaction {
                Ok(connection) => in_savepoint(connection, op, f),
                Err(lost) => (Err(lost.during(op)), Told::default()),
            };
            let Told { outbox_grew, token_changes } = told;
            let failed = outcome.as_ref().err().and_then(StoreError::sqlite).map(Lost);
            let answer = move |committed: Result<(), Lost>| {
                let outcome = match committed {
                    Ok(()) => outcome,
                    Err(lost) => outcome.and_then(|_| Err(lost.during(op))),
                };
                // The caller may be gone; what it asked for was done all the same.
                reply.send(outcome).ok();
            };
            Done { answer: Box::new(answer), outbox_grew, token_changes, failed }
        });
        self.send(job)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match queue.as_ref().map(|queue| queue.try_send(job)) {
            Some(Ok(())) => Ok(()),
            Some(Err(mpsc::error::TrySendError::Full(_))) => Err(StoreError::Busy),
            Some(Err(mpsc::error::TrySendError::Closed(_))) | None => Err(StoreError::Closed),
        }
    }

    pub(super) fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

fn run(
    connection: &Connection,
    mut jobs: mpsc::Receiver<Job>,
    outbox_grew: &Notify,
    tokens: &TokenIndex,
) {
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        let (mut done, committed) = transaction(connection, batch);
        if committed.is_ok() {
            let changes = done.iter_mut().map(|done| std::mem::take(&mut done.token_changes));
            changes.filter(|changes| !changes.is_empty()).for_each(|changes| tokens.apply(changes));
        }
        let grew = committed.is_ok() && done.iter().any(|done| done.outbox_grew);
        for done in done {
            (done.answer)(committed);
        }
        if grew {
            outbox_grew.notify_one();
        }
    }
}

fn transaction(connection: &Connection, batch: Vec<Job>) -> (Vec<Done>, Result<(), Lost>) {
    let mut state = statement(connection, "BEGIN IMMEDIATE");
    let mut done = Vec::with_capacity(batch.len());
    for job in batch {
        let one = job(state.map(|()| connection));
        // A full disk or a failed read makes SQLite roll back everything, not only the savepoint.
        // What follows must not run outside the transaction then, and what went before is undone for
        // the same reason.
        if state.is_ok() && connection.is_autocommit() {
            let unknown = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
            state = Err(one.failed.unwrap_or(Lost(unknown)));
        }
        done.push(one);
    }
    let committed = state.and_then(|()| statement(connection, "COMMIT"));
    if committed.is_err() && !connection.is_autocommit() {
        // Reported by `statement`; the next BEGIN fails if this did not help.
        statement(connection, "ROLLBACK").ok();
    }
    (done, committed)
}

fn statement(connection: &Connection, sql: &str) -> Result<(), Lost> {
    connection.execute_batch(sql).map_err(|why| {
        tracing::error!(error = %why, "the store cannot {sql}");
        Lost::because(&why)
    })
}

/// What others are to know of a closure that was not undone.
#[derive(Default)]
struct Told {
    outbox_grew: bool,
    token_changes: Vec<TokenChange>,
}

/// Runs one closure so that its failure or panic undoes its own changes only.
fn in_savepoint<T>(
    connection: &Connection,
    op: &'static str,
    f: impl FnOnce(&Tx<'_>) -> Result<T, StoreError>,
) -> (Result<T, StoreError>, Told) {
    if let Err(lost) = statement(connection, "SAVEPOINT one") {
        return (Err(lost.during(op)), Told::default());
    }
    let tx = Tx {
        read: Read { connection },
        outbox_grew: Cell::new(false),
        token_changes: RefCell::default(),
    };
    // The closure owns what it captured and the savepoint is rolled back: nothing half-changed is
    // seen after a panic.
    let outcome = catch_unwind(AssertUnwindSafe(|| f(&tx)))
        .unwrap_or(Err(StoreError::Panicked { op }))
        .map_err(|error| error.during(op));
    let end = if outcome.is_ok() { "RELEASE one" } else { "ROLLBACK TO one; RELEASE one" };
    match statement(connection, end) {
        Ok(()) => {
            let told = Told {
                outbox_grew: tx.outbox_grew.get(),
                token_changes: tx.token_changes.into_inner(),
            };
            let told = if outcome.is_ok() { told } else { Told::default() };
            (outcome, told)
        }
        Err(lost) => (outcome.and_then(|_| Err(lost.during(op))), Told::default()),
    }
}
