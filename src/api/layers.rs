//! What happens to every request, whatever it asks for: an id, one log line, the origin check, the
//! answer to a panic, and a limit on time.
//!
//! The order is in [`super::router`]. The query is never logged: it may hold a token.

use std::any::Any;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use tracing::Instrument;

use super::error::ApiError;
use super::failure::Failure;
use super::state::AppState;
use crate::domain::client::ClientAddress;
use crate::domain::units::Span;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_MAX_BYTES: usize = 128;

/// How long a call that answers with a document may take in all, its body's arrival included.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// How long a wish may be waited for, beyond that.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(600);

/// Gives the request its id, logs it once when its answer stands, and guards the answer's reading.
///
/// Reads that succeed are logged at `debug`: a panel that polls would drown everything else.
pub(super) async fn observe(mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    // The audit log's rows name the request as its answer does.
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let id_text = id.to_str().unwrap_or_default();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let span = if is_read {
        tracing::debug_span!("request", id = id_text)
    } else {
        tracing::info_span!("request", id = id_text)
    };
    let client = request.extensions().get::<ClientAddress>().copied();
    let line =
        Line { method: request.method().clone(), uri: request.uri().clone(), client, is_read };
    let began = Instant::now();
    let mut response = next.run(request).instrument(span).await;
    line.log(id_text, began.elapsed(), &mut response);
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REQUEST_ID, id);
    response
}

/// What of a request stands in its line.
struct Line {
    method: Method,
    uri: Uri,
    client: Option<ClientAddress>,
    is_read: bool,
}

impl Line {
    fn log(&self, id: &str, took: Duration, response: &mut Response) {
        let status = response.status();
        let failure = response.extensions_mut().remove::<Failure>();
        let code = failure.as_ref().map(|failure| failure.code);
        let cause = failure.as_ref().and_then(|failure| failure.chain.as_deref());
        let (method, path, status_code) = (self.method.as_str(), self.uri.path(), status.as_u16());
        let client = self.client.map(tracing::field::display);
        let duration_ms = (took.as_secs_f64() * 1e6).round() / 1e3;
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    request.id = id,
                    client,
                    duration_ms,
                    code,
                    cause,
                    "{method} {path} {status_code}"
                )
            };
        }
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::GATEWAY_TIMEOUT {
            line!(warn);
        } else if status.is_server_error() {
            line!(error);
        } else if self.is_read && !status.is_client_error() {
            line!(debug);
        } else {
            line!(info);
        }
    }
}

/// The caller's id where it is harmless in a log line and a header, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_sane = |id: &&HeaderValue| {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        (1..=REQUEST_ID_MAX_BYTES).contains(&id.len()) && id.as_bytes().iter().all(plain)
    };
    if let Some(id) = headers.get(REQUEST_ID).filter(is_sane) {
        return id.clone();
    }
    let mut text = String::with_capacity(16);
    // Writing to a String cannot fail.
    write!(text, "{:016x}", rand::random::<u64>()).ok();
    HeaderValue::from_maybe_shared(text).expect("invariant: hex digits are a header value")
}

/// Ends a call that takes too long. What it had begun is dropped, so handlers hand lasting work over
/// to its owner before they wait.
pub(super) async fn deadline(request: Request, next: Next) -> Response {
    // A wait that cannot be is refused by whoever knows the call.
    let limit = CALL_DEADLINE + wait_of(request.uri()).ok().flatten().unwrap_or_default();
    tokio::time::timeout(limit, next.run(request)).await.unwrap_or_else(|_| {
        ApiError::unavailable("timeout", "the request took too long").into_response()
    })
}

/// How long the caller wants to wait for what it wishes, where something can be wished.
pub(super) fn wait_of(uri: &Uri) -> Result<Option<Duration>, ApiError> {
    let pairs = uri.query().filter(|_| uri.path().starts_with("/containers")).unwrap_or_default();
    let wait = pairs.split('&').find_map(|pair| pair.strip_prefix("wait="));
    let Some(text) = wait else { return Ok(None) };
    let Span(wait) = Span::parse(text).map_err(|why| ApiError::field("?wait", why.to_string()))?;
    if wait > WAIT_MAX {
        return Err(ApiError::field("?wait", format!("must be at most {}", Span(WAIT_MAX))));
    }
    Ok(Some(wait))
}

/// The answer to a panic; its message has gone to the log through the panic hook, and goes into the
/// request's line as well.
pub(super) fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    ApiError::internal(format!("a handler panicked: {text}")).into_response()
}

/// Holds requests that a browser sends from a page to `authorization.allowed_origins`.
///
/// While the list is empty no origin is refused and none is given anything to read: a browser keeps
/// other pages from the answers by itself, and a socket brings its own token. A request without
/// `Origin` does not come from another page.
pub(super) async fn origin(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let allowed = state.access.allowed_origins();
    let is_open = !state.access.settings().enabled;
    if is_open && let Some(refused) = page_of_elsewhere(request.headers(), &allowed) {
        return refused.into_response();
    }
    let mut response = match request.headers().get(header::ORIGIN).cloned() {
        Some(origin) => cross_origin(origin, &allowed, request, next).await,
        None => next.run(request).await,
    };
    if !allowed.is_empty() {
        // Said of every answer: a cache must not give one origin's to another, nor one to nobody's.
        response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// Without authorization a browser on the node would do for any page what its user may: its pages have to be
/// listed, or to come from the node itself under a name that nobody else can give it.
fn page_of_elsewhere(headers: &HeaderMap, allowed: &[String]) -> Option<ApiError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
    });
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if !host.is_empty() && !is_address && !name.eq_ignore_ascii_case("localhost") {
        let message = "without authorization the node is reached by its address or as localhost";
        return Some(ApiError::forbidden("origin", message));
    }
    let origin = headers.get(header::ORIGIN)?;
    let is_own = || {
        origin
            .to_str()
            .is_ok_and(|origin| origin.split_once("://").is_some_and(|(_, from)| from == host))
    };
    let is_listed = judge_origin(origin, headers, allowed) == Origin::Listed;
    (!is_listed && !is_own()).then(|| {
        let message = "without authorization only pages of authorization.allowed_origins may call";
        ApiError::forbidden("origin", message)
    })
}

async fn cross_origin(
    origin: HeaderValue,
    allowed: &[String],
    request: Request,
    next: Next,
) -> Response {
    match judge_origin(&origin, request.headers(), allowed) {
        Origin::Own => next.run(request).await,
        Origin::Refused => {
            ApiError::forbidden("origin", "this origin is not in authorization.allowed_origins")
                .into_response()
        }
        Origin::Listed if is_preflight(&request) => preflight(origin),
        Origin::Listed => {
            let mut response = next.run(request).await;
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            let exposed = HeaderValue::from_static(
                "x-request-id, retry-after, etag, accept-ranges, content-range, \
                 content-disposition, idempotent-replayed, location, tus-resumable, \
                 tus-version, tus-extension, tus-max-size, tus-checksum-algorithm, upload-offset, \
                 upload-length, upload-defer-length, upload-metadata, upload-concat, upload-expires",
            );
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
            response
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// Nothing to say about it: lightd's own page, or no list to hold it to.
    Own,
    Listed,
    Refused,
}

fn judge_origin(origin: &HeaderValue, headers: &HeaderMap, allowed: &[String]) -> Origin {
    let origin = origin.to_str().unwrap_or_default();
    if allowed.iter().any(|listed| listed.eq_ignore_ascii_case(origin)) {
        return Origin::Listed;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_own = origin.split_once("://").map(|(_, host)| host) == host && host.is_some();
    if is_own || allowed.is_empty() { Origin::Own } else { Origin::Refused }
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(origin: HeaderValue) -> Response {
    let fixed = HeaderValue::from_static;
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin),
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            fixed("GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"),
        ),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            fixed(
                "authorization, accept, content-type, x-request-id, x-requested-with, \
                 x-http-method-override, idempotency-key, if-match, if-none-match, if-range, \
                 range, last-event-id, \
                 tus-resumable, upload-offset, upload-length, upload-defer-length, \
                 upload-metadata, upload-concat, upload-checksum",
            ),
        ),
        (header::ACCESS_CONTROL_MAX_AGE, fixed("600")),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_callers_request_id_is_kept_only_if_it_is_harmless() {
        let kept = |id: &str| request_id(&headers(&[(REQUEST_ID, id)])).as_bytes() == id.as_bytes();
        assert!(kept("abc-1.2_3"));
        assert!(kept(&"a".repeat(128)));
        for bad in ["a b", "a\tb", "{}", "a;b", &"a".repeat(129)] {
            assert!(!kept(bad), "{bad:?}");
        }
        let made = request_id(&HeaderMap::new());
        assert_eq!(made.len(), 16);
        assert_ne!(made, request_id(&HeaderMap::new()));
    }

    #[test]
    fn a_wish_that_is_waited_for_has_the_time_for_it() {
        let wait = |uri: &'static str| {
            wait_of(&Uri::from_static(uri)).map(|wait| wait.map(|wait| wait.as_secs())).ok()
        };
        assert_eq!(wait("/containers/a/start?x=1&wait=1m30s"), Some(Some(90)));
        assert_eq!(wait("/containers?wait=10m"), Some(Some(600)));
        for bad in ["/containers?wait=1d", "/containers?wait=soon", "/containers?wait="] {
            assert_eq!(wait(bad), None, "{bad}");
        }
        assert_eq!(wait("/containers"), Some(None));
        assert_eq!(wait("/volumes?wait=1m"), Some(None));
    }

    #[test]
    fn without_authorization_no_page_from_elsewhere_and_no_name_that_others_can_give() {
        let refused = |host: &str, origin: Option<&str>, allowed: &[&str]| {
            let origin = origin.map(|origin| (header::ORIGIN, origin));
            let pairs: Vec<_> = [(header::HOST, host)].into_iter().chain(origin).collect();
            let allowed: Vec<String> = allowed.iter().map(|&text| text.to_owned()).collect();
            page_of_elsewhere(&headers(&pairs), &allowed).is_some()
        };
        for host in ["127.0.0.1:8070", "localhost", "LocalHost:8070", "[::1]:8070", "10.0.0.1"] {
            assert!(!refused(host, None, &[]), "{host}");
            assert!(!refused(host, Some(&format!("http://{host}")), &[]), "{host}");
            assert!(refused(host, Some("https://evil.example"), &[]), "{host}");
            assert!(refused(host, Some("null"), &[]), "{host}");
            assert!(!refused(host, Some("https://panel.example"), &["https://panel.example"]));
        }
        // A name that its owner lets lead to 127.0.0.1.
        for origin in [None, Some("http://evil.example")] {
            assert!(refused("evil.example", origin, &[]));
            assert!(refused("evil.example:8070", origin, &[]));
        }
    }

    #[test]
    fn origins_are_held_to_the_list_once_there_is_one() {
        let judge = |origin: &str, allowed: &[&str]| {
            let headers = headers(&[(header::HOST, "node:8070")]);
            let allowed: Vec<String> = allowed.iter().map(|&text| text.to_owned()).collect();
            judge_origin(&origin.parse().unwrap(), &headers, &allowed)
        };
        assert_eq!(judge("https://panel.example", &[]), Origin::Own);
        assert_eq!(judge("https://panel.example", &["https://panel.example"]), Origin::Listed);
        assert_eq!(judge("https://evil.example", &["https://panel.example"]), Origin::Refused);
        assert_eq!(judge("null", &["https://panel.example"]), Origin::Refused);
        assert_eq!(judge("http://node:8070", &["https://panel.example"]), Origin::Own);
    }
}
