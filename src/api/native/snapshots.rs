//! Snapshots of volumes: taken and put back in the background, listed and deleted.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json as JsonAnswer, Router};
use serde::{Deserialize, Serialize};

use super::operations::Told;
use super::volumes::reach;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path};
use crate::api::state::AppState;
use crate::domain::access::{Permission, Resource};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::operation::OperationId;
use crate::domain::units::UnixSeconds;
use crate::store::snapshots::SnapshotRow;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/volumes/{id}/snapshots", post(take).get(list))
        .route("/volumes/{id}/snapshots/{name}", get(show))
        .route("/volumes/{id}/snapshots/{name}/restore", post(restore))
}

/// A snapshot may hold a million files, which take their time to go.
pub(super) fn long_routes() -> Router<AppState> {
    Router::new().route("/volumes/{id}/snapshots/{name}", delete(remove))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TakeBody {
    name: String,
    /// Let the volume's containers stand still while their files are copied.
    #[serde(default)]
    pause: bool,
}

#[derive(Debug, Serialize)]
struct SnapshotView {
    name: String,
    volume_id: VolumeId,
    /// Of content, each file once.
    size: u64,
    entries: u64,
    paused: bool,
    created_at: UnixSeconds,
}

impl From<SnapshotRow> for SnapshotView {
    fn from(row: SnapshotRow) -> Self {
        Self {
            name: row.name,
            volume_id: row.volume,
            size: row.bytes,
            entries: row.entries,
            paused: row.paused,
            created_at: row.created_at,
        }
    }
}

#[derive(Debug, Serialize)]
struct StartedView {
    operation_id: OperationId,
    name: String,
}

impl StartedView {
    fn told(self, message: &'static str) -> (StatusCode, JsonAnswer<Told<Self>>) {
        (StatusCode::ACCEPTED, JsonAnswer(Told { message, result: self }))
    }
}

#[derive(Debug, Serialize)]
struct ListView {
    snapshots: Vec<SnapshotView>,
}

#[derive(Debug, Serialize)]
struct DeletedView {
    message: &'static str,
    name: String,
}

/// Names are of the same kind as those of containers: they stand in paths of this API.
fn is_name(name: &str) -> bool {
    ContainerId::parse(name).is_ok()
}

async fn take(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<TakeBody>,
) -> Result<(StatusCode, JsonAnswer<Told<StartedView>>), ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    if body.pause {
        auth.require_on(Permission::Power, Resource::Volume { used_by: &reached.used_by })?;
    }
    if !is_name(&body.name) {
        let message = "must be 1 to 63 characters of A-Z a-z 0-9 _ . - and begin with a letter or a \
                       digit";
        return Err(ApiError::field("name", message));
    }
    let name = body.name.clone();
    let operation_id =
        state.volumes.take_snapshot(&state.operations, id, body.name, body.pause).await?;
    Ok(StartedView { operation_id, name }.told("The snapshot is being taken"))
}

async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let rows = state.store.read("list snapshots", move |rx| rx.snapshots(id)).await?;
    Ok(JsonAnswer(ListView { snapshots: rows.into_iter().map(SnapshotView::from).collect() }))
}

async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, name)): Path<(VolumeId, String)>,
) -> Result<JsonAnswer<SnapshotView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let row = state.store.read("look up a snapshot", move |rx| rx.snapshot(id, &name)).await?;
    Ok(JsonAnswer(row.into()))
}

async fn restore(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, name)): Path<(VolumeId, String)>,
) -> Result<(StatusCode, JsonAnswer<Told<StartedView>>), ApiError> {
    reach(&auth, &state, id, Permission::FilesWrite).await?;
    let operation_id = state.volumes.restore_snapshot(&state.operations, id, name.clone()).await?;
    Ok(StartedView { operation_id, name }.told("The volume is being restored"))
}

async fn remove(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, name)): Path<(VolumeId, String)>,
) -> Result<JsonAnswer<DeletedView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesWrite).await?;
    state.volumes.remove_snapshot(id, name.clone()).await?;
    Ok(JsonAnswer(DeletedView { message: "Snapshot deleted", name }))
}
