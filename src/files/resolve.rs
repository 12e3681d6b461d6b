//! From a path inside a volume to an open handle, with the kernel as the judge of what is inside.
//!
//! Everything in `files` that turns a name into a handle goes through here. Containers run beside us
//! and swap folders for symbolic links while we look, so no answer about a path is worth anything but
//! the handle itself: `openat2` with `RESOLVE_BENEATH` resolves and checks in one step. Nothing is ever
//! opened for reading before its kind is known: a FIFO would block and a device could act.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;
use rustix::path::Arg;

use super::error::{During, FileError};
use crate::domain::path::RelPath;

/// How often a resolution is tried again that the kernel gave up because names moved under it.
const RACED_ATTEMPTS: u32 = 32;

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
pub(super) const HANDLE_ONLY: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Who resolves a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolver {
    /// `openat2`: symbolic links are followed as long as they stay inside.
    Kernel,
    /// Name by name without following any link, for kernels before 5.6.
    Steps,
}

impl Resolver {
    /// What this kernel can do, asked once.
    pub(crate) fn detect() -> Self {
        static DETECTED: OnceLock<Resolver> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let probe = openat2(rustix::fs::CWD, ".", HANDLE_ONLY);
            // Seccomp filters that do not know the call answer EPERM instead of ENOSYS.
            match probe {
                Err(Errno::NOSYS | Errno::PERM) => Self::Steps,
                _ => Self::Kernel,
            }
        })
    }

    /// Opens `path` below `root`. It never creates anything; `flags` must not block on special files.
    pub(super) fn open(
        self,
        root: BorrowedFd<'_>,
        path: &RelPath,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        let text = if path.is_root() { "." } else { path.as_str() };
        match self {
            Self::Kernel => {
                for _ in 1..RACED_ATTEMPTS {
                    match openat2(root, text, flags) {
                        Err(Errno::AGAIN) => std::thread::yield_now(),
                        outcome => return outcome,
                    }
                }
                openat2(root, text, flags)
            }
            Self::Steps => open_by_steps(root, path, flags),
        }
    }

    /// Opens the folder `path` below `root`, making it and its parents where they are missing.
    pub(super) fn open_or_make(
        self,
        root: BorrowedFd<'_>,
        path: &RelPath,
        owner: Option<Owner>,
    ) -> Result<OwnedFd, FileError> {
        match self.open(root, path, DIRECTORY) {
            Err(Errno::NOENT) => {}
            outcome => return outcome.during("open", path),
        }
        let mut chain = vec![path.clone()];
        while let Some((parent, _)) = chain[chain.len() - 1].split_last() {
            chain.push(parent);
        }
        let mut dir = self.open(root, &RelPath::root(), DIRECTORY).during("open", path)?;
        for step in chain.iter().rev().skip(1) {
            dir = match self.open(root, step, DIRECTORY) {
                Err(Errno::NOENT) => self.make_step(root, &dir, step, owner)?,
                outcome => outcome.during("open", step)?,
            };
        }
        Ok(dir)
    }

    fn make_step(
        self,
        root: BorrowedFd<'_>,
        parent: &OwnedFd,
        step: &RelPath,
        owner: Option<Owner>,
    ) -> Result<OwnedFd, FileError> {
        let name = step.names().next_back().unwrap_or(".");
        match make_folder(parent.as_fd(), name, owner) {
            Ok(dir) => Ok(dir),
            // Made by someone else meanwhile, or a link that leads nowhere: the second look tells.
            Err(Errno::EXIST) => match self.open(root, step, DIRECTORY) {
                Err(Errno::NOENT) => Err(Errno::NOTDIR).during("make", step),
                outcome => outcome.during("open", step),
            },
            Err(errno) => Err(errno).during("make", step),
        }
    }
}

fn openat2(root: impl AsFd, path: impl Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn open_by_steps(root: BorrowedFd<'_>, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Some((parents, last)) = path.split_last() else {
        return rustix::fs::openat(root, ".", flags, Mode::empty());
    };
    let mut dir: Option<OwnedFd> = None;
    for name in parents.names() {
        let at = dir.as_ref().map_or(root, |dir| dir.as_fd());
        let next = rustix::fs::openat(at, name, HANDLE_ONLY | OFlags::NOFOLLOW, Mode::empty())?;
        match kind_of(&rustix::fs::fstat(&next)?) {
            FileType::Directory => dir = Some(next),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NOTDIR),
        }
    }
    let at = dir.as_ref().map_or(root, |dir| dir.as_fd());
    let opened = rustix::fs::openat(at, last, flags, Mode::empty())?;
    if flags.contains(OFlags::PATH) && kind_of(&rustix::fs::fstat(&opened)?) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    Ok(opened)
}

/// Whom new files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    fn ids(self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

/// Gives an open file or folder to the owner.
pub(super) fn give_to(owner: Option<Owner>, fd: impl AsFd) -> Result<(), Errno> {
    let Some((uid, gid)) = owner.map(Owner::ids) else { return Ok(()) };
    forgive_unprivileged(rustix::fs::fchown(fd, uid, gid))
}

/// Gives what has this name to the owner; a link itself, not what it leads to.
pub(super) fn give_name_to(
    owner: Option<Owner>,
    dir: impl AsFd,
    name: impl Arg,
) -> Result<(), Errno> {
    let Some((uid, gid)) = owner.map(Owner::ids) else { return Ok(()) };
    forgive_unprivileged(rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
}

/// Only root may give files away. Run by anyone else (a developer, a rootless engine), all files belong
/// to that user, and so do the containers'.
pub(super) fn forgive_unprivileged(outcome: Result<(), Errno>) -> Result<(), Errno> {
    match outcome {
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(()),
        outcome => outcome,
    }
}

pub(super) fn make_folder(
    parent: BorrowedFd<'_>,
    name: impl Arg + Copy,
    owner: Option<Owner>,
) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let dir = open_folder(parent, name)?;
    // The process's umask must not decide what the container may read.
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755))?;
    give_to(owner, &dir)?;
    Ok(dir)
}

/// Opens a folder by its name in `parent`, never through a link.
pub(super) fn open_folder(parent: BorrowedFd<'_>, name: impl Arg) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens a regular file by its name in `parent` for reading, never through a link.
pub(super) fn open_file(parent: BorrowedFd<'_>, name: impl Arg) -> Result<(File, Stat), Errno> {
    let handle = rustix::fs::openat(parent, name, HANDLE_ONLY | OFlags::NOFOLLOW, Mode::empty())?;
    read_handle(&handle)
}

/// Turns a handle that was opened without touching the file into one that reads, once the handle is
/// known to be a regular file. Going through `/proc/self/fd` opens that very file, whatever has its
/// name by now.
pub(super) fn read_handle(handle: &OwnedFd) -> Result<(File, Stat), Errno> {
    let stat = rustix::fs::fstat(handle)?;
    match kind_of(&stat) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        FileType::Symlink => return Err(Errno::LOOP),
        _ => return Err(Errno::NXIO),
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let name = handle.as_raw_fd().to_string();
    let file = rustix::fs::openat(own_handles()?, name, flags, Mode::empty())?;
    Ok((File::from(file), stat))
}

/// The folder in `/proc` that names this process's handles. Held open: finding the way to it would be
/// a third of what opening a file costs.
fn own_handles() -> Result<&'static OwnedFd, Errno> {
    static HANDLES: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(handles) = HANDLES.get() {
        return Ok(handles);
    }
    let handles = rustix::fs::open("/proc/self/fd", HANDLE_ONLY, Mode::empty())?;
    Ok(HANDLES.get_or_init(|| handles))
}

pub(super) fn proc_path(handle: impl AsFd) -> String {
    format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd())
}

pub(super) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn stat_name(dir: impl AsFd, name: impl Arg) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Whether two looks saw the same file.
pub(super) fn same_file(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
