//! What the machine is told, and what it answers.

use std::time::Duration;

use crate::domain::event::StateEvent;
use crate::domain::ids::RunId;
use crate::domain::observed::{Exit, Observed};

/// What was started anew while lightd was away, and may have ended what ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interruption {
    None,
    Engine,
    Host,
}

/// Something that happened. Each names the run it is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fact {
    InstallEnded {
        run: RunId,
        result: Result<(), String>,
    },
    /// The engine has started the workload. `ready_at_ms`: nothing more is waited for. `up_for`: how long it
    /// has been up by now, where its output is read from the beginning; its time is counted then.
    Started {
        run: RunId,
        launched_at_ms: i64,
        ready_at_ms: Option<i64>,
        up_for: Option<Duration>,
    },
    StartFailed {
        run: RunId,
        reason: String,
    },
    /// The workload's output said that it is up.
    Ready {
        run: RunId,
        at_ms: i64,
    },
    /// The workload's output said that it will not come up.
    Unready {
        run: RunId,
        reason: String,
    },
    /// After a break, all output up to then was looked at, and it is not ready.
    CaughtUp {
        run: RunId,
        at_ms: i64,
    },
    Exited {
        run: RunId,
        exit: Exit,
    },
    /// The engine positively knows no such container any more.
    Vanished {
        run: RunId,
    },
    Paused {
        run: RunId,
    },
    Resumed {
        run: RunId,
    },
    /// The engine has not paused the workload, or has not let it go on: it is as it was.
    PauseRefused {
        run: RunId,
        reason: String,
    },
    /// What is known of the end of this run is on the disk.
    PostMortemKept {
        run: RunId,
    },
    /// What was to stand still does, or may not.
    FreezeEnded {
        run: RunId,
        frozen: bool,
    },
    /// The new Docker container stands (or the old one is back, after an undo).
    Rebound,
    RebindFailed {
        reason: String,
    },
    Removed,
    /// A successful look at the engine that nothing has overtaken. `engine_was_away`: the engine was out
    /// of reach or restarted since the last one, and may have ended what ran.
    Seen {
        observed: Option<Observed>,
        engine_was_away: bool,
    },
    /// The time of [`super::Machine::wake_at`] has come.
    Woke,
}

/// What the owner task does in answer, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// Run the install from where the engine's containers show it to be.
    Install {
        run: RunId,
    },
    AbortInstall {
        run: RunId,
    },
    /// Remove what an install that has ended left in the engine. Comes after its end is stored, so that
    /// a crash in between never makes the script run a second time.
    ClearInstall {
        run: RunId,
    },
    /// Create the Docker container if needed, attach, start. `paced`: of lightd's own accord, and so in
    /// its turn among those of the whole node.
    Start {
        run: RunId,
        paced: bool,
    },
    /// Follow a run that is under way already.
    Attach {
        run: RunId,
    },
    /// Ask the workload to end, as its stop policy says.
    Stop {
        run: RunId,
        unpause: bool,
    },
    /// End it, and report the exit.
    Kill {
        run: RunId,
    },
    Pause {
        run: RunId,
    },
    Unpause {
        run: RunId,
    },
    /// Pause it for a copy, and report whether that worked.
    Freeze {
        run: RunId,
    },
    /// Let it go on; has to happen in the end.
    Thaw {
        run: RunId,
    },
    Rebind,
    UndoRebind,
    /// Make the new ports the container's own and drop what was kept aside.
    FinishRebind,
    Remove,
    /// The container is gone: drop its row and end the owner task.
    Forget,
    /// Keep what is known of the end of this run.
    PostMortem {
        run: RunId,
    },
    Emit(StateEvent),
    /// A sentence for the people at the console.
    Say(String),
}

impl Effect {
    /// Whether the workload is asked to stand still, or to go on.
    pub(super) fn pauses(&self) -> bool {
        matches!(self, Self::Pause { .. } | Self::Unpause { .. } | Self::Freeze { .. })
    }
}
