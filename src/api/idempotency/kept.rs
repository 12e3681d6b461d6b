//! What is stored of an answer, encrypted: all of it, and what it leaves open or what came of that.
//!
//! A first answer that was not waited for stays the first answer; what came of the wish lies beside it, for
//! who asks for that. One that was waited for in vain gives its place to what came.

use axum::body::{Body, Bytes};
use axum::http::response::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Fate;
use crate::api::error::ApiError;
use crate::api::native::Awaited;
use crate::api::state::AppState;
use crate::store::StoreError;
use crate::store::idempotency::IdempotencyKey;

const ANSWER_MAX_BYTES: usize = 1 << 20;

/// An answer that is there as a whole, and may be given to several.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    parts: Parts,
    body: Bytes,
}

impl Whole {
    /// Answers are made here as a whole.
    pub(super) async fn of(response: Response) -> Result<Self, ApiError> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(ApiError::internal)?.to_bytes();
        Ok(Self { parts, body })
    }

    fn stored(status: u16, body: Bytes) -> Result<Self, ApiError> {
        let status = StatusCode::from_u16(status).map_err(ApiError::internal)?;
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let (parts, ()) = (status, kind, ()).into_response().map(drop).into_parts();
        Ok(Self { parts, body })
    }

    fn fate(&self) -> Option<Fate> {
        self.parts.extensions.get().copied()
    }

    fn is_late(&self) -> bool {
        serde_json::from_slice(&self.body).is_ok_and(|answer| is_late(&answer))
    }
}

impl IntoResponse for Whole {
    fn into_response(self) -> Response {
        Response::from_parts(self.parts, Body::from(self.body))
    }
}

/// It was waited for, in vain: whoever asks again gets a look at least, however he asks.
fn is_late(answer: &Value) -> bool {
    answer.get("done").is_some()
}

/// An answer beside what it leaves open, or what came of that. Any other is stored by itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Beside {
    answer: Value,
    awaited: Option<Awaited>,
    #[serde(default)]
    came: Option<(u16, Value)>,
}

/// What a key has kept.
pub(super) enum Kept {
    Alone(Bytes),
    Beside(Box<Beside>),
}

impl Kept {
    /// What to tell who asks again, and what that leaves open for him.
    pub(super) fn told(
        self,
        status: u16,
        is_awaited: bool,
    ) -> Result<(Whole, Option<Awaited>), ApiError> {
        let beside = match self {
            Self::Alone(body) => return Ok((Whole::stored(status, body)?, None)),
            Self::Beside(beside) => *beside,
        };
        let wants = is_awaited || is_late(&beside.answer);
        let (status, answer) = beside.came.filter(|_| wants).unwrap_or((status, beside.answer));
        let body = serde_json::to_vec(&answer).map_err(ApiError::internal)?;
        Ok((Whole::stored(status, body.into())?, beside.awaited.filter(|_| wants)))
    }
}

/// Stores a success, and what else stands; lets anything else be tried again.
pub(super) async fn keep(
    state: &AppState,
    key: &IdempotencyKey,
    answer: &Whole,
    awaited: Option<&Awaited>,
) {
    let stands = answer.parts.status.is_success() || answer.fate().is_some();
    let outcome = match (answer.fate(), awaited) {
        (Some(Fate::Open), _) => return,
        _ if !stands => forget(state, key).await,
        (_, None) => store(state, key, answer.parts.status, alone(&answer.body)).await,
        (_, Some(awaited)) => {
            let plain = beside(&answer.body, Some(awaited), None);
            store(state, key, answer.parts.status, plain).await
        }
    };
    tell(outcome);
}

/// Stores what came of the wish that the first answer has left open, unless that is not known.
pub(super) async fn keep_end(state: &AppState, key: &IdempotencyKey, first: &Whole, came: &Whole) {
    let is_open = came.parts.extensions.get::<Awaited>().is_some();
    let stands = came.parts.status.is_success() || matches!(came.fate(), Some(Fate::Stands));
    if is_open || !stands {
        return;
    }
    tell(if first.is_late() {
        store(state, key, came.parts.status, alone(&came.body)).await
    } else {
        store(state, key, first.parts.status, beside(&first.body, None, Some(came))).await
    });
}

fn tell(outcome: Result<(), ApiError>) {
    if let Err(error) = outcome {
        // What was answered stands; a second request will be told that the end is not known.
        tracing::warn!(error = error.cause(), "the answer to a request with a key is not stored");
    }
}

/// All of an answer, or what is left without the container, whose script alone may be longer than that and
/// which anybody can look at who may have the answer.
fn alone(body: &Bytes) -> Option<Bytes> {
    if body.len() <= ANSWER_MAX_BYTES {
        return Some(body.clone());
    }
    let mut answer: Map<String, Value> = serde_json::from_slice(body).ok()?;
    answer.remove("container")?;
    let rest = serde_json::to_vec(&answer).ok()?;
    (rest.len() <= ANSWER_MAX_BYTES).then(|| rest.into())
}

fn beside(first: &Bytes, awaited: Option<&Awaited>, came: Option<&Whole>) -> Option<Bytes> {
    let came = match came {
        Some(came) => {
            let answer = serde_json::from_slice(&alone(&came.body)?).ok()?;
            Some((came.parts.status.as_u16(), answer))
        }
        None => None,
    };
    let answer = serde_json::from_slice(first).ok()?;
    let beside = Beside { answer, awaited: awaited.cloned(), came };
    serde_json::to_vec(&beside).ok().map(Bytes::from)
}

async fn store(
    state: &AppState,
    key: &IdempotencyKey,
    status: StatusCode,
    plain: Option<Bytes>,
) -> Result<(), ApiError> {
    let plain = plain.ok_or_else(|| ApiError::internal("it is too long"))?;
    let (sealer_state, aad) = (state.clone(), context(key));
    let seal = move || sealer_state.supervisor.services().sealer.seal(&aad, &plain);
    let sealed = tokio::task::spawn_blocking(seal).await.map_err(ApiError::internal)?;
    let sealed = sealed.map_err(ApiError::internal)?;
    let (key, status) = (key.clone(), status.as_u16());
    let write = move |tx: &crate::store::Tx<'_>| tx.answer_idempotent(&key, status, &sealed);
    Ok(state.store.write("keep an answer", write).await?)
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

pub(super) fn open(
    state: &AppState,
    key: &IdempotencyKey,
    sealed: &[u8],
) -> Result<Kept, ApiError> {
    let opened = state.supervisor.services().sealer.open(&context(key), sealed);
    let bytes = opened.map_err(ApiError::internal)?;
    // No answer of the API has fields of these names.
    Ok(match serde_json::from_slice::<Beside>(&bytes) {
        Ok(beside) => Kept::Beside(Box::new(beside)),
        Err(_) => Kept::Alone(bytes.into()),
    })
}
