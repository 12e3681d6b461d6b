//! A running workload's figures, read from the kernel.
//!
//! Sampled once a second while somebody looks and every five seconds otherwise, which makes the hour of
//! history: a node with hundreds of quiet containers pays next to nothing. Each reading also counts as usage.
//! Where the kernel's files cannot be read (an engine on another machine) the engine is asked, and while
//! nobody looks only once a minute, for the usage: that costs it much.
//!
//! Run beside the reading of a run's output, whose end drops it. A look that fails says nothing about the
//! workload: the figures that are known are withdrawn, and it is tried again after a while.

use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::effects::Ctx;
use super::steady_clock::SteadyClock;
use crate::cgroup::{self, Cgroup, CgroupError};
use crate::domain::ids::RunId;
use crate::domain::observed::Observed;
use crate::domain::stats::history::STEP_S;
use crate::domain::stats::{Counters, Meter, Sample};
use crate::domain::units::now_unix_ms;
use crate::domain::usage::meter::Reading;
use crate::engine::EngineError;
use crate::util::chain::Chain;

const WATCHED: Duration = Duration::from_secs(1);
/// Two readings that are closer together say little: the kernel counts processor time in ticks.
const LEAST_APART: Duration = Duration::from_millis(250);
const UNWATCHED: Duration = Duration::from_secs(STEP_S as u64);
/// While nobody looks, where it is the engine that is asked.
const METERED: Duration = Duration::from_secs(60);
/// What the volume holds costs a look at its folders, so it is taken rarely, and only while somebody looks.
const DISK_EVERY: Duration = Duration::from_secs(10);
/// After a look that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum SampleError {
    #[error("cannot ask the engine for a workload's figures")]
    Engine(#[from] EngineError),
    #[error("cannot read a workload's counters")]
    Counters(#[from] CgroupError),
}

/// Where a run's counters are read.
enum Source<'a> {
    Kernel { group: &'a Cgroup, text: Vec<u8> },
    Engine,
}

impl Source<'_> {
    /// `None` once the run is over.
    async fn read(&mut self, ctx: &Ctx, docker_id: &str) -> Result<Option<Counters>, SampleError> {
        match self {
            Self::Kernel { group, text } => match group.read(text) {
                Err(CgroupError::Gone) => Ok(None),
                counters => Ok(Some(counters?)),
            },
            Self::Engine => {
                let counters = ctx.services.engine.counters(docker_id).await?;
                Ok(counters.map(|counters| Counters { taken_at: cgroup::now(), ..counters }))
            }
        }
    }
}

/// Keeps a container's latest sample while its run lasts.
pub(super) struct Sampler<'a> {
    ctx: &'a Ctx,
    run: RunId,
    docker_id: &'a str,
    clock: SteadyClock,
    /// As it was when it was started; the next look is our own.
    seen: Option<Observed>,
    ran_out_of_memory_at_ms: &'a AtomicI64,
    disk_bytes: Option<u64>,
    disk_counted_at: Option<Instant>,
}

impl<'a> Sampler<'a> {
    /// `ran_out_of_memory_at_ms` is set when the kernel says so, each time.
    pub(super) fn new(
        ctx: &'a Ctx,
        run: RunId,
        docker_id: &'a str,
        clock: SteadyClock,
        seen: Option<Observed>,
        ran_out_of_memory_at_ms: &'a AtomicI64,
    ) -> Self {
        Self {
            ctx,
            run,
            docker_id,
            clock,
            seen,
            ran_out_of_memory_at_ms,
            disk_bytes: None,
            disk_counted_at: None,
        }
    }

    /// Samples until the run is over, then waits to be dropped.
    pub(super) async fn run(mut self) -> Infallible {
        while let Err(error) = self.sample_on().await {
            tracing::debug!(container.id = %self.ctx.snapshot.id, error = %Chain(&error), "no figures for now");
            self.ctx.shared.clear_stats();
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        std::future::pending().await
    }

    async fn sample_on(&mut self) -> Result<(), SampleError> {
        let seen = match self.seen.take() {
            None => self.ctx.services.engine.inspect(self.docker_id).await?,
            seen => seen,
        };
        let Some(seen) = seen else { return Ok(()) };
        let Some(pid) = seen.pid else { return Ok(()) };
        let clock = self.clock;
        let began_at_ms = seen.started_at_ms.unwrap_or_else(|| clock.now_ms());
        let age = || {
            let ms = clock.now_ms().saturating_sub(began_at_ms);
            Duration::from_millis(u64::try_from(ms).unwrap_or(0))
        };
        // An engine on another machine has other processes, and a first reading tells.
        let found = Cgroup::find(pid).and_then(|group| group.read(&mut Vec::new()).map(|_| group));
        let group = match found {
            Err(error) => {
                tracing::info!(container.id = %self.ctx.snapshot.id, error = %Chain(&error), "figures are the engine's");
                return self.sample(Source::Engine, age).await;
            }
            Ok(group) => group,
        };
        let (ran_out_at_ms, oom) = (self.ran_out_of_memory_at_ms, group.watch_oom());
        let watching = async {
            let mut oom = match oom {
                Ok(oom) => oom,
                // Version 1 wants to be written to, which a sandbox may forbid.
                Err(error) => {
                    tracing::info!(%error, "a lack of memory is known by the engine's word only");
                    std::future::pending().await
                }
            };
            loop {
                oom.killed().await;
                ran_out_at_ms.store(now_unix_ms(), Ordering::Relaxed);
            }
        };
        tokio::select! {
            never = watching => never,
            sampled = self.sample(Source::Kernel { group: &group, text: Vec::new() }, age) => sampled,
        }
    }

    async fn sample(
        &mut self,
        mut source: Source<'_>,
        age: impl Fn() -> Duration,
    ) -> Result<(), SampleError> {
        let shared = &self.ctx.shared;
        let is_watched = || shared.stats.receiver_count() > 0;
        let Some(mut meter) = self.first_meter(&mut source, &age).await? else { return Ok(()) };
        // The history has a meter of its own: its processor figures stand for a whole step.
        let (mut history, mut noted_at) = (meter, None::<Instant>);
        loop {
            if is_watched() {
                self.count_disk().await;
            } else if matches!(source, Source::Engine) {
                if !self.meter_until_wanted(&mut source, &age).await? {
                    return Ok(());
                }
                // A figure stands for the second before it, and not for the hours since the last one.
                let Some(again) = self.first_meter(&mut source, &age).await? else { return Ok(()) };
                meter = again;
                continue;
            }
            let Some(counters) = source.read(self.ctx, self.docker_id).await? else {
                return Ok(());
            };
            self.note_usage(&counters, age());
            publish(&shared.stats, meter.read(counters, age(), self.disk_bytes));
            // A little early is in time: the pauses of a second add up to no exact step.
            if noted_at.is_none_or(|at| at.elapsed() + WATCHED / 2 >= UNWATCHED) {
                noted_at = Some(Instant::now());
                self.ctx.services.kernel_log.read_on();
                shared.note_stats(history.read(counters, age(), self.disk_bytes));
            }
            let pause = if is_watched() { WATCHED } else { UNWATCHED };
            let read_at = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shared.stats_wanted.notified(), if !is_watched() => {
                    tokio::time::sleep_until(read_at + LEAST_APART).await;
                }
            }
        }
    }

    /// A meter whose first sample is right, and comes a second after the run began or was taken over.
    async fn first_meter(
        &self,
        source: &mut Source<'_>,
        age: impl Fn() -> Duration,
    ) -> Result<Option<Meter>, SampleError> {
        let mut meter = Meter::starting(cgroup::now().saturating_sub(age()));
        if let Some(rest) = WATCHED.checked_sub(age()) {
            // What the engine spends on setting the group up counts as the run's, and is much in so little
            // time.
            tokio::time::sleep(rest).await;
            return Ok(Some(meter));
        }
        let Some(counters) = source.read(self.ctx, self.docker_id).await? else { return Ok(None) };
        meter.read(counters, age(), None);
        tokio::time::sleep(WATCHED).await;
        Ok(Some(meter))
    }

    /// Counts usage alone until somebody wants to see figures. False once the run is over.
    async fn meter_until_wanted(
        &self,
        source: &mut Source<'_>,
        age: impl Fn() -> Duration,
    ) -> Result<bool, SampleError> {
        loop {
            let Some(counters) = source.read(self.ctx, self.docker_id).await? else {
                return Ok(false);
            };
            self.note_usage(&counters, age());
            let wanted = self.ctx.shared.stats_wanted.notified();
            if tokio::time::timeout(METERED, wanted).await.is_ok() {
                return Ok(true);
            }
        }
    }

    fn note_usage(&self, counters: &Counters, age: Duration) {
        let limit_bytes = counters.memory_limit_bytes;
        let is_limit = limit_bytes < self.ctx.services.capacity.memory_bytes;
        self.ctx.shared.usage().read(&Reading {
            run: self.run,
            counters,
            unix_ms: now_unix_ms(),
            age,
            reserved_bytes: is_limit.then_some(limit_bytes),
        });
    }

    async fn count_disk(&mut self) {
        if self.disk_counted_at.is_some_and(|at| at.elapsed() < DISK_EVERY) {
            return;
        }
        self.disk_counted_at = Some(Instant::now());
        let volume = self.ctx.snapshot.spec.volume_id;
        let counted = self.ctx.services.files.used_bytes(volume).await;
        self.disk_bytes = counted.or(self.disk_bytes);
    }
}

/// Whoever waits is woken only when something but the time has changed.
fn publish(stats: &watch::Sender<Option<Sample>>, sample: Sample) {
    stats.send_if_modified(|last| {
        let changed = last.is_none_or(|last| sample.differs_from(&last));
        *last = Some(sample);
        changed
    });
}
