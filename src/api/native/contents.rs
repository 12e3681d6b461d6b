//! A file's content as a stream of bytes, in both directions, with memory for a few chunks of it.
//!
//! Reading answers ranges and conditions. Writing hands the body to a blocking writer (`body`); the file
//! enters its place only after the writer has seen the end, so a connection that breaks leaves what was
//! there.

use std::io::{Seek, SeekFrom};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;
use utoipa::IntoParams;
use utoipa_axum::routes;

use super::body::{Begin, bridge};
use super::content_headers::{Tags, attachment, range_of};
use super::files::{WrittenView, written_answer};
use super::volumes::{entry_path, reach};
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
use crate::files::content::WriteMode;
use crate::files::volume::Stat;
use crate::files::{FileError, Lane, Progress, Volume};

pub(super) fn long_routes() -> Routes {
    Routes::default().routes(routes!(read_contents, write_contents))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ReadQuery {
    /// The file.
    #[serde(default)]
    #[param(required = true, example = "server.properties")]
    path: String,
    /// Have a browser save it.
    #[serde(default)]
    #[param(required = false)]
    download: bool,
}

/// How much of a file is read at a time.
const READ_BYTES: usize = 128 * 1024;

refusals!(ReadRefusals: VOLUME, PATH; 416: "range_not_satisfiable");

/// Reads a file, or a part of it.
///
/// One range is served; what is not a range of bytes, or several, is answered with the whole file.
#[utoipa::path(
    get, path = "/volumes/{id}/files/contents", tag = "files",
    params(
        VolumePath, ReadQuery,
        ("Range" = Option<String>, Header, description = "`bytes=0-99`, `bytes=100-` or `bytes=-100`"),
        ("If-Range" = Option<String>, Header, description = "A tag: the range counts only while the content has it"),
        ("If-None-Match" = Option<String>, Header, description = "Tags: 304 while the content has one of them"),
    ),
    responses(
        (status = 200, description = "The whole file", body = Binary, content_type = "application/octet-stream",
         headers(("ETag" = String, description = "Of this content"), ("Accept-Ranges" = String, description = "`bytes`"))),
        (status = 206, description = "The range", body = Binary, content_type = "application/octet-stream",
         headers(("ETag" = String, description = "Of this content"), ("Content-Range" = String, description = "`bytes 0-99/1234`"))),
        (status = 304, description = "It is what the caller has", headers(("ETag" = String, description = "Of this content"))),
        ReadRefusals,
    ),
)]
async fn read_contents(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<ReadQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let path = entry_path("?path", &query.path)?;
    let target = path.clone();
    let (file, stat) = state.files.run(id, move |volume| volume.open_read(&target)).await?;
    let tag = format!("\"{}\"", stat.etag);
    let known = headers.get(header::IF_NONE_MATCH).map(Tags::read);
    let mut response = if known.is_some_and(|tags| tags.hold_weakly(&stat.etag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        content(&headers, file, &stat)?
    };
    let answer = response.headers_mut();
    let fixed = HeaderValue::from_static;
    answer.insert(header::ETAG, HeaderValue::try_from(tag).map_err(ApiError::internal)?);
    answer.insert(header::ACCEPT_RANGES, fixed("bytes"));
    // What tenants upload must not act in the browser of whoever looks at it.
    answer.insert(header::CONTENT_SECURITY_POLICY, fixed("sandbox"));
    answer.insert(header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
    if query.download {
        let name = path.names().next_back().unwrap_or_default();
        answer.insert(header::CONTENT_DISPOSITION, attachment(name));
    }
    Ok(response)
}

/// The whole file, or the range that was asked for.
fn content(
    headers: &HeaderMap,
    mut file: std::fs::File,
    stat: &Stat,
) -> Result<Response, ApiError> {
    let is_current =
        headers.get(header::IF_RANGE).is_none_or(|tag| Tags::read(tag).hold(&stat.etag));
    let asked = headers.get(header::RANGE).filter(|_| is_current);
    let (status, range) = match asked.map(|range| range_of(range, stat.size)) {
        Some(Ok(Some(range))) => (StatusCode::PARTIAL_CONTENT, range),
        Some(Err(_)) => return Ok(not_satisfiable(stat.size)),
        Some(Ok(None)) | None => (StatusCode::OK, 0..stat.size),
    };
    let length = range.end - range.start;
    if range.start > 0 {
        file.seek(SeekFrom::Start(range.start)).map_err(ApiError::internal)?;
    }
    let file = tokio::fs::File::from_std(file).take(length);
    let body = Body::from_stream(ReaderStream::with_capacity(file, READ_BYTES));
    let mut response = (status, body).into_response();
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer.insert(header::CONTENT_LENGTH, length.into());
    if status == StatusCode::PARTIAL_CONTENT {
        let (first, last, size) = (range.start, range.end - 1, stat.size);
        insert_range(answer, &format!("bytes {first}-{last}/{size}"));
    }
    Ok(response)
}

fn not_satisfiable(size: u64) -> Response {
    let mut response = ApiError::range_not_satisfiable().into_response();
    insert_range(response.headers_mut(), &format!("bytes */{size}"));
    response
}

fn insert_range(headers: &mut HeaderMap, range: &str) {
    let range = HeaderValue::try_from(range).expect("invariant: digits are a header value");
    headers.insert(header::CONTENT_RANGE, range);
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct WriteQuery {
    /// The file.
    #[serde(default)]
    #[param(required = true, example = "server.properties")]
    path: String,
}

refusals!(WriteRefusals: VOLUME, PATH, CHANGE; 400: "incomplete_body"; 412: "precondition_failed");

/// Writes a file, of any size, as it comes. It replaces what is there once all of it has arrived, or not at all.
#[utoipa::path(
    put, path = "/volumes/{id}/files/contents", tag = "files",
    params(
        VolumePath, WriteQuery,
        ("If-Match" = Option<String>, Header, description = "Tags: refused (412) unless the content has one of them; `*`: unless there is a file"),
        ("If-None-Match" = Option<String>, Header, description = "Tags: refused (412) if the content has one of them; `*`: if there is a file"),
    ),
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "It has replaced another", body = WrittenView,
         headers(("ETag" = String, description = "Of the new content"))),
        (status = 201, description = "It is new", body = WrittenView,
         headers(("ETag" = String, description = "Of the new content"))),
        WriteRefusals,
    ),
)]
async fn write_contents(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<WriteQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let path = entry_path("?path", &query.path)?;
    let tags = request.headers().get(header::IF_MATCH).map(Tags::read);
    let unless = request.headers().get(header::IF_NONE_MATCH).map(Tags::read);
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0);
    let (sender, mut incoming) = bridge(Progress::default(), Begin::of(request.headers()));
    let target = path.clone();
    let limit_bytes = reached.limit_bytes();
    let work = move |volume: &Volume| {
        let progress = incoming.progress.clone();
        volume.hold_to(limit_bytes, volume.replaced_bytes(&target), &progress)?;
        progress.has_room_for(announced)?;
        let create_only = unless_match(volume, &target, unless)?;
        let mode = WriteMode { create_only, if_match: if_match(volume, &target, tags)? };
        match volume.write_atomic(&target, &mut incoming, &mode) {
            // As a condition of the request, this has a status of its own.
            Err(FileError::AlreadyExists { path }) if create_only => {
                Err(FileError::PreconditionFailed { path, how: "exists already" })
            }
            outcome => outcome,
        }
    };
    let written = state.files.run_in(Lane::Transfer, id, work);
    tokio::pin!(written);
    let written = tokio::select! {
        biased;
        done = &mut written => done?,
        () = sender.send_all(request.into_body()) => written.await?,
    };
    Ok(written_answer(path, &written))
}

/// Whether the write must find nothing there, as `If-None-Match: *` says. Tags refuse what has one of
/// them.
fn unless_match(volume: &Volume, path: &RelPath, tags: Option<Tags>) -> Result<bool, FileError> {
    match tags {
        None => Ok(false),
        Some(Tags::Any) => Ok(true),
        Some(tags) => match volume.stat(path) {
            Ok(stat) if tags.hold_weakly(&stat.etag) => {
                let (path, how) = (path.to_string(), "has a tag that it must not have");
                Err(FileError::PreconditionFailed { path, how })
            }
            _ => Ok(false),
        },
    }
}

/// The tag that the write will insist on, if the present content has one of those that were given.
fn if_match(
    volume: &Volume,
    path: &RelPath,
    tags: Option<Tags>,
) -> Result<Option<String>, FileError> {
    let Some(tags) = tags else { return Ok(None) };
    let changed = || FileError::changed(path);
    let stat = match volume.stat(path) {
        Err(FileError::NotFound { .. }) => return Err(changed()),
        stat => stat?,
    };
    if tags.hold(&stat.etag) { Ok(Some(stat.etag)) } else { Err(changed()) }
}
