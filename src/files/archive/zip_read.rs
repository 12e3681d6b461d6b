//! A zip file, entry by entry, in the order of the directory at its end.
//!
//! The directory is read as it goes, never as a whole, so a zip of a million entries takes no more
//! memory than one of ten. What it says of places and sizes is a claim: places must lie within the
//! file, sizes and checksums are compared with what comes out.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;

use zip::result::ZipError;

use super::zip_names::{decode_name, fields, modified_at, with_slashes};
use super::{Head, HeadKind, reading};
use crate::files::error::FileError;
use crate::files::progress::{Progress, Tracked};

const MAX_LINK_BYTES: u64 = 4096;
/// The record that ends a zip, without its comment.
const END_RECORD_BYTES: usize = 22;
const MAX_COMMENT_BYTES: usize = 0xffff;
const LONG_END_RECORD_BYTES: usize = 56;
const LOCATOR_BYTES: usize = 20;
const LOCAL_HEADER_BYTES: usize = 30;
const DIRECTORY_HEADER_BYTES: usize = 46;
const KIND_BITS: u32 = 0o170_000;
const ZIP64: u16 = 0x0001;
const FULL: u32 = u32::MAX;
/// By a password, strongly, or with the directory's own names hidden.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
const UTF8: u16 = 1 << 11;
const MS_DOS_FOLDER: u32 = 0x10;

/// The file, readable at many places at once.
#[derive(Debug)]
pub(super) struct Zip {
    file: File,
    progress: Progress,
    directory_at: u64,
    directory_bytes: u64,
    /// How many entries the end claims, of which an old end knows only the lower bits.
    entries: (u64, u64),
    /// What stands before the zip, and is not counted by its offsets.
    shift: u64,
}

/// An entry as the directory has it. A link's target stands in its content.
pub(super) struct Member {
    pub(super) head: Head,
    pub(super) is_link: bool,
    header_at: u64,
    packed_bytes: u64,
    crc: u32,
    method: u16,
    flags: u16,
}

pub(super) type Each<'e> = dyn FnMut(Member) -> Result<ControlFlow<()>, FileError> + 'e;

impl Zip {
    pub(super) fn open(file: Tracked<File>) -> Result<Self, FileError> {
        let Tracked { inner: file, progress } = file;
        let length = file.metadata().map_err(reading)?.len();
        let (end_at, end) = find_end(&file, length)?;
        let end = Fields(&end);
        if end.u16(4) != 0 && end.u16(4) != u16::MAX {
            return Err(unsupported("it is split into several files"));
        }
        let mut directory_end = end_at;
        let mut entries = (u64::from(end.u16(10)), u64::from(u16::MAX));
        let (mut bytes, mut offset) = (u64::from(end.u32(12)), u64::from(end.u32(16)));
        if let Some((long_at, long)) = find_long_end(&file, end_at)? {
            directory_end = long_at;
            let long = Fields(&long);
            entries = (long.u64(32), u64::MAX);
            (bytes, offset) = (long.u64(40), long.u64(48));
        }
        let mut zip = Self {
            file,
            progress,
            directory_at: directory_end.checked_sub(bytes).ok_or_else(cut_off)?,
            directory_bytes: bytes,
            entries,
            shift: 0,
        };
        if bytes > 0 && !zip.starts_at(zip.directory_at, b"PK\x01\x02") {
            // Something stands between the directory and its end.
            zip.directory_at = offset;
        }
        zip.shift = zip.directory_at.checked_sub(offset).ok_or_else(cut_off)?;
        Ok(zip)
    }

    fn starts_at(&self, at: u64, signature: &[u8; 4]) -> bool {
        let mut start = [0; 4];
        self.file.read_exact_at(&mut start, at).is_ok() && start == *signature
    }

    fn at(&self, at: u64, bytes: u64) -> At<'_> {
        At { zip: self, at, left: bytes, is_content: true }
    }

    /// Tells of the entries in order, until it is told to stop.
    pub(super) fn each(&self, each: &mut Each<'_>) -> Result<(), FileError> {
        let mut directory = self.at(self.directory_at, self.directory_bytes);
        directory.is_content = false;
        let mut directory = BufReader::with_capacity(1 << 16, directory);
        let mut count = 0_u64;
        let mut left = self.directory_bytes;
        while left >= DIRECTORY_HEADER_BYTES as u64 {
            let (member, length) = read_member(&mut directory)?;
            left = left.checked_sub(length).ok_or_else(cut_off)?;
            count += 1;
            if each(member)?.is_break() {
                return Ok(());
            }
        }
        let (claimed, known_bits) = self.entries;
        if left > 0 || count & known_bits != claimed {
            return Err(FileError::corrupt("its directory does not hold what its end says"));
        }
        Ok(())
    }

    /// The content of an entry. Its end tells whether it was sound, so it is to be read to that.
    pub(super) fn content<'z, 'i>(
        &'z self,
        member: &Member,
        inflater: &'i mut Inflater<'z>,
    ) -> Result<impl Read + use<'z, 'i>, FileError> {
        if member.flags & ENCRYPTED != 0 {
            return Err(unsupported("it is encrypted"));
        }
        let inner: Box<dyn Read + 'i> = match member.method {
            0 => Box::new(self.buffered(member)?),
            8 => Box::new(inflater.inflate(self.buffered(member)?)),
            9 | 12 | 93 => Box::new(self.unusual(member, inflater)?),
            _ => return Err(unsupported("its compression is not known")),
        };
        let (size, crc) = (member.head.size, member.crc);
        Ok(Checked { inner, hasher: crc32fast::Hasher::new(), left: size, crc })
    }

    fn buffered(&self, member: &Member) -> Result<BufReader<At<'_>>, FileError> {
        let bytes = usize::try_from(member.packed_bytes).unwrap_or(usize::MAX);
        Ok(BufReader::with_capacity(bytes.clamp(64, 1 << 16), self.packed(member)?))
    }

    /// Content compressed in another way than nearly all is: Deflate64, BZip2, Zstandard. Sizes and checksum are the directory's: in
    /// the entry's own header they may be missing.
    fn unusual<'z, 'i>(
        &'z self,
        member: &Member,
        inflater: &'i mut Inflater<'z>,
    ) -> Result<impl Read + use<'z, 'i>, FileError> {
        let content = self.packed(member)?;
        let header_at = member.header_at + self.shift;
        let whole = self.at(header_at, content.at - header_at + content.left);
        let options = zip::read::ZipReadOptions::default()
            .override_compressed_size(member.packed_bytes)
            .override_uncompressed_size(member.head.size)
            .override_crc(member.crc);
        let entry = inflater.1.insert(BufReader::new(whole));
        match zip::read::read_zipfile_from_stream_with_options(entry, options) {
            Ok(Some(content)) => Ok(content),
            Err(ZipError::Io(error)) => Err(reading(error)),
            Ok(None) | Err(_) => Err(FileError::corrupt("an entry is damaged")),
        }
    }

    /// The packed content, found behind the entry's own header.
    fn packed(&self, member: &Member) -> Result<At<'_>, FileError> {
        let header_at = member.header_at.checked_add(self.shift).ok_or_else(cut_off)?;
        let mut header = [0; LOCAL_HEADER_BYTES];
        let header_end = header_at.checked_add(LOCAL_HEADER_BYTES as u64).ok_or_else(cut_off)?;
        self.file.read_exact_at(&mut header, header_at).map_err(reading)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(FileError::corrupt("an entry is not where its directory says"));
        }
        let fields = Fields(&header);
        let names = u64::from(fields.u16(26)) + u64::from(fields.u16(28));
        let content_at = header_end + names;
        let end = content_at.checked_add(member.packed_bytes).ok_or_else(cut_off)?;
        if end > self.directory_at {
            return Err(cut_off());
        }
        Ok(self.at(content_at, member.packed_bytes))
    }

    /// The head of a link with its target read.
    pub(super) fn link(&self, member: &Member) -> Result<Head, FileError> {
        let mut inflater = Inflater::default();
        let content = self.content(member, &mut inflater)?;
        let mut target = Vec::new();
        content.take(MAX_LINK_BYTES + 1).read_to_end(&mut target).map_err(reading)?;
        if target.len() as u64 > MAX_LINK_BYTES {
            return Err(FileError::ArchiveLimit { what: "the length of a link" });
        }
        Ok(Head { kind: HeadKind::Symlink(target), ..member.head.clone() })
    }
}

fn cut_off() -> FileError {
    FileError::corrupt("it was cut off, or something follows its end")
}

fn unsupported(reason: &str) -> FileError {
    FileError::UnsupportedArchive { reason: reason.to_owned() }
}

/// Numbers at their places in a record.
struct Fields<'r>(&'r [u8]);

impl Fields<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        *bytes.expect("invariant: records are read in their full length")
    }
}

/// The end record must be there and be the end: a zip that was cut off or that something was added to
/// is not what was packed.
fn find_end(file: &File, length: u64) -> Result<(u64, [u8; END_RECORD_BYTES]), FileError> {
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
fn find_long_end(file: &File, end_at: u64) -> Result<Option<(u64, LongEnd)>, FileError> {
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

type LongEnd = [u8; LONG_END_RECORD_BYTES];

/// Reads one record of the directory, and says how long it was.
fn read_member(directory: &mut impl Read) -> Result<(Member, u64), FileError> {
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

/// A part of the file, from a place on.
struct At<'z> {
    zip: &'z Zip,
    at: u64,
    left: u64,
    /// Whether it counts as progress: the directory is read more than once.
    is_content: bool,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.zip.progress.check().map_err(FileError::into_io)?;
        let want = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.zip.file.read_at(&mut buffer[..want], self.at)?;
        if self.is_content {
            self.zip.progress.add_bytes(count as u64);
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// What inflates one entry after the other: its tables are larger than most files. Beside it, the place
/// for an entry that is compressed in another way.
#[derive(Default)]
pub(super) struct Inflater<'z>(
    Option<flate2::bufread::DeflateDecoder<BufReader<At<'z>>>>,
    Option<BufReader<At<'z>>>,
);

impl<'z> Inflater<'z> {
    fn inflate(&mut self, packed: BufReader<At<'z>>) -> &mut impl Read {
        match &mut self.0 {
            Some(decoder) => {
                decoder.reset(packed);
                decoder
            }
            none => none.insert(flate2::bufread::DeflateDecoder::new(packed)),
        }
    }
}

/// Compares what comes out with what the directory says.
struct Checked<R> {
    inner: R,
    hasher: crc32fast::Hasher,
    left: u64,
    crc: u32,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        let wrong = |what: &str| FileError::corrupt(format!("an entry's {what} does not match"));
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| wrong("size").into_io())?;
        if count == 0 && !buffer.is_empty() {
            if self.left > 0 {
                return Err(wrong("size").into_io());
            } else if self.hasher.clone().finalize() != self.crc && !cfg!(fuzzing) {
                return Err(wrong("checksum").into_io());
            }
        }
        Ok(count)
    }
}
