//! From an archive to files: reading all of it, moving the result in.
//!
//! Called for `decompress`. The archive is the tenant's and believed in nothing: `extract` judges each entry.
//! Until all was read and found sound, what comes of it lies in a staging folder that goes with any error.

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use super::extract::Extractor;
use super::merge::merge;
use super::room::Near;
use super::streams::{Compression, Opened, is_named_tar, open, without_ending};
use super::tar_read::read_tar;
use super::zip_directory::Member;
use super::zip_read::{Inflater, Zip};
use super::{Head, HeadKind, reading};
use crate::domain::path::RelPath;
use crate::files::content::STAGED;
use crate::files::error::{During, FileError, refuse_reserved};
use crate::files::progress::{Progress, Tracked};
use crate::files::resolve::make_folder;
use crate::files::staging::Staging;
use crate::files::threads::share_out;
use crate::files::volume::{Stat, Volume};

/// Entries of a zip that a thread takes at once, and how many times as many may wait.
const MEMBERS_AT_ONCE: usize = 16;
const MEMBERS_AHEAD: usize = 8;

/// What to unpack.
#[derive(Clone, Debug)]
pub(crate) struct UnpackRequest {
    pub(crate) archive: RelPath,
    pub(crate) destination: RelPath,
    /// The entries to take, folders with what is in them; all if there are none.
    pub(crate) entries: Vec<RelPath>,
    /// What a single compressed file is to be called, if not as its archive without the ending.
    pub(crate) name: Option<RelPath>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) entries: u64,
    /// Devices and FIFOs, and links that lead outside, which were left out.
    pub(crate) skipped: u64,
}

impl Volume {
    /// Takes an archive apart below its destination, which is made if it is missing and merged into
    /// otherwise. Until the whole archive was read and found sound, the volume stays as it was.
    pub(crate) fn unpack(
        &self,
        request: &UnpackRequest,
        progress: &Progress,
    ) -> Result<Unpacked, FileError> {
        let UnpackRequest { archive, destination, entries, .. } = request;
        for path in entries.iter().chain(&request.name).chain([destination]) {
            refuse_reserved(path)?;
        }
        let (file, stat) = self.open_read(archive)?;
        let existing = self.destination(destination)?;
        progress.set_total_bytes(stat.size);
        let staging = Staging::new(self.root())?;
        let tree = make_folder(staging.dir(), STAGED, self.owner).during("unpack", archive)?;
        let mut extractor = Extractor::new(tree, self, stat.size, entries, progress);
        self.read_archive(file, &stat, request, &mut extractor)?;
        extractor.finish()?;
        progress.check()?;
        // Headers and what was passed over are no more work.
        progress.add_bytes(stat.size.saturating_sub(progress.done_bytes()));
        // All of it at once: file by file would take a hundred times as long.
        rustix::fs::syncfs(extractor.tree()).during("unpack", archive)?;
        match existing {
            Some(existing) => merge(extractor.tree(), &existing)?,
            None => {
                let target = self.place_with_parents(destination)?;
                self.settle((staging.dir(), STAGED), (&target, destination), false)?;
                rustix::fs::fsync(&target.dir).during("unpack", archive)?;
            }
        }
        Ok(extractor.outcome())
    }

    fn destination(&self, path: &RelPath) -> Result<Option<OwnedFd>, FileError> {
        match self.open_dir(path) {
            Ok(dir) => Ok(Some(dir)),
            Err(FileError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_archive(
        &self,
        file: File,
        stat: &Stat,
        request: &UnpackRequest,
        extractor: &mut Extractor<'_>,
    ) -> Result<(), FileError> {
        let file = Tracked { inner: file, progress: extractor.room().progress().clone() };
        let name = request.archive.names().next_back().unwrap_or_default();
        open(file, stat.size, name, &self.limits, |opened| match opened {
            Opened::Zip(file) => unpack_zip(&Zip::open(file)?, extractor),
            Opened::Tar(_, stream) => read_tar(stream, &mut |head, data| {
                extractor.add(head, data)?;
                Ok(ControlFlow::Continue(()))
            }),
            Opened::Single(compression, stream) => {
                let name = match &request.name {
                    Some(name) => name.as_str(),
                    None => single_name(name, compression, stream)?,
                };
                let head = Head {
                    name: name.as_bytes().to_vec(),
                    kind: HeadKind::File,
                    size: 0,
                    mode: stat.mode,
                    modified_at_seconds: Some(stat.modified_at.0),
                };
                extractor.add(&head, stream)
            }
        })
    }
}

/// What the file in a compressed file is called. Where that can't be told the rest is read all the
/// same: one that is damaged shall not be refused for its name.
pub(super) fn single_name<'n>(
    name: &'n str,
    compression: Compression,
    stream: &mut dyn Read,
) -> Result<&'n str, FileError> {
    let is_tar = is_named_tar(name, compression);
    if let Some(name) = without_ending(name, compression).filter(|_| !is_tar) {
        return Ok(name);
    }
    std::io::copy(stream, &mut std::io::sink()).map_err(reading)?;
    let reason = if is_tar {
        "it is called a tar and holds none"
    } else {
        "it is a single file, and its name does not end as its compression is called: say in \
         \"name\" what it shall be called"
    };
    Err(FileError::UnsupportedArchive { reason: reason.to_owned() })
}

/// Folders and links first, one after the other; then the files, several at a time.
fn unpack_zip(zip: &Zip, extractor: &mut Extractor<'_>) -> Result<(), FileError> {
    let mut near = Near::default();
    zip.each(&mut |member| {
        let Some(path) = extractor.admit(&member.head)? else {
            return Ok(ControlFlow::Continue(()));
        };
        if member.is_link {
            extractor.put(&path, &zip.link(&member)?, &mut std::io::empty())?;
        } else if !matches!(member.head.kind, HeadKind::File) {
            extractor.put(&path, &member.head, &mut std::io::empty())?;
            let mut inflater = Inflater::default();
            // Its checksum is compared at the end.
            extractor.room().drain(&mut near, &mut zip.content(&member, &mut inflater)?)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    unpack_files_of_zip(zip, extractor)
}

fn unpack_files_of_zip(zip: &Zip, extractor: &Extractor<'_>) -> Result<(), FileError> {
    let room = extractor.room();
    share_out(
        "unpack-file",
        MEMBERS_AHEAD,
        || (Near::default(), Inflater::default()),
        |(near, inflater), members: Vec<(RelPath, Member)>| {
            for (path, member) in members {
                let mut content = zip.content(&member, inflater)?;
                let what = (&path, &member.head);
                room.new_file(near, extractor.left_out(), what, &mut content)?;
            }
            Ok(())
        },
        |give| {
            let mut members = Vec::new();
            zip.each(&mut |member| {
                let is_file = matches!(member.head.kind, HeadKind::File) && !member.is_link;
                if let Some(path) = extractor.admitted(&member.head)?.filter(|_| is_file) {
                    members.push((path, member));
                }
                let goes_on = members.len() < MEMBERS_AT_ONCE || give(std::mem::take(&mut members));
                Ok(if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            give(members);
            Ok(())
        },
    )
}
