//! Snapshots of volumes on the disk: taken, kept, put back, removed.
//!
//! ```text
//!   {volumes}/.snapshots/{volume}/{id}             a whole copy of the volume as it was
//!   {volumes}/.snapshots/{volume}/.making-…        one on its way
//!   {volumes}/.restoring-…                         a tree that is about to be a volume, or was one
//! ```
//! A snapshot appears by one rename when it is complete and on the disk. A restore makes a second volume
//! beside the present one, counts what is in it, and lets the two change places in one step: a crash
//! leaves the one or the other in the volume's place, and the sweep at the next start removes whichever
//! stands beside it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, RenameFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::backing::image::room_beside;
use super::backing::project;
use super::claims::Claim;
use super::content::create_new;
use super::error::{During, FileError};
use super::progress::Progress;
use super::quota::whose_room;
use super::replica::{Tally, replicate, tally};
use super::resolve::open_folder;
use super::staging::{is_own, own_mark, remove_tree};
use super::{Files, Inner, for_each_name};
use crate::domain::ids::VolumeId;
use crate::domain::quota::{Backing, QuotaBackend};
use crate::util::chain::Chain;

const FOLDER: &str = ".snapshots";
const MAKING_PREFIX: &str = ".making-";
pub(super) const RESTORING_PREFIX: &str = ".restoring-";
/// In messages.
const IT: &str = "the snapshot";

/// What a restored volume is to rest on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restore {
    pub(crate) snapshot: Uuid,
    /// What the snapshot held when it was taken.
    pub(crate) expected: Tally,
    pub(crate) backing: Option<Backing>,
    /// For a volume that is a project, a number that no other bears: under the old one the two trees
    /// together would be too large.
    pub(crate) new_project: Option<u32>,
    pub(crate) size_bytes: Option<u64>,
}

pub(super) fn folder_of(volume: VolumeId) -> String {
    format!("{FOLDER}/{volume}")
}

impl Files {
    /// Copies a volume's files as they are now. The copy counts for nothing until
    /// [`Files::keep_snapshot`].
    pub(crate) async fn copy_for_snapshot(
        &self,
        volume: VolumeId,
        snapshot: Uuid,
        progress: Progress,
    ) -> Result<Tally, FileError> {
        let inner = std::sync::Arc::clone(&self.0);
        let copied = self.run_long(volume, progress, move |volume, progress| {
            inner.copy_for_snapshot(volume, snapshot, progress)
        });
        let copied = copied.await;
        if copied.is_err()
            && let Err(error) = self.drop_copy(volume, snapshot).await
        {
            tracing::warn!(%volume, error = %Chain(&error), "half a snapshot stays behind until the next start");
        }
        copied
    }

    /// Makes a finished copy a snapshot, once it is safe on the disk.
    pub(crate) async fn keep_snapshot(
        &self,
        volume: VolumeId,
        snapshot: Uuid,
    ) -> Result<(), FileError> {
        self.blocking(super::Lane::Heavy, None, move |inner| {
            let dir = inner.snapshots_of(volume)?;
            rustix::fs::syncfs(&dir).during("flush", &IT)?;
            rustix::fs::renameat(&dir, making(snapshot), &dir, snapshot.to_string())
                .during("keep", &IT)?;
            rustix::fs::fsync(&dir).during("flush", &IT)
        })
        .await
    }

    /// Removes a copy that is not to become a snapshot.
    pub(crate) async fn drop_copy(
        &self,
        volume: VolumeId,
        snapshot: Uuid,
    ) -> Result<(), FileError> {
        self.blocking(super::Lane::Heavy, None, move |inner| {
            let dir = inner.snapshots_of(volume)?;
            let name = making(snapshot);
            ignore_missing(remove_tree(dir.as_fd(), name.as_str(), &Progress::default()))
                .during("remove", &IT)
        })
        .await
    }

    /// Removes a snapshot; one that is gone already is as good.
    pub(crate) async fn remove_snapshot(
        &self,
        volume: VolumeId,
        snapshot: Uuid,
    ) -> Result<(), FileError> {
        self.blocking(super::Lane::Heavy, None, move |inner| {
            match inner.put_aside(&format!("{}/{snapshot}", folder_of(volume)))? {
                Some(aside) => inner.remove_aside(&aside),
                None => Ok(()),
            }
        })
        .await
    }

    /// Puts a snapshot in its volume's place. An error says that the volume is as it was. The claim is held
    /// for as long as the work lasts, whatever becomes of its caller.
    pub(crate) async fn restore(
        &self,
        claim: Claim,
        restore: Restore,
        progress: Progress,
    ) -> Result<Claim, FileError> {
        let volume = claim.volume();
        self.blocking(super::Lane::Heavy, None, move |inner| {
            progress.check()?;
            progress.set_total_bytes(restore.expected.bytes);
            let of_image = |backing: Backing| backing.backend == QuotaBackend::Image;
            match (restore.backing.filter(|backing| of_image(*backing)), restore.size_bytes) {
                (Some(_), Some(size)) => inner.restore_image(volume, size, &restore, &progress),
                _ => inner.restore_folder(volume, &restore, &progress),
            }?;
            Ok(claim)
        })
        .await
    }

    /// All snapshots on the disk. What a crash left of copies that were being made is removed.
    pub(crate) async fn kept_snapshots(&self) -> Result<Vec<(VolumeId, Uuid)>, FileError> {
        self.blocking(super::Lane::Heavy, None, |inner| inner.kept_snapshots()).await
    }
}

impl Inner {
    fn copy_for_snapshot(
        &self,
        volume: &super::Volume,
        snapshot: Uuid,
        progress: &Progress,
    ) -> Result<Tally, FileError> {
        let dir = self.snapshots_of(volume.id)?;
        let name = making(snapshot);
        rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o700)).during("make", &IT)?;
        let copy = open_folder(dir.as_fd(), &name).during("make", &IT)?;
        let wanted = tally(volume.root())?;
        progress.set_total_bytes(wanted.bytes);
        self.check_room(volume.root(), copy.as_fd(), wanted.bytes)?;
        replicate(volume.root(), copy.as_fd(), progress)
    }

    /// The folder of a volume's snapshots, made if it is missing. Nobody but root looks into it.
    fn snapshots_of(&self, volume: VolumeId) -> Result<OwnedFd, FileError> {
        let private = Mode::from_raw_mode(0o700);
        for name in [FOLDER.to_owned(), folder_of(volume)] {
            match rustix::fs::mkdirat(&self.volumes, &name, private) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).during("make", &"the folder of snapshots"),
            }
        }
        let all = open_folder(self.volumes.as_fd(), FOLDER).during("open", &IT)?;
        open_folder(all.as_fd(), volume.to_string()).during("open", &IT)
    }

    fn open_snapshot(&self, volume: VolumeId, snapshot: Uuid) -> Result<OwnedFd, FileError> {
        let dir = self.snapshots_of(volume)?;
        open_folder(dir.as_fd(), snapshot.to_string()).during("open", &IT)
    }

    /// Whether the disk of `to` can take so much, where it cannot share what is there.
    fn check_room(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        bytes: u64,
    ) -> Result<(), FileError> {
        let device = |fd| rustix::fs::fstat(fd).map(|stat| stat.st_dev).during("measure", &IT);
        if device(from)? == device(to)? && can_share(to) {
            return Ok(());
        }
        if bytes > room_beside(to)? {
            return Err(FileError::NoSpace { path: "a copy of the volume".to_owned() });
        }
        Ok(())
    }

    fn restore_image(
        &self,
        volume: VolumeId,
        size_bytes: u64,
        restore: &Restore,
        progress: &Progress,
    ) -> Result<(), FileError> {
        let from = self.open_snapshot(volume, restore.snapshot)?;
        let staged = self.images.stage(size_bytes)?;
        let root = staged.root()?;
        fill(from.as_fd(), root.as_fd(), restore, progress)
            .map_err(|error| whose_room(error, &root, &self.volumes))?;
        drop(root);
        let placed = staged.take_place_of(volume);
        self.note_mounted(volume);
        Ok(placed?)
    }

    fn restore_folder(
        &self,
        volume: VolumeId,
        restore: &Restore,
        progress: &Progress,
    ) -> Result<(), FileError> {
        let from = self.open_snapshot(volume, restore.snapshot)?;
        let name = format!("{RESTORING_PREFIX}{}{:08x}", own_mark(), rand::random::<u32>());
        rustix::fs::mkdirat(&self.volumes, &name, Mode::from_raw_mode(0o700))
            .during("make", &"a folder")?;
        let placed = self.place_folder(volume, &name, from.as_fd(), restore, progress);
        // The new tree if that failed, and the old one if it did not. What is left, the next start
        // removes.
        if let Err(errno) = remove_tree(self.volumes.as_fd(), name.as_str(), &Progress::default()) {
            tracing::warn!(%volume, %errno, "a tree stays behind until the next start");
        }
        // The limit of a number that nothing bears any more holds nobody up.
        let unused = match placed {
            Ok(()) => restore.backing.and_then(|old| old.project),
            Err(_) => restore.new_project,
        };
        if let Some(unused) = unused
            && let Err(error) = project::set_limit(&self.volumes_path, unused, None)
        {
            tracing::warn!(%volume, error = %Chain(&error), "the limit of an unused project stays");
        }
        placed
    }

    fn place_folder(
        &self,
        volume: VolumeId,
        name: &str,
        from: BorrowedFd<'_>,
        restore: &Restore,
        progress: &Progress,
    ) -> Result<(), FileError> {
        let dir = open_folder(self.volumes.as_fd(), name).during("open", &"a folder")?;
        self.check_room(from, dir.as_fd(), restore.expected.bytes)?;
        if let Some(number) = restore.new_project {
            project::assign(&self.volumes_path.join(name), number)?;
            project::set_limit(&self.volumes_path, number, restore.size_bytes)?;
        }
        fill(from, dir.as_fd(), restore, progress)
            .map_err(|error| whose_room(error, &dir, &self.volumes))?;
        rustix::fs::syncfs(&dir).during("flush", &"the volume")?;
        let (one, other) = (&self.volumes, volume.to_string());
        rustix::fs::renameat_with(one, name, one, other, RenameFlags::EXCHANGE)
            .during("replace", &"the volume")?;
        // From here on the volume is the snapshot, and nothing may be said that denies it.
        if let Err(errno) = rustix::fs::fsync(one) {
            tracing::warn!(%volume, %errno, "a power failure may bring back what a restore replaced");
        }
        Ok(())
    }

    fn kept_snapshots(&self) -> Result<Vec<(VolumeId, Uuid)>, FileError> {
        let all = match open_folder(self.volumes.as_fd(), FOLDER) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            opened => opened.during("open", &"the folder of snapshots")?,
        };
        let mut kept = Vec::new();
        for volume in names(&all)?.iter().filter_map(|name| VolumeId::parse(name)) {
            let dir = open_folder(all.as_fd(), volume.to_string()).during("sweep", &IT)?;
            for name in names(&dir)? {
                if let Ok(snapshot) = Uuid::try_parse(&name) {
                    kept.push((volume, snapshot));
                } else if name.starts_with(MAKING_PREFIX) && !is_own(name.as_bytes()) {
                    let removed = remove_tree(dir.as_fd(), name.as_str(), &Progress::default());
                    removed.during("sweep", &IT)?;
                }
            }
        }
        Ok(kept)
    }
}

fn names(dir: &OwnedFd) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for_each_name(dir, |name| names.extend(name.to_str().ok().map(str::to_owned)))
        .during("sweep", &IT)?;
    Ok(names)
}

/// Copies a snapshot, and counts what has come of it: neither a damaged snapshot nor a bad copy takes a
/// volume's place.
fn fill(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    restore: &Restore,
    progress: &Progress,
) -> Result<(), FileError> {
    let copied = replicate(from, to, progress)?;
    if copied != restore.expected || tally(to)? != restore.expected {
        return Err(FileError::SnapshotDamaged);
    }
    progress.check()
}

fn making(snapshot: Uuid) -> String {
    format!("{MAKING_PREFIX}{}{snapshot}", own_mark())
}

fn ignore_missing(outcome: Result<(), Errno>) -> Result<(), Errno> {
    if outcome == Err(Errno::NOENT) { Ok(()) } else { outcome }
}

/// Whether files of this folder can share their blocks.
fn can_share(dir: BorrowedFd<'_>) -> bool {
    let names = [".lightd-share-1", ".lightd-share-2"];
    let shared = || -> Result<(), Errno> {
        let one = create_new(dir, names[0])?;
        let other = create_new(dir, names[1])?;
        rustix::io::write(&one, &[0; 4096])?;
        rustix::fs::ioctl_ficlone(&other, &one)
    };
    let can = shared().is_ok();
    for name in names {
        // It may not have been made.
        rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty()).ok();
    }
    can
}
