//! The place where things are made before they appear under their name, and where they go to die.
//!
//! Every write, copy, archive and extraction is made inside a folder `.lightd-…` at the volume's root
//! and enters its place by one rename; every folder to be removed leaves its place by one. The folder
//! is private to lightd (0700), so a container's user cannot reach in. It goes away with its owner, and
//! what a crash leaves lies in one known place, where `Files::sweep` finds it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::path::Arg;

use super::error::{During, FileError};
use super::progress::Progress;
use super::resolve::open_folder;

const PREFIX: &str = ".lightd-";
/// How many folders are held open at once while removing; what lies deeper is moved up first.
const MAX_HELD_DEPTH: u32 = 64;

/// Stands in the name of everything temporary that this process makes, so that a sweep tells what a
/// crash has left from what is being worked on.
pub(super) fn own_mark() -> &'static str {
    static MARK: OnceLock<String> = OnceLock::new();
    MARK.get_or_init(|| format!("{:012x}-", rand::random::<u64>() >> 16))
}

pub(super) fn is_own(name: &[u8]) -> bool {
    let mark = own_mark().as_bytes();
    name.windows(mark.len()).any(|part| part == mark)
}

/// A new name for something temporary, which no path from outside may hold.
pub(super) fn reserved_name(what: &str) -> String {
    format!("{PREFIX}{what}-{}{:016x}", own_mark(), rand::random::<u64>())
}

pub(super) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

#[derive(Debug)]
pub(super) struct Staging<'v> {
    root: BorrowedFd<'v>,
    name: String,
    dir: OwnedFd,
}

impl<'v> Staging<'v> {
    pub(super) fn new(root: BorrowedFd<'v>) -> Result<Self, FileError> {
        let name = reserved_name("staging");
        rustix::fs::mkdirat(root, &name, Mode::from_raw_mode(0o700))
            .during("make", &"a temporary folder")?;
        let dir = open_folder(root, &name).during("make", &"a temporary folder")?;
        Ok(Self { root, name, dir })
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Removes what is inside now, with progress; dropping would do it without.
    pub(super) fn clear(&self, progress: &Progress) -> Result<(), Errno> {
        remove_tree(self.root, self.name.as_str(), progress)
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        match self.clear(&Progress::default()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(name = %self.name, %error, "left a temporary folder in a volume");
            }
        }
    }
}

/// Removes `name` in `parent`, whatever it is, with all below it. Links are removed, never followed.
/// Cannot be cancelled: half a tree is of no use to anyone.
pub(super) fn remove_tree(
    parent: BorrowedFd<'_>,
    name: impl Arg + Copy,
    progress: &Progress,
) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        outcome => return outcome,
    }
    let top = open_folder(parent, name)?;
    let mut removal = Removal { top: top.as_fd(), moved_up: 0, refills_left: 1000, progress };
    loop {
        let moved_before = removal.moved_up;
        removal.empty(top.as_fd(), 0)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if removal.moved_up > moved_before => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => removal.refilled()?,
            outcome => return outcome,
        }
    }
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    /// How many folders lay too deep and were moved to the top, to be removed from there.
    moved_up: u64,
    /// A process that still holds a folder open may fill it while we empty it; it shall not keep us
    /// here for ever.
    refills_left: u32,
    progress: &'a Progress,
}

impl Removal<'_> {
    fn refilled(&mut self) -> Result<(), Errno> {
        self.refills_left = self.refills_left.checked_sub(1).ok_or(Errno::BUSY)?;
        Ok(())
    }

    fn empty(&mut self, dir: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
        for entry in rustix::fs::Dir::read_from(dir)? {
            let entry = entry?;
            if !is_dot(entry.file_name()) {
                self.progress.add_entry();
                self.remove_entry(dir, entry.file_name(), depth)?;
            }
        }
        Ok(())
    }

    fn remove_entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<(), Errno> {
        loop {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(errno),
            }
            if depth >= MAX_HELD_DEPTH {
                let up = format!("{PREFIX}deep-{:016x}", rand::random::<u64>());
                self.moved_up += 1;
                return rustix::fs::renameat(dir, name, self.top, up);
            }
            match open_folder(dir, name) {
                Ok(below) => self.empty(below.as_fd(), depth + 1)?,
                Err(Errno::NOENT) => return Ok(()),
                // Swapped for something else since.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    self.refilled()?;
                    continue;
                }
                Err(errno) => return Err(errno),
            }
            match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => self.refilled()?,
                Err(errno) => return Err(errno),
            }
        }
    }
}

pub(super) fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}
