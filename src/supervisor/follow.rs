//! Following a run: its output line by line, its input and figures beside it, to its end.
//!
//! One child task per run, after a launch or on its own after a restart of lightd. The output is read
//! always and by nobody else, for an output that is not read blocks the workload. That the stream ends,
//! or that the engine cannot be asked, is no exit: only the engine's word that it has exited is. Broken
//! connections are reported, and the owner looks what became of the run.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::effects::Ctx;
use super::reader::Reader;
use super::stats::Sampler;
use super::steady_clock::SteadyClock;
use super::task::Report;
use crate::domain::ids::RunId;
use crate::domain::lifecycle::{Fact, Phase};
use crate::domain::observed::{Exit, Observed};
use crate::domain::readiness::Readiness;
use crate::domain::units::now_unix_ms;
use crate::engine::{Attached, EngineError, EngineErrorKind, OutputStream};
use crate::util::chain::Chain;

/// How long the last output may take after the exit is known.
const DRAIN: Duration = Duration::from_secs(2);
/// The same while the engine's log is still being read.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long an exit may take to be known after the output has ended.
const EXIT_AFTER_OUTPUT: Duration = Duration::from_secs(3);
/// So soon after the kernel has killed a process for want of memory, an end is put down to that.
const OUT_OF_MEMORY_ENDS_WITHIN_MS: i64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachedWhen {
    BeforeStart,
    /// Some output may have passed before.
    Later,
}

/// A run that is followed.
#[derive(Debug)]
pub(super) struct Followed<'a> {
    pub(super) run: RunId,
    pub(super) docker_id: &'a str,
    /// Begun when it was started, or found running.
    pub(super) clock: SteadyClock,
    /// As it was then, where somebody has looked.
    pub(super) seen: Option<Observed>,
}

/// How following a run ended.
enum End {
    Exited(Exit),
    Vanished,
    /// The connections broke; nothing is known.
    Detached,
}

impl End {
    fn known_by(answer: Result<Exit, EngineError>) -> Self {
        match answer {
            Ok(exit) => Self::Exited(exit),
            Err(error) if error.kind() == EngineErrorKind::NotFound => Self::Vanished,
            Err(_) => Self::Detached,
        }
    }

    /// An exit knows by how much the host's clock was set meanwhile.
    fn timed_by(self, clock: SteadyClock) -> Self {
        match self {
            Self::Exited(exit) => Self::Exited(Exit { clock_set_by_ms: clock.set_by_ms(), ..exit }),
            end @ (Self::Vanished | Self::Detached) => end,
        }
    }
}

impl Ctx {
    /// Follows a run that is up: after a restart of lightd, or when the connections broke.
    pub(super) async fn resume(self, run: RunId) {
        let (Some(docker_id), Ok(_reading)) =
            (self.snapshot.docker_id.clone(), self.shared.reading.try_lock())
        else {
            return self.report(Report::Detached).await;
        };
        let tty = self.snapshot.spec.tty;
        // Not insisted on: if the engine goes away now, it is for the next look to say what became of
        // the run.
        match self.services.engine.attach(&docker_id, tty).await {
            Ok(attached) => {
                let clock = SteadyClock::begin();
                let starting = matches!(self.snapshot.phase, Phase::Starting { .. });
                let readiness = if starting { self.readiness() } else { None };
                if starting && readiness.is_none() {
                    self.fact(Fact::Ready { run, at_ms: clock.now_ms() }).await;
                }
                let followed = Followed { run, docker_id: &docker_id, clock, seen: None };
                self.follow(followed, attached, readiness, AttachedWhen::Later).await;
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

    /// What watches for the patterns of a start, if there are any.
    pub(super) fn readiness(&self) -> Option<Readiness> {
        // Stored patterns have compiled before.
        self.snapshot.spec.compile_start().ok().flatten().map(Readiness::new)
    }

    /// Follows a run that is attached to until it ends or the connections break, and reports which.
    pub(super) async fn follow(
        &self,
        followed: Followed<'_>,
        attached: Attached,
        readiness: Option<Readiness>,
        when: AttachedWhen,
    ) {
        let Followed { run, docker_id, clock, seen } = followed;
        let writing = self.shared.open_input(run, attached.input);
        let caught_up = AtomicBool::new(when == AttachedWhen::BeforeStart);
        let ran_out_of_memory_at_ms = AtomicI64::new(i64::MIN);
        let engine = self.services.engine.health().borrow().incarnation().map(str::to_owned);
        let (end, all_read) = {
            let fresh = [false; 2];
            let reader = Reader { ctx: self, run, docker_id, clock, readiness, fresh };
            let reading = read(reader, attached.output, &caught_up);
            let sampling =
                Sampler::new(self, run, docker_id, clock, seen, &ran_out_of_memory_at_ms).run();
            tokio::pin!(reading, writing, sampling);
            let (end, all_read) = tokio::select! {
                biased;
                ended = self.until_end(docker_id, reading.as_mut()) => ended,
                never = &mut sampling => match never {},
                never = &mut writing => match never {},
            };
            let all_read =
                all_read || matches!(end, End::Detached) || drain(reading, &caught_up).await;
            (end, all_read)
        };
        self.shared.close_input(run);
        let end = self.of_one_engine(end, engine).await;
        if !all_read && matches!(end, End::Exited(_)) {
            self.take_rest(self.workload_log(run, docker_id)).await;
        }
        let mut ran_out_at_ms = ran_out_of_memory_at_ms.load(Ordering::Relaxed);
        // The group may be gone before anybody came to watch it, or to look at its counter.
        if matches!(end, End::Exited(_)) && self.services.kernel_log.tells_of(docker_id) {
            ran_out_at_ms = now_unix_ms();
        }
        self.tell_end(run, end.timed_by(clock), ran_out_at_ms).await;
    }

    /// An end that another run of the engine tells of than the one that was attached to is none of the
    /// workload's own: the engine took it down, or it went with the host. A look tells the one from the other.
    async fn of_one_engine(&self, end: End, attached_to: Option<String>) -> End {
        let End::Exited(exit) = end else { return end };
        match (attached_to, self.services.engine.note_incarnation().await) {
            (Some(before), Some(now)) if before != now => End::Detached,
            _ => End::Exited(exit),
        }
    }

    /// Reads the output until the engine says that the run is over, or neither is to be had any more.
    /// True if all of the output was read.
    async fn until_end(
        &self,
        docker_id: &str,
        reading: Pin<&mut impl Future<Output = ()>>,
    ) -> (End, bool) {
        let exit = self.services.engine.wait(docker_id);
        tokio::pin!(exit);
        tokio::select! {
            biased;
            () = reading => match tokio::time::timeout(EXIT_AFTER_OUTPUT, exit).await {
                Ok(known) => (End::known_by(known), true),
                Err(_) => (End::Detached, true),
            },
            known = &mut exit => (End::known_by(known), false),
        }
    }

    async fn tell_end(&self, run: RunId, end: End, ran_out_of_memory_at_ms: i64) {
        match end {
            End::Exited(mut exit) => {
                // By its own time: it may be told long after.
                let apart_ms = exit.at_ms.saturating_sub(ran_out_of_memory_at_ms);
                exit.oom_kernel = apart_ms < OUT_OF_MEMORY_ENDS_WITHIN_MS;
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
}

/// Reads the output to its end, what passed before the attach first.
async fn read(mut reader: Reader<'_>, mut output: OutputStream, caught_up: &AtomicBool) {
    if !caught_up.load(Ordering::Relaxed) {
        if let Err(error) = reader.catch_up(&mut output).await {
            // The engine is away again. The next attach begins anew.
            let id = &reader.ctx.snapshot.id;
            tracing::debug!(container.id = %id, error = %Chain(&error), "the log was not to be read");
            return;
        }
        caught_up.store(true, Ordering::Relaxed);
    }
    reader.pump(output).await;
}

/// Reads what is still to come of an output whose run has ended; false if its end has not come in time. An
/// attach to what had exited has none.
async fn drain(mut reading: Pin<&mut impl Future<Output = ()>>, caught_up: &AtomicBool) -> bool {
    let began = Instant::now();
    loop {
        if tokio::time::timeout(DRAIN, reading.as_mut()).await.is_ok() {
            return true;
        }
        if caught_up.load(Ordering::Relaxed) || began.elapsed() >= CATCH_UP {
            return false;
        }
    }
}
