//! Volumes made, taken up, resized and removed, each as its backing wants it.
//!
//! Called by `volumes`, which stores what is intended before and what has come of it after. All of it
//! may be repeated after a crash.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;

use super::backing::{self, BackingError};
use super::claims::{Claim, Standing, Work};
use super::error::{During, FileError};
use super::progress::Progress;
use super::resolve::make_folder;
use super::staging::{own_mark, remove_tree};
use super::{Files, Inner, Lane, snapshots};
use crate::domain::ids::VolumeId;
use crate::domain::quota::{Backing, QuotaBackend};

pub(super) const DELETING_PREFIX: &str = ".deleting-";
/// How long those who use a volume may take to leave it.
const DRAINED_WITHIN: Duration = Duration::from_secs(5);
/// How long work that was told to end may take to.
const REMOVE_WITHIN: Duration = Duration::from_secs(30);

impl Files {
    /// Makes a volume's folder.
    pub(crate) async fn create_volume(&self, volume: VolumeId) -> Result<(), FileError> {
        let name = volume.to_string();
        self.blocking(Lane::Quick, None, move |inner| {
            make_folder(inner.volumes.as_fd(), name.as_str(), inner.owner).during("make", &name)?;
            rustix::fs::fsync(&inner.volumes).during("make", &name)
        })
        .await
    }

    /// Removes a volume with everything in it, and its snapshots; one that is gone already is as good. All
    /// is renamed first, so that a crash on the way leaves garbage and never half a volume.
    pub(crate) async fn remove_volume(&self, volume: VolumeId) -> Result<(), FileError> {
        let moved = self.blocking(Lane::Quick, None, move |inner| {
            inner.budgets.counts.forget(volume);
            let snapshots = inner.put_aside(&snapshots::folder_of(volume))?;
            if inner.remove_image(volume)? {
                return Ok(vec![snapshots]);
            }
            Ok(vec![snapshots, inner.put_aside(&volume.to_string())?])
        });
        let aside: Vec<String> = moved.await?.into_iter().flatten().collect();
        self.blocking(Lane::Heavy, None, move |inner| {
            aside.iter().try_for_each(|name| inner.remove_aside(name))
        })
        .await
    }

    /// Whether a backend works here, by trying.
    pub(crate) async fn probe(&self, backend: QuotaBackend) -> Result<(), BackingError> {
        let probed = self.blocking(Lane::Heavy, None, move |inner| {
            let owner = inner.owner.map_or((0, 0), |owner| (owner.uid, owner.gid));
            Ok(backing::probe(backend, &inner.volumes_path, owner))
        });
        probed.await.map_err(|error| BackingError::io("try", std::io::Error::other(error)))?
    }

    /// Makes a volume that is held to a size.
    pub(crate) async fn create_limited(
        &self,
        volume: VolumeId,
        backing: Backing,
        size_bytes: u64,
    ) -> Result<(), FileError> {
        match backing.backend {
            QuotaBackend::Soft => self.create_volume(volume).await,
            QuotaBackend::Image if size_bytes < backing::image::LEAST_BYTES => {
                Err(FileError::TooSmall { least_bytes: backing::image::LEAST_BYTES })
            }
            QuotaBackend::Image => {
                let make = self.blocking(Lane::Heavy, None, move |inner| {
                    inner.images.make(volume, size_bytes)?;
                    inner.claims.set_standing(volume, Standing::Mounted);
                    Ok(())
                });
                make.await
            }
            QuotaBackend::Project => {
                self.create_volume(volume).await?;
                self.limit_project(volume, backing, Some(size_bytes)).await
            }
        }
    }

    /// Makes a folder a project, with all that is in it, and gives it a limit or none.
    pub(crate) async fn limit_project(
        &self,
        volume: VolumeId,
        backing: Backing,
        limit_bytes: Option<u64>,
    ) -> Result<(), FileError> {
        // Without a number nothing would be limited, and it would be said that it is.
        let backend = QuotaBackend::Project.as_str();
        let project = backing.project.ok_or(FileError::BackendUnusable { backend })?;
        self.blocking(Lane::Heavy, None, move |inner| {
            let folder = inner.volumes_path.join(volume.to_string());
            if backing::project::assigned(&folder)? != Some(project) {
                backing::project::assign(&folder, project)?;
            }
            Ok(backing::project::set_limit(&inner.volumes_path, project, limit_bytes)?)
        })
        .await
    }

    /// Says that a volume is in an image, and can't be used until it was taken up.
    pub(crate) fn expect_image(&self, volume: VolumeId) {
        self.0.claims.set_standing(volume, Standing::TakingUp);
    }

    /// Repairs and mounts a volume that is in an image. The size that it really has.
    pub(crate) async fn take_up_image(&self, volume: VolumeId) -> Result<u64, FileError> {
        let taken_up =
            self.blocking(Lane::Heavy, None, move |inner| Ok(inner.images.take_up(volume)?));
        let taken_up = taken_up.await;
        let standing = if taken_up.is_ok() { Standing::Mounted } else { Standing::Broken };
        self.0.claims.set_standing(volume, standing);
        taken_up
    }

    /// Makes a volume's file system larger or smaller. Nothing of it is used.
    pub(crate) async fn resize_image(
        &self,
        claim: Claim,
        size_bytes: u64,
    ) -> Result<Claim, FileError> {
        let volume = claim.volume();
        if size_bytes < backing::image::LEAST_BYTES {
            return Err(FileError::TooSmall { least_bytes: backing::image::LEAST_BYTES });
        }
        self.blocking(Lane::Heavy, None, move |inner| {
            inner.resize_image(volume, size_bytes)?;
            Ok(claim)
        })
        .await
    }

    /// Claims a volume for work on it as a whole; others are kept away where the work needs that.
    pub(crate) async fn claim(&self, volume: VolumeId, work: Work) -> Result<Claim, FileError> {
        let claim = self.0.claims.claim(volume, work)?;
        if work != Work::Snapshot {
            self.0.claims.drained(volume, DRAINED_WITHIN).await?;
        }
        Ok(claim)
    }

    /// As [`Files::claim`] for a volume that goes: waits until nobody else has a claim, and not for those
    /// who use it.
    pub(crate) async fn claim_to_remove(&self, volume: VolumeId) -> Result<Claim, FileError> {
        self.0.claims.unclaimed(volume, REMOVE_WITHIN).await?;
        self.0.claims.claim(volume, Work::Remove)
    }

    /// Waits until a volume can be used, as a container is about to; false if it can't be.
    pub(crate) async fn usable(&self, volume: VolumeId) -> bool {
        self.0.claims.usable(volume).await
    }

    /// What keeps others from a volume now.
    pub(crate) fn claimed_for(&self, volume: VolumeId) -> Option<Work> {
        self.0.claims.claimed_for(volume)
    }
}

impl Inner {
    /// Renames what is to go, so that it is gone at once; `None` if it was not there.
    pub(super) fn put_aside(&self, name: &str) -> Result<Option<String>, FileError> {
        let aside = format!("{DELETING_PREFIX}{}{:08x}", own_mark(), rand::random::<u32>());
        match rustix::fs::renameat(&self.volumes, name, &self.volumes, &aside) {
            Err(Errno::NOENT) => Ok(None),
            outcome => outcome.during("remove", &"the volume").map(|()| Some(aside)),
        }
    }

    pub(super) fn remove_aside(&self, name: &str) -> Result<(), FileError> {
        remove_tree(self.volumes.as_fd(), name, &Progress::default())
            .during("remove", &"the volume")
    }

    fn resize_image(&self, volume: VolumeId, size_bytes: u64) -> Result<(), FileError> {
        let resized = self.images.resize(volume, size_bytes);
        self.note_mounted(volume);
        Ok(resized?)
    }

    /// After work on an image: a volume that could not be mounted again is not used.
    pub(super) fn note_mounted(&self, volume: VolumeId) {
        let is_there = self.images.is_mounted(volume).unwrap_or(false);
        let standing = if is_there { Standing::Mounted } else { Standing::Broken };
        self.claims.set_standing(volume, standing);
    }

    /// Removes a volume's image, if it is in one, so that its folder can go.
    pub(super) fn remove_image(&self, volume: VolumeId) -> Result<bool, FileError> {
        if !self.images.exists(volume) && self.claims.standing(volume) == Standing::Plain {
            return Ok(false);
        }
        self.images.remove(volume)?;
        self.claims.set_standing(volume, Standing::Plain);
        Ok(true)
    }

    /// Whether an open folder is on another file system than the folder of all volumes.
    pub(super) fn is_own_file_system(
        &self,
        root: &std::os::fd::OwnedFd,
    ) -> Result<bool, FileError> {
        let device = |stat: Result<rustix::fs::Stat, Errno>| {
            stat.map(|stat| stat.st_dev).during("look at", &"the volume")
        };
        Ok(device(rustix::fs::fstat(root))? != device(rustix::fs::fstat(&self.volumes))?)
    }
}
