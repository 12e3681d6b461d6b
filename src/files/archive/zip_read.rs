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

use super::zip_directory::{
    DIRECTORY_HEADER_BYTES, Fields, Member, cut_off, find_end, find_long_end, read_member,
};
use super::{Head, HeadKind, reading};
use crate::files::error::FileError;
use crate::files::progress::{Progress, Tracked};

const MAX_LINK_BYTES: u64 = 4096;
const LOCAL_HEADER_BYTES: usize = 30;
/// By a password, strongly, or with the directory's own names hidden.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;

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

fn unsupported(reason: &str) -> FileError {
    FileError::UnsupportedArchive { reason: reason.to_owned() }
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
