//! Whether the engine answers.
//!
//! [`Engine::watch_health`] writes it, and [`Engine::note_incarnation`] where it learns more; everybody else
//! reads the watch. A call that fails because the engine is away wakes the loop to look at once, so an
//! outage is known within one failed call and not only at the next turn.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::error::EngineError;
use super::op;
use crate::domain::units::UnixSeconds;
use crate::util::backoff::Backoff;

/// The last look at the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Reachable {
        version: String,
        api_version: String,
        since: UnixSeconds,
        /// Another text once the engine was started again; `None` where that cannot be told.
        incarnation: Option<String>,
    },
    Unreachable {
        since: UnixSeconds,
        reason: String,
    },
}

impl Health {
    pub(crate) fn is_reachable(&self) -> bool {
        matches!(self, Self::Reachable { .. })
    }

    pub(crate) fn incarnation(&self) -> Option<&str> {
        match self {
            Self::Reachable { incarnation, .. } => incarnation.as_deref(),
            Self::Unreachable { .. } => None,
        }
    }

    /// Before the first look.
    pub(super) fn unknown() -> Self {
        Self::Unreachable { since: UnixSeconds::now(), reason: NOT_ASKED.to_owned() }
    }
}

const PAUSE_WHILE_GOOD: Duration = Duration::from_secs(5);
const NOT_ASKED: &str = "the engine was not asked yet";
const PAUSE_WHILE_BAD: Backoff =
    Backoff { first: Duration::from_millis(600), longest: Duration::from_secs(1) };

impl Engine {
    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.subscribe()
    }

    /// Keeps [`Engine::health`] true until cancelled.
    pub(crate) async fn watch_health(&self, cancel: CancellationToken) {
        let mut failures = 0;
        loop {
            let look = tokio::select! {
                () = cancel.cancelled() => return,
                look = self.look() => look,
            };
            failures = if look { 0 } else { failures + 1 };
            let pause = if look { PAUSE_WHILE_GOOD } else { PAUSE_WHILE_BAD.delay(failures) };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // While it is bad the pauses are short anyway, and every failing call would wake us.
                () = self.inner.look_again.notified(), if look => {}
            }
        }
    }

    /// One look; true if the engine answered.
    async fn look(&self) -> bool {
        let known = self.inner.health.borrow().is_reachable();
        // `/version` makes the engine run helper programs, so only the first look after a failure asks
        // for it.
        let seen =
            if known { self.ping().await.map(|()| None) } else { self.version().await.map(Some) };
        let is_good = seen.is_ok();
        match seen {
            Ok(None) => {}
            Ok(Some(reachable)) => {
                tracing::info!("the container engine answers");
                self.inner.health.send_replace(reachable);
            }
            Err(error) => self.note_failure(&error),
        }
        is_good
    }

    fn note_failure(&self, error: &EngineError) {
        let chain = crate::util::chain::Chain(error).to_string();
        self.inner.health.send_if_modified(|health| {
            if let Health::Unreachable { reason, .. } = health {
                // The first look of all is told of too: a daemon that starts without its engine says so.
                if *reason == NOT_ASKED {
                    tracing::warn!(error = %chain, "the container engine does not answer");
                }
                let is_news = *reason != chain;
                *reason = chain;
                return is_news;
            }
            tracing::warn!(error = %chain, "the container engine does not answer");
            *health = Health::Unreachable { since: UnixSeconds::now(), reason: chain };
            true
        });
    }

    async fn ping(&self) -> Result<(), EngineError> {
        self.call(op::PING, "the container engine", |docker| async move {
            docker.ping().await.map(drop)
        })
        .await
    }

    async fn version(&self) -> Result<Health, EngineError> {
        let found =
            self.call(op::VERSION, "the container engine", |docker| async move {
                docker.version().await
            })
            .await?;
        Ok(Health::Reachable {
            version: found.version.unwrap_or_default(),
            api_version: found.api_version.unwrap_or_default(),
            since: UnixSeconds::now(),
            incarnation: self.incarnation().await,
        })
    }
}
