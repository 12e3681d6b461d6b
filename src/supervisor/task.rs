//! The owner task: one loop that holds a container's truth.
//!
//! Order in the loop is biased: facts before urgent wishes before timers before ordinary wishes, so that
//! a real exit that arrives together with the timeout wins. Whatever is decided is stored before its
//! effects run; a decision that cannot be stored is taken back (a wish) or stored later (a fact: it
//! has happened all the same).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::effects::Ctx;
use super::looks::LOOK_SOON;
use super::record::{Change, Record};
use super::registry::Registry;
use super::services::Services;
use super::workload::policy;
use super::{Msg, Refusal, Reply, Shared, Snapshot};
use crate::domain::ids::RunId;
use crate::domain::lifecycle::{Effect, Fact, Machine, Phase};
use crate::domain::observed::Observed;
use crate::domain::spec::Limits;
use crate::domain::units::UnixSeconds;
use crate::engine::EngineError;
use crate::store::StoreError;
use crate::util::chain::Chain;

/// A look at the engine when nothing else gives cause for one.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What child tasks tell the owner.
#[derive(Debug)]
pub(super) enum Report {
    Fact(Fact),
    /// A Docker container was made for the workload, from the present specification.
    Made {
        docker_id: String,
    },
    /// The old Docker container is the container again.
    PutBack {
        docker_id: Option<String>,
    },
    /// The image an install left behind, if any.
    Installed {
        own_image: Option<String>,
    },
    Looked {
        generation: u64,
        seen: Result<Option<Observed>, EngineError>,
    },
    /// The output of a run is followed no longer, and nothing is known of its end.
    Detached,
    LimitsApplied {
        limits: Limits,
        reply: Reply,
        result: Result<(), EngineError>,
    },
}

/// What the registry tells every owner once the engine has been looked over at boot.
#[derive(Clone, Debug)]
pub(super) struct BootLook {
    pub(super) seen: Option<Observed>,
    pub(super) engine_was_away: bool,
}

/// The receiving ends of a container's queues.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) urgent: mpsc::Receiver<Msg>,
    pub(super) mailbox: mpsc::Receiver<Msg>,
    /// Asked to look: an engine event named this container.
    pub(super) hints: mpsc::Receiver<()>,
    pub(super) boot: mpsc::Receiver<BootLook>,
}

#[derive(Debug)]
pub(super) struct Owner {
    pub(super) services: Arc<Services>,
    pub(super) registry: Arc<Registry>,
    pub(super) shared: Arc<Shared>,
    pub(super) record: Record,
    pub(super) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(super) booted: bool,
    pub(super) generation: u64,
    pub(super) unknown_since: Option<UnixSeconds>,
    /// The engine was out of reach since the last successful look.
    pub(super) engine_was_away: bool,
    pub(super) unsaved: bool,
    pub(super) look_pending: bool,
    pub(super) look_at: Option<Instant>,
    pub(super) tasks: JoinSet<()>,
    pub(super) reports: mpsc::Sender<Report>,
    /// The latest run that the engine has started: its end is worth waiting for.
    pub(super) launched: Option<RunId>,
    /// The task that brings up and follows the present run.
    pub(super) run_task: Option<(RunId, AbortHandle)>,
    pub(super) install_task: Option<AbortHandle>,
}

impl Owner {
    /// `unknown_since`: since when the engine's view is missing; `None` for a container that was just
    /// made.
    pub(super) fn new(
        registry: Arc<Registry>,
        shared: Arc<Shared>,
        record: Record,
        snapshot: watch::Sender<Arc<Snapshot>>,
        reports: mpsc::Sender<Report>,
        unknown_since: Option<UnixSeconds>,
    ) -> Self {
        Self {
            services: Arc::clone(registry.services()),
            registry,
            shared,
            record,
            snapshot,
            booted: unknown_since.is_none(),
            generation: 1,
            unknown_since,
            engine_was_away: false,
            unsaved: false,
            look_pending: false,
            look_at: None,
            tasks: JoinSet::new(),
            reports,
            launched: None,
            run_task: None,
            install_task: None,
        }
    }

    /// Runs until the container is deleted or lightd stops.
    pub(super) async fn run(mut self, mut queues: Queues, mut reports: mpsc::Receiver<Report>) {
        let services = Arc::clone(&self.services);
        let mut health = services.engine.health();
        let mut tick = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let console = self.shared.console.clone();
        let journal_stop = CancellationToken::new();
        let writing = journal_stop.clone();
        self.tasks.spawn(async move { console.run(writing).await });
        if self.booted && matches!(self.record.machine.phase(), Phase::Installing { .. }) {
            self.carry_out(vec![Effect::Install { run: self.record.machine.last_run() }]).await;
        }
        let now = health.borrow_and_update().clone();
        self.note_health(&now).await;
        loop {
            let wake_at = self.wake_at();
            tokio::select! {
                biased;
                Some(report) = reports.recv() => self.take_report(report).await,
                Some(ended) = self.tasks.join_next() => self.task_ended(ended),
                Some(boot) = queues.boot.recv() => self.boot(boot).await,
                Some(msg) = queues.urgent.recv() => self.take_request(msg).await,
                Ok(()) = health.changed() => {
                    let now = health.borrow_and_update().clone();
                    self.note_health(&now).await;
                }
                () = tokio::time::sleep_until(wake_at) => self.wake().await,
                Some(()) = queues.hints.recv() => self.look(),
                Some(msg) = queues.mailbox.recv() => self.take_request(msg).await,
                _ = tick.tick() => self.look(),
                () = services.stop.cancelled() => break,
            }
            if self.snapshot.borrow().deleted {
                break;
            }
        }
        self.tasks.shutdown().await;
        self.shared.end().await;
        drain(&mut queues);
    }

    fn wake_at(&self) -> Instant {
        let machine =
            self.record.machine.wake_at().filter(|_| self.booted && self.unknown_since.is_none());
        let machine = machine.map(|uptime| self.services.began + uptime);
        let far = Instant::now() + Duration::from_secs(3600);
        [machine, self.look_at].into_iter().flatten().min().unwrap_or(far)
    }

    async fn wake(&mut self) {
        if self.look_at.is_some_and(|at| at <= Instant::now()) {
            self.look_at = None;
            self.look();
        }
        if self.booted {
            self.fact(Fact::Woke).await;
        }
    }

    async fn take_report(&mut self, report: Report) {
        match report {
            Report::Fact(fact) => {
                if let Fact::Started { run, .. } = &fact
                    && self.record.machine.live_run() == Some(*run)
                {
                    self.record.started_at = Some(UnixSeconds::now());
                    self.launched = Some(*run);
                }
                self.fact(fact).await;
            }
            Report::Made { docker_id } => {
                self.record.docker_id = Some(docker_id);
                self.record.restart_needed = false;
                self.save_and_publish().await;
            }
            Report::PutBack { docker_id } => {
                self.record.docker_id = docker_id;
                self.save_and_publish().await;
            }
            Report::Installed { own_image } => {
                self.record.own_image = own_image;
                self.record.docker_id = None;
                self.save_and_publish().await;
            }
            Report::Looked { generation, seen } => self.looked(generation, seen).await,
            Report::Detached => self.look_at = Some(Instant::now() + LOOK_SOON),
            Report::LimitsApplied { limits, reply, result } => {
                let answer = match result {
                    Err(error) if error.is_away() => Err(Refusal::EngineUnavailable),
                    Err(error) => Err(Refusal::Engine(error)),
                    Ok(()) => {
                        let mut spec = (*self.record.spec).clone();
                        spec.limits = limits;
                        let saved = self.update(spec).await;
                        self.record.restart_needed = false;
                        saved
                    }
                };
                drop(reply.send(answer));
            }
        }
    }

    /// Feeds the machine, stores and publishes what came of it, and carries it out.
    pub(super) async fn fact(&mut self, fact: Fact) {
        let before = self.record.machine.clone();
        let policy = policy(&self.record.spec);
        let effects = self.record.machine.fact(fact, policy, self.services.uptime());
        self.settle(&before, effects).await;
    }

    async fn boot(&mut self, look: BootLook) {
        if self.booted {
            return;
        }
        self.booted = true;
        self.unknown_since = None;
        let before = self.record.machine.clone();
        let policy = policy(&self.record.spec);
        if let Some(seen) = &look.seen {
            self.record.docker_id = Some(seen.docker_id.clone());
        }
        let seen = look.seen;
        let mut effects =
            self.record.machine.boot(seen, look.engine_was_away, policy, self.services.uptime());
        if self.record.previous_ports.is_some() && !self.record.rebind_is_open() {
            effects.insert(0, Effect::FinishRebind);
            self.unsaved = true;
        }
        self.settle(&before, effects).await;
        self.publish();
    }

    async fn settle(&mut self, before: &Machine, effects: Vec<Effect>) {
        if self.record.machine != *before || self.unsaved {
            if let Err(error) = self.save(&effects, None).await {
                tracing::error!(container.id = %self.record.id, error = %Chain(&error), "cannot store what happened; it will be tried again");
                self.unsaved = true;
                self.look_at = Some(Instant::now() + LOOK_EVERY.min(Duration::from_secs(5)));
            }
            self.publish();
        }
        self.carry_out(effects).await;
    }

    pub(super) async fn save(
        &mut self,
        effects: &[Effect],
        change: Option<Change>,
    ) -> Result<(), StoreError> {
        let now = UnixSeconds::now();
        self.record.updated_at = now;
        let previous = std::mem::take(&mut self.unsaved);
        let events: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Emit(event) => Some(event.clone()),
                _ => None,
            })
            .collect();
        let updates = self.record.panel_updates(&events, &self.services.settings());
        let change = change.or_else(|| Change::that_follows(effects));
        if let Err(error) = self.record.save(&self.services.store, updates, change, now).await {
            self.unsaved = previous;
            return Err(error);
        }
        Ok(())
    }

    async fn save_and_publish(&mut self) {
        let before = self.record.machine.clone();
        self.unsaved = true;
        self.settle(&before, Vec::new()).await;
    }

    pub(super) fn publish(&mut self) {
        self.generation += 1;
        let snapshot = self.record.snapshot(self.generation, self.unknown_since, false);
        self.snapshot.send_replace(Arc::new(snapshot));
    }

    pub(super) fn ctx(&self) -> Ctx {
        Ctx {
            services: Arc::clone(&self.services),
            shared: Arc::clone(&self.shared),
            snapshot: Arc::clone(&self.snapshot.borrow()),
            sealed_auth: self.record.sealed_auth.clone(),
            reports: self.reports.clone(),
        }
    }
}

/// Answers what came too late.
fn drain(queues: &mut Queues) {
    for queue in [&mut queues.urgent, &mut queues.mailbox] {
        queue.close();
        while let Ok(Msg { reply, .. }) = queue.try_recv() {
            drop(reply.send(Err(Refusal::Gone)));
        }
    }
}
