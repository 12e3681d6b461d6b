//! Copies of files, links and whole trees.
//!
//! A copy is made in a staging folder and appears in one step when it is complete; a failure or a
//! cancel leaves nothing. What moves in the source meanwhile may be missed, never followed. One thread
//! walks and makes the folders, several fill them.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
use super::threads::share_out;
use super::tree::{content_size, modified_with};
use super::volume::{Volume, blocks_of, size_of_file};
use super::walk::{Lossy, MAX_DEPTH, Visit, Walk};
use crate::domain::path::RelPath;

/// Files of one folder that a thread takes at once, and how many times as much may wait. What waits
/// holds its folder open.
const LEAVES_AT_ONCE: usize = 32;
const LEAVES_AHEAD: usize = 16;
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
        let copier = Copier { owner: self.owner, progress, cannot_clone: AtomicBool::new(false) };
        if kind_of(&stat) == FileType::Directory {
            let dir = open_folder(source.dir.as_fd(), &*name).during("copy", from)?;
            progress.set_total_bytes(content_size(dir.as_fd())?);
            copier.tree(&dir, staging.dir(), STAGED, from)?;
        } else {
            progress.set_total_bytes(size_of_file(&stat));
            let (from_name, to) = ((source.dir.as_fd(), &*name), (staging.dir(), STAGED));
            let copied = copier.leaf(from_name, to, &stat, &mut vec![0; CHUNK_BYTES]);
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
    owner: Option<Owner>,
    pub(super) progress: &'a Progress,
    /// Set once the file system has said that its files cannot share blocks.
    cannot_clone: AtomicBool,
}

/// A folder and its copy. Whoever lets go of it last gives the copy its permissions and time.
struct Pair {
    from: OwnedFd,
    to: OwnedFd,
    stat: RawStat,
}

impl Pair {
    fn new(from: impl AsFd, to: OwnedFd, stat: RawStat) -> io::Result<Arc<Self>> {
        let from = rustix::io::fcntl_dupfd_cloexec(from, 0)?;
        Ok(Arc::new(Self { from, to, stat }))
    }

    fn release(self: Arc<Self>) -> io::Result<()> {
        let Some(Self { to, stat, .. }) = Arc::into_inner(self) else { return Ok(()) };
        rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o777))?;
        rustix::fs::futimens(&to, &modified_with(&stat))?;
        Ok(())
    }
}

/// What to copy in a folder.
struct Leaves {
    within: Arc<Pair>,
    names: Vec<(CString, RawStat)>,
}

impl<'a> Copier<'a> {
    pub(super) fn new(owner: Option<Owner>, progress: &'a Progress) -> Self {
        Self { owner, progress, cannot_clone: AtomicBool::new(false) }
    }

    fn tree(
        &self,
        from: &OwnedFd,
        to_dir: BorrowedFd<'_>,
        to_name: &CStr,
        path: &RelPath,
    ) -> Result<(), FileError> {
        let copy = |buffer: &mut Vec<u8>, Leaves { within, names }: Leaves| {
            for (name, stat) in names {
                self.progress.check()?;
                let (source, target) = ((within.from.as_fd(), &*name), (within.to.as_fd(), &*name));
                match self.leaf(source, target, &stat, buffer) {
                    // Gone, or something else by now: a copy of a live folder is of what stays.
                    Err(error) if is_moved(&error) => {}
                    outcome => drop(outcome.during_tree(path)?),
                }
            }
            within.release().during_tree(path)
        };
        share_out(
            "copy-file",
            LEAVES_AHEAD,
            || vec![0; CHUNK_BYTES],
            copy,
            |give| {
                let to = make_folder(to_dir, to_name, self.owner).map_err(io::Error::from);
                self.folders(from, to.during_tree(path)?, give).during_tree(path)
            },
        )
    }

    /// Makes the folders below `to` and gives out what is in them.
    fn folders(
        &self,
        from: &OwnedFd,
        to: OwnedFd,
        give: &mut dyn FnMut(Leaves) -> bool,
    ) -> io::Result<()> {
        let mut pairs = vec![Pair::new(from, to, rustix::fs::fstat(from)?)?];
        let mut names = Vec::new();
        let mut walk = Walk::new(from.as_fd()).map_err(FileError::into_io)?;
        while let Some(visit) = walk.next().map_err(FileError::into_io)? {
            self.progress.check().map_err(FileError::into_io)?;
            let Some(pair) = pairs.last() else { break };
            let is_leaf = matches!(visit, Visit::Leaf { .. });
            if (!is_leaf && !names.is_empty()) || names.len() == LEAVES_AT_ONCE {
                let names = std::mem::take(&mut names);
                if !give(Leaves { within: Arc::clone(pair), names }) {
                    return Ok(());
                }
            }
            match visit {
                Visit::Enter { name, stat } => {
                    if pairs.len() > MAX_DEPTH {
                        let path = shown(&Lossy(walk.path()));
                        return Err(FileError::TooDeep { path }.into_io());
                    }
                    if let Some(below) = self.folder(&mut walk, pair.to.as_fd(), &name)? {
                        pairs.push(Pair::new(walk.dir(), below, stat)?);
                    }
                }
                Visit::Leaf { name, stat } => names.push((name, stat)),
                Visit::Leave => pairs.pop().map_or(Ok(()), Pair::release)?,
            }
        }
        if let Some(pair) = pairs.last() {
            give(Leaves { within: Arc::clone(pair), names });
        }
        pairs.into_iter().rev().try_for_each(Pair::release)
    }

    /// The copy of the folder that the walk has entered; `None` if it has been there already.
    fn folder(
        &self,
        walk: &mut Walk,
        to: BorrowedFd<'_>,
        name: &CStr,
    ) -> io::Result<Option<OwnedFd>> {
        match make_folder(to, name, self.owner) {
            Ok(below) => {
                self.progress.add_entry();
                Ok(Some(below))
            }
            // What is renamed while a folder is listed may be listed twice.
            Err(Errno::EXIST) => walk.skip().map(|()| None).map_err(FileError::into_io),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Copies what is no folder; false if it is of a kind that is not copied.
    fn leaf(
        &self,
        (from, name): (BorrowedFd<'_>, &CStr),
        (to, to_name): (BorrowedFd<'_>, &CStr),
        stat: &RawStat,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        match kind_of(stat) {
            FileType::RegularFile => {
                let (source, stat) = open_file(from, name)?;
                let mut copy = create_new(to, to_name)?;
                self.content(&source, &mut copy, &stat, buffer)?;
                give_to(self.owner, &copy)?;
                rustix::fs::fchmod(&copy, Mode::from_raw_mode(stat.st_mode & 0o777))?;
                rustix::fs::futimens(&copy, &modified_with(&stat))?;
            }
            FileType::Symlink => {
                // EINVAL says that it is no link any more.
                let target = rustix::fs::readlinkat(from, name, Vec::new())
                    .map_err(|errno| if errno == Errno::INVAL { Errno::NOENT } else { errno })?;
                rustix::fs::symlinkat(target.as_c_str(), to, to_name)?;
                give_name_to(self.owner, to, to_name)?;
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(to, to_name, &modified_with(stat), nofollow)?;
            }
            _ => return Ok(false),
        }
        self.progress.add_entry();
        Ok(true)
    }

    /// Shares the blocks where the file system can, else copies the parts that are not holes.
    pub(super) fn content(
        &self,
        from: &File,
        to: &mut File,
        stat: &RawStat,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let size = size_of_file(stat);
        if self.is_cloned(from, to) {
            self.progress.add_bytes(size);
            return self.progress.spend(size).map_err(FileError::into_io);
        }
        let is_dense = blocks_of(stat) * 512 >= size;
        if is_dense && size <= buffer.len() as u64 {
            self.progress.spend(size).map_err(FileError::into_io)?;
            return self.range_by_hand(from, to, size, buffer);
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
            self.range(from, to, (start, end), buffer)?;
            at = end.max(start);
        }
        self.progress.add_bytes(size.saturating_sub(at));
        rustix::fs::ftruncate(&*to, size)?;
        Ok(())
    }

    fn is_cloned(&self, from: &File, to: &File) -> bool {
        if self.cannot_clone.load(Ordering::Relaxed) {
            return false;
        }
        let cloned = rustix::fs::ioctl_ficlone(to, from);
        if matches!(cloned, Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV)) {
            self.cannot_clone.store(true, Ordering::Relaxed);
        }
        cloned.is_ok()
    }

    fn range(
        &self,
        from: &File,
        to: &mut File,
        (start, end): (u64, u64),
        buffer: &mut [u8],
    ) -> io::Result<()> {
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
                    rustix::fs::seek(from, SeekFrom::Start(read_at))?;
                    rustix::fs::seek(&*to, SeekFrom::Start(read_at))?;
                    return self.range_by_hand(from, to, end - read_at, buffer);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Copies so many bytes from where both files stand.
    fn range_by_hand(
        &self,
        mut from: &File,
        to: &mut File,
        mut left: u64,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        while left > 0 {
            self.progress.check().map_err(FileError::into_io)?;
            let want = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
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

pub(super) fn is_moved(error: &io::Error) -> bool {
    let moved = [Errno::NOENT, Errno::LOOP, Errno::ISDIR, Errno::NXIO, Errno::EXIST];
    Errno::from_io_error(error).is_some_and(|errno| moved.contains(&errno))
}
