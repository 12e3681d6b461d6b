//! Uploads that go on where they broke off: tus 1.0 with creation, creation with upload, deferred
//! length, termination, checksum, expiration and concatenation.
//!
//! `PATCH` has one request at a time per upload; a second one is told so (423). `HEAD` and `DELETE` end
//! the one that is there: a client that asks how far it has come is not sending any more, and what
//! lightd still reads from is a dead connection. What had arrived by then is kept.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::routes;

use super::body::{Begin, bridge};
use super::tus_headers::{
    Concat, checksum, metadata, metadata_value, number, part_id, required_number,
};
use super::volumes::{Reached, folder_path, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::Binary;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::domain::units::UnixSeconds;
use crate::files::digest::Algorithm;
use crate::files::resumable::{Info, Lock, Piece, Resumable, ResumableId, ResumableLimits};
use crate::files::{FileError, Lane, Progress, Volume};

const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
const RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const EXTENSIONS: &str = "creation,creation-with-upload,creation-defer-length,termination,checksum,\
                          expiration,concatenation";
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const LENGTH: HeaderName = HeaderName::from_static("upload-length");
const DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");
const METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const CONCAT: HeaderName = HeaderName::from_static("upload-concat");
const CHECKSUM: HeaderName = HeaderName::from_static("upload-checksum");
const EXPIRES: HeaderName = HeaderName::from_static("upload-expires");
const OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");
const PIECE_TYPE: &str = "application/offset+octet-stream";
/// The parts that one upload may be joined from.
const MAX_PARTS: usize = 64;

pub(super) fn long_routes() -> Routes {
    Routes::default()
        .routes(routes!(create, capabilities))
        .routes(routes!(status, append, terminate, overridden, upload_capabilities))
        .route_layer(map_response(async |mut response: Response| {
            response.headers_mut().insert(RESUMABLE, VERSION);
            response
        }))
}

/// Tells what this server can do, as tus has it. A browser asks before it has a token to show.
#[utoipa::path(
    options, path = "/volumes/{id}/tus", tag = "uploads", security(()),
    params(VolumePath),
    responses((status = 204, description = "Its abilities", headers(
        ("Tus-Resumable" = String), ("Tus-Version" = String), ("Tus-Extension" = String), ("Tus-Max-Size" = u64),
        ("Tus-Checksum-Algorithm" = String),
    ))),
)]
async fn capabilities(State(state): State<AppState>) -> Response {
    let fixed = HeaderValue::from_static;
    let algorithms: Vec<&str> = Algorithm::ALL.iter().map(|one| one.as_str()).collect();
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert("tus-version", VERSION);
    headers.insert("tus-extension", fixed(EXTENSIONS));
    headers.insert("tus-max-size", state.config.current().uploads.max_bytes.into());
    if let Ok(list) = HeaderValue::try_from(algorithms.join(",")) {
        headers.insert("tus-checksum-algorithm", list);
    }
    response
}

/// The same, asked at an upload.
#[utoipa::path(
    options, path = "/volumes/{id}/tus/{upload}", tag = "uploads", security(()),
    params(UploadPath),
    responses((status = 204, description = "Its abilities", headers(
        ("Tus-Resumable" = String), ("Tus-Version" = String), ("Tus-Extension" = String), ("Tus-Max-Size" = u64),
        ("Tus-Checksum-Algorithm" = String),
    ))),
)]
async fn upload_capabilities(state: State<AppState>) -> Response {
    capabilities(state).await
}

fn speaks_version(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get(RESUMABLE).is_some_and(|version| *version == VERSION) {
        Ok(())
    } else {
        Err(ApiError::tus_version())
    }
}

fn limits(state: &AppState, reached: &Reached) -> ResumableLimits {
    let uploads = state.config.current().uploads;
    ResumableLimits {
        max_bytes: uploads.max_bytes,
        max_per_volume: uploads.max_unfinished,
        limit_bytes: reached.limit_bytes(),
    }
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes what `Path<(VolumeId, String)>` reads")]
struct UploadPath {
    /// The volume's id.
    id: VolumeId,
    /// The upload, as its `Location` names it.
    #[param(example = "0190c6a2-02a4-4c3e-8f11-6b5a4c3d2e1f")]
    upload: String,
}

/// What every call but `OPTIONS` brings.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "headers are read by hand")]
struct TusHeaders {
    #[param(rename = "Tus-Resumable", pattern = "^1\\.0\\.0$", example = "1.0.0")]
    tus_resumable: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CreateQuery {
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
async fn create(
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

fn is_piece(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default();
    let kind = kind.split_once(';').map_or(kind, |(kind, _)| kind);
    kind.trim().eq_ignore_ascii_case(PIECE_TYPE)
}

fn checksum_of(headers: &HeaderMap) -> Result<Option<(Algorithm, Vec<u8>)>, ApiError> {
    headers.get(CHECKSUM).map(checksum).transpose()
}

async fn find(
    auth: &Auth,
    state: &AppState,
    (id, upload): (VolumeId, &str),
    headers: &HeaderMap,
) -> Result<(Reached, ResumableId), ApiError> {
    let reached = reach(auth, state, id, Permission::FilesWrite).await?;
    speaks_version(headers)?;
    let upload = ResumableId::parse(upload).ok_or(FileError::NoUpload)?;
    Ok((reached, upload))
}

refusals!(EndRefusals: VOLUME; 412: "tus_version"; 423: "upload_locked");

/// Tells how far an upload has come. It ends a request that is still sending.
#[utoipa::path(
    head, path = "/volumes/{id}/tus/{upload}", tag = "uploads",
    params(UploadPath, TusHeaders),
    responses(
        (status = 200, description = "As it stands", headers(
            ("Upload-Offset" = u64), ("Upload-Length" = Option<u64>), ("Upload-Defer-Length" = Option<u64>),
            ("Upload-Metadata" = Option<String>), ("Upload-Concat" = Option<String>), ("Upload-Expires" = String),
            ("Tus-Resumable" = String),
        )),
        EndRefusals,
    ),
)]
async fn status(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, upload)): Path<(VolumeId, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (_, upload) = find(&auth, &state, (id, &upload), &headers).await?;
    let lock = state.files.resumable_locks().lock(upload).await?;
    let seen = state.files.run(id, move |volume| volume.resumable(&lock)).await?;
    let mut response = StatusCode::OK.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match seen.info.length {
        Some(length) => headers.insert(LENGTH, length.into()),
        None => headers.insert(DEFER_LENGTH, 1.into()),
    };
    if let Some(Ok(metadata)) = seen.info.metadata.as_deref().map(HeaderValue::try_from) {
        headers.insert(METADATA, metadata);
    }
    if seen.info.path.is_none() {
        headers.insert(CONCAT, HeaderValue::from_static("partial"));
    } else if seen.info.is_joined {
        headers.insert(CONCAT, HeaderValue::from_static("final"));
    }
    tell(headers, &state, &seen);
    Ok(response)
}

refusals!(AppendRefusals: VOLUME, PATH, CHANGE, UPLOAD; 415: "unsupported_media_type");

/// Brings the next piece of an upload.
#[utoipa::path(
    patch, path = "/volumes/{id}/tus/{upload}", tag = "uploads",
    params(
        UploadPath, TusHeaders,
        ("Upload-Offset" = u64, Header, description = "Where the piece begins: as far as the upload has come"),
        ("Upload-Length" = Option<u64>, Header, description = "Bytes in all, where that was left open"),
        ("Upload-Checksum" = Option<String>, Header, description = "An algorithm and the sum in base64; a piece that has another does not count (460)"),
    ),
    request_body(content = Binary, content_type = "application/offset+octet-stream"),
    responses(
        (status = 204, description = "It has arrived", headers(
            ("Upload-Offset" = u64), ("Upload-Expires" = String), ("Tus-Resumable" = String),
        )),
        AppendRefusals,
    ),
)]
async fn append(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, upload)): Path<(VolumeId, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    let (reached, upload) = find(&auth, &state, (id, &upload), headers).await?;
    if !headers.get(header::CONTENT_TYPE).is_some_and(is_piece) {
        let message = "Content-Type: application/offset+octet-stream is needed";
        return Err(ApiError::unsupported_media_type(message));
    }
    let piece = Piece {
        offset: required_number(headers, &OFFSET)?,
        length: number(headers, &LENGTH)?,
        checksum: checksum_of(headers)?,
    };
    let lock = state.files.resumable_locks().try_lock(upload)?;
    let limits = limits(&state, &reached);
    let now = receive(&state, id, lock, piece, limits, request).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    tell(response.headers_mut(), &state, &now);
    Ok(response)
}

/// Takes in a piece, until it ends, breaks off, or another request wants the upload.
async fn receive(
    state: &AppState,
    id: VolumeId,
    lock: Lock,
    piece: Piece,
    limits: ResumableLimits,
    request: Request,
) -> Result<Resumable, ApiError> {
    let (sender, mut incoming) = bridge(Progress::default(), Begin::of(request.headers()));
    let wanted = lock.wanted();
    let work = move |volume: &Volume| {
        let progress = incoming.progress.clone();
        volume.append(&lock, &piece, &mut incoming, &progress, &limits)
    };
    let appended = state.files.run_in(Lane::Transfer, id, work);
    tokio::pin!(appended);
    let appended = tokio::select! {
        biased;
        done = &mut appended => done?,
        () = wanted.cancelled() => {
            // What has arrived is written and the lock goes on to whoever waits for it.
            appended.await?
        }
        () = sender.send_all(request.into_body()) => appended.await?,
    };
    Ok(appended)
}

/// Gives an upload up.
#[utoipa::path(
    delete, path = "/volumes/{id}/tus/{upload}", tag = "uploads",
    params(UploadPath, TusHeaders),
    responses((status = 204, description = "It is gone", headers(("Tus-Resumable" = String))), EndRefusals),
)]
async fn terminate(
    auth: Auth,
    State(state): State<AppState>,
    Path((id, upload)): Path<(VolumeId, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let (_, upload) = find(&auth, &state, (id, &upload), &headers).await?;
    let lock = state.files.resumable_locks().lock(upload).await?;
    state.files.run(id, move |volume| volume.remove_resumable(&lock)).await?;
    Ok(StatusCode::NO_CONTENT)
}

refusals!(
    OverrideRefusals: VOLUME, PATH, CHANGE, UPLOAD;
    405: "method_not_allowed";
    415: "unsupported_media_type"
);

/// `PATCH` or `DELETE` of an upload, for clients whose way to here lets only `POST` through.
#[utoipa::path(
    post, path = "/volumes/{id}/tus/{upload}", tag = "uploads",
    params(
        UploadPath, TusHeaders,
        ("X-HTTP-Method-Override" = String, Header, description = "`PATCH` or `DELETE`; without it this address takes no `POST`"),
        ("Upload-Offset" = Option<u64>, Header, description = "As with `PATCH`"),
        ("Upload-Length" = Option<u64>, Header, description = "As with `PATCH`"),
        ("Upload-Checksum" = Option<String>, Header, description = "As with `PATCH`"),
    ),
    request_body(content = Option<Binary>, content_type = "application/offset+octet-stream"),
    responses(
        (status = 204, description = "The same as of that method", headers(
            ("Upload-Offset" = Option<u64>), ("Upload-Expires" = Option<String>), ("Tus-Resumable" = String),
        )),
        OverrideRefusals,
    ),
)]
async fn overridden(
    auth: Auth,
    state: State<AppState>,
    path: Path<(VolumeId, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let method = request.headers().get(OVERRIDE).map(HeaderValue::as_bytes);
    match method.and_then(|method| Method::from_bytes(method).ok()) {
        Some(Method::PATCH) => append(auth, state, path, request).await,
        Some(Method::DELETE) => {
            let headers = request.headers().clone();
            terminate(auth, state, path, headers).await.map(IntoResponse::into_response)
        }
        _ => Err(ApiError::wrong_method()),
    }
}

/// How far it has come, and until when it can go on.
fn tell(headers: &mut HeaderMap, state: &AppState, seen: &Resumable) {
    headers.insert(OFFSET, seen.offset.into());
    let expire_after = state.config.current().uploads.expire_after.as_secs();
    let UnixSeconds(touched) = seen.touched_at;
    let expires = touched.saturating_add_unsigned(expire_after);
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let date = jiff::Timestamp::from_second(expires)
        .ok()
        .and_then(|time| printer.timestamp_to_rfc9110_string(&time).ok());
    if let Some(Ok(date)) = date.map(HeaderValue::try_from) {
        headers.insert(EXPIRES, date);
    }
}
