//! Whether and when a workload that crashed is started again.
//!
//! Pure: the time of a crash comes with it, and so does chance, which spreads the restarts of a node.
//! Crashes are counted in a window that slides over them, also across restarts of lightd.

use std::collections::VecDeque;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// What the specification says about crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrashPolicy {
    StayDown,
    Restart(RestartRule),
}

/// How often a workload that crashes is started again, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RestartRule {
    /// Restarts within the window; a crash beyond them is the last.
    pub(crate) max_restarts: u32,
    pub(crate) window_s: u32,
    /// Before the first restart of a window; doubled with each further one.
    pub(crate) backoff_min_s: u32,
    pub(crate) backoff_max_s: u32,
}

impl Default for RestartRule {
    fn default() -> Self {
        Self { max_restarts: 5, window_s: 600, backoff_min_s: 1, backoff_max_s: 60 }
    }
}

pub(crate) const RESTARTS_MAX: u32 = 100;
const WINDOW_MAX_S: u32 = 7 * 24 * 3600;
const BACKOFF_MAX_S: u32 = 24 * 3600;

impl RestartRule {
    /// What is wrong with it: the field and why.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        let within = |name, value, least, most| {
            let why = format!("must be between {least} and {most}");
            (!(least..=most).contains(&value)).then_some((name, why))
        };
        within("max_restarts", self.max_restarts, 1, RESTARTS_MAX)
            .or_else(|| within("window_s", self.window_s, 1, WINDOW_MAX_S))
            .or_else(|| within("backoff_min_s", self.backoff_min_s, 0, BACKOFF_MAX_S))
            .or_else(|| {
                within("backoff_max_s", self.backoff_max_s, self.backoff_min_s, BACKOFF_MAX_S)
            })
    }
}

/// `restart_on_crash` as people write it: yes or no, or how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum RestartOnCrash {
    Plain(bool),
    Rule(RestartRule),
}

impl RestartOnCrash {
    pub(crate) fn policy(self) -> CrashPolicy {
        match self {
            Self::Plain(false) => CrashPolicy::StayDown,
            Self::Plain(true) => CrashPolicy::Restart(RestartRule::default()),
            Self::Rule(rule) => CrashPolicy::Restart(rule),
        }
    }
}

impl Default for RestartOnCrash {
    fn default() -> Self {
        Self::Plain(false)
    }
}

// By hand: what serde makes of an untagged enum does not say what is wrong.
impl<'de> Deserialize<'de> for RestartOnCrash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = RestartOnCrash;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("true, false or an object")
            }

            fn visit_bool<E>(self, value: bool) -> Result<RestartOnCrash, E> {
                Ok(RestartOnCrash::Plain(value))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RestartOnCrash, A::Error> {
                RestartRule::deserialize(MapAccessDeserializer::new(map)).map(RestartOnCrash::Rule)
            }
        }

        from.deserialize_any(Read)
    }
}

/// The crashes that still count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RestartHistory {
    crashes_at_ms: VecDeque<i64>,
    /// The last one was one too many.
    gave_up: bool,
}

impl RestartHistory {
    /// Counts a crash; the delay until the restart, or `None` once the budget is spent. `chance` is
    /// between 0 and 1 and takes up to half of the delay away.
    pub(crate) fn crashed(
        &mut self,
        rule: &RestartRule,
        at_ms: i64,
        chance: f64,
    ) -> Option<Duration> {
        let from_ms = at_ms.saturating_sub(i64::from(rule.window_s) * 1000);
        // Those to come are of a clock that was set back.
        self.crashes_at_ms.retain(|crash| (from_ms..=at_ms).contains(crash));
        self.crashes_at_ms.push_back(at_ms);
        self.gave_up = self.count() > rule.max_restarts;
        while self.count() > rule.max_restarts {
            self.crashes_at_ms.pop_front();
        }
        (!self.gave_up).then(|| self.delay(rule, chance))
    }

    /// The delay after the latest crash.
    pub(crate) fn delay(&self, rule: &RestartRule, chance: f64) -> Duration {
        let doublings = self.count().saturating_sub(1).min(20);
        let full = u64::from(rule.backoff_min_s) << doublings;
        let full = Duration::from_secs(full.min(u64::from(rule.backoff_max_s)));
        full.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
    }

    /// How many crashes of the window were answered with a restart.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.crashes_at_ms.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// Someone asked for a start or a stop: what was is over.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RestartRule =
        RestartRule { max_restarts: 5, window_s: 600, backoff_min_s: 1, backoff_max_s: 10 };

    #[test]
    fn delays_double_until_the_budget_is_spent_and_the_window_slides_on() {
        let mut history = RestartHistory::default();
        let mut crash = |at_s: i64| {
            let delay = history.crashed(&RULE, at_s * 1000, 0.0);
            (delay.map(|delay| delay.as_secs()), history.gave_up())
        };
        let delays: Vec<_> = (0..6).map(|n| crash(n).0).collect();
        assert_eq!(delays, [Some(1), Some(2), Some(4), Some(8), Some(10), None]);
        assert_eq!(crash(6), (None, true));
        assert_eq!(crash(607), (Some(1), false));
        assert_eq!(crash(10), (Some(1), false), "the clock was set back");
    }

    #[test]
    fn chance_takes_up_to_half_of_a_delay_away() {
        let mut history = RestartHistory::default();
        assert_eq!(history.crashed(&RULE, 0, 1.0), Some(Duration::from_millis(500)));
        assert_eq!(history.delay(&RULE, 0.5), Duration::from_millis(750));
    }

    #[test]
    fn a_rule_is_a_word_or_an_object_and_what_is_wrong_is_named() {
        let read = |text: &str| serde_json::from_str::<RestartOnCrash>(text);
        assert_eq!(read("true").unwrap().policy(), CrashPolicy::Restart(RestartRule::default()));
        assert_eq!(read("false").unwrap().policy(), CrashPolicy::StayDown);
        let some = read(r#"{"max_restarts": 2}"#).unwrap();
        let rule = RestartRule { max_restarts: 2, ..RestartRule::default() };
        assert_eq!(some, RestartOnCrash::Rule(rule));
        assert_eq!(read(&serde_json::to_string(&some).unwrap()).unwrap(), some);
        assert!(read(r#"{"max_restart": 2}"#).unwrap_err().to_string().contains("max_restart"));
        assert!(read("3").unwrap_err().to_string().contains("true, false or an object"));
        let field = |rule: RestartRule| rule.problem().map(|(field, _)| field);
        assert_eq!(field(RULE), None);
        assert_eq!(field(RestartRule { max_restarts: 0, ..RULE }), Some("max_restarts"));
        assert_eq!(field(RestartRule { backoff_min_s: 11, ..RULE }), Some("backoff_max_s"));
    }
}
