//! Copies of files, links and whole trees.
//!
//! A copy is made in a staging folder and appears in one step when it is complete; a failure or a
//! cancel leaves nothing. What moves in the source meanwhile may be missed, never followed.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, SeekFrom, Stat as RawStat};
use rustix::io::Errno;

use super::content::{CHUNK_BYTES, STAGED, create_new};
use super::error::{During, FileError, refuse_reserved, shown};
use super::progress::Progress;
use super::resolve::Owner;
use super::resolve::{
    give_name_to, give_to, kind_of, make_folder, open_file, open_folder, stat_name,
};
use super::staging::Staging;
use super::tree::{content_size, times_of};
use super::volume::{Volume, size_of_file};
use super::walk::{Lossy, Visit, Walk};
use crate::domain::path::RelPath;

/// How deep a tree may be to be copied: each level holds one more folder open.
const MAX_COPY_DEPTH: usize = 128;
/// How much is copied between two looks at the cancel flag.
const COPY_STEP_BYTES: u64 = 8 << 20;

impl Volume {
    /// Copies a file, link or tree. The copy appears in one step when it is complete. Sockets, FIFOs
    /// and devices are left out.
    pub(crate) fn copy(
        &self,
        from: &RelPath,
        to: &RelPath,
        overwrite: bool,
        progress: &Progress,
    ) -> Result<(), FileError> {
        refuse_reserved(to)?;
        if from.is_within(to) || to.is_within(from) {
            return Err(FileError::IntoItself { path: shown(from) });
        }
        let source = self.place(from)?;
        let stat = stat_name(&source.dir, source.name).during("copy", from)?;
        if !overwrite && self.exists(to)? {
            return Err(FileError::AlreadyExists { path: shown(to) });
        }
        let staging = Staging::new(self.root())?;
        let name = CString::new(source.name).map_err(|_| Errno::INVAL).during("copy", from)?;
        let copier = Copier { owner: self.owner, progress };
        if kind_of(&stat) == FileType::Directory {
            let dir = open_folder(source.dir.as_fd(), &*name).during("copy", from)?;
            progress.set_total_bytes(content_size(dir.as_fd())?);
            copier.tree(&dir, staging.dir(), STAGED).during_tree(from)?;
        } else {
            progress.set_total_bytes(size_of_file(&stat));
            let copied = copier.leaf((source.dir.as_fd(), &name), (staging.dir(), STAGED), &stat);
            if !copied.during_tree(from)? {
                return Err(FileError::Special { path: shown(from) });
            }
        }
        let target = self.place_with_parents(to)?;
        self.settle((staging.dir(), STAGED), (&target, to), overwrite)
    }

    /// Whether there is anything at `path`; a link counts as itself.
    pub(crate) fn exists(&self, path: &RelPath) -> Result<bool, FileError> {
        let place = match self.place(path) {
            Err(FileError::NotFound { .. }) => return Ok(false),
            place => place?,
        };
        match stat_name(&place.dir, place.name) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno).during("look at", path),
        }
    }
}

/// Sorts the errors of a copier, which are our own in part.
trait DuringTree<T> {
    fn during_tree(self, path: &RelPath) -> Result<T, FileError>;
}

impl<T> DuringTree<T> for io::Result<T> {
    fn during_tree(self, path: &RelPath) -> Result<T, FileError> {
        self.map_err(|error| FileError::from_io("copy", path, error))
    }
}

pub(super) struct Copier<'a> {
    pub(super) owner: Option<Owner>,
    pub(super) progress: &'a Progress,
}

impl Copier<'_> {
    fn tree(&self, from: &OwnedFd, to_dir: BorrowedFd<'_>, to_name: &CStr) -> io::Result<()> {
        let stat = rustix::fs::fstat(from)?;
        let mut copies = vec![(make_folder(to_dir, to_name, self.owner)?, stat)];
        let mut walk = Walk::new(from.as_fd()).map_err(FileError::into_io)?;
        while let Some(visit) = walk.next().map_err(FileError::into_io)? {
            self.progress.check().map_err(FileError::into_io)?;
            let Some((copy, _)) = copies.last() else { break };
            match visit {
                Visit::Enter { name, stat } => {
                    if copies.len() >= MAX_COPY_DEPTH {
                        let path = shown(&Lossy(walk.path()));
                        return Err(FileError::TooDeep { path }.into_io());
                    }
                    match make_folder(copy.as_fd(), name.as_c_str(), self.owner) {
                        Ok(below) => {
                            self.progress.add_entry();
                            copies.push((below, stat));
                        }
                        // What is renamed while a folder is listed may be listed twice.
                        Err(Errno::EXIST) => walk.skip().map_err(FileError::into_io)?,
                        Err(errno) => return Err(errno.into()),
                    }
                }
                Visit::Leaf { name, stat } => {
                    match self.leaf((walk.dir(), &name), (copy.as_fd(), &name), &stat) {
                        // Gone, or something else by now: a copy of a live folder is of what stays.
                        Err(error) if is_moved(&error) => {}
                        outcome => drop(outcome?),
                    }
                }
                Visit::Leave => {
                    if let Some((copy, stat)) = copies.pop() {
                        finish_folder(&copy, &stat)?;
                    }
                }
            }
        }
        copies.iter().try_for_each(|(copy, stat)| finish_folder(copy, stat))?;
        Ok(())
    }

    /// Copies what is no folder; false if it is of a kind that is not copied.
    fn leaf(
        &self,
        (from, name): (BorrowedFd<'_>, &CStr),
        (to, to_name): (BorrowedFd<'_>, &CStr),
        stat: &RawStat,
    ) -> io::Result<bool> {
        match kind_of(stat) {
            FileType::RegularFile => {
                let (source, stat) = open_file(from, name)?;
                let mut copy = create_new(to, to_name)?;
                self.content(&source, &mut copy, size_of_file(&stat))?;
                give_to(self.owner, &copy)?;
                rustix::fs::fchmod(&copy, Mode::from_raw_mode(stat.st_mode & 0o777))?;
                rustix::fs::futimens(&copy, &times_of(&stat))?;
            }
            FileType::Symlink => {
                // EINVAL says that it is no link any more.
                let target = rustix::fs::readlinkat(from, name, Vec::new())
                    .map_err(|errno| if errno == Errno::INVAL { Errno::NOENT } else { errno })?;
                rustix::fs::symlinkat(target.as_c_str(), to, to_name)?;
                give_name_to(self.owner, to, to_name)?;
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(to, to_name, &times_of(stat), nofollow)?;
            }
            _ => return Ok(false),
        }
        self.progress.add_entry();
        Ok(true)
    }

    /// Shares the blocks where the file system can, else copies the parts that are not holes.
    pub(super) fn content(&self, from: &File, to: &mut File, size: u64) -> io::Result<()> {
        if rustix::fs::ioctl_ficlone(&*to, from).is_ok() {
            self.progress.add_bytes(size);
            return self.progress.spend(size).map_err(FileError::into_io);
        }
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => at,
                Err(errno) => return Err(errno.into()),
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
            self.progress.add_bytes(start.min(size) - at);
            self.range(from, to, start, end)?;
            at = end.max(start);
        }
        self.progress.add_bytes(size.saturating_sub(at));
        rustix::fs::ftruncate(&*to, size)?;
        Ok(())
    }

    fn range(&self, from: &File, to: &mut File, start: u64, end: u64) -> io::Result<()> {
        self.progress.spend(end.saturating_sub(start)).map_err(FileError::into_io)?;
        let (mut read_at, mut write_at) = (start, start);
        while read_at < end {
            self.progress.check().map_err(FileError::into_io)?;
            let want = usize::try_from((end - read_at).min(COPY_STEP_BYTES)).unwrap_or(CHUNK_BYTES);
            let (in_at, out_at) = (Some(&mut read_at), Some(&mut write_at));
            match rustix::fs::copy_file_range(from, in_at, &*to, out_at, want) {
                // The file became shorter.
                Ok(0) => return Ok(()),
                Ok(count) => self.progress.add_bytes(count as u64),
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    return self.range_by_hand(from, to, read_at, end);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn range_by_hand(
        &self,
        mut from: &File,
        to: &mut File,
        start: u64,
        end: u64,
    ) -> io::Result<()> {
        rustix::fs::seek(from, SeekFrom::Start(start))?;
        rustix::fs::seek(&*to, SeekFrom::Start(start))?;
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut left = end - start;
        while left > 0 {
            self.progress.check().map_err(FileError::into_io)?;
            let want = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let count = from.read(&mut buffer[..want])?;
            if count == 0 {
                break;
            }
            to.write_all(&buffer[..count])?;
            self.progress.add_bytes(count as u64);
            left -= count as u64;
        }
        Ok(())
    }
}

fn finish_folder(copy: &OwnedFd, stat: &RawStat) -> io::Result<()> {
    rustix::fs::fchmod(copy, Mode::from_raw_mode(stat.st_mode & 0o777))?;
    rustix::fs::futimens(copy, &times_of(stat))?;
    Ok(())
}

pub(super) fn is_moved(error: &io::Error) -> bool {
    let moved = [Errno::NOENT, Errno::LOOP, Errno::ISDIR, Errno::NXIO, Errno::EXIST];
    Errno::from_io_error(error).is_some_and(|errno| moved.contains(&errno))
}
