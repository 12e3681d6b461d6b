//! What can go wrong with a volume's files, as callers need to tell it apart.
//!
//! Every `Display` text is fit for the outside: it names paths inside the volume and nothing of the
//! host. What the kernel said stands in the source, for the log.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;

use crate::domain::ids::VolumeId;
use crate::domain::path::{InvalidPath, RelPath};

#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("there is no volume {volume}")]
    NoVolume { volume: VolumeId },
    #[error("{path} does not exist")]
    NotFound { path: String },
    #[error("{path} already exists")]
    AlreadyExists { path: String },
    #[error("{path} is a folder, a file is needed here")]
    NotAFile { path: String },
    #[error("{path} is not a folder")]
    NotADirectory { path: String },
    #[error("{path} is neither a file nor a folder")]
    Special { path: String },
    #[error("{path} leads outside the volume")]
    Escape { path: String },
    #[error(transparent)]
    InvalidPath(#[from] InvalidPath),
    #[error("{path}: names that begin with .lightd- are reserved")]
    Reserved { path: String },
    #[error("{path} cannot be put into itself")]
    IntoItself { path: String },
    #[error("{path} is nested too deeply")]
    TooDeep { path: String },
    #[error("{pattern} is not a pattern that can be understood")]
    InvalidPattern { pattern: String },
    #[error("the cursor does not belong to a listing")]
    InvalidCursor,
    #[error("the volume's limit of {} MB would be exceeded", limit_bytes >> 20)]
    QuotaExceeded { limit_bytes: u64 },
    /// Of the volume's own file system or project, as the kernel has found.
    #[error("the volume is full: there is no space left in it for {path}")]
    VolumeFull { path: String },
    /// Of the disk that all volumes share, or of whichever it was that the kernel meant.
    #[error("no space is left on the node's disk for {path}")]
    NoSpace { path: String },
    #[error("the archive exceeds the limit on {what}")]
    ArchiveLimit { what: &'static str },
    #[error("the archive is damaged or unsafe: {reason}")]
    ArchiveCorrupt { reason: String },
    #[error("the archive cannot be read: {reason}")]
    UnsupportedArchive { reason: String },
    #[error("the operation was cancelled")]
    Cancelled,
    /// `how` goes on after the path: what is not as the caller wants it.
    #[error("{path} {how}")]
    PreconditionFailed { path: String, how: &'static str },
    #[error("{path} is in use or was moved meanwhile")]
    Busy { path: String },
    #[error("too many operations are running")]
    TooManyOperations,
    #[error("there is no such upload, or it has expired")]
    NoUpload,
    #[error("another request works on this upload")]
    UploadLocked,
    #[error("the upload stands at {offset}")]
    OffsetMismatch { offset: u64 },
    #[error("the checksum is not that of what has arrived")]
    ChecksumMismatch,
    #[error("a part of the upload has not arrived")]
    UploadIncomplete,
    #[error("the upload must not be longer than {limit_bytes} bytes")]
    UploadTooLarge { limit_bytes: u64 },
    #[error("too many uploads to this volume are unfinished")]
    TooManyUploads,
    #[error("too much is being done with the files of this volume, or of all; try again soon")]
    Crowded,
    #[error("the operation could not be stored")]
    OperationNotStored,
    /// What was to be fetched from elsewhere; the reason is fit for the outside.
    #[error("{reason}")]
    Fetch { reason: String },
    /// The caller's reader failed, not the volume.
    #[error("the data for {path} broke off")]
    Input { path: String, source: io::Error },
    #[error("the volume {doing}")]
    VolumeBusy { doing: &'static str },
    /// Its file system is not mounted; the log has the reason.
    #[error("the volume's file system is not there; lightd's log has the reason")]
    VolumeUnavailable,
    #[error(
        "the container did not stand still while its files were copied; take the snapshot again"
    )]
    Disturbed,
    #[error("the snapshot is damaged: it does not hold what was stored")]
    SnapshotDamaged,
    #[error("the volume holds more than that")]
    BelowUse,
    #[error("volumes of this node cannot have fewer than {} MB", least_bytes >> 20)]
    TooSmall { least_bytes: u64 },
    #[error("the change cannot be stored")]
    Store { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the volume's limit cannot be set up")]
    Backing { source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "the quota backend {backend} does not work on this node; `lightd doctor` says why and what to do"
    )]
    BackendUnusable { backend: &'static str },
    #[error("cannot {op} {path}")]
    Io { op: &'static str, path: String, source: io::Error },
}

impl FileError {
    pub(super) fn from_errno(op: &'static str, path: &dyn Display, errno: Errno) -> Self {
        let path = shown(path);
        match errno {
            Errno::NOENT => Self::NotFound { path },
            Errno::EXIST | Errno::NOTEMPTY => Self::AlreadyExists { path },
            Errno::ISDIR => Self::NotAFile { path },
            Errno::NOTDIR => Self::NotADirectory { path },
            Errno::NXIO | Errno::NODEV => Self::Special { path },
            Errno::XDEV | Errno::LOOP => Self::Escape { path },
            Errno::NAMETOOLONG => Self::InvalidPath(InvalidPath::NameTooLong),
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { path },
            Errno::BUSY | Errno::AGAIN | Errno::TXTBSY => Self::Busy { path },
            _ => Self::Io { op, path, source: errno.into() },
        }
    }

    /// Sorts an error of a reader or writer chain. Our own errors travel through such chains wrapped
    /// by [`FileError::into_io`] and come out as they were.
    pub(super) fn from_io(op: &'static str, path: &dyn Display, error: io::Error) -> Self {
        match error.downcast::<FileError>() {
            Ok(ours) => ours,
            Err(error) => match Errno::from_io_error(&error) {
                Some(errno) => Self::from_errno(op, path, errno),
                None => Self::Io { op, path: shown(path), source: error },
            },
        }
    }

    /// What programs tell it by: in answers, and in what is stored of an operation.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NoVolume { .. } | Self::NotFound { .. } | Self::NoUpload => "not_found",
            Self::AlreadyExists { .. } => "already_exists",
            Self::NotAFile { .. } | Self::Special { .. } => "not_a_file",
            Self::NotADirectory { .. } => "not_a_folder",
            Self::InvalidPath(_)
            | Self::Escape { .. }
            | Self::Reserved { .. }
            | Self::IntoItself { .. }
            | Self::TooDeep { .. } => "invalid_path",
            Self::InvalidPattern { .. } => "invalid_pattern",
            Self::InvalidCursor => "invalid_cursor",
            Self::QuotaExceeded { .. } | Self::VolumeFull { .. } => "quota_exceeded",
            Self::NoSpace { .. } => "insufficient_storage",
            Self::ArchiveLimit { .. } => "archive_limit",
            Self::ArchiveCorrupt { .. } => "archive_corrupt",
            Self::UnsupportedArchive { .. } => "archive_unsupported",
            Self::Cancelled => "cancelled",
            Self::PreconditionFailed { .. } => "precondition_failed",
            Self::Busy { .. } | Self::Crowded | Self::OperationNotStored => "busy",
            Self::TooManyOperations => "too_many_operations",
            Self::UploadLocked => "upload_locked",
            Self::OffsetMismatch { .. } => "offset_mismatch",
            Self::ChecksumMismatch => "checksum_mismatch",
            Self::UploadIncomplete => "upload_incomplete",
            Self::UploadTooLarge { .. } => "too_large",
            Self::TooManyUploads => "too_many_uploads",
            Self::Fetch { .. } => "fetch_failed",
            Self::Input { .. } => "incomplete_body",
            Self::VolumeBusy { .. } => "volume_busy",
            Self::VolumeUnavailable => "volume_unavailable",
            Self::Disturbed => "disturbed",
            Self::SnapshotDamaged => "snapshot_damaged",
            Self::BelowUse => "below_use",
            Self::TooSmall { .. } => "invalid",
            Self::BackendUnusable { .. } => "quota_backend_unusable",
            Self::Store { .. } | Self::Backing { .. } | Self::Io { .. } => "internal",
        }
    }

    /// What a caller's reader has failed with; our own errors come out as they were.
    pub(super) fn of_input(path: &dyn Display, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(source) => Self::Input { path: shown(path), source },
        }
    }

    /// For who insists on what he has seen.
    pub(crate) fn changed(path: &RelPath) -> Self {
        Self::PreconditionFailed { path: shown(path), how: "was changed meanwhile" }
    }

    pub(super) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    pub(super) fn corrupt(reason: impl Into<String>) -> Self {
        Self::ArchiveCorrupt { reason: reason.into() }
    }
}

/// A path longer than this is shown by its two ends: it goes into answers, the store and the log.
const SHOWN_MAX_BYTES: usize = 512;

/// A path as people read it; the root has no name of its own.
pub(super) fn shown(path: &dyn Display) -> String {
    let text = path.to_string();
    if text.is_empty() {
        return "the volume's root".to_owned();
    }
    if text.len() <= SHOWN_MAX_BYTES {
        return text;
    }
    let head = text.floor_char_boundary(SHOWN_MAX_BYTES / 2);
    let tail = text.ceil_char_boundary(text.len() - SHOWN_MAX_BYTES / 2);
    format!("{} … {}", &text[..head], &text[tail..])
}

/// Adds to a kernel error what was tried on what.
pub(super) trait During<T> {
    fn during(self, op: &'static str, path: &dyn Display) -> Result<T, FileError>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, op: &'static str, path: &dyn Display) -> Result<T, FileError> {
        self.map_err(|errno| FileError::from_errno(op, path, errno))
    }
}

impl<T> During<T> for io::Result<T> {
    fn during(self, op: &'static str, path: &dyn Display) -> Result<T, FileError> {
        self.map_err(|error| FileError::from_io(op, path, error))
    }
}

/// Refuses paths that name our own temporary files.
pub(super) fn refuse_reserved(path: &RelPath) -> Result<(), FileError> {
    if path.names().any(|name| super::staging::is_reserved(name.as_bytes())) {
        return Err(FileError::Reserved { path: shown(path) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_shown_by_its_ends() {
        assert_eq!(shown(&""), "the volume's root");
        assert_eq!(shown(&"a/b"), "a/b");
        let long = format!("begin/{}/end", "\u{e4}/".repeat(5000));
        let shown = shown(&long);
        assert!(shown.starts_with("begin/") && shown.ends_with("/end"), "{shown}");
        assert!(shown.len() < SHOWN_MAX_BYTES + 16, "{}", shown.len());
    }
}
