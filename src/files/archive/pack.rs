//! From files to an archive: what goes in, under which name.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Stat as RawStat};
use rustix::io::Errno;

use super::ArchiveFormat;
use super::ignore::Ignore;
use super::write::{Sink, sink};
use crate::domain::path::{InvalidPath, RelPath};
use crate::files::content::{WriteMode, new_file};
use crate::files::error::{During, FileError};
use crate::files::progress::{Charged, Progress, Tracked};
use crate::files::resolve::{kind_of, open_file, open_folder, same_file, stat_name};
use crate::files::staging::Staging;
use crate::files::tree::content_size;
use crate::files::volume::{Volume, size_of_file};
use crate::files::walk::{Visit, Walk};

/// What to pack.
#[derive(Clone, Debug)]
pub(crate) struct PackRequest {
    pub(crate) format: ArchiveFormat,
    /// Where the archive goes; it is never part of itself.
    pub(crate) output: RelPath,
    /// Files and folders to take; all of `base` if there are none.
    pub(crate) paths: Vec<RelPath>,
    /// The folder that names in the archive are counted from; every path lies in it.
    pub(crate) base: RelPath,
    pub(crate) ignore: Vec<String>,
    /// 0 (fast) to 9 (small), the format's own default without.
    pub(crate) level: Option<u32>,
    /// Whether an archive that is there may be replaced.
    pub(crate) overwrite: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    /// The archive's size in bytes.
    pub(crate) size: u64,
    pub(crate) entries: u64,
    /// Sockets, FIFOs and devices, which no archive holds.
    pub(crate) skipped: u64,
    /// Whether it replaced no other.
    pub(crate) is_new: bool,
}

impl Volume {
    /// Makes an archive. It appears under its name when it is complete and safe on disk; a failure or
    /// a cancel leaves nothing behind.
    pub(crate) fn pack(
        &self,
        request: &PackRequest,
        progress: &Progress,
    ) -> Result<Packed, FileError> {
        let ignore = Ignore::parse(&request.ignore)?;
        if request.paths.iter().any(|path| !path.is_within(&request.base)) {
            return Err(InvalidPath::ParentReference.into());
        }
        let target = self.place_with_parents(&request.output)?;
        let mode = WriteMode { create_only: !request.overwrite, if_match: None };
        let replaced = self.check_target(&target, &request.output, &mode)?;
        progress.set_total_bytes(self.size_to_pack(request)?);
        let staging = Staging::new(self.root())?;
        let file = new_file(&staging).during("pack", &request.output)?;
        let file = Charged { file, progress: progress.clone() };
        let mut packer = Packer {
            sink: sink(request.format, request.level, file).during("pack", &request.output)?,
            ignore,
            replaced,
            progress,
            entries: 0,
            skipped: 0,
        };
        packer.all(self, request)?;
        let Packer { sink, entries, skipped, .. } = packer;
        let file = sink.finish().during("pack", &request.output)?;
        let size = size_of_file(&rustix::fs::fstat(&file).during("pack", &request.output)?);
        self.finish_file(&file, 0o644).during("pack", &request.output)?;
        progress.check()?;
        let is_new = self.commit(&staging, &target, &request.output, &mode)?;
        Ok(Packed { size, entries, skipped, is_new })
    }

    fn size_to_pack(&self, request: &PackRequest) -> Result<u64, FileError> {
        if request.paths.is_empty() {
            return content_size(self.open_dir(&request.base)?.as_fd());
        }
        let mut total = 0;
        for path in &request.paths {
            let place = self.place(path)?;
            let stat = stat_name(&place.dir, place.name).during("pack", path)?;
            total += match kind_of(&stat) {
                FileType::Directory => content_size(
                    open_folder(place.dir.as_fd(), place.name).during("pack", path)?.as_fd(),
                )?,
                FileType::RegularFile => size_of_file(&stat),
                _ => 0,
            };
        }
        Ok(total)
    }
}

struct Packer<'a> {
    sink: Box<dyn Sink>,
    ignore: Ignore,
    /// The archive that this one will replace: it is not packed either.
    replaced: Option<RawStat>,
    progress: &'a Progress,
    entries: u64,
    skipped: u64,
}

impl Packer<'_> {
    fn all(&mut self, volume: &Volume, request: &PackRequest) -> Result<(), FileError> {
        if request.paths.is_empty() {
            return self.below(volume.open_dir(&request.base)?.as_fd(), b"");
        }
        for path in &request.paths {
            let name =
                path.as_path().strip_prefix(request.base.as_path()).unwrap_or(path.as_path());
            let name = name.as_os_str().as_encoded_bytes();
            if name.is_empty() {
                self.below(volume.open_dir(path)?.as_fd(), b"")?;
                continue;
            }
            let place = volume.place(path)?;
            let stat = stat_name(&place.dir, place.name).during("pack", path)?;
            if kind_of(&stat) == FileType::Directory {
                let dir = open_folder(place.dir.as_fd(), place.name).during("pack", path)?;
                if self.folder(name, &stat).during("pack", path)? {
                    self.below(dir.as_fd(), &[name, b"/"].concat())?;
                }
            } else {
                let last = std::ffi::CString::new(place.name).map_err(|_| Errno::INVAL);
                let last = last.during("pack", path)?;
                self.leaf(place.dir.as_fd(), &last, name, &stat).during("pack", path)?;
            }
        }
        Ok(())
    }

    /// Packs what is in `dir` under names that begin with `prefix`.
    fn below(&mut self, dir: BorrowedFd<'_>, prefix: &[u8]) -> Result<(), FileError> {
        let mut walk = Walk::new(dir)?;
        while let Some(visit) = walk.next()? {
            self.progress.check()?;
            match visit {
                Visit::Enter { stat, .. } => {
                    let name = [prefix, walk.path()].concat();
                    if !self.folder(&name, &stat).during("pack", &lossy(&name))? {
                        walk.skip()?;
                    }
                }
                Visit::Leaf { name, stat } => {
                    let full = [prefix, &walk.path_of(&name)].concat();
                    self.leaf(walk.dir(), &name, &full, &stat).during("pack", &lossy(&full))?;
                }
                Visit::Leave => {}
            }
        }
        Ok(())
    }

    /// Adds a folder; false if it is to be left out with all that is in it.
    fn folder(&mut self, name: &[u8], stat: &RawStat) -> io::Result<bool> {
        if self.ignore.matches(name, true) {
            return Ok(false);
        }
        self.sink.folder(name, stat)?;
        self.count();
        Ok(true)
    }

    fn leaf(
        &mut self,
        dir: BorrowedFd<'_>,
        last: &std::ffi::CStr,
        name: &[u8],
        stat: &RawStat,
    ) -> io::Result<()> {
        let is_replaced = self.replaced.as_ref().is_some_and(|old| same_file(old, stat));
        if is_replaced || self.ignore.matches(name, false) {
            return Ok(());
        }
        match kind_of(stat) {
            FileType::RegularFile => {
                let (file, stat) = match open_file(dir, last) {
                    // Gone or swapped since it was listed.
                    Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Ok(()),
                    opened => opened?,
                };
                self.sink.file(name, &stat, &mut exactly(file, &stat, self.progress))?;
            }
            FileType::Symlink => match rustix::fs::readlinkat(dir, last, Vec::new()) {
                Ok(target) => self.sink.symlink(name, stat, target.as_bytes())?,
                Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            },
            _ => {
                self.skipped += 1;
                return Ok(());
            }
        }
        self.count();
        Ok(())
    }

    fn count(&mut self) {
        self.entries += 1;
        self.progress.add_entry();
    }
}

/// As many bytes as the file had when it was opened. The header has promised that number, and servers
/// write their logs while we read: what is added is left out, what was cut off is filled with zeros.
fn exactly(file: File, stat: &RawStat, progress: &Progress) -> impl Read {
    let tracked = Tracked { inner: file, progress: progress.clone() };
    tracked.chain(io::repeat(0)).take(size_of_file(stat))
}

fn lossy(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}
