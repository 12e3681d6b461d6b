//! Looking at the engine: when, and what a look is worth.
//!
//! Truth about a container is a look that succeeded and that nothing has overtaken. One that failed
//! changes nothing; that the engine is away is a mark on the snapshot and freezes everything else.

use std::time::Duration;

use tokio::time::Instant;

use super::task::{Owner, Report};
use crate::domain::ids::RunId;
use crate::domain::lifecycle::{Effect, Fact, Phase};
use crate::domain::observed::{Observed, ObservedStatus};
use crate::engine::{EngineError, Health};
use crate::util::chain::Chain;

/// Between the end of an output stream and the next attach, so that a stream that ends at once does not
/// make a loop.
pub(super) const LOOK_SOON: Duration = Duration::from_millis(250);

impl Owner {
    pub(super) fn look(&mut self) {
        if self.look_pending || !self.booted || self.unknown_since.is_some() {
            return;
        }
        let Some(docker_id) = self.record.docker_id.clone() else { return };
        self.look_pending = true;
        let (ctx, generation) = (self.ctx(), self.generation);
        self.tasks.spawn(async move {
            let seen = ctx.services.engine.inspect(&docker_id).await;
            ctx.report(Report::Looked { generation, seen }).await;
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
        let running = observed.as_ref().is_some_and(|seen| {
            matches!(seen.status, ObservedStatus::Running | ObservedStatus::Paused)
        });
        let engine_was_away = std::mem::take(&mut self.engine_was_away);
        self.fact(Fact::Seen { observed, engine_was_away }).await;
        if let Some(run) = self.record.machine.live_run()
            && running
            && !self.is_followed(run)
            && !matches!(self.record.machine.phase(), Phase::Starting { launched: false, .. })
        {
            self.carry_out(vec![Effect::Attach { run }]).await;
        }
    }

    fn is_followed(&self, run: RunId) -> bool {
        self.run_task.as_ref().is_some_and(|(of, task)| *of == run && !task.is_finished())
    }

    pub(super) async fn note_health(&mut self, health: &Health) {
        match health {
            Health::Reachable { .. } if self.booted && self.unknown_since.is_some() => {
                self.unknown_since = None;
                self.publish();
                self.look();
            }
            Health::Unreachable { since, .. } => {
                self.engine_was_away = true;
                if self.unknown_since.is_none() {
                    self.unknown_since = Some(*since);
                    self.publish();
                }
            }
            Health::Reachable { .. } => {}
        }
    }
}
