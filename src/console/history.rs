//! Finite looks back: the last lines, those after a number, those of a run, those that match.
//!
//! Asked over REST and by sockets. A look back reads like any other reader, piece by piece, and holds
//! no more than a bounded text; what is gone is counted, and where it stopped early it says from where
//! to ask on.

use std::collections::VecDeque;
use std::time::Duration;

use regex::bytes::Regex;
use tokio::time::Instant;

use super::block::Block;
use super::{Console, Cursor, Delivery, Mark, Start};
use crate::domain::ids::RunId;

/// A look back never holds more text than this.
const HISTORY_BYTES: usize = 1024 * 1024;
/// Nor does it last longer than about this, however much is kept.
const HISTORY_TIME: Duration = Duration::from_secs(10);

/// Which lines are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Query<'a> {
    /// At most so many: the first ones behind `since` where that is given, otherwise the last ones.
    pub(crate) lines: usize,
    pub(crate) since: Option<u64>,
    pub(crate) run: Option<RunId>,
    /// Matched against each line without its line end.
    pub(crate) grep: Option<&'a Regex>,
}

/// The lines that were found. A line that is still forming is not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) text: String,
    /// The number to ask on from.
    pub(crate) last_seq: u64,
    /// Whether all lines up to the last one were looked at. Otherwise there was no room or time for more,
    /// and what follows is to be had from `last_seq` on.
    pub(crate) complete: bool,
    /// Lines behind `since` that are nowhere any more.
    pub(crate) lines_lost: u64,
}

impl Console {
    /// Looks back. Matching and runs are looked for in everything that is kept, piece by piece.
    pub(crate) async fn history(&self, query: Query<'_>) -> History {
        let last_line = self.last_line();
        let lines = u64::try_from(query.lines).unwrap_or(u64::MAX);
        let start = match query.since {
            Some(seq) => Start::After(Mark::line(seq)),
            None if query.run.is_none() && query.grep.is_none() => Start::Tail(lines),
            None => Start::After(Mark::line(0)),
        };
        let mut found = Found { last_seq: query.since.unwrap_or(0), ..Found::default() };
        let mut cursor = self.cursor(start);
        let complete = found.collect(&mut cursor, &query, last_line).await;
        History {
            last_seq: if complete { last_line } else { found.last_seq },
            complete,
            lines_lost: if query.since.is_some() { found.lines_lost } else { 0 },
            text: found.into_text(),
        }
    }
}

#[derive(Debug, Default)]
struct Found {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    last_seq: u64,
    lines_lost: u64,
    /// The beginning of a line that was shown before it ended.
    begun: Option<(u64, Vec<u8>)>,
}

impl Found {
    /// Collects up to `last_line`, which was the last when the question was asked; false if there was
    /// no room or time for all.
    async fn collect(&mut self, cursor: &mut Cursor, query: &Query<'_>, last_line: u64) -> bool {
        let give_up = Instant::now() + HISTORY_TIME;
        while let Some(delivery) = cursor.next_at_hand().await {
            if Instant::now() > give_up {
                return false;
            }
            // What lies in memory is had without waiting, and matching takes its time.
            tokio::task::yield_now().await;
            match delivery {
                Delivery::Gap { lines_lost } => {
                    self.lines_lost += lines_lost;
                    self.begun = None;
                }
                Delivery::Lines(block) if block.first_seq() > last_line => break,
                Delivery::Lines(block) => {
                    if !self.take_block(&block, query, last_line) {
                        return false;
                    }
                }
            }
        }
        self.end_begun(query)
    }

    /// Takes the lines of a block; false if one is one too many.
    fn take_block(&mut self, block: &Block, query: &Query<'_>, last_line: u64) -> bool {
        let is_next = |(seq, _): &(u64, Vec<u8>)| *seq < block.first_seq();
        if self.begun.as_ref().is_some_and(is_next) && !self.end_begun(query) {
            return false;
        }
        if query.run.is_some_and(|run| run != block.run()) {
            self.last_seq = block.last_seq().min(last_line);
            return true;
        }
        for (seq, text) in block.lines().take_while(|(seq, _)| *seq <= last_line) {
            if block.is_partial() {
                self.begun.get_or_insert_with(|| (seq, Vec::new())).1.extend_from_slice(text);
                continue;
            }
            let begun = self.begun.take().map(|(_, begun)| [&begun, text].concat());
            if !self.take_line(seq, begun.as_deref().unwrap_or(text), query) {
                return false;
            }
        }
        true
    }

    /// A line that has begun has ended without more text.
    fn end_begun(&mut self, query: &Query<'_>) -> bool {
        self.begun.take().is_none_or(|(seq, text)| self.take_line(seq, &text, query))
    }

    fn take_line(&mut self, seq: u64, line: &[u8], query: &Query<'_>) -> bool {
        if query.grep.is_none_or(|grep| grep.is_match(without_end(line))) && !self.add(line, query)
        {
            return false;
        }
        self.last_seq = seq;
        true
    }

    /// Adds a line; false if it is one too many.
    fn add(&mut self, line: &[u8], query: &Query<'_>) -> bool {
        let full = |found: &Self| {
            found.lines.len() >= query.lines
                || (found.bytes + line.len() > HISTORY_BYTES && !found.lines.is_empty())
        };
        while full(self) {
            if query.since.is_some() {
                return false;
            }
            let Some(oldest) = self.lines.pop_front() else { return true };
            self.bytes -= oldest.len();
        }
        self.bytes += line.len();
        self.lines.push_back(line.to_vec());
        true
    }

    fn into_text(self) -> String {
        let mut bytes = Vec::with_capacity(self.bytes);
        self.lines.iter().for_each(|line| bytes.extend_from_slice(line));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}
