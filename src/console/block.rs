//! Runs of numbered lines, as they lie in memory and go out to readers.
//!
//! The console is one stream of bytes with a line structure; a [`Position`] is a place in it. A
//! [`Block`] is a piece of the stream that never changes again: either whole lines that each end with
//! `\n` (the first may be the rest of a line whose beginning was shown earlier), or one piece of a
//! single line without its end. That rule is what lets a block be cut at any line without an index.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::Deserialize;

use crate::domain::ids::RunId;

/// Text is handed on in pieces of about this size; a line is not cut for it.
pub(super) const BLOCK_BYTES: usize = 32 * 1024;

/// A place in the stream: so many bytes into the line of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) line: u64,
    pub(super) offset: u32,
}

impl Position {
    /// The beginning of a line.
    pub(super) const fn line(line: u64) -> Self {
        Self { line, offset: 0 }
    }

    /// How many lines a reader at `self` misses that has to go on at `next`. The rest of a line it
    /// has seen the beginning of does not count: such a line also ends when its run does.
    pub(super) fn lines_until(self, next: Self) -> u64 {
        let first_unseen = self.line + u64::from(self.offset > 0);
        next.line.saturating_sub(first_unseen)
    }
}

/// A place in the stream as readers name it: how many lines they have, and how many bytes of the line
/// that follows. Written `7`, or `7.12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Mark {
    lines: u64,
    bytes: u32,
}

impl Mark {
    /// Behind the line of that number.
    pub(crate) fn line(seq: u64) -> Self {
        Self { lines: seq, bytes: 0 }
    }
}

impl From<Position> for Mark {
    fn from(at: Position) -> Self {
        Self { lines: at.line - 1, bytes: at.offset }
    }
}

impl From<Mark> for Position {
    fn from(mark: Mark) -> Self {
        Self { line: mark.lines.saturating_add(1), offset: mark.bytes }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            0 => write!(f, "{}", self.lines),
            bytes => write!(f, "{}.{bytes}", self.lines),
        }
    }
}

/// What was given is no [`Mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be the number of a line, such as 7, or a place behind one, such as 7.12")]
pub(crate) struct BadMark;

impl FromStr for Mark {
    type Err = BadMark;

    fn from_str(text: &str) -> Result<Self, BadMark> {
        let (lines, bytes) = text.split_once('.').unwrap_or((text, "0"));
        let lines = lines.parse().map_err(|_| BadMark)?;
        Ok(Self { lines, bytes: bytes.parse().map_err(|_| BadMark)? })
    }
}

impl TryFrom<String> for Mark {
    type Error = BadMark;

    fn try_from(text: String) -> Result<Self, BadMark> {
        text.parse()
    }
}

/// An unchanging piece of the console, shared by all who read it.
#[derive(Debug)]
pub(crate) struct Block {
    pub(super) start: Position,
    pub(super) end: Position,
    run: RunId,
    bytes: Bytes,
    frame: OnceLock<Bytes>,
}

impl Block {
    pub(super) fn new(start: Position, end: Position, run: RunId, bytes: Bytes) -> Self {
        Self { start, end, run, bytes, frame: OnceLock::new() }
    }

    pub(crate) fn run(&self) -> RunId {
        self.run
    }

    pub(crate) fn first_seq(&self) -> u64 {
        self.start.line
    }

    /// The number of the last line in here, which is the forming one if the block is partial.
    pub(crate) fn last_seq(&self) -> u64 {
        if self.is_partial() { self.end.line } else { self.end.line - 1 }
    }

    /// Whether this is text of a line that is still forming.
    pub(crate) fn is_partial(&self) -> bool {
        self.end.offset > 0
    }

    /// The text, with what is no UTF-8 replaced.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// The lines with their numbers and line ends.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (u64, &[u8])> {
        (self.start.line..).zip(self.bytes.split_inclusive(|&b| b == b'\n'))
    }

    /// The text as a `console` event, in JSON and thus valid UTF-8. Made when first asked for and
    /// shared from then on, so that a thousand readers cost one serialisation.
    pub(crate) fn frame(&self) -> Bytes {
        self.frame.get_or_init(|| self.serialise()).clone()
    }

    fn serialise(&self) -> Bytes {
        let mut frame = Vec::with_capacity(self.bytes.len() + self.bytes.len() / 8 + 64);
        frame.extend_from_slice(br#"{"event":"console","data":"#);
        serde_json::to_writer(&mut frame, &self.text())
            .expect("invariant: a string always serialises into memory");
        frame.extend_from_slice(br#","seq":"#);
        frame.extend_from_slice(self.last_seq().to_string().as_bytes());
        if self.is_partial() {
            let goes_on = format!(r#","partial":true,"since":"{}""#, Mark::from(self.end));
            frame.extend_from_slice(goes_on.as_bytes());
        }
        frame.push(b'}');
        frame.into()
    }

    /// The part from `from` on; the block itself, shared, where that is all of it.
    pub(super) fn since(self: &Arc<Self>, from: Position) -> Arc<Self> {
        if from <= self.start {
            return Arc::clone(self);
        }
        Arc::new(self.rest(from))
    }

    /// The part from `from`, which lies inside the block, on.
    pub(super) fn rest(&self, from: Position) -> Self {
        Self::new(from, self.end, self.run, self.bytes.slice(self.bytes_before(from)..))
    }

    /// A place behind the end of a line is that end: what follows is not the line's.
    fn bytes_before(&self, from: Position) -> usize {
        let mut before = 0;
        for (number, line) in self.lines() {
            if number == from.line {
                let begun = if number == self.start.line { self.start.offset } else { 0 };
                let offset = usize::try_from(from.offset.saturating_sub(begun));
                return before + offset.unwrap_or(usize::MAX).min(line.len());
            }
            before += line.len();
        }
        before
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: Position, end: Position, text: &'static str) -> Arc<Block> {
        Arc::new(Block::new(start, end, RunId(1), Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn frames_are_the_contracts_events_and_are_made_once() {
        let lines = block(Position::line(7), Position::line(9), "a \"quoted\"\u{1b}[0m\r\nb\n");
        let frame: serde_json::Value = serde_json::from_slice(&lines.frame()).unwrap();
        assert_eq!(
            frame,
            serde_json::json!({
                "event": "console", "data": "a \"quoted\"\u{1b}[0m\r\nb\n", "seq": 8
            })
        );
        assert_eq!(lines.frame().as_ptr(), lines.frame().as_ptr());

        let prompt = block(Position { line: 9, offset: 2 }, Position { line: 9, offset: 4 }, "> ");
        let frame: serde_json::Value = serde_json::from_slice(&prompt.frame()).unwrap();
        assert_eq!(
            frame,
            serde_json::json!({ "event": "console", "data": "> ", "seq": 9, "partial": true, "since": "8.4" })
        );
    }

    #[test]
    fn a_block_is_cut_at_any_line_and_offset() {
        let all = block(Position { line: 3, offset: 2 }, Position::line(6), "c\ndef\nghi\n");
        let from = |line, offset| all.since(Position { line, offset }).text().into_owned();
        assert_eq!(from(1, 0), "c\ndef\nghi\n");
        assert_eq!(from(3, 2), "c\ndef\nghi\n");
        assert_eq!(from(4, 0), "def\nghi\n");
        assert_eq!(from(4, 2), "f\nghi\n");
        assert_eq!(from(5, 0), "ghi\n");
        assert_eq!(from(4, 99), "ghi\n", "a place that the line does not have is its end");
        assert_eq!(from(3, 99), "def\nghi\n");
    }

    #[test]
    fn marks_are_read_as_they_are_written() {
        for text in ["0", "7", "7.12"] {
            assert_eq!(text.parse::<Mark>().unwrap().to_string(), text);
        }
        assert_eq!(Mark::from(Position { line: 8, offset: 12 }).to_string(), "7.12");
        assert_eq!(
            Position::from("7.12".parse::<Mark>().unwrap()),
            Position { line: 8, offset: 12 }
        );
        for bad in ["", "x", "7.", ".7", "-1", "7.12.1", "7,1", "99999999999999999999"] {
            assert_eq!(bad.parse::<Mark>(), Err(BadMark), "{bad:?}");
        }
    }
}
