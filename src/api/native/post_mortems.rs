//! What is known of runs that crashed.
//!
//! Served as the supervisor keeps them, so that an older one is shown with what it has.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::paging;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::{ContainerId, RunId};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/containers/{id}/post-mortems", get(list))
        .route("/containers/{id}/post-mortems/{n}", get(show))
}

#[derive(Debug, Serialize)]
struct ListView {
    /// The newest first.
    post_mortems: Vec<Value>,
    /// Give it as `cursor` for what follows; `null` at the end.
    next_cursor: Option<String>,
}

/// How many at once.
#[derive(Debug, Deserialize)]
struct ListQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<ListView>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ConsoleRead)?;
    let limit = paging::limit(query.limit)?;
    let after = paging::cursor(query.cursor.as_deref(), |text| text.parse::<u64>().ok())?;
    let all = handle.post_mortems().await.map_err(ApiError::internal)?;
    let run_of = |found: &Value| found["run"].as_u64().unwrap_or(0);
    let rest = all.into_iter().filter(|found| after.is_none_or(|after| run_of(found) < after));
    let (post_mortems, next_cursor) = paging::page(rest, limit, |last| run_of(last).to_string());
    Ok(axum::Json(ListView { post_mortems, next_cursor }))
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
