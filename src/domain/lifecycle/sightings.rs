//! What a look at the engine shows, and what the clock says: at boot, after an outage, at any time.
//!
//! Only looks that succeeded come here. An exit that a look shows is one like any other, unless the
//! engine was away meanwhile: then it, and not the workload, has ended the run.

use std::time::Duration;

use super::{Effect, EndedBy, Interruption, Machine, Phase, Policy, Uptime};
use crate::domain::event::StateName;
use crate::domain::ids::RunId;
use crate::domain::observed::{Exit, Observed, ObservedStatus};
use crate::domain::restart::CrashPolicy;

/// How long after an outage a start is waited for, at least: what it printed has to reach us.
const OUTPUT_CATCHES_UP: Duration = Duration::from_secs(5);

impl Machine {
    /// Takes up a stored machine again: what was under way when lightd ended is done again from the
    /// phase alone. Called once, with the first successful look at the engine.
    pub(crate) fn boot(
        &mut self,
        observed: Option<Observed>,
        interruption: Interruption,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        let engine_was_away = interruption != Interruption::None;
        let is_there = observed.as_ref().is_some_and(|seen| {
            matches!(seen.status, ObservedStatus::Running | ObservedStatus::Paused)
        });
        let mut effects = match &mut self.phase {
            Phase::Installing { run, .. } => vec![Effect::Install { run: *run }],
            Phase::Deleting => vec![Effect::Remove],
            Phase::Rebinding { undo: false, .. } => vec![Effect::Rebind],
            Phase::Rebinding { undo: true, .. } => vec![Effect::UndoRebind],
            Phase::Starting { run, launched: false, .. } if !is_there => {
                vec![Effect::Start { run: *run, paced: true }]
            }
            Phase::Starting { run, .. } | Phase::Running { run } | Phase::Paused { run, .. }
                if is_there =>
            {
                let run = *run;
                self.go_on(run, observed, engine_was_away, policy, now)
            }
            Phase::Stopping { run, killed, kill_at, .. } if is_there => {
                let run = *run;
                *kill_at = now + policy.stop_grace;
                let stop = Effect::Stop { run, unpause: true };
                vec![Effect::Attach { run }, if *killed { Effect::Kill { run } } else { stop }]
            }
            Phase::Crashed { .. } => self.wait_again(policy, now),
            Phase::Offline
                if policy.autostart && interruption == Interruption::Host && !is_there =>
            {
                self.start_with_host()
            }
            _ => self.seen(observed, engine_was_away, policy, now),
        };
        effects.extend(self.thaw_at_boot());
        // Of a crash that lightd did not outlive.
        effects.extend(self.post_mortem_due.map(|run| Effect::PostMortem { run }));
        effects
    }

    fn start_with_host(&mut self) -> Vec<Effect> {
        self.restarts.reset();
        let mut effects = vec![Effect::Say("the host was started, and so is it".to_owned())];
        effects.extend(self.begin_paced_start());
        effects
    }

    /// What had crashed waits for its restart anew.
    fn wait_again(&mut self, policy: Policy, now: Uptime) -> Vec<Effect> {
        match policy.crash {
            CrashPolicy::Restart(rule) => {
                let restart_at = now + self.restarts.delay(&rule, policy.chance);
                self.phase = Phase::Crashed { restart_at };
                Vec::new()
            }
            // Not wanted any more.
            CrashPolicy::StayDown => {
                self.phase = Phase::Offline;
                self.wanted_up = false;
                vec![self.emit(StateName::Stopped)]
            }
        }
    }

    /// Follows a run that the engine still has.
    fn go_on(
        &mut self,
        run: RunId,
        observed: Option<Observed>,
        engine_was_away: bool,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if matches!(self.phase, Phase::Starting { .. }) {
            let launched_at_ms = observed.as_ref().and_then(|seen| seen.started_at_ms);
            // Its deadline is set once what it printed meanwhile was looked at.
            effects = self.started(run, launched_at_ms, None, None);
        }
        let is_paused = observed.as_ref().is_some_and(|seen| seen.status == ObservedStatus::Paused);
        // The engine attaches nobody to what is paused.
        effects.extend((!is_paused).then_some(Effect::Attach { run }));
        effects.extend(self.seen(observed, engine_was_away, policy, now));
        effects
    }

    /// The engine is back after an outage, in which a stop could not reach the workload, nor its output
    /// us: the grace begins now, and a start is not given up before what it printed was looked at.
    pub(crate) fn engine_back(&mut self, policy: Policy, now: Uptime) {
        match &mut self.phase {
            Phase::Stopping { killed: false, kill_at, .. } => *kill_at = now + policy.stop_grace,
            Phase::Starting { ready_by: Some(ready_by), .. } => {
                *ready_by = (*ready_by).max(now + OUTPUT_CATCHES_UP);
            }
            _ => {}
        }
    }

    pub(super) fn seen(
        &mut self,
        observed: Option<Observed>,
        engine_was_away: bool,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        let launched = !matches!(self.phase, Phase::Starting { launched: false, .. });
        match (self.live_run(), observed) {
            (Some(_), _) if !launched => Vec::new(),
            (Some(run), None) => self.vanished(run, policy, now),
            (Some(run), Some(seen)) => match seen.status {
                ObservedStatus::Running => self.resumed(run, policy, now),
                ObservedStatus::Paused => self.paused(run),
                // Made anew behind our back and never started.
                ObservedStatus::Created => self.vanished(run, policy, now),
                ObservedStatus::Exited(exit) => {
                    self.seen_exited(run, exit, engine_was_away, policy, now)
                }
            },
            (None, Some(seen)) => match (&self.phase, seen.status) {
                (
                    Phase::Offline
                    | Phase::Crashed { .. }
                    | Phase::Suspended { .. }
                    | Phase::Failed { .. },
                    ObservedStatus::Running | ObservedStatus::Paused,
                ) => vec![
                    Effect::Say("it was running although it should not; it is stopped".to_owned()),
                    Effect::Kill { run: self.run },
                ],
                _ => Vec::new(),
            },
            (None, None) => Vec::new(),
        }
    }

    /// An exit that nobody watched. If the engine was away, it or the host ended the workload: what was
    /// meant to run is started again, and not counted as a crash.
    fn seen_exited(
        &mut self,
        run: RunId,
        exit: Exit,
        engine_was_away: bool,
        policy: Policy,
        now: Uptime,
    ) -> Vec<Effect> {
        let stopping = matches!(self.phase, Phase::Stopping { .. });
        if engine_was_away && !stopping {
            self.note_exit_by(exit, EndedBy::Engine);
            let mut effects =
                vec![Effect::Say("the engine had ended it; it is started again".to_owned())];
            effects.extend(self.begin_paced_start());
            return effects;
        }
        self.exited(run, exit, policy, now)
    }

    pub(super) fn woke(&mut self, policy: Policy, now: Uptime) -> Vec<Effect> {
        match &mut self.phase {
            Phase::Stopping { run, killed, kill_at, .. } if !*killed && *kill_at <= now => {
                *killed = true;
                let run = *run;
                vec![
                    Effect::Say("it did not stop in time and is killed".to_owned()),
                    Effect::Kill { run },
                ]
            }
            Phase::Crashed { restart_at } if *restart_at <= now => self.begin_paced_start(),
            Phase::Starting { run, ready_by, .. } if ready_by.is_some_and(|at| at <= now) => {
                let run = *run;
                match policy.start_timeout {
                    Some(limit) => {
                        let reason = format!("it was not ready within {} s", limit.as_secs());
                        self.give_up(run, reason, policy, now)
                    }
                    // The limit was lifted since.
                    None => {
                        *ready_by = None;
                        Vec::new()
                    }
                }
            }
            _ => Vec::new(),
        }
    }
}
