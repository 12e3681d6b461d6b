//! All containers of the node: found by id, made, taken up at boot.
//!
//! A handle is in here from the commit of the row to the commit of its removal. Making one is decided
//! by the store's transaction; two who ask for the same id or port meet there. Once begun it goes on to
//! its end, also when its caller goes away: a row without an owner would be seen and deleted by nobody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::credentials;
use super::record::{Record, first_state};
use super::services::Services;
use super::shared::Shared;
use super::task::{BootLook, Owner, Queues};
use super::trail;
use super::{ContainerHandle, Snapshot};
use crate::console::Console;
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::event::{Signal, SignalKind, StateName};
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::{Effect, Machine};
use crate::domain::panel_update::PanelUpdate;
use crate::domain::spec::{ContainerSpec, Problem};
use crate::domain::units::UnixSeconds;
use crate::engine::RegistryAuth;
use crate::store::StoreError;
use crate::store::bindings::PortsWanted;
use crate::store::containers::{ContainerRow, NewContainer};
use crate::util::chain::Chain;

const URGENT: usize = 4;
const MAILBOX: usize = 16;
const REPORTS: usize = 64;

/// The registry and the tasks it started. One per daemon.
#[derive(Debug)]
pub(crate) struct Registry {
    services: Arc<Services>,
    containers: RwLock<HashMap<ContainerId, Entry>>,
    owners: Mutex<JoinSet<()>>,
    /// Containers that are being made.
    creating: TaskTracker,
    /// Whether the owners know what the engine has, so that they take commands.
    taken_up: AtomicBool,
}

#[derive(Clone, Debug)]
struct Entry {
    handle: ContainerHandle,
    hints: mpsc::Sender<()>,
    boot: mpsc::Sender<Box<BootLook>>,
}

/// A container to be made.
#[derive(Clone, Debug)]
pub(crate) struct CreateContainer {
    pub(crate) id: ContainerId,
    pub(crate) spec: ContainerSpec,
    pub(crate) ports: PortsWanted,
    pub(crate) registry_auth: Option<RegistryAuth>,
    /// Who makes it.
    pub(crate) actor: Actor,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("the container's specification is invalid")]
    Invalid(Vec<Problem>),
    #[error("lightd is stopping")]
    Stopping,
    #[error("cannot seal the registry's credentials")]
    Seal(#[source] crate::util::secret::SealError),
    #[error("cannot make the container's folder")]
    Folder(#[source] std::io::Error),
    /// A missing volume, a taken id, a port that is not to be had, or the store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Registry {
    pub(crate) fn new(services: Arc<Services>) -> Arc<Self> {
        Arc::new(Self {
            services,
            containers: RwLock::default(),
            owners: Mutex::default(),
            creating: TaskTracker::new(),
            taken_up: AtomicBool::new(false),
        })
    }

    pub(crate) fn services(&self) -> &Arc<Services> {
        &self.services
    }

    pub(crate) fn get(&self, id: &ContainerId) -> Option<ContainerHandle> {
        self.read().get(id).map(|entry| entry.handle.clone())
    }

    /// Whether the containers that were stored when lightd began are taken up: before, what needs the
    /// engine is refused. Never false again.
    pub(crate) fn is_taken_up(&self) -> bool {
        self.taken_up.load(Ordering::Relaxed)
    }

    pub(super) fn set_taken_up(&self) {
        self.taken_up.store(true, Ordering::Relaxed);
    }

    /// All containers, by id.
    pub(crate) fn list(&self) -> Vec<ContainerHandle> {
        let mut all: Vec<_> = self.read().values().map(|entry| entry.handle.clone()).collect();
        all.sort_by(|a, b| a.id().cmp(b.id()));
        all
    }

    pub(crate) fn signals(&self) -> broadcast::Receiver<Signal> {
        self.services.signals.subscribe()
    }

    /// Stores a container with its ports and begins its install.
    pub(crate) async fn create(
        self: &Arc<Self>,
        new: CreateContainer,
    ) -> Result<Arc<Snapshot>, CreateError> {
        if self.services.stop.is_cancelled() {
            return Err(CreateError::Stopping);
        }
        let registry = Arc::clone(self);
        match self.creating.spawn(async move { registry.make(new).await }).await {
            Ok(made) => made,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(CreateError::Stopping),
            },
        }
    }

    async fn make(
        self: &Arc<Self>,
        mut new: CreateContainer,
    ) -> Result<Arc<Snapshot>, CreateError> {
        let spec = Arc::new(new.spec);
        let problems = super::admission::problems(&spec, &self.services).await;
        new.spec = Arc::unwrap_or_clone(spec);
        if !problems.is_empty() {
            return Err(CreateError::Invalid(problems));
        }
        let sealed_auth = self.seal(&new).await?;
        let (machine, effects) = Machine::install();
        let row = self.insert(new, &machine, &effects, sealed_auth).await?;
        let record = Record::from_row(row).map_err(|why| StoreError::Decode {
            what: "container that was just written",
            source: why.into(),
        })?;
        let id = record.id.clone();
        let handle = match self.adopt(record, true).await {
            Ok(handle) => handle,
            Err(error) => {
                self.take_back(id).await;
                return Err(CreateError::Folder(error));
            }
        };
        for effect in effects {
            if let Effect::Emit(event) = effect {
                self.services.signal(handle.id(), SignalKind::State(event));
            }
        }
        Ok(handle.snapshot())
    }

    /// A container without a folder would be a row that nobody can see or delete.
    async fn take_back(&self, id: ContainerId) {
        let terms = self.services.port_terms();
        let delete = move |tx: &crate::store::Tx<'_>| {
            tx.delete_container(&id, &terms)?;
            let gone = Act::new(Actor::lightd(), Action::ContainerDeleted).on(&id);
            tx.record(&gone.with("reason", "its folder could not be made"), terms.now)
        };
        if let Err(error) = self.services.store.write("take a container back", delete).await {
            tracing::error!(error = %Chain(&error), "a container that could not be made stays in the store");
        }
    }

    async fn seal(&self, new: &CreateContainer) -> Result<Option<Vec<u8>>, CreateError> {
        let Some(auth) = new.registry_auth.clone() else { return Ok(None) };
        let (services, id) = (Arc::clone(&self.services), new.id.clone());
        let seal = move || credentials::seal(&services.sealer, &id, auth);
        match tokio::task::spawn_blocking(seal).await {
            Ok(sealed) => sealed.map(Some).map_err(CreateError::Seal),
            Err(_) => Err(CreateError::Stopping),
        }
    }

    async fn insert(
        &self,
        new: CreateContainer,
        machine: &Machine,
        effects: &[Effect],
        sealed_auth: Option<Vec<u8>>,
    ) -> Result<ContainerRow, StoreError> {
        let terms = self.services.port_terms();
        let act = Act::new(new.actor, Action::ContainerCreate)
            .on(&new.id)
            .in_volume(new.spec.volume_id)
            .with("image", new.spec.image.as_str());
        let row = NewContainer {
            id: new.id,
            spec: new.spec,
            registry_auth_sealed: sealed_auth,
            ports: new.ports,
            state: first_state(machine),
        };
        let installing = effects.iter().any(
            |effect| matches!(effect, Effect::Emit(event) if event.name == StateName::Installing),
        );
        let panel = self.services.settings().panel && installing;
        self.services
            .store
            .write("store a container", move |tx| {
                tx.insert_container(&row, &terms)?;
                if panel {
                    tx.enqueue_update(&row.id, &PanelUpdate::Installing, terms.now)?;
                }
                let created = tx.container(&row.id)?;
                let ports = created.ports.iter().map(|port| trail::text(&(*port).into()));
                tx.record(&act.listing("ports", ports), terms.now)?;
                Ok(created)
            })
            .await
    }

    /// Starts the owner task of a stored container and makes it findable. `fresh`: it was just made,
    /// so there is nothing to look for in the engine.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        record: Record,
        fresh: bool,
    ) -> std::io::Result<ContainerHandle> {
        let shared = self.open(&record.id).await?;
        let unknown_since = (!fresh).then(UnixSeconds::now);
        let first = Arc::new(record.snapshot(1, unknown_since, false));
        let (snapshot, watched) = watch::channel(first);
        let (urgent_tx, urgent) = mpsc::channel(URGENT);
        let (mailbox_tx, mailbox) = mpsc::channel(MAILBOX);
        let (hints_tx, hints) = mpsc::channel(1);
        let (boot_tx, boot) = mpsc::channel(1);
        let (reports, received) = mpsc::channel(REPORTS);
        let handle = ContainerHandle {
            id: record.id.clone(),
            actor: Actor::lightd(),
            urgent: urgent_tx,
            mailbox: mailbox_tx,
            snapshot: watched,
            shared: Arc::clone(&shared),
            services: Arc::clone(&self.services),
        };
        let entry = Entry { handle: handle.clone(), hints: hints_tx, boot: boot_tx };
        self.write().insert(record.id.clone(), entry);
        let owner = Owner::new(Arc::clone(self), shared, record, snapshot, reports, unknown_since);
        let queues = Queues { urgent, mailbox, hints, boot };
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        while owners.try_join_next().is_some() {}
        owners.spawn(owner.run(queues, received));
        Ok(handle)
    }

    /// Opens a container's own folder, made if it is not there, and the console in it.
    async fn open(&self, id: &ContainerId) -> std::io::Result<Arc<Shared>> {
        let folder = self.services.containers_path.join(id.as_str());
        let options = self.services.console;
        let open = move || {
            let console =
                Console::open(folder.join("console"), options).map_err(std::io::Error::other)?;
            let shared = Shared::new(folder, console);
            // The engine mounts it into the container, and refuses to where it is missing.
            std::fs::create_dir_all(shared.data_folder())?;
            Ok(Arc::new(shared))
        };
        tokio::task::spawn_blocking(open).await.map_err(std::io::Error::other)?
    }

    /// Asks a container's owner to look at the engine; one that is about to look anyway is not asked
    /// twice.
    pub(super) fn hint(&self, id: &ContainerId) {
        if let Some(entry) = self.read().get(id) {
            // Full: it will look.
            let _full = entry.hints.try_send(());
        }
    }

    pub(super) fn hint_all(&self) {
        for entry in self.read().values() {
            // Full: it will look.
            let _full = entry.hints.try_send(());
        }
    }

    /// Hands an owner the look it was waiting for. It has room for one, and is given one.
    pub(super) fn tell_boot(&self, id: &ContainerId, look: BootLook) {
        if let Some(entry) = self.read().get(id)
            && let Err(error) = entry.boot.try_send(Box::new(look))
        {
            tracing::error!(container.id = %id, %error, "a container was not taken up");
        }
    }

    pub(super) fn remove(&self, id: &ContainerId) {
        self.write().remove(id);
    }

    /// Waits for the owners after [`Services::stop`]; workloads run on. False if some did not end in
    /// time.
    pub(crate) async fn wind_down(&self, within: Duration) -> bool {
        let all = async {
            self.creating.close();
            self.creating.wait().await;
            let mut owners = {
                let mut held = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *held)
            };
            while let Some(ended) = owners.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(error = %Chain(&error), "an owner task ended badly");
                }
            }
        };
        tokio::time::timeout(within, all).await.is_ok()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<ContainerId, Entry>> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<ContainerId, Entry>> {
        self.containers.write().unwrap_or_else(PoisonError::into_inner)
    }
}
