//! Files and folders of a volume: written in one piece, moved, copied and deleted. Content as a stream is
//! `contents`, and what is in a folder `listing`.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::listing::octal;
use super::operations::{Job, StartedView, Told};
use super::recording::FileLog;
use super::volumes::{entry_path, made, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::Mode;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::audit::Action;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::files::content::{WriteMode, Written};
use crate::files::operation::OperationKind;
use crate::files::{FileError, Lane, Progress, Volume};

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(write))
        .routes(routes!(make_folder))
        .routes(routes!(rename))
        .routes(routes!(chmod))
}

/// Calls on whole trees.
pub(super) fn long_routes() -> Routes {
    Routes::default().routes(routes!(delete_files)).routes(routes!(copy))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = WriteFile)]
#[serde(deny_unknown_fields)]
struct WriteBody {
    #[schema(example = "server.properties")]
    path: String,
    #[schema(example = "server-port=25565")]
    content: String,
    #[serde(default)]
    encoding: Encoding,
    /// Refuse to replace what is there.
    #[serde(default)]
    create_only: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
/// How `content` is written. `utf8` is `utf-8`.
#[schema(as = Encoding)]
enum Encoding {
    #[default]
    #[serde(rename = "utf-8", alias = "utf8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

impl WriteBody {
    fn content(self) -> Result<Vec<u8>, ApiError> {
        match self.encoding {
            Encoding::Utf8 => Ok(self.content.into_bytes()),
            Encoding::Base64 => STANDARD
                .decode(self.content)
                .map_err(|why| ApiError::field("content", format!("is not base64: {why}"))),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FileWritten)]
pub(super) struct WrittenView {
    #[schema(example = "File written")]
    message: &'static str,
    path: RelPath,
    size: u64,
}

/// The answer to a write, with the new content's tag for the next one's `If-Match`.
pub(super) fn written_answer(path: RelPath, written: &Written) -> Response {
    let message = if written.is_new { "File created" } else { "File written" };
    let view = WrittenView { message, path, size: written.size };
    let mut response = (made(written.is_new), JsonAnswer(view)).into_response();
    if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", written.etag)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

refusals!(ChangeRefusals: VOLUME, PATH, CHANGE; 404: "not_found");

/// Writes a file in one piece. It replaces what is there at once, or not at all.
#[utoipa::path(
    post, path = "/volumes/{id}/files", tag = "files",
    params(VolumePath), request_body = WriteBody,
    responses(
        (status = 200, description = "It has replaced another", body = WrittenView,
         headers(("ETag" = String, description = "Of the new content"))),
        (status = 201, description = "It is new", body = WrittenView,
         headers(("ETag" = String, description = "Of the new content"))),
        ChangeRefusals,
    ),
)]
async fn write(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<WriteBody>,
) -> Result<Response, ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let path = entry_path("path", &body.path)?;
    let mode = WriteMode { create_only: body.create_only, if_match: None };
    let (target, content, limit_bytes) = (path.clone(), body.content()?, reached.limit_bytes());
    let log = FileLog::new(&auth, &state, id);
    let work = move |volume: &Volume| {
        let progress = Progress::default();
        volume.hold_to(limit_bytes, volume.replaced_bytes(&target), &progress)?;
        progress.spend(content.len() as u64)?;
        let written = volume.write_atomic(&target, &mut content.as_slice(), &mode)?;
        log.wrote([&target]);
        Ok(written)
    };
    // What may be written is counted, which may go through all that is there.
    let written = state.files.run_in(Lane::Transfer, id, work).await?;
    Ok(written_answer(path, &written))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MakeFolder)]
#[serde(deny_unknown_fields)]
struct FolderBody {
    #[schema(example = "plugins/off")]
    path: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FolderMade)]
struct FolderView {
    #[schema(example = "Folder created")]
    message: &'static str,
    path: RelPath,
}

/// Makes a folder, and those above it.
#[utoipa::path(
    post, path = "/volumes/{id}/folders", tag = "files",
    params(VolumePath), request_body = FolderBody,
    responses(
        (status = 200, description = "It was there", body = FolderView),
        (status = 201, description = "It is new", body = FolderView),
        ChangeRefusals,
    ),
)]
async fn make_folder(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<FolderBody>,
) -> Result<(StatusCode, JsonAnswer<FolderView>), ApiError> {
    reach(&auth, &state, id, Permission::FilesWrite).await?;
    let path = entry_path("path", &body.path)?;
    let (folder, log) = (path.clone(), FileLog::new(&auth, &state, id));
    let work = move |volume: &Volume| {
        let is_new = !volume.exists(&folder)?;
        volume.mkdir_all(&folder)?;
        if is_new {
            log.note(log.act(Action::FilesMakeFolder).each("paths", [&folder]));
        }
        Ok(is_new)
    };
    let is_new = state.files.run(id, work).await?;
    let message = if is_new { "Folder created" } else { "Folder exists" };
    Ok((made(is_new), JsonAnswer(FolderView { message, path })))
}

/// From where to where.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Rename)]
#[serde(deny_unknown_fields)]
struct RenameBody {
    #[schema(example = "world")]
    source: String,
    #[schema(example = "world-2")]
    destination: String,
    #[serde(default)]
    overwrite: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Moved)]
struct MovedView {
    source: RelPath,
    destination: RelPath,
}

/// Moves a file or folder.
#[utoipa::path(
    post, path = "/volumes/{id}/rename", tag = "files",
    params(VolumePath), request_body = RenameBody,
    responses((status = 200, description = "It is there", body = Told<MovedView>), ChangeRefusals),
)]
async fn rename(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<RenameBody>,
) -> Result<JsonAnswer<Told<MovedView>>, ApiError> {
    reach(&auth, &state, id, Permission::FilesWrite).await?;
    let source = entry_path("source", &body.source)?;
    let destination = entry_path("destination", &body.destination)?;
    let (from, to) = (source.clone(), destination.clone());
    let log = FileLog::new(&auth, &state, id);
    let work = move |volume: &Volume| {
        if volume.rename(&from, &to, body.overwrite)? {
            let act = log.act(Action::FilesRename).with("source", from.as_str());
            log.note(act.with("destination", to.as_str()));
        }
        Ok(())
    };
    state.files.run(id, work).await?;
    let result = MovedView { source, destination };
    Ok(JsonAnswer(Told { message: "Moved", result }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Copy)]
#[serde(deny_unknown_fields)]
struct CopyBody {
    #[schema(example = "world")]
    source: String,
    #[schema(example = "world-2")]
    destination: String,
    #[serde(default)]
    overwrite: bool,
    /// Answer at once with the id of an operation.
    #[serde(default)]
    background: bool,
}

refusals!(WorkRefusals: VOLUME, PATH, CHANGE, WORK);

/// Copies a file or folder.
#[utoipa::path(
    post, path = "/volumes/{id}/copy", tag = "files",
    params(VolumePath), request_body = CopyBody,
    responses(
        (status = 200, description = "It has replaced another", body = Told<MovedView>),
        (status = 201, description = "It is there", body = Told<MovedView>),
        (status = 202, description = "It goes on in the background", body = Told<StartedView>),
        WorkRefusals,
    ),
)]
async fn copy(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<CopyBody>,
) -> Result<Response, ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let source = entry_path("source", &body.source)?;
    let destination = entry_path("destination", &body.destination)?;
    let act = FileLog::new(&auth, &state, id).act(Action::FilesCopy);
    let act = act.with("source", source.as_str()).with("destination", destination.as_str());
    let job = Job { state: &state, volume: &reached, kind: OperationKind::Copy, act };
    let moved = MovedView { source: source.clone(), destination: destination.clone() };
    let overwrite = body.overwrite;
    let work = move |volume: &Volume, progress: &Progress| {
        let is_new = !volume.exists(&moved.destination)?;
        volume.copy(&moved.source, &moved.destination, overwrite, progress)?;
        Ok((is_new, moved))
    };
    if body.background {
        let check = move |volume: &Volume| {
            must_exist(volume, &source)?;
            must_be_free(volume, &destination, overwrite)
        };
        state.files.run(id, check).await?;
        return job.start(move |volume, progress| Ok(work(volume, progress)?.1)).await;
    }
    let (is_new, result) = job.run(work, |_| true).await?;
    Ok((made(is_new), JsonAnswer(Told { message: "Copied", result })).into_response())
}

/// What is plainly wrong is refused before background work is accepted.
pub(super) fn must_exist(volume: &Volume, path: &RelPath) -> Result<(), FileError> {
    if volume.exists(path)? {
        return Ok(());
    }
    Err(FileError::NotFound { path: path.to_string() })
}

pub(super) fn must_be_free(
    volume: &Volume,
    path: &RelPath,
    overwrite: bool,
) -> Result<(), FileError> {
    if overwrite || !volume.exists(path)? {
        return Ok(());
    }
    Err(FileError::AlreadyExists { path: path.to_string() })
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Chmod)]
#[serde(deny_unknown_fields)]
struct ChmodBody {
    #[schema(example = "run.sh")]
    path: String,
    #[schema(value_type = Mode)]
    mode: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ModeChanged)]
struct ChangedView {
    #[schema(example = "Permissions changed")]
    message: &'static str,
    path: RelPath,
    #[schema(value_type = Mode)]
    mode: String,
}

/// Reads `0644` or `644`. More than permissions for owner, group and others is not to be had.
fn permissions(text: &str) -> Result<u32, ApiError> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= 0o777 => Ok(mode),
        _ => Err(ApiError::field("mode", "must be octal permissions such as 0644, at most 0777")),
    }
}

/// Changes the permissions of a file or folder. It never follows a symbolic link.
#[utoipa::path(
    post, path = "/volumes/{id}/chmod", tag = "files",
    params(VolumePath), request_body = ChmodBody,
    responses((status = 200, description = "It has them", body = ChangedView), ChangeRefusals),
)]
async fn chmod(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<ChmodBody>,
) -> Result<JsonAnswer<ChangedView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesWrite).await?;
    let path = entry_path("path", &body.path)?;
    let mode = permissions(&body.mode)?;
    let (target, log) = (path.clone(), FileLog::new(&auth, &state, id));
    let work = move |volume: &Volume| {
        if volume.chmod(&target, mode)? {
            let act = log.act(Action::FilesChmod).with("path", target.as_str());
            log.note(act.with("mode", octal(mode)));
        }
        Ok(())
    };
    state.files.run(id, work).await?;
    Ok(JsonAnswer(ChangedView { message: "Permissions changed", path, mode: octal(mode) }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = DeleteFiles)]
#[serde(deny_unknown_fields)]
struct DeleteBody {
    #[schema(min_items = 1, example = json!(["world-2", "logs/old.log"]))]
    paths: Vec<String>,
    /// Answer at once with the id of an operation.
    #[serde(default)]
    background: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FilesDeleted)]
struct DeletedView {
    /// Files and folders, with what was in them.
    #[schema(example = 2)]
    deleted: u64,
}

/// Deletes files and folders.
#[utoipa::path(
    delete, path = "/volumes/{id}/files", tag = "files",
    params(VolumePath), request_body = DeleteBody,
    responses(
        (status = 200, description = "They are gone", body = DeletedView),
        (status = 202, description = "It goes on in the background", body = Told<StartedView>),
        WorkRefusals,
    ),
)]
async fn delete_files(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<DeleteBody>,
) -> Result<Response, ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let paths = entry_paths("paths", &body.paths)?;
    if paths.is_empty() {
        return Err(ApiError::field("paths", "must name at least one file or folder"));
    }
    let act = FileLog::new(&auth, &state, id).act(Action::FilesDelete).each("paths", &paths);
    let job = Job { state: &state, volume: &reached, kind: OperationKind::Delete, act };
    let (named, work) = (paths.clone(), move |volume: &Volume, progress: &Progress| {
        volume.delete(&paths, progress).map(|deleted| DeletedView { deleted })
    });
    if body.background {
        let check =
            move |volume: &Volume| named.iter().try_for_each(|path| must_exist(volume, path));
        state.files.run(id, check).await?;
        return job.start(work).await;
    }
    Ok(JsonAnswer(job.run(work, |view| view.deleted > 0).await?).into_response())
}

pub(super) fn entry_paths(field: &str, texts: &[String]) -> Result<Vec<RelPath>, ApiError> {
    let each = texts.iter().enumerate();
    each.map(|(index, text)| entry_path(&format!("{field}[{index}]"), text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_octal_and_nothing_more() {
        for (text, want) in [("0644", 0o644), ("755", 0o755), ("0000", 0), ("0777", 0o777)] {
            assert_eq!(permissions(text).ok(), Some(want), "{text}");
        }
        for text in ["", "7", "64", "4755", "1777", "0888", "+644", "-644", "0o644", "00644", "rwx"]
        {
            assert!(permissions(text).is_err(), "{text}");
        }
    }
}
