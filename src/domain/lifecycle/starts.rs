//! Starts: from the engine's word that the process is there to the workload's that it is up, or will
//! never be.
//!
//! A deadline counts only while somebody reads the output: after a break it is set when all that was
//! printed meanwhile was looked at, so that what was ready in time is not given up.

use std::time::Duration;

use super::{AfterStop, Effect, Machine, Phase, Policy, Rest, Uptime};
use crate::domain::event::{StateEvent, StateName};
use crate::domain::ids::RunId;

impl Machine {
    pub(super) fn started(
        &mut self,
        of: RunId,
        launched_at_ms: Option<i64>,
        ready_at_ms: Option<i64>,
        deadline: Option<Uptime>,
    ) -> Vec<Effect> {
        let Phase::Starting { run, launched, trial, ready_by } = &mut self.phase else {
            return Vec::new();
        };
        if *run != of || *launched {
            return Vec::new();
        }
        *launched = true;
        *ready_by = deadline;
        self.times.launched_at_ms = launched_at_ms;
        let mut effects = Vec::new();
        if std::mem::take(trial) {
            effects.push(Effect::FinishRebind);
        }
        if let Some(at_ms) = ready_at_ms {
            effects.extend(self.ready(of, at_ms));
        }
        effects
    }

    pub(super) fn ready(&mut self, of: RunId, at_ms: i64) -> Vec<Effect> {
        match self.phase {
            Phase::Starting { run, trial, .. } if run == of => {
                self.phase = Phase::Running { run };
                self.note_ready(at_ms);
                let mut effects = vec![Effect::Emit(StateEvent {
                    name: StateName::Running,
                    run,
                    last_exit: None,
                    ready_after_ms: self.times.ready_after_ms(),
                })];
                if trial {
                    effects.push(Effect::FinishRebind);
                }
                effects
            }
            Phase::Paused { run, ref mut ready } if run == of => {
                if !std::mem::replace(ready, true) {
                    self.note_ready(at_ms);
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// The engine dates a start when it is done with it, and the process may have printed by then.
    fn note_ready(&mut self, at_ms: i64) {
        self.times.ready_at_ms = Some(self.times.launched_at_ms.map_or(at_ms, |ms| ms.max(at_ms)));
    }

    /// Sets the start's deadline after a break in which nobody looked at the output. A later one, of a
    /// pause that ended, stays.
    pub(super) fn caught_up(
        &mut self,
        of: RunId,
        at_ms: i64,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        if let Phase::Starting { run, launched: true, ready_by, .. } = &mut self.phase
            && *run == of
        {
            let up_for = at_ms.saturating_sub(self.times.launched_at_ms.unwrap_or(at_ms));
            let up_for = Duration::from_millis(u64::try_from(up_for).unwrap_or(0));
            let due = policy.start_timeout.map(|limit| now + limit.saturating_sub(up_for));
            *ready_by = (*ready_by).max(due);
        }
        Vec::new()
    }

    /// Ends a start that will not come to anything. What follows is what follows a crash.
    pub(super) fn give_up(
        &mut self,
        of: RunId,
        reason: String,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        match self.phase {
            // Paused: what it printed before is looked at a moment later.
            Phase::Starting { run, launched: true, .. } | Phase::Paused { run, ready: false }
                if run == of => {}
            _ => return Vec::new(),
        }
        let mut effects = vec![Effect::Say(format!("the start failed: {reason}"))];
        self.start_error = Some(reason);
        effects.extend(self.begin_stop(AfterStop::GiveUp, policy, now));
        effects
    }

    pub(super) fn start_failed(
        &mut self,
        of: RunId,
        reason: String,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        if self.live_run() != Some(of) {
            return Vec::new();
        }
        let say = Effect::Say(format!("the start failed: {reason}"));
        if let Phase::Stopping { next, .. } = &self.phase {
            let next = next.clone();
            let mut effects = vec![say];
            effects.extend(self.after_stop(next, policy, now));
            return effects;
        }
        self.start_error = Some(reason);
        if matches!(self.phase, Phase::Starting { trial: true, .. }) {
            self.phase = Phase::Rebinding { undo: true, start_after: true, rest: Rest::Offline };
            return vec![say, self.emit(StateName::Stopped), Effect::UndoRebind];
        }
        self.phase = Phase::Offline;
        self.wanted_up = false;
        vec![say, self.emit(StateName::Stopped)]
    }
}
