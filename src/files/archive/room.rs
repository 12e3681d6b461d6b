//! The staging folder that an archive is unpacked into, by several threads if need be.
//!
//! Parents are opened step by step without following links, and what is read is held to the limits as it
//! is written.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::Mode;
use rustix::io::Errno;

use super::{ArchiveLimits, Head, reading};
use crate::domain::path::RelPath;
use crate::files::content::{CHUNK_BYTES, create_new};
use crate::files::error::{During, FileError};
use crate::files::progress::Progress;
use crate::files::resolve::{Owner, Resolver, give_to};
use crate::files::tree::modified_at;
use crate::files::volume::Volume;

/// The staging folder and what may be put into it. Several threads may.
pub(super) struct Room<'a> {
    pub(super) tree: OwnedFd,
    pub(super) owner: Option<Owner>,
    pub(super) limits: ArchiveLimits,
    archive_bytes: u64,
    pub(super) progress: &'a Progress,
    content_bytes: AtomicU64,
}

/// One thread's place in the staging folder: archives keep neighbours together.
#[derive(Default)]
pub(super) struct Near {
    pub(super) parent: Option<(RelPath, OwnedFd)>,
    pub(super) buffer: Vec<u8>,
}

impl<'a> Room<'a> {
    /// `tree` is an empty folder that nobody else can reach.
    pub(super) fn new(
        tree: OwnedFd,
        volume: &Volume,
        archive_bytes: u64,
        progress: &'a Progress,
    ) -> Self {
        Self {
            tree,
            owner: volume.owner,
            limits: volume.limits,
            archive_bytes,
            progress,
            content_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn progress(&self) -> &'a Progress {
        self.progress
    }

    pub(super) fn folder(
        &self,
        path: &RelPath,
        left_out: &HashSet<RelPath>,
    ) -> Result<OwnedFd, FileError> {
        let mut above = path.clone();
        while !left_out.is_empty() && !above.is_root() {
            if left_out.contains(&above) {
                return Err(FileError::corrupt(format!("{above} is a link and a folder in it")));
            }
            above = above.split_last().map_or_else(RelPath::root, |(parent, _)| parent);
        }
        match Resolver::Steps.open_or_make(self.tree.as_fd(), path, self.owner) {
            Err(FileError::NotADirectory { .. } | FileError::Escape { .. }) => {
                Err(FileError::corrupt(format!("{path} is a folder and something else in it")))
            }
            outcome => outcome,
        }
    }

    /// The open folder that holds `path`, and the last name.
    pub(super) fn parent<'n>(
        &self,
        near: &'n mut Option<(RelPath, OwnedFd)>,
        path: &'n RelPath,
        left_out: &HashSet<RelPath>,
    ) -> Result<(&'n OwnedFd, &'n str), FileError> {
        let (parent, name) = path.split_last().ok_or_else(nameless)?;
        if near.as_ref().is_none_or(|(last, _)| *last != parent) {
            let dir = self.folder(&parent, left_out)?;
            *near = Some((parent, dir));
        }
        let (_, dir) = near.as_ref().expect("invariant: set just above");
        Ok((dir, name))
    }

    /// Makes a file that is not there yet.
    pub(super) fn new_file(
        &self,
        near: &mut Near,
        left_out: &HashSet<RelPath>,
        (path, head): (&RelPath, &Head),
        data: &mut dyn Read,
    ) -> Result<(), FileError> {
        let (dir, name) = self.parent(&mut near.parent, path, left_out)?;
        let file = match create_new(dir, name) {
            Err(Errno::EXIST) => {
                return Err(FileError::corrupt(format!("{path} stands in it twice")));
            }
            file => file.during("unpack", path)?,
        };
        self.fill(&file, &mut near.buffer, (path, head), data)
    }

    pub(super) fn fill(
        &self,
        mut file: &File,
        buffer: &mut Vec<u8>,
        (path, head): (&RelPath, &Head),
        data: &mut dyn Read,
    ) -> Result<(), FileError> {
        self.each_chunk(buffer, data, |chunk| {
            self.progress.spend(chunk.len() as u64)?;
            file.write_all(chunk).during("unpack", path)
        })?;
        give_to(self.owner, file).during("unpack", path)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(head.mode & 0o777)).during("unpack", path)?;
        if let Some(seconds) = head.modified_at_seconds {
            rustix::fs::futimens(file, &modified_at(seconds, 0)).during("unpack", path)?;
        }
        self.progress.add_entry();
        Ok(())
    }

    /// Reads what nobody wants, within the same limits.
    pub(super) fn drain(&self, near: &mut Near, data: &mut dyn Read) -> Result<(), FileError> {
        self.each_chunk(&mut near.buffer, data, |_| Ok(()))
    }

    fn each_chunk(
        &self,
        buffer: &mut Vec<u8>,
        data: &mut dyn Read,
        mut take: impl FnMut(&[u8]) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        buffer.resize(CHUNK_BYTES, 0);
        loop {
            let count = match data.read(buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(reading(error)),
            };
            self.progress.check()?;
            let bytes = count as u64;
            let before = self.content_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.limits.check_content(before.saturating_add(bytes), self.archive_bytes)?;
            take(&buffer[..count])?;
        }
    }
}

pub(super) fn nameless() -> FileError {
    FileError::corrupt("an entry has no name")
}
