//! `GET /containers/{id}/events`: what a WebSocket would send, where a proxy lets none through.
//!
//! A `text/event-stream` of the same JSON events, held to the same rights, caps and ends. Each event that
//! moves the reader on in the console carries that place as its `id`, and a browser that reconnects sends
//! it back by itself: it goes on there, without a gap and without a repeat. Why a stream ended is its last
//! event; a browser comes back, and is then refused with a status.
//!
//! The stream is pulled: one that is not read costs its place among the sockets and nothing else, and
//! that only until its connection is given up, as every one is whose client takes nothing.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::feed::{Feed, Frame};
use super::frame::{Outbound, ServerFrame};
use super::wire::End;
use super::{ConnectQuery, Ticket, visible};
use crate::access::Grant;
use crate::api::auth::StayingAuth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::params::ContainerPath;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::console::Mark;
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::{Denied, Phase};

/// Proxies cut what is silent; some after half a minute.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How soon a browser comes back.
const RETRY_MS: u32 = 1000;
const LAST_EVENT_ID: &str = "last-event-id";

refusals!(StreamRefusals: CONTAINER; 400: "invalid"; 409: "suspended"; 429: "too_many_sockets");

/// What a socket would send, as an event stream, for where no WebSocket gets through.
///
/// Each event's data is a `ServerFrame`. Its `id` is a place in the console, which a browser brings back by itself.
#[utoipa::path(
    get, path = "/containers/{id}/events", tag = "live",
    security(("token" = []), ("token_in_address" = [])),
    params(
        ContainerPath, ConnectQuery,
        ("Last-Event-ID" = Option<Mark>, Header, description = "The `id` of the last event that the caller has"),
    ),
    responses(
        (status = 200, description = "It goes on until the container, the token or lightd ends", body = ServerFrame, content_type = "text/event-stream"),
        StreamRefusals,
    ),
)]
pub(super) async fn stream(
    StayingAuth { auth, grant }: StayingAuth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<ConnectQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let handle = visible(&auth, &state, &id)?;
    let wants = query.subscription()?;
    let since = last_event_id(&headers)?.or(query.since);
    if matches!(handle.snapshot().phase, Phase::Suspended { .. }) {
        // A stream that ended at once would be asked for again and again.
        return Err(Denied::Suspended.into());
    }
    let ticket = state.sockets.enter(&id, state.config.current().sockets)?;
    let any_origin = state.access.allowed_origins().is_empty();
    let stop = state.stop.clone();
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let feed = Feed::new(state, handle, &auth, wants, since);
    let events = Events { feed, grant, stop, heartbeat, began: false, _ticket: ticket };
    let body = futures_util::stream::unfold(Some(events), |events| async move {
        let mut events = events?;
        let (bytes, goes_on) = events.next().await;
        Some((Ok::<_, Infallible>(bytes), goes_on.then_some(events)))
    });
    let mut response = Body::from_stream(body).into_response();
    let fixed = HeaderValue::from_static;
    let set = response.headers_mut();
    set.insert(header::CONTENT_TYPE, fixed("text/event-stream"));
    set.insert(header::CACHE_CONTROL, fixed("no-cache, no-transform"));
    set.insert("x-accel-buffering", fixed("no"));
    if any_origin {
        // As a socket, it brings its own token and rides on nothing that a browser adds.
        set.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, fixed("*"));
    }
    Ok(response)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Mark>, ApiError> {
    let Some(text) = headers.get(LAST_EVENT_ID).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let mark = text.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || ApiError::field("Last-Event-ID", "must be the id of an event of this stream");
    mark.map(Some).ok_or_else(wrong)
}

struct Events {
    feed: Feed,
    grant: Grant,
    stop: CancellationToken,
    heartbeat: Interval,
    began: bool,
    _ticket: Ticket,
}

impl Events {
    /// The next bytes, and whether more will follow.
    async fn next(&mut self) -> (Bytes, bool) {
        if !std::mem::replace(&mut self.began, true) {
            // No event, but a browser keeps the id: cut off before the first line, it comes back to here.
            return (beginning(self.feed.mark()), true);
        }
        let frame = tokio::select! {
            // First what ends the stream: it may have waited for a slow reader.
            biased;
            () = self.stop.cancelled() => Err(End::Stopping),
            why = self.grant.ended() => Err(End::of(why)),
            frame = self.feed.next() => frame,
            _ = self.heartbeat.tick() => return (Bytes::from_static(b":\n\n"), true),
        };
        match frame {
            Ok(Frame { text, mark }) => (event(&text, mark), true),
            Err(end) => {
                let (code, data) = end.event();
                (event(&Outbound::Error { data, code, id: None }.text(), None), false)
            }
        }
    }
}

fn beginning(mark: Option<Mark>) -> Bytes {
    let id = mark.map(|mark| format!("id: {mark}\n")).unwrap_or_default();
    format!("retry: {RETRY_MS}\n{id}\n").into()
}

/// JSON has no line feeds outside of strings and writes those in strings as `\n`, so one `data` line it is.
fn event(text: &str, mark: Option<Mark>) -> Bytes {
    let id = mark.map(|mark| format!("id: {mark}\n")).unwrap_or_default();
    [&id, "data: ", text, "\n\n"].concat().into()
}
