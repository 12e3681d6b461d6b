//! Every failure as an answer: the only place that maps errors to status codes.
//!
//! Each match lists every variant, so that a new kind of failure does not compile until it has a
//! status. What an answer is made of, and how it is written, stands in [`super::failure`].

#![deny(clippy::wildcard_enum_match_arm)]

use axum::http::StatusCode;

use crate::access::AccessError;
use crate::config::ConfigError;
use crate::console::InputError;
use crate::domain::lifecycle::Denied;
use crate::domain::path::InvalidPath;
use crate::domain::spec::Problem;
use crate::engine::{EngineError, EngineErrorKind};
use crate::files::FileError;
use crate::network::firewall::FirewallError;
use crate::network::nft::NftError;
use crate::network::pool::PoolError;
use crate::store::StoreError;
use crate::supervisor::{CreateError, ExecError, ImportError, Refusal, Unreached};
use crate::volumes::VolumesError;

pub(crate) use super::failure::ApiError;
use super::failure::RETRY_SOON;

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NoToken => {
                Self::unauthorized("a token is needed: Authorization: Bearer lightd_…")
            }
            AccessError::BadToken => Self::unauthorized("the token is not valid"),
            AccessError::TooManyAttempts { retry_after } => {
                let message =
                    "too many tokens from this address were not valid; wait before the next";
                Self::too_many("too_many_attempts", message, retry_after)
            }
            AccessError::BadTtl => Self::field("ttl", "must be between 1s and 365d"),
            AccessError::Store(error) => error.into(),
        }
    }
}

impl From<PoolError> for ApiError {
    fn from(error: PoolError) -> Self {
        let field = match &error {
            PoolError::NotLocal(_) => "ip",
            PoolError::BadRange => "port",
            PoolError::BadCount => "count",
            PoolError::BadReserve => "reserve",
            PoolError::Store(_) | PoolError::Stopping => "",
        };
        match error {
            PoolError::Store(error) => error.into(),
            PoolError::Stopping => Self::unavailable("stopping", "lightd is stopping"),
            PoolError::NotLocal(_)
            | PoolError::BadRange
            | PoolError::BadCount
            | PoolError::BadReserve => Self::field(field, error.to_string()),
        }
    }
}

impl From<FirewallError> for ApiError {
    fn from(error: FirewallError) -> Self {
        match error {
            FirewallError::Off => Self::conflict("firewall_off", error.to_string()),
            FirewallError::Busy => Self::unavailable("busy", error.to_string()),
            FirewallError::Stopping => Self::unavailable("stopping", error.to_string()),
            FirewallError::Nft(error) => {
                let message = format!("the node's firewall does not take it: {}", said_by(&error));
                Self::unavailable("firewall_unavailable", message).because(error)
            }
            FirewallError::Store(error) => error.into(),
        }
    }
}

/// What a caller is told of it; nft's own words, which name its rules, are for the log.
fn said_by(error: &NftError) -> &'static str {
    match error {
        NftError::Missing => "the program nft is not installed",
        NftError::NotPermitted { .. } => "lightd may not change it",
        NftError::Refused { .. } => "the kernel refuses a rule",
        NftError::Late => "nft does not end",
        NftError::Run { .. } => "nft cannot be run",
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        let code = match denied {
            Denied::Installing => "installing",
            Denied::Failed => "failed",
            Denied::Suspended => "suspended",
            Denied::Starting => "starting",
            Denied::Stopping => "stopping",
            Denied::Rebinding => "rebinding",
            Denied::Snapshot => "snapshot",
            Denied::NotRunning => "not_running",
            Denied::Deleting => "deleting",
        };
        Self::conflict(code, denied.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied(denied) => denied.into(),
            Refusal::Invalid(problems) => Self::invalid(problems),
            Refusal::EngineUnavailable => Self::engine_unavailable(),
            Refusal::Busy => Self::unavailable("busy", "too many requests wait for this container"),
            Refusal::VolumeBusy(work) => {
                Self::conflict("volume_busy", format!("the container's volume {}", work.doing()))
            }
            Refusal::Gone => Self::no_such_container(),
            Refusal::Store(error) => Self::binding(error),
            Refusal::Engine(error) => error.into(),
            Refusal::Limits(error) => {
                let message = "the container engine could not hold what runs to these limits; memory \
                               cannot be limited to less than is in use";
                Self::conflict("engine_conflict", message).because(error)
            }
        }
    }
}

impl From<Unreached> for ApiError {
    fn from(why: Unreached) -> Self {
        let code = match why {
            Unreached::StartFailed(_) => "start_failed",
            Unreached::InstallFailed(_) => "install_failed",
            Unreached::RebindFailed(_) => "rebind_failed",
            Unreached::PauseRefused(_) => "pause_refused",
            Unreached::Superseded(_) => "superseded",
            Unreached::Deleting => "deleting",
        };
        Self::conflict(code, why.to_string())
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Invalid(problems) => Self::invalid(problems),
            CreateError::Stopping => Self::unavailable("stopping", "lightd is stopping"),
            CreateError::Store(error) => Self::binding(error),
            CreateError::Seal(_) | CreateError::Folder(_) => Self::own_files(error),
        }
    }
}

impl From<ImportError> for ApiError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Engine(error) => error.into(),
            ImportError::Store(error) => error.into(),
        }
    }
}

impl From<ExecError> for ApiError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Denied(denied) => denied.into(),
            ExecError::EngineUnavailable => Self::engine_unavailable(),
            ExecError::Store(error) => error.into(),
            ExecError::Engine(error) => error.into(),
        }
    }
}

impl From<InputError> for ApiError {
    fn from(error: InputError) -> Self {
        let code = match error {
            InputError::NotRunning => return Denied::NotRunning.into(),
            InputError::EngineUnavailable => return Self::engine_unavailable(),
            InputError::QueueFull => {
                return Self::unavailable("queue_full", "too many commands wait to be taken");
            }
            InputError::Stalled => "input_stalled",
            InputError::CutShort => "input_cut_short",
        };
        Self::conflict(code, error.to_string())
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let said = || format!("the container engine refused: {}", error.reason());
        match error.kind() {
            EngineErrorKind::Unreachable | EngineErrorKind::Timeout => {
                Self::engine_unavailable().because(error)
            }
            EngineErrorKind::Invalid => Self::malformed("engine_refused", said()).because(error),
            EngineErrorKind::Conflict => Self::conflict("engine_conflict", said()).because(error),
            EngineErrorKind::NotFound => {
                Self::conflict("engine_conflict", "the container engine has lost the container")
                    .because(error)
            }
            EngineErrorKind::Internal => Self::internal(error),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let conflict = |code| Self::conflict(code, error.to_string());
        match error {
            StoreError::NoSuchContainer(_) => Self::no_such_container(),
            StoreError::NoSuchVolume(_)
            | StoreError::PortNotInPool(_)
            | StoreError::NoFreePort { .. }
            | StoreError::NoSuchLease(_)
            | StoreError::NoSuchToken
            | StoreError::NoSuchUpdate(_) => Self::not_found(error.to_string()),
            StoreError::NoSuchSnapshot(_) => Self::not_found(error.to_string()),
            StoreError::NoSuchRule(_) => Self::not_found(error.to_string()),
            StoreError::RuleExists(_) => conflict("rule_exists"),
            StoreError::TooManyRules { .. } => conflict("too_many_rules"),
            StoreError::SnapshotExists(_) => conflict("snapshot_exists"),
            StoreError::TooManySnapshots { .. } => conflict("too_many_snapshots"),
            StoreError::TooManyTokens { .. } => conflict("too_many_tokens"),
            StoreError::ContainerExists(_) => conflict("container_exists"),
            StoreError::VolumeInUse { ref by, .. } => {
                conflict("volume_in_use").in_use_by(by.clone())
            }
            StoreError::PortExists(_) => conflict("port_exists"),
            StoreError::PortOverlaps { .. } => conflict("port_overlaps"),
            StoreError::PortInUse { ref by, .. } => conflict("port_in_use").in_use_by(by.clone()),
            StoreError::PortMarked(_) => conflict("port_in_use"),
            StoreError::PortLeased(_) => conflict("port_reserved"),
            StoreError::PortRests { .. } => conflict("port_quarantined"),
            StoreError::PortHeld(_) => conflict("port_held_by_host"),
            StoreError::PortIsOwn(_) => conflict("own_port"),
            StoreError::PortTwice(_) => Self::field("ports", error.to_string()),
            StoreError::Busy => Self::unavailable("busy", "too many changes wait to be stored"),
            StoreError::Closed => Self::unavailable("stopping", "lightd is stopping"),
            StoreError::NoSpace { .. } => Self::node_is_full(error),
            StoreError::Open { .. }
            | StoreError::Create { .. }
            | StoreError::Locked { .. }
            | StoreError::NewerSchema { .. }
            | StoreError::Migrate { .. }
            | StoreError::Sql { .. }
            | StoreError::Decode { .. }
            | StoreError::Panicked { .. } => Self::internal(error),
        }
    }
}

impl ApiError {
    /// As for a store's error, where a container's body named the volume, the ports and a lease: what is
    /// not there is then a bad field, and no free port, or a lease that has ended, a conflict.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is what it is everywhere")]
    pub(super) fn binding(error: StoreError) -> Self {
        match error {
            StoreError::NoSuchVolume(_) => Self::field("volume_id", "there is no such volume"),
            StoreError::PortNotInPool(_) => Self::field("ports", error.to_string()),
            StoreError::NoFreePort { .. } => Self::conflict("no_free_port", error.to_string()),
            StoreError::NoSuchLease(_) => Self::conflict("lease_ended", error.to_string()),
            other => other.into(),
        }
    }
}

impl From<InvalidPath> for ApiError {
    fn from(why: InvalidPath) -> Self {
        Self::malformed("invalid_path", why.to_string())
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        let (code, text) = (error.code(), error.to_string());
        let status = match &error {
            FileError::InvalidPath(_)
            | FileError::Escape { .. }
            | FileError::Reserved { .. }
            | FileError::IntoItself { .. }
            | FileError::TooDeep { .. }
            | FileError::NotAFile { .. }
            | FileError::Special { .. }
            | FileError::NotADirectory { .. }
            | FileError::InvalidPattern { .. }
            | FileError::InvalidCursor
            | FileError::ArchiveLimit { .. }
            | FileError::ArchiveCorrupt { .. }
            | FileError::UnsupportedArchive { .. } => StatusCode::BAD_REQUEST,
            FileError::NoVolume { .. } | FileError::NotFound { .. } | FileError::NoUpload => {
                StatusCode::NOT_FOUND
            }
            FileError::AlreadyExists { .. }
            | FileError::Cancelled
            | FileError::Busy { .. }
            | FileError::VolumeBusy { .. }
            | FileError::BelowUse
            | FileError::Disturbed
            | FileError::SnapshotDamaged
            | FileError::OffsetMismatch { .. }
            | FileError::UploadIncomplete => StatusCode::CONFLICT,
            FileError::PreconditionFailed { .. } => StatusCode::PRECONDITION_FAILED,
            FileError::QuotaExceeded { .. }
            | FileError::VolumeFull { .. }
            | FileError::NoSpace { .. } => StatusCode::INSUFFICIENT_STORAGE,
            FileError::UploadLocked => StatusCode::LOCKED,
            FileError::UploadTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            FileError::ChecksumMismatch => checksum_mismatch(),
            FileError::Fetch { .. } => StatusCode::BAD_GATEWAY,
            FileError::TooSmall { .. } => return Self::field("size", text),
            FileError::TooManyOperations | FileError::TooManyUploads => {
                return Self::too_many(code, text, RETRY_SOON);
            }
            FileError::VolumeUnavailable
            | FileError::BackendUnusable { .. }
            | FileError::Crowded
            | FileError::OperationNotStored => return Self::unavailable(code, text),
            FileError::Input { .. } => {
                return Self::malformed(code, text).because(error);
            }
            FileError::Store { .. } | FileError::Backing { .. } | FileError::Io { .. } => {
                return Self::internal(error);
            }
        };
        Self::new(status, code, text)
    }
}

impl From<VolumesError> for ApiError {
    fn from(error: VolumesError) -> Self {
        match error {
            VolumesError::Store(error) => error.into(),
            VolumesError::File(error) => error.into(),
            VolumesError::InUse { state, .. } => Self::conflict(state, error.to_string()),
            VolumesError::Fixed { why } => Self::conflict("backend_fixed", why),
            VolumesError::Stopping => Self::unavailable("stopping", "lightd is stopping"),
        }
    }
}

/// The status that the protocol of resumable uploads made up.
fn checksum_mismatch() -> StatusCode {
    StatusCode::from_u16(460).expect("invariant: a number of three digits is a status")
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        match error {
            // The file's path is the host's, so only what is wrong in it is told.
            ConfigError::NotJson { source, .. } => {
                let message = format!("the configuration file is not JSON: {source}");
                Self::malformed("invalid_config", message)
            }
            ConfigError::Invalid { problems, .. } => {
                let problems = problems
                    .into_iter()
                    .map(|problem| Problem::new(problem.key, problem.message))
                    .collect();
                Self::invalid(problems).coded("invalid_config")
            }
            ConfigError::Read { .. }
            | ConfigError::Write { .. }
            | ConfigError::Held { .. }
            | ConfigError::Missing { .. } => Self::own_files(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};

    use super::*;

    #[test]
    fn a_refused_wish_is_a_conflict_with_the_state_as_its_code() {
        let error = ApiError::from(Refusal::Denied(Denied::Stopping));
        assert_eq!((error.status(), error.code()), (StatusCode::CONFLICT, "stopping"));
    }

    #[test]
    fn a_full_disk_is_no_fault_of_lightds_however_deep_it_is_told() {
        let full = || io::Error::from(ErrorKind::StorageFull);
        let deep = io::Error::other(CreateError::Folder(full()));
        for error in [full(), deep] {
            let error = ApiError::from(CreateError::Folder(error));
            let told = (error.status(), error.code());
            assert_eq!(told, (StatusCode::INSUFFICIENT_STORAGE, "insufficient_storage"));
        }
        let other = CreateError::Folder(io::Error::from(ErrorKind::PermissionDenied));
        assert_eq!(ApiError::from(other).status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn the_same_store_error_reads_by_what_was_asked() {
        let port = || {
            StoreError::PortNotInPool(crate::domain::spec::HostPort {
                ip: std::net::Ipv4Addr::LOCALHOST.into(),
                port: 1,
                protocol: crate::domain::spec::Protocol::Tcp,
            })
        };
        assert_eq!(ApiError::from(port()).status(), StatusCode::NOT_FOUND);
        assert_eq!(ApiError::binding(port()).status(), StatusCode::BAD_REQUEST);
    }
}
