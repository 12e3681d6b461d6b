//! Whole trees: what they take on disk, and whose they are.
//!
//! Called where a volume is counted in whole or handed to its user. Walked by handles, however deep; links are
//! never followed. What is gone before it was come to is passed over.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat as RawStat, Timespec, Timestamps};
use rustix::io::Errno;

use super::error::{During, FileError};
use super::resolve::{Owner, give_name_to, give_to, kind_of};
use super::volume::{Volume, blocks_of, size_of_file};
use super::walk::{Lossy, Visit, Walk};

impl Volume {
    /// The bytes the volume takes on disk, hard-linked files counted once.
    pub(crate) fn disk_usage(&self) -> Result<u64, FileError> {
        let mut linked = std::collections::HashSet::new();
        let mut blocks =
            blocks_of(&rustix::fs::fstat(&self.root).during("measure", &"the volume")?);
        let mut walk = Walk::with_reserved(self.root())?;
        while let Some(visit) = walk.next()? {
            match visit {
                Visit::Enter { stat, .. } => blocks += blocks_of(&stat),
                Visit::Leaf { stat, .. } => {
                    if stat.st_nlink <= 1 || linked.insert((stat.st_dev, stat.st_ino)) {
                        blocks += blocks_of(&stat);
                    }
                }
                Visit::Leave => {}
            }
        }
        Ok(blocks * 512)
    }

    /// Gives the whole volume to a user and group. Links are given away themselves.
    pub(crate) fn chown_all(&self, owner: Owner) -> Result<(), FileError> {
        let is_his = |stat: &RawStat| (stat.st_uid, stat.st_gid) == (owner.uid, owner.gid);
        give_to(Some(owner), &self.root).during("change the owner of", &"the volume")?;
        let mut walk = Walk::new(self.root())?;
        while let Some(visit) = walk.next()? {
            let outcome = match visit {
                Visit::Enter { stat, .. } if !is_his(&stat) => give_to(Some(owner), walk.dir()),
                Visit::Leaf { name, stat } if !is_his(&stat) => {
                    match give_name_to(Some(owner), walk.dir(), &name) {
                        Err(Errno::NOENT) => Ok(()),
                        outcome => outcome,
                    }
                }
                _ => Ok(()),
            };
            outcome.during("change the owner of", &Lossy(walk.path()))?;
        }
        Ok(())
    }
}

/// The bytes of content in a tree, for progress.
pub(super) fn content_size(dir: BorrowedFd<'_>) -> Result<u64, FileError> {
    let mut total = 0;
    let mut walk = Walk::new(dir)?;
    while let Some(visit) = walk.next()? {
        if let Visit::Leaf { stat, .. } = visit
            && kind_of(&stat) == FileType::RegularFile
        {
            total += size_of_file(&stat);
        }
    }
    Ok(total)
}

/// The modification time of `stat`, to be set on another file; when that was last read is of no interest.
pub(super) fn modified_with(stat: &RawStat) -> Timestamps {
    modified_at(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

pub(super) fn modified_at(seconds: i64, nanoseconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps { last_access: time, last_modification: time }
}
