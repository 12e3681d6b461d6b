//! What owner tasks and their effects work with: the adapters, the live settings, the node's own
//! limits. Built once by the composition root.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pace::StartPace;
use crate::cgroup::KernelLog;
use crate::console::ConsoleOptions;
use crate::domain::event::{Signal, SignalKind};
use crate::domain::ids::ContainerId;
use crate::domain::spec::NodeCapacity;
use crate::engine::{Engine, EngineError, Health, LogCap};
use crate::files::{Files, Owner};
use crate::network::firewall::Firewall;
use crate::network::isolation::{Isolation, IsolationStatus};
use crate::network::pool::PortPolicy;
use crate::store::Store;
use crate::store::port_terms::PortTerms;
use crate::util::backoff::Backoff;
use crate::util::chain::Chain;
use crate::util::secret::Sealer;

/// What may change while lightd runs. Replaced whole.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Whom workloads run as and who owns the files in volumes.
    pub(crate) user: Owner,
    pub(crate) network: String,
    pub(crate) ports: PortPolicy,
    pub(crate) time_zone: String,
    pub(crate) default_pids: u64,
    pub(crate) log: LogCap,
    pub(crate) allowed_mounts: Vec<PathBuf>,
    pub(crate) install_timeout: Duration,
    /// Those of lightd's own accord.
    pub(crate) starts_per_second: u32,
    /// Of containers that do not say.
    pub(crate) start_timeout: Option<Duration>,
    /// How many are kept of each container.
    pub(crate) post_mortems: usize,
    /// What an install script may add to the root file system.
    pub(crate) install_image_max_bytes: u64,
    /// Whether there is a panel to report to, and whether it wants power states too.
    pub(crate) panel: bool,
    pub(crate) panel_power_events: bool,
    /// Whether the audit log holds what was typed and run, and not only that something was.
    pub(crate) record_commands: bool,
}

impl Settings {
    /// `uid:gid`, as the engine takes it.
    pub(super) fn user_text(&self) -> String {
        format!("{}:{}", self.user.uid, self.user.gid)
    }
}

/// The handles and the node's own limits; one for the whole daemon.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    pub(crate) files: Files,
    pub(crate) isolation: Isolation,
    pub(crate) firewall: Firewall,
    pub(crate) sealer: Sealer,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) signals: broadcast::Sender<Signal>,
    pub(crate) console: ConsoleOptions,
    pub(crate) capacity: NodeCapacity,
    /// One folder per container: its own files, its journal, its install log.
    pub(crate) containers_path: PathBuf,
    /// How many containers are brought up at the same time, so that a hundred of them after a reboot
    /// do not end the machine again.
    pub(crate) start_slots: Semaphore,
    pub(crate) start_pace: StartPace,
    /// How many of the engine's logs are read at the same time: each may be large, and held in memory.
    pub(crate) log_turns: Semaphore,
    pub(crate) began: Instant,
    pub(crate) kernel_log: KernelLog,
    /// Ends supervision; workloads run on.
    pub(crate) stop: CancellationToken,
}

const RETRY: Backoff =
    Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(5) };

impl Services {
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// The terms on which containers get and give back ports now.
    pub(crate) fn port_terms(&self) -> PortTerms {
        self.settings.borrow().ports.terms()
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// Tells whoever watches; nobody watching is fine.
    pub(crate) fn signal(&self, container: &ContainerId, kind: SignalKind) {
        drop(self.signals.send(Signal { container: container.clone(), kind }));
    }

    /// Waits until the engine answers.
    pub(crate) async fn engine_back(&self) {
        let mut health = self.engine.health();
        // The sender lives in the engine that we hold: it cannot be gone.
        if health.wait_for(Health::is_reachable).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until it is known whether containers can be isolated; the reason if they cannot. What has
    /// failed before is tried again: who starts a container may just have mended it.
    pub(crate) async fn isolated(&self) -> Result<(), String> {
        let mut status = self.isolation.status();
        match status.wait_for(|status| *status != IsolationStatus::NotYet).await.as_deref() {
            Ok(IsolationStatus::Failed { .. }) => {}
            Ok(_) => return Ok(()),
            Err(_) => return Err("lightd is stopping".to_owned()),
        }
        let mut failures = 0;
        loop {
            self.engine_back().await;
            match self.isolation.ensure().await {
                Ok(()) => return Ok(()),
                // Says nothing of the isolation.
                Err(error) if error.is_away() => {
                    failures += 1;
                    tokio::time::sleep(RETRY.delay(failures)).await;
                }
                Err(error) => return Err(Chain(&error).to_string()),
            }
        }
    }

    /// Makes an engine call again until the engine could be asked. For calls that may be repeated.
    pub(crate) async fn insist<T, F, Answer>(&self, call: F) -> Result<T, EngineError>
    where
        F: Fn() -> Answer,
        Answer: Future<Output = Result<T, EngineError>>,
    {
        let mut failures = 0;
        loop {
            self.engine_back().await;
            match call().await {
                Err(error) if error.is_away() => {
                    failures += 1;
                    tokio::time::sleep(RETRY.delay(failures)).await;
                }
                answer => return answer,
            }
        }
    }

    /// As [`Services::insist`], for what has to happen in the end: any failure is logged and tried
    /// again.
    pub(crate) async fn until_done<T, F, Answer>(&self, call: F) -> T
    where
        F: Fn() -> Answer,
        Answer: Future<Output = Result<T, EngineError>>,
    {
        let mut failures = 0;
        loop {
            match self.insist(&call).await {
                Ok(done) => return done,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = %Chain(&error), failures, "trying again");
                    tokio::time::sleep(RETRY.delay(failures + 2)).await;
                }
            }
        }
    }
}
