//! Where the engine's log ends and an attach begins.
//!
//! Both carry the same bytes, but neither says where it stands in the other: the engine stamps a line
//! when its log gets it, some time after the attach did. So what the attach delivers first is kept here
//! and looked for at the end of the log; the log is then used up to there and the attach from there on.
//! Without that, each restart of lightd would lose or repeat what passed in those milliseconds. Where
//! equal lines make several places fit, the times decide: the log has about as much beyond the place as
//! it got since the attach.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::engine::{Chunk, LogLine, OutputStream, Stream};

/// So much of an attach is kept while the log is read; beyond it the workload waits.
const EARLY_MAX_BYTES: usize = 256 * 1024;
/// Behind its end, the log is looked through for what was kept: it may have gone on while we did not.
const LOOK_BACK_BYTES: usize = 4 * 1024 * 1024;

/// What an attach delivered before its place in the log was known.
#[derive(Debug, Default)]
pub(super) struct Early {
    pub(super) chunks: Vec<Chunk>,
    bytes: usize,
    ended: bool,
}

impl Early {
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
                    self.chunks.push(chunk);
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
        let of_stream = self.chunks.iter().filter(|chunk| chunk.stream == stream);
        of_stream.flat_map(|chunk| chunk.bytes.iter().copied()).collect()
    }

    /// How many bytes of whole lines there are. The log gets lines when they are whole.
    pub(super) fn whole_lines(&self, stream: Stream) -> usize {
        self.of(stream).iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1)
    }

    /// The length of the stream's log up to where this begins. `at_least` bytes of this must be in the
    /// log already; `None` if they are not.
    pub(super) fn place_in(
        &self,
        log: &[LogLine],
        stream: Stream,
        at_least: usize,
        attached_at_nanos: i64,
    ) -> Option<usize> {
        let of_stream = || log.iter().filter(|line| line.stream == stream);
        let since_attach = of_stream().filter(|line| line.at_nanos >= attached_at_nanos);
        let common = Common {
            at_least,
            likely: since_attach.map(|line| line.bytes.len()).sum(),
            early_is_cut: self.is_full(),
        };
        let log: Vec<u8> = of_stream().flat_map(|line| line.bytes.iter().copied()).collect();
        place(&log, &self.of(stream), common)
    }
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

/// What is known of how many bytes the log and the attach have in common.
#[derive(Clone, Copy)]
struct Common {
    at_least: usize,
    likely: usize,
    early_is_cut: bool,
}

fn place(log: &[u8], early: &[u8], common: Common) -> Option<usize> {
    let Common { at_least, likely, early_is_cut } = common;
    if at_least == 0 && !early.contains(&b'\n') {
        return Some(log.len());
    }
    let from = log.len().saturating_sub(early.len() + LOOK_BACK_BYTES);
    let borders = borders(early);
    let mut matched = 0;
    for (at, &byte) in log[from..].iter().enumerate() {
        if matched == early.len() {
            if early_is_cut {
                return Some(from + at - matched);
            }
            matched = step_back(&borders, matched);
        }
        while matched > 0 && early[matched] != byte {
            matched = step_back(&borders, matched);
        }
        matched += usize::from(early[matched] == byte);
    }
    // Each shorter beginning of `early` that the log ends with fits as well, and none at all.
    let fitting =
        std::iter::successors(Some(matched), |&fits| (fits > 0).then(|| step_back(&borders, fits)));
    let fitting = fitting.filter(|&fits| fits >= at_least);
    let best = fitting.min_by_key(|fits| fits.abs_diff(likely))?;
    (best > 0).then(|| log.len() - best)
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
        likely_at(log, early, at_least, early.len())
    }

    fn likely_at(log: &str, early: &str, at_least: usize, likely: usize) -> Option<usize> {
        let common = Common { at_least, likely, early_is_cut: false };
        place(log.as_bytes(), early.as_bytes(), common)
    }

    #[test]
    fn of_several_places_that_fit_the_one_is_taken_that_the_times_speak_for() {
        let log = "tick\ntick\ntick\n";
        assert_eq!(likely_at(log, "tick\ntick\n", 5, 10), Some(5));
        assert_eq!(likely_at(log, "tick\ntick\n", 5, 5), Some(10), "the second came later");
        assert_eq!(likely_at(log, "tick\ntick\n", 0, 0), None, "the log lags behind");
        assert_eq!(likely_at(log, "tick\ntick\n", 10, 0), Some(5), "both must be there");
        assert_eq!(likely_at("a\nb\n", "b\nc\n", 0, 4), Some(2), "nothing else fits");
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
    }

    #[test]
    fn an_attach_that_had_to_wait_is_found_in_the_midst_of_the_log() {
        let common = Common { at_least: 4, likely: 4, early_is_cut: true };
        let found = place(b"a\nb\nc\nd\ne\n", b"b\nc\n", common);
        assert_eq!(found, Some(2));
    }

    #[test]
    fn the_log_is_cut_within_a_line_and_in_one_stream_only() {
        let line = |stream, text: &'static str| LogLine {
            at_nanos: 1,
            stream,
            bytes: Bytes::from_static(text.as_bytes()),
        };
        let mut log = vec![
            line(Stream::Stdout, "ab\n"),
            line(Stream::Stderr, "x\n"),
            line(Stream::Stdout, "cd\n"),
            line(Stream::Stdout, "ef\n"),
        ];
        cut(&mut log, Stream::Stdout, 4);
        let left: Vec<&[u8]> = log.iter().map(|line| &line.bytes[..]).collect();
        assert_eq!(left, [&b"ab\n"[..], b"x\n", b"c"]);
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
