//! How far a piece of work has come, and whether it should stop.
//!
//! The worker adds, anyone may read or cancel. All loops over entries or chunks of data pass through
//! [`Progress::check`], so a cancel is seen within one entry or one chunk.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use super::error::FileError;
use super::quota::Budget;

#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    entries: AtomicU64,
    cancel: CancellationToken,
    budget: OnceLock<Budget>,
    result: OnceLock<serde_json::Value>,
}

impl Progress {
    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.0.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_entry(&self) {
        self.0.entries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_entries(&self, count: u64) {
        self.0.entries.fetch_add(count, Ordering::Relaxed);
    }

    /// Says what the work has made. The first one counts.
    pub(crate) fn set_result(&self, result: serde_json::Value) {
        drop(self.0.result.set(result));
    }

    pub(super) fn result(&self) -> Option<serde_json::Value> {
        self.0.result.get().cloned()
    }

    pub(crate) fn set_total_bytes(&self, bytes: u64) {
        self.0.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Lets what is written from now on count against a volume's limit. The first budget stays.
    pub(super) fn draw_on(&self, budget: Budget) {
        drop(self.0.budget.set(budget));
    }

    /// To be called before so many bytes are written to the volume.
    pub(crate) fn spend(&self, bytes: u64) -> Result<(), FileError> {
        self.0.budget.get().map_or(Ok(()), |budget| budget.take(bytes))
    }

    /// Gives back what will be free again when the work is done, such as a file that it replaces.
    pub(super) fn credit(&self, bytes: u64) {
        if let Some(budget) = self.0.budget.get() {
            budget.give_back(bytes);
        }
    }

    /// Whether so much could be written, for what announces its size.
    pub(crate) fn has_room_for(&self, bytes: u64) -> Result<(), FileError> {
        self.0.budget.get().map_or(Ok(()), |budget| budget.has_room_for(bytes))
    }

    pub(crate) fn done_bytes(&self) -> u64 {
        self.0.done_bytes.load(Ordering::Relaxed)
    }

    /// 0 while it is not known.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.0.total_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn entries(&self) -> u64 {
        self.0.entries.load(Ordering::Relaxed)
    }

    pub(crate) fn cancel(&self) {
        self.0.cancel.cancel();
    }

    pub(crate) async fn cancelled(&self) {
        self.0.cancel.cancelled().await;
    }

    pub(crate) fn check(&self) -> Result<(), FileError> {
        if self.0.cancel.is_cancelled() { Err(FileError::Cancelled) } else { Ok(()) }
    }
}

/// A reader that counts what passes and ends with [`FileError::Cancelled`] on a cancel.
#[derive(Debug)]
pub(super) struct Tracked<R> {
    pub(super) inner: R,
    pub(super) progress: Progress,
}

impl<R: Read> Read for Tracked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.progress.check().map_err(FileError::into_io)?;
        let count = self.inner.read(buffer)?;
        self.progress.add_bytes(count as u64);
        Ok(count)
    }
}

impl<R: io::Seek> io::Seek for Tracked<R> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// A file whose growth counts against the volume's limit.
#[derive(Debug)]
pub(super) struct Charged {
    pub(super) file: File,
    pub(super) progress: Progress,
}

impl Write for Charged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.progress.spend(bytes.len() as u64).map_err(FileError::into_io)?;
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl io::Seek for Charged {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
