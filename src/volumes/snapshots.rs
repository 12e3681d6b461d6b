//! Snapshots: taken while the workload goes on or stands still, put back while it is stopped.
//!
//! Taking one is announced in the store first; it is shown when the copy is complete and on the disk. What
//! stands still for it does so by a wish to its owner task, which stores that before it pauses: should
//! lightd end meanwhile, the next one lets it go on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::{Inner, Volumes, VolumesError};
use crate::domain::audit::{Act, Action};
use crate::domain::ids::VolumeId;
use crate::domain::lifecycle::{Answer, Command};
use crate::domain::operation::{OperationId, OperationKind};
use crate::domain::quota::Backing;
use crate::domain::units::UnixSeconds;
use crate::files::claims::{Claim, Work};
use crate::files::operation::Operations;
use crate::files::replica::Tally;
use crate::files::snapshots::Restore;
use crate::files::{FileError, Progress};
use crate::store::snapshots::SnapshotRow;
use crate::supervisor::{ContainerHandle, Refusal, Request};
use crate::util::chain::Chain;

/// How long a workload may take to stand still.
const STANDS_WITHIN: Duration = Duration::from_secs(30);
/// How long an owner task that takes no wishes is asked again to let its workload go on.
const THAWS_WITHIN: Duration = Duration::from_secs(60);
/// After a wish that found a full mailbox.
const AGAIN: Duration = Duration::from_millis(100);

impl Volumes {
    /// Begins to copy a volume. With `pause` its containers stand still meanwhile.
    pub(crate) async fn take_snapshot(
        &self,
        operations: &Operations,
        volume: VolumeId,
        name: String,
        pause: bool,
    ) -> Result<OperationId, VolumesError> {
        let (inner, operations) = (Arc::clone(&self.inner), operations.clone());
        let act = self.act(Action::SnapshotTake).with("name", name.as_str());
        let new = (volume, name, pause);
        self.to_its_end(async move { inner.begin(&operations, new, act).await }).await
    }

    /// Begins to put a snapshot in its volume's place. Its containers must be stopped, and are not
    /// started meanwhile.
    pub(crate) async fn restore_snapshot(
        &self,
        operations: &Operations,
        volume: VolumeId,
        name: String,
    ) -> Result<OperationId, VolumesError> {
        let (inner, operations) = (Arc::clone(&self.inner), operations.clone());
        let act = self.act(Action::SnapshotRestore).with("name", name.as_str());
        self.to_its_end(async move { inner.begin_restore(&operations, volume, name, act).await })
            .await
    }

    /// Removes a snapshot.
    pub(crate) async fn remove_snapshot(
        &self,
        volume: VolumeId,
        name: String,
    ) -> Result<(), VolumesError> {
        let inner = Arc::clone(&self.inner);
        let act = self.act(Action::SnapshotDelete).in_volume(volume).with("name", name.as_str());
        self.to_its_end(async move {
            let _claim = inner.files.claim(volume, Work::Snapshot).await?;
            let removing = inner.store.write("begin to remove a snapshot", move |tx| {
                let row = tx.snapshot(volume, &name)?;
                tx.begin_snapshot_removal(row.id)?;
                tx.record(&act, UnixSeconds::now())?;
                Ok(row.id)
            });
            let id = removing.await?;
            inner.files.remove_snapshot(volume, id).await?;
            inner.store.write("forget a snapshot", move |tx| tx.forget_snapshot(id)).await?;
            Ok(())
        })
        .await
    }
}

impl Inner {
    async fn begin(
        self: Arc<Self>,
        operations: &Operations,
        (volume, name, pause): (VolumeId, String, bool),
        act: Act,
    ) -> Result<OperationId, VolumesError> {
        let claim = self.files.claim(volume, Work::Snapshot).await?;
        let (id, created_at) = (Uuid::new_v4(), UnixSeconds::now());
        let row = SnapshotRow { id, volume, name, bytes: 0, entries: 0, paused: pause, created_at };
        let most = self.settings.borrow().max_snapshots;
        let new = row.clone();
        self.store.write("begin a snapshot", move |tx| tx.begin_snapshot(&new, most)).await?;
        let inner = Arc::clone(&self);
        let work = move |progress| async move { inner.take(claim, row, progress).await };
        let started =
            operations.start(act.with("pause", pause), OperationKind::Snapshot, volume, work).await;
        if started.is_err() {
            self.forget_snapshot(id).await;
        }
        Ok(started?)
    }

    async fn begin_restore(
        self: Arc<Self>,
        operations: &Operations,
        volume: VolumeId,
        name: String,
        act: Act,
    ) -> Result<OperationId, VolumesError> {
        let claim = self.claim_at_rest(volume, Work::Restore).await?;
        let look = move |rx: &crate::store::Read<'_>| {
            Ok((rx.volume(volume)?, rx.snapshot(volume, &name)?))
        };
        let (row, snapshot) = self.store.read("look up a snapshot", look).await?;
        if let Some(limit_bytes) = row.size_bytes.filter(|size| *size < snapshot.bytes) {
            return Err(FileError::QuotaExceeded { limit_bytes }.into());
        }
        let new_project = match row.backing.and_then(|backing| backing.project) {
            Some(_) => Some(self.free_project(VolumeId::random()).await?),
            None => None,
        };
        let restore = Restore {
            snapshot: snapshot.id,
            new_project,
            expected: Tally { bytes: snapshot.bytes, entries: snapshot.entries },
            backing: row.backing,
            size_bytes: row.size_bytes,
        };
        let work = move |progress: Progress| async move {
            self.restore(claim, restore, progress.clone()).await?;
            progress.set_result(result(&snapshot.name, restore.expected));
            Ok(())
        };
        Ok(operations.start(act, OperationKind::Restore, volume, work).await?)
    }

    async fn take(
        &self,
        _claim: Claim,
        row: SnapshotRow,
        progress: Progress,
    ) -> Result<(), FileError> {
        let taken = self.copy(&row, progress).await;
        if taken.is_err() {
            self.forget_snapshot(row.id).await;
        }
        taken
    }

    async fn copy(&self, row: &SnapshotRow, progress: Progress) -> Result<(), FileError> {
        let (volume, id) = (row.volume, row.id);
        let mut frozen = Vec::new();
        let stands = if row.paused { self.freeze(volume, &mut frozen).await } else { Ok(()) };
        let copied = match stands {
            Ok(()) => self.files.copy_for_snapshot(volume, id, progress.clone()).await,
            Err(error) => Err(error),
        };
        // Whoever was stopped or killed meanwhile went on writing first.
        let undisturbed = frozen.iter().all(|handle| handle.snapshot().frozen);
        for handle in &frozen {
            thaw(handle).await;
        }
        let tally = copied?;
        let kept = if undisturbed {
            self.files.keep_snapshot(volume, id).await
        } else {
            Err(FileError::Disturbed)
        };
        if let Err(error) = kept {
            still_there(volume, self.files.drop_copy(volume, id).await);
            return Err(error);
        }
        let finish = self.store.write("finish a snapshot", move |tx| {
            tx.finish_snapshot(id, tally.bytes, tally.entries)
        });
        if let Err(error) = finish.await {
            still_there(volume, self.files.remove_snapshot(volume, id).await);
            return Err(FileError::Store { source: Box::new(error) });
        }
        progress.set_result(result(&row.name, tally));
        Ok(())
    }

    /// Lets all workloads on a volume stand still. Whom it was asked of is in `frozen`, also on an error.
    async fn freeze(
        &self,
        volume: VolumeId,
        frozen: &mut Vec<ContainerHandle>,
    ) -> Result<(), FileError> {
        let users = self
            .store
            .read("look who uses a volume", move |rx| rx.containers_of_volume(volume))
            .await
            .map_err(|error| FileError::Store { source: Box::new(error) })?;
        for container in users {
            let Some(handle) = self.supervisor.get(&container) else { continue };
            match handle.send(Request::Command(Command::Freeze)).await {
                Ok(accepted) if accepted.answer == Answer::Satisfied => continue,
                Ok(_) => frozen.push(handle.clone()),
                Err(Refusal::Gone) => continue,
                Err(refusal) => {
                    tracing::info!(container.id = %container, error = %Chain(&refusal), "a workload cannot stand still");
                    return Err(FileError::Disturbed);
                }
            }
            let mut watch = handle.watch();
            let decided = watch.wait_for(|seen| seen.frozen || !seen.freezing || seen.deleted);
            match tokio::time::timeout(STANDS_WITHIN, decided).await {
                Ok(Ok(seen)) if seen.frozen => {}
                _ => return Err(FileError::Disturbed),
            }
        }
        Ok(())
    }

    async fn restore(
        &self,
        claim: Claim,
        restore: Restore,
        progress: Progress,
    ) -> Result<(), FileError> {
        let volume = claim.volume();
        let _claim = self.files.restore(claim, restore, progress).await?;
        let Some(project) = restore.new_project else { return Ok(()) };
        let backing = restore.backing.map(|old| Backing { project: Some(project), ..old });
        let store =
            move |tx: &crate::store::Tx<'_>| tx.resize_volume(volume, restore.size_bytes, backing);
        if let Err(error) = self.store.write("store a volume's project", store).await {
            // The volume is the snapshot all the same. Whoever next sets its limit, at the latest the
            // next start, gives it the number that is stored.
            tracing::warn!(%volume, error = %Chain(&error), "a volume's new project is not stored");
        }
        Ok(())
    }

    async fn forget_snapshot(&self, id: Uuid) {
        let forget = self.store.write("forget a snapshot", move |tx| tx.forget_snapshot(id));
        if let Err(error) = forget.await {
            // It is not shown, and the next start forgets it.
            tracing::warn!(error = %Chain(&error), "a snapshot that was not taken is not forgotten");
        }
    }
}

/// What the operation says that it was about.
fn result(name: &str, Tally { bytes, entries }: Tally) -> serde_json::Value {
    serde_json::json!({"name": name, "size": bytes, "entries": entries})
}

/// What could not be taken away again; why it had to be is what the caller is told.
fn still_there(volume: VolumeId, removed: Result<(), FileError>) {
    if let Err(error) = removed {
        tracing::warn!(%volume, error = %Chain(&error), "a snapshot that is none stays behind until the next start");
    }
}

/// Lets a workload go on. The wish is stored by its owner, who sees to the rest.
async fn thaw(handle: &ContainerHandle) {
    let end = Instant::now() + THAWS_WITHIN;
    loop {
        match handle.send(Request::Command(Command::Thaw)).await {
            Err(Refusal::Busy) if Instant::now() < end => tokio::time::sleep(AGAIN).await,
            Ok(_) | Err(Refusal::Gone | Refusal::Denied(_)) => return,
            Err(refusal) => {
                tracing::error!(container.id = %handle.id(), error = %Chain(&refusal), "a workload stands still until the next start of lightd");
                return;
            }
        }
    }
}
