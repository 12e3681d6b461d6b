//! The console of a container: every line it ever printed, numbered, for any number of readers.
//!
//! ```text
//! pump --push--> State (lines get numbers) --+--> Ring (memory) ------+--> Cursor --> a socket
//!                                            +--> Journal (segments) -+--> Cursor --> ...
//! ```
//! One pump per container writes; it never waits for a reader or the disk. Lines count from 1 for the
//! container's life, across runs, restarts and crashes of this process. A reader is only a position:
//! one that sleeps costs nothing and slows nobody, and what it can no longer get is announced to it as
//! a number of lines. What is read by many is serialised once. A line is in the journal before anybody
//! reads it, so that what was seen keeps its number over a `kill -9`.
//!
//! Who owns what: the supervisor owns the [`Console`], the folder it lies in, and the task that runs
//! [`Console::run`]; [`Cursor`]s belong to their sockets. Failure: a disk that takes no writes costs
//! the journal those lines and nothing else; it is logged and shown by [`Console::health`].
//!
//! Sealing blocks, pacing and showing prompts happen when a reader looks, so that a console without
//! readers needs no timer.

mod block;
mod cursor;
mod history;
mod input;
mod journal;
mod pace;
mod read;
mod record;
mod resume;
mod ring;
mod state;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::block::Position;
use self::journal::Journal;
use self::read::{Place, Stored};
use self::state::State;
use crate::domain::ids::RunId;
use crate::domain::stream::Stream;
use crate::util::chain::Chain;

pub(crate) use self::block::Mark;
pub(crate) use self::cursor::{Cursor, Delivery};
pub(crate) use self::history::Query;
pub(crate) use self::input::{ConsoleInput, InputError, input};
pub(crate) use self::journal::OpenError;
pub(crate) use self::resume::{EngineLine, Tail, join, likeness, missing_part};

/// After the first line is on its way to the disk, the next ones are collected for so long.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// So much is written without waiting for the interval.
const FLUSH_BYTES: usize = 256 * 1024;
/// So long a reader waits for the disk to take what it is about to get; then it gets it all the same.
const DISK_PATIENCE: Duration = Duration::from_secs(1);
/// A console that was silent for so long gives its memory back; the journal has it all.
const SILENCE: Duration = Duration::from_secs(10);

/// Threads that read and write journals, of all consoles together.
static JOURNAL_THREADS: Semaphore = Semaphore::const_new(8);

/// The bounds of one console.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConsoleOptions {
    /// Memory for the newest lines, of a console that is in use.
    pub(crate) ring_bytes: usize,
    /// Disk for all lines.
    pub(crate) journal_bytes: u64,
    /// A longer line becomes several.
    pub(crate) max_line_bytes: usize,
}

impl Default for ConsoleOptions {
    fn default() -> Self {
        Self {
            ring_bytes: 2 * 1024 * 1024,
            journal_bytes: 32 * 1024 * 1024,
            max_line_bytes: 64 * 1024,
        }
    }
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the line that is forming.
    Now,
    /// Behind what the reader has.
    After(Mark),
    /// So many lines before the end.
    Tail(u64),
}

/// How the journal does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// Lines that are not in the journal because the disk did not take them, since the console was
    /// opened.
    pub(crate) journal_lost_lines: u64,
    /// Whether the last write failed.
    pub(crate) journal_failing: bool,
}

/// A handle to a console; clones are the same console.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Held by blocking threads only, and before `state` where both are.
    journal: Mutex<Journal>,
    /// Held by the one reader that has the journal written for all.
    writing: tokio::sync::Mutex<()>,
    /// Marked whenever there may be something for readers.
    changed: watch::Sender<()>,
    /// The pending records should not wait for the interval.
    flush_now: Notify,
    journal_failing: watch::Sender<bool>,
}

/// A panic elsewhere leaves both states whole: their updates are plain memory operations.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// Opens the console whose journal lies in `dir`, which is made with the first line if it is not
    /// there. Blocks for a few small reads.
    pub(crate) fn open(dir: PathBuf, options: ConsoleOptions) -> Result<Self, OpenError> {
        let (journal, last) = Journal::open(&dir, options.journal_bytes)?;
        let state = State::new(journal.end(), last, options.ring_bytes, options.max_line_bytes);
        let shared = Shared {
            state: Mutex::new(state),
            journal: Mutex::new(journal),
            writing: tokio::sync::Mutex::new(()),
            changed: watch::Sender::new(()),
            flush_now: Notify::new(),
            journal_failing: watch::Sender::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Takes output as it came, cut anywhere. A new `run` ends the line of the one before. `time_ms`
    /// is when it was written or read, in milliseconds since 1970.
    pub(crate) fn push(&self, run: RunId, stream: Stream, time_ms: i64, bytes: &[u8]) {
        let (look, pending) = {
            let mut state = lock(&self.shared.state);
            let look = state.push(run, stream, time_ms, bytes, Instant::now());
            (look, state.pending.bytes.len())
        };
        if look {
            self.shared.changed.send_replace(());
        }
        if pending >= FLUSH_BYTES {
            self.shared.flush_now.notify_one();
        }
    }

    /// Adds a line of lightd's own, for all who ever read this.
    pub(crate) fn note(&self, run: RunId, time_ms: i64, text: &str) {
        lock(&self.shared.state).note(run, time_ms, text);
        self.shared.changed.send_replace(());
    }

    /// Ends the line that is forming, for the run is over.
    pub(crate) fn end_run(&self) {
        lock(&self.shared.state).end_run();
        self.shared.changed.send_replace(());
    }

    /// The number of the last line that is complete; 0 before the first.
    pub(crate) fn last_line(&self) -> u64 {
        lock(&self.shared.state).ring.end().line - 1
    }

    pub(crate) fn health(&self) -> Health {
        Health {
            journal_lost_lines: lock(&self.shared.state).journal_lost_lines,
            journal_failing: *self.shared.journal_failing.borrow(),
        }
    }

    /// A reader of its own.
    pub(crate) fn cursor(&self, start: Start) -> Cursor {
        let end = lock(&self.shared.state).ring.end();
        let at = match start {
            Start::Now => Position::line(end.line),
            Start::After(mark) => Position::from(mark).min(end),
            Start::Tail(lines) => Position::line(end.line.saturating_sub(lines).max(1)),
        };
        Cursor::new(Arc::clone(&self.shared), at)
    }

    /// Ends all readers once they have what is in memory. When this returns, nothing is written to the
    /// disk any more, and the owner of the folder may remove it.
    pub(crate) async fn close(&self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.send_replace(());
        // A write that has begun holds the lock; one that comes later sees the mark.
        self.shared.blocking(|shared| drop(lock(&shared.journal))).await;
    }

    /// Has the journal take what is numbered by now, so that readers get it without more ado. A disk that
    /// hangs is not waited for.
    pub(crate) async fn settle(&self) {
        let end = lock(&self.shared.state).ring.end();
        self.shared.make_safe(end).await;
    }

    /// Writes all lines that wait for the journal.
    pub(crate) async fn flush(&self) {
        if !lock(&self.shared.state).pending.is_empty() {
            self.shared.blocking(Shared::write_pending).await;
        }
    }

    /// Takes off the disk what is older than `age`. Of a run that may go on (`is_live`) the newest part
    /// stays: without it nobody could tell what of the engine's log is new.
    pub(crate) async fn expire(&self, age: Duration, is_live: bool) {
        let Some(oldest) = SystemTime::now().checked_sub(age) else { return };
        self.flush().await;
        let expire = move |shared: &Shared| {
            let mut journal = lock(&shared.journal);
            if let Err(error) = journal.expire(oldest, !is_live) {
                let dir = journal.dir().display();
                tracing::warn!(%dir, "an expired console journal stays: {}", Chain(&error));
            }
        };
        self.shared.blocking(expire).await;
    }

    /// Keeps the journal up with the console until cancelled. A line on a quiet console is on its way
    /// to the disk at once.
    pub(crate) async fn run(&self, cancel: CancellationToken) {
        let mut changed = self.shared.changed.subscribe();
        while !cancel.is_cancelled() {
            let wake = self.next_chore();
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                result = changed.changed() => result.unwrap_or(()),
                () = sleep_until(wake) => self.do_chores(wake),
            }
            self.flush().await;
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = self.shared.flush_now.notified() => {}
                () = tokio::time::sleep(FLUSH_INTERVAL) => {}
            }
        }
        self.flush().await;
    }

    /// When the console wants looking after although nothing comes.
    fn next_chore(&self) -> Option<Instant> {
        let state = lock(&self.shared.state);
        let silent = || (!state.ring.is_released()).then(|| Instant::now() + SILENCE);
        state.partial_due().or_else(silent)
    }

    fn do_chores(&self, now: Option<Instant>) {
        let now = now.unwrap_or_else(Instant::now);
        let mut state = lock(&self.shared.state);
        if state.partial_due().is_some() {
            state.show_due(now);
        } else if !*self.shared.journal_failing.borrow() && state.pending.is_empty() {
            state.release();
        }
    }
}

impl Shared {
    /// Does file work on a thread for it; `None` if that was not to be, for the runtime is ending.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let permit = JOURNAL_THREADS.acquire().await.ok()?;
        let shared = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || {
            let result = work(&shared);
            drop(permit);
            result
        });
        work.await.ok()
    }

    /// Has the journal written up to `end`, for readers who are about to get it.
    async fn make_safe(self: &Arc<Self>, end: Position) {
        let _turn = self.writing.lock().await;
        if lock(&self.state).is_safe(end) {
            return;
        }
        let writing = self.blocking(Self::write_pending);
        let written = tokio::time::timeout(DISK_PATIENCE, writing).await;
        if !matches!(written, Ok(Some(()))) {
            // A disk that hangs, or a runtime that is ending: the console goes on without it.
            lock(&self.state).note_safe(end);
        }
    }

    fn write_pending(&self) {
        // Taken under the journal's lock, so that two writers keep the order.
        let mut journal = lock(&self.journal);
        let (mut pending, end, closed) = {
            let mut state = lock(&self.state);
            (std::mem::take(&mut state.pending), state.ring.end(), state.closed)
        };
        let result = if closed { Ok(()) } else { journal.append(&pending.bytes) };
        let lost_lines = result.as_ref().map_or_else(|refused| refused.lost_lines, |()| 0);
        if result.is_err() {
            journal.note_given_out(end);
        }
        self.note_write(&journal, result.map_err(|refused| refused.source));
        pending.clear();
        let mut state = lock(&self.state);
        state.journal_lost_lines += lost_lines;
        state.note_safe(end);
        if state.pending.is_empty() {
            state.pending = pending;
        }
    }

    /// Logs when the disk begins or ceases to refuse.
    fn note_write(&self, journal: &Journal, result: std::io::Result<()>) {
        let failing = result.is_err();
        let turned =
            self.journal_failing.send_if_modified(|was| std::mem::replace(was, failing) != failing);
        let dir = journal.dir().display();
        match result {
            Err(error) if turned => {
                tracing::error!(%dir, "console journal is not written: {}", Chain(&error));
            }
            Ok(()) if turned => tracing::info!(%dir, "console journal is written again"),
            Err(_) | Ok(()) => {}
        }
    }

    /// What the journal has at a position, with what was on its way there.
    fn stored_at(&self, from: Position, place: Option<Place>) -> Stored {
        let mut view = lock(&self.journal).view();
        if view.end <= from {
            self.write_pending();
            view = lock(&self.journal).view();
        }
        read::block_at(&view, from, place).unwrap_or_else(|error| {
            let dir = view.dir.display();
            tracing::warn!(%dir, "console journal is not readable: {}", Chain(&error));
            Stored::End
        })
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
