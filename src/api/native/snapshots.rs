//! Snapshots of volumes: taken and put back in the background, listed and deleted.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json as JsonAnswer, Router};
use serde::{Deserialize, Serialize};

use super::operations::Told;
use super::paging;
use super::volumes::reach;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query};
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

/// How many at once.
#[derive(Debug, Deserialize)]
struct ListQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct ListView {
    /// The oldest first.
    snapshots: Vec<SnapshotView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    next_cursor: Option<String>,
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
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let limit = paging::limit(query.limit)?;
    let after = paging::cursor(query.cursor.as_deref(), read_cursor)?;
    let rows = state.store.read("list snapshots", move |rx| rx.snapshots(id)).await?;
    let place = |row: &SnapshotRow| (row.created_at.0, row.name.clone());
    let rest =
        rows.into_iter().filter(|row| after.as_ref().is_none_or(|after| place(row) > *after));
    let cursor_of = |row: &SnapshotRow| format!("{}-{}", row.created_at.0, row.name);
    let (rows, next_cursor) = paging::page(rest, limit, cursor_of);
    let snapshots = rows.into_iter().map(SnapshotView::from).collect();
    Ok(JsonAnswer(ListView { snapshots, next_cursor }))
}

fn read_cursor(text: &str) -> Option<(i64, String)> {
    let (created_at, name) = text.split_once('-')?;
    Some((created_at.parse().ok()?, name.to_owned()))
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
