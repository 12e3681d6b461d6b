//! A zip file, entry by entry, in the order of its directory.
//!
//! The directory at a zip's end is read into memory, so what is read for it is capped. Sizes in it are
//! claims: only the extractor's own count is believed, and each entry's checksum is checked by reading
//! it to its end.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::rc::Rc;

use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{ExtraField, System, ZipArchive};

use super::extract::Extractor;
use super::{Head, HeadKind, read_up_to, reading};
use crate::files::error::FileError;
use crate::files::progress::Tracked;

const MAX_DIRECTORY_BYTES: u64 = 32 << 20;
const MAX_LINK_BYTES: u64 = 4096;
/// The record that ends a zip, without its comment.
const END_RECORD_BYTES: usize = 22;
const MAX_COMMENT_BYTES: usize = 0xffff;
const KIND_BITS: u32 = 0o170_000;

/// Reads a whole zip file into the extractor.
pub(super) fn read_zip(
    mut file: Tracked<File>,
    extractor: &mut Extractor<'_>,
) -> Result<(), FileError> {
    check_end(&mut file).map_err(reading)?;
    let left = Rc::new(Cell::new(MAX_DIRECTORY_BYTES));
    let capped = Capped { inner: file, left: Rc::clone(&left) };
    let mut archive = ZipArchive::new(BufReader::new(capped)).map_err(from_zip)?;
    left.set(u64::MAX);
    if archive.has_duplicate_names() {
        return Err(FileError::corrupt("a name stands in it twice"));
    }
    if archive.len() as u64 > extractor.limits().max_entries {
        return Err(FileError::ArchiveLimit { what: "the number of entries" });
    }
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(from_zip)?;
        let head = head_of(&mut entry)?;
        extractor.add(&head, &mut entry)?;
        // The checksum is compared at the end of the data, so it is read to its end, also of folders.
        extractor.drain(&mut entry)?;
    }
    Ok(())
}

/// The end record must be there and be the end: a zip that was cut off or that something was added to
/// is not what was packed.
fn check_end(file: &mut (impl Read + Seek)) -> io::Result<()> {
    let length = file.seek(SeekFrom::End(0))?;
    let tail_length = length.min((END_RECORD_BYTES + MAX_COMMENT_BYTES) as u64);
    file.seek(SeekFrom::Start(length - tail_length))?;
    let mut tail = vec![0; usize::try_from(tail_length).unwrap_or(0)];
    let filled = read_up_to(file, &mut tail)?;
    tail.truncate(filled);
    file.seek(SeekFrom::Start(0))?;
    let ends_here = |at: usize| {
        let record = &tail[at..];
        record.starts_with(b"PK\x05\x06")
            && END_RECORD_BYTES + usize::from(u16::from_le_bytes([record[20], record[21]]))
                == record.len()
    };
    let starts = 0..(tail.len() + 1).saturating_sub(END_RECORD_BYTES);
    if starts.rev().any(ends_here) {
        return Ok(());
    }
    Err(FileError::corrupt("it was cut off, or something follows its end").into_io())
}

fn head_of<R: Read>(entry: &mut ZipFile<'_, R>) -> Result<Head, FileError> {
    let mut name = entry.name().map_err(from_zip)?.into_owned().into_bytes();
    if entry.system() == System::Dos && !name.contains(&b'/') {
        // Windows tools write backslashes, against the format's rules.
        for byte in name.iter_mut().filter(|byte| **byte == b'\\') {
            *byte = b'/';
        }
    }
    let bits = entry.unix_mode();
    let kind = match bits.unwrap_or(0) & KIND_BITS {
        _ if entry.is_dir() || name.ends_with(b"/") => HeadKind::Folder,
        0o120_000 => HeadKind::Symlink(link_target(entry)?),
        0 | 0o100_000 => HeadKind::File,
        _ => HeadKind::Other,
    };
    let is_folder = matches!(kind, HeadKind::Folder);
    let default = if is_folder { 0o755 } else { 0o644 };
    let mode = bits.filter(|bits| bits & 0o777 != 0 || bits & KIND_BITS != 0).unwrap_or(default);
    Ok(Head { name, kind, mode, modified_at_seconds: modified_at(entry) })
}

fn link_target(entry: &mut impl Read) -> Result<Vec<u8>, FileError> {
    let mut target = Vec::new();
    entry.take(MAX_LINK_BYTES + 1).read_to_end(&mut target).map_err(reading)?;
    if target.len() as u64 > MAX_LINK_BYTES {
        return Err(FileError::ArchiveLimit { what: "the length of a link" });
    }
    Ok(target)
}

fn modified_at<R: Read>(entry: &ZipFile<'_, R>) -> Option<i64> {
    let exact = entry.extra_data_fields().find_map(|field| match field {
        ExtraField::ExtendedTimestamp(times) => times.mod_time(),
        _ => None,
    });
    if let Some(seconds) = exact {
        // The field is a signed number; the crate hands it out unsigned.
        return Some(i64::from(seconds.cast_signed()));
    }
    let time = entry.last_modified()?;
    let civil = jiff::civil::DateTime::new(
        i16::try_from(time.year()).ok()?,
        i8::try_from(time.month()).ok()?,
        i8::try_from(time.day()).ok()?,
        i8::try_from(time.hour()).ok()?,
        i8::try_from(time.minute()).ok()?,
        i8::try_from(time.second()).ok()?,
        0,
    );
    Some(civil.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

fn from_zip(error: ZipError) -> FileError {
    match error {
        ZipError::Io(error) => reading(error),
        ZipError::UnsupportedArchive(reason) => {
            FileError::UnsupportedArchive { reason: reason.to_owned() }
        }
        ZipError::CompressionMethodNotSupported(_) => {
            FileError::UnsupportedArchive { reason: "its compression is not known".to_owned() }
        }
        other => FileError::corrupt(other.to_string()),
    }
}

/// A file of which only so much may be read, until the cap is lifted.
struct Capped {
    inner: Tracked<File>,
    left: Rc<Cell<u64>>,
}

impl Read for Capped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let left = self.left.get().checked_sub(count as u64).ok_or_else(|| {
            FileError::ArchiveLimit { what: "the size of its directory" }.into_io()
        })?;
        self.left.set(left);
        Ok(count)
    }
}

impl Seek for Capped {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
