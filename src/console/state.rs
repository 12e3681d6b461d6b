//! From raw chunks to numbered lines: what a console knows at any moment.
//!
//! Chunks are cut anywhere. A line gets its number when its end arrives, or when its beginning has
//! stood for [`PARTIAL_AFTER`] and is shown as it is (a prompt). The two streams of a container without
//! a terminal form lines apart from each other; once a beginning has been shown, text of the other
//! stream ends that line, as it would on a screen. A line longer than `max_line_bytes` becomes several
//! numbered lines without line ends, so that everything joined together is still what was written.
//! Cuts never fall inside a character.
//!
//! Everything numbered goes into the ring and, encoded, into `pending`, where the journal's writer
//! takes it from. All of this is memory and short: callers hold the lock for no longer than a copy.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::block::{BLOCK_BYTES, Block, Position};
use super::pace::Pace;
use super::record::{Pending, Record};
use super::ring::{Found, Ring};
use crate::domain::ids::RunId;
use crate::domain::stream::Stream;

/// How long the beginning of a line stands before it is shown without its end.
const PARTIAL_AFTER: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct State {
    pub(super) ring: Ring,
    pub(super) pending: Pending,
    /// Up to where the journal was given everything. Readers get nothing beyond it: a number that one
    /// has seen means the same line for ever, also when this process is killed the moment after.
    safe: Position,
    forming: [Forming; 2],
    /// Whose line it is that the ring ends inside of.
    owner: Stream,
    run: RunId,
    newlines: [u32; 2],
    max_line_bytes: usize,
    pace: Pace,
    pub(super) closed: bool,
    /// Lines that the journal will never have.
    pub(super) journal_lost_lines: u64,
}

/// The beginning of a line, as far as it has no number yet.
#[derive(Debug, Default)]
struct Forming {
    bytes: Vec<u8>,
    since: Option<Instant>,
    time_ms: i64,
}

/// What readers and the journal's writer have gone to sleep on.
#[derive(Debug)]
struct Looks {
    blocks: u64,
    lines_open: bool,
    line_forming: bool,
    pending_empty: bool,
}

/// What there is for a reader.
#[derive(Debug)]
pub(super) enum Step {
    Block(Arc<Block>),
    /// Nothing that is still in memory; the ring begins there.
    Behind(Position),
    /// A block up to there, once the journal has it.
    Unsafe(Position),
    /// Nothing before the console changes, or before that moment.
    Wait(Option<Instant>),
    /// Nothing, for ever.
    Closed,
}

impl State {
    /// A console that goes on behind its last record.
    pub(super) fn new(end: Position, last: Option<Record>, ring: usize, max_line: usize) -> Self {
        Self {
            ring: Ring::new(end, ring),
            pending: Pending::default(),
            safe: end,
            forming: Default::default(),
            owner: last.map_or(Stream::Out, |last| last.stream),
            run: last.map_or_else(RunId::default, |last| last.run),
            newlines: last.map_or([0; 2], |last| last.newlines),
            max_line_bytes: max_line.max(64),
            pace: Pace::default(),
            closed: false,
            journal_lost_lines: 0,
        }
    }

    /// Takes a chunk. True if someone may have to look: a reader that has looked and found lines in
    /// the open block, or a line forming, comes back by itself when it is time.
    pub(super) fn push(
        &mut self,
        run: RunId,
        stream: Stream,
        time_ms: i64,
        mut bytes: &[u8],
        now: Instant,
    ) -> bool {
        let before = self.looks();
        self.enter_run(run);
        while !bytes.is_empty() {
            let window = &bytes[..bytes.len().min(self.room(stream)).min(BLOCK_BYTES)];
            let used = match window.iter().rposition(|&b| b == b'\n') {
                Some(last) => self.commit_lines(stream, time_ms, &window[..=last]),
                None => self.hold(stream, time_ms, window, now),
            };
            bytes = &bytes[used..];
        }
        let after = self.looks();
        before.blocks != after.blocks
            || !before.lines_open && after.lines_open
            || !before.line_forming && after.line_forming
            || before.pending_empty
    }

    fn enter_run(&mut self, run: RunId) {
        if run != self.run {
            self.end_run();
            self.run = run;
            self.newlines = [0; 2];
        }
    }

    /// Adds a line of lightd's own. It is numbered as any other, and none of the run's.
    pub(super) fn note(&mut self, run: RunId, time_ms: i64, text: &str) {
        self.enter_run(run);
        self.close_line();
        let text = [text.as_bytes(), b"\n"];
        let length = text[0].len() + 1;
        let record = self.record(self.owner, time_ms, length, 1, false);
        self.ring.append_lines(self.run, record.end(), text);
        self.journal(Record { note: true, ..record }, text);
    }

    fn looks(&self) -> Looks {
        Looks {
            blocks: self.ring.blocks_sealed(),
            lines_open: self.ring.has_open_lines(),
            line_forming: self.partial_due().is_some(),
            pending_empty: self.pending.is_empty(),
        }
    }

    /// Ends the lines that are still forming: their run has ended and nothing will.
    pub(super) fn end_run(&mut self) {
        for stream in Stream::ALL {
            let forming = std::mem::take(&mut self.forming[stream.index()]);
            if !forming.bytes.is_empty() {
                self.commit_piece(stream, forming.time_ms, &forming.bytes, true);
            }
        }
        self.close_line();
    }

    /// Gives back the memory of everything that the journal has.
    pub(super) fn release(&mut self) {
        self.ring.release();
        self.pending = Pending::default();
    }

    /// How many bytes may still join the line that is forming on the stream; never 0.
    fn room(&self, stream: Stream) -> usize {
        self.max_line_bytes.saturating_sub(self.length_so_far(stream)).max(1)
    }

    fn length_so_far(&self, stream: Stream) -> usize {
        let shown = if stream == self.owner { self.ring.end().offset } else { 0 };
        self.forming[stream.index()].bytes.len() + usize::try_from(shown).unwrap_or(usize::MAX)
    }

    fn hold(&mut self, stream: Stream, time_ms: i64, bytes: &[u8], now: Instant) -> usize {
        let forming = &mut self.forming[stream.index()];
        forming.bytes.extend_from_slice(bytes);
        forming.since.get_or_insert(now);
        forming.time_ms = time_ms;
        if self.length_so_far(stream) >= self.max_line_bytes {
            self.show(stream, true);
        }
        bytes.len()
    }

    /// Numbers lines that are complete: what was held of the first, and `bytes`.
    fn commit_lines(&mut self, stream: Stream, time_ms: i64, bytes: &[u8]) -> usize {
        self.take_line(stream);
        let held = std::mem::take(&mut self.forming[stream.index()]).bytes;
        let lines = bytes.iter().filter(|&&b| b == b'\n').count();
        let lines = u32::try_from(lines).expect("invariant: a window is shorter than 4 GiB");
        let newlines = &mut self.newlines[stream.index()];
        *newlines = newlines.saturating_add(lines);
        let record = self.record(stream, time_ms, held.len() + bytes.len(), lines, false);
        self.ring.append_lines(self.run, record.end(), [&held, bytes]);
        self.journal(record, [&held, bytes]);
        bytes.len()
    }

    fn commit_piece(&mut self, stream: Stream, time_ms: i64, bytes: &[u8], closed: bool) {
        self.take_line(stream);
        let record = self.record(stream, time_ms, bytes.len(), 0, closed);
        if bytes.is_empty() {
            self.ring.close_line();
        } else {
            self.ring.append_piece(self.run, record.end(), bytes);
        }
        self.journal(record, [bytes, b""]);
    }

    /// Makes sure that the line the ring ends in, if it does, is the stream's own.
    fn take_line(&mut self, stream: Stream) {
        if stream != self.owner {
            self.close_line();
            self.owner = stream;
        }
    }

    fn close_line(&mut self) {
        if self.ring.end().offset > 0 {
            self.commit_piece(self.owner, 0, b"", true);
        }
    }

    fn record(
        &self,
        stream: Stream,
        time_ms: i64,
        length: usize,
        lines: u32,
        closed: bool,
    ) -> Record {
        Record {
            start: self.ring.end(),
            lines,
            closed,
            note: false,
            length: u32::try_from(length).expect("invariant: lines and windows are short"),
            stream,
            run: self.run,
            time_ms,
            newlines: self.newlines,
        }
    }

    fn journal(&mut self, record: Record, text: [&[u8]; 2]) {
        if self.pending.has_room(record.whole_length()) {
            self.pending.push(record, text);
        } else {
            self.journal_lost_lines += u64::from(record.lines);
        }
    }

    /// Numbers what is forming on the stream, up to the last whole character.
    fn show(&mut self, stream: Stream, closed: bool) {
        let mut bytes = std::mem::take(&mut self.forming[stream.index()].bytes);
        let time_ms = self.forming[stream.index()].time_ms;
        let whole = whole_characters(&bytes);
        self.commit_piece(stream, time_ms, &bytes[..whole], closed);
        bytes.drain(..whole);
        let forming = &mut self.forming[stream.index()];
        if bytes.is_empty() {
            forming.since = None;
        }
        forming.bytes = bytes;
    }

    /// When the beginning of a line will have stood long enough to be shown.
    pub(super) fn partial_due(&self) -> Option<Instant> {
        self.forming.iter().filter_map(Forming::due).min()
    }

    /// Shows the beginnings that have stood long enough.
    pub(super) fn show_due(&mut self, now: Instant) {
        for stream in Stream::ALL {
            if self.forming[stream.index()].due().is_some_and(|due| due <= now) {
                self.show(stream, false);
            }
        }
    }

    /// Whether the journal was given everything up to there.
    pub(super) fn is_safe(&self, end: Position) -> bool {
        end <= self.safe
    }

    /// The journal was given everything up to there, or will not take it.
    pub(super) fn note_safe(&mut self, end: Position) {
        self.safe = self.safe.max(end);
    }

    /// What a reader at `from` gets now. An eager one gets lines that are there although others are
    /// about to follow.
    pub(super) fn step(&mut self, from: Position, now: Instant, eager: bool) -> Step {
        self.show_due(now);
        if matches!(self.ring.find(from), Found::Open) {
            match self.pace.count(now) {
                Some(wake) if !eager => return Step::Wait(Some(wake)),
                _ => self.ring.seal(),
            }
        }
        match self.ring.find(from) {
            Found::Block(block) if block.end > self.safe => Step::Unsafe(block.end),
            Found::Block(block) => Step::Block(block),
            Found::Behind => Step::Behind(self.ring.start()),
            Found::Open | Found::End if self.closed => Step::Closed,
            Found::Open | Found::End => Step::Wait(self.partial_due()),
        }
    }
}

impl Forming {
    fn due(&self) -> Option<Instant> {
        if whole_characters(&self.bytes) == 0 {
            return None;
        }
        self.since.map(|since| since + PARTIAL_AFTER)
    }
}

/// The length without a character at the end of which only the beginning is there.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for at in (tail..bytes.len()).rev() {
        let needed = match bytes[at] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if bytes.len() - at < needed { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RUN: RunId = RunId(1);
    const MAX_LINE: usize = 64;

    fn state() -> State {
        State::new(Position::line(1), None, 1 << 20, MAX_LINE)
    }

    /// A look with a journal that is written at once.
    fn look(state: &mut State, from: Position, now: Instant, eager: bool) -> Step {
        match state.step(from, now, eager) {
            Step::Unsafe(end) => {
                state.note_safe(end);
                state.step(from, now, eager)
            }
            step => step,
        }
    }

    /// Everything a reader that looks now gets.
    fn drain(state: &mut State, from: &mut Position, now: Instant) -> Vec<(String, u64, bool)> {
        let mut all = Vec::new();
        while let Step::Block(block) = look(state, *from, now, true) {
            assert_eq!(from.lines_until(block.start), 0);
            *from = block.end;
            all.push((block.text().into_owned(), block.last_seq(), block.is_partial()));
        }
        all
    }

    #[test]
    fn a_prompt_is_shown_after_a_while_and_then_continued() {
        let mut state = state();
        let mut at = Position::line(1);
        let start = Instant::now();
        state.push(RUN, Stream::Out, 0, b"hello\r\n> ", start);
        assert_eq!(drain(&mut state, &mut at, start), [("hello\r\n".to_owned(), 1, false)]);
        assert_eq!(state.partial_due(), Some(start + PARTIAL_AFTER));

        let later = start + PARTIAL_AFTER;
        assert_eq!(drain(&mut state, &mut at, later), [("> ".to_owned(), 2, true)]);
        assert_eq!(state.partial_due(), None);

        state.push(RUN, Stream::Out, 0, b"stop\r\nbye\r\n", later);
        assert_eq!(drain(&mut state, &mut at, later), [("stop\r\nbye\r\n".to_owned(), 3, false)]);
        let mut other = Position::line(2);
        let again: String =
            drain(&mut state, &mut other, later).into_iter().map(|(text, ..)| text).collect();
        assert_eq!(again, "> stop\r\nbye\r\n");
    }

    #[test]
    fn a_character_that_is_not_all_there_waits_for_the_rest() {
        let mut state = state();
        let mut at = Position::line(1);
        let start = Instant::now();
        let euro = "€".as_bytes();
        state.push(RUN, Stream::Out, 0, &[b"5 ", &euro[..2]].concat(), start);
        let later = start + PARTIAL_AFTER;
        assert_eq!(drain(&mut state, &mut at, later), [("5 ".to_owned(), 1, true)]);
        assert_eq!(state.partial_due(), None);
        state.push(RUN, Stream::Out, 0, &[&euro[2..], b"\n"].concat(), later);
        assert_eq!(drain(&mut state, &mut at, later), [("€\n".to_owned(), 1, false)]);
    }

    #[test]
    fn the_other_stream_ends_a_line_whose_beginning_was_shown() {
        let mut state = state();
        let mut at = Position::line(1);
        let start = Instant::now();
        state.push(RUN, Stream::Out, 0, b"out", start);
        state.push(RUN, Stream::Err, 0, b"err\n", start);
        assert_eq!(drain(&mut state, &mut at, start), [("err\n".to_owned(), 1, false)]);
        let later = start + PARTIAL_AFTER;
        assert_eq!(drain(&mut state, &mut at, later), [("out".to_owned(), 2, true)]);
        state.push(RUN, Stream::Err, 0, b"err\n", later);
        state.push(RUN, Stream::Out, 0, b"put\n", later);
        assert_eq!(drain(&mut state, &mut at, later), [("err\nput\n".to_owned(), 4, false)]);
    }

    #[test]
    fn a_run_that_ends_ends_its_line() {
        let mut state = state();
        let mut at = Position::line(1);
        let start = Instant::now();
        state.push(RUN, Stream::Out, 0, b"dying", start);
        state.push(RUN.next(), Stream::Out, 0, b"fresh\n", start);
        assert_eq!(
            drain(&mut state, &mut at, start),
            [("dying".to_owned(), 1, false), ("fresh\n".to_owned(), 2, false)]
        );
    }

    #[test]
    fn blocks_are_paced_only_when_there_are_many() {
        let mut state = state();
        let mut at = Position::line(1);
        let mut now = Instant::now();
        let mut immediate = 0;
        let waits_until = loop {
            state.push(RUN, Stream::Out, 0, b"x\n", now);
            match look(&mut state, at, now, false) {
                Step::Block(block) => at = block.end,
                Step::Wait(Some(until)) => break until,
                other => panic!("{other:?}"),
            }
            immediate += 1;
        };
        assert!((8..=12).contains(&immediate), "{immediate}");
        assert!(waits_until > now && waits_until <= now + Duration::from_millis(8));
        now += Duration::from_secs(1);
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            state.push(RUN, Stream::Out, 0, b"x\n", now);
            match look(&mut state, at, now, false) {
                Step::Block(block) => at = block.end,
                other => panic!("a slow line was held back: {other:?}"),
            }
        }
    }

    #[test]
    fn whole_characters_are_recognised() {
        for text in ["", "a", "ä", "a€", "🙂"] {
            assert_eq!(whole_characters(text.as_bytes()), text.len());
            let last = text.chars().next_back().map_or(0, char::len_utf8);
            for cut in 1..last {
                let cut = &text.as_bytes()[..text.len() - cut];
                assert_eq!(whole_characters(cut), text.len() - last, "{cut:x?}");
            }
        }
        assert_eq!(whole_characters(b"a\xff"), 2);
        assert_eq!(whole_characters(b"\x80\x80\x80\x80"), 4);
    }

    /// Chunks of text with line ends, many-byte characters, garbage and over-long lines.
    fn output() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let piece = prop_oneof![
            "[a-zäö€🙂]{0,12}".prop_map(String::into_bytes),
            "[a-z]{60,140}".prop_map(String::into_bytes),
            Just(b"\r\n".to_vec()),
            Just(b"\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(piece, 0..40)
    }

    proptest! {
        #[test]
        fn nothing_is_lost_repeated_or_cut_whatever_the_chunks(
            pieces in output(),
            cuts in proptest::collection::vec(1usize..50, 1..40),
            pauses in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let whole = pieces.concat();
            let mut state = state();
            let mut now = Instant::now();
            let (mut live, mut live_at) = (String::new(), Position::line(1));
            let mut rest = whole.as_slice();
            for (cut, pause) in cuts.iter().cycle().zip(pauses.iter().cycle()) {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                state.push(RUN, Stream::Out, 0, chunk, now);
                rest = after;
                if *pause {
                    now += PARTIAL_AFTER;
                }
                for (text, ..) in drain(&mut state, &mut live_at, now) {
                    live.push_str(&text);
                }
            }
            state.end_run();
            for (text, ..) in drain(&mut state, &mut live_at, now) {
                live.push_str(&text);
            }
            let mut late_at = Position::line(1);
            let blocks = drain(&mut state, &mut late_at, now);
            let late: String = blocks.iter().map(|(text, ..)| text.as_str()).collect();
            prop_assert_eq!(&late, &live);
            if let Ok(text) = std::str::from_utf8(&whole) {
                prop_assert_eq!(&late, text);
            }
            let longest = late.split_inclusive('\n').map(str::len).max().unwrap_or(0);
            if longest <= MAX_LINE {
                let lines = late.split_inclusive('\n').count() as u64;
                prop_assert_eq!(state.ring.end(), Position::line(lines + 1));
            }
        }
    }
}
