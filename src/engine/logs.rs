//! The engine's own log of a container, for what passed while nobody was attached.
//!
//! The log is slower than an attach and keeps whole lines in entries of at most 16 KiB, each with its
//! time. An entry is handed on as it stands: one that does not end in a line feed is continued by the
//! next one of the same stream.

use bytes::{Buf, Bytes, BytesMut};
use hyper::Method;

use super::error::{EngineError, Fault};
use super::frames::{HEADER_BYTES, Header, Source};
use super::raw::{RawRequest, StreamedBody, broke, garbled};
use super::{Engine, container_target, op};
use crate::domain::stream::Stream;

/// A moment: Unix seconds and nanoseconds.
pub(crate) type LogMoment = (i64, u32);

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogLine {
    /// Unix time in nanoseconds.
    pub(crate) at_nanos: i64,
    pub(crate) stream: Stream,
    /// With its line feed, if it has one.
    pub(crate) bytes: Bytes,
}

impl LogLine {
    /// The most that it takes in a file of the engine's `json-file` driver: its own words around the text
    /// and its way to escape it.
    pub(crate) fn stored_bytes(&self) -> u64 {
        const AROUND_BYTES: u64 = 96;
        let escaped = |byte: &u8| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
            0..0x20 | b'<' | b'>' | b'&' => 6,
            _ => 1,
        };
        AROUND_BYTES + self.bytes.iter().map(escaped).sum::<u64>()
    }
}

impl Engine {
    /// What the log has until now, from a moment on, itself included. `tty` must be what the container was
    /// made with; the engine's answer does not tell.
    pub(crate) async fn logs(
        &self,
        id: &str,
        tty: bool,
        since: Option<LogMoment>,
    ) -> Result<LogStream, EngineError> {
        let target = container_target(op::LOGS, id)?;
        let body = self
            .streamed(RawRequest {
                op: op::LOGS,
                target: target.clone(),
                method: Method::GET,
                path: path(id, since),
                body: Bytes::new(),
            })
            .await?;
        Ok(LogStream { target, body, parser: Parser::new(tty) })
    }
}

fn path(id: &str, since: Option<LogMoment>) -> String {
    let path = format!("/containers/{id}/logs?stdout=1&stderr=1&timestamps=1");
    match since {
        Some((seconds, nanos)) => format!("{path}&since={seconds}.{nanos:09}"),
        None => path,
    }
}

/// A container's log, entry by entry.
#[derive(Debug)]
pub(crate) struct LogStream {
    target: String,
    body: StreamedBody,
    parser: Parser,
}

impl LogStream {
    /// The next entry; `Ok(None)` at the end of the log. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Option<LogLine>, EngineError> {
        loop {
            let line = self.parser.next();
            if let Some(line) = line.map_err(|why| garbled(op::LOGS, &self.target, why))? {
                return Ok(Some(line));
            }
            let deadline = op::LOGS.deadline;
            let piece = tokio::time::timeout(deadline, self.body.next()).await;
            let piece = piece.unwrap_or(Err(Fault::Late(deadline)));
            match piece.map_err(|fault| broke(op::LOGS, &self.target, fault))? {
                Some(piece) => self.parser.feed(&piece),
                None => {
                    let last = self.parser.finish();
                    return last.map_err(|why| garbled(op::LOGS, &self.target, why));
                }
            }
        }
    }
}

/// `2026-01-01T00:00:00.000000000Z `, always of this length.
const STAMP_BYTES: usize = 31;
/// Where the engine cuts long lines.
const ENTRY_BYTES: usize = 16 * 1024;
/// No entry is longer; a frame that says so is none.
const ENTRY_MAX_BYTES: usize = 1 << 20;

#[derive(Debug)]
struct Parser {
    tty: bool,
    buffer: BytesMut,
    /// The time of the terminal's line whose further pieces are being read.
    within: Option<i64>,
}

impl Parser {
    fn new(tty: bool) -> Self {
        Self { tty, buffer: BytesMut::new(), within: None }
    }

    fn feed(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    fn next(&mut self) -> Result<Option<LogLine>, String> {
        if self.tty { self.next_of_terminal() } else { self.next_frame() }
    }

    /// What is left when the log has ended.
    fn finish(&mut self) -> Result<Option<LogLine>, String> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        if !self.tty {
            return Err("the log ended within an entry".to_owned());
        }
        let end = self.buffer.len();
        self.take_terminal_piece(end).map(Some)
    }

    fn next_frame(&mut self) -> Result<Option<LogLine>, String> {
        let mut ahead = match self.buffer.first_chunk::<HEADER_BYTES>() {
            Some(header) => BytesMut::from(&header[..]),
            None => return Ok(None),
        };
        let Some(header) = Header::take(&mut ahead)? else { return Ok(None) };
        if header.length > ENTRY_MAX_BYTES {
            return Err(format!("an entry of {} bytes", header.length));
        }
        if self.buffer.len() < HEADER_BYTES + header.length {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let mut entry = self.buffer.split_to(header.length);
        match header.source {
            Source::Engine => Err(String::from_utf8_lossy(&entry).into_owned()),
            Source::Output(stream) => {
                let at_nanos = take_stamp(&mut entry)?;
                Ok(Some(LogLine { at_nanos, stream, bytes: entry.freeze() }))
            }
        }
    }

    /// A terminal's log has no frames: entries end at a line feed, or where the engine cuts them. There
    /// the next one begins with its own stamp in the midst of the line.
    fn next_of_terminal(&mut self) -> Result<Option<LogLine>, String> {
        let stamp = if self.within.is_some() { 0 } else { STAMP_BYTES };
        let longest = stamp + ENTRY_BYTES;
        let window = &self.buffer[..self.buffer.len().min(longest)];
        let line_feed = window.iter().skip(stamp).position(|&b| b == b'\n');
        match line_feed {
            Some(at) => self.take_terminal_piece(stamp + at + 1).map(Some),
            // Whether a cut follows is seen only with the stamp behind it.
            None if self.buffer.len() >= longest + STAMP_BYTES => {
                self.take_terminal_piece(longest).map(Some)
            }
            None => Ok(None),
        }
    }

    fn take_terminal_piece(&mut self, end: usize) -> Result<LogLine, String> {
        let mut piece = self.buffer.split_to(end);
        let at_nanos = match self.within.take() {
            Some(at_nanos) => at_nanos,
            None => take_stamp(&mut piece)?,
        };
        let line_goes_on = piece.last() != Some(&b'\n');
        if line_goes_on && parse_stamp(&self.buffer).is_none() {
            self.within = Some(at_nanos);
        }
        Ok(LogLine { at_nanos, stream: Stream::Out, bytes: piece.freeze() })
    }
}

fn take_stamp(entry: &mut BytesMut) -> Result<i64, String> {
    let at_nanos = parse_stamp(entry).ok_or("an entry without its time")?;
    entry.advance(STAMP_BYTES);
    Ok(at_nanos)
}

fn parse_stamp(bytes: &[u8]) -> Option<i64> {
    let (stamp, space) = bytes.get(..STAMP_BYTES)?.split_at(STAMP_BYTES - 1);
    if space != b" " || !stamp.ends_with(b"Z") {
        return None;
    }
    let at: jiff::Timestamp = std::str::from_utf8(stamp).ok()?.parse().ok()?;
    i64::try_from(at.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: &str = "2026-01-01T00:00:00.000000005Z ";
    const AT: i64 = 1_767_225_600_000_000_005;

    fn frame(stream: u8, payload: &str) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a short payload");
        [&[stream, 0, 0, 0][..], &length.to_be_bytes(), payload.as_bytes()].concat()
    }

    /// Feeds the bytes in pieces of every small size, which must all give the same.
    fn parse(tty: bool, wire: &[u8]) -> Result<Vec<LogLine>, String> {
        let cut_at = |size: usize| {
            let mut parser = Parser::new(tty);
            let mut lines = Vec::new();
            for piece in wire.chunks(size) {
                parser.feed(piece);
                while let Some(line) = parser.next()? {
                    lines.push(line);
                }
            }
            lines.extend(parser.finish()?);
            Ok(lines)
        };
        let whole = cut_at(wire.len().max(1));
        for size in [1, 7, 30, 31, 1000] {
            assert_eq!(cut_at(size), whole, "in pieces of {size}");
        }
        whole
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|line| std::str::from_utf8(&line.bytes).expect("text")).collect()
    }

    #[test]
    fn entries_of_two_streams_are_told_apart() {
        let wire =
            [frame(1, &format!("{STAMP}out\n")), frame(2, &format!("{STAMP}err, no end"))].concat();
        let lines = parse(false, &wire).expect("entries");
        assert_eq!(texts(&lines), ["out\n", "err, no end"]);
        assert_eq!((lines[0].stream, lines[1].stream), (Stream::Out, Stream::Err));
        assert_eq!(lines[0].at_nanos, AT);
    }

    #[test]
    fn a_terminals_lines_keep_their_ends_and_a_last_one_may_have_none() {
        let wire = format!("{STAMP}a\r\n{STAMP}\n{STAMP}prompt> ");
        let lines = parse(true, wire.as_bytes()).expect("entries");
        assert_eq!(texts(&lines), ["a\r\n", "\n", "prompt> "]);
    }

    #[test]
    fn the_stamp_within_a_long_terminal_line_is_taken_out() {
        let (first, second) = ("x".repeat(ENTRY_BYTES), "y".repeat(40));
        let wire = format!("{STAMP}{first}{STAMP}{second}\n{STAMP}z\n");
        let lines = parse(true, wire.as_bytes()).expect("entries");
        assert_eq!(texts(&lines), [first.as_str(), &format!("{second}\n"), "z\n"]);
    }

    #[test]
    fn a_line_that_the_engine_did_not_cut_is_handed_on_in_pieces_of_bounded_length() {
        let long = "x".repeat(2 * ENTRY_BYTES + 40);
        let lines = parse(true, format!("{STAMP}{long}\n").as_bytes()).expect("entries");
        assert_eq!(texts(&lines).concat(), format!("{long}\n"));
        assert!(lines.iter().all(|line| line.bytes.len() <= ENTRY_BYTES && line.at_nanos == AT));
    }

    #[test]
    fn an_entry_without_a_time_is_an_error() {
        assert!(parse(false, &frame(1, "no time\n")).is_err());
        assert!(parse(true, b"some text that has no time in front\n").is_err());
    }
}
