//! Uploads that go on where they broke off, also after a crash of lightd.
//!
//! Each is a folder `.lightd-uploads/<id>` in its volume: `info` says what it is to become, `new` is what
//! has arrived. How far it has come is the length of `new` and stands nowhere else, so there is nothing
//! that could disagree after a crash. The last byte is followed by one rename into place; an upload whose
//! `new` is gone has arrived, and `info` stays for a while to say so.
//!
//! Bytes that come with a checksum count only once it was found right: while they arrive, `checking`
//! holds the length that is believed, and whoever finds it afterwards cuts `new` back to that.
//!
//! One request works on an upload at a time: it holds a [`Lock`]. Everything here is the tenant's own, so
//! what a tenant could forge in these files reaches no further than his volume.

mod folder;
mod locks;
mod room;

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::folder::{Open, append_file, open_for_writing, read_info, write_info};
pub(crate) use self::locks::{Lock, Locks};
use self::room::{is_over, unfinished};
use super::content::{DEFAULT_MODE, STAGED, WriteMode, create_new};
use super::digest::Algorithm;
use super::error::{During, FileError};
use super::progress::Progress;
use super::resolve::open_folder;
use super::staging::{is_dot, remove_tree};
use super::volume::{Place, Volume};
use crate::domain::path::{InvalidPath, RelPath};
use crate::domain::units::UnixSeconds;

/// The folder of all uploads of a volume.
pub(super) const UPLOADS: &str = ".lightd-uploads";
const INFO: &CStr = c"info";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ResumableId(Uuid);

impl ResumableId {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for ResumableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// What an upload is to become.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Info {
    /// `None` while the sender has not said how long it will be.
    pub(crate) length: Option<u64>,
    /// Where it goes. `None` for a part, which goes into another upload.
    pub(crate) path: Option<String>,
    pub(crate) create_only: bool,
    /// As the sender gave it, to be given back.
    pub(crate) metadata: Option<String>,
    pub(crate) is_joined: bool,
}

/// How far an upload has come.
#[derive(Clone, Debug)]
pub(crate) struct Resumable {
    pub(crate) id: ResumableId,
    pub(crate) info: Info,
    pub(crate) offset: u64,
    /// When it last got on.
    pub(crate) touched_at: UnixSeconds,
}

/// What arrives for an upload.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    /// For an upload whose length was not known.
    pub(crate) length: Option<u64>,
    pub(crate) checksum: Option<(Algorithm, Vec<u8>)>,
}

/// How many and how large.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResumableLimits {
    pub(crate) max_bytes: u64,
    pub(crate) max_per_volume: usize,
    pub(crate) limit_bytes: Option<u64>,
}

impl Volume {
    /// Begins an upload.
    pub(crate) fn create_resumable(
        &self,
        info: Info,
        limits: &ResumableLimits,
        lock: impl FnOnce(ResumableId) -> Result<Lock, FileError>,
    ) -> Result<(Resumable, Lock), FileError> {
        if let Some(path) = &info.path {
            self.check_place(&RelPath::parse_non_empty(path)?, info.create_only)?;
        }
        if info.length.is_some_and(|length| length > limits.max_bytes) {
            return Err(FileError::UploadTooLarge { limit_bytes: limits.max_bytes });
        }
        let uploads =
            self.uploads(true)?.ok_or(Errno::NOENT).during("prepare", &"the folder of uploads")?;
        if unfinished(&uploads).during("prepare", &"the folder of uploads")?
            >= limits.max_per_volume
        {
            return Err(FileError::TooManyUploads);
        }
        if let Some(length) = info.length {
            let progress = Progress::default();
            self.hold_to(limits.limit_bytes, self.replaced_by(&info), &progress)?;
            progress.has_room_for(length)?;
        }
        let id = ResumableId::random();
        let lock = lock(id)?;
        let name = id.to_string();
        let made = self.make_upload(&uploads, &name, &info);
        if made.is_err() {
            // What stays is found half-made and expires.
            remove_tree(uploads.as_fd(), name.as_str(), &Progress::default()).ok();
        }
        made?;
        let mut open = self.open_resumable(id)?;
        self.finish_if_complete(&mut open)?;
        Ok((open.state, lock))
    }

    fn make_upload(&self, uploads: &OwnedFd, name: &str, info: &Info) -> Result<(), FileError> {
        rustix::fs::mkdirat(uploads, name, Mode::from_raw_mode(0o700))
            .during("prepare", &"the folder of uploads")?;
        let dir = open_folder(uploads.as_fd(), name).during("prepare", &"the folder of uploads")?;
        create_new(&dir, STAGED).during("prepare", &"the folder of uploads")?;
        write_info(&dir, info).during("prepare", &"the folder of uploads")
    }

    /// How far an upload has come. One that has arrived and was kept by a crash from its place is put
    /// there now.
    pub(crate) fn resumable(&self, lock: &Lock) -> Result<Resumable, FileError> {
        let mut open = self.open_resumable(lock.id)?;
        self.finish_if_complete(&mut open)?;
        Ok(open.state)
    }

    /// Adds what arrives. What has arrived when the sender breaks off stays; what comes with a checksum
    /// stays only if it is right.
    pub(crate) fn append(
        &self,
        lock: &Lock,
        piece: &Piece,
        content: &mut dyn Read,
        progress: &Progress,
        limits: &ResumableLimits,
    ) -> Result<Resumable, FileError> {
        let mut open = self.open_resumable(lock.id)?;
        if open.state.offset != piece.offset {
            return Err(FileError::OffsetMismatch { offset: open.state.offset });
        }
        if let Some(length) = piece.length {
            open.set_length(length, limits)?;
        }
        self.hold_to(limits.limit_bytes, self.replaced_by(&open.info), progress)?;
        let outcome = open.receive(piece, content, limits.max_bytes);
        open.look_again()?;
        outcome?;
        self.finish_if_complete(&mut open)?;
        Ok(open.state)
    }

    /// Gives an upload up.
    pub(crate) fn remove_resumable(&self, lock: &Lock) -> Result<(), FileError> {
        let uploads = self.uploads(false)?.ok_or(FileError::NoUpload)?;
        match remove_tree(uploads.as_fd(), lock.id.to_string().as_str(), &Progress::default()) {
            Err(Errno::NOENT) => Err(FileError::NoUpload),
            outcome => outcome.during("remove", &"the upload"),
        }
    }

    /// Makes one upload of parts that have all arrived; the parts are gone afterwards.
    pub(crate) fn join_resumables(
        &self,
        info: Info,
        parts: &[Lock],
        limits: &ResumableLimits,
        lock: impl FnOnce(ResumableId) -> Result<Lock, FileError>,
        progress: &Progress,
    ) -> Result<(Resumable, Lock), FileError> {
        let mut opened = Vec::with_capacity(parts.len());
        let mut length: u64 = 0;
        for part in parts {
            let open = self.open_resumable(part.id)?;
            if open.info.path.is_some() || open.info.length != Some(open.state.offset) {
                return Err(FileError::UploadIncomplete);
            }
            length = length.saturating_add(open.state.offset);
            opened.push(open.new.ok_or(FileError::UploadIncomplete)?);
        }
        let info = Info { length: Some(length), is_joined: true, ..info };
        let (state, lock) = self.create_resumable(info, limits, lock)?;
        let joined = self.fill(&lock, &opened, limits, progress);
        if joined.is_err()
            && let Err(error) = self.remove_resumable(&lock)
        {
            tracing::debug!(%error, "half a joined upload stays until it expires");
        }
        let joined = joined?.unwrap_or(state);
        for part in parts {
            self.remove_resumable(part)?;
        }
        Ok((joined, lock))
    }

    fn fill(
        &self,
        lock: &Lock,
        parts: &[File],
        limits: &ResumableLimits,
        progress: &Progress,
    ) -> Result<Option<Resumable>, FileError> {
        let mut open = self.open_resumable(lock.id)?;
        let Some(new) = &mut open.new else { return Ok(None) };
        self.hold_to(limits.limit_bytes, self.replaced_by(&open.info), progress)?;
        for part in parts {
            append_file(part, new, progress)?;
        }
        open.look_again()?;
        self.finish_if_complete(&mut open)?;
        Ok(Some(open.state))
    }

    /// Removes uploads that nothing was added to for so long.
    pub(crate) fn expire_resumables(
        &self,
        expire_after: Duration,
        locks: &Locks,
    ) -> Result<u64, FileError> {
        let Some(uploads) = self.uploads(false)? else { return Ok(0) };
        let mut names = Vec::new();
        for entry in
            rustix::fs::Dir::read_from(&uploads).during("sweep", &"the folder of uploads")?
        {
            let entry = entry.during("sweep", &"the folder of uploads")?;
            if !is_dot(entry.file_name()) {
                names.push(entry.file_name().to_owned());
            }
        }
        let mut removed = 0;
        for name in names {
            let id = name.to_str().ok().and_then(ResumableId::parse);
            if id.is_some_and(|id| locks.is_held(id)) || !is_over(&uploads, &name, expire_after) {
                continue;
            }
            // Held while it goes, so that nobody begins to add to it.
            let lock = id.map(|id| locks.try_lock(id)).transpose();
            if lock.is_ok() {
                remove_tree(uploads.as_fd(), &*name, &Progress::default())
                    .during("sweep", &"the folder of uploads")?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The folder of uploads. One that is not lightd's own is the tenant's joke, and goes.
    fn uploads(&self, make: bool) -> Result<Option<OwnedFd>, FileError> {
        let own = rustix::process::geteuid();
        for _ in 0..3 {
            match open_folder(self.root(), UPLOADS) {
                Ok(dir) => {
                    let stat =
                        rustix::fs::fstat(&dir).during("prepare", &"the folder of uploads")?;
                    if stat.st_uid == own.as_raw() && stat.st_mode & 0o077 == 0 {
                        return Ok(Some(dir));
                    }
                }
                Err(Errno::NOENT) if !make => return Ok(None),
                Err(Errno::NOENT) => {
                    let mode = Mode::from_raw_mode(0o700);
                    match rustix::fs::mkdirat(self.root(), UPLOADS, mode) {
                        Err(Errno::EXIST) | Ok(()) => continue,
                        Err(errno) => {
                            return Err(errno).during("prepare", &"the folder of uploads");
                        }
                    }
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno).during("prepare", &"the folder of uploads"),
            }
            match remove_tree(self.root(), UPLOADS, &Progress::default()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).during("prepare", &"the folder of uploads"),
            }
        }
        Err(FileError::Busy { path: UPLOADS.to_owned() })
    }

    fn open_resumable(&self, id: ResumableId) -> Result<Open, FileError> {
        let gone = |errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => FileError::NoUpload,
            errno => FileError::from_errno("open", &"the upload", errno),
        };
        let uploads = self.uploads(false)?.ok_or(FileError::NoUpload)?;
        let dir = open_folder(uploads.as_fd(), id.to_string()).map_err(gone)?;
        let (info, touched_at) = read_info(&dir).map_err(gone)?;
        let new = match open_for_writing(dir.as_fd(), STAGED) {
            Ok(new) => Some(new),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(gone(errno)),
        };
        let offset = info.length.unwrap_or(0);
        let state = Resumable { id, info: info.clone(), offset, touched_at };
        let mut open = Open { dir, info, new, state };
        open.cut_back().during("open", &"the upload")?;
        open.look_again()?;
        Ok(open)
    }

    fn replaced_by(&self, info: &Info) -> u64 {
        let path = info.path.as_deref().and_then(|path| RelPath::parse_non_empty(path).ok());
        path.map_or(0, |path| self.replaced_bytes(&path))
    }

    fn finish_if_complete(&self, open: &mut Open) -> Result<(), FileError> {
        let (Some(new), Some(path)) = (&open.new, &open.info.path) else { return Ok(()) };
        if open.info.length != Some(open.state.offset) {
            return Ok(());
        }
        let path = RelPath::parse_non_empty(path)?;
        let mode = WriteMode { create_only: open.info.create_only, if_match: None };
        let (dir, real) = self.write_target(&path)?;
        let (_, name) = real.split_last().ok_or(InvalidPath::Empty)?;
        let target = Place { dir, name };
        let old = self.check_target(&target, &path, &mode)?;
        let bits = old.map_or(DEFAULT_MODE, |old| old.st_mode & 0o777);
        self.finish_file(new, bits).during("write", &path)?;
        self.commit_from((open.dir.as_fd(), STAGED), &target, &path, &mode)?;
        open.new = None;
        open.state.touched_at = UnixSeconds::now();
        Ok(())
    }
}
