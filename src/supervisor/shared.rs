//! What a container's owner shares with readers: its console, its input, its latest figures, and
//! where its own files lie.
//!
//! Written to by the tasks of the owner, read through a [`super::ContainerHandle`] without asking it. It
//! outlives runs and ends with the container: then readers end and input is refused.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::task::TaskTracker;

use crate::console::{Console, ConsoleInput, InputError, input};
use crate::domain::audit::Actor;
use crate::domain::ids::RunId;
use crate::domain::stats::Sample;
use crate::domain::stats::history::History;
use crate::domain::stream::Stream;
use crate::domain::units::UnixSeconds;
use crate::domain::usage::meter::UsageMeter;
use crate::engine::{AttachedInput, CreateRequest, Created, Engine, EngineError};
use crate::util::chain::Chain;

/// What runs is attached to a moment after it is found running, at the start of lightd or when the
/// engine is back; so long is a command held for that.
const ATTACHED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Shared {
    /// `{containers_path}/{id}`.
    pub(super) folder: PathBuf,
    pub(crate) console: Console,
    /// Present while a workload is attached, with the run that it belongs to.
    input: watch::Sender<Option<(RunId, ConsoleInput)>>,
    pub(super) stats: watch::Sender<Option<Sample>>,
    pub(super) stats_wanted: Notify,
    /// Of all runs.
    history: std::sync::Mutex<History>,
    /// What was used since it was last stored.
    usage: std::sync::Mutex<UsageMeter>,
    /// Held by whoever reads a run's output. The engine keeps an attach to what has exited and gives it the
    /// next run's output, and its log does not tell runs apart: two who read would print a run twice.
    pub(super) reading: Mutex<()>,
    /// Held while the engine is told to end a run. A start waits for it: a signal that the engine gets
    /// late would end the next run.
    pub(super) ending: Mutex<()>,
    /// The latest run that was decided on.
    latest: watch::Sender<RunId>,
    /// The run that was killed while its owner waited for the store, and by whom.
    killed_meanwhile: std::sync::Mutex<Option<(RunId, Actor)>>,
    /// Somebody asks for a start that waits for its turn.
    pub(super) start_wanted: Notify,
    /// Docker containers that are being made. The engine goes on with that when whoever asked is gone,
    /// so these outlive the effect that asked, and a removal waits for them.
    creating: TaskTracker,
}

impl Shared {
    pub(super) fn new(folder: PathBuf, console: Console) -> Self {
        Self {
            folder,
            console,
            input: watch::Sender::new(None),
            stats: watch::Sender::new(None),
            stats_wanted: Notify::new(),
            history: std::sync::Mutex::default(),
            usage: std::sync::Mutex::default(),
            reading: Mutex::default(),
            ending: Mutex::default(),
            latest: watch::Sender::new(RunId::default()),
            killed_meanwhile: std::sync::Mutex::default(),
            start_wanted: Notify::new(),
            creating: TaskTracker::new(),
        }
    }

    /// Mounted into the container, read-only.
    pub(super) fn data_folder(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub(super) fn post_mortems_folder(&self) -> PathBuf {
        self.folder.join("post-mortems")
    }

    pub(super) fn install_log_path(&self) -> PathBuf {
        self.folder.join("install.log")
    }

    pub(super) fn note_latest(&self, run: RunId) {
        self.latest.send_replace(run);
    }

    /// Whether no later run was decided on.
    pub(super) fn is_latest(&self, run: RunId) -> bool {
        *self.latest.borrow() <= run
    }

    /// Sends a signal to a run's processes; false if what runs by now is a later one.
    pub(super) async fn signal(
        &self,
        engine: &Engine,
        run: RunId,
        docker_id: &str,
        signal: &str,
    ) -> Result<bool, EngineError> {
        let _turn = self.ending.lock().await;
        if !self.is_latest(run) {
            return Ok(false);
        }
        engine.kill(docker_id, signal).await.map(|()| true)
    }

    /// Kills a run whose owner does not come to it, and keeps for the owner that it was a kill.
    pub(super) async fn kill_meanwhile(
        &self,
        engine: &Engine,
        run: RunId,
        docker_id: &str,
        actor: Actor,
    ) {
        *self.killed_meanwhile.lock().unwrap_or_else(PoisonError::into_inner) = Some((run, actor));
        if let Err(error) = self.signal(engine, run, docker_id, "SIGKILL").await {
            tracing::warn!(run.id = %run, error = %Chain(&error), "a kill has to wait for the store");
        }
    }

    /// Who has killed a run while its owner waited for the store.
    pub(super) fn killed_meanwhile(&self, run: RunId) -> Option<Actor> {
        let killed = self.killed_meanwhile.lock().unwrap_or_else(PoisonError::into_inner);
        killed.as_ref().filter(|(of, _)| *of == run).map(|(_, actor)| actor.clone())
    }

    /// Makes a Docker container, to the end also if the caller is aborted.
    pub(super) async fn create(
        &self,
        engine: Engine,
        request: CreateRequest,
    ) -> Result<Created, EngineError> {
        self.creates_done().await;
        let create = self.creating.spawn(async move { engine.create(&request).await });
        match create.await {
            Ok(created) => created,
            // Nobody aborts it.
            Err(ended) => std::panic::resume_unwind(ended.into_panic()),
        }
    }

    /// Waits until no Docker container is being made.
    pub(super) async fn creates_done(&self) {
        self.creating.close();
        self.creating.wait().await;
    }

    /// Puts output of a run onto the console.
    pub(super) fn print(&self, run: RunId, stream: Stream, at_ms: i64, bytes: &[u8]) {
        self.console.push(run, stream, at_ms, bytes);
    }

    /// Takes over the way to the workload's standard input; the future writes what is sent, until it is
    /// dropped.
    pub(super) fn open_input(
        &self,
        run: RunId,
        attached: AttachedInput,
    ) -> impl Future<Output = Infallible> + use<> {
        let (sender, writer) = input();
        self.input.send_replace(Some((run, sender)));
        async move {
            if let Err(error) = writer.run(attached).await {
                tracing::debug!(%error, "a workload's standard input broke off");
            }
            std::future::pending().await
        }
    }

    /// Ends the input of a run; that of a later one stays open.
    pub(super) fn close_input(&self, run: RunId) {
        self.input.send_if_modified(|input| input.take_if(|(of, _)| *of == run).is_some());
    }

    /// The run whose workload is attached.
    pub(super) fn attached_run(&self) -> Option<RunId> {
        self.input.borrow().as_ref().map(|(run, _)| *run)
    }

    /// Writes one line to the workload, in order and at most once. `waits`: it runs, so that the way to
    /// its input is about to open if it is not.
    pub(crate) async fn write_input(
        &self,
        mut line: String,
        waits: bool,
    ) -> Result<(), InputError> {
        let mut input = self.input.subscribe();
        let patience = if waits { ATTACHED_WITHIN } else { Duration::ZERO };
        let open = tokio::time::timeout(patience, input.wait_for(Option::is_some)).await;
        let open = open.ok().and_then(Result::ok).and_then(|open| open.clone());
        let (_, sender) = open.ok_or(InputError::NotRunning)?;
        if !line.ends_with('\n') {
            line.push('\n');
        }
        sender.send(Bytes::from(line)).await
    }

    /// The latest figures; while the receiver lives, they are taken every second.
    pub(crate) fn watch_stats(&self) -> watch::Receiver<Option<Sample>> {
        let receiver = self.stats.subscribe();
        self.stats_wanted.notify_one();
        receiver
    }

    /// The latest figures, without asking for more.
    pub(crate) fn last_stats(&self) -> Option<Sample> {
        *self.stats.borrow()
    }

    pub(super) fn note_stats(&self, sample: Sample) {
        self.history().note(UnixSeconds::now(), sample);
    }

    /// The last hour's figures; the lock is for a look only.
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock is for a look only.
    pub(super) fn usage(&self) -> MutexGuard<'_, UsageMeter> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clear_stats(&self) {
        self.stats.send_replace(None);
    }

    /// Writes what waits to the disk and ends the readers.
    pub(super) async fn end(&self) {
        self.input.send_replace(None);
        self.console.flush().await;
        self.console.close().await;
    }
}
