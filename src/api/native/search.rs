//! Looking through a volume: searches and checksums. Both read, for as long as the caller waits.

use std::time::Duration;

use axum::Json as JsonAnswer;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::listing::{kind_name, octal};
use super::operations::CancelOnDrop;
use super::volumes::{entry_path, folder_path, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::{ChecksumAlgorithm, EntryKind, Mode, SearchBound};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::domain::units::UnixSeconds;
use crate::files::digest::Algorithm;
use crate::files::search::{Bound, Hit, Match, Search};
use crate::files::{Lane, Progress};

pub(super) fn long_routes() -> Routes {
    Routes::default().routes(routes!(search)).routes(routes!(checksum))
}

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;
/// What a search has found by then is its answer.
const SEARCH_TIME: Duration = Duration::from_secs(20);

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct SearchQuery {
    /// What names shall be like: a pattern with `*` and `?`, or a part of them.
    #[param(example = "*.properties")]
    q: Option<String>,
    /// A regular expression that a line of the content shall match. One of `q` and `content` is needed.
    content: Option<String>,
    /// Where to look; the volume's root if it is left out.
    #[serde(default)]
    #[param(required = false)]
    path: String,
    /// So many at most; 100 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SearchResult)]
struct SearchView {
    path: RelPath,
    results: Vec<HitView>,
    /// There may be more.
    truncated: bool,
    /// What ended it.
    #[schema(required, value_type = Option<SearchBound>)]
    truncated_by: Option<&'static str>,
    entries_seen: u64,
    bytes_read: u64,
    /// Files too long to be looked through to their end.
    files_cut: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hit)]
struct HitView {
    #[schema(example = "server.properties")]
    path: String,
    #[serde(rename = "type")]
    #[schema(value_type = EntryKind)]
    kind: &'static str,
    size: u64,
    #[schema(value_type = Mode)]
    mode: String,
    modified_at: UnixSeconds,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    matches: Vec<MatchView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Match)]
struct MatchView {
    line: u64,
    column: usize,
    #[schema(example = "server-port=25565")]
    excerpt: String,
}

impl From<Hit> for HitView {
    fn from(Hit { path, stat, matches }: Hit) -> Self {
        let view = |Match { line, column, excerpt }| MatchView { line, column, excerpt };
        Self {
            path,
            kind: kind_name(stat.kind),
            size: stat.size,
            mode: octal(stat.mode),
            modified_at: stat.modified_at,
            matches: matches.into_iter().map(view).collect(),
        }
    }
}

refusals!(SearchRefusals: VOLUME, PATH; 400: "invalid_pattern"; 409: "cancelled");

/// Looks for files by their name or their content.
///
/// It ends after 20 seconds at most, with what it has found by then.
#[utoipa::path(
    get, path = "/volumes/{id}/search", tag = "files",
    params(VolumePath, SearchQuery),
    responses((status = 200, description = "What was found", body = SearchView), SearchRefusals),
)]
async fn search(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<SearchQuery>,
) -> Result<JsonAnswer<SearchView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let path = folder_path("?path", &query.path)?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::field("?limit", format!("must be between 1 and {MAX_LIMIT}")));
    }
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (name, content) = (given(query.q), given(query.content));
    if name.is_none() && content.is_none() {
        return Err(ApiError::field("?q", "is required, or ?content"));
    }
    let (folder, until) = (path.clone(), Instant::now() + SEARCH_TIME);
    let guard = CancelOnDrop(Progress::default());
    let found = state
        .files
        .run_long_in(Lane::Scan, id, guard.0.clone(), move |volume, progress| {
            let (name, content) = (name.as_deref(), content.as_deref());
            let search = Search::new(folder, name, content, limit, until)?;
            volume.search(&search, progress)
        })
        .await?;
    let truncated_by = found.ended_by.map(|bound| match bound {
        Bound::Limit => "limit",
        Bound::Entries => "entries",
        Bound::Depth => "depth",
        Bound::Time => "time",
    });
    Ok(JsonAnswer(SearchView {
        path,
        results: found.hits.into_iter().map(HitView::from).collect(),
        truncated: truncated_by.is_some(),
        truncated_by,
        entries_seen: found.entries,
        bytes_read: found.bytes,
        files_cut: found.cut_files,
    }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ChecksumQuery {
    /// The file.
    #[serde(default)]
    #[param(required = true, example = "world/level.dat")]
    path: String,
    /// `sha256` if it is left out.
    #[param(value_type = Option<ChecksumAlgorithm>)]
    algorithm: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Checksum)]
struct ChecksumView {
    path: RelPath,
    #[schema(value_type = ChecksumAlgorithm)]
    algorithm: &'static str,
    /// In hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]+$", example = "e3b0c44298fc1c14")]
    checksum: String,
    size: u64,
    /// The tag of the content that this is the checksum of.
    etag: String,
}

refusals!(ChecksumRefusals: VOLUME, PATH; 409: "cancelled");

/// Computes the checksum of a file.
#[utoipa::path(
    get, path = "/volumes/{id}/checksum", tag = "files",
    params(VolumePath, ChecksumQuery),
    responses((status = 200, description = "The checksum", body = ChecksumView), ChecksumRefusals),
)]
async fn checksum(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<ChecksumQuery>,
) -> Result<JsonAnswer<ChecksumView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let path = entry_path("?path", &query.path)?;
    let name = query.algorithm.unwrap_or_else(|| "sha256".to_owned()).to_ascii_lowercase();
    let algorithm = Algorithm::parse(&name).ok_or_else(|| {
        let known: Vec<&str> = Algorithm::ALL.iter().map(|one| one.as_str()).collect();
        ApiError::field("?algorithm", format!("must be one of {}", known.join(", ")))
    })?;
    let target = path.clone();
    let guard = CancelOnDrop(Progress::default());
    let work = move |volume: &crate::files::Volume, progress: &Progress| {
        volume.checksum(&target, algorithm, progress)
    };
    let (sum, stat) = state.files.run_long_in(Lane::Scan, id, guard.0.clone(), work).await?;
    Ok(JsonAnswer(ChecksumView {
        path,
        algorithm: algorithm.as_str(),
        checksum: hex::encode(sum),
        size: stat.size,
        etag: format!("\"{}\"", stat.etag),
    }))
}
