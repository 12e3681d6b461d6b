//! The configuration and the panel's link, as a running daemon has them.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::units::UnixSeconds;
use crate::panel::{PanelReport, PanelState};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/remote/config", get(config))
        .route("/remote/config/reload", post(reload))
        .route("/remote/status", get(status))
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
    state: PanelState,
    /// Since when it is so.
    since: UnixSeconds,
    /// Why the panel is out of reach.
    error: Option<String>,
    /// When it was last asked for its health.
    checked_at: Option<UnixSeconds>,
    /// When it last took an update, since lightd runs.
    delivered_at: Option<UnixSeconds>,
    outbox: OutboxView,
}

#[derive(Debug, Serialize)]
struct OutboxView {
    waiting: u64,
    /// Refused by the panel for good.
    parked: u64,
    /// When the oldest that waits was written.
    oldest_at: Option<UnixSeconds>,
    /// When the next attempt is due.
    next_attempt_at: Option<UnixSeconds>,
}

async fn status(auth: Auth, State(state): State<AppState>) -> Result<Json<StatusView>, ApiError> {
    auth.require(Permission::Node)?;
    let PanelReport { status, outbox } = state.panel.report().await?;
    Ok(Json(StatusView {
        state: status.state,
        since: status.since,
        error: status.error,
        checked_at: status.checked_at,
        delivered_at: status.delivered_at,
        outbox: OutboxView {
            waiting: outbox.waiting,
            parked: outbox.parked,
            oldest_at: outbox.oldest_at,
            next_attempt_at: outbox.next_attempt_at,
        },
    }))
}
