//! Updates that the panel has not taken: looked at, sent again, dropped.
//!
//! What is changed here the panel's link finds in the store. An update that is being sent at that moment may
//! still arrive.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::store::outbox::{OutboxEntry, OutboxFilter};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/remote/outbox", get(list).delete(drop_parked))
        .route("/remote/outbox/retry", post(retry_all))
        .route("/remote/outbox/{sequence}", get(show).delete(drop_one))
        .route("/remote/outbox/{sequence}/retry", post(retry))
}

const LIST_MAX: usize = 1000;
const LIST_DEFAULT: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum UpdateState {
    /// To be sent, now or later.
    Waiting,
    /// Refused by the panel for good.
    Parked,
}

/// Which updates are listed.
#[derive(Debug, Deserialize)]
struct ListQuery {
    state: Option<String>,
    server: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// An update that the panel has not taken.
#[derive(Debug, Serialize)]
struct UpdateView {
    /// Its place in the outbox, and its name in these calls.
    sequence: i64,
    server: ContainerId,
    /// As in the header `X-Lightd-Sequence`.
    server_sequence: i64,
    /// As in the header `X-Lightd-Delivery`.
    delivery: Uuid,
    state: UpdateState,
    /// What is sent.
    body: serde_json::Value,
    created_at: UnixSeconds,
    /// How often it was tried in vain.
    attempts: u32,
    /// Why the latest attempt failed, or why the panel refused it.
    error: Option<String>,
    /// When the first that waits of its server is sent.
    next_attempt_at: Option<UnixSeconds>,
    parked_at: Option<UnixSeconds>,
}

impl From<OutboxEntry> for UpdateView {
    fn from(entry: OutboxEntry) -> Self {
        let OutboxEntry { row, created_at, last_error, due_at, parked } = entry;
        let state = if parked.is_some() { UpdateState::Parked } else { UpdateState::Waiting };
        let parked_at = parked.as_ref().and_then(|parked| parked.at);
        Self {
            sequence: row.sequence,
            server: row.server,
            server_sequence: row.server_sequence,
            delivery: row.delivery,
            state,
            body: serde_json::from_str(&row.body_json).unwrap_or_default(),
            created_at,
            attempts: row.attempts,
            error: parked.map(|parked| parked.reason).or(last_error),
            // Nothing has to be waited for where it was not tried yet.
            next_attempt_at: due_at.filter(|at| at.0 > 0),
            parked_at,
        }
    }
}

#[derive(Debug, Serialize)]
struct ListView {
    updates: Vec<UpdateView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    next_cursor: Option<String>,
}

/// Updates in the order in which they were written.
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<Json<ListView>, ApiError> {
    auth.require(Permission::Node)?;
    let limit = query.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(ApiError::field("?limit", format!("must be between 1 and {LIST_MAX}")));
    }
    let filter = OutboxFilter {
        is_parked: query.state.as_deref().map(is_parked).transpose()?,
        server: read_server(query.server)?,
        after: query.cursor.as_deref().map(read_cursor).transpose()?,
    };
    // One more than asked for says that there is another page.
    let look = state.store.read("list the outbox", move |rx| rx.outbox(&filter, limit + 1));
    let mut found = look.await?;
    let is_more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| is_more);
    let next_cursor = last.map(|entry| entry.row.sequence.to_string());
    Ok(Json(ListView { updates: found.into_iter().map(UpdateView::from).collect(), next_cursor }))
}

fn is_parked(state: &str) -> Result<bool, ApiError> {
    match state {
        "parked" => Ok(true),
        "waiting" => Ok(false),
        _ => Err(ApiError::field("?state", "must be waiting or parked")),
    }
}

fn read_server(server: Option<String>) -> Result<Option<ContainerId>, ApiError> {
    let read = |text: String| ContainerId::parse(&text);
    server.map(read).transpose().map_err(|why| ApiError::field("?server", why.to_string()))
}

fn read_cursor(cursor: &str) -> Result<i64, ApiError> {
    let message = "the cursor is not from an earlier page";
    cursor.parse().map_err(|_| ApiError::malformed("invalid_cursor", message))
}

async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(sequence): Path<i64>,
) -> Result<Json<UpdateView>, ApiError> {
    auth.require(Permission::Node)?;
    let look = state.store.read("look up an update", move |rx| rx.outbox_entry(sequence));
    Ok(Json(look.await?.into()))
}

#[derive(Debug, Serialize)]
struct OneView {
    message: &'static str,
    sequence: i64,
}

/// Sends an update as soon as it can be: a parked one before those of its server that were written later.
async fn retry(
    auth: Auth,
    State(state): State<AppState>,
    Path(sequence): Path<i64>,
) -> Result<Json<OneView>, ApiError> {
    auth.require(Permission::Node)?;
    state.store.write("retry an update", move |tx| tx.retry_update(sequence)).await?;
    tracing::info!(sequence, by = ?auth.principal(), "an update for the panel is sent again on request");
    Ok(Json(OneView { message: "Update will be sent again", sequence }))
}

/// Which server's updates are meant; without it all.
#[derive(Debug, Deserialize)]
struct RetryQuery {
    server: Option<String>,
}

#[derive(Debug, Serialize)]
struct RetriedView {
    message: &'static str,
    retried: u64,
}

/// Sends all updates as soon as it can be, parked ones as well.
async fn retry_all(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<RetryQuery>,
) -> Result<Json<RetriedView>, ApiError> {
    auth.require(Permission::Node)?;
    let server = read_server(query.server)?;
    let retry = move |tx: &crate::store::Tx<'_>| tx.retry_updates(server.as_ref());
    let retried = state.store.write("retry updates", retry).await?;
    tracing::info!(retried, by = ?auth.principal(), "updates for the panel are sent again on request");
    Ok(Json(RetriedView { message: "Updates will be sent again", retried }))
}

/// Forgets an update, parked or not: the panel will not hear of it.
async fn drop_one(
    auth: Auth,
    State(state): State<AppState>,
    Path(sequence): Path<i64>,
) -> Result<Json<OneView>, ApiError> {
    auth.require(Permission::Node)?;
    state.store.write("drop an update", move |tx| tx.drop_update(sequence)).await?;
    tracing::warn!(sequence, by = ?auth.principal(), "an update for the panel was dropped on request");
    Ok(Json(OneView { message: "Update dropped", sequence }))
}

#[derive(Debug, Deserialize)]
struct DropQuery {
    /// Must be `parked`: what waits can be dropped one by one.
    state: Option<String>,
    server: Option<String>,
}

#[derive(Debug, Serialize)]
struct DroppedView {
    message: &'static str,
    dropped: u64,
}

/// Forgets what is parked.
async fn drop_parked(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<DropQuery>,
) -> Result<Json<DroppedView>, ApiError> {
    auth.require(Permission::Node)?;
    if query.state.as_deref() != Some("parked") {
        let message = "must be parked; what waits can be dropped one by one";
        return Err(ApiError::field("?state", message));
    }
    let server = read_server(query.server)?;
    let drop = move |tx: &crate::store::Tx<'_>| tx.drop_parked(server.as_ref());
    let dropped = state.store.write("drop parked updates", drop).await?;
    tracing::warn!(dropped, by = ?auth.principal(), "parked updates for the panel were dropped on request");
    Ok(Json(DroppedView { message: "Parked updates dropped", dropped }))
}
