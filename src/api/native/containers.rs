//! Containers as things: made, shown, changed and deleted.

use std::borrow::Cow;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::container_body::{CreateBody, Creation, PatchBody, waits_for_start};
use super::container_view::ContainerView;
use super::dry_run::{self, DryRunView};
use super::port_body::wanted;
use super::waiting::{self, Awaited, WishQuery};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query, Whole};
use crate::api::idempotency::Fate;
use crate::api::openapi::Routes;
use crate::api::openapi::params::ContainerPath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::{ContainerState, either};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::{ContainerId, RunId};
use crate::domain::lifecycle::{Command, Phase};
use crate::supervisor::{CreateContainer, Goal, Request, Snapshot, Unreached, Waited};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(create)).routes(routes!(show, patch, delete))
}

/// Whether a request is only tried out.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TrialQuery {
    /// Say what would come of it, and change nothing.
    #[serde(default)]
    #[param(required = false)]
    pub(super) dry_run: bool,
}

/// A container that was made.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContainerCreated)]
pub(super) struct CreatedView<'a> {
    #[schema(value_type = String, example = "Container is installing")]
    message: Cow<'static, str>,
    internal_id: &'a ContainerId,
    #[schema(value_type = ContainerState, example = "installing")]
    state: &'static str,
    /// With `?wait`: whether it is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    done: Option<bool>,
    /// As it is once it is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ContainerView, required = false)]
    container: Option<ContainerView<'a>>,
}

refusals!(CreateRefusals: BINDING, WAIT; 409: "container_exists", "volume_in_use"; 503: "engine_unavailable");

/// Makes a container and installs it.
///
/// It answers at once, or with `wait` when it is installed: the image is pulled, the Docker container made, the install script run.
/// Everything that can be known beforehand is checked beforehand, and every problem is told.
#[utoipa::path(
    post, path = "/containers", tag = "containers",
    params(WishQuery), request_body = CreateBody,
    responses(
        (status = 200, description = "What would come of it (`dry_run`)", body = DryRunView),
        (status = 201, description = "It is being installed; or it is installed (`wait`)", body = CreatedView),
        (status = 202, description = "It is made, and its install takes longer than was to be waited", body = CreatedView),
        CreateRefusals,
    ),
)]
async fn create(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<WishQuery>,
    body: Whole,
) -> Result<Response, ApiError> {
    auth.require(Permission::ContainersWrite)?;
    let patience = query.patience()?;
    if query.dry_run {
        return dry_run::create(&auth, &state, &body).await;
    }
    let Creation { id, spec, ports, lease, registry_auth } = body.json::<CreateBody>()?.read()?;
    let new = CreateContainer {
        id: id.clone(),
        spec,
        ports: wanted(&auth, ports, lease),
        registry_auth: registry_auth.map(Into::into),
        actor: auth.actor(),
    };
    let made = state.supervisor.create(new).await.map_err(|refusal| auth.told(refusal))?;
    let goal = Goal::Installed(RunId::default().next());
    if let Some(patience) = patience {
        let waited = match state.supervisor.get(&id) {
            Some(handle) => handle.outcome(&goal, 0, patience).await,
            None => Waited::Unreached(Unreached::Deleting),
        };
        return Ok(installed(&id, waited, &goal));
    }
    // The install may have begun, and even have ended, by now; the contract names the first state.
    let answer = (StatusCode::CREATED, axum::Json(CreatedView::installing(&id))).into_response();
    Ok(Awaited::creation(&made, goal).of(answer))
}

impl<'a> CreatedView<'a> {
    fn installing(id: &'a ContainerId) -> Self {
        Self {
            message: INSTALLING.into(),
            internal_id: id,
            state: "installing",
            done: None,
            container: None,
        }
    }
}

const INSTALLING: &str = "Container is installing";

/// The answer once a new container's install was waited for.
pub(super) fn installed(id: &ContainerId, waited: Waited, goal: &Goal) -> Response {
    let first = CreatedView::installing(id);
    match waited {
        Waited::Reached(seen) => {
            let view = CreatedView {
                message: "Container is installed".into(),
                state: seen.state_name(),
                done: Some(true),
                container: Some(ContainerView::from(&*seen)),
                ..first
            };
            (StatusCode::CREATED, axum::Json(view)).into_response()
        }
        Waited::TimedOut(seen) => {
            let view =
                CreatedView { message: waiting::late(INSTALLING), done: Some(false), ..first };
            let answer = (StatusCode::ACCEPTED, axum::Json(view)).into_response();
            Awaited::creation(&seen, goal.clone()).of(answer)
        }
        Waited::Unreached(why) => Fate::Stands.of(ApiError::from(why).into_response()),
        Waited::Stopping => waiting::stopping(),
        Waited::Abandoned => waiting::abandoned(),
    }
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

either!(PatchedOrTrial, "ContainerPatchedOrTrial": PatchedView, DryRunView<'static>);

refusals!(PatchRefusals: CONTAINER, WISH, STATE, ENGINE);

/// Changes a container.
///
/// What is left out stays. `waits_for_restart` names what a running workload does not see before it is started again.
#[utoipa::path(
    patch, path = "/containers/{id}", tag = "containers",
    params(ContainerPath, TrialQuery), request_body = PatchBody,
    responses(
        (status = 200, description = "It is stored; or what would come of it (`dry_run`)", body = PatchedOrTrial),
        PatchRefusals,
    ),
)]
async fn patch(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<TrialQuery>,
    body: Whole,
) -> Result<Response, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    if query.dry_run {
        return dry_run::patch(&handle, &body).await;
    }
    let before = handle.snapshot();
    let patch = body.json::<PatchBody>()?.read()?;
    let accepted = handle.send(Request::Update(Box::new(patch))).await?;
    let after = &accepted.decided;
    let waits_for_restart =
        if is_up(after) { waits_for_start(&before.spec, &after.spec) } else { Vec::new() };
    let view = PatchedView { message: "Container updated", internal_id: id, waits_for_restart };
    Ok(axum::Json(view).into_response())
}

/// Whether there is a workload that has what its container was started with.
pub(super) fn is_up(seen: &Snapshot) -> bool {
    matches!(
        seen.phase,
        Phase::Starting { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. }
            | Phase::Stopping { .. }
    )
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContainerDeleted)]
struct DeletedView {
    #[schema(example = "Container deleted")]
    message: &'static str,
    internal_id: ContainerId,
    /// With `?wait`: whether it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    done: Option<bool>,
}

/// How long a deletion is waited for, so that a panel's next call finds the id, the ports and the volume
/// free, where the caller does not say. One that takes longer goes on in the background.
const DELETE_PATIENCE: Duration = Duration::from_secs(10);

either!(DeletedOrTrial, "ContainerDeletedOrTrial": DeletedView, DryRunView<'static>);

refusals!(DeleteRefusals: CONTAINER; 409: "deleting"; 503: "busy", "engine_unavailable");

/// Deletes a container, in whatever state it is. The volume stays.
#[utoipa::path(
    delete, path = "/containers/{id}", tag = "containers",
    params(ContainerPath, WishQuery),
    responses(
        (status = 200, description = "It is gone, and its ports are free; or what would come of it (`dry_run`)", body = DeletedOrTrial),
        (status = 202, description = "It is going; that takes longer", body = DeletedView),
        DeleteRefusals,
    ),
)]
async fn delete(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<WishQuery>,
) -> Result<Response, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    let asked = query.patience()?;
    if query.dry_run {
        return dry_run::wish(&handle, Command::Delete).await;
    }
    let accepted = handle.send(Request::Command(Command::Delete)).await?;
    let patience = match asked {
        // It waits for the engine.
        None if accepted.decided.unknown_since.is_some() => Duration::ZERO,
        asked => asked.unwrap_or(DELETE_PATIENCE),
    };
    let generation = accepted.decided.generation;
    let (status, message) = match handle.outcome(&Goal::Deleted, generation, patience).await {
        Waited::Reached(_) => (StatusCode::OK, "Container deleted"),
        Waited::Stopping if asked.is_some() => return Ok(waiting::stopping()),
        Waited::Abandoned => return Ok(waiting::abandoned()),
        Waited::TimedOut(_) | Waited::Unreached(_) | Waited::Stopping => {
            (StatusCode::ACCEPTED, "Container is being deleted")
        }
    };
    let done = asked.map(|_| status == StatusCode::OK);
    Ok((status, axum::Json(DeletedView { message, internal_id: id, done })).into_response())
}
