//! Updates that the panel has not taken: looked at, sent again, dropped.
//!
//! What is changed here the panel's link finds in the store. An update that is being sent at that moment may
//! still arrive.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

use super::paging;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::audit::{Act, Action};
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::store::outbox::{OutboxEntry, OutboxFilter};
use crate::store::{StoreError, Tx};

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(list_updates, drop_parked))
        .routes(routes!(retry_updates))
        .routes(routes!(show_update, drop_update))
        .routes(routes!(retry_update))
}

const LIST_DEFAULT: usize = 200;

/// `waiting` to be sent, now or later, or `parked`: refused by the panel for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum UpdateState {
    Waiting,
    Parked,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only those in this state.
    #[param(value_type = Option<UpdateState>)]
    state: Option<String>,
    /// Only those of this server.
    #[param(value_type = Option<ContainerId>)]
    server: Option<String>,
    /// So many at most; 200 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// An update that the panel has not taken.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PanelUpdate)]
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
    #[schema(value_type = Object, example = json!({"event": "update", "server": "server-001", "status": "ready"}))]
    body: serde_json::Value,
    created_at: UnixSeconds,
    /// How often it was tried in vain.
    attempts: u32,
    /// Why the latest attempt failed, or why the panel refused it.
    #[schema(required, example = "the panel answers 503")]
    error: Option<String>,
    /// When the first that waits of its server is sent; `null` for now, and for parked ones.
    #[schema(required)]
    next_attempt_at: Option<UnixSeconds>,
    #[schema(required)]
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

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PanelUpdates)]
struct ListView {
    updates: Vec<UpdateView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

refusals!(ListRefusals: ; 400: "invalid_cursor");

/// Lists the updates that the panel has not taken, in the order in which they were written.
#[utoipa::path(
    get, path = "/remote/outbox", tag = "remote",
    params(ListQuery),
    responses((status = 200, description = "A page of them", body = ListView), ListRefusals),
)]
async fn list_updates(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<Json<ListView>, ApiError> {
    auth.require(Permission::Node)?;
    let limit = paging::limit_within(query.limit, LIST_DEFAULT, paging::LIST_MAX)?;
    let filter = OutboxFilter {
        is_parked: query.state.as_deref().map(is_parked).transpose()?,
        server: read_server(query.server)?,
        after: paging::cursor(query.cursor.as_deref(), |text| text.parse().ok())?,
    };
    // One more than asked for says that there is another page.
    let look = state.store.read("list the outbox", move |rx| rx.outbox(&filter, limit + 1));
    let (shown, next_cursor) =
        paging::page(look.await?, limit, |last| last.row.sequence.to_string());
    Ok(Json(ListView { updates: shown.into_iter().map(UpdateView::from).collect(), next_cursor }))
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

refusals!(NamedRefusals: ; 404: "not_found");

/// Shows an update that the panel has not taken.
#[utoipa::path(
    get, path = "/remote/outbox/{sequence}", tag = "remote",
    params(("sequence" = i64, Path, description = "Of the update")),
    responses((status = 200, description = "The update", body = UpdateView), NamedRefusals),
)]
async fn show_update(
    auth: Auth,
    State(state): State<AppState>,
    Path(sequence): Path<i64>,
) -> Result<Json<UpdateView>, ApiError> {
    auth.require(Permission::Node)?;
    let look = state.store.read("look up an update", move |rx| rx.outbox_entry(sequence));
    Ok(Json(look.await?.into()))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UpdateChanged)]
struct OneView {
    #[schema(example = "Update will be sent again")]
    message: &'static str,
    sequence: i64,
}

/// Sends an update as soon as it can be.
///
/// A parked one comes back in its place: before those of its server that were written later. Of one that waits the first of its
/// server is sent.
#[utoipa::path(
    post, path = "/remote/outbox/{sequence}/retry", tag = "remote",
    params(("sequence" = i64, Path, description = "Of the update")),
    responses((status = 200, description = "It waits to be sent", body = OneView), NamedRefusals),
)]
async fn retry_update(
    auth: Auth,
    State(state): State<AppState>,
    Path(sequence): Path<i64>,
) -> Result<Json<OneView>, ApiError> {
    auth.require(Permission::Node)?;
    let act = Act::new(auth.actor(), Action::OutboxRetry).with("sequence", sequence);
    let retry = move |tx: &Tx<'_>| {
        let server = tx.retry_update(sequence)?;
        tx.record(&act.on(&server), UnixSeconds::now())
    };
    state.store.write("retry an update", retry).await?;
    tracing::info!(sequence, by = ?auth.principal(), "an update for the panel is sent again on request");
    Ok(Json(OneView { message: "Update will be sent again", sequence }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RetryQuery {
    /// Only those of this server.
    #[param(value_type = Option<ContainerId>)]
    server: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UpdatesRetried)]
struct RetriedView {
    #[schema(example = "Updates will be sent again")]
    message: &'static str,
    retried: u64,
}

/// Sends all updates as soon as it can be, parked ones as well.
#[utoipa::path(
    post, path = "/remote/outbox/retry", tag = "remote",
    params(RetryQuery),
    responses((status = 200, description = "They wait to be sent", body = RetriedView)),
)]
async fn retry_updates(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<RetryQuery>,
) -> Result<Json<RetriedView>, ApiError> {
    auth.require(Permission::Node)?;
    let server = read_server(query.server)?;
    let act = Act::new(auth.actor(), Action::OutboxRetry);
    let retry = move |tx: &Tx<'_>| {
        let retried = tx.retry_updates(server.as_ref())?;
        record_all(tx, act, server.as_ref(), retried)
    };
    let retried = state.store.write("retry updates", retry).await?;
    tracing::info!(retried, by = ?auth.principal(), "updates for the panel are sent again on request");
    Ok(Json(RetriedView { message: "Updates will be sent again", retried }))
}

/// Forgets an update, parked or not: the panel will not hear of it.
#[utoipa::path(
    delete, path = "/remote/outbox/{sequence}", tag = "remote",
    params(("sequence" = i64, Path, description = "Of the update")),
    responses((status = 200, description = "It is gone", body = OneView), NamedRefusals),
)]
async fn drop_update(
    auth: Auth,
    State(state): State<AppState>,
    Path(sequence): Path<i64>,
) -> Result<Json<OneView>, ApiError> {
    auth.require(Permission::Node)?;
    let act = Act::new(auth.actor(), Action::OutboxDrop).with("sequence", sequence);
    let drop = move |tx: &Tx<'_>| {
        let server = tx.drop_update(sequence)?;
        tx.record(&act.on(&server), UnixSeconds::now())
    };
    state.store.write("drop an update", drop).await?;
    tracing::warn!(sequence, by = ?auth.principal(), "an update for the panel was dropped on request");
    Ok(Json(OneView { message: "Update dropped", sequence }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DropQuery {
    /// Must be `parked`: what waits can be dropped one by one.
    #[param(required = true, value_type = UpdateState)]
    state: Option<String>,
    /// Only those of this server.
    #[param(value_type = Option<ContainerId>)]
    server: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UpdatesDropped)]
struct DroppedView {
    #[schema(example = "Parked updates dropped")]
    message: &'static str,
    dropped: u64,
}

/// Forgets what is parked.
#[utoipa::path(
    delete, path = "/remote/outbox", tag = "remote",
    params(DropQuery),
    responses((status = 200, description = "They are gone", body = DroppedView)),
)]
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
    let act = Act::new(auth.actor(), Action::OutboxDrop);
    let drop = move |tx: &Tx<'_>| {
        let dropped = tx.drop_parked(server.as_ref())?;
        record_all(tx, act, server.as_ref(), dropped)
    };
    let dropped = state.store.write("drop parked updates", drop).await?;
    tracing::warn!(dropped, by = ?auth.principal(), "parked updates for the panel were dropped on request");
    Ok(Json(DroppedView { message: "Parked updates dropped", dropped }))
}

/// Writes down what was done to so many updates, if to any. Answers how many.
fn record_all(
    tx: &Tx<'_>,
    act: Act,
    server: Option<&ContainerId>,
    count: u64,
) -> Result<u64, StoreError> {
    if count > 0 {
        let act = Act { container: server.cloned(), count, ..act };
        tx.record(&act, UnixSeconds::now())?;
    }
    Ok(count)
}
