//! The phases of a container's life, as they are stored, and their names for the outside.
//!
//! Only the machine leads from one to the next. Deadlines are of the process and are not stored: they
//! are set anew when a stored machine is taken up.

use serde::{Deserialize, Serialize};

use super::{EndedBy, Uptime};
use crate::domain::event::StateName;
use crate::domain::ids::RunId;

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub(crate) enum Phase {
    Installing {
        run: RunId,
        suspend_after: bool,
    },
    /// The install failed, for this reason; only a reinstall leads on.
    Failed {
        reason: String,
    },
    Offline,
    /// Ended by itself with an error and waits to be started again.
    Crashed {
        #[serde(skip)]
        restart_at: Uptime,
    },
    /// Suspended by the panel; `failed` is kept for when it ends.
    Suspended {
        failed: Option<String>,
    },
    Starting {
        run: RunId,
        /// The engine has started it; what is missing is the workload's own word that it is up.
        launched: bool,
        /// The first start after a rebind: until it stands, the old container is kept aside.
        trial: bool,
        /// When it is given up unless it is ready; known once all of its output so far was looked at.
        #[serde(skip)]
        ready_by: Option<Uptime>,
    },
    Running {
        run: RunId,
    },
    Paused {
        run: RunId,
        ready: bool,
    },
    Stopping {
        run: RunId,
        next: AfterStop,
        /// The step that comes before a kill.
        #[serde(default)]
        asked: EndedBy,
        killed: bool,
        /// Killed because somebody wanted that, and not at the end of its grace.
        #[serde(default)]
        forced: bool,
        #[serde(skip)]
        kill_at: Uptime,
    },
    /// The Docker container is being replaced by one with other ports (or put back).
    Rebinding {
        undo: bool,
        start_after: bool,
        rest: Rest,
    },
    Deleting,
}

/// What follows once a run has ended on request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AfterStop {
    Rest,
    Start,
    Reinstall,
    Rebind,
    Suspend,
    /// The start has failed: what follows is what follows a crash.
    GiveUp,
}

/// A phase to come back to in which nothing runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rest {
    Offline,
    Failed(String),
    Suspended { failed: Option<String> },
}

impl Phase {
    /// The run whose process the engine has or is about to have, unless it is an install.
    pub(crate) fn live_run(&self) -> Option<RunId> {
        match self {
            Self::Starting { run, .. }
            | Self::Running { run }
            | Self::Paused { run, .. }
            | Self::Stopping { run, .. } => Some(*run),
            Self::Installing { .. }
            | Self::Failed { .. }
            | Self::Offline
            | Self::Crashed { .. }
            | Self::Suspended { .. }
            | Self::Rebinding { .. }
            | Self::Deleting => None,
        }
    }

    /// The state's name on the wire; `unknown` is not a phase but the owner's mark upon it.
    pub(crate) fn state_name(&self) -> &'static str {
        match self {
            Self::Installing { .. } => "installing",
            Self::Failed { .. } => "failed",
            Self::Offline | Self::Crashed { .. } | Self::Rebinding { rest: Rest::Offline, .. } => {
                "offline"
            }
            Self::Rebinding { rest: Rest::Failed(_), .. } => "failed",
            Self::Suspended { .. } | Self::Rebinding { rest: Rest::Suspended { .. }, .. } => {
                "suspended"
            }
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Stopping { .. } => "stopping",
            Self::Deleting => "deleting",
        }
    }

    /// The state as an event names it: one that was installed and never ran is ready, not stopped.
    pub(crate) fn event_name(&self, has_run: bool) -> StateName {
        match self {
            Self::Installing { .. } => StateName::Installing,
            Self::Failed { .. } | Self::Rebinding { rest: Rest::Failed(_), .. } => {
                StateName::Failed
            }
            Self::Offline | Self::Crashed { .. } | Self::Rebinding { rest: Rest::Offline, .. } => {
                if has_run {
                    StateName::Stopped
                } else {
                    StateName::Ready
                }
            }
            Self::Suspended { .. } | Self::Rebinding { rest: Rest::Suspended { .. }, .. } => {
                StateName::Suspended
            }
            Self::Starting { .. } => StateName::Starting,
            Self::Running { .. } => StateName::Running,
            Self::Paused { .. } => StateName::Paused,
            Self::Stopping { .. } => StateName::Stopping,
            Self::Deleting => StateName::Deleting,
        }
    }

    /// Whether the installation stands, failed or is under way.
    pub(crate) fn install_state(&self) -> &'static str {
        match self {
            Self::Installing { .. } => "installing",
            Self::Failed { .. }
            | Self::Suspended { failed: Some(_) }
            | Self::Rebinding {
                rest: Rest::Failed(_) | Rest::Suspended { failed: Some(_) }, ..
            } => "failed",
            _ => "ready",
        }
    }

    /// Why the installation failed.
    pub(crate) fn install_error(&self) -> Option<&str> {
        match self {
            Self::Failed { reason }
            | Self::Suspended { failed: Some(reason) }
            | Self::Rebinding {
                rest: Rest::Failed(reason) | Rest::Suspended { failed: Some(reason) },
                ..
            } => Some(reason),
            _ => None,
        }
    }
}

impl From<Rest> for Phase {
    fn from(rest: Rest) -> Self {
        match rest {
            Rest::Offline => Self::Offline,
            Rest::Failed(reason) => Self::Failed { reason },
            Rest::Suspended { failed } => Self::Suspended { failed },
        }
    }
}
