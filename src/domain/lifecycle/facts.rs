//! Facts: what happened, and what follows from it in each phase.
//!
//! What was seen rather than told (a look at the engine, the clock) is judged in [`super::sightings`],
//! and comes here as the fact that it shows.

use super::{AfterStop, Effect, Fact, Machine, Phase, Policy, Rest, Uptime};
use crate::domain::event::{StateEvent, StateName};
use crate::domain::ids::RunId;
use crate::domain::observed::Exit;
use crate::domain::restart::CrashPolicy;

impl Machine {
    /// Takes in what happened. A fact about an earlier run, or one the phase already contains, has no
    /// effects.
    pub(crate) fn fact(&mut self, fact: Fact, policy: Policy, now: Uptime) -> Vec<Effect> {
        let effects = match fact {
            Fact::InstallEnded { run, result } => self.install_ended(run, result),
            Fact::Started { run, launched_at_ms, ready_at_ms, up_for } => {
                let limit = policy.start_timeout.zip(up_for);
                let ready_by = limit.map(|(limit, up_for)| now + limit.saturating_sub(up_for));
                self.started(run, Some(launched_at_ms), ready_at_ms, ready_by)
            }
            Fact::StartFailed { run, reason } => self.start_failed(run, reason, policy, now),
            Fact::Ready { run, at_ms } => self.ready(run, at_ms),
            Fact::Unready { run, reason } => self.give_up(run, reason, policy, now),
            Fact::CaughtUp { run, at_ms } => self.caught_up(run, at_ms, policy, now),
            Fact::Exited { run, exit } => self.exited(run, exit, policy, now),
            Fact::Vanished { run } => self.vanished(run, policy, now),
            Fact::Paused { run } => self.paused(run),
            Fact::Resumed { run } => self.resumed(run, policy, now),
            Fact::PauseRefused { run, reason } => self.pause_refused(run, reason),
            Fact::FreezeEnded { run, frozen } => self.freeze_ended(run, frozen),
            Fact::PostMortemKept { run } => {
                self.post_mortem_due.take_if(|due| *due == run);
                Vec::new()
            }
            Fact::Rebound => self.rebound(),
            Fact::RebindFailed { reason } => self.rebind_failed(reason),
            Fact::Removed => match self.phase {
                Phase::Deleting => vec![Effect::Forget],
                _ => Vec::new(),
            },
            Fact::Seen { observed, engine_was_away } => {
                self.seen(observed, engine_was_away, policy, now)
            }
            Fact::Woke => self.woke(policy, now),
        };
        self.forget_freeze();
        effects
    }

    fn install_ended(&mut self, of: RunId, result: Result<(), String>) -> Vec<Effect> {
        let Phase::Installing { run, suspend_after } = self.phase else { return Vec::new() };
        if run != of {
            return Vec::new();
        }
        let mut effects = match result {
            Err(reason) => self.install_failed(reason, suspend_after),
            Ok(()) => {
                self.phase = Phase::Offline;
                let mut effects = vec![self.emit(StateName::Ready)];
                if suspend_after {
                    self.phase = Phase::Suspended { failed: None };
                    effects.push(self.emit(StateName::Suspended));
                }
                effects
            }
        };
        effects.push(Effect::ClearInstall { run });
        effects
    }

    pub(super) fn install_failed(&mut self, reason: String, suspend_after: bool) -> Vec<Effect> {
        let mut effects = vec![
            Effect::Say(format!("installation failed: {reason}")),
            self.emit(StateName::Failed),
        ];
        if suspend_after {
            self.phase = Phase::Suspended { failed: Some(reason) };
            effects.push(self.emit(StateName::Suspended));
        } else {
            self.phase = Phase::Failed { reason };
        }
        effects
    }

    pub(super) fn exited(
        &mut self,
        of: RunId,
        exit: Exit,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        if self.live_run() != Some(of) {
            return Vec::new();
        }
        self.note_exit(exit);
        let mut effects = vec![Effect::Emit(StateEvent {
            name: StateName::Exit,
            run: of,
            last_exit: self.last_exit.clone(),
            ready_after_ms: None,
        })];
        match &self.phase {
            Phase::Stopping { next, .. } => {
                let next = next.clone();
                if next == AfterStop::GiveUp {
                    effects.push(self.keep_post_mortem());
                }
                effects.extend(self.after_stop(next, policy, now));
            }
            phase => {
                // A trial that ran and ended stood long enough: the engine took its ports.
                if matches!(phase, Phase::Starting { trial: true, .. }) {
                    effects.push(Effect::FinishRebind);
                }
                effects.extend(self.ended_by_itself(exit, policy, now));
            }
        }
        effects
    }

    fn ended_by_itself(&mut self, exit: Exit, policy: Policy, now: Uptime) -> Vec<Effect> {
        if exit.is_crash() {
            let mut effects = vec![self.keep_post_mortem()];
            effects.extend(self.crashed(policy, now));
            return effects;
        }
        self.phase = Phase::Offline;
        self.wanted_up = false;
        vec![self.emit(StateName::Stopped)]
    }

    /// What follows a crash, or a start that has failed.
    fn crashed(&mut self, policy: Policy, now: Uptime) -> Vec<Effect> {
        let CrashPolicy::Restart(rule) = policy.crash else {
            self.phase = Phase::Offline;
            self.wanted_up = false;
            return vec![self.emit(StateName::Stopped)];
        };
        let delay = self.restarts.crashed(&rule, self.crashed_at_ms(), policy.chance);
        let (count, max, window) = (self.restarts.count(), rule.max_restarts, rule.window_s);
        let text = match delay {
            Some(delay) => {
                self.phase = Phase::Crashed { restart_at: now + delay };
                let seconds = delay.as_secs_f64();
                format!(
                    "it crashed; restart {count} of {max} in {window} s follows in {seconds:.1} s"
                )
            }
            None => {
                self.phase = Phase::Offline;
                self.wanted_up = false;
                format!("it crashed more than {max} times in {window} s and stays down")
            }
        };
        vec![self.emit(StateName::Stopped), Effect::Say(text)]
    }

    pub(super) fn after_stop(
        &mut self,
        next: AfterStop,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        if next == AfterStop::GiveUp {
            return self.crashed(policy, now);
        }
        self.phase = Phase::Offline;
        let mut effects = vec![self.emit(StateName::Stopped)];
        match next {
            AfterStop::Rest | AfterStop::GiveUp => {}
            AfterStop::Start => effects.extend(self.begin_start(false)),
            AfterStop::Reinstall => effects.extend(self.begin_install()),
            AfterStop::Rebind => {
                self.phase =
                    Phase::Rebinding { undo: false, start_after: true, rest: Rest::Offline };
                effects.push(Effect::Rebind);
            }
            AfterStop::Suspend => {
                self.phase = Phase::Suspended { failed: None };
                effects.push(self.emit(StateName::Suspended));
            }
        }
        effects
    }

    pub(super) fn vanished(&mut self, of: RunId, policy: Policy, now: Uptime) -> Vec<Effect> {
        if self.live_run() != Some(of) {
            return Vec::new();
        }
        let say =
            Effect::Say("Docker has lost the container; the next start makes it anew".to_owned());
        let mut effects = vec![say];
        match &self.phase {
            Phase::Stopping { next, .. } => {
                let next = next.clone();
                effects.extend(self.after_stop(next, policy, now));
            }
            _ => {
                self.phase = Phase::Offline;
                self.wanted_up = false;
                effects.push(self.emit(StateName::Stopped));
            }
        }
        effects
    }

    pub(super) fn paused(&mut self, of: RunId) -> Vec<Effect> {
        let ready = match self.phase {
            Phase::Running { run } if run == of => true,
            Phase::Starting { run, launched: true, .. } if run == of => false,
            _ => return Vec::new(),
        };
        self.phase = Phase::Paused { run: of, ready };
        self.pause_error = None;
        vec![self.emit(StateName::Paused)]
    }

    pub(super) fn resumed(&mut self, of: RunId, policy: Policy, now: Uptime) -> Vec<Effect> {
        self.goes_on(of);
        let Phase::Paused { run, ready } = self.phase else { return Vec::new() };
        if run != of {
            return Vec::new();
        }
        if ready {
            self.phase = Phase::Running { run };
            vec![self.emit(StateName::Running)]
        } else {
            // What stood still could not become ready meanwhile.
            let ready_by = policy.start_timeout.map(|limit| now + limit);
            self.phase = Phase::Starting { run, launched: true, trial: false, ready_by };
            vec![self.emit(StateName::Starting)]
        }
    }

    fn pause_refused(&mut self, of: RunId, reason: String) -> Vec<Effect> {
        if self.live_run() != Some(of) {
            return Vec::new();
        }
        self.pause_error = Some(reason.clone());
        vec![Effect::Say(reason)]
    }

    fn rebound(&mut self) -> Vec<Effect> {
        let Phase::Rebinding { undo, start_after, rest } = &self.phase else { return Vec::new() };
        let (undo, start_after, rest) = (*undo, *start_after, rest.clone());
        self.phase = Phase::from(rest.clone());
        let startable = start_after && rest == Rest::Offline;
        match (undo, startable) {
            (false, true) => self.begin_start(true),
            (true, true) => self.begin_start(false),
            (false, false) => vec![Effect::FinishRebind],
            (true, false) => Vec::new(),
        }
    }

    fn rebind_failed(&mut self, reason: String) -> Vec<Effect> {
        let Phase::Rebinding { undo, .. } = &mut self.phase else { return Vec::new() };
        let first_failure = !std::mem::replace(undo, true);
        let mut effects = vec![Effect::Say(format!("changing the ports failed: {reason}"))];
        if first_failure {
            effects.push(Effect::UndoRebind);
        } else {
            // Undoing only puts names back; the next start makes the container anew from the old ports.
            effects.extend(self.rebound());
        }
        effects
    }
}
