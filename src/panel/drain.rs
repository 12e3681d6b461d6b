//! Empties the outbox.
//!
//! ```text
//!   store.outbox_due --> queue --> lanes (1 to 8) --POST--> panel
//!        ^                           | attempts
//!        +------- note_attempts <----+      one transaction for all that wait to be noted
//! ```
//! Of each server one update is on its way at a time, and the next is sent only when the panel has taken it
//! or refused it for good; a server is `busy` from the moment it is read until what became of it is noted.
//! One lane, and so one connection, does as long as the panel answers quickly; more are opened while
//! others wait and it does not, so that a panel that hangs on one server leaves room for the rest.
//!
//! A `Retry-After` holds back the server whose update was answered with it; of a 503 it holds back all, until
//! then or until somebody has updates tried again. The panel's health is looked at meanwhile.
//!
//! Which update is next, and when, stands in the store alone. So this may be ended and begun anew at any
//! moment: what was delivered and not noted is sent again under its old delivery id. A store that fails
//! stops it, and loses nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::lane::{Batch, Lane, Queue};
use super::{PanelStatus, pace};
use crate::domain::ids::ContainerId;
use crate::domain::units::{UnixSeconds, now_unix_ms};
use crate::store::outbox::{Attempts, Due, Fate, HowMany};
use crate::store::{Store, StoreError, Tx};
use crate::util::chain::Chain;

/// How much is read at once; with updates of at most 16 KiB it bounds the memory that a backlog takes.
const HOW_MUCH: HowMany = HowMany { servers: 32, rows_each: 32 };
/// With fewer servers in the queue the next are read.
const LOW: usize = 8;
/// Attempts that are noted in one transaction.
const NOTED_AT_ONCE: usize = 256;
/// How long the store is left alone after it failed.
const STORE_PAUSE: Duration = Duration::from_secs(2);

/// Sends what is due until `stop`, and then ends what is under way.
pub(super) async fn drain(
    store: &Store,
    client: Client,
    status: &watch::Sender<PanelStatus>,
    chance: pace::Chance,
    stop: &CancellationToken,
) {
    let (done, attempts) = mpsc::channel(NOTED_AT_ONCE);
    let queue = Queue::default();
    let places = Places::new();
    let answers = Arc::clone(&places.answers);
    let (told, stop_lane) = (status.subscribe(), stop.clone());
    let lane = Lane {
        client,
        queue: queue.clone(),
        done,
        answers,
        hold: Arc::default(),
        status: told,
        chance,
        stop: stop_lane,
    };
    let drain = Drain {
        store,
        status,
        grew: store.outbox_grew(),
        queue,
        lane,
        lanes: JoinSet::new(),
        attempts,
        busy: HashSet::new(),
        noted_hold_ms: 0,
        places,
        is_more: true,
        next_due_ms: None,
        clock: Clock { looked_at: Instant::now(), was_ms: now_unix_ms() },
    };
    drain.run(stop).await;
}

struct Drain<'a> {
    store: &'a Store,
    status: &'a watch::Sender<PanelStatus>,
    grew: Arc<Notify>,
    queue: Queue,
    /// What each lane is a copy of.
    lane: Lane,
    lanes: JoinSet<()>,
    attempts: mpsc::Receiver<Attempts>,
    /// Servers that are read and not yet noted.
    busy: HashSet<ContainerId>,
    /// The longest pause for all that the store knows of.
    noted_hold_ms: i64,
    places: Places,
    /// Something may be due that is not read.
    is_more: bool,
    next_due_ms: Option<i64>,
    clock: Clock,
}

impl Drain<'_> {
    async fn run(mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            if self.is_more && self.queue.len() < LOW {
                self.read().await;
            }
            self.fill_places();
            let waits = self.queue.len() > 0;
            let mut ended = Vec::new();
            tokio::select! {
                () = stop.cancelled() => break,
                _ = self.attempts.recv_many(&mut ended, NOTED_AT_ONCE) => self.note(ended).await,
                Some(lane) = self.lanes.join_next() => self.lane_ended(lane).await,
                () = self.grew.notified() => self.is_more = true,
                () = until(self.next_due_ms) => self.is_more = true,
                () = self.places.look(), if waits && self.lanes.len() >= self.places.open => {}
            }
        }
        self.end().await;
    }

    /// Waits for the requests that are under way and notes what became of them.
    async fn end(mut self) {
        self.queue.clear();
        let mut ended = Vec::new();
        while !self.lanes.is_empty() {
            tokio::select! {
                _ = self.attempts.recv_many(&mut ended, NOTED_AT_ONCE) => {}
                Some(lane) = self.lanes.join_next() => self.lane_ended(lane).await,
            }
        }
        while let Ok(attempts) = self.attempts.try_recv() {
            ended.push(attempts);
        }
        if let Err(why) = self.write(&Arc::new(ended)).await {
            tracing::warn!(error = %Chain(&why), "what was delivered last is not noted and will be sent again");
        }
    }

    async fn read(&mut self) {
        let (busy, now_ms) = (self.busy.clone(), now_unix_ms());
        let look =
            self.store.read("look at the outbox", move |rx| rx.outbox_due(now_ms, &busy, HOW_MUCH));
        let due = match look.await {
            Ok(due) => due,
            Err(why) => {
                tracing::warn!(error = %Chain(&why), "the outbox cannot be read");
                tokio::time::sleep(STORE_PAUSE).await;
                return;
            }
        };
        let Due { batches, is_more, next_due_ms } = due;
        self.is_more = is_more;
        self.next_due_ms = next_due_ms;
        if self.clock.was_set_back(now_ms) {
            hurry(self.store).await;
        }
        if !batches.is_empty() {
            // The store says that all may be told, if need be because somebody wants it so.
            self.lane.hold.let_go(self.noted_hold_ms);
        }
        let read_at = Instant::now();
        let batches: Vec<Batch> = batches
            .into_iter()
            .filter_map(|rows| {
                let server = rows.first()?.server.clone();
                Some(Batch { server, rows, read_at })
            })
            .collect();
        self.busy.extend(batches.iter().map(|batch| batch.server.clone()));
        self.queue.extend(batches);
    }

    fn fill_places(&mut self) {
        if self.lanes.is_empty() {
            self.places.begin_anew();
        }
        let free = self.places.open.saturating_sub(self.lanes.len());
        for _ in 0..free.min(self.queue.len()) {
            self.lanes.spawn(self.lane.clone().run());
        }
    }

    /// Notes attempts, however long the store takes to be willing: nothing else is begun meanwhile.
    async fn note(&mut self, ended: Vec<Attempts>) {
        let ended = Arc::new(ended);
        while let Err(why) = self.write(&ended).await {
            tracing::warn!(error = %Chain(&why), "what became of updates cannot be noted");
            if self.lane.stop.run_until_cancelled(tokio::time::sleep(STORE_PAUSE)).await.is_none() {
                return;
            }
        }
        for attempts in ended.iter() {
            self.busy.remove(&attempts.server);
            self.noted_hold_ms = self.noted_hold_ms.max(attempts.all_wait_until_ms());
        }
        self.is_more = true;
    }

    async fn write(&self, ended: &Arc<Vec<Attempts>>) -> Result<(), StoreError> {
        let fates = || ended.iter().flat_map(|attempts| &attempts.fates);
        if fates().next().is_none() {
            return Ok(());
        }
        let (noted, now_ms) = (Arc::clone(ended), now_unix_ms());
        let note = move |tx: &Tx<'_>| tx.note_attempts(&noted, now_ms);
        let dropped = self.store.write("note deliveries", note).await?;
        if dropped > 0 {
            tracing::warn!(dropped, "too many power states are parked; the oldest are dropped");
        }
        if fates().any(|(_, fate)| *fate == Fate::Delivered) {
            let now = UnixSeconds::from_ms(now_ms);
            self.status.send_modify(|status| status.delivered_at = Some(now));
        }
        Ok(())
    }

    /// A lane that ends badly takes along which server it was at. All are begun anew then; it does no harm
    /// to send something twice.
    async fn lane_ended(&mut self, lane: Result<(), tokio::task::JoinError>) {
        let Err(why) = lane else { return };
        tracing::error!(error = %why, "a delivery to the panel panicked");
        self.lanes.shutdown().await;
        // What a lane has heard and not reported is never noted.
        self.lane.hold.let_go(i64::MAX);
        self.queue.clear();
        let mut ended = Vec::new();
        while let Ok(attempts) = self.attempts.try_recv() {
            ended.push(attempts);
        }
        self.note(ended).await;
        self.busy.clear();
        tokio::time::sleep(STORE_PAUSE).await;
    }
}

/// Makes all that waits due now, but for what the panel has asked to have later.
pub(super) async fn hurry(store: &Store) {
    let longest_ms = i64::try_from(pace::ASKED_PAUSE_MAX.as_millis()).unwrap_or(i64::MAX);
    let asked_until_ms = now_unix_ms().saturating_add(longest_ms);
    let hurry = move |tx: &Tx<'_>| tx.hurry_outbox(asked_until_ms);
    if let Err(why) = store.write("hurry the outbox", hurry).await {
        tracing::warn!(error = %Chain(&why), "updates for the panel keep their waiting times");
    }
}

/// What is due stands in the store by the time of day. When that is set back, so is all that was due.
struct Clock {
    looked_at: Instant,
    was_ms: i64,
}

impl Clock {
    const TOLERANCE_MS: i64 = 1000;

    fn was_set_back(&mut self, now_ms: i64) -> bool {
        let passed_ms = i64::try_from(self.looked_at.elapsed().as_millis()).unwrap_or(i64::MAX);
        let expected_ms = self.was_ms.saturating_add(passed_ms);
        *self = Self { looked_at: Instant::now(), was_ms: now_ms };
        now_ms < expected_ms - Self::TOLERANCE_MS
    }
}

async fn until(due_ms: Option<i64>) {
    let Some(due_ms) = due_ms else { return std::future::pending().await };
    let left_ms = u64::try_from(due_ms.saturating_sub(now_unix_ms())).unwrap_or(0);
    tokio::time::sleep(Duration::from_millis(left_ms.max(1))).await;
}

/// How many lanes there may be.
struct Places {
    open: usize,
    answers: Arc<AtomicU64>,
    /// How many answers there were at the last look.
    seen: u64,
    looks: Interval,
}

impl Places {
    const MOST: usize = 8;
    /// Where others wait, the panel is looked at so often, and to be called quick has to have answered so
    /// many.
    const EVERY: Duration = Duration::from_millis(20);
    const QUICK: u64 = 4;

    fn new() -> Self {
        let mut looks = tokio::time::interval(Self::EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { open: 1, answers: Arc::default(), seen: 0, looks }
    }

    fn begin_anew(&mut self) {
        self.open = 1;
        self.seen = self.answers.load(Ordering::Relaxed);
        self.looks.reset();
    }

    /// To be awaited while somebody waits for a place; opens another one if the panel is slow.
    async fn look(&mut self) {
        self.looks.tick().await;
        let answers = self.answers.load(Ordering::Relaxed);
        if answers - self.seen < Self::QUICK && self.open < Self::MOST {
            self.open += 1;
        }
        self.seen = answers;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_is_noticed_once() {
        let mut clock = Clock { looked_at: Instant::now(), was_ms: 1_000_000 };
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!clock.was_set_back(1_060_000));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(clock.was_set_back(1_090_000), "half a minute was taken back");
        assert!(!clock.was_set_back(1_090_000));
        assert!(!clock.was_set_back(9_000_000), "forward is what a suspended host does");
    }
}
