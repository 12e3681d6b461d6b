//! Facts: what happened, and what follows from it in each phase.
//!
//! What was seen rather than told (a look at the engine, the clock) is judged in [`super::sightings`],
//! and comes here as the fact that it shows.

use std::time::Duration;

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
            Fact::Started { run, launched_at_ms, ready_at_ms } => {
                let ready_by = policy.start_timeout.map(|limit| now + limit);
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
            Fact::FreezeEnded { run, frozen } => self.freeze_ended(run, frozen),
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

    fn ready(&mut self, of: RunId, at_ms: i64) -> Vec<Effect> {
        match self.phase {
            Phase::Starting { run, trial, .. } if run == of => {
                self.phase = Phase::Running { run };
                self.times.ready_at_ms = Some(at_ms);
                let mut effects = vec![self.emit(StateName::Running)];
                if trial {
                    effects.push(Effect::FinishRebind);
                }
                effects
            }
            Phase::Paused { run, ref mut ready } if run == of => {
                if !std::mem::replace(ready, true) {
                    self.times.ready_at_ms = Some(at_ms);
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Sets the start's deadline after a break in which nobody looked at the output. A later one, of a
    /// pause that ended, stays.
    fn caught_up(&mut self, of: RunId, at_ms: i64, policy: Policy, now: Uptime) -> Vec<Effect> {
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
            Phase::Starting { run, launched: true, .. } if run == of => {}
            _ => return Vec::new(),
        }
        let mut effects = vec![Effect::Say(format!("the start failed: {reason}"))];
        self.start_error = Some(reason);
        effects.extend(self.begin_stop(AfterStop::GiveUp, policy, now));
        effects
    }

    fn start_failed(
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
        self.last_exit = Some(exit);
        let mut effects = vec![Effect::Emit(StateEvent {
            name: StateName::Exit,
            run: of,
            exit_code: Some(exit.code),
            oom_killed: Some(exit.oom_killed),
        })];
        match &self.phase {
            Phase::Stopping { next, .. } => {
                let next = next.clone();
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
        if exit.code != 0 || exit.oom_killed {
            return self.crashed(policy, now);
        }
        self.phase = Phase::Offline;
        self.wanted_up = false;
        vec![self.emit(StateName::Stopped)]
    }

    fn crashed(&mut self, policy: Policy, now: Uptime) -> Vec<Effect> {
        match policy.crash {
            CrashPolicy::Restart => self.crash_again(policy, now),
            CrashPolicy::StayDown => {
                self.phase = Phase::Offline;
                self.wanted_up = false;
                vec![self.emit(StateName::Stopped)]
            }
        }
    }

    pub(super) fn crash_again(&mut self, policy: Policy, now: Uptime) -> Vec<Effect> {
        let delay = match policy.crash {
            CrashPolicy::Restart => self.restarts.crashed(now),
            CrashPolicy::StayDown => None,
        };
        match delay {
            Some(delay) => {
                self.phase = Phase::Crashed { restart_at: now + delay };
                let seconds = delay.as_secs();
                vec![
                    self.emit(StateName::Stopped),
                    Effect::Say(format!("it crashed; the next start is in {seconds} s")),
                ]
            }
            None => {
                self.phase = Phase::Offline;
                self.wanted_up = false;
                vec![
                    self.emit(StateName::Stopped),
                    Effect::Say("it crashed too often and stays down".to_owned()),
                ]
            }
        }
    }

    fn after_stop(&mut self, next: AfterStop, policy: Policy, now: Uptime) -> Vec<Effect> {
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
