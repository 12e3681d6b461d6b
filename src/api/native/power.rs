//! Wishes about a container's life: start and stop, suspension, a new install, other ports.
//!
//! Each is answered when it has been accepted or refused, with 202 or the reason; what follows shows in the
//! container's state and on its socket. With `?wait` the answer comes after what followed.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use serde::Deserialize;

use super::container_body::{PortBody, ReinstallBody, check_ports};
use super::dry_run;
use super::waiting::{self, WishQuery};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query, Whole};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::Command;
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

fn wish(command: Command, permission: Permission) -> MethodRouter<AppState> {
    post(
        async move |auth: Auth,
                    State(state): State<AppState>,
                    Path(id): Path<ContainerId>,
                    Query(query): Query<WishQuery>| {
            let handle = auth.container(&state, &id, permission)?;
            if query.dry_run {
                return dry_run::wish(&handle, command).await;
            }
            ask(&handle, command, Request::Command(command), query).await
        },
    )
}

async fn reinstall(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<WishQuery>,
    body: Whole,
) -> Result<Response, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    if query.dry_run {
        return dry_run::reinstall(&handle, &body).await;
    }
    let body: ReinstallBody = body.optional_json()?;
    ask(&handle, Command::Reinstall, body.into(), query).await
}

async fn rebind(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<ContainerId>,
    Query(query): Query<WishQuery>,
    body: Whole,
) -> Result<Response, ApiError> {
    let handle = auth.container(&state, &id, Permission::ContainersWrite)?;
    if query.dry_run {
        return dry_run::rebind(&handle, &body).await;
    }
    let body: RebindBody = body.json()?;
    let mut problems = Vec::new();
    check_ports(&body.ports, &mut problems);
    if !problems.is_empty() {
        return Err(ApiError::invalid(problems));
    }
    let ports = body.ports.into_iter().map(PortBody::into).collect();
    ask(&handle, Command::Rebind, Request::Rebind { ports }, query).await
}

/// `POST /containers/{id}/rebind-network`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RebindBody {
    pub(super) ports: Vec<PortBody>,
}

async fn ask(
    handle: &ContainerHandle,
    command: Command,
    request: Request,
    query: WishQuery,
) -> Result<Response, ApiError> {
    let patience = query.patience()?;
    let accepted = handle.send(request).await?;
    Ok(waiting::answer(handle, command, &accepted, patience).await)
}
