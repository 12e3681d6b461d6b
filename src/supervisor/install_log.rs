//! The log of a container's latest install: a file of its own beside the console, capped.
//!
//! A disk that takes no writes costs the log and not the install; it is noted once.

use std::path::{Path, PathBuf};

use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt;

const MAX_BYTES: usize = 4 * 1024 * 1024;

pub(super) struct InstallLog {
    path: PathBuf,
    file: Option<File>,
    written: usize,
}

impl InstallLog {
    /// Begins a new log, or goes on with the one there is.
    pub(super) async fn open(path: PathBuf, resumed: bool) -> Self {
        let opened = OpenOptions::new()
            .create(true)
            .write(true)
            .append(resumed)
            .truncate(!resumed)
            .mode(0o640)
            .open(&path)
            .await;
        let file = opened.inspect_err(|error| Self::note(&path, error)).ok();
        Self { path, file, written: 0 }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) {
        let room = MAX_BYTES.saturating_sub(self.written);
        let taken = &bytes[..bytes.len().min(room)];
        let Some(file) = self.file.as_mut().filter(|_| !taken.is_empty()) else { return };
        self.written += taken.len();
        if let Err(error) = file.write_all(taken).await {
            Self::note(&self.path, &error);
            self.file = None;
        }
    }

    pub(super) async fn close(mut self) {
        if let Some(file) = self.file.as_mut()
            && let Err(error) = file.flush().await
        {
            Self::note(&self.path, &error);
        }
    }

    fn note(path: &Path, error: &std::io::Error) {
        tracing::warn!(path = %path.display(), %error, "the install log cannot be written");
    }
}
