//! The directory of a zip, and the records at its end that lead to it, as they are read.
//!
//! Called by `zip_read`. Every record is read in its full length or is an error; what it says is handed on
//! as a claim, for the reader to hold against the file.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;

use super::zip_names::{decode_name, fields, modified_at, with_slashes};
use super::{Head, HeadKind, reading};
use crate::files::error::FileError;

/// The record that ends a zip, without its comment.
const END_RECORD_BYTES: usize = 22;
const MAX_COMMENT_BYTES: usize = 0xffff;
const LONG_END_RECORD_BYTES: usize = 56;
const LOCATOR_BYTES: usize = 20;
pub(super) const DIRECTORY_HEADER_BYTES: usize = 46;
const KIND_BITS: u32 = 0o170_000;
const ZIP64: u16 = 0x0001;
const FULL: u32 = u32::MAX;
const UTF8: u16 = 1 << 11;
const MS_DOS_FOLDER: u32 = 0x10;

/// An entry as the directory has it. A link's target stands in its content.
pub(super) struct Member {
    pub(super) head: Head,
    pub(super) is_link: bool,
    pub(super) header_at: u64,
    pub(super) packed_bytes: u64,
    pub(super) crc: u32,
    pub(super) method: u16,
    pub(super) flags: u16,
}

pub(super) fn cut_off() -> FileError {
    FileError::corrupt("it was cut off, or something follows its end")
}

/// Numbers at their places in a record.
pub(super) struct Fields<'r>(pub(super) &'r [u8]);

impl Fields<'_> {
    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        *bytes.expect("invariant: records are read in their full length")
    }
}

/// The end record must be there and be the end: a zip that was cut off or that something was added to
/// is not what was packed.
pub(super) fn find_end(
    file: &File,
    length: u64,
) -> Result<(u64, [u8; END_RECORD_BYTES]), FileError> {
    let tail_bytes = length.min((END_RECORD_BYTES + MAX_COMMENT_BYTES) as u64);
    let tail_at = length - tail_bytes;
    let mut tail = vec![0; usize::try_from(tail_bytes).unwrap_or(0)];
    file.read_exact_at(&mut tail, tail_at).map_err(reading)?;
    for at in (0..(tail.len() + 1).saturating_sub(END_RECORD_BYTES)).rev() {
        let Some(record) = tail[at..].first_chunk::<END_RECORD_BYTES>() else { continue };
        let comment = usize::from(Fields(record).u16(20));
        if record.starts_with(b"PK\x05\x06") && at + END_RECORD_BYTES + comment == tail.len() {
            return Ok((tail_at + at as u64, *record));
        }
    }
    Err(cut_off())
}

/// The end record with 64-bit fields, if there is one before the other.
pub(super) fn find_long_end(file: &File, end_at: u64) -> Result<Option<(u64, LongEnd)>, FileError> {
    let Some(locator_at) = end_at.checked_sub(LOCATOR_BYTES as u64) else { return Ok(None) };
    let mut locator = [0; LOCATOR_BYTES];
    file.read_exact_at(&mut locator, locator_at).map_err(reading)?;
    if !locator.starts_with(b"PK\x06\x07") {
        return Ok(None);
    }
    let stated = Fields(&locator).u64(8);
    let usual = locator_at.saturating_sub(LONG_END_RECORD_BYTES as u64);
    for at in [usual, stated] {
        let mut record = [0; LONG_END_RECORD_BYTES];
        let is_inside = at.checked_add(record.len() as u64).is_some_and(|end| end <= locator_at);
        if is_inside {
            file.read_exact_at(&mut record, at).map_err(reading)?;
            if record.starts_with(b"PK\x06\x06") {
                return Ok(Some((at, record)));
            }
        }
    }
    Err(cut_off())
}

pub(super) type LongEnd = [u8; LONG_END_RECORD_BYTES];

/// Reads one record of the directory, and says how long it was.
pub(super) fn read_member(directory: &mut impl Read) -> Result<(Member, u64), FileError> {
    let mut header = [0; DIRECTORY_HEADER_BYTES];
    directory.read_exact(&mut header).map_err(reading)?;
    if !header.starts_with(b"PK\x01\x02") {
        return Err(FileError::corrupt("its directory is damaged"));
    }
    let header = Fields(&header);
    let lengths = [header.u16(28), header.u16(30), header.u16(32)].map(usize::from);
    let mut rest = vec![0; lengths.iter().sum()];
    directory.read_exact(&mut rest).map_err(reading)?;
    let (name, extra) = rest.split_at(lengths[0]);
    let extra = &extra[..lengths[1]];
    let flags = header.u16(8);
    let mut sizes = [header.u32(24), header.u32(20), header.u32(42)].map(u64::from);
    widen(&mut sizes, extra);
    let [size, packed_bytes, header_at] = sizes;
    let (made_by, attributes) = (header.u16(4) >> 8, header.u32(38));
    let name = decode_name(name, flags & UTF8 != 0, extra);
    let name = with_slashes(name, made_by == 0);
    let (kind, is_link, mode) = kind_of(&name, made_by, attributes);
    let modified_at_seconds = modified_at(extra, header.u16(12), header.u16(14));
    let member = Member {
        head: Head { name, kind, size, mode, modified_at_seconds },
        is_link,
        header_at,
        packed_bytes,
        crc: header.u32(16),
        method: header.u16(10),
        flags,
    };
    Ok((member, (DIRECTORY_HEADER_BYTES + rest.len()) as u64))
}

/// Puts the 64-bit values in where the short fields say that they stand elsewhere.
fn widen(sizes: &mut [u64; 3], extra: &[u8]) {
    let Some((_, mut long)) = fields(extra).find(|(id, _)| *id == ZIP64) else { return };
    for size in sizes.iter_mut().filter(|size| **size == u64::from(FULL)) {
        let Some((value, rest)) = long.split_first_chunk() else { return };
        *size = u64::from_le_bytes(*value);
        long = rest;
    }
}

/// The kind, whether it is a link, and the permissions. Only Unix systems say more than files and
/// folders.
fn kind_of(name: &[u8], made_by: u16, attributes: u32) -> (HeadKind, bool, u32) {
    let bits = if matches!(made_by, 3 | 19) { attributes >> 16 } else { 0 };
    let is_folder = name.ends_with(b"/") || bits & KIND_BITS == 0o040_000;
    let is_folder = is_folder || (made_by == 0 && attributes & MS_DOS_FOLDER != 0);
    let (kind, is_link) = match bits & KIND_BITS {
        _ if is_folder => (HeadKind::Folder, false),
        0o120_000 => (HeadKind::File, true),
        0 | 0o100_000 => (HeadKind::File, false),
        _ => (HeadKind::Other, false),
    };
    let default = if is_folder { 0o755 } else { 0o644 };
    (kind, is_link, if bits == 0 { default } else { bits })
}
