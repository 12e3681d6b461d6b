//! Files that a volume fetches from elsewhere, in the background.
//!
//! What is plainly wrong with the address is refused at once; all else is the operation's outcome. The
//! file is staged like an upload and enters its place whole.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures_util::TryStreamExt as _;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::json;
use url::Url;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::body::{Begin, Incoming, bridge};
use super::content_headers::filename_of;
use super::operations::{StartedView, Told, started_answer};
use super::volumes::{folder_path, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::operation::OperationKind;
use crate::domain::path::RelPath;
use crate::fetch::{FetchError, Fetched, Fetcher, Rules, check_url};
use crate::files::content::WriteMode;
use crate::files::volume::Kind;
use crate::files::{FileError, Files, Lane, Progress, Volume};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(pull))
}

const MAX_URL_BYTES: usize = 8192;
const MAX_NAME_BYTES: usize = 255;
/// The name of a file that nothing gives a name.
const NAMELESS: &str = "download";

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Pull)]
#[serde(deny_unknown_fields)]
struct PullBody {
    #[schema(max_length = 8192, example = "https://example.com/plugin.jar")]
    url: String,
    /// A file; or a folder (one that exists, or with a slash at the end), where the file gets the name
    /// that the other side gives it.
    #[serde(default)]
    #[schema(example = "plugins/")]
    path: String,
    #[serde(default)]
    overwrite: bool,
}

refusals!(PullRefusals: VOLUME, PATH, CHANGE, WORK);

/// Fetches a file from elsewhere, in the background.
///
/// Addresses of private networks are refused unless they are configured, also where a redirect leads there.
#[utoipa::path(
    post, path = "/volumes/{id}/pull", tag = "uploads",
    params(VolumePath), request_body = PullBody,
    responses((status = 202, description = "It is being fetched", body = Told<StartedView>), PullRefusals),
)]
async fn pull(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<PullBody>,
) -> Result<Response, ApiError> {
    let reached = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let path = folder_path("path", &body.path)?;
    let config = state.config.current();
    let rules =
        Rules { allowed: config.network.allow_private.clone(), max_bytes: config.pulls.max_bytes };
    let url = Some(&body.url).filter(|url| url.len() <= MAX_URL_BYTES);
    let url = url.and_then(|url| Url::parse(url).ok());
    let url = url.ok_or_else(|| ApiError::field("url", "must be an address to fetch from"))?;
    check_url(&url, &rules).map_err(|why| ApiError::field("url", why.to_string()))?;
    let is_folder = path.is_root() || body.path.ends_with('/');
    let work = Pull {
        files: state.files.clone(),
        fetcher: state.fetcher.clone(),
        volume: id,
        limit_bytes: reached.limit_bytes(),
        rules,
        url,
        place: Place { path, is_folder, overwrite: body.overwrite },
    };
    let checked = work.place.clone();
    state.files.run(id, move |volume| checked.check(volume)).await?;
    let timeout = config.pulls.timeout;
    let run = move |progress: Progress| async move { work.run(progress, timeout).await };
    let started = state.operations.start(OperationKind::Pull, id, run).await?;
    Ok(started_answer(started))
}

/// Where the file goes.
#[derive(Clone, Debug)]
struct Place {
    path: RelPath,
    is_folder: bool,
    overwrite: bool,
}

impl Place {
    /// What is plainly no place is refused before anything is fetched.
    fn check(&self, volume: &Volume) -> Result<(), FileError> {
        match volume.stat(&self.path) {
            Ok(stat) if stat.kind == Kind::Directory => Ok(()),
            Ok(_) if self.is_folder => {
                Err(FileError::NotADirectory { path: self.path.to_string() })
            }
            Err(FileError::NotFound { .. }) if self.is_folder => Ok(()),
            Ok(_) | Err(FileError::NotFound { .. }) => {
                volume.check_place(&self.path, !self.overwrite)
            }
            Err(error) => Err(error),
        }
    }

    /// The file's path, once its own name is known.
    fn file(&self, volume: &Volume, name: &str) -> Result<RelPath, FileError> {
        let is_folder = self.is_folder
            || volume.stat(&self.path).is_ok_and(|stat| stat.kind == Kind::Directory);
        if !is_folder {
            return Ok(self.path.clone());
        }
        Ok(self.path.join(&RelPath::parse_non_empty(name)?)?)
    }
}

struct Pull {
    files: Files,
    fetcher: Fetcher,
    volume: VolumeId,
    limit_bytes: Option<u64>,
    rules: Rules,
    url: Url,
    place: Place,
}

impl Pull {
    async fn run(self, progress: Progress, timeout: Duration) -> Result<(), FileError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let fetched = tokio::select! {
            biased;
            () = progress.cancelled() => return Err(FileError::Cancelled),
            fetched = self.fetcher.fetch(self.url.clone(), &self.rules) => fetched,
            () = tokio::time::sleep_until(deadline) => Err(FetchError::TimedOut),
        };
        let Fetched { url, disposition, length, content } = fetched.map_err(|why| told(&why))?;
        progress.set_total_bytes(length.unwrap_or(0));
        let name = name_of(disposition.as_deref(), &url);
        // The queue to the writer says only that the file broke off; why is kept here.
        let why = Arc::new(OnceLock::new());
        let keep = Arc::clone(&why);
        let content = content.map_err(move |error| drop(keep.set(told(&error))));
        let body = Body::from_stream(content.map_err(|()| io::Error::other("broke off")));
        let (sender, incoming) = bridge(progress.clone(), Begin::AtOnce);
        let (place, limit_bytes, tracked) = (self.place, self.limit_bytes, progress.clone());
        let content = Tracked { incoming, progress: tracked };
        let written = self.files.run_in(Lane::Transfer, self.volume, move |volume| {
            write(volume, &place, &name, (limit_bytes, length), content)
        });
        tokio::pin!(written);
        let stopped = tokio::select! {
            biased;
            done = &mut written => return done,
            () = progress.cancelled() => Some(FileError::Cancelled),
            () = tokio::time::sleep_until(deadline) => Some(told(&FetchError::TimedOut)),
            () = sender.send_all(body) => None,
        };
        // The sender is gone by now. The writer ends, and takes away what it had staged.
        match (written.await, stopped) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(why)) => Err(why),
            (Err(FileError::Input { .. }), None) => Err(broken_off(why)),
            (Err(error), None) => Err(error),
        }
    }
}

fn broken_off(why: Arc<OnceLock<FileError>>) -> FileError {
    let why = Arc::into_inner(why).and_then(OnceLock::into_inner);
    why.unwrap_or_else(|| FileError::Fetch { reason: "the file broke off".to_owned() })
}

fn told(why: &FetchError) -> FileError {
    tracing::debug!(error = %crate::util::chain::Chain(why), "a pull failed");
    FileError::Fetch { reason: why.to_string() }
}

fn write(
    volume: &Volume,
    place: &Place,
    name: &str,
    (limit_bytes, length): (Option<u64>, Option<u64>),
    mut content: Tracked,
) -> Result<(), FileError> {
    let progress = content.progress.clone();
    progress.check()?;
    let path = place.file(volume, name)?;
    volume.hold_to(limit_bytes, volume.replaced_bytes(&path), &progress)?;
    progress.has_room_for(length.unwrap_or(0))?;
    let mode = WriteMode { create_only: !place.overwrite, if_match: None };
    let written = volume.write_atomic(&path, &mut content, &mode)?;
    progress.set_result(json!({"path": path, "size": written.size}));
    Ok(())
}

/// What arrives, counted.
struct Tracked {
    incoming: Incoming,
    progress: Progress,
}

impl Read for Tracked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.progress.check().map_err(io::Error::other)?;
        let count = self.incoming.read(buffer)?;
        self.progress.add_bytes(count as u64);
        Ok(count)
    }
}

/// The name that the other side gives the file: one plain name, whatever it says.
fn name_of(disposition: Option<&[u8]>, url: &Url) -> String {
    let last = |text: &str| {
        let name = text.rsplit(['/', '\\']).next().unwrap_or_default();
        let mut name: String = name.chars().filter(|c| !c.is_control()).collect();
        name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
        let is_plain = RelPath::parse_non_empty(&name).is_ok_and(|path| path.as_str() == name);
        (is_plain && !name.starts_with('.')).then_some(name)
    };
    let in_url = || {
        let segment = url.path_segments()?.next_back()?;
        last(&percent_decode_str(segment).decode_utf8().ok()?)
    };
    let given = disposition.and_then(filename_of);
    given.as_deref().and_then(last).or_else(in_url).unwrap_or_else(|| NAMELESS.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_one_plain_name() {
        let name = |disposition: Option<&str>, url: &str| {
            name_of(disposition.map(str::as_bytes), &Url::parse(url).unwrap())
        };
        assert_eq!(name(None, "https://x.test/a/b%20c.zip?y=/z#w"), "b c.zip");
        assert_eq!(name(Some("attachment; filename=plugin.jar"), "https://x.test/1"), "plugin.jar");
        for hostile in
            ["../../evil", r"..\evil", "/etc/evil", r"C:\x\evil", "a/../evil", "ev\u{7}il"]
        {
            let disposition = format!("attachment; filename=\"{hostile}\"");
            assert_eq!(name(Some(&disposition), "https://x.test/"), "evil", "{hostile}");
        }
        for nothing in ["..", ".", "", "a/", ".lightd-x", ".bashrc"] {
            let disposition = format!("attachment; filename=\"{nothing}\"");
            assert_eq!(name(Some(&disposition), "https://x.test/"), NAMELESS, "{nothing}");
        }
        assert_eq!(name(None, "https://x.test/%2e%2e%2fevil"), "evil");
        assert_eq!(name(None, "https://x.test/%ff"), NAMELESS);
        assert!(name(None, &format!("https://x.test/{}", "ü".repeat(200))).len() <= 255);
    }
}
