//! What is kept of the latest run, and of how one ended: for people, and for a restart of lightd.

use serde::{Deserialize, Serialize};

use super::{Effect, Machine, Phase};
use crate::domain::ids::RunId;
use crate::domain::observed::Exit;
use crate::domain::units::UnixSeconds;

/// The exit code of what was ended by SIGKILL.
const KILLED: i64 = 137;

/// How far the latest run came, in Unix milliseconds: both by the clock as it was when the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunTimes {
    /// By the engine's word.
    pub(crate) launched_at_ms: Option<i64>,
    pub(crate) ready_at_ms: Option<i64>,
}

impl RunTimes {
    pub(crate) fn started_at(&self) -> Option<UnixSeconds> {
        self.launched_at_ms.map(UnixSeconds::from_ms)
    }

    /// From the process's start until it was ready.
    pub(crate) fn ready_after_ms(&self) -> Option<u64> {
        since(self.launched_at_ms?, self.ready_at_ms?)
    }
}

fn since(from_ms: i64, to_ms: i64) -> Option<u64> {
    // A clock that was set back makes nothing negative.
    Some(u64::try_from(to_ms.saturating_sub(from_ms)).unwrap_or(0))
}

/// What ended a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndedBy {
    /// Nobody had asked it to end.
    #[default]
    Itself,
    /// The stop signal.
    Signal,
    /// The stop command.
    Command,
    /// It did not end within its grace, and was killed.
    Grace,
    /// Somebody wanted it killed.
    Kill,
    /// The engine, or the host, went down.
    Engine,
}

impl EndedBy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Itself => "itself",
            Self::Signal => "signal",
            Self::Command => "command",
            Self::Grace => "grace",
            Self::Kill => "kill",
            Self::Engine => "engine",
        }
    }
}

/// How the latest run that ended did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastExit {
    pub(crate) run: RunId,
    pub(crate) exit: Exit,
    pub(crate) ended_by: EndedBy,
    pub(crate) times: RunTimes,
    /// Why it was not left to run: of a start that has failed.
    pub(crate) reason: Option<String>,
}

impl LastExit {
    /// From the process's start to its end.
    pub(crate) fn uptime_ms(&self) -> Option<u64> {
        since(self.times.launched_at_ms?, self.exit.at_ms - self.exit.clock_set_by_ms)
    }
}

impl Machine {
    /// Notes the end of the live run. Which step of a stop it was shows in the exit code: what is killed
    /// may have ended by itself before.
    pub(super) fn note_exit(&mut self, exit: Exit) {
        let ended_by = match self.phase {
            Phase::Stopping { killed: true, forced, .. } if exit.code == KILLED => {
                if forced {
                    EndedBy::Kill
                } else {
                    EndedBy::Grace
                }
            }
            Phase::Stopping { asked, .. } => asked,
            _ => EndedBy::Itself,
        };
        self.note_exit_by(exit, ended_by);
    }

    pub(super) fn note_exit_by(&mut self, exit: Exit, ended_by: EndedBy) {
        self.last_exit = Some(LastExit {
            run: self.run,
            exit,
            ended_by,
            times: self.times,
            reason: self.start_error.clone(),
        });
    }

    pub(super) fn keep_post_mortem(&mut self) -> Effect {
        self.post_mortem_due = Some(self.run);
        Effect::PostMortem { run: self.run }
    }

    /// When the latest run crashed, as far as that is known.
    pub(super) fn crashed_at_ms(&self) -> i64 {
        let exit = self.last_exit.as_ref().filter(|last| last.run == self.run);
        exit.map(|last| last.exit.at_ms).or(self.times.launched_at_ms).unwrap_or_default()
    }
}
