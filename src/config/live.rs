//! The configuration of a running daemon.
//!
//! One value, swapped whole: by [`Live::reload`], and, for the node's token alone, by
//! [`Live::watch_file`], which looks at the file twice a second, so that `--token reset` counts within
//! a second and a half-edited file never does more than that. An invalid file changes nothing.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::authorization::PreviousToken;
use super::reload::{Changes, compare, kept};
use super::source::{Source, read_text};
use super::{Config, ConfigError};
use crate::domain::access::is_token;
use crate::util::chain::Chain;
use crate::util::file_signature::FileSignature;
use crate::util::secret::Secret;

const POLL_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Live {
    source: Source,
    started_with: Arc<Config>,
    current: watch::Sender<Arc<Config>>,
    /// Two reloads at once would compare against the same past.
    reloading: Mutex<()>,
}

impl Live {
    pub(crate) fn new(source: Source, config: Config) -> Self {
        let config = Arc::new(config);
        let (current, _) = watch::channel(Arc::clone(&config));
        Self { source, started_with: config, current, reloading: Mutex::new(()) }
    }

    pub(crate) fn current(&self) -> Arc<Config> {
        self.current.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Config>> {
        self.current.subscribe()
    }

    /// Reads file, environment and command line again, and swaps the result in, but for what waits for a
    /// restart: nobody who looks finds any of that. Blocking, briefly.
    pub(crate) fn reload(&self) -> Result<Changes, ConfigError> {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let (at_start, until_then) = self.source.load_beside(&kept(&self.started_with))?;
        let changes = compare(&self.started_with, &self.current(), &at_start);
        self.current.send_replace(Arc::new(until_then));
        Ok(changes)
    }

    /// Takes over the node's token, and the one before it, whenever the file has others, until cancelled.
    pub(crate) async fn watch_file(&self, cancel: CancellationToken) {
        let mut seen = FileSignature::of(self.source.path());
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The file may have changed between the start's reading and the first signature.
        self.take_over_tokens();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            let now = FileSignature::of(self.source.path());
            if now != seen {
                seen = now;
                self.take_over_tokens();
            }
        }
    }

    fn take_over_tokens(&self) {
        if self.source.env_override("authorization.token").is_some() {
            return;
        }
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, previous) = match tokens_in(self.source.path()) {
            Ok(Some(tokens)) => tokens,
            Ok(None) => {
                tracing::warn!("the configuration file has no well-formed token; keeping the old");
                return;
            }
            Err(why) => {
                tracing::warn!(error = %Chain(&why), "the token in the configuration stays as it is");
                return;
            }
        };
        let current = self.current();
        let now = &current.authorization;
        if now.token != token || now.previous != previous {
            let grace_until = previous.as_ref().map(|previous| previous.until.to_string());
            self.current.send_replace(Arc::new(current.with_tokens(token, previous)));
            tracing::info!(grace_until, "the node's token has changed");
        }
    }
}

/// The node's token as it stands in the file, if it is one, and the one before it.
fn tokens_in(path: &Path) -> Result<Option<(Secret, Option<PreviousToken>)>, ConfigError> {
    let file: Value = serde_json::from_str(&read_text(path)?)
        .map_err(|source| ConfigError::NotJson { path: path.to_owned(), source })?;
    let text = |name: &str| file.pointer(&format!("/authorization/{name}")).and_then(Value::as_str);
    let token = |name| text(name).filter(|token| is_token(token)).map(Secret::new);
    let previous = || {
        let until = text("previous_token_until")?.parse().ok()?;
        Some(PreviousToken { token: token("previous_token")?, until })
    };
    Ok(token("token").map(|token| (token, previous())))
}
