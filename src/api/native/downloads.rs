//! A folder, or a selection of what is in it, as an archive that is made while it is sent.
//!
//! The packer writes into a short queue that the connection empties, so memory holds a few chunks of the
//! archive. What fails at once is a refusal like any other; what fails later breaks the transfer off, so
//! that nobody takes half an archive for a whole one. A reader who has gone, or stands still for a
//! minute, ends the work.

use std::io::{self, Write};
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use utoipa::IntoParams;
use utoipa_axum::routes;

use super::archives::level_of;
use super::content_headers::attachment;
use super::files::must_exist;
use super::operations::CancelOnDrop;
use super::volumes::{folder_path, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, utf8_query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::Binary;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::files::archive::ArchiveFormat;
use crate::files::archive::stream::StreamRequest;
use crate::files::volume::Kind;
use crate::files::{FileError, Lane, Progress, Volume};

pub(super) fn long_routes() -> Routes {
    Routes::default().routes(routes!(download))
}

/// What [`DownloadQuery`] is read from.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the query is read by hand: `paths` may stand there many times")]
struct DownloadParams {
    /// The folder, or a file; the volume's root if it is left out.
    #[param(example = "world")]
    path: Option<String>,
    /// What of the folder; all of it if there is none.
    #[param(max_items = 1000)]
    paths: Option<Vec<String>>,
    /// `zip` if it is left out.
    format: Option<ArchiveFormat>,
    /// From fast to small; each format has its own.
    level: Option<u32>,
}

const QUEUED_CHUNKS: usize = 8;
const CHUNK_BYTES: usize = 256 * 1024;
/// How long a reader may stand still.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);
const MAX_PATHS: usize = 1000;

/// What is asked for; `paths` may stand there many times.
#[derive(Debug)]
struct DownloadQuery {
    path: RelPath,
    paths: Vec<RelPath>,
    format: ArchiveFormat,
    level: u32,
}

impl DownloadQuery {
    fn read(query: &str) -> Result<Self, ApiError> {
        let (mut path, mut paths) = (RelPath::root(), Vec::new());
        let (mut format, mut level) = (ArchiveFormat::Zip, None);
        utf8_query(query)?;
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "path" => path = folder_path("?path", &value)?,
                "paths" if paths.len() >= MAX_PATHS => {
                    let message = format!("may stand there at most {MAX_PATHS} times");
                    return Err(ApiError::field("?paths", message));
                }
                "paths" => {
                    let path = RelPath::parse_non_empty(&value);
                    paths.push(path.map_err(|why| ApiError::invalid_path("?paths", &why))?);
                }
                "format" => {
                    let known = ArchiveFormat::parse(&value);
                    format = known.map_err(|message| ApiError::field("?format", message))?;
                }
                "level" => {
                    let number = value.parse::<u32>();
                    let message = "must be a number";
                    level = Some(number.map_err(|_| ApiError::field("?level", message))?);
                }
                // Unknown ones are passed over, as in every query.
                _ => {}
            }
        }
        let level = level_of(format, level, "?level")?;
        Ok(Self { path, paths, format, level })
    }

    /// What to pack, and what the archive is called. A file alone is packed as the one thing in its
    /// folder.
    fn selection(
        self,
        volume: &Volume,
        id: VolumeId,
    ) -> Result<(StreamRequest, String), FileError> {
        let Self { path, paths, format, level } = self;
        let named = |path: &RelPath| path.names().next_back().map(str::to_owned);
        let name = if paths.len() == 1 { named(&paths[0]) } else { named(&path) };
        let name = name.unwrap_or_else(|| id.to_string());
        let full = paths.iter().map(|name| path.join(name));
        let full = full.collect::<Result<Vec<RelPath>, _>>()?;
        full.iter().try_for_each(|path| must_exist(volume, path))?;
        let is_folder = volume.stat(&path)?.kind == Kind::Directory;
        let (base, paths) = match path.split_last() {
            Some((parent, _)) if !is_folder && full.is_empty() => (parent, vec![path]),
            _ if !is_folder => return Err(FileError::NotADirectory { path: path.to_string() }),
            _ => (path, full),
        };
        Ok((StreamRequest { format, base, paths, level }, name))
    }
}

refusals!(DownloadRefusals: VOLUME, PATH; 400: "archive_limit"; 409: "cancelled");

/// Sends a folder, or some of it, as an archive that is made meanwhile.
///
/// What fails later than at once breaks the transfer off, so that half an archive is not taken for a whole one.
#[utoipa::path(
    get, path = "/volumes/{id}/download", tag = "archives",
    params(VolumePath, DownloadParams),
    responses(
        (status = 200, description = "The archive", headers(("Content-Disposition" = String, description = "Its name")),
         content(
             (Binary = "application/zip"), (Binary = "application/x-tar"), (Binary = "application/gzip"),
             (Binary = "application/x-bzip2"), (Binary = "application/zstd"), (Binary = "application/x-xz"),
         )),
        DownloadRefusals,
    ),
)]
async fn download(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let query = DownloadQuery::read(query.as_deref().unwrap_or_default())?;
    let format = query.format;
    let (request, name) = state.files.run(id, move |volume| query.selection(volume, id)).await?;
    let (sender, chunks) = mpsc::channel(QUEUED_CHUNKS);
    let out = ToReader { chunks: sender, runtime: Handle::current() };
    let guard = CancelOnDrop(Progress::default());
    let (files, progress) = (state.files.clone(), guard.0.clone());
    let packing = async move {
        files
            .run_long_in(Lane::Stream, id, progress, |volume, progress| {
                volume.pack_stream(request, out, progress)
            })
            .await
    };
    let mut archive = Archive { chunks, packing: Some(packing.boxed()), _guard: guard };
    // A refusal is told as one as long as nothing was sent.
    let first = archive.next().await.transpose()?;
    let rest = archive.map(|chunk| chunk.map_err(io::Error::other));
    let body = Body::from_stream(futures_util::stream::iter(first.map(Ok)).chain(rest));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type(format)));
    let name = attachment(&format!("{name}.{}", format.as_str()));
    headers.insert(header::CONTENT_DISPOSITION, name);
    Ok(response)
}

fn media_type(format: ArchiveFormat) -> &'static str {
    match format {
        ArchiveFormat::Zip => "application/zip",
        ArchiveFormat::Tar => "application/x-tar",
        ArchiveFormat::TarGz => "application/gzip",
        ArchiveFormat::TarBz2 => "application/x-bzip2",
        ArchiveFormat::TarZst => "application/zstd",
        ArchiveFormat::TarXz => "application/x-xz",
    }
}

/// The end where the packer writes.
struct ToReader {
    chunks: mpsc::Sender<Bytes>,
    runtime: Handle,
}

impl Write for ToReader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(CHUNK_BYTES)];
        let chunk = Bytes::copy_from_slice(bytes);
        let sent = async { tokio::time::timeout(STANDSTILL_MAX, self.chunks.send(chunk)).await };
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(bytes.len()),
            Ok(Err(_gone)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_stands_still) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end that the connection reads, and the work that goes on meanwhile.
struct Archive {
    chunks: mpsc::Receiver<Bytes>,
    packing: Option<BoxFuture<'static, Result<(), FileError>>>,
    _guard: CancelOnDrop,
}

impl Stream for Archive {
    type Item = Result<Bytes, FileError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        use std::task::Poll;
        if let Some(packing) = &mut self.packing
            && let Poll::Ready(outcome) = packing.as_mut().poll(context)
        {
            self.packing = None;
            if let Err(error) = outcome {
                return Poll::Ready(Some(Err(error)));
            }
        }
        match self.chunks.poll_recv(context) {
            // All is written, but whether it was all of it is not known yet.
            Poll::Ready(None) if self.packing.is_some() => Poll::Pending,
            polled => polled.map(|chunk| chunk.map(Ok)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_a_folder_and_what_of_it() {
        let read = |query: &str| DownloadQuery::read(query).map_err(|error| error.code());
        let all = read("path=/w%20x/&paths=a&paths=b%2Fc&format=tar.gz&level=3&other=1").unwrap();
        let paths: Vec<&str> = all.paths.iter().map(RelPath::as_str).collect();
        assert_eq!((all.path.as_str(), paths), ("w x", vec!["a", "b/c"]));
        assert_eq!((all.format, all.level), (ArchiveFormat::TarGz, 3));
        assert_eq!(read("").unwrap().format, ArchiveFormat::Zip);
        for (bad, code) in [
            ("format=rar", "invalid"),
            ("level=x", "invalid"),
            ("level=10", "invalid"),
            ("format=tar.bz2&level=0", "invalid"),
            ("level=20&format=tar.zst", "invalid"),
            ("path=..", "invalid_path"),
            ("paths=", "invalid_path"),
            ("paths=../x", "invalid_path"),
        ] {
            assert_eq!(read(bad).unwrap_err(), code, "{bad}");
        }
        assert_eq!(read(&"paths=a&".repeat(1001)).unwrap_err(), "invalid");
    }
}
