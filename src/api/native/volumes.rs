//! Volumes as things: made, listed, measured, resized and deleted.
//!
//! A folder without its row, which there is for a moment in a volume's beginning and end, is announced
//! in the store before, and removed at the next start if this process does not come to it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json as JsonAnswer, Router};
use serde::{Deserialize, Serialize};

use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, OptionalJson, Path};
use crate::api::state::AppState;
use crate::domain::access::{Permission, Resource, allows};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::path::RelPath;
use crate::domain::units::{MIB, UnixSeconds};
use crate::files::listing::MAX_PAGE;
use crate::files::operation::OperationState;
use crate::store::volumes::VolumeRow;
use crate::store::{Read, StoreError};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/volumes", post(create).get(list))
        .route("/volumes/{id}", get(show))
        .route("/volumes/{id}/quota", get(quota))
        .route("/volumes/{id}/resize", post(resize))
}

/// A volume may hold a million files, which take their time to go.
pub(super) fn long_routes() -> Router<AppState> {
    Router::new().route("/volumes/{id}", delete(remove))
}

/// The volume, if this caller may do that with it. Whether it exists is not told to others.
pub(super) async fn reach(
    auth: &Auth,
    state: &AppState,
    id: VolumeId,
    permission: Permission,
) -> Result<VolumeRow, ApiError> {
    find(auth, state, id, permission).await.map(|(row, _)| row)
}

async fn find(
    auth: &Auth,
    state: &AppState,
    id: VolumeId,
    permission: Permission,
) -> Result<(VolumeRow, Vec<ContainerId>), ApiError> {
    let look = move |rx: &Read<'_>| Ok((rx.volume(id), rx.containers_of_volume(id)?));
    let (row, used_by) = state.store.read("look up a volume", look).await?;
    auth.require_on(permission, Resource::Volume { used_by: &used_by })?;
    Ok((row?, used_by))
}

/// Reads a path that names a file or folder.
pub(super) fn entry_path(field: &str, text: &str) -> Result<RelPath, ApiError> {
    RelPath::parse_non_empty(text).map_err(|why| ApiError::invalid_path(field, &why))
}

/// Reads a path that may also be the volume's root.
pub(super) fn folder_path(field: &str, text: &str) -> Result<RelPath, ApiError> {
    RelPath::parse(text).map_err(|why| ApiError::invalid_path(field, &why))
}

/// Reads how many entries a page shall hold.
pub(super) fn page_limit(asked: Option<usize>, default: usize) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(default);
    if (1..=MAX_PAGE).contains(&limit) {
        Ok(limit)
    } else {
        Err(ApiError::field("?limit", format!("must be between 1 and {MAX_PAGE}")))
    }
}

/// 201 for what was made, 200 for what only replaced another.
pub(super) fn made(is_new: bool) -> StatusCode {
    if is_new { StatusCode::CREATED } else { StatusCode::OK }
}

const MAX_SIZE_MB: u64 = 1 << 30;
const MAX_NAME_CHARS: usize = 255;

fn size_bytes(size_mb: Option<u64>) -> Result<Option<u64>, ApiError> {
    match size_mb {
        Some(mb) if !(1..=MAX_SIZE_MB).contains(&mb) => {
            let message = format!("must be between 1 and {MAX_SIZE_MB} MB, or null for no limit");
            Err(ApiError::field("size", message))
        }
        size_mb => Ok(size_mb.map(|mb| mb * MIB)),
    }
}

fn checked_name(name: Option<String>) -> Result<Option<String>, ApiError> {
    let is_bad = |name: &String| {
        let length = name.chars().count();
        !(1..=MAX_NAME_CHARS).contains(&length) || name.chars().any(char::is_control)
    };
    if name.as_ref().is_some_and(is_bad) {
        let message = format!("must be 1 to {MAX_NAME_CHARS} characters, none a control character");
        return Err(ApiError::field("name", message));
    }
    Ok(name)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CreateBody {
    /// In MB.
    size: Option<u64>,
    name: Option<String>,
}

#[derive(Debug, Serialize)]
struct VolumeView {
    volume_id: VolumeId,
    id: VolumeId,
    path: String,
    name: Option<String>,
    /// In bytes; `null` for no limit.
    size: Option<u64>,
    created_at: UnixSeconds,
    /// The containers that use it.
    containers: Vec<ContainerId>,
}

impl VolumeView {
    fn new(state: &AppState, row: VolumeRow, containers: Vec<ContainerId>) -> Self {
        Self {
            volume_id: row.id,
            id: row.id,
            path: state.files.volume_path(row.id).to_string_lossy().into_owned(),
            name: row.name,
            size: row.size_bytes,
            created_at: row.created_at,
            containers,
        }
    }
}

async fn create(
    auth: Auth,
    State(state): State<AppState>,
    OptionalJson(body): OptionalJson<CreateBody>,
) -> Result<(StatusCode, JsonAnswer<VolumeView>), ApiError> {
    auth.require(Permission::ContainersWrite)?;
    let row = VolumeRow {
        id: VolumeId::random(),
        name: checked_name(body.name)?,
        size_bytes: size_bytes(body.size)?,
        created_at: UnixSeconds::now(),
    };
    let (id, stored) = (row.id, row.clone());
    state.store.write("announce a volume", move |tx| tx.announce_volume_folder(id)).await?;
    state.files.create_volume(id).await?;
    state.store.write("store a volume", move |tx| tx.insert_volume(&stored)).await?;
    Ok((StatusCode::CREATED, JsonAnswer(VolumeView::new(&state, row, Vec::new()))))
}

#[derive(Debug, Serialize)]
struct ListView {
    volumes: Vec<VolumeView>,
}

async fn list(auth: Auth, State(state): State<AppState>) -> Result<JsonAnswer<ListView>, ApiError> {
    auth.require_for_list(Permission::FilesRead)?;
    let look = state.store.read("list the volumes", |rx| {
        let with_users = |row: VolumeRow| Ok((rx.containers_of_volume(row.id)?, row));
        rx.volumes()?.into_iter().map(with_users).collect::<Result<Vec<_>, StoreError>>()
    });
    let seen = |used_by: &[ContainerId]| {
        allows(auth.principal(), Permission::FilesRead, Resource::Volume { used_by })
    };
    let rows = look.await?.into_iter().filter(|(used_by, _)| seen(used_by));
    let volumes = rows.map(|(used_by, row)| VolumeView::new(&state, row, used_by)).collect();
    Ok(JsonAnswer(ListView { volumes }))
}

async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
) -> Result<JsonAnswer<VolumeView>, ApiError> {
    let (row, used_by) = find(&auth, &state, id, Permission::FilesRead).await?;
    Ok(JsonAnswer(VolumeView::new(&state, row, used_by)))
}

#[derive(Debug, Serialize)]
struct DeletedView {
    message: &'static str,
    volume_id: VolumeId,
}

async fn remove(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
) -> Result<JsonAnswer<DeletedView>, ApiError> {
    reach(&auth, &state, id, Permission::ContainersWrite).await?;
    state.store.write("delete a volume", move |tx| tx.delete_volume(id)).await?;
    for operation in state.operations.list() {
        if operation.volume == id && operation.state == OperationState::Running {
            state.operations.cancel(operation.id);
        }
    }
    state.files.remove_volume(id).await?;
    state.store.write("forget a volume's folder", move |tx| tx.forget_volume_folder(id)).await?;
    Ok(JsonAnswer(DeletedView { message: "Volume deleted", volume_id: id }))
}

#[derive(Debug, Serialize)]
struct QuotaView {
    /// In bytes; `null` for no limit.
    size: Option<u64>,
    used: u64,
    available: u64,
    enforced: &'static str,
}

impl QuotaView {
    async fn of(state: &AppState, row: &VolumeRow) -> Result<Self, ApiError> {
        let limit_bytes = row.size_bytes;
        let usage = state.files.run(row.id, move |volume| volume.usage(limit_bytes)).await?;
        Ok(Self {
            size: limit_bytes,
            used: usage.used_bytes,
            available: usage.available_bytes,
            enforced: if limit_bytes.is_some() { "soft" } else { "none" },
        })
    }
}

async fn quota(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
) -> Result<JsonAnswer<QuotaView>, ApiError> {
    let row = reach(&auth, &state, id, Permission::FilesRead).await?;
    Ok(JsonAnswer(QuotaView::of(&state, &row).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResizeBody {
    /// In MB. Must be there: what is left out by mistake shall not take the limit away.
    #[serde(deserialize_with = "Option::deserialize")]
    size: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ResizedView {
    message: &'static str,
    volume_id: VolumeId,
    #[serde(flatten)]
    quota: QuotaView,
}

async fn resize(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<ResizeBody>,
) -> Result<JsonAnswer<ResizedView>, ApiError> {
    let mut row = reach(&auth, &state, id, Permission::ContainersWrite).await?;
    row.size_bytes = size_bytes(body.size)?;
    let size_bytes = row.size_bytes;
    state.store.write("resize a volume", move |tx| tx.resize_volume(id, size_bytes)).await?;
    let quota = QuotaView::of(&state, &row).await?;
    Ok(JsonAnswer(ResizedView { message: "Volume resized", volume_id: id, quota }))
}
