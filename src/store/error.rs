//! What can go wrong in the store, told apart as callers need it.

use std::net::SocketAddr;
use std::path::PathBuf;

use rusqlite::{ErrorCode, ffi};
use uuid::Uuid;

use crate::domain::firewall::RuleId;
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::spec::HostPort;
use crate::domain::units::UnixSeconds;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot open the store {path}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("cannot make the store {path}")]
    Create { path: PathBuf, source: std::io::Error },
    #[error(
        "the store {path} is in use by another lightd; stop that one, or set another storage.base_path"
    )]
    Locked { path: PathBuf },
    #[error(
        "the store {path} was written by a newer lightd (schema {found}, this one knows {known})"
    )]
    NewerSchema { path: PathBuf, found: i64, known: i64 },
    #[error("cannot bring the store {path} to schema {version}")]
    Migrate { path: PathBuf, version: i64, source: rusqlite::Error },

    /// The queue of writes is full; the caller may try again.
    #[error("the store is busy")]
    Busy,
    #[error("the store is closed")]
    Closed,
    #[error("the store failed to {op}")]
    Sql { op: &'static str, source: rusqlite::Error },
    /// Nothing has changed, and nothing can be stored until there is room again.
    #[error("no space is left on the store's disk to {op}")]
    NoSpace { op: &'static str, source: rusqlite::Error },
    #[error("the store holds a {what} that cannot be read")]
    Decode { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("a transaction panicked: {op}")]
    Panicked { op: &'static str },

    #[error("container {0} exists already")]
    ContainerExists(ContainerId),
    #[error("there is no container {0}")]
    NoSuchContainer(ContainerId),
    #[error("there is no volume {0}")]
    NoSuchVolume(VolumeId),
    /// By whom is for those to hear who may read that one.
    #[error("volume {volume} is in use")]
    VolumeInUse { volume: VolumeId, by: ContainerId },

    #[error("there is no snapshot {0}")]
    NoSuchSnapshot(String),
    #[error("snapshot {0} exists already")]
    SnapshotExists(String),
    #[error("a volume of this node has at most {most} snapshots; delete one first")]
    TooManySnapshots { most: u64 },

    #[error("Port already exists in pool")]
    PortExists(HostPort),
    /// A wildcard address and a particular one, for the same number and protocol.
    #[error("{} overlaps with {}, which is in the pool already", show(.asked), show(.existing))]
    PortOverlaps { asked: HostPort, existing: HostPort },
    #[error("{} is not in the pool", show(.0))]
    PortNotInPool(HostPort),
    /// By whom is for those to hear who may read that one.
    #[error("{} is in use", show(.port))]
    PortInUse { port: HostPort, by: ContainerId },
    #[error("{} is marked as in use", show(.0))]
    PortMarked(HostPort),
    #[error("{} is reserved", show(.0))]
    PortLeased(HostPort),
    #[error("{} rests since a server has let go of it, until {}", show(.port), at(*.until))]
    PortRests { port: HostPort, until: UnixSeconds },
    /// Something that is not lightd's has it.
    #[error("{} is in use by another process of this host", show(.0))]
    PortHeld(HostPort),
    #[error("{} is lightd's own", show(.0))]
    PortIsOwn(HostPort),
    #[error("{} is asked for twice", show(.0))]
    PortTwice(HostPort),
    #[error("there is no lease {0}, or it has ended")]
    NoSuchLease(Uuid),
    #[error("No available ports in pool")]
    NoFreePort { wanted: usize, found: usize },

    #[error("there is no firewall rule {0}")]
    NoSuchRule(RuleId),
    #[error("rule {0} of this container does the same already")]
    RuleExists(RuleId),
    #[error("a {of} has at most {most} firewall rules; delete one first")]
    TooManyRules { of: &'static str, most: usize },

    #[error(
        "{most} tokens are in force, which is all this node takes; revoke some, or raise authorization.max_tokens"
    )]
    TooManyTokens { most: u64 },
    #[error("there is no such token")]
    NoSuchToken,
    #[error("there is no update {0} in the outbox")]
    NoSuchUpdate(i64),
}

impl StoreError {
    /// A stored value that is not what this program writes.
    pub(super) fn decode(
        what: &'static str,
        why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Decode { what, source: why.into() }
    }

    pub(super) fn sql(op: &'static str, source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::NoSpace { op, source },
            _ => Self::Sql { op, source },
        }
    }

    /// Names the operation in an error that a single statement could not name.
    pub(super) fn during(self, op: &'static str) -> Self {
        match self {
            Self::Sql { source, .. } => Self::Sql { op, source },
            Self::NoSpace { source, .. } => Self::NoSpace { op, source },
            other => other,
        }
    }

    /// What SQLite said, if it was SQLite.
    pub(super) fn sqlite(&self) -> Option<ffi::Error> {
        match self {
            Self::Sql { source, .. } | Self::NoSpace { source, .. } => {
                source.sqlite_error().copied()
            }
            _ => None,
        }
    }
}

fn show(port: &HostPort) -> String {
    format!("port {}/{}", SocketAddr::new(port.ip, port.port), port.protocol.as_str())
}

/// A moment, for people.
fn at(time: UnixSeconds) -> String {
    jiff::Timestamp::from_second(time.0).map_or_else(|_| time.0.to_string(), |at| at.to_string())
}

impl From<rusqlite::Error> for StoreError {
    fn from(source: rusqlite::Error) -> Self {
        Self::sql("run a statement", source)
    }
}
