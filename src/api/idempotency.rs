//! Requests that a caller may send again: `Idempotency-Key` on what makes something, and on wishes.
//!
//! The first request with a key is done and its answer kept for a day, encrypted, because an issued
//! token stands in its own; the same request gets that answer again, another one with the same key is
//! refused (422), and one that comes while the first is being done as well (409). A refusal is not kept:
//! nothing has happened, and the request may be sent again. A key belongs to who sent it. What an answer has
//! left open, because its wait was over before the end, is looked at again for whoever asks again: how long he
//! waits is his own matter each time.
//!
//! Where a key does not count, one is refused: who sends it believes himself safe.
//!
//! The request goes on to its end when its sender goes away: whoever asks again shall find out what
//! became of it. One that lightd died in has an unknown end, and is not done a second time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRef, FromRequestParts, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::auth::Auth;
use super::error::ApiError;
use super::extract::{BodyLimit, read_body};
use super::layers::WAIT_MAX;
use super::native::Awaited;
use super::state::AppState;
use crate::domain::units::{Span, UnixSeconds};
use crate::store::StoreError;
use crate::store::idempotency::{IdempotencyKey, Known};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const KEY_MAX_BYTES: usize = 255;
const ANSWER_MAX_BYTES: usize = 1 << 20;

/// Where a key counts: what makes something, what begins work in the background, and wishes about a
/// container's life.
pub(super) const KEYED: &[&str] = &[
    "/volumes",
    "/volumes/{id}/pull",
    "/volumes/{id}/copy",
    "/volumes/{id}/compress",
    "/volumes/{id}/decompress",
    "/volumes/{id}/snapshots",
    "/volumes/{id}/snapshots/{name}/restore",
    "/containers",
    "/containers/{id}/start",
    "/containers/{id}/stop",
    "/containers/{id}/kill",
    "/containers/{id}/restart",
    "/containers/{id}/pause",
    "/containers/{id}/resume",
    "/containers/{id}/suspend",
    "/containers/{id}/unsuspend",
    "/containers/{id}/reinstall",
    "/containers/{id}/rebind-network",
    "/containers/{id}/command",
    "/network/ports",
    "/network/ports/allocate",
    "/firewall/rules",
    "/auth/tokens",
];

/// What an answer that is no success means for its key, where it is not that nothing has happened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// It was done, and this is what came of it.
    Stands,
    /// It was done, and what comes of it is not known.
    Open,
}

impl Fate {
    /// Marks an answer with it.
    pub(super) fn of(self, mut response: Response) -> Response {
        response.extensions_mut().insert(self);
        response
    }
}

/// Requests with a key that are being done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Idempotency {
    tasks: TaskTracker,
    under_way: Arc<Mutex<HashSet<IdempotencyKey>>>,
}

/// One of them; it is over when this is dropped.
struct UnderWay {
    key: IdempotencyKey,
    all: Arc<Mutex<HashSet<IdempotencyKey>>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Idempotency {
    fn begin(&self, key: &IdempotencyKey) -> Option<UnderWay> {
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = all.insert(key.clone());
        is_new.then(|| UnderWay { key: key.clone(), all: Arc::clone(&self.under_way) })
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.tasks.len()
    }

    /// Waits until all that was begun is done.
    pub(crate) async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

pub(super) async fn idempotent(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let changes = ![Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    if !changes || !request.headers().contains_key(KEY) {
        return next.run(request).await;
    }
    let path = request.extensions().get::<MatchedPath>();
    let counts =
        request.method() == Method::POST && path.is_some_and(|path| KEYED.contains(&path.as_str()));
    let answer =
        if counts { once(&state, request, next).await } else { Err(refuse(&state, request).await) };
    answer.unwrap_or_else(IntoResponse::into_response)
}

/// Says that a key does not count here, to whoever may ask at all.
async fn refuse(state: &AppState, request: Request) -> ApiError {
    let (mut parts, _) = request.into_parts();
    match Auth::from_request_parts(&mut parts, state).await {
        Ok(_) => {
            let message = "this call takes no Idempotency-Key; without one it is done each time";
            ApiError::malformed("idempotency_unsupported", message)
        }
        Err(error) => error,
    }
}

async fn once(state: &AppState, request: Request, next: Next) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let auth = Auth::from_request_parts(&mut parts, state).await?;
    let key = IdempotencyKey { principal: auth.principal().name(), key: key_of(&parts.headers)? };
    // The handler has it from here: a token that is good once was used up by the look.
    parts.extensions.insert(auth);
    let mut request = Request::from_parts(parts, body);
    if parameters(request.uri().query()).any(|pair| pair == "dry_run=true") {
        // A trial uses no key up.
        return Ok(next.run(request).await);
    }
    let limit = BodyLimit::from_ref(state).bytes;
    let body = {
        let headers = request.headers().clone();
        let mut whole = Request::new(std::mem::take(request.body_mut()));
        *whole.headers_mut() = headers;
        read_body(whole, limit).await?
    };
    let fingerprint = fingerprint(request.uri().path(), request.uri().query(), &body);
    *request.body_mut() = Body::from(body);
    let under_way = state.idempotency.begin(&key).ok_or_else(|| {
        let message = "a request with this Idempotency-Key is being done";
        ApiError::conflict("idempotency_in_progress", message)
    })?;
    let (answered, answer) = oneshot::channel();
    let task_state = state.clone();
    // With the note that it is begun: a sender who leaves in between would leave a key that is used up by
    // nothing.
    state.idempotency.tasks.spawn(async move {
        let response = begin(&task_state, &key, fingerprint, request, next).await;
        drop(under_way);
        // Whoever waits for it may be gone.
        answered.send(response).ok();
    });
    let ended = |_| ApiError::internal("a request with a key ended without an answer");
    answer.await.map_err(ended)?
}

/// Does a request whose key is new; says what became of it otherwise.
async fn begin(
    state: &AppState,
    key: &IdempotencyKey,
    fingerprint: Vec<u8>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (begun, now) = (key.clone(), UnixSeconds::now());
    let begin = move |tx: &crate::store::Tx<'_>| tx.begin_idempotent(&begun, &fingerprint, now);
    let wait = wait_of(request.uri().query());
    match state.store.write("begin a request", begin).await? {
        Known::New => {
            let response = next.run(request).await;
            Ok(keep(state, key, response).await)
        }
        Known::Differs => Err(ApiError::idempotency_key_reused()),
        Known::Unfinished => {
            let message = "nobody knows what became of the first request with this Idempotency-Key; \
                           look whether it was done, and send it with another key if it was not";
            Err(ApiError::conflict("idempotency_unknown", message))
        }
        Known::Answered { status, answer_sealed } => {
            let mut response = match open(state, key, &answer_sealed)? {
                Kept { awaited: Some(awaited), answer } if wait.is_some() || answer.is_late() => {
                    let patience = wait.unwrap_or(Duration::ZERO);
                    keep(state, key, awaited.look_again(state, patience).await).await
                }
                Kept { answer, .. } => replay(status, answer)?,
            };
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
    }
}

fn key_of(headers: &HeaderMap) -> Result<String, ApiError> {
    let text = headers.get(KEY).and_then(|key| key.to_str().ok()).map(str::trim);
    text.filter(|key| (1..=KEY_MAX_BYTES).contains(&key.len()))
        .map(str::to_owned)
        .ok_or_else(|| ApiError::field("Idempotency-Key", "must have 1 to 255 plain characters"))
}

fn parameters(query: Option<&str>) -> impl Iterator<Item = &str> {
    query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty())
}

/// What makes two requests the same. How long the answer may take is not in it.
fn fingerprint(path: &str, query: Option<&str>, body: &[u8]) -> Vec<u8> {
    let query: Vec<&str> = parameters(query).filter(|pair| !pair.starts_with("wait=")).collect();
    let mut hash = Sha256::new();
    for part in [path.as_bytes(), query.join("&").as_bytes(), body] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

fn wait_of(query: Option<&str>) -> Option<Duration> {
    let wait = parameters(query).find_map(|pair| pair.strip_prefix("wait="));
    wait.and_then(|text| Span::parse(text).ok()).map(|Span(wait)| wait.min(WAIT_MAX))
}

/// Stores a success, and what else stands; lets anything else be tried again.
async fn keep(state: &AppState, key: &IdempotencyKey, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let awaited = parts.extensions.remove::<Awaited>();
    let fate = parts.extensions.get::<Fate>();
    let (outcome, body) = if let Some(Fate::Open) = fate {
        (Ok(()), body)
    } else if parts.status.is_success() || fate.is_some() {
        // It was made here as a whole.
        match body.collect().await {
            Ok(whole) => {
                let bytes = whole.to_bytes();
                (store(state, key, parts.status, &bytes, awaited).await, Body::from(bytes))
            }
            // It was done all the same.
            Err(error) => return ApiError::internal(error).into_response(),
        }
    } else {
        (forget(state, key).await, body)
    };
    if let Err(error) = outcome {
        // What was answered stands; a second request will be told that the end is not known.
        tracing::warn!(error = error.cause(), "the answer to a request with a key is not stored");
    }
    Response::from_parts(parts, body)
}

async fn store(
    state: &AppState,
    key: &IdempotencyKey,
    status: StatusCode,
    body: &Bytes,
    awaited: Option<Awaited>,
) -> Result<(), ApiError> {
    let plain = kept(body, awaited).ok_or_else(|| ApiError::internal("it is too long"))?;
    let (sealer_state, aad) = (state.clone(), context(key));
    let seal = move || sealer_state.supervisor.services().sealer.seal(&aad, &plain);
    let sealed = tokio::task::spawn_blocking(seal).await.map_err(ApiError::internal)?;
    let sealed = sealed.map_err(ApiError::internal)?;
    let (key, status) = (key.clone(), status.as_u16());
    let write = move |tx: &crate::store::Tx<'_>| tx.answer_idempotent(&key, status, &sealed);
    Ok(state.store.write("keep an answer", write).await?)
}

/// What is kept of an answer: all of it, or what is left without the container, whose script alone may be
/// longer than that and which anybody can look at who may have the answer.
fn kept(body: &Bytes, awaited: Option<Awaited>) -> Option<Bytes> {
    if let Some(awaited) = awaited {
        let answer = serde_json::from_slice(body).ok()?;
        let kept = Kept { awaited: Some(awaited), answer: Answer::Read(answer) };
        let kept = serde_json::to_vec(&kept).ok()?;
        return (kept.len() <= ANSWER_MAX_BYTES).then(|| kept.into());
    }
    if body.len() <= ANSWER_MAX_BYTES {
        return Some(body.clone());
    }
    let mut answer: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(body).ok()?;
    answer.remove("container")?;
    let rest = serde_json::to_vec(&answer).ok()?;
    (rest.len() <= ANSWER_MAX_BYTES).then(|| rest.into())
}

async fn forget(state: &AppState, key: &IdempotencyKey) -> Result<(), ApiError> {
    let key = key.clone();
    let write = move |tx: &crate::store::Tx<'_>| tx.forget_idempotent(&key);
    Ok::<(), StoreError>(state.store.write("forget a request", write).await?)
        .map_err(ApiError::from)
}

/// A sealed answer opens for its own key only.
fn context(key: &IdempotencyKey) -> Vec<u8> {
    format!("idempotency {} {}", key.principal, key.key).into_bytes()
}

/// An answer as it is stored: by itself, or beside what it leaves open.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    awaited: Option<Awaited>,
    answer: Answer,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    Read(Value),
    #[serde(skip)]
    Bytes(Vec<u8>),
}

impl Answer {
    /// It was waited for, in vain: whoever asks again gets a look at least, however he asks.
    fn is_late(&self) -> bool {
        matches!(self, Self::Read(answer) if answer.get("done").is_some())
    }
}

fn open(state: &AppState, key: &IdempotencyKey, sealed: &[u8]) -> Result<Kept, ApiError> {
    let opened = state.supervisor.services().sealer.open(&context(key), sealed);
    let bytes = opened.map_err(ApiError::internal)?;
    // No answer of the API has fields of these names.
    let beside = serde_json::from_slice::<Kept>(&bytes).ok().filter(|kept| kept.awaited.is_some());
    Ok(beside.unwrap_or(Kept { awaited: None, answer: Answer::Bytes(bytes) }))
}

fn replay(status: u16, answer: Answer) -> Result<Response, ApiError> {
    let status = StatusCode::from_u16(status).map_err(ApiError::internal)?;
    let body = match answer {
        Answer::Read(answer) => return Ok((status, axum::Json(answer)).into_response()),
        Answer::Bytes(body) => body,
    };
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((status, kind, body).into_response())
}
