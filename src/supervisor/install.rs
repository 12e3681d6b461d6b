//! An install: the image, the script, what it leaves behind, the workload's container.
//!
//! One child task per install run. After a crash of lightd the stored phase asks for it again, and it
//! goes on from what the engine shows: a script that still runs is followed to its end, one that has
//! ended is judged by its exit code; only one that never began is begun. Failure leaves the volume as
//! the script left it, removes the install container, and says the reason.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::credentials;
use super::effects::Ctx;
use super::install_log::InstallLog;
use super::launch::LaunchError;
use super::script::Script;
use super::task::Report;
use super::workload::{self, INSTALL_FILE, Places, install_name};
use crate::domain::ids::RunId;
use crate::domain::lifecycle::Fact;
use crate::engine::{EngineError, Ours, PullProgress, RegistryAuth, labels};
use crate::files::FileError;
use crate::util::chain::Chain;

/// Between two progress messages of a pull.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Why an install failed, as the panel and the console are told.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstallError {
    #[error("the image could not be had: {}", .0.reason())]
    Image(#[source] EngineError),
    #[error("the registry's credentials cannot be read")]
    Credentials,
    #[error("the engine failed: {}", .0.reason())]
    Engine(#[from] EngineError),
    #[error("{}", .0.reason())]
    Launch(#[from] LaunchError),
    #[error("the install script ended with exit code {0}")]
    Script(i64),
    #[error("the install script ran out of memory")]
    OutOfMemory,
    #[error("the install script did not end within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    #[error("Docker has lost the install container")]
    Lost,
    #[error("the volume could not be given to the workload's user: {0}")]
    Volume(#[source] FileError),
    #[error("the install added {added} bytes to the image, more than the {limit} allowed")]
    TooLarge { added: u64, limit: u64 },
}

impl Ctx {
    pub(super) async fn install(self, run: RunId) {
        let result = match self.try_install(run).await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(container.id = %self.snapshot.id, run.id = %run, error = %Chain(&error), "an install failed");
                Err(error.to_string())
            }
        };
        self.fact(Fact::InstallEnded { run, result }).await;
    }

    async fn try_install(&self, run: RunId) -> Result<(), InstallError> {
        let name = install_name(&self.snapshot.id);
        let left = self.services.insist(|| self.ours_named(&name)).await?;
        let of_this_run =
            |left: &Ours| left.labels.get(labels::RUN).is_some_and(|of| *of == run.to_string());
        let under_way = match left {
            Some(left) if of_this_run(&left) => Some(left.docker_id),
            Some(stale) => {
                self.services.insist(|| self.services.engine.remove(&stale.docker_id)).await?;
                None
            }
            None => None,
        };
        if under_way.is_none() {
            self.pull_images().await?;
        }
        let own_image = match &self.snapshot.spec.install_script {
            Some(script) => self.run_script(run, script, under_way).await?,
            None => None,
        };
        self.build_workload(own_image).await
    }

    async fn pull_images(&self) -> Result<(), InstallError> {
        let spec = &self.snapshot.spec;
        let install_image = spec.install_image.iter().filter(|_| spec.install_script.is_some());
        for image in std::iter::once(&spec.image).chain(install_image) {
            let auth = self.registry_auth().await?;
            self.say(format!("getting the image {image}"));
            let services = &self.services;
            services
                .insist(|| {
                    let mut progress = Progress::new(self);
                    services.engine.ensure(image, auth.clone(), move |step| progress.show(&step))
                })
                .await
                .map_err(InstallError::Image)?;
        }
        Ok(())
    }

    async fn registry_auth(&self) -> Result<Option<RegistryAuth>, InstallError> {
        let Some(sealed) = self.sealed_auth.clone() else { return Ok(None) };
        let (services, id) = (Arc::clone(&self.services), self.snapshot.id.clone());
        let open = move || credentials::open(&services.sealer, &id, &sealed);
        match tokio::task::spawn_blocking(open).await {
            Ok(Ok(Some(auth))) => Ok(Some(auth)),
            Ok(Err(error)) => {
                tracing::error!(container.id = %self.snapshot.id, error = %Chain(&error), "cannot open a registry's credentials");
                Err(InstallError::Credentials)
            }
            Ok(Ok(None)) | Err(_) => Err(InstallError::Credentials),
        }
    }

    /// Runs the script, or follows it where it runs; the image it left behind, if it is to be kept.
    async fn run_script(
        &self,
        run: RunId,
        script: &str,
        under_way: Option<String>,
    ) -> Result<Option<String>, InstallError> {
        let resumed = under_way.is_some();
        let docker_id = match under_way {
            Some(docker_id) => docker_id,
            None => {
                self.services.isolated().await.map_err(LaunchError::NotIsolated)?;
                self.volume_usable().await?;
                self.write_data(INSTALL_FILE, script.to_owned()).await?;
                // Before there is a container: what is in it when one is found is of that one.
                InstallLog::open(self.shared.install_log_path(), true).await.close().await;
                self.services.insist(|| self.create_install(script)).await?
            }
        };
        let exit = Script::of(self, run, &docker_id).follow(resumed).await?;
        self.give_volume_away().await?;
        if exit.oom_killed() {
            return Err(InstallError::OutOfMemory);
        }
        if exit.code != 0 {
            return Err(InstallError::Script(exit.code));
        }
        if self.snapshot.spec.install_image.is_some() {
            return Ok(None);
        }
        self.keep_root_file_system(run, &docker_id).await
    }

    async fn create_install(&self, script: &str) -> Result<String, EngineError> {
        let volume = self.services.files.volume_path(self.snapshot.spec.volume_id);
        let places = Places { volume: &volume, data: &self.shared.data_folder() };
        let settings = self.services.settings();
        let request = workload::install_request(&self.snapshot, script, &places, &settings);
        self.create(request).await
    }

    /// The script ran as root; what it made in the volume belongs to the workload's user.
    async fn give_volume_away(&self) -> Result<(), InstallError> {
        let user = self.services.settings().user;
        self.services
            .files
            .run(self.snapshot.spec.volume_id, move |volume| volume.chown_all(user))
            .await
            .map_err(InstallError::Volume)
    }

    /// Makes an image of what the script changed outside the volume, if it did.
    async fn keep_root_file_system(
        &self,
        run: RunId,
        docker_id: &str,
    ) -> Result<Option<String>, InstallError> {
        let engine = &self.services.engine;
        let changed = self.services.insist(|| engine.changed_paths(docker_id)).await?;
        if !changed.iter().any(|change| workload::is_in_root_file_system(&change.path)) {
            return Ok(None);
        }
        let limit = self.services.settings().install_image_max_bytes;
        let added = self.services.insist(|| engine.size_rw(docker_id)).await?.unwrap_or(0);
        if added > limit {
            return Err(InstallError::TooLarge { added, limit });
        }
        self.say("keeping what the install script changed in the image");
        let repository = workload::own_image_repository(&self.snapshot.id);
        let tag = format!("run{run}");
        self.services.insist(|| engine.commit(docker_id, &repository, &tag)).await?;
        Ok(Some(format!("{repository}:{tag}")))
    }

    /// Makes the workload's container afresh from the outcome and drops what came before.
    async fn build_workload(&self, own_image: Option<String>) -> Result<(), InstallError> {
        let name = self.snapshot.id.docker_name();
        let mut built = self.clone();
        let mut snapshot = (*self.snapshot).clone();
        snapshot.own_image.clone_from(&own_image);
        built.snapshot = Arc::new(snapshot);
        self.report(Report::Installed { own_image: own_image.clone() }).await;
        self.services
            .insist(|| async {
                if let Some(old) = built.ours_named(&name).await? {
                    self.services.engine.remove(&old.docker_id).await?;
                }
                built.create_workload().await
            })
            .await?;
        self.remove_own_images_but(own_image.as_deref()).await;
        Ok(())
    }
}

/// Tells the console of a pull, now and then.
struct Progress {
    ctx: Ctx,
    last: Option<Instant>,
}

impl Progress {
    fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.clone(), last: None }
    }

    fn show(&mut self, step: &PullProgress) {
        if self.last.is_none_or(|last| last.elapsed() >= PROGRESS_EVERY) {
            self.last = Some(Instant::now());
            let PullProgress { status, layers, layers_done, downloaded_bytes, total_bytes } = step;
            self.ctx.say(format!(
                "{status}: {layers_done} of {layers} layers, {downloaded_bytes} of {total_bytes} bytes"
            ));
        }
    }
}
