//! Wishes about a container's life: start and stop, suspension, a new install, other ports.
//!
//! Each is answered when it has been accepted or refused, with 202 or the reason; what follows shows
//! in the container's state and on its socket.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, post};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::container_body::{PortBody, check_ports, non_empty, wanted};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, OptionalJson, Path};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::{Answer, Command};
use crate::supervisor::{ContainerHandle, Request};

pub(super) fn routes() -> Router<AppState> {
    use Permission::{ContainersWrite, Power};
    let wish = |command, permission| wish(command, permission);
    Router::new()
        .route("/containers/{id}/start", wish(Command::Start, Power))
        .route("/containers/{id}/stop", wish(Command::Stop, Power))
        .route("/containers/{id}/kill", wish(Command::Kill, Power))
        .route("/containers/{id}/restart", wish(Command::Restart, Power))
        .route("/containers/{id}/pause", wish(Command::Pause, Power))
        .route("/containers/{id}/resume", wish(Command::Resume, Power))
        .route("/containers/{id}/suspend", wish(Command::Suspend, ContainersWrite))
        .route("/containers/{id}/unsuspend", wish(Command::Unsuspend, ContainersWrite))
        .route("/containers/{id}/reinstall", post(reinstall))
        .route("/containers/{id}/rebind-network", post(rebind))
}

/// A wish that was taken on.
#[derive(Debug, Serialize)]
pub(super) struct AcceptedView {
    message: &'static str,
    internal_id: ContainerId,
    state: &'static str,
    /// The container's snapshot of this generation, or a later one, contains the decision.
    generation: u64,
}

fn wish(command: Command, permission: Permission) -> MethodRouter<AppState> {
    post(async move |auth: Auth, State(state): State<AppState>, Path(id): Path<ContainerId>| {
        let handle = auth.container(&state, &id, permission)?;
        ask(&handle, Request::Command(command), message_of(command)).await
    })
}

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

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReinstallBody {
    image: Option<String>,
    install_script: Option<String>,
}

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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RebindBody {
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
