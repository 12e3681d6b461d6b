//! The configuration and the panel's link, as a running daemon has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Path;
use crate::api::openapi::Routes;
use crate::api::openapi::mirrors;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::panel::{PanelReport, PanelStatus};
use crate::store::outbox::ParkedRow;

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(config))
        .routes(routes!(reload))
        .routes(routes!(status))
        .routes(routes!(parked))
        .routes(routes!(retry))
}

/// Shows the configuration that counts, with its secrets masked.
#[utoipa::path(
    get, path = "/remote/config", tag = "remote",
    responses((status = 200, description = "As in `config.example.json`", body = Object)),
)]
async fn config(
    auth: Auth,
    State(state): State<AppState>,
) -> Result<Json<serde_json::Value>, ApiError> {
    auth.require(Permission::Node)?;
    Ok(Json(state.config.current().masked()))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConfigReloaded)]
struct ReloadView {
    #[schema(example = "Configuration reloaded")]
    message: &'static str,
    /// Keys that changed and count already.
    #[schema(example = json!(["authorization.token"]))]
    applied: Vec<String>,
    /// Keys that changed and count from the next start on.
    #[schema(example = json!(["server.port"]))]
    needs_restart: Vec<String>,
}

refusals!(ReloadRefusals: ; 400: "invalid_config");

/// Reads the configuration file again.
///
/// What can count at once does; the rest is named. A file with a mistake changes nothing.
#[utoipa::path(
    post, path = "/remote/config/reload", tag = "remote",
    responses((status = 200, description = "It is read", body = ReloadView), ReloadRefusals),
)]
async fn reload(auth: Auth, State(state): State<AppState>) -> Result<Json<ReloadView>, ApiError> {
    auth.require(Permission::Node)?;
    let live = Arc::clone(&state.config);
    let reload = tokio::task::spawn_blocking(move || live.reload()).await;
    let changes = reload.map_err(ApiError::internal)??;
    tracing::info!(applied = ?changes.applied, waiting = ?changes.needs_restart, "configuration reloaded");
    Ok(Json(ReloadView {
        message: "Configuration reloaded",
        applied: changes.applied,
        needs_restart: changes.needs_restart,
    }))
}

/// How the link to the panel does.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RemoteStatus)]
struct StatusView {
    #[serde(flatten)]
    #[schema(value_type = mirrors::PanelStatus)]
    status: PanelStatus,
    outbox: OutboxView,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Outbox)]
struct OutboxView {
    /// Updates to be sent.
    waiting: u64,
    /// Refused by the panel for good.
    parked: u64,
    /// When the oldest of those that wait was made.
    #[schema(required)]
    oldest_at: Option<UnixSeconds>,
}

/// Shows how the link to the panel does.
#[utoipa::path(
    get, path = "/remote/status", tag = "remote",
    responses((status = 200, description = "Whether it answers, and what waits for it", body = StatusView)),
)]
async fn status(auth: Auth, State(state): State<AppState>) -> Result<Json<StatusView>, ApiError> {
    auth.require(Permission::Node)?;
    let PanelReport { status, outbox } = state.panel.report().await?;
    let outbox =
        OutboxView { waiting: outbox.waiting, parked: outbox.parked, oldest_at: outbox.oldest_at };
    Ok(Json(StatusView { status, outbox }))
}

/// An update that the panel has refused for good.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ParkedUpdate)]
struct ParkedView {
    sequence: i64,
    server: ContainerId,
    /// Its `X-Lightd-Delivery`.
    delivery: Uuid,
    /// As it was sent.
    #[schema(value_type = Object)]
    body: serde_json::Value,
    /// What the panel said.
    #[schema(example = "422 Unprocessable Entity")]
    reason: String,
    created_at: UnixSeconds,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ParkedUpdates)]
struct ParkedList {
    parked: Vec<ParkedView>,
}

/// The newest first; so many at most.
const PARKED_SHOWN: u32 = 200;

/// Lists the updates that the panel has refused for good, the newest first, 200 at most.
#[utoipa::path(
    get, path = "/remote/outbox", tag = "remote",
    responses((status = 200, description = "What was refused", body = ParkedList)),
)]
async fn parked(auth: Auth, State(state): State<AppState>) -> Result<Json<ParkedList>, ApiError> {
    auth.require(Permission::Node)?;
    let rows = state.store.read("list parked updates", |read| read.parked(PARKED_SHOWN)).await?;
    let view = |parked: ParkedRow| ParkedView {
        sequence: parked.row.sequence,
        server: parked.row.server,
        delivery: parked.row.delivery,
        body: serde_json::from_str(&parked.row.body_json).unwrap_or_default(),
        reason: parked.reason,
        created_at: parked.created_at,
    };
    Ok(Json(ParkedList { parked: rows.into_iter().map(view).collect() }))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UpdateRetried)]
struct RetriedView {
    #[schema(example = "Update will be sent again")]
    message: &'static str,
    sequence: i64,
}

refusals!(RetryRefusals: ; 404: "not_found");

/// Sends an update again that the panel has refused.
#[utoipa::path(
    post, path = "/remote/outbox/{sequence}/retry", tag = "remote",
    params(("sequence" = i64, Path, description = "Of the update")),
    responses((status = 200, description = "It waits to be sent", body = RetriedView), RetryRefusals),
)]
async fn retry(
    auth: Auth,
    State(state): State<AppState>,
    Path(sequence): Path<i64>,
) -> Result<Json<RetriedView>, ApiError> {
    auth.require(Permission::Node)?;
    state.store.write("retry a parked update", move |tx| tx.unpark(sequence)).await?;
    Ok(Json(RetriedView { message: "Update will be sent again", sequence }))
}
