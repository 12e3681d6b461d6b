//! What containers use, stored once a minute, all in one transaction.
//!
//! Samplers add what they read to their container's meter ([`super::Shared::usage`]); this task empties all
//! meters, looks now and then at what the volumes hold, and forgets what is old. What a crash of lightd loses
//! is the last minute's memory and storage: where the counters stood is stored with the amounts, so processor
//! time, traffic and running time are made up for by the next reading.
//!
//! Run by the composition root; a failure to store is logged, and the amounts are stored with the next ones.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::registry::Registry;
use super::{ContainerHandle, Shared};
use crate::cgroup;
use crate::domain::ids::ContainerId;
use crate::domain::units::{UnixSeconds, now_unix_ms};
use crate::domain::usage::meter::{Moment, Taken};
use crate::store::{StoreError, Tx};
use crate::util::chain::Chain;

const STORED_EVERY: Duration = Duration::from_secs(60);
/// What a start of lightd has to do comes first.
const FIRST_AFTER: Duration = Duration::from_secs(10);
/// What somebody who asks finds is no older.
const FRESH: Duration = Duration::from_secs(5);
/// A look goes through the volume's folders.
const STORAGE_LOOKED_AT_EVERY: Duration = Duration::from_secs(600);

/// The meters of all containers, and their way into the store. One per daemon.
#[derive(Debug)]
pub(crate) struct Metering {
    registry: Arc<Registry>,
    /// Held while meters are emptied, so that what is stored is in order.
    stored_at: Mutex<Option<Instant>>,
}

impl Metering {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, stored_at: Mutex::default() }
    }

    /// Goes on where an earlier lightd was. To be done once the rows are loaded, before any run is followed.
    pub(crate) async fn restore(&self) -> Result<(), StoreError> {
        let store = &self.registry.services().store;
        let read = store
            .read("read where usage stood", |rx| Ok((rx.usage_positions()?, rx.usage_since()?)));
        let (positions, since) = read.await?;
        let mut positions: HashMap<_, _> = positions.into_iter().collect();
        for container in self.registry.list() {
            let position = positions.remove(container.id());
            container.shared.usage().restore(position, since.0.saturating_mul(1000));
        }
        Ok(())
    }

    pub(crate) async fn run(&self, stop: CancellationToken) {
        let ticks = || {
            let mut ticks = tokio::time::interval_at(Instant::now() + FIRST_AFTER, STORED_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut stores, mut looks) = (ticks(), ticks());
        let storing = async {
            loop {
                stores.tick().await;
                self.store().await;
            }
        };
        // Apart from that: it may take long.
        let looking = async {
            let mut looked_at = HashMap::new();
            loop {
                looks.tick().await;
                self.look_at_storage(&mut looked_at).await;
            }
        };
        stop.run_until_cancelled(async { tokio::join!(storing, looking) }).await;
    }

    /// Stores what has come together, if that was not done just now.
    pub(crate) async fn freshen(&self) {
        let is_fresh = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < FRESH);
        if !is_fresh(*self.stored_at.lock().await) {
            self.store().await;
        }
    }

    /// Stores what has come together. Whoever waits for it may go away; only a failure is not made up for
    /// then.
    pub(crate) async fn store(&self) {
        let mut stored_at = self.stored_at.lock().await;
        let all: Vec<(ContainerHandle, Taken)> =
            self.registry.list().into_iter().filter_map(taken_of).collect();
        *stored_at = Some(Instant::now());
        if all.is_empty() {
            return;
        }
        let rows: Vec<(ContainerId, Taken)> =
            all.iter().map(|(container, taken)| (container.id().clone(), taken.clone())).collect();
        let write =
            move |tx: &Tx<'_>| rows.iter().try_for_each(|(id, taken)| tx.add_usage(id, taken));
        if let Err(error) = self.registry.services().store.write("store usage", write).await {
            tracing::warn!(error = %Chain(&error), "usage is not stored; it will be tried again");
            for (container, taken) in &all {
                container.shared.usage().give_back(taken);
            }
        }
    }

    /// Forgets what is older than this.
    pub(crate) async fn expire(&self, hours: Duration, days: Duration) {
        let now = UnixSeconds::now().0;
        let before = |age: Duration| {
            let age = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
            UnixSeconds(now.saturating_sub(age))
        };
        let (hours, days) = (before(hours), before(days));
        let expire = move |tx: &Tx<'_>| tx.expire_usage(hours, days);
        if let Err(error) = self.registry.services().store.write("forget old usage", expire).await {
            tracing::warn!(error = %Chain(&error), "old usage stays in the store");
        }
    }

    async fn look_at_storage(&self, looked_at: &mut HashMap<ContainerId, Instant>) {
        let all = self.registry.list();
        looked_at.retain(|id, _| self.registry.get(id).is_some());
        for container in all {
            let is_due = |at: &Instant| at.elapsed() >= STORAGE_LOOKED_AT_EVERY;
            if !looked_at.get(container.id()).is_none_or(is_due) {
                continue;
            }
            let volume = container.snapshot().spec.volume_id;
            // One that takes long is there the next time.
            if let Some(bytes) = self.registry.services().files.used_bytes(volume).await {
                container.shared.usage().note_storage(now(), Some(bytes));
                looked_at.insert(container.id().clone(), Instant::now());
            }
        }
    }
}

fn taken_of(container: ContainerHandle) -> Option<(ContainerHandle, Taken)> {
    let taken = container.shared.take_usage();
    (!taken.hours.is_empty()).then_some((container, taken))
}

impl Shared {
    /// What has come together up to now.
    pub(super) fn take_usage(&self) -> Taken {
        let mut usage = self.usage();
        usage.note_storage(now(), None);
        usage.take()
    }
}

fn now() -> Moment {
    Moment { since_boot: cgroup::now(), unix_ms: now_unix_ms() }
}

/// A moment of the past by the time of day.
pub(super) fn moment(unix_ms: i64) -> Moment {
    let ago_ms = u64::try_from(now_unix_ms().saturating_sub(unix_ms)).unwrap_or(0);
    Moment { since_boot: cgroup::now().saturating_sub(Duration::from_millis(ago_ms)), unix_ms }
}
