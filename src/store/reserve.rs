//! Room on the disk for what has to be stored on a full one.
//!
//! Owns a file of [`ROOM_BYTES`] beside the store that holds nothing. The supervisor gives it up when a kill, a
//! stop or a suspension meets a full disk: who has ended a server must not find it running after the next
//! start of lightd. It is made again when there is room. A file that cannot be made costs only that.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// Enough for some hundred writes of one row.
const ROOM_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn beside(store: &Path) -> Self {
        Self { path: store.with_extension("reserve") }
    }

    /// Takes the room, unless it is taken. Blocking.
    pub(super) fn take(&self) -> io::Result<()> {
        if std::fs::metadata(&self.path).is_ok_and(|found| found.len() == ROOM_BYTES) {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&self.path)?;
        let taken = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, ROOM_BYTES);
        taken.map_err(io::Error::from).inspect_err(|_| {
            // Half of it is no help, and the disk is full.
            self.give_up();
        })
    }

    /// Gives the room up. False if there is none. Blocking.
    pub(super) fn give_up(&self) -> bool {
        std::fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_once_and_given_up_once() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::beside(&folder.path().join("lightd.db"));
        assert!(!reserve.give_up());
        reserve.take().unwrap();
        reserve.take().unwrap();
        let taken = std::fs::metadata(folder.path().join("lightd.reserve")).unwrap();
        assert!(std::os::unix::fs::MetadataExt::blocks(&taken) * 512 >= ROOM_BYTES);
        assert!(reserve.give_up());
        assert!(!reserve.give_up());
    }
}
