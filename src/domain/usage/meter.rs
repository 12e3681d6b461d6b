//! From readings of a run's counters to what was used in which hour.
//!
//! One per container, fed by the sampler of its runs and emptied by the metering task. Counters of a run only
//! grow, and where they stood at the last reading ([`Position`]) is kept with what was stored: so a restart of
//! lightd loses nothing of processor time and traffic, and counts nothing twice. What lightd did not see is not
//! made up: of a time without readings, the memory in use is not counted. That the run went on is seen by its
//! counters, so the time itself is, and so is what was reserved.
//!
//! Invariant: whatever is added is taken exactly once, to the last whole unit.

use std::collections::BTreeMap;
use std::time::Duration;

use super::calendar::HOUR_S;
use super::{QUANTITIES, Usage};
use crate::domain::ids::RunId;
use crate::domain::stats::Counters;
use crate::domain::units::UnixSeconds;

/// How long a level that was read is taken to hold.
const HOLDS: Duration = Duration::from_secs(180);
/// No gap is spread over more hours.
const HOURS_MAX: i64 = 400 * 24;

/// Fine amounts, in the order of [`Usage`]; so many of each make one of its units.
type Fine = [u128; QUANTITIES];
const PER_UNIT: Fine = [1, 1000, 1_024_000, 1_024_000, 1_024_000, 1, 1];
const RUN_MS: usize = 0;
const CPU_NS: usize = 1;
const MEMORY_BYTE_MS: usize = 2;
const RESERVED_BYTE_MS: usize = 3;
const STORAGE_BYTE_MS: usize = 4;
const EGRESS_BYTES: usize = 5;
const INGRESS_BYTES: usize = 6;

/// Where a run's counters stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) run: RunId,
    /// Since the host's start: a run never outlives that.
    pub(crate) at: Duration,
    pub(crate) cpu_ns: u64,
    pub(crate) network_rx: u64,
    pub(crate) network_tx: u64,
}

/// One moment on both clocks: since the host's start, which never jumps, and the time of day.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) since_boot: Duration,
    pub(crate) unix_ms: i64,
}

/// What was read of a run; `counters.taken_at` is since the host's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a> {
    pub(crate) run: RunId,
    pub(crate) counters: &'a Counters,
    pub(crate) unix_ms: i64,
    /// How long ago the run began, with its counters at 0.
    pub(crate) age: Duration,
    /// The limit on memory, if there is one.
    pub(crate) reserved_bytes: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct UsageMeter {
    position: Option<Position>,
    /// At the last reading of the present run.
    level: Option<Level>,
    storage: Option<(Duration, u64)>,
    /// Nothing is added for this run and those before it.
    ended: Option<RunId>,
    /// Runs that began before are counted from their first reading on.
    counts_from_ms: i64,
    pending: BTreeMap<i64, Fine>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    memory_bytes: u64,
    reserved_bytes: Option<u64>,
}

/// What is to be stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// By the hour's beginning.
    pub(crate) hours: Vec<(UnixSeconds, Usage)>,
    pub(crate) position: Option<Position>,
}

impl UsageMeter {
    /// Goes on from what an earlier process has stored.
    pub(crate) fn restore(&mut self, position: Option<Position>, counts_from_ms: i64) {
        self.position = position;
        self.counts_from_ms = counts_from_ms;
    }

    /// Adds what was used since the last reading of this run, or since it began.
    pub(crate) fn read(&mut self, reading: &Reading<'_>) {
        let Reading { run, counters, unix_ms, age, reserved_bytes } = *reading;
        if self.ended.is_some_and(|ended| run <= ended) {
            return;
        }
        let now = Position {
            run,
            at: counters.taken_at,
            cpu_ns: counters.cpu_ns,
            network_rx: counters.network_rx,
            network_tx: counters.network_tx,
        };
        let before = self.position.filter(|position| position.run == run).unwrap_or_else(|| {
            let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            if unix_ms.saturating_sub(age_ms) < self.counts_from_ms {
                return now;
            }
            let at = now.at.saturating_sub(age);
            Position { run, at, cpu_ns: 0, network_rx: 0, network_tx: 0 }
        });
        let level = Level { memory_bytes: counters.memory_bytes, reserved_bytes };
        let (mut fine, elapsed_ms) = over_time(before.at, now.at, Some(level));
        fine[CPU_NS] = grown(before.cpu_ns, now.cpu_ns);
        fine[EGRESS_BYTES] = grown(before.network_tx, now.network_tx);
        fine[INGRESS_BYTES] = grown(before.network_rx, now.network_rx);
        self.add(fine, elapsed_ms, unix_ms);
        self.position = Some(now);
        self.level = Some(level);
    }

    /// The run is over: adds its time since the last reading. Says nothing new the second time.
    pub(crate) fn end(&mut self, run: RunId, at: Moment) {
        if let Some(position) = self.position.take_if(|position| position.run <= run)
            && position.run == run
        {
            let (fine, elapsed_ms) = over_time(position.at, at.since_boot, self.level.take());
            self.add(fine, elapsed_ms, at.unix_ms);
        }
        self.ended = self.ended.max(Some(run));
    }

    /// Adds what the volume has held up to now, if that was known; `bytes` is what it holds from now on, if
    /// that was just looked at.
    pub(crate) fn note_storage(&mut self, at: Moment, bytes: Option<u64>) {
        let Some(held) = bytes.or_else(|| self.storage.map(|(_, bytes)| bytes)) else { return };
        if let Some((since, held)) = self.storage.replace((at.since_boot, held)) {
            let elapsed_ms = between_ms(since, at.since_boot);
            if u128::from(elapsed_ms) <= HOLDS.as_millis() {
                let mut fine = Fine::default();
                fine[STORAGE_BYTE_MS] = u128::from(held) * u128::from(elapsed_ms);
                self.add(fine, elapsed_ms, at.unix_ms);
            }
        }
    }

    /// Takes what has come together since the last time. What does not make a whole unit stays.
    pub(crate) fn take(&mut self) -> Taken {
        let (mut hours, mut rest) = (Vec::new(), Fine::default());
        let pending = std::mem::take(&mut self.pending);
        let newest = pending.keys().next_back().copied();
        for (hour, mut fine) in pending {
            let mut units = [0; QUANTITIES];
            for (index, per_unit) in PER_UNIT.iter().enumerate() {
                fine[index] += std::mem::take(&mut rest[index]);
                units[index] = u64::try_from(fine[index] / per_unit).unwrap_or(u64::MAX);
                rest[index] = fine[index] % per_unit;
            }
            if units != [0; QUANTITIES] {
                hours.push((UnixSeconds(hour), Usage::from_array(units)));
            }
        }
        if let Some(newest) = newest.filter(|_| rest != Fine::default()) {
            self.pending.insert(newest, rest);
        }
        Taken { hours, position: self.position }
    }

    /// Takes back what could not be stored.
    pub(crate) fn give_back(&mut self, taken: &Taken) {
        for (hour, usage) in &taken.hours {
            let fine = self.pending.entry(hour.0).or_default();
            for ((sum, units), per_unit) in fine.iter_mut().zip(usage.to_array()).zip(PER_UNIT) {
                *sum += u128::from(units) * per_unit;
            }
        }
    }

    /// Adds an amount of the time up to a moment, spread evenly over the hours that it lies in.
    fn add(&mut self, fine: Fine, elapsed_ms: u64, until_ms: i64) {
        if fine == Fine::default() {
            return;
        }
        let hour_ms = HOUR_S * 1000;
        let elapsed_ms = i64::try_from(elapsed_ms).unwrap_or(i64::MAX).min(HOURS_MAX * hour_ms);
        let from_ms = until_ms.saturating_sub(elapsed_ms);
        let mut done = Fine::default();
        let mut at_ms = from_ms;
        loop {
            let hour = at_ms.div_euclid(hour_ms);
            at_ms = ((hour + 1) * hour_ms).min(until_ms);
            let part = u128::from(at_ms.abs_diff(from_ms));
            let whole = u128::from(elapsed_ms.unsigned_abs()).max(1);
            let is_last = at_ms >= until_ms;
            let sum = self.pending.entry(hour * HOUR_S).or_default();
            for (index, all) in fine.iter().enumerate() {
                // Up to here in all, so that the parts add up to the whole.
                let up_to = if is_last { *all } else { all * part / whole };
                sum[index] += up_to - done[index];
                done[index] = up_to;
            }
            if is_last {
                return;
            }
        }
    }
}

/// What a time adds by itself: the time, and levels where they are known to have held.
fn over_time(from: Duration, to: Duration, level: Option<Level>) -> (Fine, u64) {
    let elapsed_ms = between_ms(from, to);
    let mut fine = Fine::default();
    fine[RUN_MS] = u128::from(elapsed_ms);
    if let Some(level) = level {
        let over = |bytes: u64| u128::from(bytes) * u128::from(elapsed_ms);
        let holds = u128::from(elapsed_ms) <= HOLDS.as_millis();
        let used = if holds { over(level.memory_bytes) } else { 0 };
        fine[MEMORY_BYTE_MS] = used;
        fine[RESERVED_BYTE_MS] = level.reserved_bytes.map_or(used, over);
    }
    (fine, elapsed_ms)
}

/// Whole milliseconds such that those of parts add up to those of the whole.
fn between_ms(from: Duration, to: Duration) -> u64 {
    let ms = |at: Duration| u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    ms(to).saturating_sub(ms(from))
}

/// A counter that fell has begun anew.
fn grown(before: u64, now: u64) -> u128 {
    u128::from(if now < before { now } else { now - before })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RUN: RunId = RunId(3);
    const NOON_MS: i64 = 1_800_014_400_000;
    const BOOT: Duration = Duration::from_secs(50_000);

    /// A reading so many seconds after the run began, which was at noon.
    fn reading(seconds: u64, cpu_ns: u64, tx: u64, memory_bytes: u64) -> (Counters, i64, Duration) {
        let age = Duration::from_secs(seconds);
        let counters = Counters {
            taken_at: BOOT + age,
            cpu_ns,
            network_tx: tx,
            network_rx: tx / 2,
            memory_bytes,
            ..Counters::default()
        };
        (counters, NOON_MS + i64::try_from(seconds).unwrap() * 1000, age)
    }

    fn read(meter: &mut UsageMeter, run: RunId, of: &(Counters, i64, Duration)) {
        let (counters, unix_ms, age) = of;
        let reserved_bytes = Some(1 << 30);
        meter.read(&Reading { run, counters, unix_ms: *unix_ms, age: *age, reserved_bytes });
    }

    fn total(taken: &Taken) -> Usage {
        taken.hours.iter().fold(Usage::default(), |sum, (_, usage)| sum.plus(*usage))
    }

    fn moment(seconds: u64) -> Moment {
        let since = Duration::from_secs(seconds);
        Moment {
            since_boot: BOOT + since,
            unix_ms: NOON_MS + i64::try_from(since.as_millis()).unwrap(),
        }
    }

    #[test]
    fn a_run_is_counted_from_its_beginning_and_to_its_end() {
        let mut meter = UsageMeter::default();
        read(&mut meter, RUN, &reading(2, 1_000_000_000, 1000, 1 << 20));
        read(&mut meter, RUN, &reading(5, 2_500_000_000, 5000, 1 << 20));
        meter.end(RUN, moment(9));
        let taken = meter.take();
        let used = total(&taken);
        assert_eq!((used.run_ms, used.cpu_us), (9000, 2_500_000));
        assert_eq!((used.egress_bytes, used.ingress_bytes), (5000, 2500));
        assert_eq!((used.memory_kib_s, used.reserved_kib_s), (9 << 10, 9 << 20));
        assert_eq!(taken.hours[0].0, UnixSeconds(NOON_MS / 1000));
        assert_eq!(taken.position, None);
        // What comes late for a run that has ended is nothing new.
        read(&mut meter, RUN, &reading(9, 9_000_000_000, 9000, 1));
        meter.end(RUN, moment(20));
        assert_eq!(meter.take(), Taken::default());
        read(&mut meter, RUN.next(), &reading(1, 7000, 0, 0));
        assert_eq!(total(&meter.take()).cpu_us, 7);
    }

    #[test]
    fn a_restart_of_lightd_goes_on_where_it_was_and_makes_no_memory_up() {
        let mut before = UsageMeter::default();
        read(&mut before, RUN, &reading(60, 5_000_000_000, 1000, 1 << 30));
        let stored = before.take();
        // This much of it was not stored any more when it died.
        read(&mut before, RUN, &reading(90, 6_000_000_000, 2000, 1 << 30));
        let mut after = UsageMeter::default();
        after.restore(stored.position, 0);
        read(&mut after, RUN, &reading(600, 8_000_000_000, 4000, 1 << 30));
        let used = total(&stored).plus(total(&after.take()));
        assert_eq!((used.run_ms, used.cpu_us, used.egress_bytes), (600_000, 8_000_000, 4000));
        assert_eq!(used.memory_kib_s, 60 << 20, "nobody looked for nine minutes");
        assert_eq!(used.reserved_kib_s, 600 << 20);
    }

    #[test]
    fn a_run_from_before_there_was_metering_is_counted_from_now_on() {
        let mut meter = UsageMeter::default();
        meter.restore(None, NOON_MS + 1);
        read(&mut meter, RUN, &reading(1000, 5_000_000_000, 1000, 1 << 30));
        assert_eq!(total(&meter.take()), Usage::default());
        read(&mut meter, RUN, &reading(1001, 6_000_000_000, 1000, 0));
        assert_eq!(total(&meter.take()).cpu_us, 1_000_000);
    }

    #[test]
    fn counters_that_began_anew_are_counted_from_zero_and_clocks_that_ran_back_are_no_time() {
        let mut meter = UsageMeter::default();
        read(&mut meter, RUN, &reading(10, 5_000_000, 1000, 0));
        read(&mut meter, RUN, &reading(9, 2_000_000, 300, 0));
        let used = total(&meter.take());
        assert_eq!((used.run_ms, used.cpu_us, used.egress_bytes), (10_000, 7000, 1300));
    }

    #[test]
    fn storage_counts_while_it_is_known_and_time_that_nobody_saw_does_not() {
        let mut meter = UsageMeter::default();
        meter.note_storage(moment(0), None);
        meter.note_storage(moment(60), Some(1 << 20));
        meter.note_storage(moment(120), None);
        meter.note_storage(moment(180), Some(3 << 20));
        assert_eq!(total(&meter.take()).storage_kib_s, 120 * 1024, "it was so until the look");
        meter.note_storage(moment(9000), None);
        assert_eq!(total(&meter.take()), Usage::default());
        meter.note_storage(moment(9010), None);
        assert_eq!(total(&meter.take()).storage_kib_s, 10 * 3 * 1024);
    }

    #[test]
    fn a_gap_is_spread_over_its_hours() {
        let mut meter = UsageMeter::default();
        read(&mut meter, RUN, &reading(2 * 3600 + 1800, 10_000_000_000, 25, 0));
        let taken = meter.take();
        let cpu: Vec<u64> = taken.hours.iter().map(|(_, usage)| usage.cpu_us).collect();
        assert_eq!(cpu, [4_000_000, 4_000_000, 2_000_000]);
        let noon = NOON_MS / 1000;
        let hours: Vec<i64> = taken.hours.iter().map(|(hour, _)| hour.0 - noon).collect();
        assert_eq!(hours, [0, 3600, 7200]);
    }

    #[test]
    fn what_could_not_be_stored_is_taken_again() {
        let mut meter = UsageMeter::default();
        read(&mut meter, RUN, &reading(7, 1_234_567_891, 11, 999));
        let taken = meter.take();
        meter.give_back(&taken);
        assert_eq!(meter.take(), taken);
        assert_eq!(meter.take().hours, []);
    }

    proptest! {
        /// However readings lie, restarts happen and amounts are taken: what the last reading shows is what
        /// was taken in all, to the last whole unit.
        #[test]
        fn nothing_is_lost_and_nothing_is_counted_twice(
            steps in proptest::collection::vec(
                (0_u64..5000, 0_u64..1 << 40, 0_u64..1 << 30, 0_u64..1 << 34, 0_u8..4), 1..40),
        ) {
            let mut meter = UsageMeter::default();
            let (mut at, mut cpu, mut tx, mut memory_byte_ms) = (0, 0, 0, 0_u128);
            let mut sum = Usage::default();
            for (wait, more_cpu, more_tx, memory, what) in steps {
                at += wait;
                cpu += more_cpu;
                tx += more_tx;
                if wait * 1000 <= u64::try_from(HOLDS.as_millis()).unwrap() {
                    memory_byte_ms += u128::from(memory) * u128::from(wait) * 1000;
                }
                read(&mut meter, RUN, &reading(at, cpu, tx, memory));
                if what == 0 {
                    let taken = meter.take();
                    meter.give_back(&taken);
                }
                if what >= 2 {
                    sum = sum.plus(total(&meter.take()));
                }
            }
            let last = meter.take();
            sum = sum.plus(total(&last));
            prop_assert_eq!(sum.run_ms, at * 1000);
            prop_assert_eq!(sum.cpu_us, cpu / 1000);
            prop_assert_eq!(sum.egress_bytes, tx);
            prop_assert_eq!(u128::from(sum.memory_kib_s), memory_byte_ms / 1_024_000);
            // Another process goes on from there and adds nothing by itself.
            let mut next = UsageMeter::default();
            next.restore(last.position, 0);
            read(&mut next, RUN, &reading(at, cpu, tx, 1 << 30));
            prop_assert_eq!(total(&next.take()), Usage::default());
        }

        /// Each hour gets no more time than it has.
        #[test]
        fn an_hour_has_no_more_than_its_time(start in 0_u64..10_000, waits in proptest::collection::vec(0_u64..20_000, 1..20)) {
            let mut meter = UsageMeter::default();
            let mut at = start;
            read(&mut meter, RUN, &reading(at, 0, 0, 0));
            let mut hours = BTreeMap::<i64, u64>::new();
            for wait in waits {
                at += wait;
                read(&mut meter, RUN, &reading(at, 0, 0, 0));
                for (hour, usage) in meter.take().hours {
                    *hours.entry(hour.0).or_default() += usage.run_ms;
                }
            }
            for (hour, ms) in &hours {
                prop_assert_eq!(hour % HOUR_S, 0);
                prop_assert!(*ms <= 3_600_000, "{hour}: {ms}");
            }
            prop_assert_eq!(hours.values().sum::<u64>(), at * 1000);
        }
    }
}
