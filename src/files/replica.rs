//! Exact copies of whole trees, for snapshots.
//!
//! Unlike `copy`, which gives a user a second file, a replica keeps everything that the files are: whom
//! they belong to, all their permission bits, their times, their extended attributes, which names are one
//! file, where the holes are, FIFOs and sockets. Devices are left out: nobody but root could have made one.
//! Blocks are shared where the file system can. Nothing is followed, and what moves meanwhile is missed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat as RawStat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::content::{CHUNK_BYTES, create_new};
use super::copy::{Copier, is_moved};
use super::error::{FileError, shown};
use super::progress::Progress;
use super::resolve::{forgive_unprivileged, kind_of, open_file, open_folder};
use super::volume::size_of_file;
use super::walk::{Lossy, MAX_REPLICA_DEPTH, Visit, Walk};

/// Names of one file are joined again up to so many such files; beyond, each name is a file of its own.
const MAX_LINKED: usize = 1_000_000;

/// What a replica holds, to be compared with what was to be in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Of content, each file once.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// Copies all below `from` into the empty folder `to`, and makes `to` what `from` is.
pub(super) fn replicate(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    progress: &Progress,
) -> Result<Tally, FileError> {
    let replica = Replica {
        copier: Copier::new(None, progress),
        buffer: vec![0; CHUNK_BYTES],
        top: to,
        linked: HashMap::new(),
        tally: Tally::default(),
    };
    replica.run(from).map_err(|error| FileError::from_io("copy", &"the volume", error))
}

/// What is below a folder, counted as [`replicate`] does.
pub(super) fn tally(from: BorrowedFd<'_>) -> Result<Tally, FileError> {
    let mut seen = std::collections::HashSet::new();
    let mut tally = Tally::default();
    let mut walk = Walk::new(from)?;
    while let Some(visit) = walk.next()? {
        match visit {
            Visit::Enter { .. } => tally.entries += 1,
            Visit::Leaf { stat, .. } if is_kept(&stat) => {
                tally.entries += 1;
                let is_new = stat.st_nlink <= 1 || seen.insert((stat.st_dev, stat.st_ino));
                if kind_of(&stat) == FileType::RegularFile && is_new {
                    tally.bytes += size_of_file(&stat);
                }
            }
            Visit::Leaf { .. } | Visit::Leave => {}
        }
    }
    Ok(tally)
}

fn is_kept(stat: &RawStat) -> bool {
    !matches!(kind_of(stat), FileType::BlockDevice | FileType::CharacterDevice | FileType::Unknown)
}

struct Replica<'a> {
    copier: Copier<'a>,
    buffer: Vec<u8>,
    top: BorrowedFd<'a>,
    /// Where the copy of a file that has several names is, by the path from the top.
    linked: HashMap<(u64, u64), CString>,
    tally: Tally,
}

impl Replica<'_> {
    fn run(mut self, from: BorrowedFd<'_>) -> io::Result<Tally> {
        let top_stat = rustix::fs::fstat(from)?;
        let top = rustix::fs::openat(
            self.top,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        copy_attributes(from, top.as_fd())?;
        let mut copies = vec![(top, top_stat)];
        let mut walk = Walk::new(from).map_err(FileError::into_io)?;
        while let Some(visit) = walk.next().map_err(FileError::into_io)? {
            self.copier.progress.check().map_err(FileError::into_io)?;
            let Some((copy, _)) = copies.last() else { break };
            match visit {
                Visit::Enter { name, stat } => {
                    if copies.len() > MAX_REPLICA_DEPTH {
                        let path = shown(&Lossy(walk.path()));
                        return Err(FileError::TooDeep { path }.into_io());
                    }
                    if let Some(below) = self.folder(&mut walk, copy.as_fd(), &name)? {
                        copies.push((below, stat));
                    }
                }
                Visit::Leaf { name, stat } if is_kept(&stat) => {
                    let path = walk.path_of(&name);
                    match self.leaf((walk.dir(), &name), copy.as_fd(), &stat, path) {
                        // Gone, or something else by now.
                        Err(error) if is_moved(&error) => {}
                        outcome => outcome?,
                    }
                }
                Visit::Leaf { .. } => {}
                Visit::Leave => {
                    if let Some((copy, stat)) = copies.pop() {
                        finish(copy.as_fd(), &stat)?;
                    }
                }
            }
        }
        while let Some((copy, stat)) = copies.pop() {
            finish(copy.as_fd(), &stat)?;
        }
        Ok(self.tally)
    }

    /// The copy of the folder that the walk has entered; `None` if it has been there already.
    fn folder(
        &mut self,
        walk: &mut Walk,
        to: BorrowedFd<'_>,
        name: &CStr,
    ) -> io::Result<Option<OwnedFd>> {
        match make_folder(to, name) {
            Ok(below) => {
                copy_attributes(walk.dir(), below.as_fd())?;
                self.count();
                Ok(Some(below))
            }
            // What is renamed while a folder is listed may be listed twice.
            Err(Errno::EXIST) => walk.skip().map(|()| None).map_err(FileError::into_io),
            Err(errno) => Err(errno.into()),
        }
    }

    fn count(&mut self) {
        self.tally.entries += 1;
        self.copier.progress.add_entry();
    }

    fn leaf(
        &mut self,
        (from, name): (BorrowedFd<'_>, &CStr),
        to: BorrowedFd<'_>,
        stat: &RawStat,
        path: Vec<u8>,
    ) -> io::Result<()> {
        if self.is_linked(stat, to, name)? {
            self.count();
            return Ok(());
        }
        match kind_of(stat) {
            FileType::RegularFile => self.file((from, name), to)?,
            FileType::Symlink => {
                // EINVAL says that it is no link any more.
                let target = rustix::fs::readlinkat(from, name, Vec::new())
                    .map_err(|errno| if errno == Errno::INVAL { Errno::NOENT } else { errno })?;
                rustix::fs::symlinkat(target.as_c_str(), to, name)?;
                finish_name(to, name, stat)?;
            }
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o1777);
                rustix::fs::mknodat(to, name, kind, mode, 0)?;
                finish_name(to, name, stat)?;
                rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
            }
        }
        if stat.st_nlink > 1 && self.linked.len() < MAX_LINKED {
            self.linked.insert((stat.st_dev, stat.st_ino), CString::new(path)?);
        }
        self.count();
        Ok(())
    }

    /// Whether a file that came before is this one, and has this name now too.
    fn is_linked(&self, stat: &RawStat, to: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
        let first = self.linked.get(&(stat.st_dev, stat.st_ino)).filter(|_| stat.st_nlink > 1);
        let Some(first) = first else { return Ok(false) };
        match rustix::fs::linkat(self.top, first.as_c_str(), to, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            // Its path is too long to be named: it becomes a file of its own.
            Err(Errno::NAMETOOLONG | Errno::MLINK) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn file(
        &mut self,
        (from, name): (BorrowedFd<'_>, &CStr),
        to: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let (source, stat) = open_file(from, name)?;
        let mut copy = create_new(to, name)?;
        self.copier.content(&source, &mut copy, &stat, &mut self.buffer)?;
        copy_attributes(source.as_fd(), copy.as_fd())?;
        finish(copy.as_fd(), &stat)?;
        // It may have grown or shrunk since it was looked at.
        self.tally.bytes += size_of_file(&rustix::fs::fstat(&copy)?);
        Ok(())
    }
}

fn make_folder(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    open_folder(parent, name)
}

/// Owner before permissions, which a change of owner takes bits from; times last.
fn finish(copy: BorrowedFd<'_>, stat: &RawStat) -> io::Result<()> {
    let (uid, gid) = owner_of(stat);
    forgive_unprivileged(rustix::fs::fchown(copy, uid, gid))?;
    match rustix::fs::fchmod(copy, Mode::from_raw_mode(stat.st_mode & 0o7777)) {
        // A service may be forbidden to make set-user-id files; the rest of the bits it may set.
        Err(Errno::PERM) => rustix::fs::fchmod(copy, Mode::from_raw_mode(stat.st_mode & 0o1777))?,
        outcome => outcome?,
    }
    rustix::fs::futimens(copy, &both_times_of(stat))?;
    Ok(())
}

fn finish_name(to: BorrowedFd<'_>, name: &CStr, stat: &RawStat) -> io::Result<()> {
    let (uid, gid) = owner_of(stat);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    forgive_unprivileged(rustix::fs::chownat(to, name, uid, gid, nofollow))?;
    rustix::fs::utimensat(to, name, &both_times_of(stat), nofollow)?;
    Ok(())
}

fn owner_of(stat: &RawStat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn both_times_of(stat: &RawStat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Copies the attributes that users give, and access lists. What the file system cannot keep is lost.
fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = Vec::with_capacity(1024);
    let listed = with_room(&mut names, |buffer| rustix::fs::flistxattr(from, buffer));
    match listed {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        outcome => outcome?,
    }
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if !name.starts_with(b"user.") && !name.starts_with(b"system.posix_acl_") {
            continue;
        }
        let mut value = Vec::with_capacity(256);
        match with_room(&mut value, |buffer| rustix::fs::fgetxattr(from, name, buffer)) {
            Err(Errno::NODATA) => continue,
            outcome => outcome?,
        }
        match rustix::fs::fsetxattr(to, name, &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Asks into a buffer that grows until what is asked for fits.
fn with_room(
    buffer: &mut Vec<u8>,
    ask: impl Fn(&mut [u8]) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    loop {
        buffer.resize(buffer.capacity(), 0);
        match ask(buffer.as_mut_slice()) {
            Ok(count) => {
                buffer.truncate(count);
                return Ok(());
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.reserve(buffer.len() + 1),
            Err(errno) => return Err(errno),
        }
    }
}
