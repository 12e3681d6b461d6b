//! After a start of lightd: rows and the engine's containers are compared, and each owner is told what
//! there is of its container. What is under way is adopted, what was begun is finished or undone, what
//! belongs to nobody is reported and left alone.
//!
//! ```text
//!   load: rows -> owners, which refuse until they are told
//!   run:  engine is there -> list -> look at each -> tell its owner -> taken up, events are passed on
//! ```
//! [`Registry::run`] is a task of the composition root. While the engine is away, or cannot be looked
//! over, the round is begun again; a single container that cannot be looked at keeps neither the others
//! nor the engine's events waiting.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::record::Record;
use super::registry::Registry;
use super::task::BootLook;
use super::workload::aside_name;
use super::{ContainerHandle, Snapshot};
use crate::domain::audit::Actor;
use crate::domain::ids::ContainerId;
use crate::domain::lifecycle::{Interruption, Phase};
use crate::domain::observed::Observed;
use crate::domain::spec::HostPort;
use crate::engine::{EngineError, Hint, Ours};
use crate::network::isolation::IsolationError;
use crate::store::StoreError;
use crate::store::containers::ContainerFilter;
use crate::util::backoff::Backoff;
use crate::util::chain::Chain;

const AGAIN: Backoff =
    Backoff { first: Duration::from_millis(300), longest: Duration::from_secs(5) };
/// Where the store keeps which run of the engine was last seen.
const ENGINE: &str = "engine_incarnation";
/// How long the node is not ready for the sake of owners that were told, but are not done with it: one
/// whose run ended unseen reads the engine's log first.
const OWNERS_ANSWER: Duration = Duration::from_secs(10);

/// The engine's containers that belong to a row.
#[derive(Clone, Debug, Default)]
struct Found {
    workload: Option<String>,
    others: Vec<Ours>,
}

#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("cannot set up the containers' network")]
    Isolation(#[source] IsolationError),
    #[error("cannot list the engine's containers")]
    Engine(#[source] EngineError),
}

impl Registry {
    /// Reads all rows and starts their owners, which answer with what was stored until the engine has
    /// been looked over.
    pub(crate) async fn load(self: &Arc<Self>) -> Result<usize, StoreError> {
        let rows = self
            .services()
            .store
            .read("read the containers", |read| read.containers(&ContainerFilter::default()))
            .await?;
        let count = rows.len();
        for row in rows {
            let id = row.id.clone();
            match Record::from_row(row) {
                Ok(record) => {
                    if let Err(error) = self.adopt(record, false).await {
                        tracing::error!(container.id = %id, %error, "a container's folder cannot be opened; it is left alone");
                    }
                }
                Err(error) => {
                    tracing::error!(container.id = %id, %error, "a container's row cannot be read; it is left alone");
                }
            }
        }
        Ok(count)
    }

    /// Waits for the engine, tells every owner what it has, and from then on passes on its hints.
    pub(crate) async fn run(self: Arc<Self>, host_was_restarted: bool, stop: CancellationToken) {
        let (hints, mut hinted) = broadcast::channel(256);
        let engine = self.services().engine.clone();
        let work = async {
            let mut found = self.boot().await;
            let all = self.list();
            let interruption = self.interruption(host_was_restarted).await;
            let left = self.tell_each(all.clone(), &mut found, interruption).await;
            tokio::join!(
                self.note_taken_up(all),
                self.tell_the_rest(left, found, interruption),
                self.note_engines(),
                engine.watch_events(hints, stop.clone()),
                self.pass_on(&mut hinted)
            );
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    /// What the engine has, as soon as it can be asked.
    async fn boot(&self) -> HashMap<ContainerId, Found> {
        let mut failures = 0;
        loop {
            self.services().engine_back().await;
            match self.look_over().await {
                Ok(found) => return found,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = %Chain(&error), "the engine cannot be looked over yet");
                    tokio::time::sleep(AGAIN.delay(failures)).await;
                }
            }
        }
    }

    /// What may have ended containers since lightd was last there.
    async fn interruption(&self, host_was_restarted: bool) -> Interruption {
        if host_was_restarted {
            return Interruption::Host;
        }
        let noted = self.services().store.read("read the engine's start", |read| read.meta(ENGINE));
        let noted = noted.await;
        let health = self.services().engine.health();
        match (noted, health.borrow().incarnation()) {
            (Ok(Some(noted)), Some(present)) if noted != present => {
                tracing::info!("the engine was restarted meanwhile");
                Interruption::Engine
            }
            _ => Interruption::None,
        }
    }

    /// Keeps in the store which run of the engine the containers were last seen under.
    async fn note_engines(&self) {
        let services = self.services();
        let mut health = services.engine.health();
        loop {
            let present = health.borrow_and_update().incarnation().map(str::to_owned);
            if let Some(present) = present {
                let note = move |tx: &crate::store::Tx<'_>| tx.set_meta(ENGINE, &present);
                if let Err(error) = services.store.write("note the engine's start", note).await {
                    tracing::warn!(error = %Chain(&error), "the engine's start is not noted");
                }
            }
            if health.changed().await.is_err() {
                return;
            }
        }
    }

    async fn look_over(&self) -> Result<HashMap<ContainerId, Found>, BootError> {
        // Containers that run are judged even where the network cannot be set up; a start is refused
        // then, each with its reason.
        if let Err(error) = self.services().isolation.ensure().await {
            match &error {
                IsolationError::Bridge(engine) if engine.is_away() => {
                    return Err(BootError::Isolation(error));
                }
                _ => {
                    tracing::error!(error = %Chain(&error), "containers cannot be isolated; none is started")
                }
            }
        }
        let ours = self.services().engine.list_ours().await.map_err(BootError::Engine)?;
        let mut all: HashMap<ContainerId, Found> = HashMap::new();
        let mut strangers = Vec::new();
        for found in ours {
            let Some(id) = self.row_of(&found) else {
                strangers.push(found);
                continue;
            };
            // By its id as well: somebody may have renamed it.
            let is_stored = || self.get(&id)?.snapshot().docker_id.clone();
            let is_aside = found.name == aside_name(&id);
            let is_workload = found.name == id.docker_name()
                || (!is_aside && is_stored().as_ref() == Some(&found.docker_id));
            let of_row = all.entry(id).or_default();
            if is_workload {
                of_row.workload = Some(found.docker_id);
            } else {
                of_row.others.push(found);
            }
        }
        self.keep_ports_of(&strangers).await;
        Ok(all)
    }

    /// What containers publish that are left alone is nobody else's to publish.
    async fn keep_ports_of(&self, strangers: &[Ours]) {
        for stranger in strangers {
            tracing::warn!(
                docker.id = stranger.docker_id,
                docker.name = stranger.name,
                "a container in the engine belongs to no row; it is left alone"
            );
        }
        match self.import_ports_of(strangers, Actor::lightd()).await {
            Ok(ports) if ports.is_empty() => {}
            Ok(ports) => tracing::info!(?ports, "their ports are kept from being handed out"),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the ports of containers without a row are not known");
            }
        }
    }

    /// Tells the owners of these containers what there is of them. Those that could not be looked at
    /// come back.
    async fn tell_each(
        &self,
        containers: Vec<ContainerHandle>,
        found: &mut HashMap<ContainerId, Found>,
        interruption: Interruption,
    ) -> Vec<ContainerHandle> {
        let mut left = Vec::new();
        for handle in containers {
            let Found { workload, others } = found.get(handle.id()).cloned().unwrap_or_default();
            match self.see(workload.as_deref()).await {
                Ok(seen) => {
                    let (seen, published) = seen.unzip();
                    let published = published.unwrap_or_default();
                    let look =
                        BootLook { seen, published, others, interruption, rest_is_read: false };
                    self.tell_boot(handle.id(), look);
                    found.remove(handle.id());
                }
                Err(error) => {
                    tracing::error!(container.id = %handle.id(), error = %Chain(&error), "cannot look at a container; it will be tried again");
                    left.push(handle);
                }
            }
        }
        left
    }

    async fn tell_the_rest(
        &self,
        mut left: Vec<ContainerHandle>,
        mut found: HashMap<ContainerId, Found>,
        interruption: Interruption,
    ) {
        let mut rounds = 0;
        while !left.is_empty() {
            rounds += 1;
            tokio::time::sleep(AGAIN.delay(rounds)).await;
            left = self.tell_each(left, &mut found, interruption).await;
        }
        self.drop_stale_images().await;
        tracing::info!("all containers are taken up");
    }

    /// The node is ready once its containers take commands. Not for ever held up by one of them: what
    /// is wrong with that one stands in its own state.
    async fn note_taken_up(&self, containers: Vec<ContainerHandle>) {
        let all = async {
            for handle in containers {
                let is_known =
                    |snapshot: &Arc<Snapshot>| snapshot.deleted || snapshot.unknown_since.is_none();
                // Its owner is gone: it was deleted, or lightd stops.
                drop(handle.watch().wait_for(is_known).await);
            }
        };
        if tokio::time::timeout(OWNERS_ANSWER, all).await.is_err() {
            tracing::warn!("some containers are not taken up yet; the node is ready without them");
        }
        self.set_taken_up();
    }

    async fn see(
        &self,
        workload: Option<&str>,
    ) -> Result<Option<(Observed, Vec<HostPort>)>, EngineError> {
        let Some(docker_id) = workload else { return Ok(None) };
        let services = self.services();
        services.insist(|| services.engine.inspect_published(docker_id)).await
    }

    /// Removes images of earlier installs whose removal was cut off: no container is made from them.
    async fn drop_stale_images(&self) {
        let engine = &self.services().engine;
        let images = match engine.list_our_images().await {
            Ok(images) => images,
            Err(error) => {
                return tracing::warn!(error = %Chain(&error), "cannot list the images of installs");
            }
        };
        // An install that is under way names its image only when it ends.
        let (mut used, mut installing) = (HashSet::new(), false);
        for handle in self.list() {
            let snapshot = handle.snapshot();
            installing |= matches!(snapshot.phase, Phase::Installing { .. });
            used.extend(snapshot.own_image.clone());
        }
        if installing {
            return;
        }
        for image in images.iter().filter(|image| !image.tags.iter().any(|tag| used.contains(tag)))
        {
            match engine.remove_image(&image.id).await {
                Ok(()) => tracing::info!(image.id, "removed an image that an install left behind"),
                Err(error) => tracing::warn!(error = %Chain(&error), "an old image stays behind"),
            }
        }
    }

    async fn pass_on(&self, hinted: &mut broadcast::Receiver<Hint>) {
        loop {
            match hinted.recv().await {
                Ok(Hint::LookAtAll) | Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.hint_all()
                }
                Ok(Hint::Container(container)) => {
                    if let Ok(id) = ContainerId::parse(&container) {
                        self.hint(&id);
                    }
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}
