//! A running workload's figures, read from the kernel.
//!
//! Sampled once a second while somebody looks and every ten seconds otherwise: a node with hundreds of
//! quiet containers pays next to nothing, and the last figure is there when someone comes. Where the
//! kernel's files cannot be read (an engine on another machine) there are none, which is logged with each run.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::effects::Ctx;
use crate::cgroup::{self, Cgroup, CgroupError};
use crate::domain::ids::RunId;
use crate::domain::stats::{Meter, Sample};
use crate::domain::units::{UnixSeconds, now_unix_ms};
use crate::util::chain::Chain;

const WATCHED: Duration = Duration::from_secs(1);
const UNWATCHED: Duration = Duration::from_secs(10);
/// What the volume holds costs a look at its folders, so it is taken rarely, and only while somebody looks.
const DISK_EVERY: Duration = Duration::from_secs(10);

/// So far back the samples of a run are kept, for a look back at its end.
const RECENT: Duration = Duration::from_secs(60);

/// A sample and when it was taken.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct TimedSample {
    at: UnixSeconds,
    #[serde(flatten)]
    sample: Sample,
}

/// The last minute of the latest run that was sampled.
#[derive(Debug, Default)]
pub(super) struct Recent {
    of_run: Mutex<(RunId, VecDeque<TimedSample>)>,
}

impl Recent {
    fn push(&self, run: RunId, sample: Sample) {
        let at = UnixSeconds::now();
        let mut held = self.of_run.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, samples) = &mut *held;
        if std::mem::replace(of, run) != run {
            samples.clear();
        }
        let is_old = |kept: &TimedSample| at.0 - kept.at.0 > RECENT.as_secs().cast_signed();
        while samples.front().is_some_and(is_old) {
            samples.pop_front();
        }
        samples.push_back(TimedSample { at, sample });
    }

    /// The last minute of this run, as far as it was sampled.
    pub(super) fn of(&self, run: RunId) -> Vec<TimedSample> {
        let held = self.of_run.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 == run { held.1.iter().copied().collect() } else { Vec::new() }
    }
}

/// Keeps a container's latest sample while its run lasts.
pub(super) struct Sampler<'a> {
    ctx: &'a Ctx,
    run: RunId,
    docker_id: &'a str,
    ran_out_of_memory: &'a AtomicBool,
    disk_bytes: Option<u64>,
    disk_counted_at: Option<Instant>,
}

impl<'a> Sampler<'a> {
    /// `ran_out_of_memory` is set when the kernel says so.
    pub(super) fn new(
        ctx: &'a Ctx,
        run: RunId,
        docker_id: &'a str,
        ran_out_of_memory: &'a AtomicBool,
    ) -> Self {
        Self { ctx, run, docker_id, ran_out_of_memory, disk_bytes: None, disk_counted_at: None }
    }

    /// Samples until the control group is gone, then waits to be dropped.
    pub(super) async fn run(mut self) -> Infallible {
        if let Err(error) = self.sample_on().await {
            tracing::debug!(container.id = %self.ctx.snapshot.id, error = %Chain(&*error), "no more figures");
        }
        std::future::pending().await
    }

    async fn sample_on(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(seen) = self.ctx.services.engine.inspect(self.docker_id).await? else {
            return Ok(());
        };
        let Some(pid) = seen.pid else { return Ok(()) };
        let began_at_ms = seen.started_at_ms.unwrap_or_else(now_unix_ms);
        let age = || {
            let ms = now_unix_ms().saturating_sub(began_at_ms);
            Duration::from_millis(u64::try_from(ms).unwrap_or(0))
        };
        let group = Cgroup::find(pid)?;
        let mut oom = group.watch_oom()?;
        let ran_out = self.ran_out_of_memory;
        let watching = async {
            oom.killed().await;
            ran_out.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = watching => Ok(()),
            sampled = self.sample_group(&group, age) => sampled,
        }
    }

    async fn sample_group(
        &mut self,
        group: &Cgroup,
        age: impl Fn() -> Duration,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        // What the engine spends on setting the group up counts as the run's, and is much in so little
        // time.
        tokio::time::sleep(WATCHED.saturating_sub(age())).await;
        let mut meter = Meter::starting(cgroup::now().saturating_sub(age()));
        let mut text = Vec::new();
        let stats = &self.ctx.shared.stats;
        loop {
            let counters = match group.read(&mut text) {
                Err(CgroupError::Gone) => return Ok(()),
                other => other?,
            };
            let watched = stats.receiver_count() > 0;
            if watched {
                self.count_disk().await;
            }
            let sample = meter.read(counters, age(), self.disk_bytes);
            publish(stats, sample);
            self.ctx.shared.recent_stats.push(self.run, sample);
            let pause = if watched { WATCHED } else { UNWATCHED };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.ctx.shared.stats_wanted.notified(), if !watched => {}
            }
        }
    }

    async fn count_disk(&mut self) {
        if self.disk_counted_at.is_some_and(|at| at.elapsed() < DISK_EVERY) {
            return;
        }
        self.disk_counted_at = Some(Instant::now());
        let volume = self.ctx.snapshot.spec.volume_id;
        match self.ctx.services.files.run(volume, |volume| volume.usage(None)).await {
            Ok(usage) => self.disk_bytes = Some(usage.used_bytes),
            Err(error) => {
                tracing::debug!(%volume, error = %Chain(&error), "cannot count a volume's files")
            }
        }
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
