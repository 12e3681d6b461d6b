//! What is known of runs that crashed.
//!
//! Served as the supervisor keeps them, so that an older one is shown with what it has.

use axum::extract::State;
use axum::routing::get;
use serde::Serialize;
use serde_json::Value;

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Path;
use crate::api::openapi::Routes;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::{ContainerId, RunId};

pub(super) fn routes() -> Routes {
    Routes::default()
        .route("/containers/{id}/post-mortems", get(list))
        .route("/containers/{id}/post-mortems/{n}", get(show))
}

#[derive(Debug, Serialize)]
struct ListView {
    /// The newest first.
    post_mortems: Vec<Value>,
}

async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<axum::Json<ListView>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ConsoleRead)?;
    let post_mortems = handle.post_mortems().await.map_err(ApiError::internal)?;
    Ok(axum::Json(ListView { post_mortems }))
}

async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, n)): Path<(ContainerId, u64)>,
) -> Result<axum::Json<Value>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ConsoleRead)?;
    let found = handle.post_mortem(RunId(n)).await.map_err(ApiError::internal)?;
    found.map(axum::Json).ok_or_else(|| ApiError::not_found("there is no such post-mortem"))
}
