//! The records of a zip as they are written: what stands before an entry, behind it, in the directory and
//! at the end.
//!
//! Called by `zip_write`, which knows where they go. 64-bit fields come only where a number does not fit,
//! because old programs read no others.

use rustix::fs::{FileType, RawMode};

use super::blocks::Block;

/// From this size on an entry gets the 64-bit fields, which must be decided before its first byte.
const ZIP64_FROM_BYTES: u64 = 0xf000_0000;
const UNIX: u16 = 3 << 8;
const VERSION: u16 = 20;
const VERSION_ZIP64: u16 = 45;
const FLAG_SIZES_BEHIND: u16 = 1 << 3;
const FLAG_UTF8: u16 = 1 << 11;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;
/// The extra field that holds a modification time as Unix seconds ("UT").
const EXTENDED_TIMESTAMP: u16 = 0x5455;
const ZIP64: u16 = 0x0001;
const MS_DOS_FOLDER: u32 = 0x10;
const FULL: u32 = u32::MAX;

/// An entry as it is announced to the frame.
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    /// Kind and permissions, as in a `stat`.
    pub(super) mode: RawMode,
    pub(super) modified_at_seconds: i64,
    pub(super) size: u64,
    /// The content of what is no file.
    pub(super) plain: Option<Vec<u8>>,
}

/// What is known of an entry's content once it is all written.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) crc: crc32fast::Hasher,
    pub(super) packed_bytes: u64,
    pub(super) content_bytes: u64,
    pub(super) method: u16,
    pub(super) is_behind: bool,
}

impl Facts {
    pub(super) fn add(&mut self, block: &Block) {
        self.crc.combine(&block.crc);
        self.packed_bytes += block.bytes.len() as u64;
        self.content_bytes += block.content_bytes;
        self.method = if block.is_plain { STORED } else { DEFLATED };
    }

    fn crc(&self) -> u32 {
        self.crc.clone().finalize()
    }
}

/// Fields in the format's byte order.
#[derive(Default)]
struct Record(Vec<u8>);

impl Record {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A length, which is known to fit.
    fn length(self, bytes: &[u8]) -> Self {
        let length = u16::try_from(bytes.len());
        self.u16(length.expect("invariant: names are measured, extra fields are short"))
    }
}

/// The value, or the mark that it stands in the 64-bit field.
fn or_full(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(FULL)
}

fn flags(entry: &Entry, facts: &Facts) -> u16 {
    let is_utf8 = !entry.name.is_ascii() && std::str::from_utf8(&entry.name).is_ok();
    let utf8 = if is_utf8 { FLAG_UTF8 } else { 0 };
    let behind = if facts.is_behind { FLAG_SIZES_BEHIND } else { 0 };
    utf8 | behind
}

/// Whether sizes that are only written behind the content need 64 bits.
fn is_long(entry: &Entry, facts: &Facts) -> bool {
    facts.is_behind && entry.size >= ZIP64_FROM_BYTES
}

pub(super) fn local_header(entry: &Entry, facts: &Facts) -> Vec<u8> {
    let is_long = is_long(entry, facts);
    let mut extra = timestamp(entry);
    if is_long {
        extra = Record(extra).u16(ZIP64).u16(16).u64(0).u64(0).0;
    }
    let (crc, packed, content) = match (facts.is_behind, is_long) {
        (false, _) => (facts.crc(), or_full(facts.packed_bytes), or_full(facts.content_bytes)),
        (true, false) => (0, 0, 0),
        (true, true) => (0, FULL, FULL),
    };
    let (time, date) = dos_time(entry.modified_at_seconds);
    Record::default()
        .bytes(b"PK\x03\x04")
        .u16(if is_long { VERSION_ZIP64 } else { VERSION })
        .u16(flags(entry, facts))
        .u16(facts.method)
        .u16(time)
        .u16(date)
        .u32(crc)
        .u32(packed)
        .u32(content)
        .length(&entry.name)
        .length(&extra)
        .bytes(&entry.name)
        .bytes(&extra)
        .0
}

pub(super) fn descriptor(entry: &Entry, facts: &Facts) -> Vec<u8> {
    let record = Record::default().bytes(b"PK\x07\x08").u32(facts.crc());
    if is_long(entry, facts) {
        return record.u64(facts.packed_bytes).u64(facts.content_bytes).0;
    }
    record.u32(or_full(facts.packed_bytes)).u32(or_full(facts.content_bytes)).0
}

pub(super) fn directory_record(entry: &Entry, offset: u64, facts: &Facts) -> Vec<u8> {
    let mut long = Record::default();
    for value in [facts.content_bytes, facts.packed_bytes, offset] {
        if value >= u64::from(FULL) {
            long = long.u64(value);
        }
    }
    let is_long = !long.0.is_empty() || is_long(entry, facts);
    let mut extra = timestamp(entry);
    if !long.0.is_empty() {
        extra = Record(extra).u16(ZIP64).length(&long.0).bytes(&long.0).0;
    }
    let version = if is_long { VERSION_ZIP64 } else { VERSION };
    let (time, date) = dos_time(entry.modified_at_seconds);
    let is_folder = FileType::from_raw_mode(entry.mode) == FileType::Directory;
    Record::default()
        .bytes(b"PK\x01\x02")
        .u16(UNIX | version)
        .u16(version)
        .u16(flags(entry, facts))
        .u16(facts.method)
        .u16(time)
        .u16(date)
        .u32(facts.crc())
        .u32(or_full(facts.packed_bytes))
        .u32(or_full(facts.content_bytes))
        .length(&entry.name)
        .length(&extra)
        // No comment, the first disk, no internal attributes.
        .u16(0)
        .u16(0)
        .u16(0)
        .u32(entry.mode << 16 | if is_folder { MS_DOS_FOLDER } else { 0 })
        .u32(or_full(offset))
        .bytes(&entry.name)
        .bytes(&extra)
        .0
}

pub(super) fn end_records(entries: u64, directory_at: u64, directory_bytes: u64) -> Vec<u8> {
    let mut record = Record::default();
    let few = u16::try_from(entries).ok().filter(|entries| *entries < u16::MAX);
    let fits = |value: u64| value < u64::from(FULL);
    if few.is_none() || !fits(directory_at) || !fits(directory_bytes) {
        record = record
            .bytes(b"PK\x06\x06")
            .u64(44)
            .u16(UNIX | VERSION_ZIP64)
            .u16(VERSION_ZIP64)
            .u32(0)
            .u32(0)
            .u64(entries)
            .u64(entries)
            .u64(directory_bytes)
            .u64(directory_at)
            .bytes(b"PK\x06\x07")
            .u32(0)
            .u64(directory_at + directory_bytes)
            .u32(1);
    }
    record
        .bytes(b"PK\x05\x06")
        .u16(0)
        .u16(0)
        .u16(few.unwrap_or(u16::MAX))
        .u16(few.unwrap_or(u16::MAX))
        .u32(or_full(directory_bytes))
        .u32(or_full(directory_at))
        .u16(0)
        .0
}

/// The DOS time has no zone, ends in 2107 and counts in steps of two seconds; this has none of it.
fn timestamp(entry: &Entry) -> Vec<u8> {
    let Ok(seconds) = i32::try_from(entry.modified_at_seconds) else { return Vec::new() };
    let record = Record::default().u16(EXTENDED_TIMESTAMP).u16(5).bytes(&[1]);
    record.bytes(&seconds.to_le_bytes()).0
}

/// Time and date as DOS had them, in UTC. What it could not express is its first day.
fn dos_time(seconds: i64) -> (u16, u16) {
    let civil = |seconds| {
        let time = jiff::Timestamp::from_second(seconds).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
        let year = u16::try_from(time.year()).ok()?.checked_sub(1980).filter(|year| *year < 128)?;
        let part = |value: i8| u16::try_from(value).ok();
        Some((
            part(time.hour())? << 11 | part(time.minute())? << 5 | (part(time.second())? / 2),
            year << 9 | part(time.month())? << 5 | part(time.day())?,
        ))
    };
    civil(seconds).unwrap_or((0, 1 << 5 | 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_dos() {
        assert_eq!(dos_time(1_600_000_001), (12 << 11 | 26 << 5 | 20, 40 << 9 | 9 << 5 | 13));
        for never in [0, -1, i64::MAX, 4_354_819_200] {
            assert_eq!(dos_time(never), (0, 33), "{never}");
        }
    }

    #[test]
    fn the_64_bit_records_come_only_where_they_are_needed() {
        assert_eq!(end_records(65_534, 1, 1).len(), 22);
        for (entries, at, bytes) in [(65_535, 1, 1), (1, 1 << 32, 1), (1, 1, 0xffff_ffff)] {
            assert_eq!(end_records(entries, at, bytes).len(), 22 + 56 + 20);
        }
    }
}
