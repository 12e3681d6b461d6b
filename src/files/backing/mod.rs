//! What holds volumes to their size where the kernel does it: file systems in images, and project quotas.
//!
//! All of it blocks, runs on the blocking threads of [`super::Files`] and is finished once begun, also
//! when whoever asked is gone. Whether a backend works on this node is found by trying ([`probe()`]), never
//! by guessing from versions. What a crash leaves half-made is recognised by what lies on the disk, and
//! repaired when the volume is taken up again.

mod attach;
pub(super) mod image;
pub(super) mod mounts;
pub(super) mod probe;
pub(crate) mod project;
mod staged;
mod superblock;
mod tools;

use std::io;

use rustix::io::Errno;

use super::error::FileError;
pub(crate) use probe::probe;
pub(crate) use tools::ToolError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BackingError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("cannot {op}")]
    Io { op: &'static str, source: io::Error },
    #[error("the disk has no room for it")]
    NoSpace,
    #[error("the volume's file system is still in use")]
    Busy,
    #[error("the volume holds more than that")]
    BelowUse,
    #[error(
        "what lightd mounts is not seen by the rest of the system, and so not by the container engine: \
         run lightd in the host's mount namespace (systemd/lightd-mounts.conf)"
    )]
    NotSeen,
    #[error("the image of the volume is missing")]
    NoImage,
    #[error("the image of the volume is damaged: {said}")]
    Damaged { said: String },
    #[error("the limit is not kept: {said}")]
    NotKept { said: String },
}

impl BackingError {
    pub(super) fn io(op: &'static str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace,
            _ => Self::Io { op, source },
        }
    }
}

impl From<BackingError> for FileError {
    fn from(error: BackingError) -> Self {
        match error {
            BackingError::NoSpace => Self::NoSpace { path: "a volume of that size".to_owned() },
            BackingError::Busy => Self::VolumeBusy { doing: "is still in use" },
            BackingError::BelowUse => Self::BelowUse,
            BackingError::NoImage | BackingError::Damaged { .. } | BackingError::NotSeen => {
                tracing::error!(error = %crate::util::chain::Chain(&error), "a volume cannot be used");
                Self::VolumeUnavailable
            }
            BackingError::Tool(_) | BackingError::Io { .. } | BackingError::NotKept { .. } => {
                Self::Backing { source: Box::new(error) }
            }
        }
    }
}
