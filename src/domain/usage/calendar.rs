//! Hours, days and months in UTC: where each begins and where the next one does.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::domain::units::UnixSeconds;

pub(crate) const HOUR_S: i64 = 3600;
pub(crate) const DAY_S: i64 = 24 * HOUR_S;
/// 9999-01-01: far enough, and every step from before it can be taken.
const LAST: i64 = 253_370_764_800;

/// How finely usage is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Step {
    #[serde(rename = "hourly")]
    Hour,
    #[serde(rename = "daily")]
    Day,
    #[serde(rename = "monthly")]
    Month,
}

impl Step {
    /// The step that a moment lies in, by its beginning. Moments before 1970 count as that, those after the
    /// year 9998 as its end.
    pub(crate) fn floor(self, at: UnixSeconds) -> UnixSeconds {
        let at = at.0.clamp(0, LAST);
        UnixSeconds(match self {
            Self::Hour => at - at % HOUR_S,
            Self::Day => at - at % DAY_S,
            Self::Month => begin_of(date_of(at).first_of_month()),
        })
    }

    /// Where the step after the one of this moment begins.
    pub(crate) fn next(self, at: UnixSeconds) -> UnixSeconds {
        let begin = self.floor(at).0;
        UnixSeconds(match self {
            Self::Hour => begin + HOUR_S,
            Self::Day => begin + DAY_S,
            // No month has more than 31 days, and none fewer than 28.
            Self::Month => self.floor(UnixSeconds(begin + 31 * DAY_S)).0.max(begin + 28 * DAY_S),
        })
    }

    /// The first beginning of a step that is not before this moment.
    pub(crate) fn ceil(self, at: UnixSeconds) -> UnixSeconds {
        let begin = self.floor(at);
        if begin.0 >= at.0.clamp(0, LAST) { begin } else { self.next(at) }
    }
}

/// The beginning of a month written `2026-11`.
pub(crate) fn month(text: &str) -> Option<UnixSeconds> {
    let (year, month) = text.split_once('-')?;
    if year.len() != 4 || month.len() != 2 {
        return None;
    }
    let date = Date::new(year.parse().ok()?, month.parse().ok()?, 1).ok()?;
    Some(UnixSeconds(begin_of(date))).filter(|at| (0..LAST).contains(&at.0))
}

/// A month's beginning as [`month`] reads it.
pub(crate) fn month_name(at: UnixSeconds) -> String {
    let date = date_of(at.0.clamp(0, LAST));
    format!("{:04}-{:02}", date.year(), date.month())
}

fn date_of(at: i64) -> Date {
    let moment = Timestamp::from_second(at).unwrap_or(Timestamp::UNIX_EPOCH);
    moment.to_zoned(TimeZone::UTC).date()
}

fn begin_of(date: Date) -> i64 {
    let begin = date.to_zoned(TimeZone::UTC);
    begin.map_or(0, |begin| begin.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> UnixSeconds {
        UnixSeconds(text.parse::<Timestamp>().unwrap().as_second())
    }

    #[test]
    fn months_begin_and_end_where_the_calendar_says() {
        for (moment, begin, next) in [
            ("2026-11-22T11:32:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("2028-02-29T12:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
            ("2027-02-01T00:00:00Z", "2027-02-01T00:00:00Z", "2027-03-01T00:00:00Z"),
        ] {
            assert_eq!(Step::Month.floor(at(moment)), at(begin), "{moment}");
            assert_eq!(Step::Month.next(at(moment)), at(next), "{moment}");
        }
        assert_eq!(Step::Month.ceil(at("2027-02-01T00:00:00Z")), at("2027-02-01T00:00:00Z"));
        assert_eq!(Step::Month.ceil(at("2027-02-01T00:00:01Z")), at("2027-03-01T00:00:00Z"));
        assert_eq!(month("2028-02"), Some(at("2028-02-01T00:00:00Z")));
        assert_eq!(month_name(at("2028-02-29T00:00:00Z")), "2028-02");
        for bad in ["", "2028", "2028-13", "2028-2", "28-02", "2028-02-01", "1969-12", "-028-02"] {
            assert_eq!(month(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn steps_follow_each_other_without_a_gap(seconds in any::<i64>()) {
            for step in [Step::Hour, Step::Day, Step::Month] {
                let moment = UnixSeconds(seconds.clamp(0, LAST));
                let (begin, next) = (step.floor(UnixSeconds(seconds)), step.next(moment));
                prop_assert!(begin <= moment && moment < next, "{step:?}");
                prop_assert_eq!(step.floor(begin), begin);
                prop_assert_eq!(step.ceil(begin), begin);
                prop_assert_eq!(step.floor(UnixSeconds(next.0 - 1)), begin);
                prop_assert_eq!(begin.0 % HOUR_S, 0);
            }
        }
    }
}
