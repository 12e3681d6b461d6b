//! Whether a backend works on this node, found by doing once what it would do for a volume.
//!
//! Called at the start and before the first volume of a backend that was not found to work yet. What is made
//! for it is removed at the end, and after a crash by the sweep. Each error says what is missing.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::BackingError;
use super::image::{Images, LEAST_BYTES};
use super::project;
use super::tools::Tool;
use crate::domain::ids::VolumeId;
use crate::domain::quota::QuotaBackend;
use crate::files::resolve::Owner;
use crate::files::staging::own_mark;

pub(crate) const PROBE_PREFIX: &str = ".probe-";
/// Less than one file system needs for itself.
const PROJECT_LIMIT_BYTES: u64 = 1 << 20;

/// Tries a backend in the folder of all volumes and leaves nothing. Blocking, a tenth of a second.
pub(crate) fn probe(
    backend: QuotaBackend,
    volumes: &Path,
    owner: (u32, u32),
) -> Result<(), BackingError> {
    match backend {
        QuotaBackend::Soft => Ok(()),
        QuotaBackend::Image => {
            try_image(&Images::new(volumes.to_owned(), Some(Owner { uid: owner.0, gid: owner.1 })))
        }
        QuotaBackend::Project => try_project(volumes, owner),
    }
}

/// A small image, mounted and filled beyond its end.
fn try_image(images: &Images) -> Result<(), BackingError> {
    let staged = images.stage(LEAST_BYTES)?;
    fill(&staged.folder().join("probe"), LEAST_BYTES + 1)?;
    // Needed later, and then it would be too late to find them missing.
    for program in ["resize2fs", "e2undo"] {
        Tool::new(program)?;
    }
    staged.unmount()
}

/// A folder with a project's limit, filled beyond it by a user whom the limit holds.
fn try_project(volumes: &Path, (uid, gid): (u32, u32)) -> Result<(), BackingError> {
    let name = VolumeId::random();
    let probe = Probe { folder: volumes.join(format!("{PROBE_PREFIX}{}{name}", own_mark())) };
    let io = |source| BackingError::io("make a folder", source);
    std::fs::DirBuilder::new().mode(0o777).create(&probe.folder).map_err(io)?;
    std::fs::set_permissions(&probe.folder, std::fs::Permissions::from_mode(0o777)).map_err(io)?;
    let number = project::number_for(name, 0);
    project::assign(&probe.folder, number)?;
    project::set_limit(volumes, number, Some(PROJECT_LIMIT_BYTES))?;
    // Opened here: the user of containers may not reach the folder by its path.
    let file = std::fs::File::create_new(probe.folder.join("file")).map_err(io)?;
    let blocks = format!("count={}", (PROJECT_LIMIT_BYTES >> 16) * 2);
    let written = Tool::new("dd")?
        .args(["if=/dev/zero", "bs=64k", "conv=fsync", blocks.as_str()])
        .writing_to(file)
        .run_as(uid.max(1), gid.max(1))
        .end();
    let shows = std::fs::File::open(&probe.folder)
        .and_then(|folder| Ok((folder, std::fs::File::open(volumes)?)))
        .map(|(folder, volumes)| project::is_limited(folder, volumes));
    project::set_limit(volumes, number, None)?;
    let written = written?;
    match written.code {
        0 => Err(BackingError::NotKept { said: "a file grew beyond it".to_owned() }),
        // XFS calls it a full disk.
        _ if !["quota exceeded", "No space left"]
            .iter()
            .any(|full| written.said.contains(full)) =>
        {
            Err(BackingError::NotKept { said: written.said })
        }
        _ if !shows.map_err(io)? => {
            Err(BackingError::NotKept { said: "the folder does not show its limit".to_owned() })
        }
        _ => Ok(()),
    }
}

/// The disk must say that it is full before so much is written.
fn fill(path: &Path, bytes: u64) -> Result<(), BackingError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let chunk = vec![0; 1 << 16];
        for _ in 0..bytes.div_ceil(1 << 16) {
            file.write_all(&chunk)?;
        }
        file.sync_all()
    };
    match write().map_err(|source| BackingError::io("write a file", source)) {
        Err(BackingError::NoSpace) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(BackingError::NotKept { said: "a file grew beyond it".to_owned() }),
    }
}

struct Probe {
    folder: PathBuf,
}

impl Drop for Probe {
    fn drop(&mut self) {
        // It may not have been made.
        std::fs::remove_dir_all(&self.folder).ok();
    }
}
