//! Empties the outbox: the first update of each server, several servers at a time.
//!
//! Which update is next, and when, stands in the store alone; this loop only remembers which servers
//! it is sending for. So it may be ended and begun anew at any moment.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::JoinSet;

use super::client::{Client, Outcome};
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::store::outbox::OutboxRow;
use crate::store::{Store, StoreError};
use crate::util::backoff::Backoff;
use crate::util::chain::Chain;

/// Deliveries at one time. A panel that hangs on one server leaves the other places free.
const AT_ONCE: usize = 8;
/// More than [`AT_ONCE`], because those that are being sent come first in the list.
const HEADS: u32 = 64;
const BACKOFF: Backoff =
    Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(300) };
/// How long the store is left alone after it failed.
const STORE_PAUSE: Duration = Duration::from_secs(2);

/// Deliveries that are under way.
#[derive(Default)]
struct Sending {
    tasks: JoinSet<ContainerId>,
    busy: HashSet<ContainerId>,
}

pub(super) async fn drain(store: &Store, client: &Client) {
    let grew = store.outbox_grew();
    let mut sending = Sending::default();
    loop {
        let heads = match store.read("look at the outbox", |rx| rx.outbox_heads(HEADS)).await {
            Ok(heads) => heads,
            Err(why) => {
                tracing::warn!(error = %Chain(&why), "the outbox cannot be read");
                tokio::time::sleep(STORE_PAUSE).await;
                continue;
            }
        };
        let now = UnixSeconds::now();
        let next_due = sending.start(heads, now, store, client);
        tokio::select! {
            () = grew.notified() => {}
            () = sleep_until(next_due, now) => {}
            () = sending.one_ended(), if !sending.tasks.is_empty() => {}
        }
    }
}

impl Sending {
    /// Begins what is due and has a place; says when the next of the others is due.
    fn start(
        &mut self,
        heads: Vec<OutboxRow>,
        now: UnixSeconds,
        store: &Store,
        client: &Client,
    ) -> Option<UnixSeconds> {
        let mut next_due: Option<UnixSeconds> = None;
        for row in heads {
            if self.busy.contains(&row.server) {
                continue;
            }
            let due = row.next_attempt_at;
            if due > now {
                next_due = Some(next_due.map_or(due, |next| next.min(due)));
            } else if self.tasks.len() < AT_ONCE {
                self.busy.insert(row.server.clone());
                self.tasks.spawn(deliver(store.clone(), client.clone(), row));
            }
        }
        next_due
    }

    async fn one_ended(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(server)) => {
                self.busy.remove(&server);
            }
            Some(Err(why)) => {
                // Which server it was for went with it. Those that are still sending come to no harm
                // by being sent twice.
                tracing::error!(error = %why, "a delivery to the panel panicked");
                self.tasks.shutdown().await;
                self.busy.clear();
            }
            None => {}
        }
    }
}

async fn sleep_until(due: Option<UnixSeconds>, now: UnixSeconds) {
    match due {
        Some(due) => {
            let seconds = u64::try_from(due.0 - now.0).unwrap_or(0);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
        None => std::future::pending().await,
    }
}

async fn deliver(store: Store, client: Client, row: OutboxRow) -> ContainerId {
    let outcome = client.deliver(&row).await;
    if let Err(why) = note(&store, &row, outcome).await {
        tracing::warn!(error = %Chain(&why), server = %row.server, "what became of an update was not noted");
        // It will be sent again; not in a tight circle.
        tokio::time::sleep(STORE_PAUSE).await;
    }
    row.server
}

async fn note(store: &Store, row: &OutboxRow, outcome: Outcome) -> Result<(), StoreError> {
    let sequence = row.sequence;
    match outcome {
        Outcome::Accepted => store.write("note a delivery", move |tx| tx.delivered(sequence)).await,
        Outcome::Refused(reason) => {
            tracing::warn!(server = %row.server, reason, "the panel refuses an update; it is parked");
            store.write("park an update", move |tx| tx.park(sequence, &reason)).await
        }
        Outcome::Later { error, not_before } => {
            tracing::debug!(error = %Chain(&error), server = %row.server, "an update waits");
            let now = UnixSeconds::now();
            let delay = BACKOFF.delay(row.attempts.saturating_add(1)).as_secs().max(1);
            let next =
                not_before.unwrap_or_else(|| UnixSeconds(now.0.saturating_add_unsigned(delay)));
            store.write("postpone an update", move |tx| tx.postpone(sequence, next)).await
        }
    }
}
