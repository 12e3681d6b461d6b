//! An answer that is not a success: what it holds, and how it is written.
//!
//! An [`ApiError`] holds what the caller may read (status, a stable code, a sentence) apart from what
//! only the log may (the source with its causes). The body never names a host path or a secret: a 5xx
//! says no more than that, and the request's id ties it to the line with the whole chain. Which failure
//! becomes which answer is decided in [`super::error`], or by the handler whose own it is.

use std::borrow::Cow;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::domain::ids::ContainerId;
use crate::domain::path::InvalidPath;
use crate::domain::spec::Problem;
use crate::util::chain::Chain;

/// How soon a caller may try again after a 503.
pub(super) const RETRY_SOON: Duration = Duration::from_secs(2);

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    problems: Vec<Problem>,
    /// Which container has what was asked for: not in the sentence unless the caller may read that one.
    in_use_by: Option<Box<ContainerId>>,
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
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            problems: Vec::new(),
            in_use_by: None,
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
        Self::field(field, why.to_string()).coded("invalid_path")
    }

    /// The same under a code that says more.
    pub(super) fn coded(self, code: &'static str) -> Self {
        Self { code, ..self }
    }

    /// 416 for a range behind a file's end.
    pub(crate) fn range_not_satisfiable() -> Self {
        let message = "the range lies behind the file's end";
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", message)
    }

    /// 412 for a client that speaks another version of the protocol of resumable uploads.
    pub(crate) fn tus_version() -> Self {
        let message = "the header Tus-Resumable: 1.0.0 is needed";
        Self::new(StatusCode::PRECONDITION_FAILED, "tus_version", message)
    }

    pub(crate) fn unsupported_media_type(message: &'static str) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    /// 422 for a key that was sent with another request.
    pub(crate) fn idempotency_key_reused() -> Self {
        let message = "this Idempotency-Key was sent with another request";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", message)
    }

    pub(crate) fn unauthorized(message: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// 401 for what was under way when the right to it ended.
    pub(super) fn token_over() -> Self {
        Self::unauthorized("the token has expired or was revoked")
    }

    /// 403 for an address that the allow-list does not have.
    pub(super) fn not_admitted() -> Self {
        Self::forbidden("address", "this address is not in authorization.allowed_ips")
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

    pub(crate) fn too_many(
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
        retry: Duration,
    ) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, message).retry_after(retry)
    }

    pub(crate) fn unavailable(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
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

    /// 507 where the disk is full that lightd's own files are on, else 500: it is not lightd that has
    /// failed then, and who runs the node can mend it.
    pub(super) fn own_files(source: impl Error + Send + Sync + 'static) -> Self {
        if is_full_disk(&source) { Self::node_is_full(source) } else { Self::internal(source) }
    }

    pub(super) fn node_is_full(source: impl Error + Send + Sync + 'static) -> Self {
        let message = "no space is left on the node's own disk";
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "insufficient_storage", message).because(source)
    }

    fn retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// Adds what only the log may show.
    pub(crate) fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// Adds which container has it, for [`ApiError::naming`].
    pub(super) fn in_use_by(self, container: ContainerId) -> Self {
        Self { in_use_by: Some(Box::new(container)), ..self }
    }

    /// Names the container that has what was asked for, if this caller may know of it.
    pub(super) fn naming(mut self, may_know: impl FnOnce(&ContainerId) -> bool) -> Self {
        if let Some(by) = self.in_use_by.take().filter(|by| may_know(by)) {
            self.message = format!("{} by container {by}", self.message).into();
        }
        self
    }

    /// The same, with all that is wrong beside it.
    pub(super) fn with_problems(self, problems: Vec<Problem>) -> Self {
        Self { problems, ..self }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

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
            // Rounded up: whoever comes back by then is not refused again.
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Failure { code: self.code, chain: self.cause() });
        response
    }
}

/// Whether somewhere down the chain the kernel has said that there is no room.
fn is_full_disk(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
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
    async fn an_answer_without_problems_has_no_list_of_them() {
        let (status, body) = body(ApiError::scope()).await;
        assert_eq!((status, &body["code"]), (403, &"scope".into()));
        assert!(body.get("problems").is_none());
    }

    #[test]
    fn who_has_what_was_asked_for_is_named_to_whom_may_know() {
        let taken = || {
            let by = ContainerId::parse("theirs").unwrap();
            ApiError::conflict("port_in_use", "port 7 is in use").in_use_by(by)
        };
        assert_eq!(taken().message(), "port 7 is in use");
        assert_eq!(taken().naming(|_| false).message(), "port 7 is in use");
        let told = taken().naming(|by| by.as_str() == "theirs");
        assert_eq!(told.message(), "port 7 is in use by container theirs");
    }

    #[test]
    fn an_engine_that_is_away_is_a_reason_to_come_back() {
        let response = ApiError::engine_unavailable().into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
    }
}
