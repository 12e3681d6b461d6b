//! Where the engine's log ends and an attach begins.
//!
//! Both carry the same bytes, but neither says where it stands in the other: the engine stamps a line
//! when its log gets it, some time after the attach did. So what the attach delivers first is kept here
//! and looked for at the end of the log; the log is then used up to there and the attach from there on.
//! Without that, each restart of lightd would lose or repeat what passed in those milliseconds.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::domain::stream::Stream;
use crate::domain::units::now_unix_nanos;
use crate::engine::{Chunk, LogLine, OutputStream};

/// So much of an attach is kept while the log is read; beyond it the workload waits.
const EARLY_MAX_BYTES: usize = 256 * 1024;
/// Behind its end, the log is looked through for what was kept: it may have gone on while we did not.
const LOOK_BACK_BYTES: usize = 4 * 1024 * 1024;

/// What an attach delivered before its place in the log was known.
#[derive(Debug, Default)]
pub(super) struct Early {
    came: Vec<Came>,
    bytes: usize,
    ended: bool,
}

#[derive(Debug)]
struct Came {
    at_nanos: i64,
    chunk: Chunk,
}

impl Early {
    pub(super) fn into_chunks(self) -> Vec<Chunk> {
        self.came.into_iter().map(|came| came.chunk).collect()
    }

    /// Keeps what comes for so long.
    pub(super) async fn collect_for(&mut self, output: &mut OutputStream, time: Duration) {
        let end = Instant::now() + time;
        tokio::select! {
            () = self.collect(output) => {}
            () = tokio::time::sleep_until(end) => {}
        }
    }

    /// Keeps what comes until the room is used up, then waits. Safe to cancel.
    pub(super) async fn collect(&mut self, output: &mut OutputStream) {
        while !self.ended && !self.is_full() {
            match output.next().await {
                Ok(Some(chunk)) => {
                    self.bytes += chunk.bytes.len();
                    // A copy: what is read in small pieces lies in as many large buffers.
                    let chunk = Chunk { bytes: Bytes::copy_from_slice(&chunk.bytes), ..chunk };
                    self.came.push(Came { at_nanos: now_unix_nanos(), chunk });
                }
                // Whoever reads on from here learns of it again.
                Ok(None) | Err(_) => self.ended = true,
            }
        }
        std::future::pending().await
    }

    fn is_full(&self) -> bool {
        self.bytes >= EARLY_MAX_BYTES
    }

    fn of(&self, stream: Stream) -> Vec<u8> {
        let of_stream = self.came.iter().filter(|came| came.chunk.stream == stream);
        of_stream.flat_map(|came| came.chunk.bytes.iter().copied()).collect()
    }

    /// Up to which length the stream had come at which time.
    fn times_of(&self, stream: Stream) -> Vec<(usize, i64)> {
        let mut length = 0;
        let of_stream = self.came.iter().filter(|came| came.chunk.stream == stream);
        let times = of_stream.map(|came| {
            length += came.chunk.bytes.len();
            (length, came.at_nanos)
        });
        times.collect()
    }

    /// How many bytes of whole lines there are. The log gets lines when they are whole.
    pub(super) fn whole_lines(&self, stream: Stream) -> usize {
        self.of(stream).iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1)
    }

    /// The length of the stream's log up to where this begins; `None` if it is not within the bounds.
    pub(super) fn place_in(
        &self,
        log: &[LogLine],
        stream: Stream,
        bounds: Bounds,
    ) -> Option<usize> {
        let (mut bytes, mut before, mut last_at_nanos) = (Vec::new(), 0, 0);
        for line in log.iter().filter(|line| line.stream == stream) {
            // A line that is logged in pieces bears the time of the first one on all of them.
            let is_whole = line.bytes.ends_with(b"\n") && bytes.last().is_none_or(|&b| b == b'\n');
            bytes.extend_from_slice(&line.bytes);
            last_at_nanos = line.at_nanos;
            if is_whole && line.at_nanos < bounds.not_before_nanos {
                before = bytes.len();
            }
        }
        let (early, times) = (self.of(stream), self.times_of(stream));
        let apart = |length: usize| {
            let came = times.partition_point(|(up_to, _)| *up_to < length);
            times.get(came).map_or(u64::MAX, |(_, at_nanos)| at_nanos.abs_diff(last_at_nanos))
        };
        let place = Seam { log: &bytes[before..], early: &early, early_is_cut: self.is_full() }
            .place(bounds.at_least_bytes, apart);
        place.map(|length| before + length)
    }
}

/// Where the beginning of an attach can lie in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// When it was asked for, in Unix nanoseconds: a line that the engine stamped before is not in it.
    /// Among equal lines nothing else tells which they are.
    pub(super) not_before_nanos: i64,
    /// So much of it must be in the log already.
    pub(super) at_least_bytes: usize,
}

/// Takes what lies behind `length` bytes of the stream off the log.
pub(super) fn cut(log: &mut Vec<LogLine>, stream: Stream, length: usize) {
    let mut left = length;
    log.retain_mut(|line| {
        if line.stream != stream {
            return true;
        }
        let taken = left.min(line.bytes.len());
        left -= taken;
        line.bytes = Bytes::copy_from_slice(&line.bytes[..taken]);
        taken > 0
    });
}

#[derive(Clone, Copy, Debug)]
struct Seam<'a> {
    log: &'a [u8],
    early: &'a [u8],
    early_is_cut: bool,
}

impl Seam<'_> {
    /// Where in the log the other begins. Where equal lines leave a choice of how much both have, that
    /// one is taken whose last line came when the log's last line was stamped; `apart` tells how far from
    /// that a length is.
    fn place(self, at_least: usize, apart: impl Fn(usize) -> u64) -> Option<usize> {
        let Self { log, early, early_is_cut } = self;
        // The log gets a line when it ends, and a long one in pieces as well.
        let is_in_no_log = at_least == 0 && !early.contains(&b'\n');
        if early.is_empty() || is_in_no_log && log.last().is_none_or(|&last| last == b'\n') {
            return Some(log.len());
        }
        let from = log.len().saturating_sub(early.len() + LOOK_BACK_BYTES);
        let borders = borders(early);
        let (mut matched, mut lags) = (0, false);
        for (at, &byte) in log[from..].iter().enumerate() {
            if matched == early.len() {
                if early_is_cut {
                    return Some(from + at - matched);
                }
                lags = true;
                matched = step_back(&borders, matched);
            }
            while matched > 0 && early[matched] != byte {
                matched = step_back(&borders, matched);
            }
            matched += usize::from(early[matched] == byte);
        }
        let all = std::iter::successors(Some(matched), |&length| {
            (length > 0).then(|| step_back(&borders, length))
        });
        let possible = all.take_while(|&length| length > 0 && length >= at_least);
        let place = possible.min_by_key(|&length| apart(length)).map(|length| log.len() - length);
        // Where the log has all of it and more, the attach is still to come to the log's end.
        place.or_else(|| (is_in_no_log && !lags).then_some(log.len()))
    }
}

/// For each length of a beginning of `text`: the longest shorter beginning that it ends with. It keeps
/// the search linear whatever a workload prints.
fn borders(text: &[u8]) -> Vec<u32> {
    let mut borders = vec![0; text.len()];
    let mut matched = 0;
    for at in 1..text.len() {
        while matched > 0 && text[matched] != text[at] {
            matched = step_back(&borders, matched);
        }
        matched += usize::from(text[matched] == text[at]);
        borders[at] = u32::try_from(matched).expect("invariant: what is kept is short");
    }
    borders
}

fn step_back(borders: &[u32], matched: usize) -> usize {
    borders[matched - 1] as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(log: &str, early: &str, at_least: usize) -> Option<usize> {
        Seam { log: log.as_bytes(), early: early.as_bytes(), early_is_cut: false }
            .place(at_least, |_| 0)
    }

    #[test]
    fn the_log_is_used_up_to_where_the_attach_begins() {
        assert_eq!(at("a\nb\nc\n", "c\nd\n", 2), Some(4));
        assert_eq!(at("a\nb\nc\n", "c\nd\n", 4), None, "the log lags behind");
        assert_eq!(at("a\nb\n", "c\n", 2), None);
        assert_eq!(at("a\nb\n", "", 0), Some(4));
        assert_eq!(at("a\nb\n", "> ", 0), Some(4), "a prompt is in no log");
        assert_eq!(at("a\n> stop\nb\n", "stop\nb\n> ", 7), Some(4));
        assert_eq!(at("tick\ntick\ntick\n", "tick\n", 5), Some(10));
        assert_eq!(at("", "a\n", 2), None);
        assert_eq!(at("a\n0123456789", "6789ab", 0), Some(8), "a long line in pieces");
        assert_eq!(at("a\n0123", "xyz", 0), Some(6));
        assert_eq!(at("a\n0123", "", 0), Some(6));
        assert_eq!(at("a\n0123456789", "456", 0), None, "the attach lags behind");
    }

    #[test]
    fn an_attach_that_had_to_wait_is_found_in_the_midst_of_the_log() {
        let seam = Seam { log: b"a\nb\nc\nd\ne\n", early: b"b\nc\n", early_is_cut: true };
        assert_eq!(seam.place(4, |_| 0), Some(2));
    }

    #[test]
    fn the_log_is_cut_within_a_line_and_in_one_stream_only() {
        let line = |stream, text: &'static str| LogLine {
            at_nanos: 1,
            stream,
            bytes: Bytes::from_static(text.as_bytes()),
        };
        let mut log = vec![
            line(Stream::Out, "ab\n"),
            line(Stream::Err, "x\n"),
            line(Stream::Out, "cd\n"),
            line(Stream::Out, "ef\n"),
        ];
        cut(&mut log, Stream::Out, 4);
        let left: Vec<&[u8]> = log.iter().map(|line| &line.bytes[..]).collect();
        assert_eq!(left, [&b"ab\n"[..], b"x\n", b"c"]);
    }

    #[test]
    fn equal_lines_are_told_apart_by_their_times() {
        let tick = || Bytes::from_static(b"tick\n");
        let line = |at_nanos| LogLine { at_nanos, stream: Stream::Out, bytes: tick() };
        let log: Vec<LogLine> = (1..=10).map(|n| line(n * 1000)).collect();
        let came =
            |at_nanos| Came { at_nanos, chunk: Chunk { stream: Stream::Out, bytes: tick() } };
        let early = |times: &[i64]| Early {
            came: times.iter().copied().map(came).collect(),
            ..Early::default()
        };
        let place = |early: &Early, not_before_nanos, at_least_bytes| {
            early.place_in(&log, Stream::Out, Bounds { not_before_nanos, at_least_bytes })
        };
        // Three that the log has, and one that came after it was read.
        let four = early(&[8100, 9100, 10_100, 11_100]);
        assert_eq!(place(&four, 7500, 10), Some(35));
        assert_eq!(place(&four, 6500, 10), Some(35), "it was asked for a while before it began");
        assert_eq!(place(&four, 11_000, 5), None, "the log lags behind");
        let at_once = early(&[10_100, 10_100, 10_100]);
        assert_eq!(place(&at_once, 7500, 10), Some(35));
        assert_eq!(place(&at_once, 8500, 10), Some(40));
    }

    proptest! {
        /// Numbered lines, an attach that begins anywhere, a log that ends anywhere: joined, they are
        /// what was printed.
        #[test]
        fn log_and_attach_join_without_a_seam(
            lines in 1usize..60, begins in 0usize..400, log_ends in 0usize..60, kept in 0usize..60,
        ) {
            let printed: String = (0..lines).map(|n| format!("n{n}\n")).collect();
            let ends_of_lines: Vec<usize> =
                printed.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1).collect();
            let begins = begins.min(printed.len());
            let log_end = ends_of_lines[log_ends.min(lines - 1)];
            let kept_end = ends_of_lines[kept.min(lines - 1)].max(log_end).max(begins);
            let (log, early) = (&printed[..log_end], &printed[begins..kept_end]);
            // As it is asked: the log has what was kept before it was read.
            if let Some(place) = at(log, early, 0) {
                let joined = format!("{}{}", &log[..place], early);
                let whole = &printed[..kept_end];
                prop_assert!(joined == whole || log_end < begins || log_end == begins, "{joined:?} {whole:?}");
            } else {
                prop_assert!(log_end <= begins);
            }
        }
    }
}
