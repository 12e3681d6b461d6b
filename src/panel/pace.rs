//! When the panel is spoken to again: what keeps thousands of lightds that lost it in the same moment from
//! coming back in the same moment.
//!
//! Pure. `chance` is a number from 0 to 1, drawn anew for each decision by a [`Chance`]; 0 is no jitter at all.

use std::time::Duration;

use crate::util::backoff::Backoff;

/// Where jitter comes from: `rand::random`, but where it is shown what that is good for.
pub(super) type Chance = fn() -> f64;

const BACKOFF: Backoff =
    Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(300) };
/// The longest that a panel may ask us to wait.
const ASKED_MAX: Duration = Duration::from_secs(3600);
/// No pause that the panel asked for lasts longer.
pub(super) const ASKED_PAUSE_MAX: Duration = Duration::from_secs(3600 + 360);

/// How long an update waits that has failed so often. A `Retry-After` is kept, and a little more is waited
/// than it says: the panel has told everybody the same.
pub(super) fn pause_before_retry(failures: u32, asked: Option<Duration>, chance: f64) -> Duration {
    match asked.map(|asked| asked.min(ASKED_MAX)) {
        Some(asked) => asked + (asked / 10).max(Duration::from_secs(1)).mul_f64(chance),
        None => BACKOFF.delay_by(failures, chance),
    }
}

/// How long after the first look at the panel's health the second comes; all further ones come after a
/// whole interval. So nodes that were started together ask at different moments from then on.
pub(super) fn pause_before_second_look(interval: Duration, chance: f64) -> Duration {
    interval.mul_f64(1.0 - chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn pauses_grow_up_to_five_minutes_and_vary_by_half() {
        let range = |failures| {
            let pause = |chance| pause_before_retry(failures, None, chance).as_secs_f64();
            (pause(1.0), pause(0.0))
        };
        assert_eq!(range(1), (0.5, 1.0));
        assert_eq!(range(5), (8.0, 16.0));
        assert_eq!(range(40), (150.0, 300.0));
    }

    #[test]
    fn what_the_panel_asks_for_is_kept_up_to_an_hour() {
        let pause = |asked, chance| pause_before_retry(1, Some(asked), chance);
        assert_eq!(pause(seconds(600), 0.0), seconds(600));
        assert_eq!(pause(seconds(600), 1.0), seconds(660));
        assert_eq!(pause(seconds(0), 1.0), seconds(1));
        assert_eq!(pause(seconds(999_999), 1.0), ASKED_PAUSE_MAX);
    }

    #[test]
    fn the_second_look_comes_anywhere_within_the_interval() {
        let pause = |chance| pause_before_second_look(seconds(30), chance);
        assert_eq!((pause(0.0), pause(1.0)), (seconds(30), seconds(0)));
    }
}
