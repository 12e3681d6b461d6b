//! The remote panel: told what became of its servers, until it has heard it.
//!
//! Updates are rows of the outbox, written with the change they report. [`Panel::run`] drains them: of
//! each server in order, of several servers side by side, each until the panel accepts it. Beside that
//! it looks at the panel's health, and when the panel comes back what waits is sent at once.
//! Nothing in here can hold up a container: the panel may be away for days.
//!
//! ```text
//!   store.outbox --(grew | due)--> drain --POST /update--> 2xx: delete   4xx: park   else: later
//!                                  health --GET /health--> watch<PanelStatus>; back: due now, but for a Retry-After
//! ```
//!
//! Delivery is at least once: a crash between the panel's answer and the deletion of the row sends it
//! again, with the same `X-Lightd-Delivery`. Changed settings take effect once what is under way has ended
//! under the old ones. Without a panel nothing runs and no HTTP client exists.

#[cfg(feature = "benching")]
pub(crate) mod benching;
mod client;
mod drain;
#[cfg(test)]
mod fleet;
mod health;
mod lane;
mod pace;
mod signature;

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

/// How long requests that are under way are waited for when lightd stops. What does not come to its end is
/// sent again.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum PanelError {
    #[error("cannot make an HTTP client for the panel")]
    Client(#[source] reqwest::Error),
    #[error("the panel does not answer")]
    Transport(#[source] reqwest::Error),
    #[error("the panel's answer breaks off")]
    BrokeOff(#[source] reqwest::Error),
    #[error("the panel answers {0}")]
    Status(u16),
    #[error(
        "the panel answers {0}; redirects are not followed, remote.url must be the final address"
    )]
    Redirect(u16),
    #[error("the panel answers with a web page")]
    WebPage,
    #[error("the panel says of itself that its status is {0}")]
    Unwell(u64),
}

/// How to reach the panel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PanelSettings {
    pub(crate) url: Url,
    pub(crate) token: Secret,
    /// Empty: updates are not signed.
    pub(crate) signing_secret: Secret,
    pub(crate) health_interval: Duration,
}

/// Whether the panel answers, and since when it is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PanelStatus {
    pub(crate) state: PanelState,
    pub(crate) since: UnixSeconds,
    /// Why it is out of reach.
    pub(crate) error: Option<String>,
    /// When it was last asked for its health.
    pub(crate) checked_at: Option<UnixSeconds>,
    /// When it last took an update, since lightd runs.
    pub(crate) delivered_at: Option<UnixSeconds>,
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
    is_running: watch::Sender<bool>,
    chance: pace::Chance,
}

impl Panel {
    pub(crate) fn new(store: Store, settings: watch::Receiver<Option<PanelSettings>>) -> Self {
        let (status, _) = watch::channel(PanelStatus {
            state: PanelState::Disabled,
            since: UnixSeconds::now(),
            error: None,
            checked_at: None,
            delivered_at: None,
        });
        let is_running = watch::Sender::new(false);
        Self { store, settings, status, is_running, chance: rand::random }
    }

    /// Delivers updates and watches the panel's health until cancelled; takes new settings over as
    /// they come.
    pub(crate) async fn run(&self, cancel: CancellationToken) {
        self.is_running.send_replace(true);
        let mut settings = self.settings.clone();
        let mut told = None;
        while !cancel.is_cancelled() {
            let present = settings.borrow_and_update().clone();
            if let Some(PanelSettings { url, .. }) = &present {
                let before: Option<Url> = told.replace(url.clone());
                if before.is_some_and(|before| before != *url) {
                    self.forget_pause().await;
                }
            }
            let until = cancel.child_token();
            let serve = self.serve(present, &until);
            tokio::pin!(serve);
            let changed = tokio::select! {
                () = cancel.cancelled() => Ok(()),
                changed = settings.changed() => changed,
                () = &mut serve => break,
            };
            // Nobody can change them any more: lightd is stopping.
            if changed.is_err() {
                break;
            }
            until.cancel();
            let impatience = async {
                cancel.cancelled().await;
                tokio::time::sleep(ENDS_WITHIN).await;
            };
            tokio::select! {
                () = &mut serve => {}
                () = impatience => {}
            }
        }
        self.is_running.send_replace(false);
    }

    /// Waits until [`Panel::run`] has ended, which it does soon after it was cancelled.
    pub(crate) async fn ended(&self) {
        let mut running = self.is_running.subscribe();
        // The sender is ours: it cannot be gone.
        running.wait_for(|is_running| !is_running).await.ok();
    }

    pub(crate) async fn report(&self) -> Result<PanelReport, StoreError> {
        let outbox = self.store.read("look at the outbox", |rx| rx.outbox_depth()).await?;
        Ok(PanelReport { status: self.status.borrow().clone(), outbox })
    }

    /// What one panel has asked for says nothing of another.
    async fn forget_pause(&self) {
        if let Err(why) = self.store.write("let updates go", |tx| tx.let_all_go()).await {
            tracing::warn!(error = %Chain(&why), "the new panel is told when the one before wanted to be");
        }
    }

    fn publish(&self, state: PanelState, error: Option<String>) {
        health::publish(&self.status, state, UnixSeconds::now(), error);
    }

    /// Delivers updates and watches the panel's health.
    async fn speak(&self, client: &Client, interval: Duration, until: &CancellationToken) {
        let Self { store, status, chance, .. } = self;
        tokio::join!(
            drain::drain(store, client.clone(), status, *chance, until),
            until.run_until_cancelled(health::watch(store, client, interval, status, *chance)),
        );
    }

    /// Runs with one set of settings.
    async fn serve(&self, settings: Option<PanelSettings>, until: &CancellationToken) {
        let Some(settings) = settings else {
            self.publish(PanelState::Disabled, None);
            return until.cancelled().await;
        };
        self.publish(PanelState::Unknown, None);
        match Client::new(&settings, self.store.node_id()) {
            Ok(client) => self.speak(&client, settings.health_interval, until).await,
            Err(why) => {
                tracing::error!(error = %Chain(&why), "the panel is told nothing");
                self.publish(PanelState::Unreachable, Some(Chain(&why).to_string()));
                until.cancelled().await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
