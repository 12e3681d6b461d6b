//! Uploads that go on where they broke off: tus 1.0 with creation, creation with upload, deferred
//! length, termination, checksum, expiration and concatenation.
//!
//! `PATCH` has one request at a time per upload; a second one is told so (423). `HEAD` and `DELETE` end
//! the one that is there: a client that asks how far it has come is not sending any more, and what
//! lightd still reads from is a dead connection. What had arrived by then is kept. How an upload begins is in
//! [`super::tus_create`].

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use utoipa::IntoParams;
use utoipa_axum::routes;

use super::body::{Begin, bridge};
use super::tus_create;
use super::tus_headers::{checksum, number, required_number};
use super::volumes::{Reached, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::Path;
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::Binary;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::units::UnixSeconds;
use crate::files::digest::Algorithm;
use crate::files::resumable::{Lock, Piece, Resumable, ResumableId, ResumableLimits};
use crate::files::{FileError, Lane, Progress, Volume};

const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
const RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const EXTENSIONS: &str = "creation,creation-with-upload,creation-defer-length,termination,checksum,\
                          expiration,concatenation";
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");
pub(super) const LENGTH: HeaderName = HeaderName::from_static("upload-length");
pub(super) const DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");
pub(super) const METADATA: HeaderName = HeaderName::from_static("upload-metadata");
pub(super) const CONCAT: HeaderName = HeaderName::from_static("upload-concat");
const CHECKSUM: HeaderName = HeaderName::from_static("upload-checksum");
const EXPIRES: HeaderName = HeaderName::from_static("upload-expires");
const OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");
const PIECE_TYPE: &str = "application/offset+octet-stream";

pub(super) fn long_routes() -> Routes {
    Routes::default()
        .routes(routes!(tus_create::create, capabilities))
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
async fn capabilities(State(state): State<AppState>, Path(_): Path<VolumeId>) -> Response {
    abilities(&state)
}

fn abilities(state: &AppState) -> Response {
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
async fn upload_capabilities(
    State(state): State<AppState>,
    Path(_): Path<(VolumeId, String)>,
) -> Response {
    abilities(&state)
}

pub(super) fn speaks_version(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get(RESUMABLE).is_some_and(|version| *version == VERSION) {
        Ok(())
    } else {
        Err(ApiError::tus_version())
    }
}

pub(super) fn limits(state: &AppState, reached: &Reached) -> ResumableLimits {
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
pub(super) struct TusHeaders {
    #[param(rename = "Tus-Resumable", pattern = "^1\\.0\\.0$", example = "1.0.0")]
    tus_resumable: String,
}

pub(super) fn is_piece(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default();
    let kind = kind.split_once(';').map_or(kind, |(kind, _)| kind);
    kind.trim().eq_ignore_ascii_case(PIECE_TYPE)
}

pub(super) fn checksum_of(headers: &HeaderMap) -> Result<Option<(Algorithm, Vec<u8>)>, ApiError> {
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
pub(super) async fn receive(
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
pub(super) fn tell(headers: &mut HeaderMap, state: &AppState, seen: &Resumable) {
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
