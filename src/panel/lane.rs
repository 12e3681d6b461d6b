//! One of the few places at which updates are sent: server after server, of each its updates in their
//! order, over a connection that is kept.
//!
//! Spawned and ended by [`super::drain`], which gives it the queue and notes what it reports. It stops at a
//! server's first update that has to come again, and after a while anyway, so that what was delivered is
//! noted soon. Aborted, it loses no more than that: those updates are sent again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Outcome};
use super::{PanelError, PanelState, PanelStatus, pace};
use crate::domain::ids::ContainerId;
use crate::domain::units::now_unix_ms;
use crate::store::outbox::{Asked, Attempts, Fate, OutboxRow};
use crate::util::chain::Chain;

/// How long one server is sent for before what was delivered is noted.
const BATCH_TIME: Duration = Duration::from_millis(250);
/// What was read longer ago is read again: it may have been dropped meanwhile.
const FRESH: Duration = Duration::from_secs(1);
/// With a `Retry-After`, the panel as a whole is not to be spoken to. With any other refusal, 429 above all, it
/// may speak for the one server: what would be too much of that must not hold up what concerns others.
const SERVICE_UNAVAILABLE: u16 = 503;
/// How much of an error is kept with an update.
const ERROR_MAX_BYTES: usize = 1024;

/// The waiting updates of one server.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) server: ContainerId,
    pub(super) rows: Vec<OutboxRow>,
    pub(super) read_at: Instant,
}

/// What is to be sent, shared by the lanes.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Mutex<VecDeque<Batch>>>);

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn extend(&self, batches: impl IntoIterator<Item = Batch>) {
        self.lock().extend(batches);
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn next(&self) -> Option<Batch> {
        self.lock().pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Batch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until when the panel wants to be told nothing, as the lanes have heard and the store may not yet know.
#[derive(Debug, Default)]
pub(super) struct Hold(AtomicI64);

impl Hold {
    fn hear(&self, until_ms: i64) {
        self.0.fetch_max(until_ms, Ordering::Relaxed);
    }

    fn is_on(&self, now_ms: i64) -> bool {
        self.0.load(Ordering::Relaxed) > now_ms
    }

    /// Ends it, if the store knew of it when it said that all may be told. One that it does not know yet
    /// stays: what the store says is older.
    pub(super) fn let_go(&self, noted_ms: i64) {
        let ends = |until_ms| (until_ms <= noted_ms).then_some(0);
        // It stays where there is nothing to end.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, ends).ok();
    }
}

#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) client: Client,
    pub(super) queue: Queue,
    pub(super) done: mpsc::Sender<Attempts>,
    /// Counts what the panel has answered, of all lanes.
    pub(super) answers: Arc<AtomicU64>,
    pub(super) hold: Arc<Hold>,
    pub(super) status: watch::Receiver<PanelStatus>,
    pub(super) chance: pace::Chance,
    /// Ends it after the request that is under way.
    pub(super) stop: CancellationToken,
}

impl Lane {
    /// Sends until the queue is empty.
    pub(super) async fn run(self) {
        while !self.stop.is_cancelled()
            && let Some(batch) = self.queue.next()
        {
            let fates = self.send(&batch).await;
            if self.done.send(Attempts { server: batch.server, fates }).await.is_err() {
                return;
            }
        }
    }

    async fn send(&self, batch: &Batch) -> Vec<(i64, Fate)> {
        let began = Instant::now();
        let mut fates = Vec::new();
        if batch.read_at.elapsed() > FRESH {
            return fates;
        }
        for row in &batch.rows {
            let is_asked_to_wait = self.hold.is_on(now_unix_ms());
            if self.stop.is_cancelled() || is_asked_to_wait || began.elapsed() > BATCH_TIME {
                break;
            }
            let fate = self.fate_of(row, self.client.deliver(row).await);
            self.answers.fetch_add(1, Ordering::Relaxed);
            let goes_on = !matches!(fate, Fate::Later { .. });
            fates.push((row.sequence, fate));
            if !goes_on {
                break;
            }
        }
        fates
    }

    fn fate_of(&self, row: &OutboxRow, outcome: Outcome) -> Fate {
        match outcome {
            Outcome::Accepted => Fate::Delivered,
            Outcome::Refused(reason) => {
                tracing::warn!(server = %row.server, sequence = row.sequence, reason, "the panel refuses an update; it is parked");
                Fate::Refused { reason }
            }
            Outcome::Later { error, asked } => {
                let concerns = match (&error, asked) {
                    (_, None) => Asked::No,
                    (PanelError::Status(SERVICE_UNAVAILABLE), Some(_)) => Asked::OfAll,
                    (_, Some(_)) => Asked::OfServer,
                };
                let mut error = Chain(&error).to_string();
                error.truncate(error.floor_char_boundary(ERROR_MAX_BYTES));
                tracing::debug!(server = %row.server, error, "an update waits");
                let failures = row.attempts.saturating_add(1);
                let pause = pace::pause_before_retry(failures, asked, (self.chance)());
                let pause_ms = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
                // What it asks for in an outage ends with that.
                let is_away = self.status.borrow().state == PanelState::Unreachable;
                let asked = if is_away { Asked::No } else { concerns };
                let due_ms = now_unix_ms().saturating_add(pause_ms);
                if asked == Asked::OfAll {
                    self.hold.hear(due_ms);
                }
                Fate::Later { error, due_ms, asked }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_that_the_store_does_not_know_yet_is_not_forgotten() {
        let hold = Hold::default();
        hold.hear(1000);
        // Read before it was noted, or noted by another lane's report that came first.
        hold.let_go(0);
        assert!(hold.is_on(999));
        assert!(!hold.is_on(1000));
        hold.hear(500);
        hold.let_go(500);
        assert!(hold.is_on(999), "of the longer one the store knows nothing");
        hold.let_go(1000);
        assert!(!hold.is_on(0), "somebody wants it so");
    }
}
