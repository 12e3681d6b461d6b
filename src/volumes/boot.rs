//! What earlier lives of lightd left: volumes mounted again, repaired, limited again, swept.
//!
//! Called by the composition root, [`Volumes::look_over`] before anything else may happen. A volume whose file
//! system is not mounted yet, or can't be, takes no calls and no container. One failure keeps no other
//! volume from being taken up.

use futures_util::StreamExt as _;

use super::{Inner, Volumes};
use crate::domain::ids::VolumeId;
use crate::domain::quota::QuotaBackend;
use crate::store::volumes::VolumeRow;
use crate::store::{StoreError, Tx};
use crate::util::chain::Chain;

/// Volumes that are checked and mounted at the same time.
const AT_ONCE: usize = 4;

/// What is to be done before the volumes are as they were.
#[derive(Clone, Debug)]
pub(crate) struct LeftOver {
    volumes: Vec<VolumeRow>,
    folders_to_remove: Vec<VolumeId>,
}

impl Volumes {
    /// Looks what there is to do, and keeps everybody from volumes that are not mounted yet. Before
    /// anything else may happen.
    pub(crate) async fn look_over(&self) -> Result<LeftOver, StoreError> {
        let left = self.inner.store.write("look over the volumes", |tx| {
            tx.forget_unfinished_snapshots()?;
            Ok(LeftOver {
                volumes: tx.volumes()?,
                folders_to_remove: tx.volume_folders_to_remove()?,
            })
        });
        let left = left.await?;
        for volume in &left.volumes {
            if volume.backing.is_some_and(|backing| backing.backend == QuotaBackend::Image) {
                self.inner.files.expect_image(volume.id);
            }
        }
        Ok(left)
    }

    /// Does it, and tries the configured backend. A volume that cannot be taken up keeps none of the
    /// others from it.
    pub(crate) async fn take_up(&self, left: LeftOver) {
        let inner = &self.inner;
        let volumes = futures_util::stream::iter(left.volumes);
        volumes.for_each_concurrent(AT_ONCE, |volume| inner.take_up_one(volume)).await;
        for id in left.folders_to_remove {
            if let Err(error) = inner.remove_folder(id).await {
                tracing::warn!(volume = %id, error = %Chain(&error), "a left-over volume stays behind");
            }
        }
        if let Err(error) = inner.sweep_snapshots().await {
            tracing::warn!(error = %Chain(&error), "left-over snapshots stay behind");
        }
        if let Err(error) = inner.files.sweep().await {
            tracing::warn!(error = %Chain(&error), "left-over files stay behind");
        }
        if let Err(error) = inner.backend().await {
            tracing::error!(error = %Chain(&error), "volumes with a size cannot be made");
        }
    }
}

impl Inner {
    async fn take_up_one(&self, row: VolumeRow) {
        let Some(backing) = row.backing else { return };
        let id = row.id;
        let taken_up = match backing.backend {
            QuotaBackend::Soft => Ok(()),
            QuotaBackend::Image => match self.files.take_up_image(id).await {
                Ok(bytes) => self.note_size(&row, bytes).await,
                Err(error) => Err(error.into()),
            },
            QuotaBackend::Project => {
                self.files.limit_project(id, backing, row.size_bytes).await.map_err(Into::into)
            }
        };
        if let Err(error) = taken_up {
            tracing::error!(volume = %id, error = %Chain(&error), "a volume cannot be taken up");
        }
    }

    /// Removes snapshots that the store does not know. It is asked after the disk: what is there was in
    /// the store before.
    async fn sweep_snapshots(&self) -> Result<(), super::VolumesError> {
        for (volume, id) in self.files.kept_snapshots().await? {
            let look = self.store.read("look for a snapshot", move |rx| rx.knows_snapshot(id));
            if !look.await? {
                self.files.remove_snapshot(volume, id).await?;
            }
        }
        Ok(())
    }

    /// A resize that was cut off shows in the size that the image has.
    async fn note_size(&self, row: &VolumeRow, bytes: u64) -> Result<(), super::VolumesError> {
        if row.size_bytes == Some(bytes) {
            return Ok(());
        }
        tracing::warn!(volume = %row.id, bytes, "a volume has another size than the store says");
        let (id, backing) = (row.id, row.backing);
        let store = move |tx: &Tx<'_>| tx.resize_volume(id, Some(bytes), backing);
        Ok(self.store.write("note a volume's size", store).await?)
    }
}
