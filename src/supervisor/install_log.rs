//! The log of a container's latest install: a file of its own beside the console, capped.
//!
//! Written by the install that is under way, read by whoever asks for it. A disk that takes no writes
//! costs the log and not the install; it is noted once.

use std::path::{Path, PathBuf};

use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use crate::engine::LogLine;

const MAX_BYTES: usize = 4 * 1024 * 1024;

pub(super) struct InstallLog {
    path: PathBuf,
    file: Option<File>,
    written: usize,
}

impl InstallLog {
    /// Begins a new log, or goes on with the one there is.
    pub(super) async fn open(path: PathBuf, anew: bool) -> Self {
        let opened = OpenOptions::new()
            .create(true)
            .write(true)
            .append(!anew)
            .truncate(anew)
            .mode(0o640)
            .open(&path)
            .await;
        let file = opened.inspect_err(|error| Self::note(&path, error)).ok();
        let mut log = Self { path, file, written: 0 };
        let present = log.length().await.unwrap_or(0);
        log.written = usize::try_from(present).unwrap_or(MAX_BYTES);
        log
    }

    /// Brings a log that was cut off up to date: written anew from the engine's log if that has it all,
    /// and otherwise, where the engine has dropped its beginning, continued with what is new.
    pub(super) async fn make_up(&mut self, whole: &[LogLine], news: &[LogLine]) {
        let bytes: usize = whole.iter().map(|line| line.bytes.len()).sum();
        let (lines, anew) = match self.length().await {
            Some(present) if present <= bytes as u64 => (whole, true),
            _ => (news, false),
        };
        if anew && let Err(error) = self.begin_anew().await {
            return Self::note(&self.path, &error);
        }
        for line in lines {
            self.write(&line.bytes).await;
        }
    }

    async fn begin_anew(&mut self) -> std::io::Result<()> {
        if let Some(file) = &mut self.file {
            file.set_len(0).await?;
            file.rewind().await?;
        }
        self.written = 0;
        Ok(())
    }

    async fn length(&self) -> Option<u64> {
        Some(self.file.as_ref()?.metadata().await.ok()?.len())
    }

    /// Appends what there is still room for.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_that_is_gone_on_with_is_capped_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("install.log");
        let half = vec![b'x'; MAX_BYTES / 2 + 1];
        for anew in [true, false, false] {
            let mut log = InstallLog::open(path.clone(), anew).await;
            log.write(&half).await;
            log.close().await;
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), MAX_BYTES as u64);
    }
}
