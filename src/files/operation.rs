//! Work on files that takes its time: started, watched, cancelled.
//!
//! The registry owns the tasks; [`Operations::shutdown`] cancels and awaits them all. Each operation's
//! changes go out on a broadcast, at most twice a second each, for screens only: whoever lags asks
//! [`Operations::get`]. Finished operations stay for a while to be asked about, bounded in number and
//! age. A panic in the work ends that operation as failed and nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use serde::{Serialize, Serializer};
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::error::FileError;
use super::progress::Progress;
use crate::domain::ids::VolumeId;
use crate::domain::units::UnixSeconds;
use crate::util::chain::Chain;

const MAX_RUNNING: usize = 64;
const MAX_FINISHED: usize = 200;
const KEPT: Duration = Duration::from_secs(3600);
const REPORT_EVERY: Duration = Duration::from_millis(500);
const EVENT_BACKLOG: usize = 256;

/// Ids grow with time, so they also say which operation is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperationId(Uuid);

impl OperationId {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl Serialize for OperationId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OperationKind {
    Copy,
    Compress,
    Decompress,
    Delete,
    Snapshot,
    Restore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OperationState {
    Running,
    Done,
    Failed,
    Cancelled,
}

/// An operation as it stands.
#[derive(Clone, Debug, Serialize)]
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
    pub(crate) error: Option<String>,
    pub(crate) started_at: UnixSeconds,
    pub(crate) finished_at: Option<UnixSeconds>,
}

#[derive(Debug)]
struct Operation {
    id: OperationId,
    kind: OperationKind,
    volume: VolumeId,
    progress: Progress,
    started_at: UnixSeconds,
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    state: OperationState,
    error: Option<String>,
    at: UnixSeconds,
    since: Instant,
}

impl Operation {
    fn view(&self) -> OperationView {
        let end = self.end.as_ref();
        OperationView {
            id: self.id,
            kind: self.kind,
            volume: self.volume,
            state: end.map_or(OperationState::Running, |end| end.state),
            done_bytes: self.progress.done_bytes(),
            total_bytes: self.progress.total_bytes(),
            entries: self.progress.entries(),
            error: end.and_then(|end| end.error.clone()),
            started_at: self.started_at,
            finished_at: end.map(|end| end.at),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Operations {
    tasks: TaskTracker,
    all: Arc<Mutex<BTreeMap<OperationId, Operation>>>,
    changes: broadcast::Sender<OperationView>,
}

impl Default for Operations {
    fn default() -> Self {
        Self {
            tasks: TaskTracker::new(),
            all: Arc::default(),
            changes: broadcast::Sender::new(EVENT_BACKLOG),
        }
    }
}

impl Operations {
    /// Starts `work` in the background. It must end soon after its progress is cancelled.
    pub(crate) fn start<F, W>(
        &self,
        kind: OperationKind,
        volume: VolumeId,
        work: F,
    ) -> Result<OperationId, FileError>
    where
        F: FnOnce(Progress) -> W + Send + 'static,
        W: Future<Output = Result<(), FileError>> + Send + 'static,
    {
        let id = OperationId(Uuid::now_v7());
        let progress = Progress::default();
        let view = {
            let mut all = self.lock();
            forget_old(&mut all);
            let running = all.values().filter(|operation| operation.end.is_none()).count();
            if running >= MAX_RUNNING || self.tasks.is_closed() {
                return Err(FileError::TooManyOperations);
            }
            let started_at = UnixSeconds::now();
            let progress = progress.clone();
            let operation = Operation { id, kind, volume, progress, started_at, end: None };
            let view = operation.view();
            all.insert(id, operation);
            view
        };
        self.announce(view);
        let this = self.clone();
        let work = AssertUnwindSafe(async move { work(progress).await }).catch_unwind();
        self.tasks.spawn(async move { this.watch(id, work).await });
        Ok(id)
    }

    /// Awaits the work and reports how far it is meanwhile.
    async fn watch<P>(
        &self,
        id: OperationId,
        work: impl Future<Output = Result<Result<(), FileError>, P>>,
    ) {
        tokio::pin!(work);
        let mut reports = tokio::time::interval(REPORT_EVERY);
        reports.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reported = (0, 0);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut work => break outcome,
                _ = reports.tick() => {
                    if let Some(view) = self.get(id)
                        && reported != (view.done_bytes, view.entries)
                    {
                        reported = (view.done_bytes, view.entries);
                        self.announce(view);
                    }
                }
            }
        };
        let (state, error) = match outcome {
            Ok(Ok(())) => (OperationState::Done, None),
            Ok(Err(FileError::Cancelled)) => (OperationState::Cancelled, None),
            Ok(Err(error)) => {
                tracing::info!(operation.id = %id, error = %Chain(&error), "operation failed");
                (OperationState::Failed, Some(error.to_string()))
            }
            Err(_) => {
                tracing::error!(operation.id = %id, "operation panicked");
                (OperationState::Failed, Some("an internal error ended it".to_owned()))
            }
        };
        self.finish(id, state, error);
    }

    fn finish(&self, id: OperationId, state: OperationState, error: Option<String>) {
        let view = {
            let mut all = self.lock();
            let view = all.get_mut(&id).map(|operation| {
                let (at, since) = (UnixSeconds::now(), Instant::now());
                operation.end = Some(End { state, error, at, since });
                operation.view()
            });
            forget_old(&mut all);
            view
        };
        if let Some(view) = view {
            self.announce(view);
        }
    }

    pub(crate) fn get(&self, id: OperationId) -> Option<OperationView> {
        let mut all = self.lock();
        forget_old(&mut all);
        all.get(&id).map(Operation::view)
    }

    /// All that are known, the newest first.
    pub(crate) fn list(&self) -> Vec<OperationView> {
        let mut all = self.lock();
        forget_old(&mut all);
        all.values().rev().map(Operation::view).collect()
    }

    /// Asks an operation to stop; it ends as cancelled once it has cleaned up. One that has ended stays
    /// as it ended. `None` if there is no such operation.
    pub(crate) fn cancel(&self, id: OperationId) -> Option<OperationView> {
        let all = self.lock();
        let operation = all.get(&id)?;
        operation.progress.cancel();
        Some(operation.view())
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<OperationView> {
        self.changes.subscribe()
    }

    /// Starts nothing more, cancels what runs and waits until it has cleaned up.
    pub(crate) async fn shutdown(&self) {
        self.tasks.close();
        for operation in self.lock().values() {
            operation.progress.cancel();
        }
        self.tasks.wait().await;
    }

    fn announce(&self, view: OperationView) {
        // An error means that nobody listens, which is as well.
        drop(self.changes.send(view));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OperationId, Operation>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_old(all: &mut BTreeMap<OperationId, Operation>) {
    all.retain(|_, operation| operation.end.as_ref().is_none_or(|end| end.since.elapsed() < KEPT));
    let ended: Vec<_> =
        all.iter().filter(|(_, one)| one.end.is_some()).map(|(id, _)| *id).collect();
    for id in ended.iter().take(ended.len().saturating_sub(MAX_FINISHED)) {
        all.remove(id);
    }
}
