//! Going on after an absence: where the console stopped, and what the engine's own log has beyond.
//!
//! What a container prints while nobody is attached stands only in the engine's log. The pump asks for
//! that log and joins it, one stream of one run at a time, to the end of the journal. Equal lines are
//! the measure; where many are equal, the count of lines since the run began decides, and the time
//! where the log does not reach back so far.

use std::collections::VecDeque;

use memchr::memmem;

use super::block::Position;
use super::record::Record;
use super::{Console, lock, read};
use crate::domain::ids::RunId;
use crate::domain::stream::Stream;
use crate::util::chain::Chain;

/// So far apart in time may a line be here and in the engine's log, where only its end is compared.
const ENDS_APART_MS: u64 = 60_000;
/// So many lines are compared.
const TAIL_LINES: usize = 32;
/// So many of the newest lines are looked through for them: the streams lie mixed.
const TAIL_SEARCH_LINES: u64 = 512;

/// The end of one stream of one run, as the console has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    /// How many lines of the run are here; `None` if that is not known.
    pub(crate) lines_in_run: Option<u64>,
    /// The last of them.
    pub(crate) lines: Vec<TailLine>,
    /// The beginning of the line that follows, as far as it is here.
    pub(crate) forming: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TailLine {
    pub(crate) time_ms: i64,
    /// Without its line end.
    pub(crate) text: Vec<u8>,
}

impl Tail {
    /// Whether all lines are here that are ever compared; when the first of them came.
    pub(crate) fn full_since_ms(&self) -> Option<i64> {
        self.lines.first().filter(|_| self.lines.len() >= TAIL_LINES).map(|line| line.time_ms)
    }

    /// When the last line came.
    pub(crate) fn last_time_ms(&self) -> Option<i64> {
        self.lines.last().map(|line| line.time_ms)
    }
}

/// A line of the engine's log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineLine<'a> {
    pub(crate) time_ms: i64,
    /// With or without its line end.
    pub(crate) text: &'a [u8],
}

/// Where the engine's log goes on from a [`Tail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    /// The first line that the console does not have in full.
    pub(crate) first_new: usize,
    /// How many bytes at the beginning of that line the console has.
    pub(crate) skip_bytes: usize,
    /// The log does not reach back to the tail: between the two, lines may be missing.
    pub(crate) gap: bool,
}

/// Joins the engine's log, of the same run and stream, to the tail. `from_start` says that `log` begins
/// with the run's first line.
pub(crate) fn join(tail: &Tail, log: &[EngineLine<'_>], from_start: bool) -> Join {
    let found = place_by_count(tail, log, from_start)
        .or_else(|| place_by_lines(tail, log))
        .or_else(|| place_by_ends(tail, log));
    let (first_new, gap) = match (found, tail.last_time_ms()) {
        (Some(place), _) => (place, false),
        (None, None) => (0, false),
        (None, Some(time_ms)) => {
            (log.partition_point(|line| line.time_ms <= time_ms), !log.is_empty())
        }
    };
    let next = log.get(first_new).filter(|_| !gap);
    let skip_bytes = next.map_or(0, |next| known_bytes(&tail.forming, next.text));
    Join { first_new, skip_bytes, gap }
}

/// How much of a line the console has, of which it has `forming`. The engine's log gets long lines piece by
/// piece, and may have less of one than the console; and the console may lack the beginning of one.
fn known_bytes(forming: &[u8], line: &[u8]) -> usize {
    if forming.starts_with(line) {
        return line.len();
    }
    // Both may be megabytes of whatever a workload prints: the search has to be linear.
    memmem::find(line, forming).map_or(0, |at| at + forming.len())
}

fn place_by_count(tail: &Tail, log: &[EngineLine<'_>], from_start: bool) -> Option<usize> {
    let count = usize::try_from(tail.lines_in_run.filter(|_| from_start)?).ok()?;
    (count <= log.len() && matched(tail, log, count).is_some()).then_some(count)
}

/// The place with the most equal lines before it; among those, the nearest in time.
fn place_by_lines(tail: &Tail, log: &[EngineLine<'_>]) -> Option<usize> {
    let time_ms = tail.last_time_ms()?;
    let candidates = (1..=log.len()).filter_map(|place| {
        let distance = log[place - 1].time_ms.abs_diff(time_ms);
        matched(tail, log, place).map(|lines| (lines, std::cmp::Reverse(distance), place))
    });
    candidates.max().map(|(_, _, place)| place)
}

/// The place behind the line that the console's last one may be the rest of: what was printed of a line
/// while nobody was attached is in no log yet when the attach begins, and so never reaches the console.
fn place_by_ends(tail: &Tail, log: &[EngineLine<'_>]) -> Option<usize> {
    let last = tail.lines.last()?;
    let candidates = log.iter().enumerate().filter(|(_, line)| {
        line.time_ms.abs_diff(last.time_ms) < ENDS_APART_MS
            && likeness(&last.text, line.text).is_some()
    });
    let nearest = candidates.min_by_key(|(_, line)| line.time_ms.abs_diff(last.time_ms));
    nearest.map(|(index, _)| index + 1)
}

/// What a line of the console lacks of the engine's, if it is its beginning and its end.
pub(crate) fn missing_part<'a>(ours: &[u8], theirs: &'a [u8]) -> Option<&'a [u8]> {
    let (ours, theirs) = (without_end(ours), without_end(theirs));
    let missing = theirs.len().checked_sub(ours.len()).filter(|&missing| missing > 0)?;
    let begins = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    (theirs[begins + missing..] == ours[begins..]).then(|| &theirs[begins..begins + missing])
}

/// How a line of the console and one of the engine's log are the same; `None` if they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Likeness {
    Same,
    /// The console lacks a part of it.
    Part,
}

pub(crate) fn likeness(ours: &[u8], theirs: &[u8]) -> Option<Likeness> {
    if same_text(ours, theirs) {
        return Some(Likeness::Same);
    }
    let is_part = !ours.is_empty() && missing_part(ours, theirs).is_some();
    is_part.then_some(Likeness::Part)
}

/// How many lines before `place` are those of the tail; `None` if one is not.
fn matched(tail: &Tail, log: &[EngineLine<'_>], place: usize) -> Option<usize> {
    let pairs = tail.lines.iter().rev().zip(log[..place].iter().rev());
    let mut equal = 0;
    for (ours, theirs) in pairs {
        if !same_text(&ours.text, theirs.text) {
            return None;
        }
        equal += 1;
    }
    Some(equal)
}

/// Compares without line ends, and without bytes that are no UTF-8: the engine's log may have replaced
/// those.
fn same_text(ours: &[u8], theirs: &[u8]) -> bool {
    let (ours, theirs) = (without_end(ours), without_end(theirs));
    let readable =
        |text: &[u8]| String::from_utf8_lossy(text).replace(char::REPLACEMENT_CHARACTER, "");
    ours == theirs || (std::str::from_utf8(ours).is_err() && readable(ours) == readable(theirs))
}

fn without_end(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |last| last + 1);
    &line[..end]
}

impl Console {
    /// The end of what the console has of a stream of a run. Empty where the journal cannot be read.
    pub(crate) async fn tail(&self, run: RunId, stream: Stream) -> Tail {
        let read = self.shared.blocking(move |shared| {
            shared.write_pending();
            let view = lock(&shared.journal).view();
            let from = Position::line(view.end.line.saturating_sub(TAIL_SEARCH_LINES).max(1));
            let mut collector = Collector::default();
            let result = read::each_record(&view, from, |record, text| {
                if record.run == run {
                    collector.count(record, stream);
                    if record.stream == stream {
                        collector.add(record, text);
                    }
                }
            });
            if let Err(error) = result {
                let dir = view.dir.display();
                tracing::warn!(%dir, "console journal is not readable: {}", Chain(&error));
                return Tail::default();
            }
            collector.finish()
        });
        read.await.unwrap_or_default()
    }
}

/// Makes lines of records again: a line that was numbered in pieces is one line to the engine.
#[derive(Debug, Default)]
struct Collector {
    lines: VecDeque<TailLine>,
    seen: u64,
    forming: Vec<u8>,
    lines_in_run: Option<u64>,
}

impl Collector {
    /// Every record counts the lines of both streams: also of one that has been silent for long.
    fn count(&mut self, record: &Record, stream: Stream) {
        let newlines = record.newlines[stream.index()];
        self.lines_in_run = (newlines < u32::MAX).then_some(u64::from(newlines));
    }

    fn add(&mut self, record: &Record, text: &[u8]) {
        if record.note {
            // Said where lines are missing: what stands before it is continued by nothing behind it.
            self.forming.clear();
            return;
        }
        for part in text.split_inclusive(|&b| b == b'\n') {
            self.forming.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let text = without_end(&self.forming).to_vec();
                self.forming.clear();
                self.lines.push_back(TailLine { time_ms: record.time_ms, text });
                self.seen += 1;
                if self.lines.len() > TAIL_LINES {
                    self.lines.pop_front();
                }
            }
        }
    }

    fn finish(mut self) -> Tail {
        // The first line that was seen may lack its beginning, unless it is the run's first.
        if self.seen <= TAIL_LINES as u64 && self.lines_in_run != Some(self.seen) {
            self.lines.pop_front();
        }
        Tail { lines_in_run: self.lines_in_run, lines: self.lines.into(), forming: self.forming }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tail(lines: &[(i64, &str)], lines_in_run: Option<u64>, forming: &str) -> Tail {
        let lines = lines
            .iter()
            .map(|(time_ms, text)| TailLine { time_ms: *time_ms, text: text.as_bytes().to_vec() });
        Tail { lines_in_run, lines: lines.collect(), forming: forming.as_bytes().to_vec() }
    }

    fn log<'a>(lines: &[(i64, &'a str)]) -> Vec<EngineLine<'a>> {
        let line =
            |&(time_ms, text): &(i64, &'a str)| EngineLine { time_ms, text: text.as_bytes() };
        lines.iter().map(line).collect()
    }

    #[test]
    fn the_log_goes_on_behind_the_last_equal_line() {
        let tail = tail(&[(1, "a"), (2, "b")], Some(2), "");
        let log = log(&[(1, "a\r\n"), (2, "b\r\n"), (3, "c\r\n")]);
        assert_eq!(join(&tail, &log, true), Join { first_new: 2, skip_bytes: 0, gap: false });
        assert_eq!(join(&tail, &log[1..], false), Join { first_new: 1, skip_bytes: 0, gap: false });
        assert_eq!(join(&tail, &log[..2], true), Join { first_new: 2, skip_bytes: 0, gap: false });
    }

    #[test]
    fn a_line_whose_beginning_is_here_is_continued() {
        let tail = tail(&[(1, "a")], Some(1), "> ");
        let log = log(&[(1, "a\n"), (5, "> stop\n")]);
        assert_eq!(join(&tail, &log, true), Join { first_new: 1, skip_bytes: 2, gap: false });
    }

    #[test]
    fn a_long_line_goes_on_where_the_console_has_it() {
        let tail = tail(&[(1, "a")], Some(1), "0123456789");
        let part = log(&[(1, "a\n"), (5, "01234")]);
        assert_eq!(join(&tail, &part, true), Join { first_new: 1, skip_bytes: 5, gap: false });
        let more = log(&[(1, "a\n"), (5, "0123456789ab")]);
        assert_eq!(join(&tail, &more, true), Join { first_new: 1, skip_bytes: 10, gap: false });
    }

    #[test]
    fn a_line_whose_beginning_never_came_is_no_gap() {
        let ends = tail(&[(1, "a"), (9, "END")], None, "");
        let log_of = log(&[(1, "a\n"), (9, "Password:END\n"), (10, "b\n")]);
        assert_eq!(join(&ends, &log_of, false), Join { first_new: 2, skip_bytes: 0, gap: false });
        let torn = tail(&[(9, "Pass: END")], None, "");
        let log_of = log(&[(9, "Pass: word END\n")]);
        assert_eq!(join(&torn, &log_of, false), Join { first_new: 1, skip_bytes: 0, gap: false });
        let forming = tail(&[(1, "a")], Some(1), "EN");
        let log_of = log(&[(1, "a\n"), (9, "Password:END\n")]);
        assert_eq!(
            join(&forming, &log_of, true),
            Join { first_new: 1, skip_bytes: 11, gap: false }
        );
    }

    #[test]
    fn a_part_is_missing_where_the_rest_is_the_same() {
        let missing = |ours: &str, theirs: &'static str| {
            missing_part(ours.as_bytes(), theirs.as_bytes())
                .map(|part| std::str::from_utf8(part).unwrap())
        };
        assert_eq!(missing("END\n", "Password:END\r\n"), Some("Password:"));
        assert_eq!(missing("a END", "a b END"), Some("b "));
        assert_eq!(missing("END", "END"), None);
        assert_eq!(missing("END", "ENDE"), Some("E"));
        assert_eq!(missing("xEND", "Password:END"), None);
        assert_eq!(missing("longer", "short"), None);
    }

    #[test]
    fn equal_lines_are_told_apart_by_count_and_else_by_time() {
        let ticks: Vec<(i64, &str)> = (0..100).map(|i| (i * 1000, "tick")).collect();
        let ours: Vec<(i64, &str)> = ticks[28..60].iter().map(|(t, s)| (t + 3, *s)).collect();
        let tail = tail(&ours, Some(60), "");
        assert_eq!(join(&tail, &log(&ticks), true).first_new, 60);
        assert_eq!(join(&tail, &log(&ticks[20..]), false).first_new, 40);
    }

    #[test]
    fn a_log_that_was_rotated_away_is_a_gap() {
        let tail = tail(&[(1, "a"), (2, "b")], Some(2), "> ");
        let log = log(&[(1, "x\n"), (7, "y\n"), (8, "z\n")]);
        assert_eq!(join(&tail, &log, false), Join { first_new: 1, skip_bytes: 0, gap: true });
        assert_eq!(join(&tail, &[], false), Join { first_new: 0, skip_bytes: 0, gap: false });
        let nothing = Tail::default();
        assert_eq!(join(&nothing, &log, true), Join { first_new: 0, skip_bytes: 0, gap: false });
    }

    #[test]
    fn bytes_that_are_no_text_do_not_hinder() {
        let mut tail = tail(&[(1, "a"), (2, "")], Some(2), "");
        tail.lines[1].text = b"b\xff\xfec".to_vec();
        let log = log(&[(1, "a\n"), (2, "b\u{fffd}\u{fffd}c\n"), (3, "d\n")]);
        assert_eq!(join(&tail, &log, true).first_new, 2);
    }

    proptest! {
        #[test]
        fn the_join_is_where_the_journal_stopped(
            texts in proptest::collection::vec("[ab]{0,2}", 1..80),
            stopped in 0usize..80,
            reaches_back in 0usize..40,
            delay in 0i64..400,
        ) {
            let stopped = stopped.min(texts.len());
            let all: Vec<(i64, &str)> =
                texts.iter().enumerate().map(|(i, text)| (i as i64 * 1000, text.as_str())).collect();
            let ours: Vec<(i64, &str)> = all[stopped.saturating_sub(TAIL_LINES)..stopped]
                .iter().map(|(time_ms, text)| (time_ms + delay, *text)).collect();
            let tail = tail(&ours, Some(stopped as u64), "");
            prop_assert_eq!(join(&tail, &log(&all), true).first_new, stopped);

            // A log that begins later shows the place by its lines and times, if they overlap.
            let begin = stopped.saturating_sub(reaches_back);
            if begin < stopped && (stopped - begin >= TAIL_LINES || begin == 0) {
                let place = join(&tail, &log(&all[begin..]), false);
                prop_assert_eq!((place.first_new + begin, place.gap), (stopped, false));
            }
        }
    }
}
