//! One run of a workload: brought up, followed line by line to its end, its end reported.
//!
//! Called as an effect by the owner task; one child task per run. The output is read always and by
//! nobody else, for an output that is not read blocks the workload. That the stream ends, or that the
//! engine cannot be asked, is no exit: only the engine's word that it has exited is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::admission;
use super::effects::Ctx;
use super::gap::RunLog;
use super::record::is_of_run;
use super::stats::Sampler;
use super::task::Report;
use super::workload::{self, ENTRYPOINT_FILE, Places};
use crate::console::Stream as ConsoleStream;
use crate::domain::ids::RunId;
use crate::domain::lifecycle::{Fact, Phase};
use crate::domain::observed::Exit;
use crate::domain::readiness::Readiness;
use crate::domain::spec::{self, Problem};
use crate::engine::{Attached, Chunk, EngineError, EngineErrorKind, OutputStream, Stream};
use crate::util::atomic_file;
use crate::util::backoff::Backoff;
use crate::util::chain::Chain;

/// How long the last output may take after the exit is known.
const DRAIN: Duration = Duration::from_secs(2);
/// The same while the engine's log is still being read.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long an exit may take to be known after the output has ended.
const EXIT_AFTER_OUTPUT: Duration = Duration::from_secs(3);
/// A line without an end is looked at for the start pattern after so long: it may be a prompt.
const PROMPT_AFTER: Duration = Duration::from_millis(50);
const AGAIN: Backoff =
    Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(3) };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AttachedWhen {
    BeforeStart,
    /// Some output may have passed before.
    Later,
}

/// How following a run ended.
enum End {
    Exited(Exit),
    Vanished,
    /// The connections broke; nothing is known.
    Detached,
}

impl Ctx {
    /// Brings a run up and follows it. An engine that is away is waited for.
    pub(super) async fn start(self, run: RunId) {
        let mut failures = 0;
        loop {
            self.services.engine_back().await;
            match self.launch(failures > 0).await {
                Ok((docker_id, attached)) => {
                    let ready = self.snapshot.spec.start_pattern.is_none();
                    self.fact(Fact::Started { run, ready }).await;
                    // After a failure it may have been up for a while already.
                    let when =
                        if failures > 0 { AttachedWhen::Later } else { AttachedWhen::BeforeStart };
                    return self.follow(run, &docker_id, attached, self.readiness(), when).await;
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

    /// Follows a run that is up: after a restart of lightd, or when the connections broke.
    pub(super) async fn resume(self, run: RunId) {
        let Some(docker_id) = self.snapshot.docker_id.clone() else {
            return self.report(Report::Detached).await;
        };
        let tty = self.snapshot.spec.tty;
        // Not insisted on: if the engine goes away now, it is for the next look to say what became of
        // the run.
        match self.services.engine.attach(&docker_id, tty).await {
            Ok(attached) => {
                let starting = matches!(self.snapshot.phase, Phase::Starting { .. });
                let readiness = if starting { self.readiness() } else { None };
                if starting && readiness.is_none() {
                    self.fact(Fact::Ready { run }).await;
                }
                self.follow(run, &docker_id, attached, readiness, AttachedWhen::Later).await;
            }
            Err(error) if error.kind() == EngineErrorKind::NotFound => {
                self.fact(Fact::Vanished { run }).await;
            }
            Err(error) => {
                tracing::debug!(container.id = %self.snapshot.id, error = %Chain(&error), "cannot attach");
                self.report(Report::Detached).await;
            }
        }
    }

    async fn launch(&self, again: bool) -> Result<(String, Attached), LaunchError> {
        let services = &self.services;
        self.volume_usable().await?;
        let _slot = services.start_slots.acquire().await.map_err(|_| LaunchError::Stopping)?;
        services.isolated().await.map_err(LaunchError::NotIsolated)?;
        self.check_mounts().await?;
        self.write_data(
            ENTRYPOINT_FILE,
            workload::entrypoint(&self.snapshot.spec, &self.snapshot.ports),
        )
        .await?;
        let known = self.snapshot.docker_id.as_ref();
        let known = known.filter(|_| !again && !self.snapshot.restart_needed);
        // Attached before it starts, so that not a byte is missed. The attach also tells whether it is
        // there still; looking first would cost a round trip.
        let attached = match known {
            Some(docker_id) => self.attach(docker_id).await?,
            None => None,
        };
        let (docker_id, attached) = match (known, attached) {
            (Some(docker_id), Some(attached)) => (docker_id.clone(), attached),
            _ => {
                let docker_id = self.ensure_workload(again).await?;
                let attached = services.engine.attach(&docker_id, self.snapshot.spec.tty).await?;
                (docker_id, attached)
            }
        };
        // An attempt whose answer was lost may have started it, and it may have ended since.
        if again && self.was_started(&docker_id).await? {
            return Ok((docker_id, attached));
        }
        match services.engine.start(&docker_id).await {
            Ok(()) => Ok((docker_id, attached)),
            Err(error) if error.kind() == EngineErrorKind::NotFound => {
                tracing::info!(container.id = %self.snapshot.id, error = %Chain(&error), "making the container anew");
                self.start_anew().await.map_err(LaunchError::Engine)
            }
            Err(error) => Err(LaunchError::Engine(error)),
        }
    }

    /// Whether the engine has started the container for this run.
    async fn was_started(&self, docker_id: &str) -> Result<bool, EngineError> {
        let seen = self.services.engine.inspect(docker_id).await?;
        Ok(seen.is_some_and(|seen| is_of_run(&seen, self.begun_at_ms)))
    }

    /// A container knows its network by an id. If the network was made anew, so must the container be.
    async fn start_anew(&self) -> Result<(String, Attached), EngineError> {
        let engine = &self.services.engine;
        let docker_id = self.ensure_workload(false).await?;
        let attached = engine.attach(&docker_id, self.snapshot.spec.tty).await?;
        engine.start(&docker_id).await?;
        Ok((docker_id, attached))
    }

    /// `Ok(None)`: the engine says that there is no such container.
    async fn attach(&self, docker_id: &str) -> Result<Option<Attached>, EngineError> {
        match self.services.engine.attach(docker_id, self.snapshot.spec.tty).await {
            Ok(attached) => Ok(Some(attached)),
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The Docker container for the workload, made from the present specification. One that an attempt
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
        self.report(Report::Made { docker_id: docker_id.clone() }).await;
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

    fn readiness(&self) -> Option<Readiness> {
        let pattern = self.snapshot.spec.start_pattern.as_deref()?;
        // A stored pattern has compiled before.
        spec::compile_pattern(pattern).ok().map(|pattern| Readiness::new(Some(pattern)))
    }

    async fn follow(
        &self,
        run: RunId,
        docker_id: &str,
        attached: Attached,
        readiness: Option<Readiness>,
        when: AttachedWhen,
    ) {
        let writing = self.shared.open_input(run, attached.input);
        let caught_up = AtomicBool::new(when == AttachedWhen::BeforeStart);
        let ran_out_of_memory = AtomicBool::new(false);
        let end = {
            let pump = async {
                let (mut output, mut readiness) = (attached.output, readiness);
                if when == AttachedWhen::Later {
                    self.catch_up_run(run, docker_id, &mut output, &mut readiness).await;
                    caught_up.store(true, Ordering::Relaxed);
                }
                self.pump(run, output, readiness).await;
            };
            let wait = self.services.engine.wait(docker_id);
            let sampling = Sampler::new(self, docker_id, &ran_out_of_memory).run();
            tokio::pin!(pump, wait, sampling, writing);
            let mut pumping = true;
            loop {
                tokio::select! {
                    biased;
                    () = &mut pump, if pumping => pumping = false,
                    known = &mut wait => {
                        let end = match known {
                            Ok(exit) => End::Exited(exit),
                            Err(error) if error.kind() == EngineErrorKind::NotFound => End::Vanished,
                            Err(_) => End::Detached,
                        };
                        if pumping && !matches!(end, End::Detached) {
                            // What is not here by then will not come. An attach to what had exited never ends.
                            let began = Instant::now();
                            while tokio::time::timeout(DRAIN, &mut pump).await.is_err()
                                && !caught_up.load(Ordering::Relaxed)
                                && began.elapsed() < CATCH_UP
                            {}
                        }
                        break end;
                    }
                    () = tokio::time::sleep(EXIT_AFTER_OUTPUT), if !pumping => break End::Detached,
                    () = &mut sampling => {}
                    () = &mut writing => {}
                }
            }
        };
        self.shared.close_input(run);
        match end {
            End::Exited(mut exit) => {
                // The engine forgets it now and then; that some other process of the workload was killed
                // is not how this run ended.
                exit.oom_killed |= exit.code != 0 && ran_out_of_memory.load(Ordering::Relaxed);
                self.end_output().await;
                self.fact(Fact::Exited { run, exit }).await;
            }
            End::Vanished => {
                self.end_output().await;
                self.fact(Fact::Vanished { run }).await;
            }
            End::Detached => self.report(Report::Detached).await,
        }
    }

    /// Ends a run's console and figures. Its lines are on the disk before its end is stored: once that
    /// is, nobody asks the engine's log for them again.
    pub(super) async fn end_output(&self) {
        self.shared.console.end_run();
        self.shared.console.flush().await;
        self.shared.clear_stats();
    }

    /// What passed before the attach, and what the attach had by the time that was known.
    async fn catch_up_run(
        &self,
        run: RunId,
        docker_id: &str,
        output: &mut OutputStream,
        readiness: &mut Option<Readiness>,
    ) {
        // From the beginning where the pattern is waited for: that it had matched may not have been stored.
        let log = RunLog { whole: readiness.is_some(), ..self.workload_log(run, docker_id) };
        let caught = self.catch_up(log, output).await;
        let matched =
            |readiness: &mut Readiness| caught.log.iter().any(|line| readiness.feed(&line.bytes));
        if readiness.as_mut().is_some_and(matched) {
            *readiness = None;
            self.fact(Fact::Ready { run }).await;
        }
        for chunk in &caught.early {
            self.take_chunk(run, chunk, readiness).await;
        }
    }

    /// Reads the output to its end.
    async fn pump(&self, run: RunId, mut output: OutputStream, mut readiness: Option<Readiness>) {
        loop {
            let next = match &readiness {
                Some(_) => match tokio::time::timeout(PROMPT_AFTER, output.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        if readiness.as_mut().is_some_and(Readiness::feed_idle) {
                            readiness = None;
                            self.fact(Fact::Ready { run }).await;
                            continue;
                        }
                        output.next().await
                    }
                },
                None => output.next().await,
            };
            let chunk = match next {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(container.id = %self.snapshot.id, error = %Chain(&error), "the output broke off");
                    return;
                }
            };
            self.take_chunk(run, &chunk, &mut readiness).await;
        }
    }

    async fn take_chunk(&self, run: RunId, chunk: &Chunk, readiness: &mut Option<Readiness>) {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        self.shared.console.push(run, console_stream(chunk.stream), now_ms, &chunk.bytes);
        if readiness.as_mut().is_some_and(|readiness| readiness.feed(&chunk.bytes)) {
            *readiness = None;
            self.fact(Fact::Ready { run }).await;
        }
    }
}

pub(super) fn console_stream(stream: Stream) -> ConsoleStream {
    match stream {
        Stream::Stdout => ConsoleStream::Out,
        Stream::Stderr => ConsoleStream::Err,
    }
}

/// Why a workload could not be brought up.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("containers cannot be isolated: {0}")]
    NotIsolated(String),
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
            Self::NotIsolated(_) | Self::Mount(_) | Self::Volume | Self::Stopping => {
                self.to_string()
            }
        }
    }
}
