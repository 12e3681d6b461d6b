//! An image that takes a volume's place in one step: filled aside, checked, and exchanged with the old one.
//!
//! Called where a volume is restored, and where a node is tried. Until the exchange the volume is untouched; one
//! whose image cannot be mounted is taken back. An error says that the volume is as it was. What stands
//! aside at the end, be it the new image or the old one, is removed when dropped; what a crash left is, by
//! [`Images::sweep`].

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::BackingError;
use super::attach::{loop_device, mount, unmount, wait_until};
use super::image::{Images, UNLOCKED_WITHIN, check, open, remove_file, sync_folder};
use super::tools::lock;
use crate::domain::ids::VolumeId;
use crate::files::staging::{is_own, own_mark};
use crate::util::chain::Chain;

/// An image that is about to take a volume's place, mounted aside. Removed when dropped.
#[derive(Debug)]
pub(crate) struct StagedImage {
    images: Images,
    path: PathBuf,
    folder: PathBuf,
    aside: Aside,
}

/// Which image is under the name of the staged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aside {
    New,
    /// The one that was the volume, as long as the new one is not seen to work.
    Needed,
    /// The one that was the volume.
    Old,
}

impl Images {
    /// Makes and mounts an image that may take the place of a volume's.
    pub(crate) fn stage(&self, size_bytes: u64) -> Result<StagedImage, BackingError> {
        let name = format!("staged-{}{:08x}", own_mark(), rand::random::<u32>());
        let (path, folder) =
            (self.folder().join(format!("{name}.img")), self.folder().join(format!("{name}.mnt")));
        let staged = StagedImage { images: self.clone(), path, folder, aside: Aside::New };
        let image = self.make_image(&staged.path, size_bytes)?;
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&staged.folder)
            .map_err(|source| BackingError::io("make a folder", source))?;
        mount(&staged.path, &image, &staged.folder)?;
        Ok(staged)
    }

    /// Removes what a crash left of images that were to take a place.
    pub(crate) fn sweep(&self) -> Result<(), BackingError> {
        let Ok(entries) = std::fs::read_dir(self.folder()) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            if !name.starts_with(b"staged-") || is_own(name) {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                unmount(&path)?;
                // What is not empty, no volume is in; the image beneath it goes all the same.
                std::fs::remove_dir(&path).ok();
            } else {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

impl StagedImage {
    /// Takes it apart, and checks that nothing holds it then.
    pub(super) fn unmount(self) -> Result<(), BackingError> {
        unmount(&self.folder)?;
        if !wait_until(|| Ok(loop_device(&self.path)?.is_none()))? {
            return Err(BackingError::Busy);
        }
        check(&self.path, &open(&self.path)?, &["-f", "-n"])
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The root of the new file system.
    pub(crate) fn root(&self) -> Result<std::os::fd::OwnedFd, BackingError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.folder, flags, Mode::empty())
            .map_err(|errno| BackingError::io("open the new file system", errno))
    }

    /// Puts the image in the place of a volume's, in one step. The volume is claimed, and nobody uses it.
    /// The old image stays until the new one is mounted.
    pub(crate) fn take_place_of(mut self, volume: VolumeId) -> Result<(), BackingError> {
        let images = self.images.clone();
        let (old, at) = (images.path(volume), images.mount_point(volume));
        unmount(&self.folder)?;
        if !wait_until(|| Ok(loop_device(&self.path)?.is_none()))? {
            return Err(BackingError::Busy);
        }
        let (new, present) = (open(&self.path)?, open(&old)?);
        for image in [&new, &present] {
            lock(image, UNLOCKED_WITHIN).map_err(|_| BackingError::Busy)?;
        }
        check(&self.path, &new, &["-f", "-n"])?;
        new.sync_all().map_err(|source| BackingError::io("flush the new image", source))?;
        images.release(volume, &present)?;
        let exchanged = self.exchange_with(&old);
        let mounted = exchanged.and_then(|()| mount(&old, &new, &at));
        let Err(error) = mounted else {
            self.aside = Aside::Old;
            return Ok(());
        };
        if self.aside == Aside::Needed
            && let Err(error) = self.exchange_with(&old)
        {
            tracing::error!(%volume, error = %Chain(&error), "a restore cannot be taken back");
        }
        // Whichever it is that has the volume's name now.
        let it = if self.aside == Aside::New { &present } else { &new };
        if let Err(error) = mount(&old, it, &at) {
            tracing::error!(%volume, error = %Chain(&error), "a volume cannot be mounted again");
        }
        Err(error)
    }

    /// Lets the staged image and the volume's change names. Whether a power failure would undo that, is
    /// no reason to take it back.
    fn exchange_with(&mut self, other: &Path) -> Result<(), BackingError> {
        let cwd = rustix::fs::CWD;
        let swap = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(cwd, &self.path, cwd, other, swap)
            .map_err(|errno| BackingError::io("exchange the images", errno))?;
        self.aside = if self.aside == Aside::New { Aside::Needed } else { Aside::New };
        if let Err(error) = sync_folder(&self.images.folder()) {
            tracing::warn!(error = %Chain(&error), "a power failure may bring back what a restore replaced");
        }
        Ok(())
    }
}

impl Drop for StagedImage {
    fn drop(&mut self) {
        if self.aside == Aside::Needed {
            tracing::error!(path = %self.path.display(), "the image that a volume had is kept until the next start");
            return;
        }
        let removed = unmount(&self.folder).and_then(|()| {
            // It may not have been made.
            std::fs::remove_dir(&self.folder).ok();
            remove_file(&self.path)
        });
        if let Err(error) = removed {
            tracing::warn!(error = %Chain(&error), "an image stays behind until the next start");
        }
    }
}
