//! What anyone may ask: whether lightd is there, and whether it is ready. None of it asks the engine;
//! all of it answers while the engine is down.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::domain::units::UnixSeconds;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/public/ping", get(ping))
        .route("/health", get(health))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
}

#[derive(Debug, Serialize)]
struct PingView {
    status: &'static str,
    version: &'static str,
}

async fn ping() -> Json<PingView> {
    Json(PingView { status: "ok", version: VERSION })
}

#[derive(Debug, Serialize)]
struct HealthView {
    status: &'static str,
    version: &'static str,
    /// Seconds.
    uptime: u64,
    timestamp: UnixSeconds,
    engine: &'static str,
}

async fn health(State(state): State<AppState>) -> Json<HealthView> {
    let is_reachable = state.engine_health.borrow().is_reachable();
    Json(HealthView {
        status: "ok",
        version: VERSION,
        uptime: state.began.elapsed().as_secs(),
        timestamp: UnixSeconds::now(),
        engine: if is_reachable { "reachable" } else { "unreachable" },
    })
}

#[derive(Debug, Serialize)]
struct StatusView {
    status: &'static str,
}

async fn alive() -> Json<StatusView> {
    Json(StatusView { status: "ok" })
}

/// Ready is who can start a container now: not before it is known what the engine has.
async fn ready(State(state): State<AppState>) -> Result<Json<StatusView>, ApiError> {
    if state.stop.is_cancelled() {
        return Err(ApiError::unavailable("stopping", "lightd is stopping"));
    }
    if !state.engine_health.borrow().is_reachable() {
        return Err(ApiError::engine_unavailable());
    }
    if !state.supervisor.is_taken_up() {
        let message = "lightd is still looking at what the container engine has";
        return Err(ApiError::unavailable("starting_up", message));
    }
    Ok(Json(StatusView { status: "ok" }))
}
