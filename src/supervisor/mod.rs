//! One owner task per container; everybody else holds a [`ContainerHandle`] and sends.
//!
//! ```text
//!  handle.send(kill, delete) --try_send--> [urgent 4]  --+
//!  handle.send(start, …)     --try_send--> [mailbox 16] -+--> owner task --+--> watch<Arc<Snapshot>>   state, generation + 1
//!  pumps, finished effects   -----------> [facts 64]  ---+   Machine::step |--> broadcast<Signal>      may be lost
//!  engine hints, health, a look every 30 s, timers ------+                 |--> store, one transaction row, panel updates, audit rows
//!                                                                          +--> effects: child tasks   their outcome is a fact
//! ```
//!
//! The owner never waits for the engine: an effect is a child task, and what comes of it comes back as
//! a fact. So a kill or a delete gets through while a pull hangs. It does wait for the store: while that
//! hangs, a kill is carried out without it, and a delete, which is nothing unless it is stored, waits. Reading never queues: it takes the
//! snapshot. A full mailbox is an answer ([`Refusal::Busy`]), not a wait.

mod admission;
mod boot;
mod credentials;
mod doing;
mod effects;
mod follow;
mod gap;
mod import;
mod install;
mod install_log;
mod launch;
mod limits;
mod looks;
mod metering;
mod outcome;
mod pace;
mod post_mortem;
mod reader;
mod record;
mod registry;
mod script;
mod seam;
mod services;
mod shared;
mod stats;
mod steady_clock;
mod task;
mod trail;
mod trial;
mod wishes;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::console::{Console, InputError};
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::ids::{ContainerId, RunId};
use crate::domain::lifecycle::{Answer, Command, Denied, LastExit, Phase, RunTimes};
use crate::domain::observed::Exit;
use crate::domain::spec::{ContainerSpec, LimitsPatch, PortBinding, Problem, SpecPatch};
use crate::domain::stats::Sample;
use crate::domain::stats::history::{Point, Range};
use crate::domain::units::UnixSeconds;
use crate::engine::{EngineError, ExecRequest, ExecResult};
use crate::files::claims::Work;
use crate::store::StoreError;
use crate::store::bindings::PortsWanted;
use crate::store::containers::ContainerRow;

pub(crate) use import::{ImportError, ImportedPort};
pub(crate) use metering::Metering;
pub(crate) use outcome::{Goal, Unreached, Waited};
pub(crate) use pace::StartPace;
pub(crate) use registry::{CreateContainer, CreateError, Registry};
pub(crate) use services::{Services, Settings};
use shared::Shared;
pub(crate) use trial::Sketch;

/// What is known of a container at one moment. Replaced whole on every change.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) id: ContainerId,
    pub(crate) spec: Arc<ContainerSpec>,
    pub(crate) ports: Arc<[PortBinding]>,
    pub(crate) phase: Phase,
    pub(crate) run: RunId,
    /// Whether it was last asked to run rather than to rest.
    pub(crate) wanted_up: bool,
    /// It stands still while its files are copied.
    pub(crate) frozen: bool,
    /// It does, or is about to, or not any more.
    pub(crate) freezing: bool,
    /// Since when the engine is out of reach, and this what was true before.
    pub(crate) unknown_since: Option<UnixSeconds>,
    pub(crate) docker_id: Option<String>,
    /// The image an install script left behind, if it changed more than the volume.
    pub(crate) own_image: Option<String>,
    /// Of the latest run that has ended, which may be one before `run`.
    pub(crate) last_exit: Option<LastExit>,
    pub(crate) restarts: Restarts,
    /// Why the latest start failed.
    pub(crate) start_error: Option<String>,
    /// Why the latest pause or resume was refused.
    pub(crate) pause_error: Option<String>,
    pub(crate) times: RunTimes,
    pub(crate) started_at: Option<UnixSeconds>,
    pub(crate) created_at: UnixSeconds,
    pub(crate) updated_at: UnixSeconds,
    /// A change of the specification waits for the next start.
    pub(crate) restart_needed: bool,
    /// The row is gone; nothing will follow.
    pub(crate) deleted: bool,
}

/// The restarts after crashes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restarts {
    /// Those that count against the budget.
    pub(crate) count: u32,
    /// When the next one is due.
    pub(crate) next_at: Option<UnixSeconds>,
    /// It crashed too often, and stays down.
    pub(crate) gave_up: bool,
}

impl Snapshot {
    /// How the latest run ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.last_exit.as_ref().filter(|last| last.run == self.run).map(|last| last.exit)
    }

    /// A container exactly as a transaction of the store sees it, which what it publishes may be a moment
    /// behind. `live` is what it had published before that transaction began.
    pub(crate) fn of_row(row: ContainerRow, live: Option<&Self>) -> Result<Self, StoreError> {
        record::Record::shown(row, live)
            .map_err(|why| StoreError::Decode { what: "container's state", source: why.into() })
    }

    /// The state as the wire names it.
    pub(crate) fn state_name(&self) -> &'static str {
        if self.unknown_since.is_some() { "unknown" } else { self.phase.state_name() }
    }

    /// Whether the workload's process is there and may do something.
    fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Starting { launched: true, .. } | Phase::Running { .. })
    }
}

/// What can be asked of a container's owner.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Command(Command),
    Reinstall {
        image: Option<String>,
        install_script: Option<String>,
    },
    Rebind {
        ports: PortsWanted,
    },
    Update(Box<SpecPatch>),
    /// Other limits, applied to the running workload as well.
    Resources(LimitsPatch),
    /// What would come of it, without doing it.
    Trial(Box<Request>),
}

/// A request that was taken on.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    /// The container as the decision left it; later snapshots have a higher generation.
    pub(crate) decided: Arc<Snapshot>,
    pub(crate) answer: Answer,
    /// What the engine could not give; for the person who asked.
    pub(crate) warnings: Vec<String>,
}

/// A request that was not taken on; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("the request is invalid")]
    Invalid(Vec<Problem>),
    #[error("the container engine does not answer")]
    EngineUnavailable,
    #[error("too many requests wait for this container")]
    Busy,
    #[error("the container's volume is being worked on")]
    VolumeBusy(Work),
    #[error("the container was deleted")]
    Gone,
    #[error("cannot store the change")]
    Store(#[source] StoreError),
    #[error("cannot apply the change to the running container")]
    Engine(#[source] EngineError),
    /// What runs cannot be held to these limits.
    #[error("the running container cannot be given these limits")]
    Limits(#[source] EngineError),
}

/// How long an owner may take over a kill before it is carried out without it.
const OWNER_COMES_TO_IT: Duration = Duration::from_secs(1);

pub(crate) type Reply = oneshot::Sender<Result<Accepted, Refusal>>;

#[derive(Debug)]
pub(crate) struct Msg {
    pub(crate) request: Request,
    pub(crate) actor: Actor,
    pub(crate) reply: Reply,
}

/// The way to one container. Cheap to clone; outlives the container and then answers
/// [`Refusal::Gone`]. What is asked through it is asked by its actor, who is lightd itself unless
/// [`ContainerHandle::by`] says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct ContainerHandle {
    id: ContainerId,
    actor: Actor,
    urgent: mpsc::Sender<Box<Msg>>,
    mailbox: mpsc::Sender<Box<Msg>>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    shared: Arc<Shared>,
    services: Arc<Services>,
}

impl ContainerHandle {
    pub(crate) fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The same container, for this actor.
    pub(crate) fn by(self, actor: Actor) -> Self {
        Self { actor, ..self }
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Asks, and waits for the decision only: what follows from it shows in the snapshot.
    pub(crate) async fn send(&self, request: Request) -> Result<Accepted, Refusal> {
        let urgent = matches!(request, Request::Command(Command::Kill | Command::Delete));
        let is_kill = matches!(request, Request::Command(Command::Kill));
        let queue = if urgent { &self.urgent } else { &self.mailbox };
        let (reply, mut answer) = oneshot::channel();
        let message = Box::new(Msg { request, actor: self.actor.clone(), reply });
        queue.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::Busy,
            mpsc::error::TrySendError::Closed(_) => Refusal::Gone,
        })?;
        if is_kill {
            if let Ok(decided) = tokio::time::timeout(OWNER_COMES_TO_IT, &mut answer).await {
                return decided.unwrap_or(Err(Refusal::Gone));
            }
            self.kill_meanwhile().await;
        }
        answer.await.unwrap_or(Err(Refusal::Gone))
    }

    /// The owner waits for nothing but the store, whose disk may hang: a kill is carried out first then, and
    /// decided on when the store has answered. Anything else that was asked for has to be stored before.
    async fn kill_meanwhile(&self) {
        let snapshot = self.snapshot();
        let is_live = snapshot.is_up()
            || matches!(snapshot.phase, Phase::Paused { .. } | Phase::Stopping { .. });
        if let Some(docker_id) = snapshot.docker_id.as_ref().filter(|_| is_live) {
            let (engine, by) = (&self.services.engine, self.actor.clone());
            self.shared.kill_meanwhile(engine, snapshot.run, docker_id, by).await;
        }
    }

    pub(crate) fn console(&self) -> &Console {
        &self.shared.console
    }

    /// Writes one line to the workload's standard input: in order, at most once, acknowledged.
    pub(crate) async fn write_input(&self, line: String) -> Result<(), InputError> {
        let text = self.services.settings().record_commands.then(|| line.clone());
        let act = self.act(Action::ConsoleCommand).with_some("command", text);
        let sent = trail::Sent::new(&self.services.store, act);
        match self.try_write_input(line).await {
            Ok(()) => sent.recorded().await,
            Err(error) => {
                sent.forget();
                return Err(error);
            }
        }
        Ok(())
    }

    fn act(&self, action: Action) -> Act {
        Act::new(self.actor.clone(), action).on(&self.id)
    }

    async fn try_write_input(&self, line: String) -> Result<(), InputError> {
        let snapshot = self.snapshot();
        if snapshot.unknown_since.is_none() {
            return self.shared.write_input(line, snapshot.is_up()).await;
        }
        // The attached stream may have outlived the engine's silence.
        let written = self.shared.write_input(line, false).await;
        written.map_err(|error| match error {
            InputError::NotRunning => InputError::EngineUnavailable,
            other => other,
        })
    }

    /// The latest figures; while the receiver lives they are taken every second.
    pub(crate) fn watch_stats(&self) -> watch::Receiver<Option<Sample>> {
        self.shared.watch_stats()
    }

    pub(crate) fn last_stats(&self) -> Option<Sample> {
        self.shared.last_stats()
    }

    /// The figures of the last hour, as far as it ran and lightd did.
    pub(crate) fn past_stats(&self, range: Range) -> Vec<Point> {
        self.shared.history().points(range)
    }

    /// Runs a process beside the workload, as the workload's user.
    pub(crate) async fn exec(
        &self,
        command: Vec<String>,
        deadline: Duration,
    ) -> Result<ExecResult, ExecError> {
        let snapshot = self.snapshot();
        if snapshot.unknown_since.is_some() {
            return Err(ExecError::EngineUnavailable);
        }
        let Some(docker_id) = snapshot.docker_id.clone().filter(|_| snapshot.is_up()) else {
            return Err(ExecError::Denied(Denied::NotRunning));
        };
        let arguments = self.services.settings().record_commands.then(|| command.clone());
        let act = self.act(Action::Exec).with("program", command.first().cloned());
        let act = match arguments {
            Some(all) => act.listing("arguments", all.into_iter().skip(1)),
            None => act,
        };
        // Before it runs: nobody can say afterwards that it has not.
        self.services.store.record(act).await.map_err(ExecError::Store)?;
        let request = ExecRequest {
            cmd: command,
            user: Some(self.services.settings().user_text()),
            deadline,
            output_max_bytes: EXEC_OUTPUT_MAX_BYTES,
        };
        self.services.engine.exec(&docker_id, &request).await.map_err(|error| {
            if error.is_away() { ExecError::EngineUnavailable } else { ExecError::Engine(error) }
        })
    }

    /// The log of the latest install; empty before the first.
    pub(crate) async fn install_log(&self) -> std::io::Result<Vec<u8>> {
        match tokio::fs::read(self.shared.install_log_path()).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        }
    }
}

/// The most of an exec's output that is answered.
const EXEC_OUTPUT_MAX_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error(transparent)]
    Denied(Denied),
    #[error("the container engine does not answer")]
    EngineUnavailable,
    #[error("cannot store that it is run")]
    Store(#[source] StoreError),
    #[error("cannot run the command")]
    Engine(#[source] EngineError),
}
