//! What nobody needs any more: removed at the start, and as time passes.
//!
//! Called by the composition root. What a crash left half-made has a name of its own, which is all that is
//! gone by; what this process is working on is left alone. A volume that cannot be cleaned keeps no other
//! from it.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;

use super::backing::probe::PROBE_PREFIX;
use super::error::{During, FileError};
use super::lifecycle::DELETING_PREFIX;
use super::progress::Progress;
use super::resolve::open_folder;
use super::staging::{is_own, is_reserved, remove_tree};
use super::{Files, Inner, Lane, for_each_name, resumable, snapshots};
use crate::domain::ids::VolumeId;

impl Files {
    /// Removes what a crash has left: images on their way in, volumes on their way out and temporary folders in the others.
    /// What this process is working on is left alone.
    pub(crate) async fn sweep(&self) -> Result<(), FileError> {
        self.blocking(Lane::Heavy, None, |inner| {
            inner.images.sweep()?;
            for_each_name(&inner.volumes, |name| {
                // One volume that cannot be cleaned must not keep the others from it.
                if let Err(error) = inner.sweep_one(name) {
                    tracing::warn!(?name, %error, "could not remove what a crash left");
                }
            })
            .during("sweep", &"the folder of volumes")
        })
        .await
    }

    /// Removes resumable uploads of all volumes that nothing was added to for so long.
    pub(crate) async fn expire_resumables(&self, expire_after: Duration) -> Result<(), FileError> {
        self.blocking(Lane::Heavy, None, move |inner| {
            for_each_name(&inner.volumes, |name| {
                let Some(id) = name.to_str().ok().and_then(VolumeId::parse) else { return };
                let volume = inner.open(id);
                let expired = volume.and_then(|volume| {
                    volume.expire_resumables(expire_after, &inner.resumable_locks)
                });
                match expired {
                    Ok(0) | Err(FileError::NoVolume { .. }) => {}
                    Ok(count) => tracing::info!(volume = %id, count, "uploads have expired"),
                    Err(error) => {
                        tracing::warn!(volume = %id, %error, "could not remove expired uploads");
                    }
                }
            })
            .during("sweep", &"the folder of volumes")
        })
        .await
    }
}

impl Inner {
    fn sweep_one(&self, name: &CStr) -> Result<(), Errno> {
        if is_own(name.to_bytes()) {
            return Ok(());
        }
        let begins = |prefix: &str| name.to_bytes().starts_with(prefix.as_bytes());
        let prefixes = [DELETING_PREFIX, snapshots::RESTORING_PREFIX, PROBE_PREFIX];
        if prefixes.into_iter().any(begins) {
            return remove_tree(self.volumes.as_fd(), name, &Progress::default());
        }
        let is_volume = name.to_str().is_ok_and(|name| VolumeId::parse(name).is_some());
        if !is_volume {
            return Ok(());
        }
        let volume = open_folder(self.volumes.as_fd(), name)?;
        let mut outcome = Ok(());
        for_each_name(&volume, |name| {
            // Uploads that can go on after a crash have their own end.
            let is_kept = name.to_bytes() == resumable::UPLOADS.as_bytes();
            if is_reserved(name.to_bytes()) && !is_own(name.to_bytes()) && !is_kept {
                let removed = remove_tree(volume.as_fd(), name, &Progress::default());
                outcome = outcome.and(removed);
            }
        })?;
        outcome
    }
}
