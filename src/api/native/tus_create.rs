//! How an upload that can go on after a break begins: on its own, or joined from parts.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::tus::{
    CONCAT, DEFER_LENGTH, LENGTH, METADATA, TusHeaders, checksum_of, is_piece, limits, receive,
    speaks_version, tell,
};
use super::tus_headers::{Concat, metadata, metadata_value, number, part_id};
use super::volumes::{folder_path, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::Binary;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::files::resumable::{Info, Lock, Piece, Resumable, ResumableLimits};
use crate::files::{FileError, Lane, Progress, Volume};

/// The parts that one upload may be joined from.
const MAX_PARTS: usize = 64;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct CreateQuery {
    /// The folder that names are counted from; the volume's root if it is left out.
    #[serde(default)]
    #[param(required = false, example = "world")]
    path: String,
    /// Refuse to replace what is there.
    #[serde(default)]
    #[param(required = false)]
    create_only: bool,
}

refusals!(
    CreateRefusals: VOLUME, PATH, CHANGE, UPLOAD;
    409: "upload_incomplete";
    429: "too_many_uploads"
);

/// Begins an upload that can go on after a break (tus 1.0), or joins parts to one.
///
/// Any client of tus does this by itself. Of `Upload-Length`, `Upload-Defer-Length` and a final `Upload-Concat` exactly
/// one is needed.
#[utoipa::path(
    post, path = "/volumes/{id}/tus", tag = "uploads",
    params(
        VolumePath, CreateQuery, TusHeaders,
        ("Upload-Length" = Option<u64>, Header, description = "Bytes in all"),
        ("Upload-Defer-Length" = Option<u64>, Header, description = "`1`: the length is told later"),
        ("Upload-Metadata" = Option<String>, Header, description = "Pairs of a key and a value in base64; one of `path`, `relativePath`, `filename`, `name` names the file"),
        ("Upload-Concat" = Option<String>, Header, description = "`partial`, or `final;` and the addresses of the parts"),
        ("Upload-Checksum" = Option<String>, Header, description = "Of the first piece, if it comes along: an algorithm and the sum in base64"),
    ),
    request_body(content = Option<Binary>, description = "The first piece, if there is one", content_type = "application/offset+octet-stream"),
    responses(
        (status = 201, description = "It is begun", headers(
            ("Location" = String, description = "Of the upload"), ("Upload-Offset" = u64), ("Upload-Expires" = String),
            ("Tus-Resumable" = String),
        )),
        CreateRefusals,
    ),
)]
pub(super) async fn create(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<CreateQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    speaks_version(request.headers())?;
    let concat = request.headers().get(CONCAT).map(Concat::read).transpose()?;
    let info = info_of(&query, request.headers(), concat.as_ref())?;
    let limits = limits(&state, &reached);
    let (made, lock) = match concat {
        Some(Concat::Final(parts)) => join(&state, id, info, &parts, limits).await?,
        Some(Concat::Partial) | None => {
            let locks = state.files.resumable_locks().clone();
            let work = move |volume: &Volume| {
                volume.create_resumable(info, &limits, |id| locks.try_lock(id))
            };
            // What it may hold is counted, which may go through all that is there.
            state.files.run_in(Lane::Scan, id, work).await?
        }
    };
    let location = format!("/volumes/{id}/tus/{}", made.id);
    let brings_data = request.headers().get(header::CONTENT_TYPE).is_some_and(is_piece);
    let made = if brings_data && made.info.length != Some(made.offset) {
        let piece = Piece { offset: 0, length: None, checksum: checksum_of(request.headers())? };
        receive(&state, id, lock, piece, limits, request).await?
    } else {
        drop(lock);
        made
    };
    let mut response = StatusCode::CREATED.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, HeaderValue::try_from(location).map_err(ApiError::internal)?);
    tell(headers, &state, &made);
    Ok(response)
}

/// What an upload is to become, as its headers say.
fn info_of(
    query: &CreateQuery,
    headers: &HeaderMap,
    concat: Option<&Concat>,
) -> Result<Info, ApiError> {
    let length = number(headers, &LENGTH)?;
    let is_deferred = headers.get(DEFER_LENGTH).is_some_and(|value| value == "1");
    let is_joined = matches!(concat, Some(Concat::Final(_)));
    if length.is_some() == (is_deferred || is_joined) {
        let message = "exactly one of Upload-Length, Upload-Defer-Length: 1 and a final \
                       Upload-Concat is needed";
        return Err(ApiError::field("Upload-Length", message));
    }
    let pairs = metadata(headers.get(METADATA))?;
    let path = if matches!(concat, Some(Concat::Partial)) {
        None
    } else {
        Some(destination(query, &pairs)?.to_string())
    };
    let create_only = query.create_only
        || metadata_value(&pairs, "create_only").is_some_and(|value| value == "true");
    let metadata = headers.get(METADATA).and_then(|text| text.to_str().ok()).map(str::to_owned);
    Ok(Info { length, path, create_only, metadata, is_joined })
}

/// Where the file goes: what clients call its name differs.
fn destination(query: &CreateQuery, pairs: &[(String, String)]) -> Result<RelPath, ApiError> {
    let folder = folder_path("?path", &query.path)?;
    let named = ["path", "relativePath", "filename", "name"]
        .into_iter()
        .find_map(|key| metadata_value(pairs, key).map(|value| (key, value)));
    let Some((key, name)) = named else {
        let message = "must name the file, as filename, relativePath or path";
        return Err(ApiError::field("Upload-Metadata", message));
    };
    let field = format!("Upload-Metadata {key}");
    let below =
        RelPath::parse_non_empty(name).map_err(|why| ApiError::invalid_path(&field, &why))?;
    folder.join(&below).map_err(|why| ApiError::invalid_path(&field, &why))
}

async fn join(
    state: &AppState,
    id: VolumeId,
    info: Info,
    parts: &[String],
    limits: ResumableLimits,
) -> Result<(Resumable, Lock), ApiError> {
    if parts.is_empty() || parts.len() > MAX_PARTS {
        let message = format!("must name 1 to {MAX_PARTS} parts");
        return Err(ApiError::field("Upload-Concat", message));
    }
    let locks = state.files.resumable_locks();
    let mut held: Vec<Lock> = Vec::with_capacity(parts.len());
    for part in parts {
        let part = part_id(part).ok_or(FileError::NoUpload)?;
        held.push(locks.try_lock(part)?);
    }
    let locks = locks.clone();
    let work = move |volume: &Volume| {
        let progress = Progress::default();
        volume.join_resumables(info, &held, &limits, |id| locks.try_lock(id), &progress)
    };
    Ok(state.files.run_in(Lane::Transfer, id, work).await?)
}
