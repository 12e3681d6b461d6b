//! From files to an archive.
//!
//! Called for archives that are kept in the volume ([`Volume::pack`]) and for those that are sent (`stream`).
//! What is packed can be unpacked again: trees that are deeper than that are refused before anything is
//! written. A file that changes while it is read has in the archive the length that it had at first; one
//! that is gone is not in it. What fails leaves nothing.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat as RawStat};
use rustix::io::Errno;

use super::ignore::Ignore;
use super::select::{Chosen, Selection, during_pack};
use super::write::{Sink, write_archive};
use super::{ArchiveFormat, ArchiveLimits};
use crate::domain::path::{InvalidPath, RelPath};
use crate::files::content::{STAGED, WriteMode, create_new, new_file};
use crate::files::error::{During, FileError, shown};
use crate::files::progress::{Charged, Progress, Tracked};
use crate::files::resolve::{kind_of, open_file};
use crate::files::staging::Staging;
use crate::files::volume::{Volume, size_of_file};
use crate::files::walk::{Lossy, MAX_DEPTH};

/// Where a zip's directory grows until it is written behind the files.
const SPILL: &CStr = c"spill";

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
    /// One of the format's.
    pub(crate) level: u32,
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
        let mode = WriteMode { create_only: !request.overwrite, if_match: None };
        let replaced = match self.place(&request.output) {
            Ok(target) => self.check_target(&target, &request.output, &mode)?,
            // Its folder is made when there is something to put into it.
            Err(FileError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let staging = Staging::new(self.root())?;
        let file = new_file(&staging).during("pack", &request.output)?;
        let file = Charged { file, progress: progress.clone() };
        let (file, count) = self.pack_to(request, replaced, file, &staging, progress)?;
        let file = file.file;
        let size = size_of_file(&rustix::fs::fstat(&file).during("pack", &request.output)?);
        self.finish_file(&file, 0o644).during("pack", &request.output)?;
        progress.check()?;
        let target = self.place_with_parents(&request.output)?;
        let from = (staging.dir(), STAGED);
        let is_new = self.commit_from(from, &target, &request.output, &mode)?.is_none();
        Ok(Packed { size, entries: count.entries, skipped: count.skipped, is_new })
    }

    /// Writes an archive to `out`, whatever that is. `replaced` is left out of it.
    pub(super) fn pack_to<W: Write + Send>(
        &self,
        request: &PackRequest,
        replaced: Option<RawStat>,
        out: W,
        staging: &Staging<'_>,
        progress: &Progress,
    ) -> Result<(W, Count), FileError> {
        let ignore = Ignore::parse(&request.ignore)?;
        if request.paths.iter().any(|path| !path.is_within(&request.base)) {
            return Err(InvalidPath::ParentReference.into());
        }
        let volume = self;
        let selection = Selection { volume, request, ignore: &ignore, replaced, progress };
        progress.set_total_bytes(size_of_all(&selection, &self.limits)?);
        let spill = create_new(staging.dir(), SPILL).during("pack", &request.output)?;
        let mut count = Count::default();
        let out = write_archive((request.format, request.level), out, spill, |sink| {
            selection.each(&mut |chosen, name, stat| {
                let added = add(sink, chosen, name, stat, progress);
                match during_pack(added, name)? {
                    Added::Entry => {
                        count.entries += 1;
                        progress.add_entry();
                    }
                    Added::Skipped => count.skipped += 1,
                    Added::Gone => {}
                }
                Ok(())
            })
        });
        Ok((out.during("pack", &request.output)?, count))
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    entries: u64,
    skipped: u64,
}

enum Added {
    Entry,
    Skipped,
    /// Gone or swapped since it was listed.
    Gone,
}

/// Ends at what is too large: a file of holes is as large as its owner likes, for nothing.
fn size_of_all(selection: &Selection<'_>, limits: &ArchiveLimits) -> Result<u64, FileError> {
    let (mut total, mut entries) = (0_u64, 0);
    selection.each(&mut |_, name, stat| {
        if name.split(|&byte| byte == b'/').count() > MAX_DEPTH {
            return Err(FileError::TooDeep { path: shown(&Lossy(name)) });
        }
        if kind_of(stat) == FileType::RegularFile {
            total = total.saturating_add(size_of_file(stat));
        }
        entries += 1;
        limits.check_packed(total, entries)
    })?;
    Ok(total)
}

fn add(
    sink: &mut dyn Sink,
    chosen: Chosen<'_>,
    name: &[u8],
    stat: &RawStat,
    progress: &Progress,
) -> io::Result<Added> {
    match chosen {
        Chosen::Folder => sink.folder(name, stat).map(|()| Added::Entry),
        Chosen::Leaf { dir, last } => leaf(sink, (dir, last), name, stat, progress),
    }
}

fn leaf(
    sink: &mut dyn Sink,
    (dir, last): (BorrowedFd<'_>, &CStr),
    name: &[u8],
    stat: &RawStat,
    progress: &Progress,
) -> io::Result<Added> {
    match kind_of(stat) {
        FileType::RegularFile => match open_file(dir, last) {
            Ok((file, stat)) => sink.file(name, &stat, &mut exactly(file, &stat, progress))?,
            Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Ok(Added::Gone),
            Err(errno) => return Err(errno.into()),
        },
        FileType::Symlink => match rustix::fs::readlinkat(dir, last, Vec::new()) {
            Ok(target) => sink.symlink(name, stat, target.as_bytes())?,
            Err(Errno::NOENT | Errno::INVAL) => return Ok(Added::Gone),
            Err(errno) => return Err(errno.into()),
        },
        _ => return Ok(Added::Skipped),
    }
    Ok(Added::Entry)
}

/// As many bytes as the file had when it was opened. The header has promised that number, and servers
/// write their logs while we read: what is added is left out, what was cut off is filled with zeros.
fn exactly(file: File, stat: &RawStat, progress: &Progress) -> impl Read {
    let tracked = Tracked { inner: file, progress: progress.clone() };
    tracked.chain(io::repeat(0)).take(size_of_file(stat))
}
