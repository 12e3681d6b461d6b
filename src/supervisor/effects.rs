//! Effects on the engine, each a child task of the owner; what comes of one goes back as a report.
//!
//! Each may be repeated: after a crash of lightd the stored phase asks for it again. One that has to
//! happen in the end (a kill, a removal) waits for an engine that is away and tries until it is done;
//! the owner ends it by aborting the task.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::launch::LaunchError;
use super::limits::LimitsWanted;
use super::record::is_of_run;
use super::services::Services;
use super::task::Report;
use super::workload::{aside_name, install_name, own_image_repository};
use super::{Shared, Snapshot};
use crate::domain::event::SignalKind;
use crate::domain::ids::RunId;
use crate::domain::lifecycle::Fact;
use crate::domain::observed::ObservedStatus;
use crate::domain::spec::{Limits, StopHow};
use crate::engine::{CreateRequest, EngineError, EngineErrorKind, Ours, labels};
use crate::util::chain::Chain;

/// A container that the engine is about to make shows in its lists only when it is there.
const CREATE_AGAIN: Duration = Duration::from_millis(250);
const CREATE_TRIES: u32 = 40;
/// How long the engine may take over a pause whose asker is gone.
const LATE_PAUSE: Duration = Duration::from_secs(2);
const INPUT_AGAIN: Duration = Duration::from_millis(50);
/// How long an exit may take to show after the engine has taken a kill.
const EXIT_AFTER_KILL: Duration = Duration::from_secs(10);

/// What an effect works with: the container as it was when the effect was decided.
#[derive(Clone, Debug)]
pub(super) struct Ctx {
    pub(super) services: Arc<Services>,
    pub(super) shared: Arc<Shared>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) sealed_auth: Option<Vec<u8>>,
    /// When the latest start was decided.
    pub(super) begun_at_ms: Option<i64>,
    pub(super) reports: mpsc::Sender<Box<Report>>,
}

impl Ctx {
    /// Tells the owner. It may have gone; then nobody needs to know.
    pub(super) async fn report(&self, report: Report) {
        drop(self.reports.send(Box::new(report)).await);
    }

    pub(super) async fn fact(&self, fact: Fact) {
        self.report(Report::Fact(fact)).await;
    }

    /// A sentence for the people at the console.
    pub(super) fn say(&self, text: impl Into<String>) {
        self.services.signal(&self.snapshot.id, SignalKind::DaemonMessage(text.into()));
    }

    /// Waits until nobody works on the volume as a whole; a container must not get at it before.
    pub(super) async fn volume_usable(&self) -> Result<(), LaunchError> {
        if self.services.files.usable(self.snapshot.spec.volume_id).await {
            Ok(())
        } else {
            Err(LaunchError::Volume)
        }
    }

    /// The engine's containers that belong to this one.
    pub(super) async fn ours(&self) -> Result<Vec<Ours>, EngineError> {
        let ours = self.services.engine.list_ours().await?;
        let id = self.snapshot.id.as_str();
        Ok(ours
            .into_iter()
            .filter(|found| found.labels.get(labels::CONTAINER).is_some_and(|of| of == id))
            .collect())
    }

    /// The engine's container of ours with this name.
    pub(super) async fn ours_named(&self, name: &str) -> Result<Option<Ours>, EngineError> {
        Ok(self.ours().await?.into_iter().find(|found| found.name == name))
    }

    /// Makes a Docker container. A name that is taken is taken by an attempt of ours that was cut off, by
    /// a crash or an outage, and may still be on its way: that one is removed.
    pub(super) async fn create(&self, request: CreateRequest) -> Result<String, EngineError> {
        let engine = &self.services.engine;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.shared.create(engine.clone(), request.clone()).await {
                Ok(created) => {
                    for warning in &created.warnings {
                        self.say(format!("the engine warns: {warning}"));
                    }
                    return Ok(created.docker_id);
                }
                Err(error) if error.kind() == EngineErrorKind::Conflict => {
                    match self.ours_named(&request.name).await? {
                        Some(left) => engine.remove(&left.docker_id).await?,
                        None if tries < CREATE_TRIES => tokio::time::sleep(CREATE_AGAIN).await,
                        None => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn stop(self, run: RunId, unpause: bool) {
        let Some(docker_id) = self.snapshot.docker_id.clone() else { return };
        let engine = &self.services.engine;
        if unpause && let Err(error) = self.services.insist(|| engine.unpause(&docker_id)).await {
            tracing::debug!(run.id = %run, error = %Chain(&error), "cannot unpause before the stop");
        }
        let asked = match &self.snapshot.spec.stop.how {
            StopHow::Signal(signal) => self
                .services
                .insist(|| self.shared.signal(engine, run, &docker_id, signal))
                .await
                .map(drop)
                .map_err(|error| error.reason()),
            StopHow::Command(line) => self.stop_by_command(run, line).await,
        };
        // What did not reach it is made up for when the grace is over.
        if let Err(reason) = asked {
            self.say(format!("the workload could not be asked to stop: {reason}"));
        }
    }

    /// Types the stop command. After a restart of lightd or an outage the way to the workload's input may
    /// not stand yet; it is waited for as long as the workload is not killed anyway.
    async fn stop_by_command(&self, run: RunId, line: &str) -> Result<(), String> {
        self.services.engine_back().await;
        let end = Instant::now() + self.snapshot.spec.stop.grace;
        loop {
            match self.shared.attached_run() {
                Some(of) if of == run => {
                    let written = self.shared.write_input(line.to_owned(), false).await;
                    return written.map_err(|refusal| refusal.to_string());
                }
                // It has ended, and another one runs.
                Some(_) => return Ok(()),
                None if Instant::now() >= end => return Ok(()),
                None => tokio::time::sleep(INPUT_AGAIN).await,
            }
        }
    }

    pub(super) async fn kill(self, run: RunId) {
        let Some(docker_id) = self.snapshot.docker_id.clone() else {
            return self.never_began(run).await;
        };
        let engine = &self.services.engine;
        loop {
            let seen = self.services.until_done(|| engine.inspect(&docker_id)).await;
            let of_run = seen.as_ref().is_some_and(|seen| is_of_run(seen, self.begun_at_ms));
            match seen.map(|seen| seen.status) {
                None => return self.fact(Fact::Vanished { run }).await,
                Some(ObservedStatus::Created) => return self.never_began(run).await,
                // The engine shows the end of the run before this one.
                Some(ObservedStatus::Exited(_)) if !of_run => return self.never_began(run).await,
                Some(ObservedStatus::Exited(exit)) => {
                    // Whoever follows the run tells of its end after its last line; this is for when
                    // nobody does.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    return self.fact(Fact::Exited { run, exit }).await;
                }
                Some(ObservedStatus::Running | ObservedStatus::Paused) => {}
            }
            if !self
                .services
                .until_done(|| self.shared.signal(engine, run, &docker_id, "SIGKILL"))
                .await
            {
                return;
            }
            let wait = tokio::time::timeout(EXIT_AFTER_KILL, engine.wait(&docker_id));
            // Either way the next look tells.
            drop(wait.await);
        }
    }

    async fn never_began(&self, run: RunId) {
        let reason = "it was ended before it began".to_owned();
        self.fact(Fact::StartFailed { run, reason }).await;
    }

    pub(super) async fn pause(self, run: RunId) {
        let Some(docker_id) = self.snapshot.docker_id.clone() else { return };
        let Err(error) = self.services.engine.pause(&docker_id).await else {
            return self.fact(Fact::Paused { run }).await;
        };
        if self.came_to(&error, &docker_id, ObservedStatus::Paused).await {
            return self.fact(Fact::Paused { run }).await;
        }
        let reason = format!("it cannot be paused: {}", error.reason());
        self.fact(Fact::PauseRefused { run, reason }).await;
    }

    pub(super) async fn unpause(self, run: RunId) {
        let Some(docker_id) = self.snapshot.docker_id.clone() else { return };
        let Err(error) = self.services.engine.unpause(&docker_id).await else {
            return self.fact(Fact::Resumed { run }).await;
        };
        if self.came_to(&error, &docker_id, ObservedStatus::Running).await {
            return self.fact(Fact::Resumed { run }).await;
        }
        let reason = format!("it cannot be resumed: {}", error.reason());
        self.fact(Fact::PauseRefused { run, reason }).await;
    }

    /// Whether the workload is in this state although the engine has not said so: it may have gone away over
    /// its answer, and does what it was asked all the same.
    async fn came_to(&self, error: &EngineError, docker_id: &str, status: ObservedStatus) -> bool {
        if !error.is_away() {
            return false;
        }
        let seen = self.services.until_done(|| self.services.engine.inspect(docker_id)).await;
        seen.is_some_and(|seen| seen.status == status)
    }

    /// Pauses the workload for a copy of its files. A pause whose outcome is not known is reported as
    /// none; the thaw that follows makes sure.
    pub(super) async fn freeze(self, run: RunId) {
        let paused = match &self.snapshot.docker_id {
            Some(docker_id) => self.services.engine.pause(docker_id).await,
            None => return self.fact(Fact::FreezeEnded { run, frozen: false }).await,
        };
        if let Err(error) = &paused {
            self.say(format!("it cannot be paused for a snapshot: {}", error.reason()));
        }
        self.fact(Fact::FreezeEnded { run, frozen: paused.is_ok() }).await;
    }

    /// Lets a workload go on that stood still, however long that takes to reach the engine.
    pub(super) async fn thaw(self, run: RunId) {
        let Some(docker_id) = self.snapshot.docker_id.clone() else { return };
        let engine = &self.services.engine;
        let unpause = || async {
            let unpaused = engine.unpause(&docker_id).await;
            match engine.inspect(&docker_id).await?.map(|seen| seen.status) {
                Some(ObservedStatus::Paused) => unpaused.map(|()| true),
                _ => Ok(unpaused.is_ok()),
            }
        };
        if !self.services.until_done(unpause).await {
            // It was not paused. A pause that an earlier lightd asked for may be on its way in the engine.
            tokio::time::sleep(LATE_PAUSE).await;
            self.services.until_done(unpause).await;
        }
        self.fact(Fact::Resumed { run }).await;
    }

    pub(super) async fn apply_limits(self, limits: Limits, wanted: LimitsWanted) {
        let result = match &self.snapshot.docker_id {
            Some(docker_id) => {
                let effective = super::workload::with_defaults(limits, &self.services.settings());
                self.services.engine.update_limits(docker_id, &effective).await
            }
            None => Ok(Vec::new()),
        };
        let docker_id = self.snapshot.docker_id.clone();
        self.report(Report::LimitsApplied { wanted, docker_id, result }).await;
    }

    /// Sets the old Docker container aside and makes one with the new ports.
    pub(super) async fn rebind(self) {
        match self.services.insist(|| self.try_rebind()).await {
            Ok(()) => self.fact(Fact::Rebound).await,
            Err(error) => self.fact(Fact::RebindFailed { reason: error.reason() }).await,
        }
    }

    async fn try_rebind(&self) -> Result<(), EngineError> {
        let engine = &self.services.engine;
        let (name, aside) = (self.snapshot.id.docker_name(), aside_name(&self.snapshot.id));
        let ours = self.ours().await?;
        let set_aside = ours.iter().any(|found| found.name == aside);
        if let Some(present) = ours.iter().find(|found| found.name == name) {
            if set_aside {
                // Left by an attempt that was cut off: made for the new ports, but not yet told of.
                engine.remove(&present.docker_id).await?;
            } else {
                engine.rename(&present.docker_id, &aside).await?;
            }
        }
        if set_aside || ours.iter().any(|found| found.name == name) {
            self.create_workload().await?;
        }
        Ok(())
    }

    /// Puts the old Docker container back in its place.
    pub(super) async fn undo_rebind(self) {
        match self.services.insist(|| self.try_undo_rebind()).await {
            Ok(()) => self.fact(Fact::Rebound).await,
            Err(error) => self.fact(Fact::RebindFailed { reason: error.reason() }).await,
        }
    }

    async fn try_undo_rebind(&self) -> Result<(), EngineError> {
        let engine = &self.services.engine;
        let (name, aside) = (self.snapshot.id.docker_name(), aside_name(&self.snapshot.id));
        let ours = self.ours().await?;
        let Some(kept) = ours.iter().find(|found| found.name == aside) else {
            let present = ours.iter().find(|found| found.name == name);
            let docker_id = present.map(|found| found.docker_id.clone());
            self.report(Report::PutBack { docker_id }).await;
            return Ok(());
        };
        if let Some(failed) = ours.iter().find(|found| found.name == name) {
            engine.remove(&failed.docker_id).await?;
        }
        engine.rename(&kept.docker_id, &name).await?;
        self.report(Report::PutBack { docker_id: Some(kept.docker_id.clone()) }).await;
        Ok(())
    }

    /// Drops what was kept aside. The store has let go of the old ports already.
    pub(super) async fn finish_rebind(self) {
        let aside = aside_name(&self.snapshot.id);
        self.services
            .until_done(|| async {
                match self.ours_named(&aside).await? {
                    Some(kept) => self.services.engine.remove(&kept.docker_id).await,
                    None => Ok(()),
                }
            })
            .await;
    }

    /// Removes what an install run left in the engine, once `at_work` has ended.
    pub(super) async fn remove_install(self, run: RunId, at_work: Option<CancellationToken>) {
        self.nothing_made(at_work).await;
        let (name, run) = (install_name(&self.snapshot.id), run.to_string());
        self.services
            .until_done(|| async {
                let found = self.ours_named(&name).await?;
                match found
                    .filter(|found| found.labels.get(labels::RUN).is_none_or(|of| *of == run))
                {
                    Some(left) => self.services.engine.remove(&left.docker_id).await,
                    None => Ok(()),
                }
            })
            .await;
    }

    /// Removes a Docker container that a crash left behind.
    pub(super) async fn remove_leftover(self, docker_id: String) {
        self.services.until_done(|| self.services.engine.remove(&docker_id)).await;
    }

    /// Waits until tasks that were broken off have ended, and with them what they were making.
    async fn nothing_made(&self, at_work: impl IntoIterator<Item = CancellationToken>) {
        for ended in at_work {
            ended.cancelled().await;
        }
        self.shared.creates_done().await;
    }

    /// Removes everything that is the container's own, and keeps its volume, once `at_work` has ended.
    pub(super) async fn remove(self, at_work: Vec<CancellationToken>) {
        self.nothing_made(at_work).await;
        self.services
            .until_done(|| async {
                for found in self.ours().await? {
                    self.services.engine.remove(&found.docker_id).await?;
                }
                Ok(())
            })
            .await;
        self.remove_own_images_but(None).await;
        self.shared.end().await;
        self.remove_folder().await;
        self.fact(Fact::Removed).await;
    }

    /// Removes what earlier installs made of the root file system. Looked for by name: an install that was
    /// broken off has told nobody of its image.
    pub(super) async fn remove_own_images_but(&self, kept: Option<&str>) {
        let engine = &self.services.engine;
        let prefix = format!("{}:", own_image_repository(&self.snapshot.id));
        let removed = self.services.insist(|| async {
            let images = engine.list_our_images().await?;
            let tags = images.iter().flat_map(|image| &image.tags);
            for tag in tags.filter(|tag| tag.starts_with(&prefix) && Some(tag.as_str()) != kept) {
                engine.remove_image(tag).await?;
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(prefix, error = %Chain(&error), "images of earlier installs stay behind");
        }
    }

    async fn remove_folder(&self) {
        let folder = self.shared.folder.clone();
        let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        match removed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the folder of a deleted container stays behind")
            }
            Err(error) => tracing::error!(%error, "removing a folder panicked"),
        }
    }
}
