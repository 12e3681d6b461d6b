//! An upload's folder, opened: what it says it is, what has arrived, and what arrives now.
//!
//! Called by [`super`], which holds the upload's lock. What is in the folder is believed only as far as it
//! was checked: [`Open::cut_back`] comes before anything else. What breaks off leaves what has arrived,
//! or, with a checksum, what there was before.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{INFO, Info, Piece, Resumable, ResumableLimits};
use crate::domain::units::UnixSeconds;
use crate::files::content::{CHUNK_BYTES, create_new};
use crate::files::digest::Hasher;
use crate::files::error::{During, FileError};
use crate::files::progress::Progress;
use crate::files::resolve::{HANDLE_ONLY, kind_of, proc_path};
use crate::files::volume::size_of_file;

const CHECKING: &CStr = c"checking";
const INFO_MAX_BYTES: u64 = 64 * 1024;

/// An upload's folder, opened.
pub(super) struct Open {
    pub(super) dir: OwnedFd,
    pub(super) info: Info,
    /// What has arrived; `None` once it is in its place.
    pub(super) new: Option<File>,
    pub(super) state: Resumable,
}

impl Open {
    /// What has really arrived.
    pub(super) fn look_again(&mut self) -> Result<(), FileError> {
        if let Some(new) = &self.new {
            let stat = rustix::fs::fstat(new).during("look at", &"the upload")?;
            self.state.offset = size_of_file(&stat);
            self.state.touched_at = UnixSeconds(stat.st_mtime);
        }
        Ok(())
    }

    /// Takes away what came with a checksum that was never found right.
    pub(super) fn cut_back(&mut self) -> Result<(), Errno> {
        let mut text = String::new();
        match open_for_writing(self.dir.as_fd(), CHECKING) {
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
            Ok(checking) => {
                // Nothing was written yet if it is empty.
                checking.take(32).read_to_string(&mut text).map_err(|_| Errno::IO)?;
            }
        }
        if let (Ok(believed), Some(new)) = (text.trim().parse::<u64>(), &self.new)
            && size_of_file(&rustix::fs::fstat(new)?) > believed
        {
            rustix::fs::ftruncate(new, believed)?;
        }
        self.checked()
    }

    fn checked(&self) -> Result<(), Errno> {
        match rustix::fs::unlinkat(&self.dir, CHECKING, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            outcome => outcome,
        }
    }

    pub(super) fn set_length(
        &mut self,
        length: u64,
        limits: &ResumableLimits,
    ) -> Result<(), FileError> {
        if self.info.length.is_some_and(|known| known != length) || length < self.state.offset {
            return Err(FileError::OffsetMismatch { offset: self.state.offset });
        }
        if length > limits.max_bytes {
            return Err(FileError::UploadTooLarge { limit_bytes: limits.max_bytes });
        }
        if self.info.length.is_none() {
            self.info.length = Some(length);
            write_info(&self.dir, &self.info).during("write", &"the upload")?;
            self.state.info = self.info.clone();
        }
        Ok(())
    }

    pub(super) fn receive(
        &mut self,
        piece: &Piece,
        content: &mut dyn Read,
        max_bytes: u64,
    ) -> Result<(), FileError> {
        let room = self.info.length.unwrap_or(max_bytes).saturating_sub(piece.offset);
        let Some(new) = &mut self.new else { return refuse_more(content, room) };
        if piece.checksum.is_some() {
            let mut checking = create_new(&self.dir, CHECKING).during("write", &"the upload")?;
            checking
                .write_all(piece.offset.to_string().as_bytes())
                .during("write", &"the upload")?;
        }
        new.seek(SeekFrom::Start(piece.offset)).during("write", &"the upload")?;
        let outcome = write_checked(piece, content, new, room);
        if piece.checksum.is_some() {
            if outcome.is_err() {
                rustix::fs::ftruncate(&*new, piece.offset).during("write", &"the upload")?;
            }
            self.checked().during("write", &"the upload")?;
        }
        outcome
    }
}

/// Writes all that comes, and holds it against its checksum.
fn write_checked(
    piece: &Piece,
    content: &mut dyn Read,
    new: &mut File,
    room: u64,
) -> Result<(), FileError> {
    let mut hasher = piece.checksum.as_ref().map(|(algorithm, _)| algorithm.hasher());
    let mut buffer = vec![0; 4 * CHUNK_BYTES];
    let mut left = room;
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FileError::of_input(&"the upload", error)),
        };
        left = left
            .checked_sub(count as u64)
            .ok_or(FileError::UploadTooLarge { limit_bytes: piece.offset + room })?;
        if let Some(hasher) = &mut hasher {
            hasher.update(&buffer[..count]);
        }
        new.write_all(&buffer[..count]).during("write", &"the upload")?;
    }
    let found = hasher.map(Hasher::finish);
    let is_wrong = piece.checksum.as_ref().is_some_and(|(_, want)| found.as_ref() != Some(want));
    if is_wrong { Err(FileError::ChecksumMismatch) } else { Ok(()) }
}

/// An upload that has arrived takes nothing more.
fn refuse_more(content: &mut dyn Read, length: u64) -> Result<(), FileError> {
    match content.read(&mut [0; 1]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(FileError::UploadTooLarge { limit_bytes: length }),
        Err(error) => Err(FileError::of_input(&"the upload", error)),
    }
}

pub(super) fn append_file(
    part: &File,
    new: &mut File,
    progress: &Progress,
) -> Result<(), FileError> {
    let mut part = part;
    part.seek(SeekFrom::Start(0)).during("read", &"the upload")?;
    let mut left = part.metadata().during("read", &"the upload")?.len();
    progress.spend(left)?;
    new.seek(SeekFrom::End(0)).during("write", &"the upload")?;
    while left > 0 {
        progress.check()?;
        // Copied by the kernel where it can.
        let step = io::copy(&mut part.take(left.min(64 << 20)), new);
        match step.during("write", &"the upload")? {
            0 => return Err(FileError::UploadIncomplete),
            count => left -= count.min(left),
        }
    }
    Ok(())
}

pub(super) fn write_info(dir: &OwnedFd, info: &Info) -> Result<(), Errno> {
    let text = serde_json::to_vec(info).map_err(|_| Errno::INVAL)?;
    match rustix::fs::unlinkat(dir, c"info.new", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let mut file = create_new(dir, c"info.new")?;
    file.write_all(&text).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    rustix::fs::fsync(&file)?;
    rustix::fs::renameat(dir, c"info.new", dir, INFO)
}

pub(super) fn read_info(dir: &OwnedFd) -> Result<(Info, UnixSeconds), Errno> {
    let file = open_for_writing(dir.as_fd(), INFO)?;
    let touched_at = UnixSeconds(rustix::fs::fstat(&file)?.st_mtime);
    let mut text = Vec::new();
    let mut limited = file.take(INFO_MAX_BYTES);
    limited.read_to_end(&mut text).map_err(|_| Errno::IO)?;
    let info = serde_json::from_slice(&text).map_err(|_| Errno::NOENT)?;
    Ok((info, touched_at))
}

/// Opens a regular file by its name for reading and writing, and nothing else by that name.
pub(super) fn open_for_writing(dir: BorrowedFd<'_>, name: &CStr) -> Result<File, Errno> {
    let handle = rustix::fs::openat(dir, name, HANDLE_ONLY | OFlags::NOFOLLOW, Mode::empty())?;
    if kind_of(&rustix::fs::fstat(&handle)?) != FileType::RegularFile {
        return Err(Errno::NOENT);
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(proc_path(&handle), flags, Mode::empty()).map(File::from)
}
