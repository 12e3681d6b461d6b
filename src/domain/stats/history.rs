//! The last hour of a container's figures, one every five seconds.
//!
//! Pure; owned by the supervisor, filled by its sampler while a workload runs, read for charts. Figures that
//! stay the same share one entry, so that an idle container's hour takes no room. In memory only: with the
//! daemon it begins anew.

use std::collections::VecDeque;

use serde::Serialize;

use super::Sample;
use crate::domain::units::UnixSeconds;

/// Seconds between two figures.
pub(crate) const STEP_S: u32 = 5;
/// Seconds that are kept.
pub(crate) const KEPT_S: u32 = 3600;

#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// By time; no two of the same step.
    spans: VecDeque<Span>,
}

/// Steps in a row that differ in nothing but time.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: i64,
    last: i64,
    sample: Sample,
}

/// A figure of the past. Over several steps: the mean of `cpu_usage`, the most of `memory_usage`, and the
/// rest as it was at the end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Point {
    /// When the time that it stands for ended.
    pub(crate) at: UnixSeconds,
    #[serde(flatten)]
    pub(crate) sample: Sample,
}

/// A question: the time and how finely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// Not included.
    pub(crate) from: UnixSeconds,
    /// Included, with the step that it is in: that one stands for the time until then.
    pub(crate) to: UnixSeconds,
    /// A multiple of [`STEP_S`].
    pub(crate) step_s: u32,
}

impl History {
    /// Notes what was measured now. Of one step the first counts.
    pub(crate) fn note(&mut self, now: UnixSeconds, sample: Sample) {
        let step = step_of(now);
        // A clock that was set back: what is in the future never was.
        while self.spans.back().is_some_and(|span| span.first > step) {
            self.spans.pop_back();
        }
        let oldest = step - i64::from(KEPT_S / STEP_S);
        while self.spans.front().is_some_and(|span| span.last <= oldest) {
            self.spans.pop_front();
        }
        match self.spans.back_mut() {
            Some(span) if span.last >= step => {}
            Some(span) if span.last + 1 == step && !sample.differs_from(&span.sample) => {
                span.last = step;
            }
            _ => self.spans.push_back(Span { first: step, last: step, sample }),
        }
    }

    /// What is known of a time; nothing stands for when nothing ran.
    pub(crate) fn points(&self, range: Range) -> Vec<Point> {
        if range.from >= range.to {
            // Of a time without length, as is one of the future, there is not even the step it lies in.
            return Vec::new();
        }
        let width_s = i64::from(range.step_s.max(STEP_S));
        // Wide steps that end behind `from`, each with all that it has.
        let begin = step_of(UnixSeconds(range.from.0.div_euclid(width_s).saturating_mul(width_s)));
        let steps = begin.saturating_add(1)..=step_of(range.to);
        let mut points: Vec<(Point, u32)> = Vec::new();
        for (step, sample) in self.steps().filter(|(step, _)| steps.contains(step)) {
            let end = ceil(step * i64::from(STEP_S), width_s) * width_s;
            let at = UnixSeconds(end.min(range.to.0));
            match points.last_mut() {
                Some((point, count)) if point.at == at => {
                    *count += 1;
                    point.sample = joined(&point.sample, sample, *count);
                }
                _ => points.push((Point { at, sample }, 1)),
            }
        }
        points.into_iter().map(|(point, _)| rounded(point)).collect()
    }

    fn steps(&self) -> impl Iterator<Item = (i64, Sample)> {
        self.spans.iter().flat_map(Span::steps)
    }
}

impl Span {
    fn steps(&self) -> impl Iterator<Item = (i64, Sample)> + use<> {
        let Self { first, last, sample } = *self;
        (first..=last).map(move |step| {
            let later = u64::try_from(step - first).unwrap_or(0) * u64::from(STEP_S);
            (step, Sample { uptime: sample.uptime + later, ..sample })
        })
    }
}

/// The step that a moment is in. Its end belongs to a step, and its beginning to the one before.
fn step_of(UnixSeconds(at): UnixSeconds) -> i64 {
    ceil(at, i64::from(STEP_S))
}

fn ceil(number: i64, of: i64) -> i64 {
    number.div_euclid(of) + i64::from(number.rem_euclid(of) > 0)
}

/// The later of two figures with the mean and the most of both; it is the `count`th of its point.
fn joined(earlier: &Sample, later: Sample, count: u32) -> Sample {
    let mean = earlier.cpu_usage + (later.cpu_usage - earlier.cpu_usage) / f64::from(count);
    let memory_usage = earlier.memory_usage.max(later.memory_usage);
    Sample { cpu_usage: mean, memory_usage, ..later }
}

fn rounded(point: Point) -> Point {
    let cpu_usage = (point.sample.cpu_usage * 100.0).round() / 100.0;
    Point { sample: Sample { cpu_usage, ..point.sample }, ..point }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: i64 = 1_800_000_000;

    fn sample(cpu_usage: f64, memory_usage: u64, uptime: u64) -> Sample {
        Sample { cpu_usage, memory_usage, uptime, ..Sample::default() }
    }

    fn range(from: i64, to: i64, step_s: u32) -> Range {
        Range { from: UnixSeconds(from), to: UnixSeconds(to), step_s }
    }

    fn ats(points: &[Point]) -> Vec<i64> {
        points.iter().map(|point| point.at.0 - START).collect()
    }

    #[test]
    fn an_idle_hour_takes_the_room_of_one_figure() {
        let mut history = History::default();
        for second in 0..7200 {
            let uptime = u64::try_from(second).unwrap();
            history.note(UnixSeconds(START + second), sample(0.0, 7, uptime));
        }
        assert_eq!(history.spans.len(), 1);
        let points = history.points(range(START + 3600, START + 7200, STEP_S));
        assert_eq!(points.len(), 720);
        assert_eq!((points[0].sample.uptime, points[719].sample.uptime), (3605, 7200));
        assert_eq!(ats(&points[..2]), [3605, 3610], "where the run is that old");
    }

    #[test]
    fn wider_steps_have_the_mean_of_the_load_and_the_most_of_the_memory() {
        let mut history = History::default();
        for (n, (cpu, memory)) in
            [(10.0, 5), (20.0, 9), (60.0, 1), (1.0, 2)].into_iter().enumerate()
        {
            let n = i64::try_from(n).unwrap();
            history.note(UnixSeconds(START + n * 5 + 3), sample(cpu, memory, 0));
        }
        let points = history.points(range(START, START + 19, 15));
        assert_eq!(
            ats(&points),
            [15, 19],
            "the one that has not ended stands where the answer ends"
        );
        assert_eq!((points[0].sample.cpu_usage, points[0].sample.memory_usage), (30.0, 9));
        assert_eq!((points[1].sample.cpu_usage, points[1].sample.memory_usage), (1.0, 2));
    }

    #[test]
    fn a_time_in_which_nothing_ran_has_no_points() {
        let mut history = History::default();
        for at in [0, 5, 100, 105] {
            history.note(UnixSeconds(START + at), sample(0.0, 1, 0));
        }
        assert_eq!(ats(&history.points(range(0, i64::MAX, 5))), [0, 5, 100, 105]);
        assert_eq!(ats(&history.points(range(START + 5, START + 105, 5))), [100, 105]);
        assert_eq!(History::default().points(range(0, i64::MAX, 5)), []);
        // What is asked for from a moment of the future on is cut to now, which may lie in a step.
        assert_eq!(history.points(range(START + 103, START + 103, 5)), []);
    }

    #[test]
    fn a_clock_that_is_set_back_leaves_no_figures_of_the_future() {
        let mut history = History::default();
        for at in [1000, 1005, 1010, 500, 505] {
            history.note(UnixSeconds(START + at), sample(0.0, u64::try_from(at).unwrap(), 0));
        }
        assert_eq!(ats(&history.points(range(0, i64::MAX, 5))), [500, 505]);
    }

    proptest! {
        #[test]
        fn there_is_one_figure_a_step_for_an_hour_and_nothing_older(
            pauses in prop::collection::vec((1_i64..40, 0_u64..3), 1..400),
        ) {
            let (mut history, mut now) = (History::default(), START);
            let mut wanted = std::collections::BTreeMap::new();
            for (pause, memory) in pauses {
                now += pause;
                history.note(UnixSeconds(now), sample(0.0, memory, 0));
                wanted.entry((now + 4).div_euclid(5)).or_insert(memory);
            }
            let oldest = (now + 4).div_euclid(5) - 720;
            let wanted: Vec<_> =
                wanted.into_iter().filter(|(step, _)| *step > oldest).map(|(step, memory)| (step * 5, memory)).collect();
            let seen: Vec<_> = history
                .points(range(oldest * 5, i64::MAX, 5))
                .iter()
                .map(|point| (point.at.0, point.sample.memory_usage))
                .collect();
            prop_assert_eq!(seen, wanted);
        }
    }
}
