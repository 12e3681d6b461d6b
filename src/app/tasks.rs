//! What runs as long as lightd does and belongs to no part alone: a changed configuration is handed on,
//! isolation is kept up.
//!
//! The composition root spawns and ends them. None of them ends lightd: a failure is logged, and what
//! was true before stays so.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::parts;
use crate::access::{Access, AccessSettings};
use crate::config::Config;
use crate::config::live::Live;
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::lifecycle::Phase;
use crate::engine::Health;
use crate::files::Files;
use crate::network::isolation::{Isolation, IsolationStatus};
use crate::network::pool::{PortPolicy, PortPool};
use crate::panel::PanelSettings;
use crate::store::Store;
use crate::supervisor::{Metering, Registry, Settings};
use crate::telemetry::Telemetry;
use crate::util::chain::Chain;
use crate::volumes::VolumeSettings;

/// The rules and the bridge are set again so often: a reload of the host's firewall takes them away.
const ISOLATION_EVERY: Duration = Duration::from_secs(300);
const ISOLATION_AGAIN: Duration = Duration::from_secs(10);
/// How often resumable uploads, tokens, consoles and the audit log are looked through for what has expired, at
/// most.
pub(super) const EXPIRE_EVERY: Duration = Duration::from_secs(600);

/// Reads the configuration again whenever it is asked to.
pub(super) async fn reload_on(
    asked: Arc<Notify>,
    live: Arc<Live>,
    store: Store,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(asked.notified()).await.is_some() {
        let live = Arc::clone(&live);
        match tokio::task::spawn_blocking(move || live.reload()).await {
            Ok(Ok(changes)) => {
                tracing::info!(?changes, "the configuration was read again");
                if !changes.applied.is_empty() {
                    let act = Act::new(Actor::lightd(), Action::ConfigReload);
                    let act = act.with("reason", "SIGHUP").listing("applied", &changes.applied);
                    store.record_done(act).await;
                }
            }
            Ok(Err(error)) => {
                tracing::error!(error = %Chain(&error), "the configuration stays as it was");
            }
            Err(error) => tracing::error!(%error, "reading the configuration panicked"),
        }
    }
}

/// What parts are told when the configuration changes.
#[derive(Clone, Debug)]
pub(super) struct Levers {
    pub(super) settings: watch::Sender<Arc<Settings>>,
    pub(super) access: watch::Sender<AccessSettings>,
    pub(super) panel: watch::Sender<Option<PanelSettings>>,
    pub(super) volumes: watch::Sender<VolumeSettings>,
    pub(super) ports: watch::Sender<PortPolicy>,
}

impl Levers {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            settings: watch::Sender::new(Arc::new(parts::settings(config))),
            access: watch::Sender::new(parts::access(config)),
            panel: watch::Sender::new(parts::panel(config)),
            volumes: watch::Sender::new(parts::volumes(config)),
            ports: watch::Sender::new(parts::port_policy(config)),
        }
    }

    /// Hands each part its piece of a changed configuration.
    pub(super) async fn follow(
        self,
        mut changed: watch::Receiver<Arc<Config>>,
        ports: PortPool,
        telemetry: Telemetry,
        stop: CancellationToken,
    ) {
        while let Some(Ok(())) = stop.run_until_cancelled(changed.changed()).await {
            let config = changed.borrow_and_update().clone();
            self.settings.send_replace(Arc::new(parts::settings(&config)));
            self.access.send_replace(parts::access(&config));
            self.volumes.send_replace(parts::volumes(&config));
            self.ports.send_replace(parts::port_policy(&config));
            let news = parts::panel(&config);
            self.panel.send_if_modified(|panel| std::mem::replace(panel, news.clone()) != news);
            telemetry.set_level(config.log.level);
            if let Err(error) = ports.seed(parts::port_seeds(&config)).await {
                tracing::error!(error = %Chain(&error), "the port pool of the configuration was not taken over");
            }
        }
    }
}

/// Sets the rules and the bridge again when the engine is back, when the configuration has changed, when
/// somebody else has changed the rules, and every few minutes. Apart from [`Levers::follow`]: it takes as long as the engine does, and a changed
/// token must not wait for that.
pub(super) async fn keep_isolation(
    registry: Arc<Registry>,
    mut changed: watch::Receiver<Arc<Config>>,
    mut health: watch::Receiver<Health>,
    mut disturbances: watch::Receiver<u64>,
    stop: CancellationToken,
) {
    let isolation = &registry.services().isolation;
    let status = isolation.status();
    loop {
        let failed = matches!(*status.borrow(), IsolationStatus::Failed { .. });
        let pause = if failed { ISOLATION_AGAIN } else { ISOLATION_EVERY };
        let due = async {
            let pause = tokio::time::sleep(pause);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => return,
                    _ = health.changed() => return,
                    _ = changed.changed() => return,
                    Ok(()) = disturbances.changed() => {
                        if isolation.is_disturbed().await {
                            tracing::warn!("somebody has changed the rules of the containers' bridge; they are set anew");
                            return;
                        }
                    }
                }
            }
        };
        if stop.run_until_cancelled(due).await.is_none() {
            return;
        }
        isolation.set_exceptions(parts::exceptions(&changed.borrow_and_update()));
        if health.borrow_and_update().is_reachable() {
            ensure(isolation).await;
        }
    }
}

async fn ensure(isolation: &Isolation) {
    if let Err(error) = isolation.ensure().await {
        tracing::error!(error = %Chain(&error), "the containers' isolation does not stand");
    }
}

/// Gives up resumable uploads that nobody goes on with.
pub(super) async fn expire_uploads(files: Files, live: Arc<Live>, stop: CancellationToken) {
    loop {
        let expire_after = live.current().uploads.expire_after;
        if let Err(error) = files.expire_resumables(expire_after).await {
            tracing::warn!(error = %Chain(&error), "expired uploads stay behind");
        }
        let pause = (expire_after / 4).clamp(Duration::from_secs(1), EXPIRE_EVERY);
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Forgets issued tokens that have expired.
pub(super) async fn expire_tokens(access: Access, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(EXPIRE_EVERY)).await.is_some() {
        match access.sweep().await {
            Ok(0) => {}
            Ok(tokens) => tracing::debug!(tokens, "expired tokens are forgotten"),
            Err(error) => tracing::warn!(error = %Chain(&error), "expired tokens stay behind"),
        }
    }
}

/// Sees to it that the store has its reserve again once a full disk is none any more.
pub(super) async fn keep_reserve(store: Store, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(EXPIRE_EVERY)).await.is_some() {
        let store = store.clone();
        match tokio::task::spawn_blocking(move || store.take_reserve()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "no room is kept for what has to be stored on a full disk")
            }
            Err(error) => tracing::error!(%error, "taking room on the disk panicked"),
        }
    }
}

/// Takes old output off the disk, where there is an age for that.
pub(super) async fn expire_consoles(
    registry: Arc<Registry>,
    live: Arc<Live>,
    stop: CancellationToken,
) {
    loop {
        if let Some(age) = live.current().console.journal_max_age {
            for container in registry.list() {
                let snapshot = container.snapshot();
                let rests = matches!(
                    snapshot.phase,
                    Phase::Offline | Phase::Failed { .. } | Phase::Suspended { .. }
                );
                container.console().expire(age, !rests).await;
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(EXPIRE_EVERY)).await.is_none() {
            return;
        }
    }
}

/// Forgets usage that is older than it is to be known.
pub(super) async fn expire_usage(
    metering: Arc<Metering>,
    live: Arc<Live>,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(tokio::time::sleep(EXPIRE_EVERY)).await.is_some() {
        let billing = &live.current().billing;
        metering.expire(billing.keep_hourly, billing.keep_daily).await;
    }
}
