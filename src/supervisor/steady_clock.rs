//! The time of a run: lengths that are right also where the host's clock was set meanwhile.
//!
//! Made where a run is started or found running, read by whatever follows it. The console bears the time of
//! day, as the engine's log does.

use tokio::time::Instant;

use crate::domain::units::now_unix_ms;

const LEAST_STEP_MS: u64 = 100;

/// The time of day, read once and counted on from there: lengths of time that are taken from it are right
/// also where the host's clock was set meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct SteadyClock {
    began: Instant,
    began_at_ms: i64,
}

impl SteadyClock {
    pub(super) fn begin() -> Self {
        Self { began: Instant::now(), began_at_ms: now_unix_ms() }
    }

    pub(super) fn now_ms(&self) -> i64 {
        let ms = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.began_at_ms.saturating_add(ms)
    }

    /// How far the host's clock was set forward since. Two clocks are never read at once, so that a little
    /// is nothing.
    pub(super) fn set_by_ms(&self) -> i64 {
        let apart_ms = now_unix_ms().saturating_sub(self.now_ms());
        if apart_ms.unsigned_abs() < LEAST_STEP_MS { 0 } else { apart_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_clock_counts_on_from_where_the_hosts_clock_was() {
        let hour_ms = 3_600_000;
        // As if the host's clock had been set an hour forward since.
        let mut clock = SteadyClock::begin();
        clock.began_at_ms -= hour_ms;
        let apart_ms = now_unix_ms() - clock.now_ms();
        assert!((hour_ms..hour_ms + 5000).contains(&apart_ms), "{apart_ms}");
        assert!((hour_ms..hour_ms + 5000).contains(&clock.set_by_ms()));
        assert_eq!(SteadyClock::begin().set_by_ms(), 0);
    }
}
