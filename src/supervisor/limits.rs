//! Other limits for what runs: given to the engine first, which may know better what is possible, then stored.
//!
//! Part of the owner task, called for what is asked of it and for what its child tasks report. One change comes
//! after the other, each merged into what those before have left. From before the engine is asked until its
//! answer is stored the store says that the Docker container is of another specification, so that a kill of
//! lightd in between leaves no limits that differ for good: the next start makes the container anew. An engine
//! that went away before it answered leaves it so.

use tokio::task::AbortHandle;

use super::record::With;
use super::task::Owner;
use super::{Accepted, Refusal, Reply};
use crate::domain::audit::Actor;
use crate::domain::spec::{Limits, LimitsPatch};
use crate::engine::{EngineError, EngineErrorKind};
use crate::store::StoreError;

/// Changes of limits that wait for the engine to have taken others.
const LIMITS_WANTED: usize = 16;

/// A change of limits on its way.
#[derive(Debug)]
pub(super) struct LimitsWanted {
    pub(super) change: LimitsPatch,
    pub(super) actor: Actor,
    pub(super) reply: Reply,
}

impl Owner {
    pub(super) async fn resources(&mut self, wanted: LimitsWanted) {
        if self.limits_wanted.len() >= LIMITS_WANTED {
            drop(wanted.reply.send(Err(Refusal::Busy)));
            return;
        }
        self.limits_wanted.push_back(wanted);
        self.next_limits().await;
    }

    pub(super) async fn next_limits(&mut self) {
        while self.limits_task.as_ref().is_none_or(AbortHandle::is_finished)
            && let Some(wanted) = self.limits_wanted.pop_front()
        {
            let limits = wanted.change.apply(self.record.spec.limits);
            let decided = if let Err(refusal) = self.may_have(limits) {
                Err(refusal)
            } else if self.has_workload() {
                match self.doubt_limits().await {
                    Ok(()) => {
                        let applying = self.ctx().apply_limits(limits, wanted);
                        self.limits_task = Some(self.tasks.spawn(applying));
                        return;
                    }
                    Err(error) => Err(Refusal::Store(error)),
                }
            } else {
                let mut spec = (*self.record.spec).clone();
                spec.limits = limits;
                self.update(spec, wanted.actor).await
            };
            // Whoever asked may have gone away; the decision stands.
            drop(wanted.reply.send(decided));
        }
    }

    async fn doubt_limits(&mut self) -> Result<(), StoreError> {
        self.record.limits_in_doubt = true;
        let stored = self.save(&[], With::default()).await;
        self.record.limits_in_doubt = stored.is_ok();
        stored
    }

    /// After a panic: those that wait shall not wait for ever, and nobody has told which limits there are.
    pub(super) async fn limits_task_ended(&mut self) {
        if self.limits_task.as_ref().is_some_and(AbortHandle::is_finished) {
            self.limits_task = None;
            self.record.restart_needed |= std::mem::take(&mut self.record.limits_in_doubt);
            self.next_limits().await;
        }
    }

    /// The engine has told that nothing was changed.
    async fn limits_refused(&mut self, refusal: Refusal) -> Refusal {
        if let Err(error) = self.save(&[], With::default()).await {
            self.store_later(With::default(), &error);
        }
        refusal
    }

    /// Whether these limits may be set. The engine is asked for those of a workload only.
    pub(super) fn may_have(&self, limits: Limits) -> Result<(), Refusal> {
        let problems = limits.problems(self.services.capacity);
        if !problems.is_empty() {
            return Err(Refusal::Invalid(problems));
        }
        let is_away = self.unknown_since.is_some() || !self.booted;
        if is_away && self.has_workload() { Err(Refusal::EngineUnavailable) } else { Ok(()) }
    }

    fn has_workload(&self) -> bool {
        self.record.docker_id.is_some() && self.record.machine.live_run().is_some()
    }

    /// The engine has answered to new limits for what runs. `is_replaced`: another Docker container has taken
    /// its place since.
    pub(super) async fn limits_applied(
        &mut self,
        change: LimitsPatch,
        actor: Actor,
        is_replaced: bool,
        result: Result<Vec<String>, EngineError>,
    ) -> Result<Accepted, Refusal> {
        self.record.limits_in_doubt = false;
        match result {
            Err(error) if error.is_away() => {
                // Stored already.
                self.record.restart_needed = true;
                self.publish();
                Err(Refusal::EngineUnavailable)
            }
            // So it says, for one, that more memory is in use than there would be.
            Err(error) if error.kind() == EngineErrorKind::Internal => {
                Err(self.limits_refused(Refusal::Limits(error)).await)
            }
            Err(error) => Err(self.limits_refused(Refusal::Engine(error)).await),
            Ok(warnings) => {
                let mut spec = (*self.record.spec).clone();
                spec.limits = change.apply(spec.limits);
                // The engine has them, but lifts none; what else waits for a restart goes on waiting.
                let waits = !spec.limits.lifted_since(&self.record.spec.limits).is_empty();
                let restart_needed = self.record.restart_needed || waits || is_replaced;
                let replaced = self.replace_spec(spec, restart_needed, actor).await;
                // The engine has limits then that are stored nowhere.
                self.record.restart_needed |= replaced.is_err();
                replaced.map(|accepted| Accepted { warnings, ..accepted })
            }
        }
    }
}
