//! What is in a folder of a volume, a page at a time, and how an entry is shown wherever one is.

use axum::Json as JsonAnswer;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::paging;
use super::volumes::{folder_path, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::Routes;
use crate::api::openapi::params::VolumePath;
use crate::api::openapi::refusals::refusals;
use crate::api::openapi::schemas::{EntryKind, Mode};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::domain::units::UnixSeconds;
use crate::files::Volume;
use crate::files::listing::{Entry, MAX_PAGE, Page};
use crate::files::volume::Kind;

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(list))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// The folder; the volume's root if it is left out.
    #[serde(default)]
    #[param(required = false, example = "world")]
    path: String,
    /// So many at most; 10,000 if it is left out.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// Also tell what each file is.
    #[serde(default)]
    #[param(required = false)]
    mime: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FileList)]
struct ListView {
    path: RelPath,
    files: Vec<EntryView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = File)]
struct EntryView {
    #[schema(example = "level.dat")]
    name: String,
    #[serde(rename = "type")]
    #[schema(value_type = EntryKind)]
    kind: &'static str,
    size: u64,
    #[schema(value_type = Mode)]
    mode: String,
    modified_at: UnixSeconds,
    /// Where a symbolic link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "../shared")]
    target: Option<String>,
    /// Of a symbolic link: whether that is in the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    target_inside: Option<bool>,
    /// Of a symbolic link: what is there; `null` for what is outside, or is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = Option<EntryKind>)]
    target_type: Option<Option<&'static str>>,
    /// What a file is, with `?mime=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "text/plain")]
    mime: Option<String>,
}

impl From<Entry> for EntryView {
    fn from(Entry { name, stat, link, mime }: Entry) -> Self {
        let kind = kind_name(stat.kind);
        let (size, mode) = (stat.size, octal(stat.mode));
        let target_inside = link.as_ref().map(|link| link.is_inside);
        let target_type = link.as_ref().map(|link| link.kind.map(kind_name));
        let (target, modified_at) = (link.map(|link| link.target), stat.modified_at);
        Self { name, kind, size, mode, modified_at, target, target_inside, target_type, mime }
    }
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Other => "other",
    }
}

pub(super) fn octal(mode: u32) -> String {
    format!("{mode:04o}")
}

refusals!(ListRefusals: VOLUME, PATH; 400: "invalid_cursor");

/// Lists a folder: folders first, by name.
#[utoipa::path(
    get, path = "/volumes/{id}/files", tag = "files",
    params(VolumePath, ListQuery),
    responses((status = 200, description = "A page of what is in it", body = ListView), ListRefusals),
)]
async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let path = folder_path("?path", &query.path)?;
    let limit = paging::limit_within(query.limit, MAX_PAGE, MAX_PAGE)?;
    let (folder, page) = (path.clone(), Page { limit, cursor: query.cursor });
    let list = if query.mime { Volume::list_with_mime } else { Volume::list };
    let listing = state.files.run(id, move |volume| list(volume, &folder, &page)).await?;
    let files = listing.entries.into_iter().map(EntryView::from).collect();
    Ok(JsonAnswer(ListView { path, files, next_cursor: listing.next }))
}
