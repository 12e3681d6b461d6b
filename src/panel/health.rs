//! Whether the panel answers, and since when it is so.
//!
//! Runs beside the deliveries and does not hold them up: an update is tried also while the panel's health is
//! bad, after its own pauses. When the panel is found well again, all that waits is due at once, but for what it
//! has asked to have later while it was well: `/health` may be well all the time that `/update` says "too many".
//! Since when it is away is stored, so that a restart of lightd does not shorten an outage.

use std::time::Duration;

use tokio::sync::watch;

use super::client::Client;
use super::drain::hurry;
use super::{PanelError, PanelState, PanelStatus, pace};
use crate::domain::units::UnixSeconds;
use crate::store::{Store, StoreError};
use crate::util::chain::Chain;

/// The fact in the store: since when the panel is away, empty while it is not.
const AWAY_SINCE: &str = "panel_away_since";

/// Looks at the panel's health in every interval; never ends by itself.
pub(super) async fn watch(
    store: &Store,
    client: &Client,
    interval: Duration,
    status: &watch::Sender<PanelStatus>,
    chance: pace::Chance,
) {
    look(store, client, status).await;
    tokio::time::sleep(pace::pause_before_second_look(interval, chance())).await;
    let mut looks = tokio::time::interval(interval);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        look(store, client, status).await;
    }
}

async fn look(store: &Store, client: &Client, status: &watch::Sender<PanelStatus>) {
    match client.health().await {
        Ok(()) => found_well(store, status).await,
        Err(why) => found_away(store, status, &why).await,
    }
    status.send_modify(|status| status.checked_at = Some(UnixSeconds::now()));
}

async fn found_well(store: &Store, status: &watch::Sender<PanelStatus>) {
    if status.borrow().state != PanelState::Reachable {
        tracing::info!("the panel is reachable");
        hurry(store).await;
        note(store.write("note that the panel is back", |tx| tx.set_meta(AWAY_SINCE, "")).await);
    }
    publish(status, PanelState::Reachable, UnixSeconds::now(), None);
}

async fn found_away(store: &Store, status: &watch::Sender<PanelStatus>, why: &PanelError) {
    let why = Chain(why).to_string();
    let mut since = UnixSeconds::now();
    if status.borrow().state != PanelState::Unreachable {
        tracing::warn!(error = %why, "the panel is out of reach; updates wait");
        let stored = store.write("note that the panel is away", move |tx| {
            let before = tx.meta(AWAY_SINCE)?.and_then(|text| text.parse().ok());
            if before.is_none() {
                tx.set_meta(AWAY_SINCE, &since.0.to_string())?;
            }
            Ok(before.map(UnixSeconds))
        });
        since = note(stored.await).flatten().unwrap_or(since);
    }
    publish(status, PanelState::Unreachable, since, Some(why));
}

/// What cannot be stored is forgotten with the next restart, and no more than that.
fn note<T>(stored: Result<T, StoreError>) -> Option<T> {
    let failed = |why: &StoreError| {
        tracing::warn!(error = %Chain(why), "how the panel is was not stored");
    };
    stored.inspect_err(failed).ok()
}

/// Sets the state; since when it is so changes only with it.
pub(super) fn publish(
    status: &watch::Sender<PanelStatus>,
    state: PanelState,
    since: UnixSeconds,
    error: Option<String>,
) {
    status.send_modify(|status| {
        if status.state != state {
            status.since = since;
        }
        status.state = state;
        status.error = error;
    });
}
