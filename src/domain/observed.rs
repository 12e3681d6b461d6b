//! What the engine shows of a container, in our own words.

/// One successful look at a container in the engine. A look that failed is not one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    /// The engine's own id.
    pub(crate) docker_id: String,
    pub(crate) status: ObservedStatus,
    /// The first process, as the host numbers it, while there is one.
    pub(crate) pid: Option<u32>,
    /// When the present or last run began, in Unix milliseconds; `None` before the first.
    pub(crate) started_at_ms: Option<i64>,
    pub(crate) tty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObservedStatus {
    /// Made and never started.
    Created,
    Running,
    Paused,
    Exited(Exit),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Exit {
    /// The exit code; 128 + n for an end by signal n.
    pub(crate) code: i64,
    pub(crate) oom_killed: bool,
}
