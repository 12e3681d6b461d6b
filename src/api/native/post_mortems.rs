//! What is known of runs that crashed.
//!
//! Served as the supervisor keeps them, so that an older one is shown with what it has.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::paging;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
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
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// How many at once.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// So many at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

refusals!(Refusals: CONTAINER);
refusals!(ListRefusals: CONTAINER; 400: "invalid_cursor");

/// Lists what is known of runs that crashed.
#[utoipa::path(
    get, path = "/containers/{id}/post-mortems", tag = "console",
    params(ContainerPath, ListQuery),
    responses((status = 200, description = "A page of those that are kept", body = ListView), ListRefusals),
)]
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
    let run_of = |found: &Value| found["n"].as_u64().unwrap_or(0);
    let rest = all.into_iter().filter(|found| after.is_none_or(|after| run_of(found) < after));
    let (post_mortems, next_cursor) = paging::page(rest, limit, |last| run_of(last).to_string());
    Ok(axum::Json(ListView { post_mortems, next_cursor }))
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
