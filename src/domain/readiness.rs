//! When a server is ready: the first time a pattern matches a line of what it prints.
//!
//! The pump feeds every chunk as it comes and tells when the output has paused. Lines end at `\n`, `\r\n`
//! or `\r`; colours, titles and other escape sequences are taken out before matching, also where they are
//! cut over chunks. A line is matched when it ends, and as it stands when the output pauses (a prompt).
//! What has no line ends at all is matched piece by piece, with an overlap. Each byte is looked at a
//! bounded number of times. Without a pattern nothing here ever matches: such a server is ready when its
//! process is up, which the caller knows.

use regex::bytes::Regex;

/// A longer line is matched in pieces of this size.
const PIECE_BYTES: usize = 16 * 1024;
/// What two pieces share, so that a match at the cut is seen.
const OVERLAP_BYTES: usize = 1024;

#[derive(Debug)]
pub(crate) struct Readiness {
    /// `None` once it has matched.
    pattern: Option<Regex>,
    strip: Strip,
    line: Vec<u8>,
    /// How much of `line` has been matched already.
    looked_at: usize,
    after_return: bool,
}

impl Readiness {
    pub(crate) fn new(pattern: Option<Regex>) -> Self {
        Self { pattern, strip: Strip::Text, line: Vec::new(), looked_at: 0, after_return: false }
    }

    /// Takes the next output, cut anywhere. True once: when a line that ends in it matches.
    pub(crate) fn feed(&mut self, chunk: &[u8]) -> bool {
        if self.pattern.is_none() {
            return false;
        }
        let mut bytes = chunk.iter();
        let matched = bytes.any(|&byte| match self.strip.next(byte) {
            Some(b'\n') => self.end_line(false),
            Some(b'\r') => self.end_line(true),
            Some(byte) => self.add(byte),
            None => false,
        });
        if matched {
            self.finish();
        }
        matched
    }

    /// Says that the output has paused: true, once, if the line as it stands matches.
    pub(crate) fn feed_idle(&mut self) -> bool {
        let matched = self.line.len() > self.looked_at && self.matches();
        if matched {
            self.finish();
        }
        matched
    }

    fn add(&mut self, byte: u8) -> bool {
        self.after_return = false;
        self.line.push(byte);
        if self.line.len() < PIECE_BYTES {
            return false;
        }
        let matched = self.matches();
        self.line.drain(..PIECE_BYTES - OVERLAP_BYTES);
        self.looked_at = self.line.len();
        matched
    }

    fn end_line(&mut self, with_return: bool) -> bool {
        // The `\n` of `\r\n` ends no line of its own, nor does `\r\r\n` hold an empty one.
        let is_line = !(self.after_return && self.line.is_empty());
        self.after_return = with_return;
        let matched = is_line && self.matches();
        self.line.clear();
        self.looked_at = 0;
        matched
    }

    fn matches(&mut self) -> bool {
        self.looked_at = self.line.len();
        self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(&self.line))
    }

    fn finish(&mut self) {
        *self = Self::new(None);
    }
}

/// Takes escape sequences and control characters out of a stream of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strip {
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

    fn ready(pattern: &str, output: &[u8]) -> bool {
        let mut readiness = Readiness::new(Some(Regex::new(pattern).unwrap()));
        readiness.feed(output) || readiness.feed_idle()
    }

    #[test]
    fn a_line_matches_once() {
        let mut readiness = Readiness::new(Some(Regex::new(r"^Done \(\d+s\)!$").unwrap()));
        assert!(!readiness.feed(b"[x] Done\r\nDone (3"));
        assert!(readiness.feed(b"s)!\r\nmore\r\n"));
        assert!(!readiness.feed(b"Done (3s)!\r\n"));
        assert!(!readiness.feed_idle());
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
        let mut readiness = Readiness::new(Some(Regex::new("> $").unwrap()));
        assert!(!readiness.feed(b"hello\r\n> "));
        assert!(readiness.feed_idle());
        assert!(!readiness.feed_idle());
    }

    #[test]
    fn returns_end_lines_and_make_no_empty_ones() {
        assert!(ready("^100%$", b"10%\r50%\r100%\r\n"));
        assert!(!ready("^$", b"a\r\nb\r\r\nc\n"));
        assert!(ready("^$", b"a\n\nb\n"));
    }

    #[test]
    fn output_without_line_ends_is_matched_in_pieces() {
        let pattern = Regex::new("Done").unwrap();
        for at in [0, PIECE_BYTES - 2, PIECE_BYTES + 1, 5 * PIECE_BYTES - 3] {
            let output = [&vec![b'.'; at][..], b"Done", &vec![b'.'; 3 * PIECE_BYTES]].concat();
            let mut readiness = Readiness::new(Some(pattern.clone()));
            assert!(readiness.feed(&output), "{at}");
            assert!(readiness.line.capacity() <= 2 * PIECE_BYTES);
        }
    }

    #[test]
    fn without_a_pattern_nothing_matches() {
        let mut readiness = Readiness::new(None);
        assert!(!readiness.feed(b"anything\n"));
        assert!(!readiness.feed_idle());
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
            let mut readiness = Readiness::new(Some(Regex::new("^ ?Done$").unwrap()));
            let mut rest = output.as_slice();
            let mut matched = 0;
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                matched += usize::from(readiness.feed(chunk));
                rest = after;
            }
            matched += usize::from(readiness.feed_idle());
            prop_assert_eq!(matched, usize::from(ready("^ ?Done$", &output)));
        }
    }
}
