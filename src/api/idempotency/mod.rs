//! Requests that a caller may send again: `Idempotency-Key` on what makes something, and on wishes.
//!
//! The first request with a key is done and its answer kept for a day, encrypted, because an issued
//! token stands in its own; the same request gets that answer again, another one with the same key is
//! refused (422), and one that comes while the first is being done as well (409). A refusal is not kept:
//! nothing has happened, and the request may be sent again. A key belongs to who sent it.
//!
//! A wish is taken on and answered at once, whatever its sender's patience; the task that has taken it on
//! watches it to its end and stores what came of it, by the key and not by what others wish later. Whoever
//! waits for it, the first sender or one who asks again, waits beside that: how long is his own matter each
//! time, and when he goes away his wait goes with him. What a restart has interrupted is taken up by the next
//! one who asks; then a failure is told and not kept, because it may be what a later wish has led to.
//!
//! Where a key does not count, one is refused: who sends it believes himself safe.
//!
//! The request goes on to its end when its sender goes away: whoever asks again shall find out what
//! became of it. One that lightd died in has an unknown end, and is not done a second time.

mod kept;
mod watched;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRef, FromRequestParts, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use self::kept::Whole;
use self::watched::{End, Watched};
use super::auth::Auth;
use super::error::ApiError;
use super::extract::{BodyLimit, read_body};
use super::layers;
use super::native::Awaited;
use super::state::AppState;
use crate::domain::units::UnixSeconds;
use crate::store::idempotency::{IdempotencyKey, Known};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const KEY_MAX_BYTES: usize = 255;
/// How long an open wish is watched: as long as its key counts.
const WATCHED_FOR: Duration = Duration::from_secs(24 * 3600);

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

/// Requests with a key that are being done, and wishes that are watched to their end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Idempotency {
    tasks: TaskTracker,
    under_way: Arc<Mutex<HashSet<IdempotencyKey>>>,
    watched: Watched,
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
    fn begin(&self, key: &IdempotencyKey) -> Result<UnderWay, ApiError> {
        if self.watched.is_full() {
            let message = "too many wishes with a key have not come to their end";
            return Err(ApiError::unavailable("busy", message));
        }
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if all.insert(key.clone()) {
            return Ok(UnderWay { key: key.clone(), all: Arc::clone(&self.under_way) });
        }
        let message = "a request with this Idempotency-Key is being done";
        Err(ApiError::conflict("idempotency_in_progress", message))
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
    let wait = layers::wait_of(request.uri())?;
    let fingerprint = fingerprint(request.uri().path(), request.uri().query(), &body);
    *request.body_mut() = Body::from(body);
    if wait.is_some() {
        *request.uri_mut() = without_patience(request.uri())?;
    }
    let under_way = state.idempotency.begin(&key)?;
    let (told, answer) = oneshot::channel();
    let task = Task { state: state.clone(), key, is_awaited: wait.is_some() };
    // With the note that it is begun: a sender who leaves in between would leave a key that is used up by
    // nothing.
    state.idempotency.tasks.spawn(task.run(under_way, fingerprint, request, next, told));
    let ended = |_| ApiError::internal("a request with a key ended without an answer");
    let told: Told = answer.await.map_err(ended)??;
    let is_replayed = told.is_replayed;
    let mut response = told.within(state, wait.unwrap_or_default()).await;
    if is_replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The same address for one who wants to be answered at once.
fn without_patience(uri: &Uri) -> Result<Uri, ApiError> {
    let at_once = |pair| if is_wait(pair) { "wait=0s" } else { pair };
    let query: Vec<&str> = parameters(uri.query()).map(at_once).collect();
    let mut parts = uri.clone().into_parts();
    let path = format!("{}?{}", uri.path(), query.join("&"));
    parts.path_and_query = Some(path.parse().map_err(ApiError::internal)?);
    Uri::from_parts(parts).map_err(ApiError::internal)
}

/// What a sender is told.
struct Told {
    is_replayed: bool,
    answer: Whole,
    /// What he waits for that the answer leaves open, and how he hears of its end.
    open: Option<(Awaited, End)>,
}

impl Told {
    /// What comes of it while he waits.
    async fn within(self, state: &AppState, patience: Duration) -> Response {
        let Some((awaited, mut end)) = self.open else { return self.answer.into_response() };
        let came = match tokio::time::timeout(patience, end.wait_for(Option::is_some)).await {
            Ok(Ok(came)) => came.clone().map(IntoResponse::into_response),
            // Whoever watched it is gone without a word.
            Ok(Err(_)) => None,
            Err(_) => awaited.late(state),
        };
        came.unwrap_or_else(|| self.answer.into_response())
    }
}

/// What is done for a request, whether its sender is there or not.
struct Task {
    state: AppState,
    key: IdempotencyKey,
    /// The sender wants to hear what comes of it.
    is_awaited: bool,
}

/// What there is to say at first.
enum Begun {
    Told(Told),
    /// It is open, and nobody watches it yet.
    Open {
        is_new: bool,
        answer: Whole,
        awaited: Awaited,
    },
}

impl Task {
    async fn run(
        self,
        under_way: UnderWay,
        fingerprint: Vec<u8>,
        request: Request,
        next: Next,
        told: oneshot::Sender<Result<Told, ApiError>>,
    ) {
        let begun = self.begin(fingerprint, request, next).await;
        let (is_new, answer, awaited) = match begun {
            Ok(Begun::Open { is_new, answer, awaited }) => (is_new, answer, awaited),
            Ok(Begun::Told(all)) => return end(under_way, told, Ok(all)),
            Err(error) => return end(under_way, told, Err(error)),
        };
        let Self { state, key, .. } = &self;
        let watch = state.idempotency.watched.watch(key);
        let tell = async {
            if is_new {
                kept::keep(state, key, &answer, Some(&awaited)).await;
            }
            let is_awaited = !is_new || self.is_awaited;
            let open = is_awaited.then(|| (awaited.clone(), watch.end()));
            let all = Told { is_replayed: !is_new, answer: answer.clone(), open };
            end(under_way, told, Ok(all));
        };
        // Watched before anybody knows of it who could wish something else.
        let (came, ()) = tokio::join!(awaited.look(state, WATCHED_FOR), tell);
        if let Ok(came) = Whole::of(came).await {
            kept::keep_end(state, key, &answer, &came).await;
            watch.ended(came);
        }
    }

    /// Does a request whose key is new; finds what is known of it otherwise.
    async fn begin(
        &self,
        fingerprint: Vec<u8>,
        request: Request,
        next: Next,
    ) -> Result<Begun, ApiError> {
        let Self { state, key, is_awaited } = self;
        // Before the store is asked: an end that comes in between is heard of.
        let watched = state.idempotency.watched.end_of(key);
        let (begun, now) = (key.clone(), UnixSeconds::now());
        let begin = move |tx: &crate::store::Tx<'_>| tx.begin_idempotent(&begun, &fingerprint, now);
        let (status, sealed) = match state.store.write("begin a request", begin).await? {
            Known::New => {
                let mut response = next.run(request).await;
                let awaited = response.extensions_mut().remove::<Awaited>();
                // It was done, whatever becomes of its answer.
                let answer = Whole::of(response).await?;
                let Some(awaited) = awaited else {
                    kept::keep(state, key, &answer, None).await;
                    return Ok(Begun::Told(Told { is_replayed: false, answer, open: None }));
                };
                return Ok(Begun::Open { is_new: true, answer, awaited });
            }
            Known::Differs => return Err(ApiError::idempotency_key_reused()),
            Known::Unfinished => {
                let message = "nobody knows what became of the first request with this Idempotency-Key; \
                               look whether it was done, and send it with another key if it was not";
                return Err(ApiError::conflict("idempotency_unknown", message));
            }
            Known::Answered { status, answer_sealed } => (status, answer_sealed),
        };
        let (answer, awaited) = kept::open(state, key, &sealed)?.told(status, *is_awaited)?;
        let told = |answer, open| Begun::Told(Told { is_replayed: true, answer, open });
        let Some(awaited) = awaited else { return Ok(told(answer, None)) };
        if let Some(end) = watched {
            return Ok(told(answer, Some((awaited, end))));
        }
        // A restart has interrupted it.
        let seen = awaited.look(state, Duration::ZERO).await;
        if seen.extensions().get::<Awaited>().is_some() {
            return Ok(Begun::Open { is_new: false, answer, awaited });
        }
        let came = Whole::of(seen).await?;
        kept::keep_end(state, key, &answer, &came).await;
        Ok(told(came, None))
    }
}

/// From here on the key may be sent again.
fn end(
    under_way: UnderWay,
    to: oneshot::Sender<Result<Told, ApiError>>,
    told: Result<Told, ApiError>,
) {
    drop(under_way);
    // Whoever waits for it may be gone.
    to.send(told).ok();
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

fn is_wait(pair: &str) -> bool {
    pair.starts_with("wait=")
}

/// What makes two requests the same. How long the answer may take is not in it.
fn fingerprint(path: &str, query: Option<&str>, body: &[u8]) -> Vec<u8> {
    let query: Vec<&str> = parameters(query).filter(|pair| !is_wait(pair)).collect();
    let mut hash = Sha256::new();
    for part in [path.as_bytes(), query.join("&").as_bytes(), body] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}
