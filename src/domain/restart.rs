//! Whether and when a workload that crashed is started again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the specification says about crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrashPolicy {
    StayDown,
    Restart,
}

/// The crashes counted so far. A run that lasted longer than [`SETTLED`] wipes the slate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestartHistory {
    crashes_in_a_row: u32,
    #[serde(skip)]
    last_crash: Option<Duration>,
}

/// How many crashes in a row are answered with a restart.
pub(crate) const BUDGET: u32 = 5;
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// Crashes further apart than this are not counted as one series.
const SETTLED: Duration = Duration::from_secs(600);

impl RestartHistory {
    /// Counts a crash at `now`; the delay until the restart, or `None` once the budget is spent.
    pub(crate) fn crashed(&mut self, now: Duration) -> Option<Duration> {
        if self.last_crash.is_some_and(|last| now.saturating_sub(last) > SETTLED) {
            self.crashes_in_a_row = 0;
        }
        self.last_crash = Some(now);
        self.crashes_in_a_row = self.crashes_in_a_row.saturating_add(1);
        if self.crashes_in_a_row > BUDGET {
            return None;
        }
        Some(self.delay())
    }

    /// The delay after the latest crash.
    pub(crate) fn delay(&self) -> Duration {
        let doublings = self.crashes_in_a_row.saturating_sub(1).min(BUDGET);
        FIRST_DELAY.saturating_mul(1 << doublings).min(LONGEST_DELAY)
    }

    /// Someone asked for a start or a stop: the series is over.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_until_the_budget_is_spent_and_settle_again() {
        let mut history = RestartHistory::default();
        let delays: Vec<Option<u64>> =
            (0..6).map(|n| history.crashed(Duration::from_secs(n)).map(|d| d.as_secs())).collect();
        assert_eq!(delays, [Some(1), Some(2), Some(4), Some(8), Some(16), None]);
        assert_eq!(history.crashed(Duration::from_secs(700)), Some(FIRST_DELAY));
    }
}
