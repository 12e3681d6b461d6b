//! How far a piece of work has come, and whether it should stop.
//!
//! The worker adds, anyone may read or cancel. All loops over entries or chunks of data pass through
//! [`Progress::check`], so a cancel is seen within one entry or one chunk.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use super::error::FileError;

#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    entries: AtomicU64,
    cancel: CancellationToken,
}

impl Progress {
    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.0.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_entry(&self) {
        self.0.entries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_total_bytes(&self, bytes: u64) {
        self.0.total_bytes.store(bytes, Ordering::Relaxed);
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
