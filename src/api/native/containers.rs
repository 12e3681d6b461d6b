//! Containers as things: made, listed, shown, changed and deleted.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::container_body::{CreateBody, Creation, PatchBody};
use super::container_view::ContainerView;
use super::port_body::wanted;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::ContainerPath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::ContainerState;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::{Command, Phase};
use crate::supervisor::{ContainerHandle, CreateContainer, Request, Snapshot};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(create, list)).routes(routes!(show, patch, delete))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContainerCreated)]
struct CreatedView {
    #[schema(example = "Container is installing")]
    message: &'static str,
    internal_id: ContainerId,
    #[schema(value_type = ContainerState, example = "installing")]
    state: &'static str,
}

refusals!(CreateRefusals: BINDING; 409: "container_exists", "volume_in_use"; 503: "engine_unavailable");

/// Makes a container and installs it.
///
/// It answers at once; the install goes on: the image is pulled, the Docker container made, the install script run.
/// Everything that can be known beforehand is checked beforehand, and every problem is told.
#[utoipa::path(
    post, path = "/containers", tag = "containers",
    request_body = CreateBody,
    responses(
        (status = 201, description = "It is being installed", body = CreatedView),
        CreateRefusals,
    ),
)]
async fn create(
    auth: Auth,
    State(state): State<AppState>,
    Json(body): Json<CreateBody>,
) -> Result<(StatusCode, axum::Json<CreatedView>), ApiError> {
    auth.require(Permission::ContainersWrite)?;
    let Creation { id, spec, ports, lease, registry_auth } = body.read()?;
    let new = CreateContainer {
        id: id.clone(),
        spec,
        ports: wanted(&auth, ports, lease),
        registry_auth: registry_auth.map(Into::into),
        actor: auth.actor(),
    };
    state.supervisor.create(new).await?;
    // The install may have begun, and even have ended, by now; the contract names the first state.
    let view =
        CreatedView { message: "Container is installing", internal_id: id, state: "installing" };
    Ok((StatusCode::CREATED, axum::Json(view)))
}

refusals!(NamedRefusals: CONTAINER);

/// Shows a container: what it should be, and how it does.
#[utoipa::path(
    get, path = "/containers/{id}", tag = "containers",
    params(ContainerPath),
    responses(
        (status = 200, description = "The container", body = ContainerView),
        NamedRefusals,
    ),
)]
async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<Response, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersRead)?;
    Ok(axum::Json(ContainerView::from(&*handle.snapshot())).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only those in this state.
    #[param(value_type = Option<ContainerState>)]
    state: Option<String>,
    /// Only those with this label: `name`, or `name=value`.
    label: Option<String>,
    /// So many at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<String>,
}

const LIST_MAX: usize = 1000;
/// Every `state` of a container.
pub(in crate::api) const STATES: &[&str] = &[
    "installing",
    "failed",
    "offline",
    "starting",
    "running",
    "stopping",
    "paused",
    "suspended",
    "unknown",
    "deleting",
];

/// Lists the containers that the token may see, by name.
#[utoipa::path(
    get, path = "/containers", tag = "containers",
    params(ListQuery),
    responses((status = 200, description = "A page of them", body = ListView)),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<Response, ApiError> {
    auth.require_for_list(Permission::ContainersRead)?;
    let page = Page::read(query)?;
    let handles = state.supervisor.list();
    let after = page.after.as_deref();
    let mut found = handles
        .iter()
        .filter(|handle| after.is_none_or(|after| handle.id().as_str() > after))
        .filter(|handle| auth.may(Permission::ContainersRead, handle.id()))
        .map(ContainerHandle::snapshot)
        .filter(|snapshot| !snapshot.deleted && page.wants(snapshot));
    let shown: Vec<_> = found.by_ref().take(page.limit).collect();
    let is_more = found.next().is_some();
    let last = shown.last().map(|snapshot| &snapshot.id);
    let view = ListView {
        containers: shown.iter().map(|snapshot| ContainerView::from(&**snapshot)).collect(),
        next_cursor: last.filter(|_| is_more),
    };
    Ok(axum::Json(view).into_response())
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContainerList)]
struct ListView<'a> {
    containers: Vec<ContainerView<'a>>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<&'a ContainerId>,
}

/// Which containers a list shows.
#[derive(Debug)]
struct Page {
    state: Option<String>,
    label: Option<(String, Option<String>)>,
    after: Option<String>,
    limit: usize,
}

impl Page {
    fn read(query: ListQuery) -> Result<Self, ApiError> {
        if query.state.as_deref().is_some_and(|state| !STATES.contains(&state)) {
            let message = format!("must be one of {}", STATES.join(", "));
            return Err(ApiError::field("?state", message));
        }
        let limit = query.limit.unwrap_or(LIST_MAX);
        if !(1..=LIST_MAX).contains(&limit) {
            return Err(ApiError::field("?limit", format!("must be between 1 and {LIST_MAX}")));
        }
        let label = query.label.map(|label| match label.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (label, None),
        });
        Ok(Self { state: query.state, label, after: query.cursor, limit })
    }

    fn wants(&self, snapshot: &Snapshot) -> bool {
        let state_fits = self.state.as_deref().is_none_or(|state| state == snapshot.state_name());
        let label_fits = self.label.as_ref().is_none_or(|(name, value)| {
            let found = snapshot.spec.labels.get(name);
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        });
        state_fits && label_fits
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContainerPatched)]
struct PatchedView {
    #[schema(example = "Container updated")]
    message: &'static str,
    internal_id: ContainerId,
    /// The fields of this change that take effect with the next start only.
    #[schema(example = json!(["startup_command", "env"]))]
    waits_for_restart: Vec<&'static str>,
}

refusals!(PatchRefusals: CONTAINER, WISH, STATE, ENGINE);

/// Changes a container.
///
/// What is left out stays. `waits_for_restart` names what a running workload does not see before it is started again.
#[utoipa::path(
    patch, path = "/containers/{id}", tag = "containers",
    params(ContainerPath), request_body = PatchBody,
    responses(
        (status = 200, description = "It is stored", body = PatchedView),
        PatchRefusals,
    ),
)]
async fn patch(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Json(body): Json<PatchBody>,
) -> Result<axum::Json<PatchedView>, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    let baked_in = body.fields_read_at_start();
    let patch = body.read(&handle.snapshot().spec)?;
    handle.send(Request::Update(Box::new(patch))).await?;
    let is_up = matches!(
        handle.snapshot().phase,
        Phase::Starting { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. }
            | Phase::Stopping { .. }
    );
    let waits_for_restart = if is_up { baked_in } else { Vec::new() };
    Ok(axum::Json(PatchedView { message: "Container updated", internal_id: id, waits_for_restart }))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContainerDeleted)]
struct DeletedView {
    #[schema(example = "Container deleted")]
    message: &'static str,
    internal_id: ContainerId,
}

/// How long a deletion is waited for, so that a panel's next call finds the id, the ports and the
/// volume free. One that takes longer goes on in the background.
const DELETE_PATIENCE: Duration = Duration::from_secs(10);

refusals!(DeleteRefusals: CONTAINER; 409: "deleting"; 503: "busy", "engine_unavailable");

/// Deletes a container, in whatever state it is. The volume stays.
#[utoipa::path(
    delete, path = "/containers/{id}", tag = "containers",
    params(ContainerPath),
    responses(
        (status = 200, description = "It is gone, and its ports are free", body = DeletedView),
        (status = 202, description = "It is going; that takes longer", body = DeletedView),
        DeleteRefusals,
    ),
)]
async fn delete(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
) -> Result<(StatusCode, axum::Json<DeletedView>), ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    handle.send(Request::Command(Command::Delete)).await?;
    let mut snapshots = handle.watch();
    let done = snapshots.wait_for(|seen| seen.deleted || seen.unknown_since.is_some());
    let is_gone = match tokio::time::timeout(DELETE_PATIENCE, done).await {
        Ok(Ok(snapshot)) => snapshot.deleted,
        // The owner has left, which it does last.
        Ok(Err(_)) => true,
        Err(_) => false,
    };
    let (status, message) = if is_gone {
        (StatusCode::OK, "Container deleted")
    } else {
        (StatusCode::ACCEPTED, "Container is being deleted")
    };
    Ok((status, axum::Json(DeletedView { message, internal_id: id })))
}
