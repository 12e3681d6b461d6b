//! What a container may use, and what it does use.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;

use super::container_body::LimitsBody;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::spec::{Limits, Problem};
use crate::domain::stats::Sample;
use crate::supervisor::{Refusal, Request};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/containers/{id}/resources", get(show).post(change))
        .route("/containers/{id}/stats", get(stats))
}

async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<axum::Json<Limits>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersRead)?;
    Ok(axum::Json(handle.snapshot().spec.limits))
}

/// Changes some limits, of the running workload as well: it answers when the engine has taken them.
async fn change(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Json(body): Json<LimitsBody>,
) -> Result<axum::Json<Limits>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    let wanted = body.apply(handle.snapshot().spec.limits);
    handle.send(Request::Resources(wanted)).await.map_err(with_own_field_names)?;
    Ok(axum::Json(handle.snapshot().spec.limits))
}

/// Here the limits are the body itself, not a field of it.
fn with_own_field_names(refusal: Refusal) -> ApiError {
    let Refusal::Invalid(problems) = refusal else { return refusal.into() };
    let renamed = |problem: Problem| match problem.field.strip_prefix("limits.") {
        Some(name) => Problem::new(name, problem.message),
        None => problem,
    };
    ApiError::invalid(problems.into_iter().map(renamed).collect())
}

#[derive(Debug, Serialize)]
struct StatsView {
    state: &'static str,
    #[serde(flatten)]
    sample: Sample,
}

/// The last sample; zeros while nothing runs.
async fn stats(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<axum::Json<StatsView>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersRead)?;
    let sample = handle.last_stats().unwrap_or_default();
    Ok(axum::Json(StatsView { state: handle.snapshot().state_name(), sample }))
}
