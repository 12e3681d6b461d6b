//! Volumes that are projects with a quota, on an ext4 or XFS mounted with `prjquota`.
//!
//! The folder and everything made in it bears the volume's project number, which is the volume's alone
//! on this node; the kernel counts what bears it. What the kernel counts and leaves, it tells of the
//! folder itself (`statfs`).

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::BackingError;
use super::tools::Tool;
use crate::domain::ids::VolumeId;

/// A large volume has many files that are each given the number.
const LONG: Duration = Duration::from_secs(3600);
/// The numbers that lightd gives; the container engine and people take low ones.
const FIRST: u32 = 0x4000_0000;
const NUMBERS_TRIED: u32 = 1000;

/// The project numbers that a volume may have, of which the caller takes the first that no other has. They
/// come to an end: on a node that has used up so many, something else is wrong.
pub(crate) fn numbers_for(volume: VolumeId) -> impl Iterator<Item = u32> {
    (0..NUMBERS_TRIED).map(move |attempt| number_for(volume, attempt))
}

pub(super) fn number_for(volume: VolumeId, attempt: u32) -> u32 {
    let text = volume.to_string();
    // FNV-1a: the same volume gets the same number again, should the store not know it any more.
    let hash = text
        .bytes()
        .fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    FIRST | (hash.wrapping_add(attempt) & (FIRST - 1))
}

/// Gives a folder, with what is in it, a number that what is made in it inherits.
pub(crate) fn assign(folder: &Path, project: u32) -> Result<(), BackingError> {
    let number = project.to_string();
    let mark = ["-R", "+P"];
    // Links and devices bear no number and files hand none on, which makes the program complain once it
    // has done the rest. The mark alone first: what it fails for would not be given the number.
    drop(Tool::new("chattr")?.args(mark).arg(folder).within(LONG).end()?);
    let chattr = Tool::new("chattr")?.args(["-R", "-p", number.as_str()]).arg(folder);
    let ended = chattr.within(LONG).end()?;
    if assigned(folder)? == Some(project) {
        return Ok(());
    }
    Err(BackingError::NotKept { said: ended.said })
}

/// The number that a folder bears, if it hands it on.
pub(crate) fn assigned(folder: &Path) -> Result<Option<u32>, BackingError> {
    let listed = Tool::new("lsattr")?.args(["-d", "-p"]).arg(folder).end()?;
    if listed.code != 0 {
        return Ok(None);
    }
    let mut fields = listed.said.split_whitespace();
    let number = fields.next().and_then(|number| number.parse().ok());
    let hands_on = fields.next().is_some_and(|flags| flags.contains('P'));
    Ok(number.filter(|number| hands_on && *number != 0))
}

/// Sets what may bear the number; `None` is no limit.
pub(crate) fn set_limit(
    volumes: &Path,
    project: u32,
    limit_bytes: Option<u64>,
) -> Result<(), BackingError> {
    // To the kernel 0 is no limit, and so the least that is one is a block.
    let blocks = limit_bytes.map_or(0, |bytes| (bytes >> 10).max(1));
    let (number, blocks) = (project.to_string(), blocks.to_string());
    let limits = ["-P", number.as_str(), "0", blocks.as_str(), "0", "0"];
    Tool::new("setquota")?.args(limits).arg(mount_of(volumes)?).run()?;
    Ok(())
}

/// Where the file system of a folder is mounted: the quota tools want to be told that.
fn mount_of(folder: &Path) -> Result<std::path::PathBuf, BackingError> {
    let device = |path: &Path| {
        let meta = std::fs::metadata(path);
        meta.map(|meta| meta.dev())
            .map_err(|source| BackingError::io("find the volumes' file system", source))
    };
    let folder = folder
        .canonicalize()
        .map_err(|source| BackingError::io("find the volumes' file system", source))?;
    let own = device(&folder)?;
    let mut top = folder.as_path();
    while let Some(parent) = top.parent() {
        if device(parent)? != own {
            break;
        }
        top = parent;
    }
    Ok(top.to_owned())
}

/// Whether the kernel tells of a folder's own limit, and not of the file system that all volumes share.
pub(crate) fn is_limited(folder: impl AsFd, volumes: impl AsFd) -> bool {
    let blocks = |fd: rustix::fd::BorrowedFd<'_>| {
        rustix::fs::fstatvfs(fd).map(|disk| (disk.f_blocks, disk.f_frsize))
    };
    match (blocks(folder.as_fd()), blocks(volumes.as_fd())) {
        (Ok(folder), Ok(volumes)) => folder != volumes,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_a_number_of_its_own_out_of_the_way_of_others() {
        let volume = VolumeId::random();
        let number = number_for(volume, 0);
        assert_eq!(number_for(volume, 0), number);
        assert_ne!(number_for(volume, 1), number);
        for attempt in 0..1000 {
            let number = number_for(VolumeId::random(), attempt);
            assert!((FIRST..FIRST << 1).contains(&number), "{number:x}");
        }
    }
}
