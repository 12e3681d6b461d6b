//! Reading and writing one file's content.
//!
//! A write is made beside and renamed in: whoever reads sees the old content or the new, and whatever
//! breaks off (the sender, the disk, the daemon) leaves the old. The content is flushed to the disk before
//! it gets its name, so that after a power failure, too, there is the old or the new. The folder is not:
//! that would cost as much again, and all it could change is which of the two it is.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use rustix::fs::{FileType, Mode, OFlags, Stat as RawStat};
use rustix::io::Errno;

use super::draft::{Draft, Entry};
use super::error::{During, FileError, refuse_reserved, shown};
use super::resolve::{
    DIRECTORY, HANDLE_ONLY, Resolver, give_to, kind_of, proc_path, read_handle, same_file,
    stat_name,
};
use super::staging::Staging;
use super::volume::{Kind, Place, Stat, Volume, rename_to_new};
use crate::domain::path::{InvalidPath, RelPath};

pub(super) const CHUNK_BYTES: usize = 64 * 1024;
pub(super) const DEFAULT_MODE: u32 = 0o644;
/// The name of the one thing made in a staging folder.
pub(super) const STAGED: &CStr = c"new";

/// What a write expects to find.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteMode {
    /// Refuse to replace anything.
    pub(crate) create_only: bool,
    /// Replace only the content with this [`Stat::etag`].
    pub(crate) if_match: Option<String>,
}

/// What a write has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) size: u64,
    /// Whether there was no such file before.
    pub(crate) is_new: bool,
    /// The [`Stat::etag`] of what is there now.
    pub(crate) etag: String,
}

impl Volume {
    /// Opens a regular file for reading; links are followed while they stay inside.
    pub(crate) fn open_read(&self, path: &RelPath) -> Result<(File, Stat), FileError> {
        refuse_reserved(path)?;
        if path.is_root() {
            return Err(InvalidPath::Empty.into());
        }
        let handle = self.resolver.open(self.root(), path, HANDLE_ONLY).during("read", path)?;
        let (file, raw) = read_handle(&handle).during("read", path)?;
        Ok((file, Stat::of(&raw)))
    }

    /// Makes `content` the content of the file at `path`, in whole or not at all. Missing folders are
    /// made, a replaced file's permissions stay.
    pub(crate) fn write_atomic(
        &self,
        path: &RelPath,
        content: &mut dyn Read,
        mode: &WriteMode,
    ) -> Result<Written, FileError> {
        let (dir, real) = self.write_target(path)?;
        let (_, name) = real.split_last().ok_or(InvalidPath::Empty)?;
        let target = Place { dir, name };
        // Known refusals come before the sender's gigabytes.
        let old = self.check_target(&target, path, mode)?;
        let mut draft = Draft::new(self.root())?;
        let size = receive(content, &mut draft.file, path)?;
        let bits = old.map_or(DEFAULT_MODE, |old| old.st_mode & 0o777);
        self.finish_file(&draft.file, bits).during("write", path)?;
        let etag = Stat::of(&rustix::fs::fstat(&draft.file).during("write", path)?).etag;
        let old = self.commit(&target, path, mode, |old| match old {
            _ if mode.create_only => draft.enter(&target, Entry::New),
            None => draft.enter(&target, Entry::Free),
            Some(_) => draft.enter(&target, Entry::Replace),
        })?;
        Ok(Written { size, is_new: old.is_none(), etag })
    }

    /// The folder that a write to `path` goes to, made if it is missing, and the path that is written,
    /// which is another one where a link stands.
    pub(super) fn write_target(&self, path: &RelPath) -> Result<(OwnedFd, RelPath), FileError> {
        let target = self.place_with_parents(path)?;
        match self.behind_link(&target, path)? {
            Some(behind) => Ok(behind),
            None => Ok((target.dir, path.clone())),
        }
    }

    /// Renames a finished file from a private folder into place. Returns what was there before.
    pub(super) fn commit_from(
        &self,
        (from_dir, from_name): (BorrowedFd<'_>, &CStr),
        target: &Place<'_>,
        path: &RelPath,
        mode: &WriteMode,
    ) -> Result<Option<RawStat>, FileError> {
        self.commit(target, path, mode, |_| {
            if mode.create_only {
                rename_to_new(from_dir, from_name, &target.dir, target.name)
            } else {
                rustix::fs::renameat(from_dir, from_name, &target.dir, target.name)
            }
        })
    }

    /// Has a finished file enter its place, after a last look at what it replaces, which is returned.
    fn commit(
        &self,
        target: &Place<'_>,
        path: &RelPath,
        mode: &WriteMode,
        enter: impl FnOnce(Option<&RawStat>) -> Result<(), Errno>,
    ) -> Result<Option<RawStat>, FileError> {
        let _held = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.check_target(target, path, mode)?;
        enter(old.as_ref()).during("write", path)?;
        Ok(old)
    }

    /// Permissions, owner and safety on disk for a file that is complete.
    pub(super) fn finish_file(&self, file: &File, mode: u32) -> Result<(), Errno> {
        give_to(self.owner, file)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o777))?;
        if self.fsync { rustix::fs::fsync(file) } else { Ok(()) }
    }

    /// Refuses destinations that a file cannot replace or that are not what the caller expects.
    pub(super) fn check_target(
        &self,
        target: &Place<'_>,
        path: &RelPath,
        mode: &WriteMode,
    ) -> Result<Option<RawStat>, FileError> {
        let old = match stat_name(&target.dir, target.name) {
            Ok(old) => Some(old),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno).during("write", path),
        };
        match old.as_ref().map(kind_of) {
            Some(_) if mode.create_only => {
                return Err(FileError::AlreadyExists { path: shown(path) });
            }
            None | Some(FileType::RegularFile) => {}
            Some(FileType::Directory) => return Err(FileError::NotAFile { path: shown(path) }),
            Some(_) => return Err(FileError::Special { path: shown(path) }),
        }
        if let Some(tag) = &mode.if_match
            && old.as_ref().map(|old| Stat::of(old).etag).as_ref() != Some(tag)
        {
            return Err(FileError::changed(path));
        }
        Ok(old)
    }

    /// Refuses what is plainly no place for a file, before the sender's gigabytes. What is there when they
    /// have come is looked at again.
    pub(crate) fn check_place(&self, path: &RelPath, create_only: bool) -> Result<(), FileError> {
        refuse_reserved(path)?;
        if create_only && self.exists(path)? {
            return Err(FileError::AlreadyExists { path: shown(path) });
        }
        match self.stat(path).map(|stat| stat.kind) {
            Ok(Kind::File) | Err(FileError::NotFound { .. }) => Ok(()),
            Ok(Kind::Directory) => Err(FileError::NotAFile { path: shown(path) }),
            Ok(_) => Err(FileError::Special { path: shown(path) }),
            Err(error) => Err(error),
        }
    }

    /// What a file holds that a write to this path will replace.
    pub(crate) fn replaced_bytes(&self, path: &RelPath) -> u64 {
        self.stat(path).map_or(0, |stat| if stat.kind == Kind::File { stat.size } else { 0 })
    }

    /// Where a write to a link goes: the kernel resolves the link, and the place it names is believed
    /// only if, opened without following anything, it holds that very file.
    fn behind_link(
        &self,
        target: &Place<'_>,
        path: &RelPath,
    ) -> Result<Option<(OwnedFd, RelPath)>, FileError> {
        let is_link = stat_name(&target.dir, target.name)
            .is_ok_and(|stat| kind_of(&stat) == FileType::Symlink);
        if !is_link {
            return Ok(None);
        }
        let file = self.resolver.open(self.root(), path, HANDLE_ONLY).during("write", path)?;
        let moved = || FileError::Busy { path: shown(path) };
        let real = self.path_of(&file).ok_or_else(moved)?;
        let (parent, name) = real.split_last().ok_or_else(moved)?;
        let dir = Resolver::Steps.open(self.root(), &parent, DIRECTORY).during("write", path)?;
        let named = stat_name(&dir, name).during("write", path)?;
        if !same_file(&named, &rustix::fs::fstat(&file).during("write", path)?) {
            return Err(moved());
        }
        refuse_reserved(&real)?;
        Ok(Some((dir, real)))
    }

    /// What the kernel calls an open file, counted from the volume's root. A hint only: names move.
    fn path_of(&self, file: &OwnedFd) -> Option<RelPath> {
        let full = std::fs::read_link(proc_path(file)).ok()?;
        let root = std::fs::read_link(proc_path(&self.root)).ok()?;
        let below = full.strip_prefix(root).ok()?;
        RelPath::parse_non_empty(below.to_str()?).ok()
    }
}

/// The file made in a staging folder, readable by nobody else until it is finished.
pub(super) fn new_file(staging: &Staging<'_>) -> Result<File, Errno> {
    create_new(staging.dir(), STAGED)
}

pub(super) fn create_new(dir: impl AsFd, name: impl rustix::path::Arg) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
}

fn receive(content: &mut dyn Read, file: &mut File, path: &RelPath) -> Result<u64, FileError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut size = 0;
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FileError::of_input(path, error)),
        };
        file.write_all(&buffer[..count]).during("write", path)?;
        size += count as u64;
    }
}
