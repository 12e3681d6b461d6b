//! Signals: what just happened to a container, for whoever happens to look.
//!
//! A signal may be lost by a reader that lags; the state itself is always in the container's snapshot
//! and what must not be lost is a row in the store.

use serde::Serialize;

use super::ids::{ContainerId, RunId};

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StateEvent {
    pub(crate) name: &'static str,
    pub(crate) run: RunId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oom_killed: Option<bool>,
}
