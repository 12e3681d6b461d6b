//! Looking at the engine: when, and what a look is worth.
//!
//! Truth about a container is a look that succeeded and that nothing has overtaken. One that failed
//! changes nothing; that the engine is away is a mark on the snapshot and freezes everything else.

use std::time::Duration;

use tokio::time::Instant;

use super::record::is_of_run;
use super::task::{BootLook, Owner, Report};
use super::workload::{aside_name, install_name, policy};
use crate::domain::ids::RunId;
use crate::domain::lifecycle::{Effect, Fact, Phase};
use crate::domain::observed::{Observed, ObservedStatus};
use crate::domain::spec::HostPort;
use crate::engine::{EngineError, Health, Ours};
use crate::util::chain::Chain;

/// Between the end of an output stream and the next attach, so that a stream that ends at once does not
/// make a loop.
pub(super) const LOOK_SOON: Duration = Duration::from_millis(250);

/// How long after a look has shown a run's end its follower may take to tell of it.
const FOLLOWER_TELLS: Duration = Duration::from_secs(20);

impl Owner {
    /// Takes up a stored container with the first look at what the engine has of it.
    pub(super) async fn boot(&mut self, look: BootLook) {
        if self.booted {
            return;
        }
        let ended = self.ended_unwatched(look.seen.as_ref());
        if let Some((run, docker_id)) = ended.clone()
            && !look.rest_is_read
        {
            return self.read_rest_before(look, run, docker_id);
        }
        self.booted = true;
        self.unknown_since = None;
        // Whether the engine was away is in the look; what was noted before it is from before lightd.
        self.engine_was_away = false;
        let before = self.record.machine.clone();
        let (policy, now) =
            (policy(&self.record.spec, &self.services.settings()), self.services.uptime());
        if let Some(seen) = &look.seen {
            self.record.docker_id = Some(seen.docker_id.clone());
            self.compare_ports(&look.published);
        }
        self.drop_leftovers(look.others);
        let machine = &mut self.record.machine;
        // A start whose success was not stored any more: it is not started twice.
        let began_at_ms = look.seen.as_ref().and_then(|seen| seen.started_at_ms);
        let mut effects = match (ended, began_at_ms) {
            (Some((run, _)), Some(launched_at_ms)) => {
                let started =
                    Fact::Started { run, launched_at_ms, ready_at_ms: None, up_for: None };
                machine.fact(started, policy, now)
            }
            _ => Vec::new(),
        };
        effects.extend(machine.boot(look.seen, look.interruption, policy, now));
        if self.record.previous_ports.is_some() && !self.record.rebind_is_open() {
            effects.insert(0, Effect::FinishRebind);
            self.unsaved = true;
        }
        self.settle(&before, effects).await;
        self.publish();
    }

    /// The end of a run is judged once its last lines are here.
    fn read_rest_before(&mut self, look: BootLook, run: RunId, docker_id: String) {
        let ctx = self.ctx();
        self.tasks.spawn(async move {
            ctx.take_unread(run, &docker_id).await;
            ctx.report(Report::Boot(BootLook { rest_is_read: true, ..look })).await;
        });
    }

    /// A Docker container on other ports than the row's is one of a later time, and the store an earlier one
    /// that was put back. The row counts: the next start makes the container anew.
    fn compare_ports(&mut self, published: &[HostPort]) {
        let is_moving = self.record.needs_what_is_aside() || self.record.previous_ports.is_some();
        let mut bound: Vec<_> = self.record.ports.iter().map(|binding| binding.host).collect();
        bound.sort_unstable();
        if !is_moving && bound != published {
            tracing::warn!(container.id = %self.record.id, ?bound, ?published, "it publishes other ports than were stored; its next start makes it anew");
            self.record.restart_needed = true;
            self.unsaved = true;
        }
    }

    /// The latest run, if it has ended and nobody has told of it yet.
    fn ended_unwatched(&self, seen: Option<&Observed>) -> Option<(RunId, String)> {
        let (run, seen) = (self.record.machine.live_run()?, seen?);
        let ended = matches!(seen.status, ObservedStatus::Exited(_));
        (ended && is_of_run(seen, self.record.begun_at_ms)).then(|| (run, seen.docker_id.clone()))
    }

    /// Removes what a crash left of an install that has ended, or of a rebind that was finished.
    fn drop_leftovers(&mut self, others: Vec<Ours>) {
        let installing = matches!(self.record.machine.phase(), Phase::Installing { .. });
        let rebinding = self.record.needs_what_is_aside();
        for other in others {
            let left = (other.name == install_name(&self.record.id) && !installing)
                || (other.name == aside_name(&self.record.id) && !rebinding);
            if left {
                tracing::info!(container.id = %self.record.id, docker.name = other.name, "removing what a crash left behind");
                self.tasks.spawn(self.ctx().remove_leftover(other.docker_id));
            }
        }
    }

    pub(super) fn look(&mut self) {
        if self.look_pending || !self.booted || self.unknown_since.is_some() {
            return;
        }
        let Some(docker_id) = self.record.docker_id.clone() else { return };
        self.look_pending = true;
        let (ctx, generation) = (self.ctx(), self.generation);
        let launched =
            !matches!(self.record.machine.phase(), Phase::Starting { launched: false, .. });
        let unfollowed =
            self.record.machine.live_run().filter(|run| launched && !self.is_followed(*run));
        self.tasks.spawn(async move {
            let seen = ctx.services.engine.inspect(&docker_id).await;
            if let (Some(run), Ok(Some(seen))) = (unfollowed, &seen)
                && matches!(seen.status, ObservedStatus::Exited(_))
                && is_of_run(seen, ctx.begun_at_ms)
            {
                ctx.take_unread(run, &docker_id).await;
            }
            // What the engine's health has not shown: it was started again faster than it is asked.
            let has_ended =
                matches!(&seen, Ok(Some(seen)) if matches!(seen.status, ObservedStatus::Exited(_)));
            let engine =
                if has_ended { ctx.services.engine.note_incarnation().await } else { None };
            ctx.report(Report::Looked { generation, seen, engine }).await;
        });
    }

    pub(super) async fn looked(
        &mut self,
        generation: u64,
        seen: Result<Option<Observed>, EngineError>,
    ) {
        self.look_pending = false;
        let observed = match seen {
            // A look that failed is not a sighting; that the engine is away shows in its health.
            Err(error) => {
                tracing::debug!(container.id = %self.record.id, error = %Chain(&error), "a look at the engine failed");
                self.look_at = Some(Instant::now() + LOOK_SOON * 4);
                return;
            }
            Ok(observed) => observed,
        };
        if generation != self.generation {
            self.look_at = Some(Instant::now() + LOOK_SOON);
            return;
        }
        let status = observed.as_ref().map(|seen| seen.status);
        if matches!(status, Some(ObservedStatus::Exited(_))) && self.follower_will_tell() {
            self.look_at = Some(Instant::now() + LOOK_SOON * 4);
            return;
        }
        let engine_was_away = std::mem::take(&mut self.engine_was_away);
        self.fact(Fact::Seen { observed, engine_was_away }).await;
        // The engine attaches nobody to what is paused.
        if let Some(run) = self.record.machine.live_run()
            && status == Some(ObservedStatus::Running)
            && !self.is_followed(run)
            && !matches!(self.record.machine.phase(), Phase::Starting { launched: false, .. })
        {
            self.carry_out(vec![Effect::Attach { run }]).await;
        }
    }

    /// Whether an end that a look shows is left to the run's follower, which tells of it after the last
    /// line and with its cause. One that has not told for long has lost its connections unnoticed.
    fn follower_will_tell(&mut self) -> bool {
        let Some(run) = self.record.machine.live_run().filter(|run| self.is_followed(*run)) else {
            return false;
        };
        let since = match self.end_seen {
            Some((of, since)) if of == run => since,
            _ => Instant::now(),
        };
        self.end_seen = Some((run, since));
        since.elapsed() < FOLLOWER_TELLS
    }

    fn is_followed(&self, run: RunId) -> bool {
        self.run_task.as_ref().is_some_and(|(of, task)| *of == run && !task.abort.is_finished())
    }

    /// Takes note of which run of the engine answers, `came_back` after an absence. Out of reach, but the
    /// same: what has ended meanwhile did so by itself.
    pub(super) fn note_engine(&mut self, present: Option<&str>, came_back: bool) {
        let is_other = match (self.engine.as_deref(), present) {
            (Some(before), Some(present)) => before != present,
            (None, _) | (_, None) => came_back,
        };
        self.engine_was_away |= is_other;
        if let Some(present) = present {
            self.engine = Some(present.to_owned());
        }
    }

    pub(super) async fn note_health(&mut self, health: &Health) {
        if health.is_reachable() {
            self.note_engine(health.incarnation(), self.unknown_since.is_some());
        }
        match health {
            Health::Reachable { .. } if self.booted && self.unknown_since.is_some() => {
                self.unknown_since = None;
                let (policy, now) =
                    (policy(&self.record.spec, &self.services.settings()), self.services.uptime());
                self.record.machine.engine_back(policy, now);
                self.publish();
                self.look();
            }
            Health::Unreachable { since, .. } => {
                if self.unknown_since.is_none() {
                    self.unknown_since = Some(*since);
                    self.publish();
                }
            }
            Health::Reachable { .. } => {}
        }
    }
}
