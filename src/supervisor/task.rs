//! The owner task: one loop that holds a container's truth.
//!
//! Order in the loop is biased: facts before urgent wishes before timers before ordinary wishes, so that
//! a real exit that arrives together with the timeout wins. Whatever is decided is stored before its
//! effects run; a decision that cannot be stored is taken back (a wish) or stored later (a fact: it has
//! happened all the same; and a stop or kill: it may be what fills the disk that is ended).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::doing::Child;
use super::effects::Ctx;
use super::limits::LimitsWanted;
use super::looks::LOOK_SOON;
use super::metering::moment;
use super::record::{Change, Record, With};
use super::registry::Registry;
use super::services::Services;
use super::trail;
use super::workload::policy;
use super::{Msg, Refusal, Shared, Snapshot};
use crate::domain::audit::Act;
use crate::domain::ids::RunId;
use crate::domain::lifecycle::{Command, Effect, Fact, Interruption, Machine, Phase};
use crate::domain::observed::Observed;
use crate::domain::spec::HostPort;
use crate::domain::units::{UnixSeconds, now_unix_ms};
use crate::engine::{EngineError, Ours};
use crate::store::StoreError;
use crate::util::chain::Chain;

/// A look at the engine when nothing else gives cause for one.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// After a failure to store something.
const STORE_AGAIN: Duration = Duration::from_secs(5);

/// What child tasks tell the owner.
#[derive(Debug)]
pub(super) enum Report {
    Fact(Fact),
    /// A Docker container was made for the workload, of this specification and with these ports.
    Made {
        docker_id: String,
        of: Arc<Snapshot>,
    },
    /// The old Docker container is the container again.
    PutBack {
        docker_id: Option<String>,
    },
    /// The image an install left behind, if any.
    Installed {
        own_image: Option<String>,
    },
    /// The last lines of a run that ended while lightd was away are here; now its end may be judged.
    Boot(BootLook),
    Looked {
        generation: u64,
        seen: Result<Option<Observed>, EngineError>,
        /// Which run of the engine answered, if that is known and matters.
        engine: Option<String>,
    },
    /// The output of a run is followed no longer, and nothing is known of its end.
    Detached,
    LimitsApplied {
        wanted: LimitsWanted,
        /// To which Docker container.
        docker_id: Option<String>,
        /// What the engine warns of.
        result: Result<Vec<String>, EngineError>,
    },
}

/// What the registry tells every owner once the engine has been looked over at boot.
#[derive(Clone, Debug)]
pub(super) struct BootLook {
    pub(super) seen: Option<Observed>,
    /// The ports of the host that it publishes.
    pub(super) published: Vec<HostPort>,
    /// Docker containers of ours that are not the workload's: an install's, or one set aside.
    pub(super) others: Vec<Ours>,
    pub(super) interruption: Interruption,
    /// The engine's log of a run that has ended was read.
    pub(super) rest_is_read: bool,
}

/// The receiving ends of a container's queues. A queue has room for 32 values from the first on, however
/// few it takes: they hold boxes, so that a container that is idle costs little.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) urgent: mpsc::Receiver<Box<Msg>>,
    pub(super) mailbox: mpsc::Receiver<Box<Msg>>,
    /// Asked to look: an engine event named this container.
    pub(super) hints: mpsc::Receiver<()>,
    pub(super) boot: mpsc::Receiver<Box<BootLook>>,
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
    /// The engine was restarted, as far as is known, since the last successful look.
    pub(super) engine_was_away: bool,
    /// Which run of the engine was last seen.
    pub(super) engine: Option<String>,
    pub(super) unsaved: bool,
    /// What belongs to decisions that could not be stored yet.
    owed: With,
    /// A run whose end a look has shown, and since when its follower has not told of it.
    pub(super) end_seen: Option<(RunId, Instant)>,
    pub(super) look_pending: bool,
    pub(super) look_at: Option<Instant>,
    pub(super) tasks: JoinSet<()>,
    pub(super) reports: mpsc::Sender<Box<Report>>,
    /// The latest run that the engine has started: its end is worth waiting for.
    pub(super) launched: Option<RunId>,
    /// The task that brings up and follows the present run.
    pub(super) run_task: Option<(RunId, Child)>,
    /// The task that ends a run.
    pub(super) kill_task: Option<(RunId, AbortHandle)>,
    /// The task that gives limits to what runs, and what is to be given after that.
    pub(super) limits_task: Option<AbortHandle>,
    pub(super) limits_wanted: VecDeque<LimitsWanted>,
    pub(super) install_task: Option<Child>,
    /// The task that moves the container to other ports, or back.
    pub(super) rebind_task: Option<Child>,
}

impl Owner {
    /// `unknown_since`: since when the engine's view is missing; `None` for a container that was just
    /// made.
    pub(super) fn new(
        registry: Arc<Registry>,
        shared: Arc<Shared>,
        record: Record,
        snapshot: watch::Sender<Arc<Snapshot>>,
        reports: mpsc::Sender<Box<Report>>,
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
            engine: None,
            unsaved: false,
            owed: With::default(),
            end_seen: None,
            look_pending: false,
            look_at: None,
            tasks: JoinSet::new(),
            reports,
            launched: None,
            run_task: None,
            kill_task: None,
            install_task: None,
            limits_task: None,
            limits_wanted: VecDeque::new(),
            rebind_task: None,
        }
    }

    /// Runs until the container is deleted or lightd stops.
    pub(super) async fn run(
        mut self,
        mut queues: Queues,
        mut reports: mpsc::Receiver<Box<Report>>,
    ) {
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
                Some(report) = reports.recv() => self.take_report(*report).await,
                Some(ended) = self.tasks.join_next() => self.task_ended(ended).await,
                Some(boot) = queues.boot.recv() => self.boot(*boot).await,
                Some(msg) = queues.urgent.recv() => self.take_request(*msg).await,
                Ok(()) = health.changed() => {
                    let now = health.borrow_and_update().clone();
                    self.note_health(&now).await;
                }
                () = tokio::time::sleep_until(wake_at) => self.wake().await,
                Some(()) = queues.hints.recv() => self.look(),
                Some(msg) = queues.mailbox.recv() => self.take_request(*msg).await,
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
            Report::Fact(fact) => self.take_fact(fact).await,
            Report::Boot(look) => self.boot(look).await,
            Report::Made { docker_id, of } => {
                self.record.docker_id = Some(docker_id);
                // Both may have changed while it was made.
                let is_present =
                    of.spec.is_built_like(&self.record.spec) && of.ports == self.record.ports;
                self.record.restart_needed = !is_present;
                self.save_and_publish().await;
            }
            Report::PutBack { docker_id } => {
                self.record.docker_id = docker_id;
                self.record.restart_needed |= self.record.previous_restart_needed;
                self.save_and_publish().await;
            }
            Report::Installed { own_image } => {
                self.record.own_image = own_image;
                self.record.docker_id = None;
                self.save_and_publish().await;
            }
            Report::Looked { generation, seen, engine } => {
                self.note_engine(engine.as_deref(), false);
                self.looked(generation, seen).await;
            }
            Report::Detached => self.look_at = Some(Instant::now() + LOOK_SOON),
            Report::LimitsApplied { wanted, docker_id, result } => {
                let LimitsWanted { change, actor, reply } = wanted;
                let is_replaced = docker_id != self.record.docker_id;
                let decided = self.limits_applied(change, actor, is_replaced, result).await;
                // Whoever asked may have gone away; the limits stand.
                drop(reply.send(decided));
                self.limits_task = None;
                self.next_limits().await;
            }
        }
    }

    /// A fact that a child task tells, and what it says beside its effect on the machine.
    async fn take_fact(&mut self, fact: Fact) {
        if let Fact::Started { run, .. } = &fact
            && self.record.machine.live_run() == Some(*run)
        {
            self.launched = Some(*run);
        }
        if let (Fact::RebindFailed { .. }, Phase::Rebinding { undo: true, .. }) =
            (&fact, self.record.machine.phase())
        {
            // Which container has which ports is not sure any more; the next start makes one.
            self.record.restart_needed = true;
        }
        // Decided on before its end is: the wish may still be queued.
        if let Fact::Exited { run, .. } | Fact::Vanished { run } = &fact
            && let Some(actor) = self.shared.killed_meanwhile(*run)
            && self.record.machine.live_run() == Some(*run)
        {
            // A kill is never refused.
            drop(self.wish(Command::Kill, None, actor).await);
        }
        // It may have been paused since before lightd began, and nobody could attach.
        if matches!(fact, Fact::Resumed { .. }) {
            self.look_at = Some(Instant::now());
        }
        self.fact(fact).await;
    }

    /// Feeds the machine, stores and publishes what came of it, and carries it out.
    pub(super) async fn fact(&mut self, fact: Fact) {
        let before = self.record.machine.clone();
        let policy = policy(&self.record.spec, &self.services.settings());
        let effects = self.record.machine.fact(fact, policy, self.services.uptime());
        self.settle(&before, effects).await;
    }

    pub(super) async fn settle(&mut self, before: &Machine, effects: Vec<Effect>) {
        if let Some(last) = self.record.machine.last_exit() {
            self.shared.usage().end(last.run, moment(last.exit.at_ms));
        }
        if self.record.machine != *before || self.unsaved {
            let acts = self.happened(before, &effects);
            let with = self.with(&effects, None, acts);
            if let Err(error) = self.save(&effects, with.clone()).await {
                self.store_later(with, &error);
            }
            self.publish();
        }
        self.carry_out(effects).await;
    }

    /// For what counts although it could not be stored.
    pub(super) fn store_later(&mut self, with: With, error: &StoreError) {
        tracing::error!(container.id = %self.record.id, error = %Chain(error), "cannot store what happened; it will be tried again");
        self.unsaved = true;
        self.owed.extend(with);
        self.look_at = Some(Instant::now() + STORE_AGAIN);
    }

    pub(super) async fn save(&mut self, effects: &[Effect], with: With) -> Result<(), StoreError> {
        let terms = self.services.port_terms();
        self.record.updated_at = terms.now;
        if effects.iter().any(|effect| matches!(effect, Effect::Start { .. })) {
            self.record.begun_at_ms = Some(now_unix_ms());
        }
        let mut all = self.owed.clone();
        all.extend(with);
        self.record.save(&self.services.store, all, terms).await?;
        self.owed = With::default();
        self.unsaved = false;
        Ok(())
    }

    /// What people want to know later of a decision that has these effects.
    pub(super) fn happened(&self, before: &Machine, effects: &[Effect]) -> Vec<Act> {
        trail::of_effects(&self.record.id, before, &self.record.machine, effects)
    }

    /// What is to be stored with a decision that has these effects.
    pub(super) fn with(&self, effects: &[Effect], change: Option<Change>, acts: Vec<Act>) -> With {
        let events: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Emit(event) => Some(event.clone()),
                _ => None,
            })
            .collect();
        With {
            changes: Vec::from_iter(change.or_else(|| Change::that_follows(effects))),
            updates: self.record.panel_updates(&events, &self.services.settings()),
            acts,
        }
    }

    async fn save_and_publish(&mut self) {
        let before = self.record.machine.clone();
        self.unsaved = true;
        self.settle(&before, Vec::new()).await;
    }

    pub(super) fn publish(&mut self) {
        self.generation += 1;
        let mut snapshot = self.record.snapshot(self.generation, self.unknown_since, false);
        snapshot.restarts.next_at = self.restart_at();
        self.snapshot.send_replace(Arc::new(snapshot));
    }

    /// When what crashed is started again.
    fn restart_at(&self) -> Option<UnixSeconds> {
        let Phase::Crashed { restart_at } = self.record.machine.phase() else { return None };
        let wait = restart_at.saturating_sub(self.services.uptime());
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        self.booted.then(|| UnixSeconds::from_ms(now_unix_ms().saturating_add(wait)))
    }

    pub(super) fn ctx(&self) -> Ctx {
        Ctx {
            services: Arc::clone(&self.services),
            shared: Arc::clone(&self.shared),
            snapshot: Arc::clone(&self.snapshot.borrow()),
            sealed_auth: self.record.sealed_auth.clone(),
            begun_at_ms: self.record.begun_at_ms,
            reports: self.reports.clone(),
        }
    }
}

/// Answers what came too late.
fn drain(queues: &mut Queues) {
    for queue in [&mut queues.urgent, &mut queues.mailbox] {
        queue.close();
        while let Ok(msg) = queue.try_recv() {
            drop(msg.reply.send(Err(Refusal::Gone)));
        }
    }
}
