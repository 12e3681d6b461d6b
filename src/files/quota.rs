//! How much a volume may still take, for as long as lightd itself writes to it.
//!
//! The limit holds for what lightd writes, before it is written; where the kernel has one of its own for
//! the volume (`backing`), what that leaves counts as well. Usage is counted when a piece of work begins;
//! from then on whatever is written to that volume at the same time draws
//! on one common rest, so that many uploads at once get no more than one after the other.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::io::Errno;

use super::backing::project;
use super::error::{During, FileError};
use super::progress::Progress;
use super::usage::{Count, Counts};
use super::volume::Volume;
use crate::domain::ids::VolumeId;

/// What is left of each volume that is being written to, and what each holds.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    left: Mutex<HashMap<VolumeId, Weak<AtomicU64>>>,
    pub(super) counts: Counts,
}

/// A share in what is left of one volume.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    left: Arc<AtomicU64>,
    limit_bytes: u64,
    count: Arc<Count>,
}

/// A volume's limit and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used_bytes: u64,
    /// What can still be written: the rest of the limit, or of the disk if that is less.
    pub(crate) available_bytes: u64,
}

impl Budgets {
    /// The common rest of a volume, which is set to `left_bytes` as just counted.
    fn join(&self, volume: VolumeId, left_bytes: u64, limit_bytes: u64) -> Budget {
        let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, left| left.strong_count() > 0);
        let left = match all.get(&volume).and_then(Weak::upgrade) {
            Some(left) => left,
            None => {
                let left = Arc::new(AtomicU64::new(0));
                all.insert(volume, Arc::downgrade(&left));
                left
            }
        };
        left.store(left_bytes, Ordering::Relaxed);
        drop(all);
        Budget { left, limit_bytes, count: self.counts.of(volume) }
    }
}

impl Budget {
    pub(super) fn take(&self, bytes: u64) -> Result<(), FileError> {
        let rest = |left: u64| left.checked_sub(bytes);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest) {
            Ok(_) => {
                self.count.spend(bytes);
                Ok(())
            }
            Err(_) => Err(self.exceeded()),
        }
    }

    pub(super) fn give_back(&self, bytes: u64) {
        let more = |left: u64| Some(left.saturating_add(bytes));
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok();
    }

    pub(super) fn has_room_for(&self, bytes: u64) -> Result<(), FileError> {
        if self.left.load(Ordering::Relaxed) < bytes { Err(self.exceeded()) } else { Ok(()) }
    }

    fn exceeded(&self) -> FileError {
        FileError::QuotaExceeded { limit_bytes: self.limit_bytes }
    }
}

/// Tells whose room has run out, the volume's or that of the disk which all share: the kernel has one
/// word for both. Asked once what was half written is gone, and so both are as much longer; the shorter
/// one was the end.
pub(super) fn whose_room(error: FileError, volume: impl AsFd, disk: impl AsFd) -> FileError {
    let FileError::NoSpace { path } = error else { return error };
    match ends_first(volume.as_fd(), disk.as_fd()) {
        Ok(true) => FileError::VolumeFull { path },
        // What cannot be measured is told as it came.
        Ok(false) | Err(_) => FileError::NoSpace { path },
    }
}

/// Whether a folder has a limit of its own that ends before the disk does.
fn ends_first(volume: BorrowedFd<'_>, disk: BorrowedFd<'_>) -> Result<bool, Errno> {
    if rustix::fs::fstat(volume)?.st_dev != rustix::fs::fstat(disk)?.st_dev {
        return Ok(true);
    }
    let left = |fd| rustix::fs::fstatvfs(fd).map(|room| room.f_bavail);
    Ok(project::is_limited(volume, disk) && left(volume)? <= left(disk)?)
}

impl Volume {
    /// Holds the work that `progress` belongs to, which is to begin now, to the volume's limit.
    /// `freed_bytes` is what the work will give back, such as a file that it replaces.
    pub(crate) fn hold_to(
        &self,
        limit_bytes: Option<u64>,
        freed_bytes: u64,
        progress: &Progress,
    ) -> Result<(), FileError> {
        let Some(limit_bytes) = limit_bytes else { return Ok(()) };
        let (mut used_bytes, kernel_left) = self.counted()?;
        let is_near = used_bytes.saturating_sub(freed_bytes) > limit_bytes / 4 * 3;
        if is_near && !self.is_limited {
            used_bytes = self.budgets.counts.of(self.id).fresh_bytes(self)?;
        }
        let mut left_bytes = limit_bytes.saturating_sub(used_bytes.saturating_sub(freed_bytes));
        // A replaced file goes only when the new one is there, and the kernel knows no exceptions.
        if let Some(kernel_left) = kernel_left {
            left_bytes = left_bytes.min(kernel_left);
        }
        progress.draw_on(self.budgets.join(self.id, left_bytes, limit_bytes));
        Ok(())
    }

    pub(crate) fn usage(&self, limit_bytes: Option<u64>) -> Result<Usage, FileError> {
        let (used_bytes, _) = self.counted()?;
        let free_bytes = self.free_bytes()?;
        let available_bytes = limit_bytes
            .map_or(free_bytes, |limit| limit.saturating_sub(used_bytes).min(free_bytes));
        Ok(Usage { used_bytes, available_bytes })
    }

    /// What the volume holds, after another look at some of its files, which may have grown.
    pub(crate) fn recount(&self, entries: u64) -> Result<u64, FileError> {
        if self.is_limited {
            return Ok(self.counted()?.0);
        }
        self.budgets.counts.of(self.id).roll(self, entries)
    }

    /// What the volume holds, and what the kernel lets it take where the kernel has a limit.
    fn counted(&self) -> Result<(u64, Option<u64>), FileError> {
        if !self.is_limited {
            return Ok((self.budgets.counts.of(self.id).bytes(self)?, None));
        }
        let disk = rustix::fs::fstatvfs(&self.root).during("measure", &"the volume")?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok((bytes(disk.f_blocks.saturating_sub(disk.f_bfree)), Some(bytes(disk.f_bavail))))
    }

    fn free_bytes(&self) -> Result<u64, FileError> {
        let disk = rustix::fs::fstatvfs(&self.root).during("measure", &"the volume")?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}
