//! What is known of runs that crashed.
//!
//! Served as the supervisor keeps them, so that an older one is shown with what it has.

use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Path;
use crate::api::openapi::Routes;
use crate::api::openapi::mirrors::PostMortem;
use crate::api::openapi::params::ContainerPath;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::{ContainerId, RunId};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(list)).routes(routes!(show))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PostMortemList)]
struct ListView {
    /// The newest first, without `lines` and `stats`.
    #[schema(value_type = Vec<PostMortem>)]
    post_mortems: Vec<Value>,
}

refusals!(Refusals: CONTAINER);

/// Lists what is known of runs that crashed.
#[utoipa::path(
    get, path = "/containers/{id}/post-mortems", tag = "console",
    params(ContainerPath),
    responses((status = 200, description = "Those that are kept", body = ListView), Refusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<axum::Json<ListView>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ConsoleRead)?;
    let post_mortems = handle.post_mortems().await.map_err(ApiError::internal)?;
    Ok(axum::Json(ListView { post_mortems }))
}

/// Shows what is known of a run that crashed, with its last lines and figures.
#[utoipa::path(
    get, path = "/containers/{id}/post-mortems/{n}", tag = "console",
    params(ContainerPath, ("n" = u64, Path, description = "The run's number")),
    responses((status = 200, description = "All that is known", body = PostMortem), Refusals),
)]
async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, n)): Path<(ContainerId, u64)>,
) -> Result<axum::Json<Value>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ConsoleRead)?;
    let found = handle.post_mortem(RunId(n)).await.map_err(ApiError::internal)?;
    found.map(axum::Json).ok_or_else(|| ApiError::not_found("there is no such post-mortem"))
}
