//! What anyone may ask: whether lightd is there, and whether it is ready. None of it asks the engine;
//! all of it answers while the engine is down.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::error::ApiError;
use crate::api::openapi::Routes;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::domain::units::UnixSeconds;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(ping))
        .routes(routes!(health))
        .routes(routes!(alive))
        .routes(routes!(ready))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Ping)]
struct PingView {
    #[schema(example = "ok")]
    status: &'static str,
    #[schema(example = "0.1.0")]
    version: &'static str,
}

/// Says that lightd is there.
#[utoipa::path(
    get, path = "/api/v1/public/ping", tag = "public", security(()),
    responses((status = 200, description = "It is there, whatever its engine does", body = PingView)),
)]
async fn ping() -> Json<PingView> {
    Json(PingView { status: "ok", version: VERSION })
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
struct HealthView {
    #[schema(example = "ok")]
    status: &'static str,
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// Seconds.
    uptime: u64,
    timestamp: UnixSeconds,
    /// Whether the container engine answers: `reachable` or `unreachable`.
    #[schema(example = "reachable")]
    engine: &'static str,
}

/// Says how lightd does.
#[utoipa::path(
    get, path = "/health", tag = "public", security(()),
    responses((status = 200, description = "lightd answers; `engine` says whether Docker does", body = HealthView)),
)]
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

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ProbeAnswer)]
struct StatusView {
    #[schema(example = "ok")]
    status: &'static str,
}

/// Whether the process lives.
#[utoipa::path(
    get, path = "/livez", tag = "public", security(()),
    responses((status = 200, description = "It does", body = StatusView)),
)]
async fn alive() -> Json<StatusView> {
    Json(StatusView { status: "ok" })
}

refusals!(ReadyRefusals: ; 503: "engine_unavailable", "starting_up", "stopping");

/// Whether a container could be started now.
///
/// Not before it is known what the container engine has.
#[utoipa::path(
    get, path = "/readyz", tag = "public", security(()),
    responses((status = 200, description = "It could", body = StatusView), ReadyRefusals),
)]
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
