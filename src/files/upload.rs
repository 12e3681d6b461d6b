//! Many files that arrive in one request.
//!
//! All of them are staged first. Only when the request has arrived to its end do they enter their
//! places, one rename each: a request that breaks off, and a limit that is reached on the way, leave the
//! volume as it was. What is wrong with one file alone (a name that leads outside, a folder in its
//! place) is that file's failure and no other's.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::content::{DEFAULT_MODE, WriteMode, create_new};
use super::error::{During, FileError};
use super::progress::Progress;
use super::staging::Staging;
use super::volume::{Kind, Place, Volume};
use crate::domain::path::{InvalidPath, RelPath};

/// A file of an upload that is in its place, or why it is not.
#[derive(Debug)]
pub(crate) struct Uploaded {
    pub(crate) filename: String,
    pub(crate) outcome: Result<Stored, FileError>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) path: RelPath,
    pub(crate) size: u64,
    /// Whether there was no such file before.
    pub(crate) is_new: bool,
}

/// An upload that is on its way. Dropped before [`Upload::commit`] it leaves nothing.
#[derive(Debug)]
pub(crate) struct Upload<'v> {
    volume: &'v Volume,
    staging: Staging<'v>,
    folder: RelPath,
    mode: WriteMode,
    progress: Progress,
    received: Vec<Received>,
    current: Option<File>,
    /// What was credited for being replaced; a file named twice is replaced once.
    credited: HashSet<RelPath>,
}

#[derive(Debug)]
struct Received {
    filename: String,
    size: u64,
    path: Result<RelPath, FileError>,
}

impl Volume {
    /// Begins an upload of files whose names are counted from `folder`.
    pub(crate) fn begin_upload(
        &self,
        folder: RelPath,
        mode: WriteMode,
        progress: Progress,
    ) -> Result<Upload<'_>, FileError> {
        self.must_be_folder_or_absent(&folder)?;
        Ok(Upload {
            volume: self,
            staging: Staging::new(self.root())?,
            folder,
            mode,
            progress,
            received: Vec::new(),
            current: None,
            credited: HashSet::new(),
        })
    }

    /// Refuses what can not become a folder before anything is sent to it.
    fn must_be_folder_or_absent(&self, folder: &RelPath) -> Result<(), FileError> {
        match self.stat(folder) {
            Ok(stat) if stat.kind == Kind::Directory => Ok(()),
            Ok(_) => Err(FileError::NotADirectory { path: folder.to_string() }),
            Err(FileError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Upload<'_> {
    /// The next file begins. One that can have no place is received all the same, into nothing.
    pub(crate) fn begin_file(&mut self, filename: String) -> Result<(), FileError> {
        let path = self.place_of(&filename);
        if let Ok(path) = &path {
            if self.credited.insert(path.clone()) {
                self.progress.credit(self.volume.replaced_bytes(path));
            }
            let name = staged_name(self.received.len()).during("write", path)?;
            let file = create_new(self.staging.dir(), &name).during("write", path)?;
            self.current = Some(file);
        }
        self.received.push(Received { filename, size: 0, path });
        Ok(())
    }

    fn place_of(&self, filename: &str) -> Result<RelPath, FileError> {
        let below = RelPath::parse_non_empty(filename)?;
        let path = self.folder.join(&below)?;
        self.volume.check_place(&path, self.mode.create_only).map(|()| path)
    }

    /// What has arrived of the present file.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.progress.check()?;
        let Some(received) = self.received.last_mut() else { return Ok(()) };
        let (Some(file), Ok(path)) = (&mut self.current, &received.path) else { return Ok(()) };
        self.progress.spend(bytes.len() as u64)?;
        file.write_all(bytes).during("write", path)?;
        received.size += bytes.len() as u64;
        self.progress.add_bytes(bytes.len() as u64);
        Ok(())
    }

    /// The present file is complete.
    pub(crate) fn end_file(&mut self) -> Result<(), FileError> {
        if let (Some(file), Some(received)) = (self.current.take(), self.received.last())
            && let Ok(path) = &received.path
        {
            self.volume.finish_file(&file, DEFAULT_MODE).during("write", path)?;
        }
        Ok(())
    }

    /// All has arrived: the files enter their places.
    pub(crate) fn commit(mut self) -> Vec<Uploaded> {
        let received = std::mem::take(&mut self.received);
        let mut done = Vec::with_capacity(received.len());
        for (index, Received { filename, size, path }) in received.into_iter().enumerate() {
            let outcome = path.and_then(|path| self.put_in_place(index, path, size));
            done.push(Uploaded { filename, outcome });
        }
        done
    }

    fn put_in_place(&self, index: usize, path: RelPath, size: u64) -> Result<Stored, FileError> {
        let (dir, real) = self.volume.write_target(&path)?;
        let (_, name) = real.split_last().ok_or(InvalidPath::Empty)?;
        let target = Place { dir, name };
        let staged = staged_name(index).during("write", &path)?;
        if let Some(old) = self.volume.check_target(&target, &path, &self.mode)? {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(self.staging.dir(), &staged, flags, Mode::empty())
                .during("write", &path)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(old.st_mode & 0o777))
                .during("write", &path)?;
        }
        let from = (self.staging.dir(), staged.as_c_str());
        let old = self.volume.commit_from(from, &target, &path, &self.mode)?;
        Ok(Stored { path, size, is_new: old.is_none() })
    }
}

fn staged_name(index: usize) -> Result<CString, Errno> {
    CString::new(index.to_string()).map_err(|_| Errno::INVAL)
}
