//! The life of one container as a pure machine: a phase, a wish or a fact comes in, effects go out.
//!
//! The owner task (`supervisor::task`) holds one [`Machine`] per container, feeds it everything that
//! happens and carries out what it answers. Nothing in here waits, asks or remembers more than the
//! phase, so each rule can be tested by playing sequences.
//!
//! Invariants: every fact names its run, and a fact about an earlier run changes nothing; a wish that is
//! refused changes nothing; the phase stored before an effect runs is enough to carry on after a crash
//! at any point ([`Machine::boot`]).
//!
//! What each wish does in each phase (A accepted, I satisfied already, D denied), held to the code by the
//! module's tests:
//!
//! | | Offline | Crashed | Failed | Suspended | Installing | Starting | Running | Paused | Stopping | Rebinding | Deleting |
//! |---|---|---|---|---|---|---|---|---|---|---|---|
//! | start | A | A | D | D | D | I | I | A, unpauses | A, after it | A, after it | D |
//! | stop | I | A, no restart | I | I | D | A | A | A | I, no restart | A, no start after | D |
//! | restart | A | A | D | D | D | A | A | A | D | D | D |
//! | kill | I | A, no restart | I | I | A, aborts | A | A | A | A | A, no start after | I |
//! | pause | D | D | D | D | D | D | A | I | D | D | D |
//! | resume | D | D | D | D | D | D | I | A | D | D | D |
//! | reinstall | A | A | A | D | D | A, stops first | A, stops first | A, stops first | A, after it | D | D |
//! | rebind | A | A | A | A | D | A, stops, starts again | A | A | D | D | D |
//! | suspend | A | A | A | I | A, after it | A, stops first | A, stops first | A, stops first | A, after it | A, after it | D |
//! | unsuspend | I | I | I | A | I | I | I | I | I | I | D |
//! | delete | A | A | A | A | A | A | A | A | A | A | I |
//! | freeze | I | I | I | I | D | A once launched | A | I | D | D | D |
//! | thaw | I | I | I | I | I | I, A if frozen | I, A if frozen | I, A if frozen | I | I | D |
//!
//! `Stopping` and `Rebinding` stand for those after which the workload rests. Where something else follows a
//! stop, that decides: a start is satisfied by a start or rebind that follows and denied by a reinstall or a
//! suspension, a restart is satisfied by a start, a reinstall is denied by a rebind or a suspension and a
//! suspension by a rebind; a suspension that follows is called off by `unsuspend`.
//!
//! What a wish does to a run that is being given up (a start that failed) is what it does to one that is
//! stopping: a start comes after it, a stop or kill calls the restart off.
//!
//! While a workload stands still for a copy (`freeze`), pause and resume are denied, and whatever ends it
//! lets it go on first.

mod commands;
mod exchange;
mod facts;
mod freeze;
#[cfg(test)]
mod model;
mod phase;
mod run;
mod sightings;
mod starts;
#[cfg(test)]
mod table;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::{StateEvent, StateName};
use super::ids::RunId;
use super::observed::Exit;
use super::restart::{CrashPolicy, RestartHistory};

pub(crate) use self::exchange::{Effect, Fact, Interruption};
pub(crate) use self::phase::{AfterStop, Phase, Rest};
pub(crate) use self::run::{EndedBy, LastExit, RunTimes};

/// Time since the process began; deadlines are compared with it and are not stored.
pub(crate) type Uptime = Duration;

/// A wish from outside. What it carries beside its name (an image, ports) is the owner task's to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    Start,
    Stop,
    Restart,
    Kill,
    Pause,
    Resume,
    Reinstall,
    Rebind,
    Suspend,
    Unsuspend,
    Delete,
    /// Stand still until the files are copied; of lightd's own making.
    Freeze,
    Thaw,
}

/// Why the present phase forbids a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("the container is being installed")]
    Installing,
    #[error("the container's installation failed; reinstall it first")]
    Failed,
    #[error("the container is suspended")]
    Suspended,
    #[error("the container is starting")]
    Starting,
    #[error("the container is stopping")]
    Stopping,
    #[error("the container's ports are being changed")]
    Rebinding,
    #[error("a snapshot of the container's volume is being taken")]
    Snapshot,
    #[error("the container is not running")]
    NotRunning,
    #[error("the container is being deleted")]
    Deleting,
}

/// What the owner does with a wish that was not denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Accepted,
    /// Nothing to do: it is so already.
    Satisfied,
}

/// What of the specification the machine's decisions depend on, and chance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) stop_grace: Duration,
    /// How it is asked to stop.
    pub(crate) stop_by: EndedBy,
    /// From the process's start until it is ready.
    pub(crate) start_timeout: Option<Duration>,
    pub(crate) crash: CrashPolicy,
    /// Started when the host is.
    pub(crate) autostart: bool,
    /// From 0 to 1; spreads restarts.
    pub(crate) chance: f64,
}

/// The machine: what is stored of a container's life, and the rules to change it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    phase: Phase,
    /// The latest run; the next one is one more.
    run: RunId,
    /// Whether it was last asked to run rather than to rest.
    wanted_up: bool,
    /// Of the latest run that has ended.
    #[serde(rename = "ended", default)]
    last_exit: Option<LastExit>,
    /// Why the latest start failed.
    #[serde(default)]
    start_error: Option<String>,
    /// Why the latest pause or resume of this run was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pause_error: Option<String>,
    #[serde(default)]
    times: RunTimes,
    /// A run that crashed, and whose post-mortem is not kept yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    post_mortem_due: Option<RunId>,
    #[serde(default)]
    restarts: RestartHistory,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freeze: Option<freeze::Freeze>,
}

impl Machine {
    /// A container that was just asked for, and the effect that begins its install.
    pub(crate) fn install() -> (Self, Vec<Effect>) {
        let mut machine = Self {
            phase: Phase::Offline,
            run: RunId::default(),
            wanted_up: false,
            last_exit: None,
            start_error: None,
            pause_error: None,
            times: RunTimes::default(),
            post_mortem_due: None,
            restarts: RestartHistory::default(),
            freeze: None,
        };
        let effects = machine.begin_install();
        (machine, effects)
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(crate) fn last_run(&self) -> RunId {
        self.run
    }

    pub(crate) fn wanted_up(&self) -> bool {
        self.wanted_up
    }

    pub(crate) fn last_exit(&self) -> Option<&LastExit> {
        self.last_exit.as_ref()
    }

    /// How the latest run ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.last_exit.as_ref().filter(|last| last.run == self.run).map(|last| last.exit)
    }

    pub(crate) fn restarts(&self) -> &RestartHistory {
        &self.restarts
    }

    pub(crate) fn start_error(&self) -> Option<&str> {
        self.start_error.as_deref()
    }

    pub(crate) fn pause_error(&self) -> Option<&str> {
        self.pause_error.as_deref()
    }

    pub(crate) fn times(&self) -> RunTimes {
        self.times
    }

    pub(crate) fn live_run(&self) -> Option<RunId> {
        self.phase.live_run()
    }

    /// When to come back with [`Fact::Woke`] if nothing happens before.
    pub(crate) fn wake_at(&self) -> Option<Uptime> {
        match &self.phase {
            Phase::Stopping { killed: false, kill_at, .. } => Some(*kill_at),
            Phase::Crashed { restart_at } => Some(*restart_at),
            Phase::Starting { ready_by, .. } => *ready_by,
            Phase::Stopping { .. }
            | Phase::Installing { .. }
            | Phase::Failed { .. }
            | Phase::Offline
            | Phase::Suspended { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. }
            | Phase::Rebinding { .. }
            | Phase::Deleting => None,
        }
    }

    fn begin_install(&mut self) -> Vec<Effect> {
        self.begin_run(false);
        self.phase = Phase::Installing { run: self.run, suspend_after: false };
        vec![self.emit(StateName::Installing), Effect::Install { run: self.run }]
    }

    /// A start that somebody waits for.
    fn begin_start(&mut self, trial: bool) -> Vec<Effect> {
        self.begin_run(true);
        self.phase = Phase::Starting { run: self.run, launched: false, trial, ready_by: None };
        vec![self.emit(StateName::Starting), Effect::Start { run: self.run, paced: false }]
    }

    /// A start of lightd's own accord.
    fn begin_paced_start(&mut self) -> Vec<Effect> {
        self.begin_run(true);
        self.phase =
            Phase::Starting { run: self.run, launched: false, trial: false, ready_by: None };
        vec![self.emit(StateName::Starting), Effect::Start { run: self.run, paced: true }]
    }

    fn begin_run(&mut self, wanted_up: bool) {
        self.run = self.run.next();
        self.wanted_up = wanted_up;
        self.start_error = None;
        self.pause_error = None;
        self.times = RunTimes::default();
    }

    fn emit(&self, name: StateName) -> Effect {
        Effect::Emit(StateEvent { name, run: self.run, last_exit: None, ready_after_ms: None })
    }
}
