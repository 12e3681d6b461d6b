//! A file's content as a stream of bytes, in both directions, with memory for a few chunks of it.
//!
//! Reading answers ranges and conditions. Writing hands each chunk that arrives to a blocking writer
//! through a short queue; the file enters its place only after the writer has seen the end, so a
//! connection that breaks leaves what was there.

use std::io::{self, Read, Seek, SeekFrom};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{Buf, Bytes};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::content_headers::{Tags, attachment, range_of};
use super::files::written_answer;
use super::volumes::{entry_path, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::files::content::WriteMode;
use crate::files::volume::Stat;
use crate::files::{FileError, Lane, Progress, Volume};

pub(super) fn long_routes() -> Router<AppState> {
    Router::new().route("/volumes/{id}/files/contents", get(read).put(write))
}

#[derive(Debug, Deserialize)]
struct ReadQuery {
    #[serde(default)]
    path: String,
    #[serde(default)]
    download: bool,
}

/// How much of a file is read at a time.
const READ_BYTES: usize = 128 * 1024;

async fn read(
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

#[derive(Debug, Deserialize)]
struct WriteQuery {
    #[serde(default)]
    path: String,
}

/// Chunks that have arrived and are not yet written, of at most some hundred KB each.
const QUEUED_CHUNKS: usize = 4;
/// How long a sender may be silent.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What a sender has to send in any such time, on average: whoever sends holds a turn that others wait for.
const LEAST_BYTES_PER_S: u64 = 100;

async fn write(
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

/// When a body is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// While the writer gets ready, who then need not wait for it.
    AtOnce,
    /// Once the writer asks for it: what is refused before need not be sent at all.
    WhenWanted,
}

impl Begin {
    /// Waits for the writer where the client waits for `100 Continue`.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(header::EXPECT) { Self::WhenWanted } else { Self::AtOnce }
    }
}

/// The end of the queue where the body arrives.
pub(super) struct Sender {
    chunks: mpsc::Sender<Arrived>,
    wanted: oneshot::Receiver<()>,
    begin: Begin,
}

/// The end where a blocking writer reads.
pub(super) struct Incoming {
    chunks: mpsc::Receiver<Arrived>,
    wanted: Option<oneshot::Sender<()>>,
    current: Bytes,
    is_complete: bool,
    pub(super) progress: Progress,
}

enum Arrived {
    Chunk(Bytes),
    /// The body is complete. A queue that closes without it means that the sender is gone.
    End,
}

pub(super) fn bridge(progress: Progress, begin: Begin) -> (Sender, Incoming) {
    let (into, chunks) = mpsc::channel(QUEUED_CHUNKS);
    let (want, wanted) = oneshot::channel();
    let current = Bytes::new();
    let incoming = Incoming { chunks, wanted: Some(want), current, is_complete: false, progress };
    (Sender { chunks: into, wanted, begin }, incoming)
}

impl Sender {
    /// Sends the body to its end, or as far as it comes.
    pub(super) async fn send_all(self, mut body: Body) {
        if self.begin == Begin::WhenWanted && self.wanted.await.is_err() {
            return;
        }
        let mut pace = Pace::begin();
        loop {
            let arrived = match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Arrived::Chunk(data),
                    Err(_trailers) => continue,
                },
                Ok(None) => Arrived::End,
                // Broken off, or silent for too long: the queue closes without an end.
                Ok(Some(Err(_))) | Err(_) => return,
            };
            if let Arrived::Chunk(data) = &arrived
                && pace.is_too_slow(data.len())
            {
                return;
            }
            let is_last = matches!(arrived, Arrived::End);
            if self.chunks.send(arrived).await.is_err() || is_last {
                return;
            }
        }
    }
}

/// How fast a body comes, looked at once in each [`SILENCE_MAX`].
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn begin() -> Self {
        Self { since: Instant::now(), bytes: 0 }
    }

    fn is_too_slow(&mut self, more: usize) -> bool {
        self.bytes += more as u64;
        if self.since.elapsed() < SILENCE_MAX {
            return false;
        }
        std::mem::replace(self, Self::begin()).bytes < LEAST_BYTES_PER_S * SILENCE_MAX.as_secs()
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(wanted) = self.wanted.take() {
            // A request that is gone already shows in the queue.
            wanted.send(()).ok();
        }
        while self.current.is_empty() && !self.is_complete {
            match self.chunks.blocking_recv() {
                Some(Arrived::Chunk(chunk)) => self.current = chunk,
                Some(Arrived::End) => self.is_complete = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.progress.spend(count as u64).map_err(io::Error::other)?;
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn received(chunks: Vec<Result<&'static str, io::Error>>) -> io::Result<String> {
        let (sender, mut incoming) = bridge(Progress::default(), Begin::WhenWanted);
        let reader = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            incoming.read_to_string(&mut text).map(|_| text)
        });
        sender.send_all(Body::from_stream(futures_util::stream::iter(chunks))).await;
        reader.await.unwrap()
    }

    #[tokio::test]
    async fn a_body_arrives_whole_or_as_an_error() {
        let many = (0..100).map(|_| Ok("ab")).collect();
        assert_eq!(received(many).await.unwrap(), "ab".repeat(100));
        assert_eq!(received(Vec::new()).await.unwrap(), "");
        let broken = vec![Ok("ab"), Err(io::Error::other("gone"))];
        assert_eq!(received(broken).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_falls_silent_is_given_up() {
        let (sender, mut incoming) = bridge(Progress::default(), Begin::AtOnce);
        // A thread of its own: tokio's clock stands still while a blocking task of its runs.
        let reader = std::thread::spawn(move || incoming.read(&mut [0; 8]));
        let silent = futures_util::stream::pending::<Result<Bytes, io::Error>>();
        sender.send_all(Body::from_stream(silent)).await;
        assert_eq!(reader.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_only_ever_says_a_little_is_given_up() {
        let trickle = |bytes: &'static str| {
            let next = move |left: u32| async move {
                tokio::time::sleep(Duration::from_secs(20)).await;
                let left = left.checked_sub(1)?;
                Some((Ok::<_, io::Error>(Bytes::from_static(bytes.as_bytes())), left))
            };
            Body::from_stream(futures_util::stream::unfold(10, next))
        };
        let large: &'static str = "x".repeat(3000).leak();
        for (bytes, expected) in [("x", Err(io::ErrorKind::UnexpectedEof)), (large, Ok(30_000))] {
            let (sender, mut incoming) = bridge(Progress::default(), Begin::AtOnce);
            let reader = std::thread::spawn(move || io::copy(&mut incoming, &mut io::sink()));
            sender.send_all(trickle(bytes)).await;
            assert_eq!(reader.join().unwrap().map_err(|error| error.kind()), expected);
        }
    }

    #[tokio::test]
    async fn nothing_is_taken_of_a_body_that_nobody_wants() {
        let (sender, incoming) = bridge(Progress::default(), Begin::WhenWanted);
        drop(incoming);
        let silent = futures_util::stream::pending::<Result<Bytes, io::Error>>();
        sender.send_all(Body::from_stream(silent)).await;
    }
}
