//! Long work on a volume as it is shown, announced and stored.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::audit::{Act, Action, Actor};
use super::ids::VolumeId;
use super::units::UnixSeconds;

/// How many operations that have ended are known, and for how long.
pub(crate) const ENDED_KEPT: u32 = 200;
pub(crate) const ENDED_KEPT_SECONDS: i64 = 24 * 3600;

/// Ids grow with time, so they also say which operation is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct OperationId(Uuid);

impl OperationId {
    pub(crate) fn next() -> Self {
        Self(Uuid::now_v7())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OperationKind {
    Copy,
    Compress,
    Decompress,
    Delete,
    Pull,
    Snapshot,
    Restore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OperationState {
    Running,
    Done,
    Failed,
    Cancelled,
    /// lightd ended before the work did. What it had half made is taken away.
    Interrupted,
}

/// An operation as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OperationView {
    #[serde(rename = "operation_id")]
    pub(crate) id: OperationId,
    pub(crate) kind: OperationKind,
    /// What is being worked on; whose screens want to know is whose container uses it.
    #[serde(rename = "volume_id")]
    pub(crate) volume: VolumeId,
    pub(crate) state: OperationState,
    pub(crate) done_bytes: u64,
    /// 0 while it is not known.
    pub(crate) total_bytes: u64,
    pub(crate) entries: u64,
    /// Why it ended without being done.
    pub(crate) error: Option<String>,
    /// The same for programs, as in refusals.
    #[serde(default)]
    pub(crate) code: Option<String>,
    /// What the work has made, where there is more to say than that it is done.
    pub(crate) result: Option<serde_json::Value>,
    pub(crate) started_at: UnixSeconds,
    pub(crate) finished_at: Option<UnixSeconds>,
}

impl OperationView {
    /// What the audit log holds of its end: nothing of work that was done, of which the beginning says all.
    pub(crate) fn failure(&self) -> Option<Act> {
        let state = match self.state {
            OperationState::Running | OperationState::Done => return None,
            OperationState::Failed => "failed",
            OperationState::Cancelled => "cancelled",
            OperationState::Interrupted => "interrupted",
        };
        let act = Act::new(Actor::lightd(), Action::OperationFailed).in_volume(self.volume);
        let act = act.with("operation_id", self.id.to_string()).with("state", state);
        Some(act.with_some("code", self.code.as_deref()))
    }
}
