//! Whether the panel answers, and since when it is so.
//!
//! Runs beside the deliveries and does not hold them up: an update is tried also while the panel's health is
//! bad, after its own pauses. When the panel is found well again, all that waits is due at once.

use std::time::Duration;

use tokio::sync::watch;

use super::client::Client;
use super::drain::hurry;
use super::{PanelState, PanelStatus, pace};
use crate::domain::units::UnixSeconds;
use crate::store::Store;
use crate::util::chain::Chain;

/// Looks at the panel's health in every interval; never ends by itself.
pub(super) async fn watch(
    store: &Store,
    client: &Client,
    interval: Duration,
    status: &watch::Sender<PanelStatus>,
) {
    look(store, client, status).await;
    tokio::time::sleep(pace::pause_before_second_look(interval, rand::random())).await;
    // An answer that takes long does not move the next look.
    let mut looks = tokio::time::interval(interval);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        look(store, client, status).await;
    }
}

async fn look(store: &Store, client: &Client, status: &watch::Sender<PanelStatus>) {
    let seen = client.health().await;
    let before = status.borrow().state;
    match seen {
        Ok(()) => {
            if before != PanelState::Reachable {
                tracing::info!("the panel is reachable");
                hurry(store).await;
            }
            publish(status, PanelState::Reachable, None);
        }
        Err(why) => {
            let why = Chain(&why).to_string();
            if before != PanelState::Unreachable {
                tracing::warn!(error = %why, "the panel is out of reach; updates wait");
            }
            publish(status, PanelState::Unreachable, Some(why));
        }
    }
    status.send_modify(|status| status.checked_at = Some(UnixSeconds::now()));
}

/// Sets the state; since when it is so changes only with it.
pub(super) fn publish(status: &watch::Sender<PanelStatus>, state: PanelState, error: Option<String>) {
    status.send_modify(|status| {
        if status.state != state {
            status.since = UnixSeconds::now();
        }
        status.state = state;
        status.error = error;
    });
}
