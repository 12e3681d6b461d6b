//! A tar stream, entry by entry, with every length bounded.
//!
//! The `tar` crate's own iterator reads extension headers into memory however long they claim to be
//! and takes an archive that stops between two entries for a whole one. This one knows its header
//! format and nothing else from it: a stream ends with a zero block, what follows is zeros, and
//! anything else is an error.

use std::io::{self, Read};
use std::ops::ControlFlow;

use tar::{EntryType, Header};

use super::{Head, HeadKind, read_up_to, reading};
use crate::files::error::FileError;

const BLOCK: usize = 512;
/// The longest extension header taken: a path and a link target of the longest kind, twice over.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;
/// Zeros after the end, as block devices and blocking factors leave them.
const MAX_PADDING_BYTES: u64 = 16 << 20;

/// Where a tar is read from.
pub(super) trait Source: Read {
    /// Passes over what nobody wants. An end before that is an error, now or at the next read.
    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        let mut buffer = [0; 8 * 1024];
        while bytes > 0 {
            let want = usize::try_from(bytes).map_or(buffer.len(), |left| left.min(buffer.len()));
            match self.read(&mut buffer[..want])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => bytes -= count as u64,
            }
        }
        Ok(())
    }
}

/// Is told of each entry and may read its content; says whether to go on.
pub(super) type Each<'e> =
    dyn FnMut(&Head, &mut dyn Read) -> Result<ControlFlow<()>, FileError> + 'e;

/// Whether these first bytes are a tar header, or the end of an empty archive.
pub(super) fn begins_like_tar(start: &[u8]) -> bool {
    let Some(block) = start.get(..BLOCK) else { return false };
    block.iter().all(|byte| *byte == 0) || has_sound_checksum(Header::from_byte_slice(block))
}

fn has_sound_checksum(header: &Header) -> bool {
    let field = 148..156;
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(at, byte)| if field.contains(&at) { u32::from(b' ') } else { u32::from(*byte) })
        .sum();
    header.cksum().is_ok_and(|stated| stated == sum)
}

/// What extension headers say of the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified_at_seconds: Option<i64>,
}

/// Reads a tar stream, to its end unless it is told to stop.
pub(super) fn read_tar(stream: &mut dyn Source, each: &mut Each<'_>) -> Result<(), FileError> {
    let mut extensions = Extensions::default();
    let mut block = [0; BLOCK];
    loop {
        if read_up_to(&mut *stream, &mut block).map_err(reading)? < BLOCK {
            return Err(FileError::corrupt("it ends too early"));
        }
        if block.iter().all(|byte| *byte == 0) {
            return read_padding(stream);
        }
        let header = Header::from_byte_slice(&block);
        if !has_sound_checksum(header) && !cfg!(fuzzing) {
            return Err(FileError::corrupt("a header's checksum does not match"));
        }
        let size = match extensions.size {
            Some(size) => size,
            None => header.entry_size().map_err(reading)?,
        };
        let mut data = Data { stream: &mut *stream, left: size };
        if !extensions.take(header, &mut data, size)? {
            let head = head_of(header, size, std::mem::take(&mut extensions))?;
            if each(&head, &mut data)?.is_break() {
                return Ok(());
            }
        }
        let rest = data.left.checked_add(padding_after(size));
        let rest = rest.ok_or_else(|| FileError::corrupt("it ends too early"))?;
        stream.skip(rest).map_err(reading)?;
    }
}

fn padding_after(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// After the end only zeros may follow. Reading on is what makes a decompressor check its sums.
fn read_padding(stream: &mut dyn Source) -> Result<(), FileError> {
    let mut buffer = vec![0; 16 * 1024];
    let mut total = 0_u64;
    loop {
        let count = read_up_to(&mut *stream, &mut buffer).map_err(reading)?;
        if count == 0 && total.is_multiple_of(BLOCK as u64) {
            return Ok(());
        } else if count == 0 {
            return Err(FileError::corrupt("it ends too early"));
        }
        if buffer[..count].iter().any(|byte| *byte != 0) {
            return Err(FileError::corrupt("something follows its end"));
        }
        total += count as u64;
        if total > MAX_PADDING_BYTES {
            return Err(FileError::ArchiveLimit { what: "padding" });
        }
    }
}

impl Extensions {
    /// Takes the header in if it is one that describes the next entry.
    fn take(&mut self, header: &Header, data: &mut dyn Read, size: u64) -> Result<bool, FileError> {
        let kind = header.entry_type();
        let is_extension = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if !is_extension {
            return Ok(false);
        }
        if size > MAX_EXTENSION_BYTES {
            return Err(FileError::ArchiveLimit { what: "the length of a header" });
        }
        let mut content = Vec::new();
        data.read_to_end(&mut content).map_err(reading)?;
        if kind.is_gnu_longname() {
            self.path = Some(until_nul(content));
        } else if kind.is_gnu_longlink() {
            self.link = Some(until_nul(content));
        } else if kind.is_pax_local_extensions() {
            self.take_records(&content)?;
        }
        Ok(true)
    }

    /// Records of the form `length key=value\n`, where the length counts the whole record.
    fn take_records(&mut self, mut records: &[u8]) -> Result<(), FileError> {
        let malformed = || FileError::corrupt("an extended header is malformed");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
            let length: usize = std::str::from_utf8(&records[..space])
                .ok()
                .and_then(|length| length.parse().ok())
                .ok_or_else(malformed)?;
            let record = records.get(space + 1..length).ok_or_else(malformed)?;
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
            self.take_record(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    fn take_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), FileError> {
        let malformed = || FileError::corrupt("an extended header is malformed");
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|size| size.parse().ok());
                self.size = Some(size.ok_or_else(malformed)?);
            }
            b"mtime" => {
                let whole = value.split(|byte| *byte == b'.').next().unwrap_or(value);
                let seconds = std::str::from_utf8(whole).ok().and_then(|text| text.parse().ok());
                self.modified_at_seconds = Some(seconds.ok_or_else(malformed)?);
            }
            key if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
            _ => {}
        }
        Ok(())
    }
}

fn sparse() -> FileError {
    FileError::UnsupportedArchive { reason: "it holds sparse files".to_owned() }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn head_of(header: &Header, size: u64, extensions: Extensions) -> Result<Head, FileError> {
    let name = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let link = extensions
        .link
        .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
        .unwrap_or_default();
    let kind = match header.entry_type() {
        EntryType::Directory => HeadKind::Folder,
        // Before POSIX a folder was a file whose name ends with a slash.
        EntryType::Regular if name.ends_with(b"/") => HeadKind::Folder,
        EntryType::Regular | EntryType::Continuous => HeadKind::File,
        EntryType::Symlink => HeadKind::Symlink(link),
        EntryType::Link => HeadKind::HardLink(link),
        EntryType::GNUSparse => return Err(sparse()),
        _ => HeadKind::Other,
    };
    let is_folder = matches!(kind, HeadKind::Folder);
    let mode = header.mode().unwrap_or(if is_folder { 0o755 } else { 0o644 });
    let in_header = header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
    let modified_at_seconds = extensions.modified_at_seconds.or(in_header);
    Ok(Head { name, kind, size, mode, modified_at_seconds })
}

/// One entry's data. That the stream ends before it is an error, not an end.
struct Data<'a> {
    stream: &'a mut dyn Source,
    left: u64,
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(buffer.len()).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let count = self.stream.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}
