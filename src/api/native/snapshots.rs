//! Snapshots of volumes: taken and put back in the background, listed and deleted.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::operations::Told;
use super::paging;
use super::volumes::reach;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::domain::access::{Permission, Resource};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::operation::OperationId;
use crate::domain::units::UnixSeconds;
use crate::store::snapshots::SnapshotRow;

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(take, list)).routes(routes!(show)).routes(routes!(restore))
}

/// A snapshot may hold a million files, which take their time to go.
pub(super) fn long_routes() -> Routes {
    Routes::default().routes(routes!(remove))
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes what `Path<(VolumeId, String)>` reads")]
struct SnapshotPath {
    /// The volume's id.
    id: VolumeId,
    /// The snapshot's name.
    #[param(example = "before-update")]
    name: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TakeSnapshot)]
#[serde(deny_unknown_fields)]
struct TakeBody {
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$", example = "before-update")]
    name: String,
    /// Let the volume's containers stand still while their files are copied.
    #[serde(default)]
    pause: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Snapshot)]
struct SnapshotView {
    #[schema(example = "before-update")]
    name: String,
    volume_id: VolumeId,
    /// Bytes of content, each file once.
    size: u64,
    entries: u64,
    /// Whether its containers stood still meanwhile.
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

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SnapshotWork)]
struct StartedView {
    operation_id: OperationId,
    #[schema(example = "before-update")]
    name: String,
}

impl StartedView {
    fn told(self, message: &'static str) -> (StatusCode, JsonAnswer<Told<Self>>) {
        (StatusCode::ACCEPTED, JsonAnswer(Told { message, result: self }))
    }
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

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SnapshotList)]
struct ListView {
    /// The oldest first.
    snapshots: Vec<SnapshotView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SnapshotDeleted)]
struct DeletedView {
    #[schema(example = "Snapshot deleted")]
    message: &'static str,
    #[schema(example = "before-update")]
    name: String,
}

/// Names are of the same kind as those of containers: they stand in paths of this API.
fn is_name(name: &str) -> bool {
    ContainerId::parse(name).is_ok()
}

refusals!(TakeRefusals: VOLUME, WORK; 409: "snapshot_exists", "too_many_snapshots");

/// Takes a snapshot of a volume, in the background.
#[utoipa::path(
    post, path = "/volumes/{id}/snapshots", tag = "snapshots",
    params(VolumePath), request_body = TakeBody,
    responses((status = 202, description = "It is being taken", body = Told<StartedView>), TakeRefusals),
)]
async fn take(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<TakeBody>,
) -> Result<(StatusCode, JsonAnswer<Told<StartedView>>), ApiError> {
    let reached = reach(&auth, &state, id, Permission::SnapshotsWrite).await?;
    if body.pause {
        auth.require_on(Permission::Power, Resource::Volume { used_by: &reached.used_by })?;
    }
    if !is_name(&body.name) {
        let message = "must be 1 to 63 characters of A-Z a-z 0-9 _ . - and begin with a letter or a \
                       digit";
        return Err(ApiError::field("name", message));
    }
    let name = body.name.clone();
    let operation_id = state
        .volumes
        .by(auth.actor())
        .take_snapshot(&state.operations, id, body.name, body.pause)
        .await?;
    Ok(StartedView { operation_id, name }.told("The snapshot is being taken"))
}

refusals!(VolumeRefusals: ; 404: "not_found");
refusals!(ListRefusals: ; 400: "invalid_cursor"; 404: "not_found");

/// Lists a volume's snapshots.
#[utoipa::path(
    get, path = "/volumes/{id}/snapshots", tag = "snapshots",
    params(VolumePath, ListQuery),
    responses((status = 200, description = "A page of them", body = ListView), ListRefusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    reach(&auth, &state, id, Permission::SnapshotsRead).await?;
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

/// Shows a snapshot.
#[utoipa::path(
    get, path = "/volumes/{id}/snapshots/{name}", tag = "snapshots",
    params(SnapshotPath),
    responses((status = 200, description = "The snapshot", body = SnapshotView), VolumeRefusals),
)]
async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, name)): Path<(VolumeId, String)>,
) -> Result<JsonAnswer<SnapshotView>, ApiError> {
    reach(&auth, &state, id, Permission::SnapshotsRead).await?;
    let row = state.store.read("look up a snapshot", move |rx| rx.snapshot(id, &name)).await?;
    Ok(JsonAnswer(row.into()))
}

refusals!(RestoreRefusals: VOLUME, WORK, STATE, IN_USE; 507: "quota_exceeded");

/// Puts a volume back to a snapshot, in the background.
///
/// The volume's containers must be stopped; until it is done the volume takes no other calls.
#[utoipa::path(
    post, path = "/volumes/{id}/snapshots/{name}/restore", tag = "snapshots",
    params(SnapshotPath),
    responses((status = 202, description = "It is being restored", body = Told<StartedView>), RestoreRefusals),
)]
async fn restore(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, name)): Path<(VolumeId, String)>,
) -> Result<(StatusCode, JsonAnswer<Told<StartedView>>), ApiError> {
    reach(&auth, &state, id, Permission::SnapshotsWrite).await?;
    let operation_id = state
        .volumes
        .by(auth.actor())
        .restore_snapshot(&state.operations, id, name.clone())
        .await?;
    Ok(StartedView { operation_id, name }.told("The volume is being restored"))
}

refusals!(RemoveRefusals: VOLUME);

/// Deletes a snapshot.
#[utoipa::path(
    delete, path = "/volumes/{id}/snapshots/{name}", tag = "snapshots",
    params(SnapshotPath),
    responses((status = 200, description = "It is gone", body = DeletedView), RemoveRefusals),
)]
async fn remove(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, name)): Path<(VolumeId, String)>,
) -> Result<JsonAnswer<DeletedView>, ApiError> {
    reach(&auth, &state, id, Permission::SnapshotsWrite).await?;
    state.volumes.by(auth.actor()).remove_snapshot(id, name.clone()).await?;
    Ok(JsonAnswer(DeletedView { message: "Snapshot deleted", name }))
}
