//! Signals: what just happened to a container, for whoever happens to look.
//!
//! A signal may be lost by a reader that lags; the state itself is always in the container's snapshot
//! and what must not be lost is a row in the store.

use super::ids::{ContainerId, RunId};
use super::lifecycle::LastExit;

/// A signal about one container.
#[derive(Clone, Debug)]
pub(crate) struct Signal {
    pub(crate) container: ContainerId,
    pub(crate) kind: SignalKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SignalKind {
    /// The container's state changed.
    State(StateEvent),
    /// A sentence from lightd for the people at the console.
    DaemonMessage(String),
}

/// A state as it goes out on a WebSocket and to the panel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateEvent {
    pub(crate) name: StateName,
    pub(crate) run: RunId,
    /// Of an exit.
    pub(crate) last_exit: Option<LastExit>,
    /// Of a start that is over.
    pub(crate) ready_after_ms: Option<u64>,
}

/// The states as events name them; `as_str` is what the contract calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateName {
    Installing,
    Ready,
    Failed,
    Starting,
    Running,
    Stopping,
    Stopped,
    Exit,
    Paused,
    Suspended,
    Deleting,
    Unknown,
}

impl StateName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Installing => "installing",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Exit => "exit",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Deleting => "deleting",
            Self::Unknown => "unknown",
        }
    }
}
