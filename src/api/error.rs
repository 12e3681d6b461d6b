//! Every failure as an answer: the only place that maps errors to status codes.
//!
//! An [`ApiError`] holds what the caller may read (status, a stable code, a sentence) apart from what
//! only the log may (the source with its causes). The body never names a host path or a secret: a 5xx
//! says no more than that, and the request's id ties it to the line with the whole chain.
//!
//! Each match lists every variant, so that a new kind of failure does not compile until it has a
//! status.

#![deny(clippy::wildcard_enum_match_arm)]

use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::access::AccessError;
use crate::config::ConfigError;
use crate::console::InputError;
use crate::domain::lifecycle::Denied;
use crate::domain::path::InvalidPath;
use crate::domain::spec::Problem;
use crate::engine::{EngineError, EngineErrorKind};
use crate::files::FileError;
use crate::network::pool::PoolError;
use crate::store::StoreError;
use crate::supervisor::{CreateError, ExecError, Refusal};
use crate::util::chain::Chain;
use crate::volumes::VolumesError;

/// How soon a caller may try again after a 503.
const RETRY_SOON: Duration = Duration::from_secs(2);

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    problems: Vec<Problem>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What the log line of a request says about its failure; travels beside the response.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) code: &'static str,
    pub(super) chain: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "<[Problem]>::is_empty")]
    problems: &'a [Problem],
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            problems: Vec::new(),
            retry_after: None,
            source: None,
        }
    }

    /// 400 for a request that cannot be read at all.
    pub(crate) fn malformed(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400 for one field.
    pub(crate) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(vec![Problem::new(field, message)])
    }

    /// 400 for all that is wrong with a request; the first problem is the sentence.
    pub(crate) fn invalid(problems: Vec<Problem>) -> Self {
        let message = problems.first().map_or_else(
            || "the request is invalid".to_owned(),
            |first| format!("{}: {}", first.field, first.message),
        );
        Self { problems, ..Self::new(StatusCode::BAD_REQUEST, "invalid", message) }
    }

    /// 400 for a field that names no place in a volume.
    pub(crate) fn invalid_path(field: &str, why: &InvalidPath) -> Self {
        Self { code: "invalid_path", ..Self::field(field, why.to_string()) }
    }

    /// 416 for a range behind a file's end.
    pub(crate) fn range_not_satisfiable() -> Self {
        let message = "the range lies behind the file's end";
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", message)
    }

    pub(crate) fn unauthorized(message: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(crate) fn forbidden(code: &'static str, message: &'static str) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    /// 403 for a token that is good, but not for this.
    pub(crate) fn scope() -> Self {
        Self::forbidden("scope", "this token does not allow that")
    }

    pub(crate) fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(crate) fn no_such_container() -> Self {
        Self::not_found("no such container")
    }

    pub(super) fn wrong_method() -> Self {
        let message = "this address does not take that method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    pub(crate) fn conflict(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    pub(crate) fn too_large(limit_bytes: usize) -> Self {
        let message = format!("the request's body must not be larger than {limit_bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(crate) fn too_many(code: &'static str, message: &'static str, retry: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, message).retry_after(retry)
    }

    pub(crate) fn unavailable(code: &'static str, message: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry_after(RETRY_SOON)
    }

    pub(crate) fn engine_unavailable() -> Self {
        Self::unavailable("engine_unavailable", "the container engine does not answer")
    }

    /// 500; the caller learns nothing but the request's id.
    pub(crate) fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "lightd failed; its log has the reason under this answer's X-Request-Id",
        )
        .because(source)
    }

    fn retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// Adds what only the log may show.
    pub(crate) fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    #[cfg(test)]
    pub(crate) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The cause with its causes, on one line, for the log.
    pub(super) fn cause(&self) -> Option<String> {
        self.source.as_deref().map(|source| Chain(source).to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Body { error: &self.message, code: self.code, problems: &self.problems };
        let text = serde_json::to_string(&body).expect("invariant: a struct of texts is JSON");
        let mut response = (self.status, text).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(delay) = self.retry_after {
            headers.insert(header::RETRY_AFTER, delay.as_secs().max(1).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Failure { code: self.code, chain: self.cause() });
        response
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NoToken => {
                Self::unauthorized("a token is needed: Authorization: Bearer lightd_…")
            }
            AccessError::BadToken => Self::unauthorized("the token is not valid"),
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
            PoolError::Store(_) => "",
        };
        match error {
            PoolError::Store(error) => error.into(),
            PoolError::NotLocal(_)
            | PoolError::BadRange
            | PoolError::BadCount
            | PoolError::BadReserve => Self::field(field, error.to_string()),
        }
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
        }
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Invalid(problems) => Self::invalid(problems),
            CreateError::Stopping => Self::unavailable("stopping", "lightd is stopping"),
            CreateError::Store(error) => Self::binding(error),
            CreateError::Seal(_) | CreateError::Folder(_) => Self::internal(error),
        }
    }
}

impl From<ExecError> for ApiError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Denied(denied) => denied.into(),
            ExecError::EngineUnavailable => Self::engine_unavailable(),
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
            | StoreError::NoSuchToken
            | StoreError::NoSuchUpdate(_) => Self::not_found(error.to_string()),
            StoreError::NoSuchSnapshot(_) => Self::not_found(error.to_string()),
            StoreError::SnapshotExists(_) => conflict("snapshot_exists"),
            StoreError::TooManySnapshots { .. } => conflict("too_many_snapshots"),
            StoreError::ContainerExists(_) => conflict("container_exists"),
            StoreError::VolumeInUse { .. } => conflict("volume_in_use"),
            StoreError::PortExists(_) => conflict("port_exists"),
            StoreError::PortOverlaps { .. } => conflict("port_overlaps"),
            StoreError::PortInUse { .. } | StoreError::PortMarked(_) => conflict("port_in_use"),
            StoreError::PortLeased(_) => conflict("port_reserved"),
            StoreError::PortTwice(_) => Self::field("ports", error.to_string()),
            StoreError::Busy => Self::unavailable("busy", "too many changes wait to be stored"),
            StoreError::Closed => Self::unavailable("stopping", "lightd is stopping"),
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
    /// As for a store's error, where a container's body named the volume and the ports: one that is
    /// not there is then a bad field, and no free one a conflict.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is what it is everywhere")]
    fn binding(error: StoreError) -> Self {
        match error {
            StoreError::NoSuchVolume(_) => Self::field("volume_id", "there is no such volume"),
            StoreError::PortNotInPool(_) => Self::field("ports", error.to_string()),
            StoreError::NoFreePort { .. } => Self::conflict("no_free_port", error.to_string()),
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
        let text = error.to_string();
        let invalid = |code| Self::malformed(code, text.clone());
        let conflict = |code| Self::conflict(code, text.clone());
        match error {
            FileError::NoVolume { .. } | FileError::NotFound { .. } => Self::not_found(text),
            FileError::InvalidPath(why) => why.into(),
            FileError::Escape { .. }
            | FileError::Reserved { .. }
            | FileError::IntoItself { .. }
            | FileError::TooDeep { .. } => invalid("invalid_path"),
            FileError::NotAFile { .. } | FileError::Special { .. } => invalid("not_a_file"),
            FileError::NotADirectory { .. } => invalid("not_a_folder"),
            FileError::InvalidPattern { .. } => invalid("invalid_pattern"),
            FileError::InvalidCursor => invalid("invalid_cursor"),
            FileError::ArchiveLimit { .. } => invalid("archive_limit"),
            FileError::ArchiveCorrupt { .. } => invalid("archive_corrupt"),
            FileError::UnsupportedArchive { .. } => invalid("archive_unsupported"),
            FileError::Input { .. } => invalid("incomplete_body").because(error),
            FileError::AlreadyExists { .. } => conflict("already_exists"),
            FileError::Cancelled => conflict("cancelled"),
            FileError::Busy { .. } => conflict("busy"),
            FileError::PreconditionFailed { .. } => {
                Self::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", text)
            }
            FileError::NoSpace { .. } | FileError::QuotaExceeded { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "quota_exceeded", text)
            }
            FileError::TooManyOperations => {
                Self::too_many("too_many_operations", "too many operations are running", RETRY_SOON)
            }
            FileError::VolumeBusy { .. } => conflict("volume_busy"),
            FileError::BelowUse => conflict("below_use"),
            FileError::Disturbed => conflict("disturbed"),
            FileError::SnapshotDamaged => conflict("snapshot_damaged"),
            FileError::TooSmall { .. } => Self::field("size", text),
            FileError::VolumeUnavailable => {
                Self { message: text.into(), ..Self::unavailable("volume_unavailable", "") }
            }
            FileError::BackendUnusable { .. } => {
                Self { message: text.into(), ..Self::unavailable("quota_backend_unusable", "") }
            }
            FileError::Store { .. } | FileError::Backing { .. } | FileError::Io { .. } => {
                Self::internal(error)
            }
        }
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
                Self { code: "invalid_config", ..Self::invalid(problems) }
            }
            ConfigError::Read { .. } | ConfigError::Write { .. } | ConfigError::Missing { .. } => {
                Self::internal(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(error: ApiError) -> (u16, serde_json::Value) {
        let response = error.into_response();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_failure_of_ours_tells_nothing_and_logs_everything() {
        let source = std::io::Error::other("cannot open /var/lib/lightd/secret.key");
        let error = ApiError::internal(source);
        assert!(error.cause().unwrap().contains("secret.key"));
        let (status, body) = body(error).await;
        assert_eq!((status, &body["code"]), (500, &"internal".into()));
        assert!(!body.to_string().contains("/var"), "{body}");
    }

    #[tokio::test]
    async fn all_problems_are_told_and_the_first_is_the_sentence() {
        let problems =
            vec![Problem::new("image", "is required"), Problem::new("ports[0].port", "is 0")];
        let (status, body) = body(ApiError::invalid(problems)).await;
        assert_eq!(status, 400);
        assert_eq!(body["error"], "image: is required");
        assert_eq!(body["code"], "invalid");
        assert_eq!(body["problems"][1]["field"], "ports[0].port");
    }

    #[tokio::test]
    async fn a_refused_wish_is_a_conflict_with_the_state_as_its_code() {
        let (status, body) = body(Refusal::Denied(Denied::Stopping).into()).await;
        assert_eq!((status, &body["code"]), (409, &"stopping".into()));
        assert!(body.get("problems").is_none());
    }

    #[test]
    fn an_engine_that_is_away_is_a_reason_to_come_back() {
        let response = ApiError::from(Refusal::EngineUnavailable).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
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
