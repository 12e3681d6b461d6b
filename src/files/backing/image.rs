//! Volumes that are ext4 file systems of their own, each in an image of the volume's size.
//!
//! ```text
//!   {volumes}/.images/{id}.img    the image: allocated in whole, so that a full host never loses a write
//!   {volumes}/.images/{id}.undo   while it is resized: how to take that back
//!   {volumes}/{id}/               where it is mounted; the folder beneath can't be written by anyone
//! ```
//! Mounted `nosuid,nodev` through a loop device that goes with its last user. That is not always lightd:
//! a container that still runs keeps the file system alive after an unmount, so that the loop device,
//! and not the unmount, says whether an image is free.
//!
//! The image's own superblock is the truth about the size. A resize that was cut off is taken back from
//! the undo file where the check finds the file system inconsistent, and else stands as it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, IFlags, Mode, OFlags};

use super::BackingError;
use super::attach::{GOES_WITHIN, loop_device, mount, unmount, wait_for, wait_until};
use super::mounts;
use super::superblock;
use super::tools::{Tool, ToolError, lock};
use crate::domain::ids::VolumeId;
use crate::files::resolve::Owner;

const FOLDER: &str = ".images";
/// The kernel's page size: every volume can take files of any kind, and the kernel any image.
const BLOCK_BYTES: &str = "4096";
/// Below this a file system is nothing but its own tables.
pub(crate) const LEAST_BYTES: u64 = 8 << 20;
/// Checking and resizing read and write in proportion to what is in the image.
const LONG: Duration = Duration::from_secs(3600);
/// What lightd never takes of a disk for volumes, or a hundredth of the disk if that is less.
const RESERVE_BYTES: u64 = 64 << 20;
/// A container that is being started holds for a moment whatever is mounted.
const FREE_WITHIN: Duration = Duration::from_secs(60);
/// A program of an earlier lightd may still work on the image.
pub(super) const UNLOCKED_WITHIN: Duration = Duration::from_secs(600);

/// The images of one folder of volumes.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    volumes: PathBuf,
    owner: Option<Owner>,
}

impl Images {
    pub(crate) fn new(volumes: PathBuf, owner: Option<Owner>) -> Self {
        Self { volumes, owner }
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.volumes.join(FOLDER)
    }

    pub(super) fn path(&self, volume: VolumeId) -> PathBuf {
        self.folder().join(format!("{volume}.img"))
    }

    fn undo_path(&self, volume: VolumeId) -> PathBuf {
        self.folder().join(format!("{volume}.undo"))
    }

    pub(super) fn mount_point(&self, volume: VolumeId) -> PathBuf {
        self.volumes.join(volume.to_string())
    }

    /// Makes a volume's image and mounts it. What a failure leaves, [`Images::remove`] removes.
    pub(crate) fn make(&self, volume: VolumeId, size_bytes: u64) -> Result<(), BackingError> {
        let path = self.path(volume);
        let image = self.make_image(&path, size_bytes)?;
        self.make_mount_point(&self.mount_point(volume))?;
        mount(&path, &image, &self.mount_point(volume))
    }

    /// The new image, locked.
    pub(super) fn make_image(&self, path: &Path, size_bytes: u64) -> Result<File, BackingError> {
        let io = |source| BackingError::io("make the image", source);
        match std::fs::DirBuilder::new().mode(0o700).create(self.folder()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let image = options.open(path).map_err(io)?;
        lock(&image, Duration::ZERO).map_err(|errno| io(errno.into()))?;
        // On a file system that writes elsewhere what is overwritten, allocating ahead keeps no room.
        // Others do not know the mark, and do not need it.
        rustix::fs::ioctl_setflags(&image, IFlags::NOCOW).ok();
        allocate(&image, 0, size_bytes)?;
        let owner = self.owner.unwrap_or(Owner { uid: 0, gid: 0 });
        // Discarding would give back the room that was just taken.
        let root_owner = format!("nodiscard,root_owner={}:{}", owner.uid, owner.gid);
        Tool::new("mkfs.ext4")?
            .args(["-q", "-F", "-b", BLOCK_BYTES, "-m", "0", "-E", root_owner.as_str()])
            .arg(path)
            .holding(&image)?
            .run()?;
        image.sync_all().map_err(io)?;
        sync_folder(&self.folder())?;
        Ok(image)
    }

    /// An empty folder that nobody can write to, should nothing be mounted there: what a container
    /// believes to have stored must not end beside its volume.
    fn make_mount_point(&self, at: &Path) -> Result<(), BackingError> {
        let io = |source| BackingError::io("make the volume's folder", source);
        std::fs::DirBuilder::new().mode(0o700).create(at).map_err(io)?;
        protect(at, true);
        sync_folder(&self.volumes)
    }

    /// Finds a volume as an earlier life left it, repairs what a crash left half-done and mounts it. Its
    /// size as it really is.
    pub(crate) fn take_up(&self, volume: VolumeId) -> Result<u64, BackingError> {
        let (path, at) = (self.path(volume), self.mount_point(volume));
        let image = open(&path)?;
        // What an earlier lightd had begun may still be going on.
        lock(&image, UNLOCKED_WITHIN).map_err(|_| BackingError::Busy)?;
        if mounts::is_mounted(&at)? {
            self.check_seen(&at)?;
            return superblock::size_bytes(&image);
        }
        if !at.is_dir() {
            self.make_mount_point(&at)?;
        }
        protect(&at, true);
        let half_resized = self.undo_path(volume).exists();
        let patience = if half_resized { FREE_WITHIN } else { GOES_WITHIN };
        match wait_for(patience, || Ok(loop_device(&path)?.is_none()))? {
            true => self.repair(volume, &path, &image)?,
            // Nobody had it when the resize began, so nobody keeps it for long.
            false if half_resized => return Err(BackingError::Busy),
            // Held by what still runs: it is in use, and was checked before that.
            false => {}
        }
        mount(&path, &image, &at)?;
        superblock::size_bytes(&image)
    }

    fn repair(&self, volume: VolumeId, path: &Path, image: &File) -> Result<(), BackingError> {
        let undo = self.undo_path(volume);
        if undo.exists() {
            if check(path, image, &["-f", "-n"]).is_err() {
                tracing::warn!(%volume, "a resize that was cut off is taken back");
                // It fails also where nothing had been written yet; the check after it judges.
                let undone = Tool::new("e2undo")?.arg(&undo).arg(path).holding(image)?;
                let undone = undone.within(LONG).end()?;
                tracing::info!(%volume, code = undone.code, said = undone.said, "e2undo has ended");
            }
            check(path, image, &["-f", "-p"])?;
            remove_file(&undo)?;
        }
        check(path, image, &["-p"])?;
        fit(image)
    }

    /// Makes the file system larger or smaller. The volume is claimed, and nobody uses it.
    pub(crate) fn resize(&self, volume: VolumeId, to_bytes: u64) -> Result<(), BackingError> {
        let path = self.path(volume);
        let image = open(&path)?;
        lock(&image, UNLOCKED_WITHIN).map_err(|_| BackingError::Busy)?;
        let from_bytes = superblock::size_bytes(&image)?;
        if to_bytes == from_bytes {
            return Ok(());
        }
        self.release(volume, &image)?;
        let resized = self.resize_released(volume, &image, (from_bytes, to_bytes));
        if resized.is_err() {
            self.repair(volume, &path, &image)?;
        }
        mount(&path, &image, &self.mount_point(volume))?;
        resized
    }

    fn resize_released(
        &self,
        volume: VolumeId,
        image: &File,
        (from_bytes, to_bytes): (u64, u64),
    ) -> Result<(), BackingError> {
        let (path, undo) = (self.path(volume), self.undo_path(volume));
        check(&path, image, &["-f", "-p"])?;
        remove_file(&undo)?;
        if to_bytes > from_bytes
            && let Err(error) = allocate(image, from_bytes, to_bytes)
        {
            // Why there is no room counts; a longer image than its file system does no harm.
            fit(image).ok();
            return Err(error);
        }
        let size = format!("{}K", to_bytes >> 10);
        let resize = Tool::new("resize2fs")?.arg("-z").arg(&undo).arg(&path).arg(size);
        let ended = resize.within(LONG).holding(image)?.end()?;
        if ended.code != 0 || superblock::size_bytes(image)? != to_bytes {
            let is_too_small = ended.said.contains("smaller than minimum")
                || ended.said.contains("Not enough space");
            return Err(if is_too_small {
                BackingError::BelowUse
            } else {
                ToolError::from(ended).into()
            });
        }
        fit(image)?;
        remove_file(&undo)
    }

    /// Unmounts a volume and waits until nothing holds its image any more.
    pub(super) fn release(&self, volume: VolumeId, image: &File) -> Result<(), BackingError> {
        let (path, at) = (self.path(volume), self.mount_point(volume));
        unmount(&at)?;
        let released = wait_until(|| Ok(loop_device(&path)?.is_none()));
        match released {
            Ok(true) => Ok(()),
            Ok(false) => {
                mount(&path, image, &at)?;
                Err(BackingError::Busy)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a volume with its image; what is gone already is as good.
    pub(crate) fn remove(&self, volume: VolumeId) -> Result<(), BackingError> {
        let (path, at) = (self.path(volume), self.mount_point(volume));
        // Whoever still has a file of it open may keep that, and the loop device, to the end.
        while mounts::is_mounted(&at)? {
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH)
                .map_err(|errno| BackingError::io("unmount the volume", errno))?;
        }
        protect(&at, false);
        match std::fs::remove_dir(&at) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BackingError::io("remove the volume's folder", error));
            }
            _ => {}
        }
        remove_file(&path)?;
        remove_file(&self.undo_path(volume))?;
        sync_folder(&self.volumes)
    }

    pub(crate) fn is_mounted(&self, volume: VolumeId) -> Result<bool, BackingError> {
        mounts::is_mounted(&self.mount_point(volume))
    }

    pub(crate) fn exists(&self, volume: VolumeId) -> bool {
        self.path(volume).exists()
    }

    fn check_seen(&self, at: &Path) -> Result<(), BackingError> {
        if mounts::is_seen_by_the_system(at)? { Ok(()) } else { Err(BackingError::NotSeen) }
    }
}

pub(super) fn open(path: &Path) -> Result<File, BackingError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(BackingError::NoImage),
        opened => opened.map_err(|source| BackingError::io("open the image", source)),
    }
}

/// Takes the room that the image will need, now.
fn allocate(image: &File, from_bytes: u64, to_bytes: u64) -> Result<(), BackingError> {
    let length = to_bytes.saturating_sub(from_bytes);
    let held = image.metadata().map_err(|source| BackingError::io("look at the image", source))?;
    let missing =
        length.saturating_sub(held.blocks().saturating_mul(512).saturating_sub(from_bytes));
    // Asked first: what does not fit would fill the disk before it fails.
    if missing > 0 && missing > room_beside(image)? {
        return Err(BackingError::NoSpace);
    }
    rustix::fs::fallocate(image, FallocateFlags::empty(), from_bytes, length)
        .map_err(|errno| BackingError::io("allocate the image", errno))
}

/// The bytes that the disk of a file can take without becoming full for everybody else.
pub(crate) fn room_beside(file: impl AsFd) -> Result<u64, BackingError> {
    let disk =
        rustix::fs::fstatvfs(file).map_err(|errno| BackingError::io("look at the disk", errno))?;
    let reserve = (disk.f_blocks / 100).saturating_mul(disk.f_frsize).min(RESERVE_BYTES);
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(reserve))
}

/// Cuts off what of the file is not part of the file system, and takes the room for all that is: the
/// programs that check and resize give back what they zero.
fn fit(image: &File) -> Result<(), BackingError> {
    let size_bytes = superblock::size_bytes(image)?;
    let fitted = image.metadata().and_then(|meta| {
        if meta.len() > size_bytes {
            image.set_len(size_bytes)?;
        }
        image.sync_all()
    });
    fitted.map_err(|source| BackingError::io("cut the image", source))?;
    if let Err(error) = allocate(image, 0, size_bytes) {
        tracing::error!(error = %crate::util::chain::Chain(&error), "an image has less room on the disk than it promises");
    }
    Ok(())
}

/// Checks the file system, and mends what needs no decision.
pub(super) fn check(path: &Path, image: &File, how: &[&str]) -> Result<(), BackingError> {
    let checked = Tool::new("e2fsck")?.args(how).arg(path).holding(image)?.within(LONG).end()?;
    // 1: errors were corrected.
    match checked.code {
        0 | 1 => Ok(()),
        _ => Err(BackingError::Damaged { said: checked.said }),
    }
}

/// Lets nobody write into a folder, or lets them again. Where the file system knows no such mark, its
/// permissions have to do.
fn protect(folder: &Path, is_on: bool) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(dir) = rustix::fs::open(folder, flags, Mode::empty()) else { return };
    let marked = rustix::fs::ioctl_getflags(dir.as_fd()).and_then(|mut flags| {
        flags.set(IFlags::IMMUTABLE, is_on);
        rustix::fs::ioctl_setflags(dir.as_fd(), flags)
    });
    if let Err(errno) = marked {
        tracing::debug!(%errno, "a mount point cannot be protected");
    }
}

pub(super) fn remove_file(path: &Path) -> Result<(), BackingError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BackingError::io("remove a file of the volume", error))
        }
        _ => Ok(()),
    }
}

pub(super) fn sync_folder(path: &Path) -> Result<(), BackingError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| BackingError::io("flush a folder", source))
}
