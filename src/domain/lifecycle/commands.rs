//! Wishes: the rows of the table in the module above.
//!
//! Each names every phase, so that a new phase does not compile until each wish has its answer. A denied
//! wish has changed nothing.

use super::{
    AfterStop, Answer, Command, Denied, Effect, EndedBy, Machine, Phase, Policy, Rest, Uptime,
};
use crate::domain::event::StateName;
use crate::domain::ids::RunId;

pub(super) type Decision = Result<(Answer, Vec<Effect>), Denied>;

pub(super) fn accept(effects: Vec<Effect>) -> Decision {
    Ok((Answer::Accepted, effects))
}

pub(super) fn satisfied() -> Decision {
    Ok((Answer::Satisfied, Vec::new()))
}

impl Machine {
    /// Decides on a wish. A denied one has changed nothing.
    pub(crate) fn command(&mut self, command: Command, policy: Policy, now: Uptime) -> Decision {
        if matches!(self.phase, Phase::Deleting) {
            let is_so = matches!(command, Command::Delete | Command::Kill);
            return if is_so { satisfied() } else { Err(Denied::Deleting) };
        }
        let is_about_running =
            matches!(command, Command::Start | Command::Stop | Command::Restart | Command::Kill);
        let decision = match command {
            Command::Start => self.start(),
            Command::Stop => self.stop(policy, now),
            Command::Restart => self.restart(policy, now),
            Command::Kill => self.kill(now),
            Command::Pause => self.pause(),
            Command::Resume => self.resume(),
            Command::Reinstall => self.reinstall(policy, now),
            Command::Rebind => self.rebind(policy, now),
            Command::Suspend => self.suspend(policy, now),
            Command::Unsuspend => self.unsuspend(),
            Command::Delete => {
                self.phase = Phase::Deleting;
                accept(vec![self.emit(StateName::Deleting), Effect::Remove])
            }
            Command::Freeze => self.freeze(),
            Command::Thaw => self.thaw(),
        };
        if is_about_running && decision.is_ok() {
            self.restarts.reset();
        }
        if let Ok((_, effects)) = &decision
            && effects.iter().any(Effect::pauses)
        {
            self.pause_error = None;
        }
        self.forget_freeze();
        decision
    }

    fn start(&mut self) -> Decision {
        match &mut self.phase {
            Phase::Offline | Phase::Crashed { .. } => accept(self.begin_start(false)),
            Phase::Failed { .. } => Err(Denied::Failed),
            Phase::Suspended { .. } => Err(Denied::Suspended),
            Phase::Installing { .. } => Err(Denied::Installing),
            Phase::Starting { .. } | Phase::Running { .. } => satisfied(),
            Phase::Paused { .. } if self.freeze.is_some() => satisfied(),
            Phase::Paused { run, .. } => accept(vec![Effect::Unpause { run: *run }]),
            Phase::Stopping { next, .. } => match next {
                AfterStop::Rest | AfterStop::GiveUp => {
                    *next = AfterStop::Start;
                    self.wanted_up = true;
                    accept(Vec::new())
                }
                AfterStop::Start | AfterStop::Rebind => satisfied(),
                AfterStop::Reinstall => Err(Denied::Installing),
                AfterStop::Suspend => Err(Denied::Suspended),
            },
            Phase::Rebinding { rest: Rest::Offline, start_after, .. } => {
                *start_after = true;
                self.wanted_up = true;
                accept(Vec::new())
            }
            Phase::Rebinding { rest: Rest::Failed(_), .. } => Err(Denied::Failed),
            Phase::Rebinding { rest: Rest::Suspended { .. }, .. } => Err(Denied::Suspended),
            Phase::Deleting => Err(Denied::Deleting),
        }
    }

    fn stop(&mut self, policy: Policy, now: Uptime) -> Decision {
        match &mut self.phase {
            Phase::Offline | Phase::Failed { .. } | Phase::Suspended { .. } => satisfied(),
            Phase::Crashed { .. } => {
                self.phase = Phase::Offline;
                self.wanted_up = false;
                accept(vec![self.emit(StateName::Stopped)])
            }
            Phase::Installing { .. } => Err(Denied::Installing),
            Phase::Starting { .. } | Phase::Running { .. } | Phase::Paused { .. } => {
                accept(self.begin_stop(AfterStop::Rest, policy, now))
            }
            Phase::Stopping { next, .. } => {
                if matches!(next, AfterStop::Start | AfterStop::GiveUp) {
                    *next = AfterStop::Rest;
                }
                self.wanted_up = false;
                satisfied()
            }
            Phase::Rebinding { start_after, .. } => {
                *start_after = false;
                self.wanted_up = false;
                accept(Vec::new())
            }
            Phase::Deleting => Err(Denied::Deleting),
        }
    }

    fn restart(&mut self, policy: Policy, now: Uptime) -> Decision {
        match &self.phase {
            Phase::Offline | Phase::Crashed { .. } => accept(self.begin_start(false)),
            Phase::Starting { .. } | Phase::Running { .. } | Phase::Paused { .. } => {
                accept(self.begin_stop(AfterStop::Start, policy, now))
            }
            Phase::Stopping { next: AfterStop::Start, .. } => satisfied(),
            Phase::Stopping { .. } => Err(Denied::Stopping),
            Phase::Failed { .. } => Err(Denied::Failed),
            Phase::Suspended { .. } => Err(Denied::Suspended),
            Phase::Installing { .. } => Err(Denied::Installing),
            Phase::Rebinding { .. } => Err(Denied::Rebinding),
            Phase::Deleting => Err(Denied::Deleting),
        }
    }

    fn kill(&mut self, now: Uptime) -> Decision {
        match &mut self.phase {
            Phase::Offline | Phase::Failed { .. } | Phase::Suspended { .. } | Phase::Deleting => {
                satisfied()
            }
            Phase::Crashed { .. } => {
                self.phase = Phase::Offline;
                self.wanted_up = false;
                accept(vec![self.emit(StateName::Stopped)])
            }
            Phase::Installing { run, suspend_after } => {
                let (run, suspend_after) = (*run, *suspend_after);
                let reason = "the installation was aborted".to_owned();
                let mut effects = vec![Effect::AbortInstall { run }];
                effects.extend(self.install_failed(reason, suspend_after));
                accept(effects)
            }
            Phase::Starting { run, .. } | Phase::Running { run } | Phase::Paused { run, .. } => {
                let run = *run;
                accept(self.kill_run(run, now))
            }
            Phase::Stopping { run, next, killed, forced, .. } => {
                let run = *run;
                *forced |= !*killed;
                *killed = true;
                if matches!(next, AfterStop::Start | AfterStop::GiveUp) {
                    *next = AfterStop::Rest;
                    self.wanted_up = false;
                }
                accept(vec![Effect::Kill { run }])
            }
            Phase::Rebinding { start_after, .. } => {
                *start_after = false;
                self.wanted_up = false;
                accept(Vec::new())
            }
        }
    }

    fn kill_run(&mut self, run: RunId, now: Uptime) -> Vec<Effect> {
        let mut effects = self.end_trial();
        self.wanted_up = false;
        self.phase = Phase::Stopping {
            run,
            next: AfterStop::Rest,
            asked: EndedBy::Itself,
            killed: true,
            forced: true,
            kill_at: now,
        };
        effects.extend([self.emit(StateName::Stopping), Effect::Kill { run }]);
        effects
    }

    fn pause(&mut self) -> Decision {
        if self.freeze.is_some() {
            return Err(Denied::Snapshot);
        }
        match &self.phase {
            Phase::Running { run } => accept(vec![Effect::Pause { run: *run }]),
            Phase::Paused { .. } => satisfied(),
            other => Err(not_running(other)),
        }
    }

    fn resume(&mut self) -> Decision {
        if self.freeze.is_some() {
            return Err(Denied::Snapshot);
        }
        match &self.phase {
            Phase::Paused { run, .. } => accept(vec![Effect::Unpause { run: *run }]),
            Phase::Running { .. } => satisfied(),
            other => Err(not_running(other)),
        }
    }

    fn reinstall(&mut self, policy: Policy, now: Uptime) -> Decision {
        match &mut self.phase {
            Phase::Offline | Phase::Crashed { .. } | Phase::Failed { .. } => {
                accept(self.begin_install())
            }
            Phase::Suspended { .. } => Err(Denied::Suspended),
            Phase::Installing { .. } => Err(Denied::Installing),
            Phase::Starting { .. } | Phase::Running { .. } | Phase::Paused { .. } => {
                accept(self.begin_stop(AfterStop::Reinstall, policy, now))
            }
            Phase::Stopping { next, .. } => match next {
                AfterStop::Rest | AfterStop::Start | AfterStop::Reinstall | AfterStop::GiveUp => {
                    *next = AfterStop::Reinstall;
                    self.wanted_up = false;
                    accept(Vec::new())
                }
                AfterStop::Rebind => Err(Denied::Rebinding),
                AfterStop::Suspend => Err(Denied::Suspended),
            },
            Phase::Rebinding { .. } => Err(Denied::Rebinding),
            Phase::Deleting => Err(Denied::Deleting),
        }
    }

    fn rebind(&mut self, policy: Policy, now: Uptime) -> Decision {
        let rest = match &self.phase {
            Phase::Offline | Phase::Crashed { .. } => Rest::Offline,
            Phase::Failed { reason } => Rest::Failed(reason.clone()),
            Phase::Suspended { failed } => Rest::Suspended { failed: failed.clone() },
            Phase::Starting { .. } | Phase::Running { .. } | Phase::Paused { .. } => {
                return accept(self.begin_stop(AfterStop::Rebind, policy, now));
            }
            Phase::Stopping { .. } => return Err(Denied::Stopping),
            Phase::Installing { .. } => return Err(Denied::Installing),
            Phase::Rebinding { .. } => return Err(Denied::Rebinding),
            Phase::Deleting => return Err(Denied::Deleting),
        };
        // A workload that waits for its restart after a crash is started by the rebind instead.
        let start_after = matches!(self.phase, Phase::Crashed { .. });
        self.phase = Phase::Rebinding { undo: false, start_after, rest };
        accept(vec![Effect::Rebind])
    }

    fn suspend(&mut self, policy: Policy, now: Uptime) -> Decision {
        match &mut self.phase {
            Phase::Offline | Phase::Crashed { .. } => {
                self.phase = Phase::Suspended { failed: None };
                self.wanted_up = false;
                accept(vec![self.emit(StateName::Suspended)])
            }
            Phase::Failed { reason } => {
                let failed = Some(std::mem::take(reason));
                self.phase = Phase::Suspended { failed };
                accept(vec![self.emit(StateName::Suspended)])
            }
            Phase::Suspended { .. } => satisfied(),
            Phase::Installing { suspend_after, .. } => {
                *suspend_after = true;
                accept(Vec::new())
            }
            Phase::Starting { .. } | Phase::Running { .. } | Phase::Paused { .. } => {
                accept(self.begin_stop(AfterStop::Suspend, policy, now))
            }
            Phase::Stopping { next: AfterStop::Rebind, .. } => Err(Denied::Rebinding),
            Phase::Stopping { next, .. } => {
                *next = AfterStop::Suspend;
                self.wanted_up = false;
                accept(Vec::new())
            }
            Phase::Rebinding { rest, start_after, .. } => {
                *rest = match std::mem::replace(rest, Rest::Offline) {
                    Rest::Offline => Rest::Suspended { failed: None },
                    Rest::Failed(reason) => Rest::Suspended { failed: Some(reason) },
                    suspended @ Rest::Suspended { .. } => suspended,
                };
                *start_after = false;
                self.wanted_up = false;
                accept(vec![self.emit(StateName::Suspended)])
            }
            Phase::Deleting => Err(Denied::Deleting),
        }
    }

    fn unsuspend(&mut self) -> Decision {
        match &mut self.phase {
            Phase::Suspended { failed } => {
                let (phase, name) = match failed.take() {
                    Some(reason) => (Phase::Failed { reason }, StateName::Failed),
                    None => (Phase::Offline, StateName::Stopped),
                };
                self.phase = phase;
                accept(vec![self.emit(name)])
            }
            Phase::Installing { suspend_after, .. } => {
                *suspend_after = false;
                satisfied()
            }
            Phase::Stopping { next, .. } if *next == AfterStop::Suspend => {
                *next = AfterStop::Rest;
                accept(Vec::new())
            }
            Phase::Rebinding { rest, .. } => {
                *rest = match std::mem::replace(rest, Rest::Offline) {
                    Rest::Suspended { failed: Some(reason) } => Rest::Failed(reason),
                    Rest::Suspended { failed: None } => Rest::Offline,
                    other => other,
                };
                satisfied()
            }
            Phase::Offline
            | Phase::Crashed { .. }
            | Phase::Failed { .. }
            | Phase::Starting { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. }
            | Phase::Stopping { .. } => satisfied(),
            Phase::Deleting => Err(Denied::Deleting),
        }
    }

    /// Begins to end the live run.
    pub(super) fn begin_stop(
        &mut self,
        next: AfterStop,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        let Some(run) = self.live_run() else { return Vec::new() };
        let mut effects = self.end_trial();
        let unpause = matches!(self.phase, Phase::Paused { .. }) || self.freeze.is_some();
        self.wanted_up = matches!(next, AfterStop::Start | AfterStop::Rebind | AfterStop::GiveUp);
        self.phase = Phase::Stopping {
            run,
            next,
            asked: policy.stop_by,
            killed: false,
            forced: false,
            kill_at: now + policy.stop_grace,
        };
        effects.extend([self.emit(StateName::Stopping), Effect::Stop { run, unpause }]);
        effects
    }

    /// Whoever ends a trial start by hand has decided: the new ports stay.
    fn end_trial(&self) -> Vec<Effect> {
        match self.phase {
            Phase::Starting { trial: true, .. } => vec![Effect::FinishRebind],
            _ => Vec::new(),
        }
    }
}

pub(super) fn not_running(phase: &Phase) -> Denied {
    match phase {
        Phase::Starting { .. } => Denied::Starting,
        Phase::Stopping { .. } => Denied::Stopping,
        Phase::Installing { .. } => Denied::Installing,
        Phase::Suspended { .. } => Denied::Suspended,
        Phase::Rebinding { .. } => Denied::Rebinding,
        Phase::Deleting => Denied::Deleting,
        Phase::Failed { .. }
        | Phase::Offline
        | Phase::Crashed { .. }
        | Phase::Running { .. }
        | Phase::Paused { .. } => Denied::NotRunning,
    }
}
