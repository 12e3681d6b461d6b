//! How a piece of the console lies in a journal file.
//!
//! ```text
//! magic u16 | stream u8 | flags u8 | length u32 | line u64 | offset u32 | lines u32 | time i64
//! run u32 | newlines out u32 | newlines err u32 | check u32 | text | whole length u32
//! ```
//! All numbers are little-endian. The check covers the header, so that what a crash left behind is told
//! from a record; the text is not summed, because damage to it damages nothing else. The length at the
//! end lets the last record be found without reading the file.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::block::Position;
use crate::domain::ids::RunId;
use crate::domain::stream::Stream;

pub(super) const HEADER_BYTES: usize = 48;
const FOOTER_BYTES: usize = 4;
/// What a record adds to its text.
const OVERHEAD_BYTES: u32 = 52;
const MAGIC: u16 = 0x4c43;
const CLOSED: u8 = 1;
const NOTE: u8 = 2;
/// An emptied buffer of records keeps no more than this.
const KEPT_BYTES: usize = 512 * 1024;
/// Encoded lines that wait for the disk: of one console, and of all.
const PENDING_BYTES: usize = 16 * 1024 * 1024;
const PENDING_IN_ALL_BYTES: usize = 128 * 1024 * 1024;

/// The description of a piece of text: whole lines, or (`lines` = 0) a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) start: Position,
    /// How many lines end in here, each with `\n`.
    pub(super) lines: u32,
    /// The line ends with this piece although no `\n` does: it was too long, or its run ended.
    pub(super) closed: bool,
    /// A line of lightd's own, which the run did not print.
    pub(super) note: bool,
    /// Bytes of text.
    pub(super) length: u32,
    pub(super) stream: Stream,
    pub(super) run: RunId,
    /// When it came, in milliseconds since 1970.
    pub(super) time_ms: i64,
    /// Line ends of the run so far on either stream, these included; `u32::MAX` is "lost count".
    pub(super) newlines: [u32; 2],
}

impl Record {
    pub(super) fn end(&self) -> Position {
        match (self.lines, self.closed) {
            (0, false) => {
                Position { offset: self.start.offset.saturating_add(self.length), ..self.start }
            }
            (0, true) => Position::line(self.start.line + 1),
            (lines, _) => Position::line(self.start.line + u64::from(lines)),
        }
    }

    /// Bytes in the file, text and all.
    pub(super) fn whole_length(&self) -> usize {
        self.text_length() + HEADER_BYTES + FOOTER_BYTES
    }

    pub(super) fn text_length(&self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX / 2)
    }

    pub(super) fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        header[2] = u8::from(self.stream == Stream::Err);
        header[3] = if self.closed { CLOSED } else { 0 } | if self.note { NOTE } else { 0 };
        header[4..8].copy_from_slice(&self.length.to_le_bytes());
        header[8..16].copy_from_slice(&self.start.line.to_le_bytes());
        header[16..20].copy_from_slice(&self.start.offset.to_le_bytes());
        header[20..24].copy_from_slice(&self.lines.to_le_bytes());
        header[24..32].copy_from_slice(&self.time_ms.to_le_bytes());
        let run = u32::try_from(self.run.0).unwrap_or(u32::MAX);
        header[32..36].copy_from_slice(&run.to_le_bytes());
        header[36..40].copy_from_slice(&self.newlines[0].to_le_bytes());
        header[40..44].copy_from_slice(&self.newlines[1].to_le_bytes());
        let check = check(&header[..44]);
        header[44..48].copy_from_slice(&check.to_le_bytes());
        header
    }

    pub(super) fn footer(&self) -> [u8; FOOTER_BYTES] {
        (self.length + OVERHEAD_BYTES).to_le_bytes()
    }

    /// Reads a header; `None` where the bytes are none.
    pub(super) fn parse(header: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = header.first_chunk()?;
        let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let magic = u16::from_le_bytes([header[0], header[1]]);
        if magic != MAGIC || u32_at(44) != check(&header[..44]) {
            return None;
        }
        Some(Self {
            start: Position { line: u64_at(8), offset: u32_at(16) },
            lines: u32_at(20),
            closed: header[3] & CLOSED != 0,
            note: header[3] & NOTE != 0,
            length: u32_at(4),
            stream: if header[2] == 0 { Stream::Out } else { Stream::Err },
            run: RunId(u64::from(u32_at(32))),
            time_ms: u64_at(24).cast_signed(),
            newlines: [u32_at(36), u32_at(40)],
        })
    }

    /// The whole length that a file's last four bytes claim for its last record.
    pub(super) fn parse_footer(footer: [u8; FOOTER_BYTES]) -> u64 {
        u64::from(u32::from_le_bytes(footer))
    }

    /// This record with `next` behind it, where that can be one record.
    fn joined(&self, next: &Self) -> Option<Self> {
        let kind = |record: &Self| (record.run, record.stream, record.note, record.time_ms);
        let alike = kind(self) == kind(next);
        let length = self.length.checked_add(next.length)?;
        let small = usize::try_from(length).is_ok_and(|length| length <= super::block::BLOCK_BYTES);
        (alike && small && self.lines > 0 && next.lines > 0 && self.end() == next.start).then_some(
            Self { lines: self.lines + next.lines, length, newlines: next.newlines, ..*self },
        )
    }
}

/// FNV-1a, 32 bits.
fn check(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, &b| (sum ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

/// Memory that consoles share.
#[derive(Debug)]
struct Room {
    used: AtomicUsize,
    most: usize,
}

static ROOM: Room = Room { used: AtomicUsize::new(0), most: PENDING_IN_ALL_BYTES };

/// Records on their way to the journal. While the disk hangs they become more; what has no room any more is
/// lost to the journal, and counted by whoever asks for room.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) bytes: Vec<u8>,
    last: Option<(usize, Record)>,
    room: &'static Room,
    /// How much of it is in `room`.
    counted: usize,
}

impl Pending {
    fn within(room: &'static Room) -> Self {
        Self { bytes: Vec::new(), last: None, room, counted: 0 }
    }

    /// Adds a record; what came in the same millisecond grows into one, which keeps a busy console's
    /// headers few.
    pub(super) fn push(&mut self, record: Record, text: [&[u8]; 2]) {
        let joined = self.last.and_then(|(at, last)| Some((at, last.joined(&record)?)));
        let (at, record) = match joined {
            Some((at, joined)) => {
                self.bytes.truncate(self.bytes.len() - FOOTER_BYTES);
                self.bytes[at..at + HEADER_BYTES].copy_from_slice(&joined.header());
                (at, joined)
            }
            None => {
                let at = self.bytes.len();
                self.bytes.extend_from_slice(&record.header());
                (at, record)
            }
        };
        text.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.bytes.extend_from_slice(&record.footer());
        self.last = Some((at, record));
        self.count();
    }

    /// Whether there is room for so many more bytes, here and on the node.
    pub(super) fn has_room(&self, more: usize) -> bool {
        let in_all = self.room.used.load(Ordering::Relaxed);
        self.bytes.len() + more <= PENDING_BYTES && in_all + more <= self.room.most
    }

    fn count(&mut self) {
        let before = std::mem::replace(&mut self.counted, self.bytes.len());
        self.room.used.fetch_add(self.counted, Ordering::Relaxed);
        self.room.used.fetch_sub(before, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Empties it and keeps what memory a busy console needs.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.last = None;
        self.count();
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self::within(&ROOM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: u64, lines: u32, length: u32) -> Record {
        Record {
            start: Position::line(line),
            lines,
            closed: false,
            note: false,
            length,
            stream: Stream::Err,
            run: RunId(7),
            time_ms: -5,
            newlines: [3, u32::MAX],
        }
    }

    #[test]
    fn headers_read_back_and_damage_is_seen() {
        let original = Record { closed: true, note: true, ..record(u64::MAX / 3, 0, 12) };
        let mut header = original.header();
        assert_eq!(Record::parse(&header), Some(original));
        assert_eq!(Record::parse(&header[..40]), None);
        for at in 0..HEADER_BYTES {
            header[at] ^= 0x10;
            assert_eq!(Record::parse(&header), None, "byte {at}");
            header[at] ^= 0x10;
        }
    }

    #[test]
    fn lines_of_one_millisecond_become_one_record() {
        let mut pending = Pending::default();
        pending.push(record(1, 1, 2), [b"a", b"\n"]);
        pending.push(record(2, 2, 4), [b"b\nc\n", b""]);
        let whole = Record::parse(&pending.bytes).unwrap();
        assert_eq!((whole.lines, whole.length, whole.end()), (3, 6, Position::line(4)));
        assert_eq!(&pending.bytes[HEADER_BYTES..][..6], b"a\nb\nc\n");
        assert_eq!(pending.bytes.len(), whole.whole_length());

        pending.push(Record { time_ms: -4, ..record(4, 1, 2) }, [b"d\n", b""]);
        let next = Record::parse(&pending.bytes[whole.whole_length()..]).unwrap();
        assert_eq!((next.start.line, next.lines), (4, 1));
    }

    #[test]
    fn what_waits_for_the_disk_is_bounded_for_each_console_and_for_all() {
        static ROOM: Room = Room { used: AtomicUsize::new(0), most: 1000 };
        let text = [&[b'x'; 299][..], b"\n"];
        let [mut one, mut other] = [(); 2].map(|()| Pending::within(&ROOM));
        one.push(record(1, 1, 300), text);
        other.push(record(1, 1, 300), text);
        let used = one.bytes.len() + other.bytes.len();
        assert_eq!(ROOM.used.load(Ordering::Relaxed), used);
        assert!(one.has_room(1000 - used) && !other.has_room(1001 - used));
        // On its way to the disk it is in memory still.
        let under_way = std::mem::replace(&mut one, Pending::within(&ROOM));
        assert!(!one.has_room(1001 - used));
        drop(under_way);
        assert!(one.has_room(1001 - used));
        other.clear();
        assert_eq!(ROOM.used.load(Ordering::Relaxed), 0);
        static WIDE: Room = Room { used: AtomicUsize::new(0), most: usize::MAX };
        assert!(!Pending::within(&WIDE).has_room(PENDING_BYTES + 1));
    }
}
