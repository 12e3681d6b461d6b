//! What is in a folder of a volume, a page at a time, and how an entry is shown wherever one is.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::routing::get;
use serde::{Deserialize, Serialize};

use super::volumes::{folder_path, page_limit, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Path, Query};
use crate::api::openapi::Routes;
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::domain::units::UnixSeconds;
use crate::files::Volume;
use crate::files::listing::{Entry, MAX_PAGE, Page};
use crate::files::volume::Kind;

pub(super) fn routes() -> Routes {
    Routes::default().route("/volumes/{id}/files", get(list))
}

#[derive(Debug, Deserialize)]
struct ListQuery {
    #[serde(default)]
    path: String,
    limit: Option<usize>,
    cursor: Option<String>,
    #[serde(default)]
    mime: bool,
}

#[derive(Debug, Serialize)]
struct ListView {
    path: RelPath,
    files: Vec<EntryView>,
    /// Give it as `cursor` for what follows; `null` at the end.
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct EntryView {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    size: u64,
    mode: String,
    modified_at: UnixSeconds,
    /// Where a symbolic link leads.
    #[serde(flatten)]
    link: Option<LinkView>,
    /// What a file is, with `?mime=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    mime: Option<String>,
}

#[derive(Debug, Serialize)]
struct LinkView {
    target: String,
    target_inside: bool,
    /// `null` for what is outside, or is not there.
    target_type: Option<&'static str>,
}

impl From<Entry> for EntryView {
    fn from(Entry { name, stat, link, mime }: Entry) -> Self {
        let kind = kind_name(stat.kind);
        let (size, mode) = (stat.size, octal(stat.mode));
        let link = link.map(|link| LinkView {
            target: link.target,
            target_inside: link.is_inside,
            target_type: link.kind.map(kind_name),
        });
        Self { name, kind, size, mode, modified_at: stat.modified_at, link, mime }
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

async fn list(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<ListView>, ApiError> {
    reach(&auth, &state, id, Permission::FilesRead).await?;
    let path = folder_path("?path", &query.path)?;
    let limit = page_limit(query.limit, MAX_PAGE)?;
    let (folder, page) = (path.clone(), Page { limit, cursor: query.cursor });
    let list = if query.mime { Volume::list_with_mime } else { Volume::list };
    let listing = state.files.run(id, move |volume| list(volume, &folder, &page)).await?;
    let files = listing.entries.into_iter().map(EntryView::from).collect();
    Ok(JsonAnswer(ListView { path, files, next_cursor: listing.next }))
}
