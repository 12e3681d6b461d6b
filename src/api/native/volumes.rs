//! Volumes as things: made, listed, measured, resized and deleted.
//!
//! A folder without its row, which there is for a moment in a volume's beginning and end, is announced
//! in the store before, and removed at the next start if this process does not come to it.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::paging;
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, OptionalJson, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::Enforced;
use crate::api::state::AppState;
use crate::domain::access::{Permission, Resource, allows};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::path::RelPath;
use crate::domain::quota::QuotaBackend;
use crate::domain::units::{MIB, UnixSeconds};
use crate::files::operation::OperationState;
use crate::files::{Lane, Volume};
use crate::store::Read;
use crate::store::volumes::VolumeRow;

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(create, list)).routes(routes!(show)).routes(routes!(quota))
}

/// A volume may hold a million files, which take their time to go, and a file system its time to
/// change.
pub(super) fn long_routes() -> Routes {
    Routes::default().routes(routes!(remove)).routes(routes!(resize))
}

/// A volume, and what its containers mean for it.
pub(super) struct Reached {
    pub(super) row: VolumeRow,
    pub(super) used_by: Vec<ContainerId>,
    /// The least `limits.disk` of its containers: lightd holds the volume to that too.
    disk_bytes: Option<u64>,
}

impl Reached {
    /// The most that may be in it, whoever says so.
    pub(super) fn limit_bytes(&self) -> Option<u64> {
        self.row.size_bytes.into_iter().chain(self.disk_bytes).min()
    }

    /// Who holds the volume to the limit that counts.
    fn enforced(&self) -> &'static str {
        match (self.row.size_bytes, self.row.backing) {
            (Some(size), Some(backing)) if self.disk_bytes.is_none_or(|disk| size <= disk) => {
                backing.backend.enforced()
            }
            _ if self.limit_bytes().is_some() => "soft",
            _ => "none",
        }
    }
}

/// The volume, if this caller may do that with it. Whether it exists is not told to others.
pub(super) async fn reach(
    auth: &Auth,
    state: &AppState,
    id: VolumeId,
    permission: Permission,
) -> Result<Reached, ApiError> {
    let look = move |rx: &Read<'_>| {
        Ok((rx.volume(id), rx.containers_of_volume(id)?, rx.disk_limit_of(id)?))
    };
    let (row, used_by, disk_bytes) = state.store.read("look up a volume", look).await?;
    auth.require_on(permission, Resource::Volume { used_by: &used_by })?;
    Ok(Reached { row: row?, used_by, disk_bytes })
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

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = CreateVolume)]
#[serde(default, deny_unknown_fields)]
struct CreateBody {
    /// In MB; without one there is no limit.
    #[schema(minimum = 1, maximum = 1_073_741_824, example = 1024)]
    size: Option<u64>,
    #[schema(min_length = 1, max_length = 255, example = "world")]
    name: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Volume)]
struct VolumeView {
    volume_id: VolumeId,
    /// The same as `volume_id`.
    id: VolumeId,
    /// Where it lies on the node.
    #[schema(example = "/var/lib/lightd/volumes/0190c6a0-5f1e-4c8e-9d57-8a3f0c2b7e11")]
    path: String,
    #[schema(required, example = "world")]
    name: Option<String>,
    /// In bytes; `null` for no limit.
    #[schema(required, example = 1_073_741_824)]
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

refusals!(CreateRefusals: ; 503: "volume_unavailable", "quota_backend_unusable");

/// Makes a volume.
#[utoipa::path(
    post, path = "/volumes", tag = "volumes",
    request_body = Option<CreateBody>,
    responses((status = 201, description = "The volume", body = VolumeView), CreateRefusals),
)]
async fn create(
    auth: Auth,
    State(state): State<AppState>,
    OptionalJson(body): OptionalJson<CreateBody>,
) -> Result<(StatusCode, JsonAnswer<VolumeView>), ApiError> {
    auth.require(Permission::ContainersWrite)?;
    let (name, size_bytes) = (checked_name(body.name)?, size_bytes(body.size)?);
    let row = state.volumes.by(auth.actor()).create(name, size_bytes).await?;
    Ok((StatusCode::CREATED, JsonAnswer(VolumeView::new(&state, row, Vec::new()))))
}

/// Which volumes, and how many at once.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// A part of the name, in any case.
    name: Option<String>,
    /// Only those that no container uses, or only those that one does.
    unused: Option<bool>,
    /// So many at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

impl ListQuery {
    fn has(&self, row: &VolumeRow, used_by: &[ContainerId]) -> bool {
        let has_name = |part: &String| {
            let name = row.name.as_deref().unwrap_or_default();
            name.to_lowercase().contains(&part.to_lowercase())
        };
        self.name.as_ref().is_none_or(has_name)
            && self.unused.is_none_or(|unused| unused == used_by.is_empty())
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VolumeList)]
struct ListView {
    volumes: Vec<VolumeView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

refusals!(ListRefusals: ; 400: "invalid_cursor");

/// Lists the volumes that the token may see, the oldest first.
#[utoipa::path(
    get, path = "/volumes", tag = "volumes",
    params(ListQuery),
    responses((status = 200, description = "A page of them", body = ListView), ListRefusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    auth.require_for_list(Permission::FilesRead)?;
    let limit = paging::limit(query.limit)?;
    let after = paging::cursor(query.cursor.as_deref(), read_cursor)?;
    let principal = auth.principal().clone();
    let is_wanted = move |row: &VolumeRow, used_by: &[ContainerId]| {
        query.has(row, used_by)
            && allows(&principal, Permission::FilesRead, Resource::Volume { used_by })
    };
    // One more than asked for says that there is another page.
    let look = move |rx: &Read<'_>| rx.volumes_after(after, limit + 1, is_wanted);
    let found = state.store.read("list the volumes", look).await?;
    let cursor_of = |(row, _): &(VolumeRow, _)| format!("{}-{}", row.created_at.0, row.id);
    let (found, next_cursor) = paging::page(found, limit, cursor_of);
    let view = |(row, used_by)| VolumeView::new(&state, row, used_by);
    Ok(JsonAnswer(ListView { volumes: found.into_iter().map(view).collect(), next_cursor }))
}

fn read_cursor(text: &str) -> Option<(UnixSeconds, VolumeId)> {
    let (created_at, id) = text.split_once('-')?;
    Some((UnixSeconds(created_at.parse().ok()?), VolumeId::parse(id)?))
}

refusals!(NamedRefusals: ; 404: "not_found");

/// Shows a volume.
#[utoipa::path(
    get, path = "/volumes/{id}", tag = "volumes",
    params(VolumePath),
    responses((status = 200, description = "The volume", body = VolumeView), NamedRefusals),
)]
async fn show(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
) -> Result<JsonAnswer<VolumeView>, ApiError> {
    let found = reach(&auth, &state, id, Permission::FilesRead).await?;
    Ok(JsonAnswer(VolumeView::new(&state, found.row, found.used_by)))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VolumeDeleted)]
struct DeletedView {
    #[schema(example = "Volume deleted")]
    message: &'static str,
    volume_id: VolumeId,
}

refusals!(RemoveRefusals: VOLUME; 409: "volume_in_use");

/// Deletes a volume with everything in it, and ends what goes on in it.
#[utoipa::path(
    delete, path = "/volumes/{id}", tag = "volumes",
    params(VolumePath),
    responses((status = 200, description = "It is gone", body = DeletedView), RemoveRefusals),
)]
async fn remove(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
) -> Result<JsonAnswer<DeletedView>, ApiError> {
    reach(&auth, &state, id, Permission::ContainersWrite).await?;
    let operations = state.operations.clone();
    let cancel = move || {
        for operation in operations.list() {
            if operation.volume == id && operation.state == OperationState::Running {
                operations.cancel(operation.id);
            }
        }
    };
    let removed = state.volumes.by(auth.actor()).remove(id, cancel).await;
    removed.map_err(|refusal| auth.told(refusal))?;
    Ok(JsonAnswer(DeletedView { message: "Volume deleted", volume_id: id }))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Quota)]
struct QuotaView {
    /// In bytes; `null` for no limit.
    #[schema(required, example = 1_073_741_824)]
    size: Option<u64>,
    #[schema(example = 734_003_200)]
    used: u64,
    #[schema(example = 339_738_624)]
    available: u64,
    /// It holds more than it should.
    exceeded: bool,
    /// Who keeps it from that: the kernel, lightd as far as lightd writes, or nobody.
    #[schema(value_type = Enforced)]
    enforced: &'static str,
    #[schema(required)]
    backend: Option<QuotaBackend>,
}

impl QuotaView {
    async fn of(state: &AppState, found: &Reached) -> Result<Self, ApiError> {
        let limit_bytes = found.limit_bytes();
        // The first look at a volume goes through all of it.
        let count = move |volume: &Volume| volume.usage(limit_bytes);
        let usage = state.files.run_in(Lane::Scan, found.row.id, count).await?;
        Ok(Self {
            size: limit_bytes,
            used: usage.used_bytes,
            available: usage.available_bytes,
            exceeded: limit_bytes.is_some_and(|limit| usage.used_bytes > limit),
            enforced: found.enforced(),
            backend: found.row.backing.map(|backing| backing.backend),
        })
    }
}

refusals!(QuotaRefusals: VOLUME);

/// Shows how full a volume is, and who holds it to its size.
#[utoipa::path(
    get, path = "/volumes/{id}/quota", tag = "volumes",
    params(VolumePath),
    responses((status = 200, description = "Its size and what is in it", body = QuotaView), QuotaRefusals),
)]
async fn quota(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
) -> Result<JsonAnswer<QuotaView>, ApiError> {
    let found = reach(&auth, &state, id, Permission::FilesRead).await?;
    Ok(JsonAnswer(QuotaView::of(&state, &found).await?))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ResizeVolume)]
#[serde(deny_unknown_fields)]
struct ResizeBody {
    /// In MB; `null` for no limit. Must be there: what is left out by mistake shall not take the limit away.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required, minimum = 1, maximum = 1_073_741_824, example = 2048)]
    size: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VolumeResized)]
struct ResizedView {
    #[schema(example = "Volume resized")]
    message: &'static str,
    volume_id: VolumeId,
    #[serde(flatten)]
    quota: QuotaView,
}

refusals!(ResizeRefusals: VOLUME, STATE, IN_USE; 409: "below_use", "backend_fixed");

/// Gives a volume another size.
#[utoipa::path(
    post, path = "/volumes/{id}/resize", tag = "volumes",
    params(VolumePath), request_body = ResizeBody,
    responses((status = 200, description = "It has that size", body = ResizedView), ResizeRefusals),
)]
async fn resize(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<ResizeBody>,
) -> Result<JsonAnswer<ResizedView>, ApiError> {
    let mut found = reach(&auth, &state, id, Permission::ContainersWrite).await?;
    found.row = state.volumes.by(auth.actor()).resize(id, size_bytes(body.size)?).await?;
    let quota = QuotaView::of(&state, &found).await?;
    Ok(JsonAnswer(ResizedView { message: "Volume resized", volume_id: id, quota }))
}
