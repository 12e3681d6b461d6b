//! Bringing a workload up: its files written, its Docker container there, attached to, started.
//!
//! Called as an effect by the owner task, and by an install for what both need. Every step may be
//! repeated: an attempt whose answer was lost is recognised by what it left in the engine, so that one
//! decision starts a workload once. A failure leaves nothing running and says its reason at the console;
//! an engine that is away is waited for and is none.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::task::AbortHandle;

use super::admission;
use super::effects::Ctx;
use super::follow::{AttachedWhen, Followed};
use super::record::is_of_run;
use super::steady_clock::SteadyClock;
use super::task::Report;
use super::workload::{self, ENTRYPOINT_FILE, Places};
use crate::domain::ids::RunId;
use crate::domain::lifecycle::Fact;
use crate::domain::observed::Observed;
use crate::domain::spec::Problem;
use crate::engine::{Attached, EngineError, EngineErrorKind};
use crate::network::firewall::FirewallError;
use crate::util::atomic_file;
use crate::util::backoff::Backoff;
use crate::util::chain::Chain;

const AGAIN: Backoff =
    Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(3) };
/// Longer than a follower takes that knows of its run's end.
const FOLLOWER_ENDS: Duration = Duration::from_secs(40);
/// What was told to break off does so at its next wait.
const ABORT_ENDS: Duration = Duration::from_secs(5);

/// A workload that the engine has started, attached to.
struct Launched {
    docker_id: String,
    attached: Attached,
    clock: SteadyClock,
    /// As the engine showed it then.
    seen: Option<Observed>,
}

impl Ctx {
    /// Brings a run up and follows it, when what follows the run `before` is done. An engine that is away
    /// is waited for.
    pub(super) async fn start(self, run: RunId, paced: bool, before: Option<AbortHandle>) {
        if paced {
            self.services.engine_back().await;
            let turn = self.services.start_pace.turn(self.services.settings().starts_per_second);
            tokio::select! {
                () = turn => {}
                // Somebody waits for it after all.
                () = self.shared.start_wanted.notified() => {}
            }
        }
        let _reading = self.reading_after(before).await;
        // A call that was to end the run before may still be on its way; it has its own deadline.
        drop(self.shared.ending.lock().await);
        let mut failures = 0;
        loop {
            self.services.engine_back().await;
            match self.launch(failures > 0).await {
                // After a failure it may have been up for a while already.
                Ok(launched) if failures > 0 => {
                    return self.follow_up(run, launched, AttachedWhen::Later).await;
                }
                Ok(launched) => {
                    return self.follow_up(run, launched, AttachedWhen::BeforeStart).await;
                }
                Err(LaunchError::Engine(error)) if error.is_away() => {
                    failures += 1;
                    tokio::time::sleep(AGAIN.delay(failures)).await;
                }
                Err(error) => {
                    tracing::warn!(container.id = %self.snapshot.id, run.id = %run, error = %Chain(&error), "a start failed");
                    return self.fact(Fact::StartFailed { run, reason: error.reason() }).await;
                }
            }
        }
    }

    /// Tells that a workload is up and follows it.
    async fn follow_up(&self, run: RunId, launched: Launched, when: AttachedWhen) {
        let Launched { docker_id, attached, clock, seen } = launched;
        self.services.firewall.moved(&self.snapshot.id);
        let now_ms = clock.now_ms();
        // Without the engine's word: it has just answered that it is started.
        let launched_at_ms = seen.as_ref().and_then(|seen| seen.started_at_ms).unwrap_or(now_ms);
        let up_for_ms = u64::try_from(now_ms.saturating_sub(launched_at_ms)).unwrap_or(0);
        let up_for = Duration::from_millis(up_for_ms);
        let up_for = (when == AttachedWhen::BeforeStart).then_some(up_for);
        let readiness = self.readiness();
        let ready_at_ms = readiness.is_none().then_some(launched_at_ms);
        self.fact(Fact::Started { run, launched_at_ms, ready_at_ms, up_for }).await;
        let followed = Followed { run, docker_id: &docker_id, clock, seen };
        self.follow(followed, attached, readiness, when).await;
    }

    /// Waits until nobody reads the output any more: the last lines of the run before may be on their way,
    /// although its end is known.
    async fn reading_after(&self, before: Option<AbortHandle>) -> Option<MutexGuard<'_, ()>> {
        let reading = &self.shared.reading;
        if let Ok(turn) = tokio::time::timeout(FOLLOWER_ENDS, reading.lock()).await {
            return Some(turn);
        }
        tracing::warn!(container.id = %self.snapshot.id, "a run that has ended is still followed; that is broken off");
        if let Some(before) = before {
            before.abort();
        }
        // Lines that come twice are better than a server that never starts.
        tokio::time::timeout(ABORT_ENDS, reading.lock()).await.ok()
    }

    /// Starts the workload, attached to. `again`: an attempt before has failed, and what became of it is
    /// not known.
    async fn launch(&self, again: bool) -> Result<Launched, LaunchError> {
        let services = &self.services;
        self.volume_usable().await?;
        let _slot = services.start_slots.acquire().await.map_err(|_| LaunchError::Stopping)?;
        services.isolated().await.map_err(LaunchError::NotIsolated)?;
        services.firewall.cover(&self.snapshot.id).await.map_err(LaunchError::NotFirewalled)?;
        self.check_mounts().await?;
        self.write_data(
            ENTRYPOINT_FILE,
            workload::entrypoint(&self.snapshot.spec, &self.snapshot.ports),
        )
        .await?;
        let (docker_id, attached) = self.attach_before_start(again).await?;
        // An attempt whose answer was lost may have started it, and it may have ended since.
        if again && let Some(seen) = self.was_started(&docker_id).await? {
            let (clock, seen) = (SteadyClock::begin(), Some(seen));
            return Ok(Launched { docker_id, attached, clock, seen });
        }
        match services.engine.start(&docker_id).await {
            Ok(()) => Ok(self.launched(docker_id, attached).await),
            Err(error) if error.kind() == EngineErrorKind::NotFound => {
                tracing::info!(container.id = %self.snapshot.id, error = %Chain(&error), "making the container anew");
                self.start_anew().await.map_err(LaunchError::Engine)
            }
            Err(error) => Err(LaunchError::Engine(error)),
        }
    }

    /// Attached before it starts, so that not a byte is missed. The attach also tells whether it is there
    /// still; looking first would cost a round trip.
    async fn attach_before_start(&self, again: bool) -> Result<(String, Attached), EngineError> {
        let known = self.snapshot.docker_id.as_ref();
        if let Some(docker_id) = known.filter(|_| !again && !self.snapshot.restart_needed)
            && let Some(attached) = self.attach(docker_id).await?
        {
            return Ok((docker_id.clone(), attached));
        }
        let docker_id = self.ensure_workload(again).await?;
        let attached = self.services.engine.attach(&docker_id, self.snapshot.spec.tty).await?;
        Ok((docker_id, attached))
    }

    /// The container as it is, if the engine has started it for this run.
    async fn was_started(&self, docker_id: &str) -> Result<Option<Observed>, EngineError> {
        let seen = self.services.engine.inspect(docker_id).await?;
        Ok(seen.filter(|seen| is_of_run(seen, self.begun_at_ms)))
    }

    /// What the engine has just started, with its word on when.
    async fn launched(&self, docker_id: String, attached: Attached) -> Launched {
        let clock = SteadyClock::begin();
        // That the engine goes away at this moment is for the follower to find out.
        let seen = self.services.engine.inspect(&docker_id).await.ok().flatten();
        Launched { docker_id, attached, clock, seen }
    }

    /// A container knows its network by an id. If the network was made anew, so must the container be.
    async fn start_anew(&self) -> Result<Launched, EngineError> {
        let engine = &self.services.engine;
        let docker_id = self.ensure_workload(false).await?;
        let attached = engine.attach(&docker_id, self.snapshot.spec.tty).await?;
        engine.start(&docker_id).await?;
        Ok(self.launched(docker_id, attached).await)
    }

    /// `Ok(None)`: the engine says that there is no such container.
    async fn attach(&self, docker_id: &str) -> Result<Option<Attached>, EngineError> {
        match self.services.engine.attach(docker_id, self.snapshot.spec.tty).await {
            Ok(attached) => Ok(Some(attached)),
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The Docker container for the workload, made as it was decided on. One that an attempt
    /// made whose end we did not see is taken.
    async fn ensure_workload(&self, again: bool) -> Result<String, EngineError> {
        let engine = &self.services.engine;
        match self.ours_named(&self.snapshot.id.docker_name()).await? {
            Some(found) if again => Ok(found.docker_id),
            Some(left) => {
                engine.remove(&left.docker_id).await?;
                self.create_workload().await
            }
            None => self.create_workload().await,
        }
    }

    pub(super) async fn create_workload(&self) -> Result<String, EngineError> {
        let volume = self.services.files.volume_path(self.snapshot.spec.volume_id);
        let places = Places { volume: &volume, data: &self.shared.data_folder() };
        let settings = self.services.settings();
        let request =
            workload::workload_request(&self.snapshot, &self.snapshot.ports, &places, &settings);
        let docker_id = self.create(request).await?;
        let of = Arc::clone(&self.snapshot);
        self.report(Report::Made { docker_id: docker_id.clone(), of }).await;
        Ok(docker_id)
    }

    /// Mounted folders are looked at before each start: whoever can write beside them may have put a link
    /// in their place since they were allowed.
    async fn check_mounts(&self) -> Result<(), LaunchError> {
        let (spec, settings) = (Arc::clone(&self.snapshot.spec), self.services.settings());
        if spec.mounts.is_empty() {
            return Ok(());
        }
        let check = move || admission::mount_problems(&spec, &settings.allowed_mounts);
        let problems = tokio::task::spawn_blocking(check).await;
        match problems.map_err(|_| LaunchError::Stopping)?.into_iter().next() {
            Some(problem) => Err(LaunchError::Mount(problem)),
            None => Ok(()),
        }
    }

    /// Writes one of lightd's own files for the container.
    pub(super) async fn write_data(
        &self,
        name: &'static str,
        text: String,
    ) -> Result<(), LaunchError> {
        let folder = self.shared.data_folder();
        let write = move || {
            std::fs::create_dir_all(&folder)?;
            let path = folder.join(name);
            if std::fs::read(&path).is_ok_and(|present| present == text.as_bytes()) {
                return Ok(());
            }
            atomic_file::write(&path, text.as_bytes(), 0o755)
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => written.map_err(|source| LaunchError::Write { name, source }),
            Err(_) => Err(LaunchError::Stopping),
        }
    }
}

/// Why a workload could not be brought up.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("containers cannot be isolated: {0}")]
    NotIsolated(String),
    #[error("its firewall rules cannot be set")]
    NotFirewalled(#[source] FirewallError),
    #[error("cannot write {name}")]
    Write { name: &'static str, source: std::io::Error },
    #[error("{} {}", .0.field, .0.message)]
    Mount(Problem),
    #[error("its volume cannot be used; lightd's log has the reason")]
    Volume,
    #[error("lightd is stopping")]
    Stopping,
}

impl LaunchError {
    /// What the people at the console are told.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Engine(error) => error.reason(),
            Self::Write { source, .. } => format!("{self}: {source}"),
            Self::NotFirewalled(source) => format!("{self}: {}", Chain(source)),
            Self::NotIsolated(_) | Self::Mount(_) | Self::Volume | Self::Stopping => {
                self.to_string()
            }
        }
    }
}
