//! The remote panel: told what became of its servers, until it has heard it.
//!
//! Updates are rows of the outbox, written with the change they report. [`Panel::run`] drains them: of
//! each server in order, of several servers side by side, each until the panel accepts it. Beside that
//! it looks at the panel's health, and when the panel comes back everything that waits is sent at once.
//! Nothing in here can hold up a container: the panel may be away for days.
//!
//! ```text
//!   store.outbox --(grew | due)--> drain --POST /update--> 2xx: delete   4xx: park   else: later
//!                                  health --GET /health--> watch<PanelStatus>; back: all due now
//! ```
//!
//! Delivery is at least once: a crash between the panel's answer and the deletion of the row sends it
//! again, with the same `X-Lightd-Delivery`. Without a panel nothing runs and no HTTP client exists.

mod client;
mod drain;

use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::client::Client;
use crate::domain::units::UnixSeconds;
use crate::store::outbox::OutboxDepth;
use crate::store::{Store, StoreError};
use crate::util::chain::Chain;
use crate::util::secret::Secret;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PanelError {
    #[error("cannot make an HTTP client for the panel")]
    Client(#[source] reqwest::Error),
    #[error("the panel does not answer")]
    Transport(#[source] reqwest::Error),
    #[error("the panel answers {0}")]
    Status(u16),
}

/// How to reach the panel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PanelSettings {
    pub(crate) url: Url,
    pub(crate) token: Secret,
    pub(crate) health_interval: Duration,
}

/// Whether the panel answers, and since when it is so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PanelStatus {
    pub(crate) state: PanelState,
    pub(crate) since: UnixSeconds,
    /// Why it is out of reach.
    pub(crate) error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PanelState {
    Disabled,
    /// Not asked yet.
    Unknown,
    Reachable,
    Unreachable,
}

/// What `status` tells of the link.
#[derive(Clone, Debug)]
pub(crate) struct PanelReport {
    pub(crate) status: PanelStatus,
    pub(crate) outbox: OutboxDepth,
}

#[derive(Debug)]
pub(crate) struct Panel {
    store: Store,
    /// `None`: there is no panel.
    settings: watch::Receiver<Option<PanelSettings>>,
    status: watch::Sender<PanelStatus>,
}

impl Panel {
    pub(crate) fn new(store: Store, settings: watch::Receiver<Option<PanelSettings>>) -> Self {
        let (status, _) = watch::channel(PanelStatus {
            state: PanelState::Disabled,
            since: UnixSeconds::now(),
            error: None,
        });
        Self { store, settings, status }
    }

    /// Delivers updates and watches the panel's health until cancelled; takes new settings over as
    /// they come.
    pub(crate) async fn run(&self, cancel: CancellationToken) {
        let mut settings = self.settings.clone();
        loop {
            let present = settings.borrow_and_update().clone();
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = self.serve(present) => {}
            }
        }
    }

    pub(crate) async fn report(&self) -> Result<PanelReport, StoreError> {
        let outbox = self.store.read("look at the outbox", |rx| rx.outbox_depth()).await?;
        Ok(PanelReport { status: self.status.borrow().clone(), outbox })
    }

    /// Runs with one set of settings; never ends by itself.
    async fn serve(&self, settings: Option<PanelSettings>) {
        let Some(settings) = settings else {
            self.publish(PanelState::Disabled, None);
            return std::future::pending().await;
        };
        self.publish(PanelState::Unknown, None);
        let interval = settings.health_interval;
        match Client::new(&settings) {
            Ok(client) => {
                tokio::join!(drain::drain(&self.store, &client), self.health(&client, interval));
            }
            Err(why) => {
                tracing::error!(error = %Chain(&why), "the panel is told nothing");
                self.publish(PanelState::Unreachable, Some(Chain(&why).to_string()));
                std::future::pending().await
            }
        }
    }

    async fn health(&self, client: &Client, interval: Duration) {
        loop {
            match client.health().await {
                Ok(()) => {
                    let was_away = self.status.borrow().state != PanelState::Reachable;
                    if was_away {
                        tracing::info!("the panel is reachable");
                        self.hurry().await;
                    }
                    self.publish(PanelState::Reachable, None);
                }
                Err(why) => {
                    let why = Chain(&why).to_string();
                    if self.status.borrow().state != PanelState::Unreachable {
                        tracing::warn!(error = %why, "the panel is out of reach; updates wait");
                    }
                    self.publish(PanelState::Unreachable, Some(why));
                }
            }
            tokio::time::sleep(interval).await;
        }
    }

    async fn hurry(&self) {
        if let Err(why) = self.store.write("hurry the outbox", |tx| tx.hurry_outbox()).await {
            tracing::warn!(error = %Chain(&why), "updates for the panel keep their waiting times");
        }
    }

    fn publish(&self, state: PanelState, error: Option<String>) {
        self.status.send_if_modified(|status| {
            let since = if status.state == state { status.since } else { UnixSeconds::now() };
            let new = PanelStatus { state, since, error };
            let is_other = *status != new;
            *status = new;
            is_other
        });
    }
}

#[cfg(test)]
mod tests;
