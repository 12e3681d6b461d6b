//! Archives in a volume, made and taken apart.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json as JsonAnswer, Router};
use serde::{Deserialize, Serialize};

use super::files::{entry_paths, must_be_free, must_exist};
use super::operations::Job;
use super::volumes::{entry_path, folder_path, made, reach};
use crate::api::auth::Auth;
use crate::api::error::ApiError;
use crate::api::extract::{Json, Path};
use crate::api::state::AppState;
use crate::domain::access::Permission;
use crate::domain::ids::VolumeId;
use crate::domain::path::RelPath;
use crate::files::archive::ArchiveFormat;
use crate::files::archive::pack::PackRequest;
use crate::files::operation::OperationKind;
use crate::files::{Progress, Volume};

/// All of them read or write whole trees.
pub(super) fn long_routes() -> Router<AppState> {
    Router::new()
        .route("/volumes/{id}/compress", post(compress))
        .route("/volumes/{id}/decompress", post(decompress))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompressBody {
    format: ArchiveFormat,
    /// Where the archive goes. The format's ending is added if it is missing.
    output_name: String,
    /// What to pack; nothing named is everything.
    #[serde(default)]
    paths: Vec<String>,
    /// Patterns as in a `.gitignore`.
    #[serde(default)]
    ignore: Vec<String>,
    level: Option<u32>,
    #[serde(default)]
    overwrite: bool,
    #[serde(default)]
    background: bool,
}

impl CompressBody {
    fn read(&self) -> Result<PackRequest, ApiError> {
        if self.level.is_some_and(|level| level > 9) {
            return Err(ApiError::field("level", "must be between 0 (fast) and 9 (small)"));
        }
        let output = entry_path("output_name", &self.output_name)?;
        Ok(PackRequest {
            format: self.format,
            output: with_ending(output, self.format)?,
            paths: entry_paths("paths", &self.paths)?,
            base: RelPath::root(),
            ignore: self.ignore.clone(),
            level: self.level,
            overwrite: self.overwrite,
        })
    }
}

/// Adds the format's ending to a name that has not got it; `.tgz` and `.tbz2` are as good.
fn with_ending(output: RelPath, format: ArchiveFormat) -> Result<RelPath, ApiError> {
    let endings: &[&str] = match format {
        ArchiveFormat::Zip => &[".zip"],
        ArchiveFormat::Tar => &[".tar"],
        ArchiveFormat::TarGz => &[".tar.gz", ".tgz"],
        ArchiveFormat::TarBz2 => &[".tar.bz2", ".tbz2"],
    };
    let lower = output.as_str().to_ascii_lowercase();
    if endings.iter().any(|ending| lower.ends_with(ending)) {
        return Ok(output);
    }
    entry_path("output_name", &format!("{output}.{}", format.as_str()))
}

#[derive(Debug, Serialize)]
struct PackedView {
    message: &'static str,
    archive_path: RelPath,
    size: u64,
    entries: u64,
    /// Sockets, FIFOs and devices, which were left out.
    skipped: u64,
}

async fn compress(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<CompressBody>,
) -> Result<Response, ApiError> {
    let row = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let request = body.read()?;
    let job = Job { state: &state, volume: &row, kind: OperationKind::Compress };
    if body.background {
        let checked = request.clone();
        let check = move |volume: &Volume| {
            must_be_free(volume, &checked.output, checked.overwrite)?;
            checked.paths.iter().try_for_each(|path| must_exist(volume, path))
        };
        state.files.run(id, check).await?;
        return job.start(move |volume, progress| volume.pack(&request, progress)).await;
    }
    let archive_path = request.output.clone();
    let packed = job.run(move |volume, progress| volume.pack(&request, progress)).await?;
    let view = PackedView {
        message: "Archive created",
        archive_path,
        size: packed.size,
        entries: packed.entries,
        skipped: packed.skipped,
    };
    Ok((made(packed.is_new), JsonAnswer(view)).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DecompressBody {
    archive_path: String,
    /// The volume's root if it is left out.
    #[serde(default)]
    destination: String,
    #[serde(default)]
    background: bool,
}

#[derive(Debug, Serialize)]
struct UnpackedView {
    message: &'static str,
    destination: RelPath,
    entries: u64,
    /// Devices and FIFOs, and links that lead outside, which were left out.
    skipped: u64,
}

async fn decompress(
    auth: Auth,
    State(state): State<AppState>,
    Path(id): Path<VolumeId>,
    Json(body): Json<DecompressBody>,
) -> Result<Response, ApiError> {
    let row = reach(&auth, &state, id, Permission::FilesWrite).await?;
    let archive = entry_path("archive_path", &body.archive_path)?;
    let destination = folder_path("destination", &body.destination)?;
    let job = Job { state: &state, volume: &row, kind: OperationKind::Decompress };
    let (from, to) = (archive.clone(), destination.clone());
    let work = move |volume: &Volume, progress: &Progress| volume.unpack(&from, &to, progress);
    if body.background {
        state.files.run(id, move |volume| volume.open_read(&archive).map(drop)).await?;
        return job.start(work).await;
    }
    let unpacked = job.run(work).await?;
    let view = UnpackedView {
        message: "Archive extracted",
        destination,
        entries: unpacked.entries,
        skipped: unpacked.skipped,
    };
    Ok((StatusCode::CREATED, JsonAnswer(view)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_named_after_its_format() {
        for (given, format, want) in [
            ("backup", ArchiveFormat::Zip, "backup.zip"),
            ("a/backup.ZIP", ArchiveFormat::Zip, "a/backup.ZIP"),
            ("backup.tgz", ArchiveFormat::TarGz, "backup.tgz"),
            ("backup.tar", ArchiveFormat::TarGz, "backup.tar.tar.gz"),
            ("v1.2", ArchiveFormat::TarBz2, "v1.2.tar.bz2"),
        ] {
            let path = RelPath::parse(given).unwrap();
            assert_eq!(with_ending(path, format).unwrap().as_str(), want);
        }
        let long = RelPath::parse(&"x".repeat(253)).unwrap();
        assert_eq!(with_ending(long, ArchiveFormat::Zip).unwrap_err().code(), "invalid_path");
    }
}
