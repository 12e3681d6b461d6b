//! Visiting everything below a folder, by handles only.
//!
//! A walk never builds a path to open and never follows a link, so a container that moves things about
//! can at worst make it miss or repeat entries of its own. It holds at most [`MAX_HELD`] folders open
//! however deep the tree is: handles further up are given back and found again through `..`, which is
//! believed only if it is the folder the walk came through.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::error::{During, FileError, shown};
use super::resolve::{DIRECTORY, kind_of, open_folder, same_file, stat_name};
use super::staging::{is_dot, is_reserved};

const MAX_HELD: usize = 64;

/// How deep a tree may be for work on a caller's behalf, where each level may hold folders open, here or
/// in what is made of it: copying, searching, packing and unpacking. One number, so that what is packed
/// can be unpacked, and what was unpacked copied.
pub(super) const MAX_DEPTH: usize = 128;
/// For snapshots, which take what a workload has made, however it has: far deeper than servers go, and
/// still fewer open folders than a process may have.
pub(super) const MAX_REPLICA_DEPTH: usize = 1000;
/// For what a volume holds as counted folder by folder, each level with a folder open: nothing is refused
/// beyond it, but all is counted anew each time.
pub(super) const MAX_COUNTED_DEPTH: usize = 200;

/// One thing a walk came to.
pub(super) enum Visit {
    /// A folder was entered; [`Walk::dir`] is now that folder.
    Enter { name: CString, stat: Stat },
    /// Something that is no folder, in [`Walk::dir`].
    Leaf { name: CString, stat: Stat },
    /// All below the folder last entered was seen.
    Leave,
}

pub(super) struct Walk {
    frames: Vec<Frame>,
    /// The names from the walk's start to the present folder, each followed by a slash.
    path: Vec<u8>,
    sees_reserved: bool,
}

struct Frame {
    dir: Option<OwnedFd>,
    stat: Stat,
    listing: Option<Dir>,
    folders: Vec<CString>,
    path_length: usize,
}

impl Walk {
    /// Starts below `dir`; the folder itself is not visited.
    pub(super) fn new(dir: BorrowedFd<'_>) -> Result<Self, FileError> {
        Self::start(dir, false)
    }

    /// As [`Walk::new`], seeing also what lightd keeps in a volume for itself.
    pub(super) fn with_reserved(dir: BorrowedFd<'_>) -> Result<Self, FileError> {
        Self::start(dir, true)
    }

    fn start(dir: BorrowedFd<'_>, sees_reserved: bool) -> Result<Self, FileError> {
        let own =
            rustix::fs::openat(dir, ".", DIRECTORY, Mode::empty()).during("read", &"the folder")?;
        let mut walk = Self { frames: Vec::new(), path: Vec::new(), sees_reserved };
        walk.push(own).during("read", &"the folder")?;
        Ok(walk)
    }

    /// The folder the last visit was in, or entered.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        let dir = self.frames.last().and_then(|frame| frame.dir.as_ref());
        dir.expect("invariant: asked between visits, when the present folder is held").as_fd()
    }

    /// How many folders lie between the start and the present one.
    pub(super) fn depth(&self) -> usize {
        self.frames.len() - 1
    }

    /// The path of `name` in the present folder, counted from the walk's start.
    pub(super) fn path_of(&self, name: &CStr) -> Vec<u8> {
        [self.path.as_slice(), name.to_bytes()].concat()
    }

    /// The path of the folder last entered.
    pub(super) fn path(&self) -> &[u8] {
        self.path.strip_suffix(b"/").unwrap_or(&self.path)
    }

    /// Leaves the folder just entered without looking at what is in it; no [`Visit::Leave`] comes.
    pub(super) fn skip(&mut self) -> Result<(), FileError> {
        self.pop()
    }

    pub(super) fn next(&mut self) -> Result<Option<Visit>, FileError> {
        loop {
            let Some(frame) = self.frames.last_mut() else { return Ok(None) };
            let visit = if frame.listing.is_some() {
                self.next_listed()
            } else if let Some(name) = frame.folders.pop() {
                self.enter(name)
            } else if self.frames.len() > 1 {
                self.pop()?;
                return Ok(Some(Visit::Leave));
            } else {
                return Ok(None);
            };
            match visit {
                Ok(None) => {}
                Ok(visit) => return Ok(visit),
                Err(errno) => return Err(errno).during("read", &Lossy(self.path())),
            }
        }
    }

    fn next_listed(&mut self) -> Result<Option<Visit>, Errno> {
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        let Some(entry) = frame.listing.as_mut().and_then(Dir::read) else {
            frame.listing = None;
            return Ok(None);
        };
        let entry = entry?;
        let name = entry.file_name();
        if is_dot(name) || (is_reserved(name.to_bytes()) && !self.sees_reserved) {
            return Ok(None);
        }
        if entry.file_type() == FileType::Directory {
            frame.folders.push(name.to_owned());
            return Ok(None);
        }
        match stat_name(frame.dir.as_ref().ok_or(Errno::BADF)?, name) {
            Ok(stat) if kind_of(&stat) == FileType::Directory => {
                frame.folders.push(name.to_owned());
                Ok(None)
            }
            Ok(stat) => Ok(Some(Visit::Leaf { name: name.to_owned(), stat })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn enter(&mut self, name: CString) -> Result<Option<Visit>, Errno> {
        match open_folder(self.dir(), &name) {
            Ok(dir) => {
                self.path.extend_from_slice(name.to_bytes());
                self.path.push(b'/');
                let stat = self.push(dir)?;
                Ok(Some(Visit::Enter { name, stat }))
            }
            // Gone or swapped since it was listed.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn push(&mut self, dir: OwnedFd) -> Result<Stat, Errno> {
        let stat = rustix::fs::fstat(&dir)?;
        let listing = Some(Dir::read_from(&dir)?);
        let path_length = self.path.len();
        self.frames.push(Frame { dir: Some(dir), stat, listing, folders: Vec::new(), path_length });
        if let Some(far) = self.frames.len().checked_sub(MAX_HELD + 1) {
            self.frames[far].dir = None;
        }
        Ok(stat)
    }

    fn pop(&mut self) -> Result<(), FileError> {
        let left = self.frames.pop();
        let Some(top) = self.frames.last_mut() else { return Ok(()) };
        self.path.truncate(top.path_length);
        if top.dir.is_none() {
            let below = left.and_then(|frame| frame.dir);
            top.dir = below.and_then(|below| parent_of(&below, &top.stat));
            if top.dir.is_none() {
                return Err(FileError::Busy { path: shown(&Lossy(self.path())) });
            }
        }
        Ok(())
    }
}

fn parent_of(below: &OwnedFd, expected: &Stat) -> Option<OwnedFd> {
    let flags = DIRECTORY | OFlags::NOFOLLOW;
    let dir = rustix::fs::openat(below, "..", flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&dir).ok()?;
    same_file(&stat, expected).then_some(dir)
}

/// A name or path as the file system has it, for messages.
pub(super) struct Lossy<'a>(pub(super) &'a [u8]);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0))
    }
}
