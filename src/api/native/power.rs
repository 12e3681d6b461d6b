//! Wishes about a container's life: start and stop, suspension, a new install, other ports.
//!
//! Each is answered when it has been accepted or refused, with 202 or the reason; what follows shows
//! in the container's state and on its socket.

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::container_body::non_empty;
use super::port_body::{PortBody, check_ports, wanted};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, OptionalJson, Path};
use crate::api::openapi::Routes;
use crate::api::openapi::params::ContainerPath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::ContainerState;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::{Answer, Command};
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

/// A wish that was taken on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Accepted)]
pub(super) struct AcceptedView {
    #[schema(example = "Container is starting")]
    message: &'static str,
    internal_id: ContainerId,
    #[schema(value_type = ContainerState, example = "starting")]
    state: &'static str,
    /// The container's snapshot of this generation, or a later one, contains the decision.
    #[schema(example = 12)]
    generation: u64,
}

refusals!(WishRefusals: CONTAINER, WISH, STATE, ENGINE);
refusals!(RebindRefusals: CONTAINER, WISH, STATE, ENGINE, BINDING);

/// A handler for each wish that needs no more than its name.
macro_rules! wishes {
    ($($(#[doc = $doc:literal])* $path:literal $name:ident: $command:ident, $permission:ident;)*) => {$(
        $(#[doc = $doc])*
        #[utoipa::path(
            post, path = $path, tag = "power",
            params(ContainerPath),
            responses(
                (status = 202, description = "It is taken on, or was so already", body = AcceptedView),
                WishRefusals,
            ),
        )]
        async fn $name(
            auth: Auth,
            State(state): State<AppState>,
            Path(id): Path<ContainerId>,
        ) -> Result<(StatusCode, axum::Json<AcceptedView>), ApiError> {
            let handle = auth.container(&state, &id, Permission::$permission)?;
            ask(&handle, Request::Command(Command::$command), message_of(Command::$command)).await
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
    params(ContainerPath), request_body = Option<ReinstallBody>,
    responses(
        (status = 202, description = "It is taken on", body = AcceptedView),
        WishRefusals,
    ),
)]
async fn reinstall(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    OptionalJson(body): OptionalJson<ReinstallBody>,
) -> Result<(StatusCode, axum::Json<AcceptedView>), ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    let request = Request::Reinstall {
        image: non_empty(body.image),
        install_script: non_empty(body.install_script),
    };
    ask(&handle, request, message_of(Command::Reinstall)).await
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = Reinstall, example = json!({"image": "ubuntu:24.04"}))]
#[serde(default, deny_unknown_fields)]
struct ReinstallBody {
    /// As it is, if this is left out.
    image: Option<String>,
    /// As it is, if this is left out.
    #[schema(max_length = 1_048_576)]
    install_script: Option<String>,
}

/// Gives a container other ports.
///
/// One that runs is stopped first, and started again. If the new ports cannot be had, it keeps the old ones.
#[utoipa::path(
    post, path = "/containers/{id}/rebind-network", tag = "power",
    params(ContainerPath), request_body = RebindBody,
    responses(
        (status = 202, description = "It is taken on", body = AcceptedView),
        RebindRefusals,
    ),
)]
async fn rebind(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Json(body): Json<RebindBody>,
) -> Result<(StatusCode, axum::Json<AcceptedView>), ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    let mut problems = Vec::new();
    check_ports(&body.ports, &mut problems);
    if !problems.is_empty() {
        return Err(ApiError::invalid(problems));
    }
    let ports = wanted(&auth, body.ports, body.lease_id);
    ask(&handle, Request::Rebind { ports }, message_of(Command::Rebind)).await
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Rebind)]
#[serde(deny_unknown_fields)]
struct RebindBody {
    /// All that it shall have.
    ports: Vec<PortBody>,
    /// What `POST /network/ports/allocate` has handed out, to take the ports of.
    lease_id: Option<Uuid>,
}

async fn ask(
    handle: &ContainerHandle,
    request: Request,
    message: (&'static str, &'static str),
) -> Result<(StatusCode, axum::Json<AcceptedView>), ApiError> {
    let accepted = handle.send(request).await?;
    let message = match accepted.answer {
        Answer::Accepted => message.0,
        Answer::Satisfied => message.1,
    };
    let snapshot = handle.snapshot();
    let view = AcceptedView {
        message,
        internal_id: handle.id().clone(),
        state: snapshot.state_name(),
        generation: accepted.generation,
    };
    Ok((StatusCode::ACCEPTED, axum::Json(view)))
}

/// What to say when a wish was taken on, and when it was so already.
fn message_of(command: Command) -> (&'static str, &'static str) {
    match command {
        Command::Start => ("Container is starting", "Container is running already"),
        Command::Stop => ("Container is stopping", "Container is stopped already"),
        Command::Restart => ("Container is restarting", "Container is restarting already"),
        Command::Kill => ("Container is being killed", "Container is stopped already"),
        Command::Pause => ("Container is being paused", "Container is paused already"),
        Command::Resume => ("Container is being resumed", "Container is running already"),
        Command::Suspend => ("Container is being suspended", "Container is suspended already"),
        Command::Unsuspend => ("Container is no longer suspended", "Container is not suspended"),
        Command::Reinstall => ("Container is being reinstalled", "Container is installing already"),
        Command::Rebind => ("Container's ports are being changed", "Nothing to change"),
        Command::Freeze => ("Container stands still", "Container stands still already"),
        Command::Thaw => ("Container goes on", "Container goes on already"),
        Command::Delete => ("Container is being deleted", "Container is being deleted already"),
    }
}
