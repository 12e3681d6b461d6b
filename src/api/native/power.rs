//! Wishes about a container's life: start and stop, suspension, a new install, other ports.
//!
//! Each is answered when it has been accepted or refused, with 202 or the reason; what follows shows in the
//! container's state and on its socket. With `?wait` the answer comes after what followed.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::container_body::ReinstallBody;
use super::dry_run::{self, DryRunView};
use super::port_body::{PortBody, check_ports, wanted};
use super::waiting::{self, WishQuery, WishView};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{NoBody, Path, Query, Whole};
use crate::api::openapi::Routes;
use crate::api::openapi::params::ContainerPath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::either;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::Command;
use crate::supervisor::{ContainerHandle, Request};

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(kill))
        .routes(routes!(restart))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(suspend))
        .routes(routes!(unsuspend))
        .routes(routes!(reinstall))
        .routes(routes!(rebind))
}

either!(WishOrTrial, "AcceptedOrTrial": WishView<'static>, DryRunView<'static>);

refusals!(WishRefusals: CONTAINER, WISH, WAIT, STATE, ENGINE);
refusals!(
    BareWishRefusals: CONTAINER, WISH, WAIT, STATE, ENGINE;
    400: "invalid_json", "invalid", "incomplete_body"; 413: "too_large";
);
refusals!(RebindRefusals: CONTAINER, WISH, WAIT, STATE, ENGINE, BINDING);

/// A handler for each wish that needs no more than its name.
macro_rules! wishes {
    ($($(#[doc = $doc:literal])* $path:literal $name:ident: $command:ident, $permission:ident;)*) => {$(
        $(#[doc = $doc])*
        #[utoipa::path(
            post, path = $path, tag = "power",
            params(ContainerPath, WishQuery),
            responses(
                (status = 200, description = "It has happened (`wait`); or what would (`dry_run`)", body = WishOrTrial),
                (status = 202, description = "It is taken on, or was so already; or it takes longer than was to be waited", body = WishView),
                BareWishRefusals,
            ),
        )]
        async fn $name(
            auth: Auth,
            State(state): State<AppState>,
            Path(id): Path<ContainerId>,
            Query(query): Query<WishQuery>,
            NoBody: NoBody,
        ) -> Result<Response, ApiError> {
            let handle = auth.container(&state, &id, Permission::$permission)?;
            plain(&handle, Command::$command, query).await
        }
    )*};
}

wishes! {
    /// Starts a container. One that runs already stays as it is.
    "/containers/{id}/start" start: Start, Power;
    /// Stops a container in the way its `stop` says, and kills it where that takes too long.
    "/containers/{id}/stop" stop: Stop, Power;
    /// Kills a container. It also gets through to a stop, a start or an install that hangs.
    "/containers/{id}/kill" kill: Kill, Power;
    /// Stops a container and starts it again. One that is down is started.
    "/containers/{id}/restart" restart: Restart, Power;
    /// Lets a container stand still.
    "/containers/{id}/pause" pause: Pause, Power;
    /// Lets a container that stands still go on.
    "/containers/{id}/resume" resume: Resume, Power;
    /// Stops a container and refuses to start it until it is unsuspended.
    "/containers/{id}/suspend" suspend: Suspend, ContainersWrite;
    /// Allows a suspended container to be started again.
    "/containers/{id}/unsuspend" unsuspend: Unsuspend, ContainersWrite;
}

/// Installs a container again, from the image. The volume stays.
///
/// One that runs is stopped first.
#[utoipa::path(
    post, path = "/containers/{id}/reinstall", tag = "power",
    params(ContainerPath, WishQuery), request_body = Option<ReinstallBody>,
    responses(
        (status = 200, description = "It has happened (`wait`); or what would (`dry_run`)", body = WishOrTrial),
        (status = 202, description = "It is taken on; or it takes longer than was to be waited", body = WishView),
        WishRefusals,
    ),
)]
async fn reinstall(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<WishQuery>,
    body: Whole,
) -> Result<Response, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    let patience = query.patience()?;
    if query.dry_run {
        return dry_run::reinstall(&handle, &body).await;
    }
    let body: ReinstallBody = body.optional_json()?;
    ask(&handle, Command::Reinstall, body.into(), patience).await
}

/// Gives a container other ports.
///
/// One that runs is stopped first, and started again. If the new ports cannot be had, it keeps the old ones.
#[utoipa::path(
    post, path = "/containers/{id}/rebind-network", tag = "power",
    params(ContainerPath, WishQuery), request_body = RebindBody,
    responses(
        (status = 200, description = "It has happened (`wait`); or what would (`dry_run`)", body = WishOrTrial),
        (status = 202, description = "It is taken on; or it takes longer than was to be waited", body = WishView),
        RebindRefusals,
    ),
)]
async fn rebind(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<WishQuery>,
    body: Whole,
) -> Result<Response, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    let patience = query.patience()?;
    if query.dry_run {
        return dry_run::rebind(&auth, &handle, &body).await;
    }
    let body: RebindBody = body.json()?;
    let mut problems = Vec::new();
    check_ports(&body.ports, &mut problems);
    if !problems.is_empty() {
        return Err(ApiError::invalid(problems));
    }
    let ports = wanted(&auth, body.ports, body.lease_id);
    let asked = handle.send(Request::Rebind { ports }).await;
    let accepted = asked.map_err(|refusal| auth.told(refusal))?;
    Ok(waiting::answer(&handle, Command::Rebind, &accepted, patience).await)
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Rebind)]
#[serde(deny_unknown_fields)]
pub(super) struct RebindBody {
    /// All that it shall have.
    pub(super) ports: Vec<PortBody>,
    /// What `POST /network/ports/allocate` has handed out, to take the ports of.
    pub(super) lease_id: Option<Uuid>,
}

async fn plain(
    handle: &ContainerHandle,
    command: Command,
    query: WishQuery,
) -> Result<Response, ApiError> {
    let patience = query.patience()?;
    if query.dry_run {
        return dry_run::wish(handle, command).await;
    }
    ask(handle, command, Request::Command(command), patience).await
}

async fn ask(
    handle: &ContainerHandle,
    command: Command,
    request: Request,
    patience: Option<Duration>,
) -> Result<Response, ApiError> {
    let accepted = handle.send(request).await?;
    Ok(waiting::answer(handle, command, &accepted, patience).await)
}
