//! Files as a browser's form sends them: many in one `multipart/form-data` body.
//!
//! The body is read here and handed piece by piece to a blocking writer through a short queue, so that
//! memory holds a few chunks however large the files are. The writer stages all of them; they enter
//! their places once the body has come to its end, and not at all if it does not.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Json as JsonAnswer;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use multer::Multipart;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::body::Arriving;
use super::content_headers::filename_of;
use super::volumes::{folder_path, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::Binary;
use crate::api::openapi::schemas::UploadStatus;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::files::content::WriteMode;
use crate::files::upload::{Stored, Uploaded};
use crate::files::{FileError, Lane, Progress, Volume};

pub(super) fn long_routes() -> Routes {
    Routes::default().routes(routes!(upload))
}

const MAX_FILES: usize = 10_000;
/// What may stand between two files: a boundary and some headers.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const QUEUED_PARTS: usize = 8;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct UploadQuery {
    /// The folder that names are counted from; the volume's root if it is left out.
    #[serde(default)]
    #[param(required = false, example = "world")]
    path: String,
    /// Refuse to replace what is there.
    #[serde(default)]
    #[param(required = false)]
    create_only: bool,
}

/// Any number of files, in fields of any name; those in folders have a path as their file name.
#[derive(ToSchema)]
#[schema(as = UploadForm)]
#[expect(dead_code, reason = "it says what a form holds")]
struct FormBody {
    files: Vec<Binary>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Upload)]
struct UploadView {
    #[schema(example = "Files uploaded")]
    message: &'static str,
    #[schema(example = 1)]
    uploaded: usize,
    failed: usize,
    files: Vec<FileView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UploadedFile)]
struct FileView {
    #[schema(example = "level.dat")]
    filename: String,
    #[schema(value_type = UploadStatus)]
    status: &'static str,
    #[serde(flatten)]
    outcome: OutcomeView,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UploadOutcome)]
#[serde(untagged)]
enum OutcomeView {
    Stored { path: RelPath, size: u64 },
    Failed { error: String, code: &'static str },
}

refusals!(UploadRefusals: VOLUME, PATH, CHANGE; 400: "invalid_multipart", "incomplete_body", "too_many_files");

/// Takes files in as a browser's form sends them, up to 10,000 of them.
#[utoipa::path(
    post, path = "/volumes/{id}/upload", tag = "uploads",
    params(VolumePath, UploadQuery),
    request_body(content = FormBody, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "All have replaced others", body = UploadView),
        (status = 201, description = "All are there, some are new", body = UploadView),
        (status = 207, description = "Some are there; the others say why they are not", body = UploadView),
        UploadRefusals,
    ),
)]
async fn upload(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<UploadQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let folder = folder_path("?path", &query.path)?;
    let boundary = boundary_of(&request)?;
    let (sender, parts) = mpsc::channel(QUEUED_PARTS);
    let (want, wanted) = oneshot::channel();
    let mode = WriteMode { create_only: query.create_only, if_match: None };
    let limit_bytes = reached.limit_bytes();
    let work = move |volume: &Volume| {
        let progress = Progress::default();
        volume.hold_to(limit_bytes, 0, &progress)?;
        receive(volume, &folder, mode, progress, (want, parts))
    };
    let received = state.files.run_in(Lane::Transfer, id, work);
    tokio::pin!(received);
    let sending = send_parts(request.into_body(), boundary, wanted, sender);
    let received = tokio::select! {
        biased;
        received = &mut received => received?,
        sent = sending => match sent {
            Ok(()) => received.await?,
            Err(error) => {
                // The writer has seen the queue's end and takes away what it had staged.
                drop(received.await);
                return Err(error);
            }
        },
    };
    answer(received)
}

fn boundary_of(request: &Request) -> Result<String, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    multer::parse_boundary(kind.unwrap_or_default()).map_err(|_| {
        malformed("the body must be multipart/form-data, with its boundary in Content-Type")
    })
}

fn malformed(message: &'static str) -> ApiError {
    ApiError::malformed("invalid_multipart", message)
}

fn answer(received: Vec<Uploaded>) -> Result<Response, ApiError> {
    if received.is_empty() {
        return Err(malformed("there is no file in the body: a part of it needs a filename"));
    }
    let (mut is_new, mut failed, mut first) = (false, 0, None);
    let mut files = Vec::with_capacity(received.len());
    for Uploaded { filename, outcome } in received {
        let (status, outcome) = match outcome {
            Ok(Stored { path, size, is_new: made }) => {
                is_new |= made;
                (if made { "created" } else { "replaced" }, OutcomeView::Stored { path, size })
            }
            Err(error) => {
                failed += 1;
                let error = ApiError::from(error);
                let (text, code) = (error.message().to_owned(), error.code());
                first = first.or(Some(error));
                ("failed", OutcomeView::Failed { error: text, code })
            }
        };
        files.push(FileView { filename, status, outcome });
    }
    let uploaded = files.len() - failed;
    let (status, message) = match first {
        Some(error) if uploaded == 0 => return Err(error),
        Some(_) => (StatusCode::MULTI_STATUS, "Some files were not uploaded"),
        None if is_new => (StatusCode::CREATED, "Files uploaded"),
        None => (StatusCode::OK, "Files uploaded"),
    };
    let view = UploadView { message, uploaded, failed, files };
    Ok((status, JsonAnswer(view)).into_response())
}

enum Part {
    Begin {
        filename: String,
    },
    Chunk(Bytes),
    End,
    /// The body is complete. A queue that closes without it means that the sender is gone.
    Last,
}

fn receive(
    volume: &Volume,
    folder: &RelPath,
    mode: WriteMode,
    progress: Progress,
    (want, mut parts): (oneshot::Sender<()>, mpsc::Receiver<Part>),
) -> Result<Vec<Uploaded>, FileError> {
    let mut upload = volume.begin_upload(folder.clone(), mode, progress)?;
    // A request that is gone already shows in the queue.
    want.send(()).ok();
    loop {
        match parts.blocking_recv() {
            Some(Part::Begin { filename }) => upload.begin_file(filename)?,
            Some(Part::Chunk(bytes)) => upload.write(&bytes)?,
            Some(Part::End) => upload.end_file()?,
            Some(Part::Last) => return Ok(upload.commit()),
            None => {
                let source = std::io::ErrorKind::UnexpectedEof.into();
                return Err(FileError::Input { path: "the upload".to_owned(), source });
            }
        }
    }
}

/// Takes the body apart once the writer asks for it.
async fn send_parts(
    body: Body,
    boundary: String,
    wanted: oneshot::Receiver<()>,
    parts: mpsc::Sender<Part>,
) -> Result<(), ApiError> {
    if wanted.await.is_err() {
        return Ok(());
    }
    let head_bytes = Arc::new(AtomicUsize::new(0));
    let mut form = Multipart::new(Paced::new(body, Arc::clone(&head_bytes)), boundary);
    let mut count = 0;
    loop {
        head_bytes.store(0, Ordering::Relaxed);
        let Some(mut field) = form.next_field().await.map_err(unreadable)? else { break };
        let disposition = field.headers().get(header::CONTENT_DISPOSITION);
        let filename = disposition.and_then(|value| filename_of(value.as_bytes()));
        // A form's other fields, and a file field that nothing was chosen for, have no name.
        let filename = filename.filter(|name| !name.is_empty());
        let is_file = filename.is_some();
        if let Some(filename) = filename {
            count += 1;
            if count > MAX_FILES {
                return Err(ApiError::malformed(
                    "too_many_files",
                    format!("one upload takes at most {MAX_FILES} files"),
                ));
            }
            if parts.send(Part::Begin { filename }).await.is_err() {
                return Ok(());
            }
        }
        loop {
            head_bytes.store(0, Ordering::Relaxed);
            let Some(chunk) = field.chunk().await.map_err(unreadable)? else { break };
            if is_file && parts.send(Part::Chunk(chunk)).await.is_err() {
                return Ok(());
            }
        }
        if is_file && parts.send(Part::End).await.is_err() {
            return Ok(());
        }
    }
    // A writer that is gone has its own reason, which is the one that is told.
    parts.send(Part::Last).await.ok();
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error("a part's head is too long")]
struct HeadTooLong;

fn unreadable(error: multer::Error) -> ApiError {
    if let multer::Error::StreamReadFailed(source) = &error
        && let Some(source) = source.downcast_ref::<std::io::Error>()
        && source.get_ref().is_some_and(|inner| inner.is::<HeadTooLong>())
    {
        return malformed("the head of a part is too long").because(error);
    }
    let broke_off = matches!(
        error,
        multer::Error::StreamReadFailed(_)
            | multer::Error::IncompleteStream
            | multer::Error::IncompleteHeaders
            | multer::Error::IncompleteFieldData { .. }
    );
    if broke_off {
        return ApiError::malformed("incomplete_body", "the upload broke off; nothing was stored")
            .because(error);
    }
    malformed("the body is no multipart/form-data").because(error)
}

type Frames = Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>;

/// The body, one frame at a time: the reader of forms takes all it can get into its memory before it
/// looks at any of it.
struct Paced {
    frames: Frames,
    gave_one: bool,
    /// How much has come since the reader last made progress. Heads of any length would else be kept.
    head_bytes: Arc<AtomicUsize>,
}

impl Paced {
    fn new(body: Body, head_bytes: Arc<AtomicUsize>) -> Self {
        let next = async |mut body: Arriving| Ok(body.next().await?.map(|data| (data, body)));
        let frames = futures_util::stream::try_unfold(Arriving::new(body), next);
        Self { frames: Box::pin(frames), gave_one: false, head_bytes }
    }
}

impl Stream for Paced {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.gave_one) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = std::task::ready!(self.frames.as_mut().poll_next(context));
        self.gave_one = true;
        if let Some(Ok(data)) = &frame {
            let since = self.head_bytes.fetch_add(data.len(), Ordering::Relaxed);
            if since > MAX_HEAD_BYTES {
                let error = std::io::Error::other(HeadTooLong);
                return Poll::Ready(Some(Err(error)));
            }
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parts_of(chunks: Vec<Result<Bytes, std::io::Error>>) -> (Vec<String>, Option<String>) {
        let (want, wanted) = oneshot::channel();
        let (sender, mut parts) = mpsc::channel(QUEUED_PARTS);
        want.send(()).unwrap();
        let body = Body::from_stream(futures_util::stream::iter(chunks));
        let reading = async {
            let mut seen = Vec::new();
            while let Some(part) = parts.recv().await {
                match (part, seen.last_mut()) {
                    (Part::Begin { filename }, _) => seen.push(format!("{filename}:")),
                    (Part::Chunk(bytes), Some(last)) => *last += &String::from_utf8_lossy(&bytes),
                    (Part::End, Some(last)) => last.push('.'),
                    _ => seen.push("end".to_owned()),
                }
            }
            seen
        };
        let (sent, seen) = tokio::join!(send_parts(body, "B".to_owned(), wanted, sender), reading);
        (seen, sent.err().map(|error| error.code().to_owned()))
    }

    const FORM: &str = "--B\r\nContent-Disposition: form-data; name=\"folder\"\r\n\r\nignored\r\n\
        --B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.txt\"\r\n\
        Content-Type: text/plain\r\n\r\nalpha\r\nbeta\r\n\
        --B\r\nContent-Disposition: form-data; name=\"none\"; filename=\"\"\r\n\r\n\r\n\
        --B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"d/b\"\r\n\r\n\r\n--B--\r\n";

    #[tokio::test]
    async fn a_form_is_read_however_it_is_cut() {
        let want = ["a.txt:alpha\r\nbeta.", "d/b:.", "end"].map(str::to_owned).to_vec();
        for size in [1, 2, 3, 7, 40, 1000] {
            let chunks = FORM.as_bytes().chunks(size).map(|part| Ok(Bytes::from_static(part)));
            assert_eq!(parts_of(chunks.collect()).await, (want.clone(), None), "{size}");
        }
    }

    #[tokio::test]
    async fn a_form_that_ends_anywhere_before_its_end_is_not_taken_for_whole() {
        let end = FORM.len() - "--\r\n".len();
        for length in 0..end {
            let (seen, error) =
                parts_of(vec![Ok(Bytes::from_static(&FORM.as_bytes()[..length]))]).await;
            assert!(!seen.contains(&"end".to_owned()), "{length}: {seen:?}");
            assert_eq!(error.as_deref(), Some("incomplete_body"), "{length}");
        }
        let broken = vec![
            Ok(Bytes::from_static(&FORM.as_bytes()[..150])),
            Err(std::io::Error::other("gone")),
        ];
        assert_eq!(parts_of(broken).await.1.as_deref(), Some("incomplete_body"));
    }

    #[tokio::test]
    async fn heads_without_an_end_are_not_kept() {
        for head in ["", "--B\r\nX-A: "] {
            let mut chunks = vec![Ok(Bytes::from_static(head.as_bytes()))];
            chunks.extend((0..1000).map(|_| Ok(Bytes::from(vec![b'a'; 1000]))));
            let (seen, error) = parts_of(chunks).await;
            assert_eq!((seen.len(), error.as_deref()), (0, Some("invalid_multipart")), "{head}");
        }
    }
}
