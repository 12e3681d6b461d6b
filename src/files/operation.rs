//! Work on files that takes its time: started, watched, cancelled.
//!
//! The registry owns the tasks; [`Operations::shutdown`] cancels and awaits them all. Each operation's
//! changes go out on a broadcast, at most twice a second each, for screens only: whoever lags asks
//! [`Operations::get`]. Finished operations stay for a while to be asked about, bounded in number and
//! age. A panic in the work ends that operation as failed and nothing else.
//!
//! Beginning and end are handed to [`Save`] as well: the work begins only once it is stored that it has,
//! and who wants it, so that after a crash there is no operation that was promised and is not known.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{broadcast, oneshot};
use tokio_util::task::TaskTracker;

use super::error::FileError;
use super::progress::Progress;
use crate::domain::audit::Act;
use crate::domain::ids::VolumeId;
use crate::domain::operation::{ENDED_KEPT, ENDED_KEPT_SECONDS};
pub(crate) use crate::domain::operation::{
    OperationId, OperationKind, OperationState, OperationView,
};
use crate::domain::units::UnixSeconds;
use crate::util::chain::Chain;

const MAX_RUNNING: usize = 64;
const REPORT_EVERY: Duration = Duration::from_millis(500);
const EVENT_BACKLOG: usize = 256;

/// Stores how an operation stands and, all or nothing, what belongs into the audit log of it; or says why
/// not.
pub(crate) type Save = Arc<
    dyn Fn(OperationView, Option<Act>) -> BoxFuture<'static, Result<(), FileError>> + Send + Sync,
>;

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
    why: Option<Why>,
    at: UnixSeconds,
}

/// Why an operation ended without being done.
#[derive(Clone, Debug)]
struct Why {
    text: String,
    code: String,
}

impl Why {
    fn new(code: &str, text: impl Into<String>) -> Self {
        Self { text: text.into(), code: code.to_owned() }
    }
}

impl Operation {
    fn view(&self) -> OperationView {
        let end = self.end.as_ref();
        let why = end.and_then(|end| end.why.as_ref());
        OperationView {
            id: self.id,
            kind: self.kind,
            volume: self.volume,
            state: end.map_or(OperationState::Running, |end| end.state),
            done_bytes: self.progress.done_bytes(),
            total_bytes: self.progress.total_bytes(),
            entries: self.progress.entries(),
            error: why.map(|why| why.text.clone()),
            code: why.map(|why| why.code.clone()),
            result: self.progress.result(),
            started_at: self.started_at,
            finished_at: end.map(|end| end.at),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Operations {
    tasks: TaskTracker,
    all: Arc<Mutex<BTreeMap<OperationId, Operation>>>,
    changes: broadcast::Sender<OperationView>,
    save: Save,
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").field("all", &self.all).finish_non_exhaustive()
    }
}

impl Operations {
    /// Goes on from what earlier runs have left, all of which has ended.
    pub(crate) fn new(past: Vec<OperationView>, save: Save) -> Self {
        let ended = |view: OperationView| {
            let progress = Progress::default();
            progress.add_bytes(view.done_bytes);
            progress.set_total_bytes(view.total_bytes);
            progress.add_entries(view.entries);
            if let Some(result) = view.result {
                progress.set_result(result);
            }
            let at = view.finished_at.unwrap_or(view.started_at);
            let why = view.error.map(|text| Why::new(&view.code.unwrap_or_default(), text));
            let end = End { state: view.state, why, at };
            let (id, kind, volume) = (view.id, view.kind, view.volume);
            let started_at = view.started_at;
            (id, Operation { id, kind, volume, progress, started_at, end: Some(end) })
        };
        Self {
            tasks: TaskTracker::new(),
            all: Arc::new(Mutex::new(past.into_iter().map(ended).collect())),
            changes: broadcast::Sender::new(EVENT_BACKLOG),
            save,
        }
    }

    /// Nothing is stored.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self::new(Vec::new(), Arc::new(|_, _| Box::pin(async { Ok(()) })))
    }

    /// Starts `work` in the background, as this act. It must end soon after its progress is cancelled.
    pub(crate) async fn start<F, W>(
        &self,
        act: Act,
        kind: OperationKind,
        volume: VolumeId,
        work: F,
    ) -> Result<OperationId, FileError>
    where
        F: FnOnce(Progress) -> W + Send + 'static,
        W: Future<Output = Result<(), FileError>> + Send + 'static,
    {
        let id = OperationId::next();
        let progress = Progress::default();
        let started_at = UnixSeconds::now();
        let counted = progress.clone();
        let view =
            self.add(Operation { id, kind, volume, progress: counted, started_at, end: None })?;
        let this = self.clone();
        let (stored, is_stored) = oneshot::channel();
        let work = AssertUnwindSafe(async move { work(progress).await }).catch_unwind();
        self.tasks.spawn(async move {
            let act = act.in_volume(volume).with("operation_id", id.to_string());
            let saved = (this.save)(view.clone(), Some(act)).await;
            let is_saved = saved.is_ok();
            // Whoever asked for it may be gone; what is stored to run does run.
            stored.send(saved).ok();
            if !is_saved {
                this.lock().remove(&id);
                return;
            }
            this.announce(view);
            this.watch(id, work).await;
        });
        is_stored.await.unwrap_or(Err(FileError::OperationNotStored)).map(|()| id)
    }

    /// Refused where too many run already.
    fn add(&self, operation: Operation) -> Result<OperationView, FileError> {
        let mut all = self.lock();
        forget_old(&mut all);
        let running = all.values().filter(|operation| operation.end.is_none()).count();
        if running >= MAX_RUNNING || self.tasks.is_closed() {
            return Err(FileError::TooManyOperations);
        }
        let view = operation.view();
        all.insert(operation.id, operation);
        Ok(view)
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
        let (state, why) = self.judge(id, outcome);
        self.finish(id, state, why).await;
    }

    fn judge<P>(
        &self,
        id: OperationId,
        outcome: Result<Result<(), FileError>, P>,
    ) -> (OperationState, Option<Why>) {
        match outcome {
            Ok(Ok(())) => (OperationState::Done, None),
            Ok(Err(FileError::Cancelled)) if self.tasks.is_closed() => {
                let why = "lightd was stopped before the work was done";
                (OperationState::Interrupted, Some(Why::new("interrupted", why)))
            }
            Ok(Err(FileError::Cancelled)) => (OperationState::Cancelled, None),
            Ok(Err(error)) => {
                tracing::info!(operation.id = %id, error = %Chain(&error), "operation failed");
                (OperationState::Failed, Some(Why::new(error.code(), error.to_string())))
            }
            Err(_) => {
                tracing::error!(operation.id = %id, "operation panicked");
                (OperationState::Failed, Some(Why::new("internal", "an internal error ended it")))
            }
        }
    }

    async fn finish(&self, id: OperationId, state: OperationState, why: Option<Why>) {
        let view = {
            let mut all = self.lock();
            let view = all.get_mut(&id).map(|operation| {
                operation.end = Some(End { state, why, at: UnixSeconds::now() });
                operation.view()
            });
            forget_old(&mut all);
            view
        };
        if let Some(view) = view {
            if let Err(error) = (self.save)(view.clone(), view.failure()).await {
                tracing::warn!(operation.id = %id, %error, "the end of an operation is not stored");
            }
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

    /// Does something that belongs to an operation to its end, also when who waits for it goes away.
    pub(crate) async fn see_to(&self, work: impl Future<Output = ()> + Send + 'static) {
        // A panic in it is in the log.
        self.tasks.spawn(work).await.ok();
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
    let oldest = UnixSeconds::now().0 - ENDED_KEPT_SECONDS;
    all.retain(|_, operation| operation.end.as_ref().is_none_or(|end| end.at.0 >= oldest));
    let ended: Vec<_> =
        all.iter().filter(|(_, one)| one.end.is_some()).map(|(id, _)| *id).collect();
    for id in ended.iter().take(ended.len().saturating_sub(ENDED_KEPT as usize)) {
        all.remove(id);
    }
}
