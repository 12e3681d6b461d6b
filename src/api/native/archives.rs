//! Archives in a volume, made, looked into and taken apart.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::files::{entry_paths, must_be_free, must_exist};
use super::listing::{kind_name, octal};
use super::operations::{CancelOnDrop, Job, StartedView, Told};
use super::paging;
use super::recording::FileLog;
use super::volumes::{entry_path, folder_path, made, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::{EntryKind, Mode};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::audit::Action;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::domain::units::UnixSeconds;
use crate::files::archive::ArchiveFormat;
use crate::files::archive::list::ArchiveEntry;
use crate::files::archive::pack::{PackRequest, Packed};
use crate::files::archive::unpack::{UnpackRequest, Unpacked};
use crate::files::listing::{MAX_PAGE, Page};
use crate::files::operation::OperationKind;
use crate::files::{Progress, Volume};

/// All of them read or write whole trees.
pub(super) fn long_routes() -> Routes {
    Routes::default().routes(routes!(compress)).routes(routes!(decompress)).routes(routes!(list))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Compress, example = json!({"format": "zip", "output_name": "backup.zip", "paths": ["world"], "ignore": ["*.log"]}))]
#[serde(deny_unknown_fields)]
struct CompressBody {
    format: ArchiveFormat,
    /// Where the archive goes. The format's ending is added if it is missing.
    output_name: String,
    /// What to pack; nothing named is everything.
    #[serde(default)]
    paths: Vec<String>,
    /// Patterns of what to leave out: `*`, `?` and `**`, and no exceptions.
    #[serde(default)]
    ignore: Vec<String>,
    /// From fast to small; each format has its own.
    level: Option<u32>,
    #[serde(default)]
    overwrite: bool,
    /// Answer at once with the id of an operation.
    #[serde(default)]
    background: bool,
}

impl CompressBody {
    fn read(&self) -> Result<PackRequest, ApiError> {
        let output = entry_path("output_name", &self.output_name)?;
        Ok(PackRequest {
            format: self.format,
            output: with_ending(output, self.format)?,
            paths: entry_paths("paths", &self.paths)?,
            base: RelPath::root(),
            ignore: self.ignore.clone(),
            level: level_of(self.format, self.level, "level")?,
            overwrite: self.overwrite,
        })
    }
}

/// The level that is asked for, or the format's own.
pub(super) fn level_of(
    format: ArchiveFormat,
    asked: Option<u32>,
    field: &str,
) -> Result<u32, ApiError> {
    let (levels, level) = (format.levels(), asked.unwrap_or_else(|| format.default_level()));
    if levels.contains(&level) {
        return Ok(level);
    }
    let (fast, small) = levels.into_inner();
    let format = format.as_str();
    let message = format!("must be between {fast} (fast) and {small} (small) for {format}");
    Err(ApiError::field(field, message))
}

/// Adds the format's ending to a name that has not got it; short ones such as `.tgz` are as good.
fn with_ending(output: RelPath, format: ArchiveFormat) -> Result<RelPath, ApiError> {
    let lower = output.as_str().to_ascii_lowercase();
    if format.endings().iter().any(|ending| lower.ends_with(&format!(".{ending}"))) {
        return Ok(output);
    }
    entry_path("output_name", &format!("{output}.{}", format.as_str()))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Packed)]
struct PackedView {
    archive_path: RelPath,
    size: u64,
    entries: u64,
    /// Sockets, FIFOs and devices, which were left out.
    skipped: u64,
}

refusals!(PackRefusals: VOLUME, PATH, CHANGE, WORK; 400: "invalid_pattern", "archive_limit");

/// Packs files and folders into an archive.
#[utoipa::path(
    post, path = "/volumes/{id}/compress", tag = "archives",
    params(VolumePath), request_body = CompressBody,
    responses(
        (status = 200, description = "It has replaced another", body = Told<PackedView>),
        (status = 201, description = "It is there", body = Told<PackedView>),
        (status = 202, description = "It goes on in the background", body = Told<StartedView>),
        PackRefusals,
    ),
)]
async fn compress(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<CompressBody>,
) -> Result<Response, ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let request = body.read()?;
    let act = FileLog::new(&auth, &state, id).act(Action::ArchiveCompress);
    let act = act.with("archive", request.output.as_str()).listing("paths", &request.paths);
    let job = Job { state: &state, volume: &reached, kind: OperationKind::Compress, act };
    let checked = request.clone();
    let work = move |volume: &Volume, progress: &Progress| {
        let Packed { size, entries, skipped, is_new } = volume.pack(&request, progress)?;
        Ok((is_new, PackedView { archive_path: request.output, size, entries, skipped }))
    };
    if body.background {
        let check = move |volume: &Volume| {
            must_be_free(volume, &checked.output, checked.overwrite)?;
            checked.paths.iter().try_for_each(|path| must_exist(volume, path))
        };
        state.files.run(id, check).await?;
        return job.start(move |volume, progress| Ok(work(volume, progress)?.1)).await;
    }
    let (is_new, result) = job.run(work, |_| true).await?;
    Ok((made(is_new), JsonAnswer(Told { message: "Archive created", result })).into_response())
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Decompress, example = json!({"archive_path": "backup.zip", "destination": "back", "entries": ["world"]}))]
#[serde(deny_unknown_fields)]
struct DecompressBody {
    archive_path: String,
    /// The volume's root if it is left out.
    #[serde(default)]
    destination: String,
    /// What of the archive to take, folders with what is in them; nothing named is everything.
    #[serde(default)]
    #[schema(max_items = 1000)]
    entries: Vec<String>,
    /// What a single compressed file shall be called, if not as its archive without the ending.
    name: Option<String>,
    /// Answer at once with the id of an operation.
    #[serde(default)]
    background: bool,
}

impl DecompressBody {
    fn read(&self) -> Result<UnpackRequest, ApiError> {
        if self.entries.len() > MAX_WANTED {
            let message = format!("must be no more than {MAX_WANTED}; name folders instead");
            return Err(ApiError::field("entries", message));
        }
        let name = self.name.as_deref().map(|name| entry_path("name", name)).transpose()?;
        if name.as_ref().is_some_and(|name| name.names().count() > 1) {
            return Err(ApiError::field("name", "must be a name, not a path"));
        }
        Ok(UnpackRequest {
            archive: entry_path("archive_path", &self.archive_path)?,
            destination: folder_path("destination", &self.destination)?,
            entries: entry_paths("entries", &self.entries)?,
            name,
        })
    }
}

/// Each entry of an archive is held against all that are wanted.
const MAX_WANTED: usize = 1000;

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Unpacked)]
struct UnpackedView {
    destination: RelPath,
    entries: u64,
    /// Devices and FIFOs, and links that lead outside, which were left out.
    skipped: u64,
}

refusals!(UnpackRefusals: VOLUME, PATH, CHANGE, WORK, ARCHIVE);

/// Unpacks an archive, or some of it.
///
/// What kind it is its content says, not its name. Only once all of it has been read does anything enter its place; a
/// damaged one changes nothing.
#[utoipa::path(
    post, path = "/volumes/{id}/decompress", tag = "archives",
    params(VolumePath), request_body = DecompressBody,
    responses(
        (status = 201, description = "It is unpacked", body = Told<UnpackedView>),
        (status = 202, description = "It goes on in the background", body = Told<StartedView>),
        UnpackRefusals,
    ),
)]
async fn decompress(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<DecompressBody>,
) -> Result<Response, ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let request = body.read()?;
    let archive = request.archive.clone();
    let act = FileLog::new(&auth, &state, id).act(Action::ArchiveDecompress);
    let act = act.with("archive", archive.as_str());
    let act = act.with("destination", request.destination.as_str());
    let job = Job { state: &state, volume: &reached, kind: OperationKind::Decompress, act };
    let work = move |volume: &Volume, progress: &Progress| {
        let Unpacked { entries, skipped } = volume.unpack(&request, progress)?;
        Ok(UnpackedView { destination: request.destination, entries, skipped })
    };
    if body.background {
        state.files.run(id, move |volume| volume.open_read(&archive).map(drop)).await?;
        return job.start(work).await;
    }
    let result = job.run(work, |_| true).await?;
    let view = Told { message: "Archive extracted", result };
    Ok((StatusCode::CREATED, JsonAnswer(view)).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// The archive.
    #[serde(default)]
    #[param(required = true, example = "backup.zip")]
    path: String,
    /// So many entries at most; 1000 if it is left out.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ArchiveList)]
struct ListView {
    path: RelPath,
    /// As `compress` takes it; `gz`, `bz2`, `zst` or `xz` for a single compressed file.
    #[schema(example = "zip")]
    format: &'static str,
    entries: Vec<EntryView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ArchiveEntry)]
struct EntryView {
    #[schema(example = "world/level.dat")]
    name: String,
    #[serde(rename = "type")]
    #[schema(value_type = EntryKind)]
    kind: &'static str,
    /// `null` where only unpacking would tell.
    #[schema(required)]
    size: Option<u64>,
    #[schema(value_type = Mode)]
    mode: String,
    #[schema(required)]
    modified_at: Option<UnixSeconds>,
    /// Where a link leads, or which earlier entry this is the same file as.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    target: Option<String>,
}

impl From<ArchiveEntry> for EntryView {
    fn from(entry: ArchiveEntry) -> Self {
        let ArchiveEntry { name, kind, size, mode, modified_at, target } = entry;
        Self { name, kind: kind_name(kind), size, mode: octal(mode), modified_at, target }
    }
}

refusals!(LookRefusals: VOLUME, PATH, ARCHIVE; 400: "invalid_cursor"; 409: "cancelled");

/// Lists what is in an archive, without unpacking it.
#[utoipa::path(
    get, path = "/volumes/{id}/archive", tag = "archives",
    params(VolumePath, ListQuery),
    responses((status = 200, description = "A page of its entries", body = ListView), LookRefusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let path = entry_path("?path", &query.path)?;
    let limit = paging::limit_within(query.limit, DEFAULT_PAGE, MAX_PAGE)?;
    let (archive, page) = (path.clone(), Page { limit, cursor: query.cursor });
    let guard = CancelOnDrop(Progress::default());
    let look =
        move |volume: &Volume, progress: &Progress| volume.list_archive(&archive, &page, progress);
    let listing = state.files.run_long(id, guard.0.clone(), look).await?;
    let entries = listing.entries.into_iter().map(EntryView::from).collect();
    Ok(JsonAnswer(ListView { path, format: listing.format, entries, next_cursor: listing.next }))
}

const DEFAULT_PAGE: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_named_after_its_format() {
        for (given, format, want) in [
            ("backup", ArchiveFormat::Zip, "backup.zip"),
            ("a/backup.ZIP", ArchiveFormat::Zip, "a/backup.ZIP"),
            ("backup.tgz", ArchiveFormat::TarGz, "backup.tgz"),
            ("backup.tar", ArchiveFormat::TarGz, "backup.tar.tar.gz"),
            ("v1.2", ArchiveFormat::TarBz2, "v1.2.tar.bz2"),
        ] {
            let path = RelPath::parse(given).unwrap();
            assert_eq!(with_ending(path, format).unwrap().as_str(), want);
        }
        let long = RelPath::parse(&"x".repeat(253)).unwrap();
        assert_eq!(with_ending(long, ArchiveFormat::Zip).unwrap_err().code(), "invalid_path");
    }
}
