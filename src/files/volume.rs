//! One open volume: an owned handle on its folder, the only door to what is inside.
//!
//! Every call takes a [`RelPath`] and resolves it below the handle (`resolve`). What a call does to the
//! last name of a path it does on the handle of the folder that holds it, so a link under that name is
//! itself the object and never the way to another. A failed call leaves what was there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, Stat as RawStat};
use rustix::io::Errno;
use rustix::path::Arg;

use super::archive::ArchiveLimits;
use super::claims::Lease;
use super::error::{During, FileError, refuse_reserved, shown};
use super::progress::Progress;
use super::quota::Budgets;
use super::resolve::{
    DIRECTORY, HANDLE_ONLY, Owner, Resolver, kind_of, proc_path, same_file, stat_name,
};
use super::staging::Staging;
use crate::domain::ids::VolumeId;
use crate::domain::path::{InvalidPath, RelPath};
use crate::domain::units::UnixSeconds;

#[derive(Debug)]
pub(crate) struct Volume {
    pub(super) id: VolumeId,
    pub(super) root: OwnedFd,
    pub(super) resolver: Resolver,
    pub(super) owner: Option<Owner>,
    pub(super) fsync: bool,
    pub(super) limits: ArchiveLimits,
    /// Held from the last look at a destination to the rename over it, so that of two writers with
    /// the same `If-Match` one loses.
    pub(super) commit: Arc<Mutex<()>>,
    pub(super) budgets: Arc<Budgets>,
    /// The kernel counts and limits what is in it.
    pub(super) is_limited: bool,
    pub(super) _lease: Lease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    /// A FIFO, socket or device: listed, never opened.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) modified_at: UnixSeconds,
    /// Changes with every write; equal tags mean equal content.
    pub(crate) etag: String,
}

/// A name and the open folder that holds it.
pub(super) struct Place<'p> {
    pub(super) dir: OwnedFd,
    pub(super) name: &'p str,
}

impl Stat {
    pub(super) fn of(raw: &RawStat) -> Self {
        let kind = match kind_of(raw) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            _ => Kind::Other,
        };
        let etag = format!(
            "{:x}-{:x}-{:x}.{:x}",
            raw.st_ino, raw.st_size, raw.st_mtime, raw.st_mtime_nsec
        );
        Self {
            kind,
            size: size_of_file(raw),
            mode: raw.st_mode & 0o7777,
            modified_at: UnixSeconds(raw.st_mtime),
            etag,
        }
    }
}

pub(super) fn size_of_file(raw: &RawStat) -> u64 {
    u64::try_from(raw.st_size).unwrap_or(0)
}

/// What it takes on the disk, in units of 512 bytes.
pub(super) fn blocks_of(raw: &RawStat) -> u64 {
    u64::try_from(raw.st_blocks).unwrap_or(0)
}

impl Volume {
    /// A folder opened as a volume that no node knows.
    #[cfg(any(test, fuzzing))]
    pub(super) fn alone(root: OwnedFd, resolver: Resolver, limits: ArchiveLimits) -> Self {
        Self {
            id: VolumeId::random(),
            root,
            resolver,
            owner: None,
            fsync: cfg!(test),
            limits,
            commit: Arc::default(),
            budgets: Arc::default(),
            is_limited: false,
            _lease: Lease::none(),
        }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the folder `path`, following links that stay inside.
    pub(super) fn open_dir(&self, path: &RelPath) -> Result<OwnedFd, FileError> {
        refuse_reserved(path)?;
        self.resolver.open(self.root(), path, DIRECTORY).during("open", path)
    }

    /// The folder that holds `path`, which must exist, and the last name.
    pub(super) fn place<'p>(&self, path: &'p RelPath) -> Result<Place<'p>, FileError> {
        refuse_reserved(path)?;
        let (parent, name) = path.split_last().ok_or(InvalidPath::Empty)?;
        let dir = self.resolver.open(self.root(), &parent, DIRECTORY).during("open", &parent)?;
        Ok(Place { dir, name })
    }

    /// As [`Volume::place`], making the folders that are missing.
    pub(super) fn place_with_parents<'p>(&self, path: &'p RelPath) -> Result<Place<'p>, FileError> {
        refuse_reserved(path)?;
        let (parent, name) = path.split_last().ok_or(InvalidPath::Empty)?;
        let dir = self.resolver.open_or_make(self.root(), &parent, self.owner)?;
        Ok(Place { dir, name })
    }

    /// What is at `path`; links are followed while they stay inside.
    pub(crate) fn stat(&self, path: &RelPath) -> Result<Stat, FileError> {
        refuse_reserved(path)?;
        let handle = self.resolver.open(self.root(), path, HANDLE_ONLY).during("look at", path)?;
        Ok(Stat::of(&rustix::fs::fstat(&handle).during("look at", path)?))
    }

    /// Makes a folder and its parents; one that exists is as good.
    pub(crate) fn mkdir_all(&self, path: &RelPath) -> Result<(), FileError> {
        refuse_reserved(path)?;
        self.resolver.open_or_make(self.root(), path, self.owner).map(drop)
    }

    /// Sets the permission bits; set-user-id, set-group-id and sticky bits fall away. False if it had just
    /// these.
    pub(crate) fn chmod(&self, path: &RelPath, mode: u32) -> Result<bool, FileError> {
        let place = self.place(path)?;
        let flags = HANDLE_ONLY | OFlags::NOFOLLOW;
        let handle = rustix::fs::openat(&place.dir, place.name, flags, Mode::empty())
            .during("change the mode of", path)?;
        let raw = rustix::fs::fstat(&handle).during("change the mode of", path)?;
        if !matches!(kind_of(&raw), FileType::RegularFile | FileType::Directory) {
            return Err(FileError::Special { path: shown(path) });
        }
        if raw.st_mode & 0o7777 == mode & 0o777 {
            return Ok(false);
        }
        rustix::fs::chmod(proc_path(&handle), Mode::from_raw_mode(mode & 0o777))
            .during("change the mode of", path)?;
        Ok(true)
    }

    /// Moves a file or folder. With `overwrite` what was at `to` is replaced, folders in whole. False if it is
    /// there already.
    pub(crate) fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        overwrite: bool,
    ) -> Result<bool, FileError> {
        let source = self.place(from)?;
        let moved = stat_name(&source.dir, source.name).during("move", from)?;
        if from == to {
            return Ok(false);
        }
        if from.is_within(to) || to.is_within(from) {
            return Err(FileError::IntoItself { path: shown(from) });
        }
        let target = self.place_with_parents(to)?;
        if let Ok(old) = stat_name(&target.dir, target.name)
            && overwrite
        {
            if self.is_above(&old, &source.dir).during("move", from)? {
                return Err(FileError::IntoItself { path: shown(from) });
            }
            if same_file(&moved, &old) && kind_of(&old) != FileType::Directory {
                return remove_other_name(&source, &target).during("move", from);
            }
        }
        self.settle((source.dir.as_fd(), source.name), (&target, to), overwrite)?;
        Ok(true)
    }

    /// Whether a folder holds another, however deep: paths tell that only where no link is in them.
    fn is_above(&self, folder: &RawStat, inner: &OwnedFd) -> Result<bool, Errno> {
        let root = rustix::fs::fstat(&self.root)?;
        let mut at = rustix::io::fcntl_dupfd_cloexec(inner, 0)?;
        loop {
            let here = rustix::fs::fstat(&at)?;
            if same_file(&here, folder) {
                return Ok(true);
            }
            if same_file(&here, &root) {
                return Ok(false);
            }
            let above = rustix::fs::openat(&at, "..", DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            // Moved out of the volume meanwhile.
            if same_file(&rustix::fs::fstat(&above)?, &here) {
                return Err(Errno::BUSY);
            }
            at = above;
        }
    }

    /// Removes files, links and whole trees; links are not followed. Each path is checked before the
    /// first one goes, and each vanishes at once. Returns how many of the paths were removed.
    pub(crate) fn delete(&self, paths: &[RelPath], progress: &Progress) -> Result<u64, FileError> {
        for path in paths {
            let place = self.place(path)?;
            stat_name(&place.dir, place.name).during("delete", path)?;
        }
        let mut deleted = 0;
        for path in paths {
            progress.check()?;
            match self.delete_one(path, progress) {
                Ok(()) => deleted += 1,
                // An earlier path of the list, or the workload, took it along.
                Err(FileError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }

    fn delete_one(&self, path: &RelPath, progress: &Progress) -> Result<(), FileError> {
        let place = self.place(path)?;
        match rustix::fs::unlinkat(&place.dir, place.name, rustix::fs::AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            outcome => return outcome.during("delete", path),
        }
        let staging = Staging::new(self.root())?;
        rustix::fs::renameat(&place.dir, place.name, staging.dir(), "old")
            .during("delete", path)?;
        staging.clear(progress).during("delete", path)
    }

    /// Puts what was made or moved in its place by one rename.
    pub(super) fn settle(
        &self,
        (from_dir, from_name): (BorrowedFd<'_>, impl Arg + Copy),
        (target, to): (&Place<'_>, &RelPath),
        overwrite: bool,
    ) -> Result<(), FileError> {
        match rename_to_new(from_dir, from_name, &target.dir, target.name) {
            Err(Errno::EXIST) if overwrite => {}
            Err(Errno::INVAL) => return Err(FileError::IntoItself { path: shown(to) }),
            outcome => return outcome.during("move to", to),
        }
        let new = stat_name(from_dir, from_name).during("move to", to)?;
        let old = stat_name(&target.dir, target.name).during("move to", to)?;
        match (kind_of(&new), kind_of(&old)) {
            (FileType::Directory, FileType::Directory) => {
                self.replace_folder((from_dir, from_name), (target, to))
            }
            (FileType::Directory, _) => Err(FileError::NotADirectory { path: shown(to) }),
            (_, FileType::Directory) => Err(FileError::NotAFile { path: shown(to) }),
            _ => rustix::fs::renameat(from_dir, from_name, &target.dir, target.name)
                .during("move to", to),
        }
    }

    fn replace_folder(
        &self,
        (from_dir, from_name): (BorrowedFd<'_>, impl Arg + Copy),
        (target, to): (&Place<'_>, &RelPath),
    ) -> Result<(), FileError> {
        let aside = Staging::new(self.root())?;
        rustix::fs::renameat(&target.dir, target.name, aside.dir(), "old").during("replace", to)?;
        let moved = rename_to_new(from_dir, from_name, &target.dir, target.name);
        if moved.is_err() {
            rustix::fs::renameat(aside.dir(), "old", &target.dir, target.name)
                .during("put back", to)?;
        }
        moved.map_err(|errno| match errno {
            Errno::INVAL => FileError::IntoItself { path: shown(to) },
            errno => FileError::from_errno("move to", to, errno),
        })
    }
}

/// A rename of one name of a file over another of the same does nothing (POSIX), and it is to have moved.
/// False if both are one name.
fn remove_other_name(source: &Place<'_>, target: &Place<'_>) -> Result<bool, Errno> {
    let same_folder = same_file(&rustix::fs::fstat(&source.dir)?, &rustix::fs::fstat(&target.dir)?);
    if same_folder && source.name == target.name {
        return Ok(false);
    }
    rustix::fs::unlinkat(&source.dir, source.name, rustix::fs::AtFlags::empty())?;
    Ok(true)
}

/// Renames without replacing anything.
pub(super) fn rename_to_new(
    from_dir: BorrowedFd<'_>,
    from_name: impl Arg + Copy,
    to_dir: &OwnedFd,
    to_name: &str,
) -> Result<(), Errno> {
    let flags = RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(from_dir, from_name, to_dir, to_name, flags) {
        // The file system or the kernel does not know the flag.
        Err(Errno::INVAL | Errno::NOSYS) => match stat_name(to_dir, to_name) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => rustix::fs::renameat(from_dir, from_name, to_dir, to_name),
            Err(errno) => Err(errno),
        },
        outcome => outcome,
    }
}
