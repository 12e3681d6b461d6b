//! Volumes as wholes: made, taken up at boot, resized, deleted; `snapshots` copies and restores them.
//!
//! ```text
//!   api --> Volumes --> store       what is meant to be, and what is
//!                   --> supervisor  who uses a volume now
//!                   --> files       the folder, the file system, the copy
//! ```
//! What is begun here is finished, also when whoever asked is gone: a task of our own does it. What a
//! crash cuts off is found again by what the store announced and by what lies on the disk
//! ([`Volumes::take_up`]), and is finished or undone before a container gets at it.

mod boot;
mod rounds;
mod snapshots;

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tokio_util::task::TaskTracker;

pub(crate) use self::boot::LeftOver;
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::ids::{ContainerId, VolumeId};
use crate::domain::lifecycle::Phase;
use crate::domain::quota::{Backing, QuotaBackend};
use crate::domain::units::UnixSeconds;
use crate::files::backing::project;
use crate::files::claims::Work;
use crate::files::{FileError, Files, Lane};
use crate::store::volumes::VolumeRow;
use crate::store::{Store, StoreError};
use crate::supervisor::Registry;
use crate::util::chain::Chain;

/// What the operator decides about volumes; may change while lightd runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VolumeSettings {
    /// What a volume with a size is given; `None`: the best that works.
    pub(crate) backend: Option<QuotaBackend>,
    /// How many snapshots one volume may have.
    pub(crate) max_snapshots: u64,
    pub(crate) on_exceeded: OnExceeded,
}

/// What follows when a workload has brought its volume over a limit that the kernel does not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnExceeded {
    Tell,
    Stop,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumesError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("container {container} is {state}; stop it first")]
    InUse { container: ContainerId, state: &'static str },
    #[error("{why}")]
    Fixed { why: &'static str },
    #[error("lightd is stopping")]
    Stopping,
}

/// Acts for somebody: for lightd itself unless [`Volumes::by`] says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Volumes {
    inner: Arc<Inner>,
    actor: Actor,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    files: Files,
    supervisor: Arc<Registry>,
    settings: watch::Receiver<VolumeSettings>,
    tasks: TaskTracker,
    /// The backends that were tried, and work. One that does not is tried again when it is asked for.
    working: Mutex<HashSet<QuotaBackend>>,
}

impl Volumes {
    pub(crate) fn new(
        store: Store,
        supervisor: Arc<Registry>,
        settings: watch::Receiver<VolumeSettings>,
    ) -> Self {
        let files = supervisor.services().files.clone();
        let (tasks, working) = (TaskTracker::new(), Mutex::default());
        let inner = Inner { store, files, supervisor, settings, tasks, working };
        Self { inner: Arc::new(inner), actor: Actor::lightd() }
    }

    /// The same, for this actor.
    pub(crate) fn by(&self, actor: Actor) -> Self {
        Self { inner: Arc::clone(&self.inner), actor }
    }

    fn act(&self, action: Action) -> Act {
        Act::new(self.actor.clone(), action)
    }

    /// Makes a volume. One with a size is held to it by what the node is configured for, or not made.
    pub(crate) async fn create(
        &self,
        name: Option<String>,
        size_bytes: Option<u64>,
    ) -> Result<VolumeRow, VolumesError> {
        let (inner, act) = (Arc::clone(&self.inner), self.act(Action::VolumeCreate));
        self.to_its_end(async move { inner.create(name, size_bytes, act).await }).await
    }

    /// Gives a volume another size, or none.
    pub(crate) async fn resize(
        &self,
        volume: VolumeId,
        size_bytes: Option<u64>,
    ) -> Result<VolumeRow, VolumesError> {
        let (inner, act) = (Arc::clone(&self.inner), self.act(Action::VolumeResize));
        self.to_its_end(async move { inner.resize(volume, size_bytes, act).await }).await
    }

    /// Deletes a volume that no container uses.
    /// `cancel` ends the work on it that goes on in the background, once it is known to go.
    pub(crate) async fn remove(
        &self,
        volume: VolumeId,
        cancel: impl FnOnce() + Send + 'static,
    ) -> Result<(), VolumesError> {
        let (inner, act) = (Arc::clone(&self.inner), self.act(Action::VolumeDelete));
        self.to_its_end(async move { inner.remove(volume, cancel, act).await }).await
    }

    /// Waits for what has been begun; nothing more is.
    pub(crate) async fn shutdown(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, VolumesError>> + Send + 'static,
    ) -> Result<T, VolumesError> {
        if self.inner.tasks.is_closed() {
            return Err(VolumesError::Stopping);
        }
        match self.inner.tasks.spawn(work).await {
            Ok(done) => done,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(VolumesError::Stopping),
            },
        }
    }
}

impl Inner {
    async fn create(
        &self,
        name: Option<String>,
        size_bytes: Option<u64>,
        act: Act,
    ) -> Result<VolumeRow, VolumesError> {
        let id = VolumeId::random();
        let backing = match size_bytes {
            Some(_) => Some(self.backing_for(id).await?),
            None => None,
        };
        self.store.write("announce a volume", move |tx| tx.announce_volume_folder(id)).await?;
        let made = match (backing, size_bytes) {
            (Some(backing), Some(size)) => self.files.create_limited(id, backing, size).await,
            _ => self.files.create_volume(id).await,
        };
        if let Err(error) = made {
            // What could not be made takes no room until the next start either.
            if let Err(error) = self.remove_folder(id).await {
                tracing::warn!(volume = %id, error = %Chain(&error), "half a volume stays behind until the next start");
            }
            return Err(error.into());
        }
        let row = VolumeRow { id, name, size_bytes, backing, created_at: UnixSeconds::now() };
        let stored = row.clone();
        let act = act.in_volume(id).with_some("name", row.name.as_deref());
        let act = act.with_some("size", size_bytes);
        let store = move |tx: &crate::store::Tx<'_>| {
            tx.insert_volume(&stored)?;
            tx.record(&act, stored.created_at)
        };
        self.store.write("store a volume", store).await?;
        Ok(row)
    }

    /// What a new volume with a size rests on.
    async fn backing_for(&self, volume: VolumeId) -> Result<Backing, VolumesError> {
        let backend = self.backend().await?;
        let mut backing = Backing::new(backend);
        if backend == QuotaBackend::Project {
            backing.project = Some(self.free_project(volume).await?);
        }
        Ok(backing)
    }

    /// A project number that no volume bears; where it begins to look, `seed` says.
    async fn free_project(&self, seed: VolumeId) -> Result<u32, VolumesError> {
        let find = move |rx: &crate::store::Read<'_>| rx.free_project(project::numbers_for(seed));
        let free = self.store.read("find a project number", find).await?;
        let backend = QuotaBackend::Project.as_str();
        Ok(free.ok_or(FileError::BackendUnusable { backend })?)
    }

    /// The configured backend, if it works. None stands in for another: what is called a limit by the
    /// kernel must be one.
    async fn backend(&self) -> Result<QuotaBackend, FileError> {
        let configured = self.settings.borrow().backend;
        match configured {
            Some(backend) if self.works(backend).await => Ok(backend),
            Some(backend) => Err(FileError::BackendUnusable { backend: backend.as_str() }),
            None => {
                for backend in QuotaBackend::ALL {
                    if self.works(backend).await {
                        return Ok(backend);
                    }
                }
                Ok(QuotaBackend::Soft)
            }
        }
    }

    async fn works(&self, backend: QuotaBackend) -> bool {
        let mut working = self.working.lock().await;
        if working.contains(&backend) {
            return true;
        }
        match self.files.probe(backend).await {
            Ok(()) => {
                tracing::info!(backend = backend.as_str(), "the quota backend works");
                working.insert(backend);
                true
            }
            Err(error) => {
                tracing::warn!(backend = backend.as_str(), error = %Chain(&error), "the quota backend does not work");
                false
            }
        }
    }

    async fn resize(
        &self,
        id: VolumeId,
        size_bytes: Option<u64>,
        act: Act,
    ) -> Result<VolumeRow, VolumesError> {
        let row = self.store.read("look up a volume", move |rx| rx.volume(id)).await?;
        let backing = match (row.backing, size_bytes) {
            _ if row.size_bytes == size_bytes => return Ok(row),
            (None, None) => None,
            (None, Some(size)) => Some(self.give_size(id, size).await?),
            (Some(backing), size) => match (backing.backend, size) {
                (QuotaBackend::Soft, None) => None,
                (QuotaBackend::Soft, Some(size)) => {
                    self.check_use(id, size).await?;
                    Some(backing)
                }
                (QuotaBackend::Image, Some(size)) => {
                    self.resize_image(id, size).await?;
                    Some(backing)
                }
                (QuotaBackend::Image, None) => {
                    return Err(VolumesError::Fixed { why: IMAGE_STAYS });
                }
                (QuotaBackend::Project, size) => {
                    self.check_use(id, size.unwrap_or(u64::MAX)).await?;
                    self.files.limit_project(id, backing, size).await?;
                    Some(backing)
                }
            },
        };
        let act = act.in_volume(id).with("size", size_bytes);
        let store = move |tx: &crate::store::Tx<'_>| {
            tx.resize_volume(id, size_bytes, backing)?;
            tx.record(&act, UnixSeconds::now())
        };
        self.store.write("resize a volume", store).await?;
        Ok(VolumeRow { size_bytes, backing, ..row })
    }

    /// Gives a size to a volume that had none.
    async fn give_size(&self, id: VolumeId, size_bytes: u64) -> Result<Backing, VolumesError> {
        let backing = self.backing_for(id).await?;
        match backing.backend {
            QuotaBackend::Soft => self.check_use(id, size_bytes).await?,
            QuotaBackend::Image => return Err(VolumesError::Fixed { why: FOLDER_STAYS }),
            QuotaBackend::Project => {
                self.check_use(id, size_bytes).await?;
                // What a workload makes while the folder is gone through might not be counted.
                let _claim = self.claim_at_rest(id, Work::Resize).await?;
                self.files.limit_project(id, backing, Some(size_bytes)).await?;
            }
        }
        Ok(backing)
    }

    async fn check_use(&self, id: VolumeId, size_bytes: u64) -> Result<(), FileError> {
        // The first look at a volume goes through all of it.
        let used = self.files.run_in(Lane::Scan, id, |volume| volume.usage(None)).await?;
        if used.used_bytes > size_bytes { Err(FileError::BelowUse) } else { Ok(()) }
    }

    async fn resize_image(&self, id: VolumeId, size_bytes: u64) -> Result<(), VolumesError> {
        self.check_use(id, size_bytes).await?;
        let claim = self.claim_at_rest(id, Work::Resize).await?;
        drop(self.files.resize_image(claim, size_bytes).await?);
        Ok(())
    }

    /// Claims a volume that no container uses now. The order counts: who starts after the claim waits for
    /// its end, and who started before shows in its phase.
    async fn claim_at_rest(
        &self,
        id: VolumeId,
        work: Work,
    ) -> Result<crate::files::claims::Claim, VolumesError> {
        let claim = self.files.claim(id, work).await?;
        let users =
            self.store.read("look who uses a volume", move |rx| rx.containers_of_volume(id));
        for container in users.await? {
            let Some(handle) = self.supervisor.get(&container) else { continue };
            let snapshot = handle.snapshot();
            let rests = matches!(
                snapshot.phase,
                Phase::Offline
                    | Phase::Crashed { .. }
                    | Phase::Failed { .. }
                    | Phase::Suspended { .. }
            );
            if !rests || snapshot.unknown_since.is_some() {
                return Err(VolumesError::InUse { container, state: snapshot.state_name() });
            }
        }
        Ok(claim)
    }

    async fn remove(
        &self,
        id: VolumeId,
        cancel: impl FnOnce(),
        act: Act,
    ) -> Result<(), VolumesError> {
        let delete = move |tx: &crate::store::Tx<'_>| {
            tx.delete_volume(id)?;
            tx.record(&act.in_volume(id), UnixSeconds::now())
        };
        self.store.write("delete a volume", delete).await?;
        cancel();
        let _claim = self.files.claim_to_remove(id).await?;
        self.remove_folder(id).await
    }

    async fn remove_folder(&self, id: VolumeId) -> Result<(), VolumesError> {
        self.files.remove_volume(id).await?;
        self.store.write("forget a volume's folder", move |tx| tx.forget_volume_folder(id)).await?;
        Ok(())
    }
}

const IMAGE_STAYS: &str =
    "this volume is a file system of its own and cannot be without a size; make a new one";
const FOLDER_STAYS: &str = "this volume was made without a size, and on this node a size needs a file system of its own; make a \
     new one";
