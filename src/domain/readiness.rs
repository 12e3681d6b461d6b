//! When a server is ready, or will never be: the first time a pattern matches a line of what it prints.
//!
//! The pump feeds every chunk as it comes and tells when the output has paused. Lines end at `\n`, `\r\n`
//! or `\r`; colours, titles and other escape sequences are taken out before matching, also where they are
//! cut over chunks; the two streams of a workload without a terminal form their lines apart. A line is
//! matched when it ends, and as it stands when the output pauses (a prompt).
//! What has no line ends at all is matched piece by piece, with an overlap. Each byte is looked at a
//! bounded number of times, and all patterns are looked for in one pass. In a line that matches both kinds
//! the failure counts. A server without start patterns is ready when its process is up, which the caller
//! knows: nothing is fed here then.

use regex::bytes::{RegexSet, RegexSetBuilder};

use super::stream::Stream;

/// The size that all patterns of a start may have together, compiled.
const SIZE_LIMIT_BYTES: usize = 4 << 20;

/// A longer line is matched in pieces of this size.
const PIECE_BYTES: usize = 16 * 1024;
/// What two pieces share, so that a match at the cut is seen.
const OVERLAP_BYTES: usize = 1024;

/// What the output has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Ready,
    /// It will not come up: this pattern has matched.
    Failed {
        pattern: String,
    },
}

/// The patterns of a start, compiled together.
#[derive(Debug)]
pub(crate) struct Patterns {
    set: RegexSet,
    /// So many of the set, from its beginning, say that it is ready.
    ready: usize,
}

impl Patterns {
    /// The error is meant for the person who wrote the patterns.
    pub(crate) fn compile<'a>(
        ready: impl Iterator<Item = &'a str>,
        fail: impl Iterator<Item = &'a str>,
    ) -> Result<Self, String> {
        let mut texts: Vec<&str> = ready.collect();
        let ready = texts.len();
        texts.extend(fail);
        let set = RegexSetBuilder::new(texts).size_limit(SIZE_LIMIT_BYTES).build();
        let set = set.map_err(|why| format!("are too much together: {why}"))?;
        Ok(Self { set, ready })
    }

    fn find(&self, line: &[u8]) -> Option<Shown> {
        // Which ones is asked only when there is one: that takes longer to find out.
        if !self.set.is_match(line) {
            return None;
        }
        let failed = self.set.matches(line).iter().find(|&index| index >= self.ready);
        Some(match failed {
            Some(index) => Shown::Failed { pattern: self.set.patterns()[index].clone() },
            None => Shown::Ready,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Readiness {
    /// `None` once one has matched.
    patterns: Option<Patterns>,
    lines: [Line; 2],
}

/// The line that one stream is at.
#[derive(Debug, Default)]
struct Line {
    strip: Strip,
    text: Vec<u8>,
    /// How much of `text` has been matched already.
    looked_at: usize,
    after_return: bool,
}

impl Readiness {
    pub(crate) fn new(patterns: Patterns) -> Self {
        Self { patterns: Some(patterns), lines: Default::default() }
    }

    /// Takes the next output of a stream, cut anywhere. Answers once: when a line that ends in it matches.
    pub(crate) fn feed(&mut self, stream: Stream, chunk: &[u8]) -> Option<Shown> {
        let patterns = self.patterns.as_ref()?;
        let line = &mut self.lines[stream.index()];
        let shown = chunk.iter().find_map(|&byte| match line.strip.next(byte) {
            Some(b'\n') => line.end(patterns, false),
            Some(b'\r') => line.end(patterns, true),
            Some(byte) => line.add(patterns, byte),
            None => None,
        });
        self.finish_if(shown)
    }

    /// Says that the output has paused: answers, once, if a line as it stands matches.
    pub(crate) fn feed_idle(&mut self) -> Option<Shown> {
        let patterns = self.patterns.as_ref()?;
        let news = self.lines.iter_mut().filter(|line| line.text.len() > line.looked_at);
        let shown = news.filter_map(|line| line.look(patterns)).next();
        self.finish_if(shown)
    }

    fn finish_if(&mut self, shown: Option<Shown>) -> Option<Shown> {
        if shown.is_some() {
            *self = Self { patterns: None, lines: Default::default() };
        }
        shown
    }
}

impl Line {
    fn add(&mut self, patterns: &Patterns, byte: u8) -> Option<Shown> {
        self.after_return = false;
        self.text.push(byte);
        if self.text.len() < PIECE_BYTES {
            return None;
        }
        let shown = self.look(patterns);
        self.text.drain(..PIECE_BYTES - OVERLAP_BYTES);
        self.looked_at = self.text.len();
        shown
    }

    fn end(&mut self, patterns: &Patterns, with_return: bool) -> Option<Shown> {
        // The `\n` of `\r\n` ends no line of its own, nor does `\r\r\n` hold an empty one.
        let is_line = !(self.after_return && self.text.is_empty());
        self.after_return = with_return;
        let shown = if is_line { self.look(patterns) } else { None };
        self.text.clear();
        self.looked_at = 0;
        shown
    }

    fn look(&mut self, patterns: &Patterns) -> Option<Shown> {
        self.looked_at = self.text.len();
        patterns.find(&self.text)
    }
}

/// Takes escape sequences and control characters out of a stream of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Strip {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate byte, as in the choice of a character set.
    Intermediate,
    /// In a control sequence: ESC `[` up to a letter.
    Control,
    /// In a string, such as a window's title: up to BEL or ESC `\`.
    String,
    StringEscape,
}

impl Strip {
    /// The byte, if it is text or a line end.
    fn next(&mut self, byte: u8) -> Option<u8> {
        // A line end is one wherever it stands: a sequence that was never finished must not swallow
        // the rest of the output.
        if matches!(byte, b'\n' | b'\r') {
            *self = Self::Text;
            return Some(byte);
        }
        let text = *self == Self::Text && (byte == b'\t' || (byte >= 0x20 && byte != 0x7f));
        *self = self.after(byte);
        text.then_some(byte)
    }

    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::String, 0x07) | (Self::StringEscape, b'\\') => Self::Text,
            (Self::String, 0x1b) => Self::StringEscape,
            (Self::String, _) => Self::String,
            (_, 0x1b) => Self::Escape,
            // Cancel and substitute end any sequence.
            (_, 0x18 | 0x1a) => Self::Text,
            (Self::Escape, b'[') => Self::Control,
            (Self::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Self::String,
            (Self::Escape | Self::Intermediate, 0x20..=0x2f) => Self::Intermediate,
            (Self::Control, 0x00..=0x3f) => Self::Control,
            (Self::StringEscape, _) => Self::Escape.after(byte),
            (Self::Text | Self::Escape | Self::Intermediate | Self::Control, _) => Self::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waiting_for(ready: &str) -> Readiness {
        waiting(&[ready], &[])
    }

    fn waiting(ready: &[&str], fail: &[&str]) -> Readiness {
        let patterns = Patterns::compile(ready.iter().copied(), fail.iter().copied());
        Readiness::new(patterns.unwrap())
    }

    fn shown(mut readiness: Readiness, output: &[u8]) -> Option<Shown> {
        readiness.feed(Stream::Out, output).or_else(|| readiness.feed_idle())
    }

    fn ready(pattern: &str, output: &[u8]) -> bool {
        shown(waiting_for(pattern), output) == Some(Shown::Ready)
    }

    #[test]
    fn a_line_matches_once() {
        let mut readiness = waiting_for(r"^Done \(\d+s\)!$");
        assert_eq!(readiness.feed(Stream::Out, b"[x] Done\r\nDone (3"), None);
        assert_eq!(readiness.feed(Stream::Out, b"s)!\r\nmore\r\n"), Some(Shown::Ready));
        assert_eq!(readiness.feed(Stream::Out, b"Done (3s)!\r\n"), None);
        assert_eq!(readiness.feed_idle(), None);
    }

    #[test]
    fn colours_and_titles_do_not_hinder() {
        let output = b"\x1b]0;Server\x07\x1b[32mDo\x1b[1;38;5;10mne\x1b[0m\x1b(B\x1b[K\r\n";
        assert!(ready("^Done$", output));
        assert!(ready("^Done$", b"\x1b]2;t\x1b\\Do\x1b=ne\x07\n"));
        assert!(!ready("Server", output));
        assert!(ready("^Done$", b"\x1b]never ended\nDone\n"));
        assert!(ready("gr\u{fc}n", "\u{1b}[32mgr\u{fc}n\n".as_bytes()));
    }

    #[test]
    fn a_prompt_matches_when_the_output_pauses() {
        let mut readiness = waiting_for("> $");
        assert_eq!(readiness.feed(Stream::Out, b"hello\r\n> "), None);
        assert_eq!(readiness.feed_idle(), Some(Shown::Ready));
        assert_eq!(readiness.feed_idle(), None);
    }

    #[test]
    fn returns_end_lines_and_make_no_empty_ones() {
        assert!(ready("^100%$", b"10%\r50%\r100%\r\n"));
        assert!(!ready("^$", b"a\r\nb\r\r\nc\n"));
        assert!(ready("^$", b"a\n\nb\n"));
    }

    #[test]
    fn output_without_line_ends_is_matched_in_pieces() {
        for at in [0, PIECE_BYTES - 2, PIECE_BYTES + 1, 5 * PIECE_BYTES - 3] {
            let output = [&vec![b'.'; at][..], b"Done", &vec![b'.'; 3 * PIECE_BYTES]].concat();
            let mut readiness = waiting_for("Done");
            assert_eq!(readiness.feed(Stream::Out, &output), Some(Shown::Ready), "{at}");
            assert!(readiness.lines[0].text.capacity() <= 2 * PIECE_BYTES);
        }
    }

    #[test]
    fn any_of_several_patterns_will_do_and_the_first_line_that_matches_counts() {
        let failed = |pattern: &str| Some(Shown::Failed { pattern: pattern.to_owned() });
        let start = || waiting(&["Done", "^Up$"], &["FAILED to bind", "crash(ed)?"]);
        assert_eq!(shown(start(), b"hello\nUp\n"), Some(Shown::Ready));
        assert_eq!(shown(start(), b"Done\nit crashed\n"), Some(Shown::Ready));
        assert_eq!(shown(start(), b"it \x1b[31mcra\x1b[0mshed\nDone\n"), failed("crash(ed)?"));
        assert_eq!(shown(start(), b"Done, but FAILED to bind\n"), failed("FAILED to bind"));
        assert_eq!(shown(start(), b"nothing of it\n"), None);
    }

    #[test]
    fn two_streams_form_their_lines_apart() {
        let mut readiness = waiting_for("^Done$");
        assert_eq!(readiness.feed(Stream::Out, b"Do"), None);
        assert_eq!(readiness.feed(Stream::Err, b"\x1b[31mnoise\nDo"), None);
        assert_eq!(readiness.feed(Stream::Out, b"ne\n"), Some(Shown::Ready));
        let mut readiness = waiting_for("Server Done");
        assert_eq!(readiness.feed(Stream::Out, b"Server "), None);
        assert_eq!(readiness.feed(Stream::Err, b"Done\n"), None);
        assert_eq!(readiness.feed_idle(), None);
        let mut readiness = waiting_for("> $");
        assert_eq!(readiness.feed(Stream::Out, b"hello"), None);
        assert_eq!(readiness.feed(Stream::Err, b"> "), None);
        assert_eq!(readiness.feed_idle(), Some(Shown::Ready));
    }

    #[test]
    fn patterns_that_are_too_large_together_are_refused() {
        let large = vec![r"\pL{400}\d"; 32];
        let refused = Patterns::compile(large.iter().copied(), std::iter::empty());
        assert!(refused.is_err_and(|why| why.contains("too much together")));
    }

    proptest! {
        #[test]
        fn the_chunks_make_no_difference(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("Done".to_owned()), Just("\r\n".to_owned()), Just("\n".to_owned()),
                    Just("\r".to_owned()), Just("\u{1b}[31m".to_owned()),
                    Just("\u{1b}]0;Done\u{7}".to_owned()), Just("\u{1b}".to_owned()), "[Done ]{0,3}",
                ],
                0..24,
            ),
            cuts in proptest::collection::vec(1usize..6, 1..40),
        ) {
            let output = pieces.concat().into_bytes();
            let mut readiness = waiting_for("^ ?Done$");
            let mut rest = output.as_slice();
            let mut matched = 0;
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                matched += usize::from(readiness.feed(Stream::Out, chunk).is_some());
                rest = after;
            }
            matched += usize::from(readiness.feed_idle().is_some());
            prop_assert_eq!(matched, usize::from(ready("^ ?Done$", &output)));
        }
    }
}
