//! The configuration and the panel's link, as a running daemon has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::routing::{get, post};
use serde::Serialize;
use uuid::Uuid;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Path;
use crate::api::openapi::Routes;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::panel::{PanelReport, PanelStatus};
use crate::store::outbox::ParkedRow;

pub(super) fn routes() -> Routes {
    Routes::default()
        .route("/remote/config", get(config))
        .route("/remote/config/reload", post(reload))
        .route("/remote/status", get(status))
        .route("/remote/outbox", get(parked))
        .route("/remote/outbox/{sequence}/retry", post(retry))
}

/// The configuration with its secrets masked.
async fn config(
    auth: Auth,
    State(state): State<AppState>,
) -> Result<Json<serde_json::Value>, ApiError> {
    auth.require(Permission::Node)?;
    Ok(Json(state.config.current().masked()))
}

#[derive(Debug, Serialize)]
struct ReloadView {
    message: &'static str,
    applied: Vec<String>,
    needs_restart: Vec<String>,
}

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
#[derive(Debug, Serialize)]
struct StatusView {
    #[serde(flatten)]
    status: PanelStatus,
    outbox: OutboxView,
}

#[derive(Debug, Serialize)]
struct OutboxView {
    waiting: u64,
    /// Refused by the panel for good.
    parked: u64,
    oldest_at: Option<UnixSeconds>,
}

async fn status(auth: Auth, State(state): State<AppState>) -> Result<Json<StatusView>, ApiError> {
    auth.require(Permission::Node)?;
    let PanelReport { status, outbox } = state.panel.report().await?;
    let outbox =
        OutboxView { waiting: outbox.waiting, parked: outbox.parked, oldest_at: outbox.oldest_at };
    Ok(Json(StatusView { status, outbox }))
}

/// An update that the panel has refused for good.
#[derive(Debug, Serialize)]
struct ParkedView {
    sequence: i64,
    server: ContainerId,
    delivery: Uuid,
    body: serde_json::Value,
    reason: String,
    created_at: UnixSeconds,
}

#[derive(Debug, Serialize)]
struct ParkedList {
    parked: Vec<ParkedView>,
}

/// The newest first; so many at most.
const PARKED_SHOWN: u32 = 200;

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

#[derive(Debug, Serialize)]
struct RetriedView {
    message: &'static str,
    sequence: i64,
}

async fn retry(
    auth: Auth,
    State(state): State<AppState>,
    Path(sequence): Path<i64>,
) -> Result<Json<RetriedView>, ApiError> {
    auth.require(Permission::Node)?;
    state.store.write("retry a parked update", move |tx| tx.unpark(sequence)).await?;
    Ok(Json(RetriedView { message: "Update will be sent again", sequence }))
}
