//! A workload that stands still for a moment, so that its files can be copied as they are at one time.
//!
//! It is paused and goes on by itself: this is not the pause that people ask for, and neither ends the
//! other. What is wanted is stored before it is done, and nothing but the end of the run or the engine's
//! word that it goes on takes the mark away. A lightd that crashed has no copy to finish: the next one
//! lets the workload go on ([`Machine::thaw_at_boot`]).

use serde::{Deserialize, Serialize};

use super::commands::{Decision, accept, not_running, satisfied};
use super::{Denied, Effect, Machine, Phase};
use crate::domain::ids::RunId;

/// A run that stands still, or is about to, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Freeze {
    run: RunId,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Begun,
    Stands,
    Ending,
}

impl Machine {
    /// Whether this run stands still at the moment, for a copy.
    pub(crate) fn is_frozen(&self) -> bool {
        self.freeze.is_some_and(|freeze| freeze.stage == Stage::Stands)
    }

    /// Whether it does, or is about to, or is about to go on.
    pub(crate) fn is_freezing(&self) -> bool {
        self.freeze.is_some()
    }

    pub(super) fn freeze(&mut self) -> Decision {
        if self.freeze.is_some() {
            return Err(Denied::Snapshot);
        }
        match &self.phase {
            Phase::Running { run } | Phase::Starting { run, launched: true, .. } => {
                let run = *run;
                self.freeze = Some(Freeze { run, stage: Stage::Begun });
                accept(vec![Effect::Freeze { run }])
            }
            Phase::Paused { .. }
            | Phase::Offline
            | Phase::Crashed { .. }
            | Phase::Failed { .. }
            | Phase::Suspended { .. } => satisfied(),
            Phase::Starting { .. }
            | Phase::Stopping { .. }
            | Phase::Installing { .. }
            | Phase::Rebinding { .. }
            | Phase::Deleting => Err(not_running(&self.phase)),
        }
    }

    pub(super) fn thaw(&mut self) -> Decision {
        let Some(freeze) = &mut self.freeze else { return satisfied() };
        let before = std::mem::replace(&mut freeze.stage, Stage::Ending);
        match before {
            // Its end brings the thaw: an engine that pauses late would otherwise have the last word.
            Stage::Begun => accept(Vec::new()),
            Stage::Stands => accept(vec![Effect::Thaw { run: freeze.run }]),
            Stage::Ending => satisfied(),
        }
    }

    /// The attempt to freeze a run is over.
    pub(super) fn freeze_ended(&mut self, of: RunId, frozen: bool) -> Vec<Effect> {
        if self.live_run() != Some(of) {
            return Vec::new();
        }
        match &mut self.freeze {
            Some(freeze) if freeze.run == of && freeze.stage == Stage::Begun && frozen => {
                freeze.stage = Stage::Stands;
                self.paused(of)
            }
            // It is not wanted any more, or nobody knows whether it worked.
            freeze => {
                if let Some(freeze) = freeze {
                    freeze.stage = Stage::Ending;
                }
                let mut effects = if frozen { self.paused(of) } else { Vec::new() };
                effects.push(Effect::Thaw { run: of });
                effects
            }
        }
    }

    /// The engine says that a run goes on.
    pub(super) fn goes_on(&mut self, of: RunId) {
        let ends = |freeze: &Freeze| freeze.run == of && freeze.stage == Stage::Ending;
        if self.freeze.as_ref().is_some_and(ends) {
            self.freeze = None;
        }
    }

    /// A run that ended, or is being ended, is not frozen any more.
    pub(super) fn forget_freeze(&mut self) {
        let live = self.live_run().filter(|_| !matches!(self.phase, Phase::Stopping { .. }));
        self.freeze = self.freeze.filter(|freeze| Some(freeze.run) == live);
    }

    /// The copy was cut off with the lightd that made it.
    pub(super) fn thaw_at_boot(&mut self) -> Option<Effect> {
        self.forget_freeze();
        let freeze = self.freeze.as_mut()?;
        freeze.stage = Stage::Ending;
        Some(Effect::Thaw { run: freeze.run })
    }
}
