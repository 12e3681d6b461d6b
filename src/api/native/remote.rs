//! The configuration and the panel's link, as a running daemon has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::PanelState;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::units::UnixSeconds;
use crate::panel::PanelReport;

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(config)).routes(routes!(reload)).routes(routes!(status))
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
    #[schema(value_type = PanelState)]
    state: crate::panel::PanelState,
    /// Since when it is so.
    since: UnixSeconds,
    /// Why the panel is out of reach.
    #[schema(required, example = json!(null))]
    error: Option<String>,
    /// When it was last asked for its health.
    #[schema(required)]
    checked_at: Option<UnixSeconds>,
    /// When it last took an update, since lightd runs.
    #[schema(required)]
    delivered_at: Option<UnixSeconds>,
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
    /// When the next attempt is due.
    #[schema(required)]
    next_attempt_at: Option<UnixSeconds>,
}

/// Shows how the link to the panel does.
#[utoipa::path(
    get, path = "/remote/status", tag = "remote",
    responses((status = 200, description = "Whether it answers, and what waits for it", body = StatusView)),
)]
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
            next_attempt_at: outbox.next_attempt_at.filter(|at| at.0 > 0),
        },
    }))
}
