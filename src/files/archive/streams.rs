//! Compressed streams: told by how they begin, taken apart on a thread of their own, and cut off at the
//! limits.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::mpsc::{Receiver, sync_channel};

use liblzma::stream::CONCATENATED;

use super::tar_read::{Source, begins_like_tar};
use super::{ArchiveFormat, ArchiveLimits, RATIO_FREE_BYTES, read_up_to, reading};
use crate::files::error::FileError;
use crate::files::progress::Tracked;
use crate::files::threads::spawn;

/// The most memory one decompressor may take. zstd's own program and xz's highest level stay below.
const MAX_WINDOW_LOG: u32 = 26;
const MAX_XZ_MEMORY_BYTES: u64 = 72 << 20;
/// What a header and its padding add to an entry's content in a tar stream, at most in the long run.
const TAR_OVERHEAD_BYTES: u64 = 4096;
const CHUNK_BYTES: usize = 256 * 1024;
const CHUNKS_AHEAD: usize = 4;
/// The beginning that tells what something is.
const START_BYTES: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Bzip2,
    Zstd,
    Xz,
}

impl Compression {
    fn recognise(start: &[u8]) -> Option<Self> {
        if start.starts_with(&[0x1f, 0x8b, 0x08]) {
            return Some(Self::Gzip);
        } else if start.starts_with(b"BZh") {
            return Some(Self::Bzip2);
        } else if start.starts_with(b"\xfd7zXZ\0") {
            return Some(Self::Xz);
        }
        match *start {
            // A frame; or one to be skipped, with which parallel compressors begin.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    fn tar(self) -> ArchiveFormat {
        match self {
            Self::Gzip => ArchiveFormat::TarGz,
            Self::Bzip2 => ArchiveFormat::TarBz2,
            Self::Zstd => ArchiveFormat::TarZst,
            Self::Xz => ArchiveFormat::TarXz,
        }
    }

    /// What a compressed file's name ends with.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Gzip => "gz",
            Self::Bzip2 => "bz2",
            Self::Zstd => "zst",
            Self::Xz => "xz",
        }
    }
}

/// What a file turned out to be.
pub(super) enum Opened<'a> {
    Zip(Tracked<File>),
    Tar(ArchiveFormat, &'a mut dyn Source),
    /// One file, compressed.
    Single(Compression, &'a mut dyn Read),
}

/// Tells what `file` is by its content, names say nothing: people rename archives. What is compressed
/// is decompressed ahead of `work` meanwhile. `name` helps where a file begins like an empty tar.
pub(super) fn open<T>(
    mut file: Tracked<File>,
    archive_bytes: u64,
    name: &str,
    limits: &ArchiveLimits,
    work: impl FnOnce(Opened<'_>) -> Result<T, FileError>,
) -> Result<T, FileError> {
    let mut start = [0; START_BYTES];
    let filled = read_up_to(&mut file.inner, &mut start).map_err(reading)?;
    let start = &start[..filled];
    file.seek(SeekFrom::Start(0)).map_err(reading)?;
    if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        return work(Opened::Zip(file));
    }
    if let Some(compression) = Compression::recognise(start) {
        let stream = Capped {
            inner: decompressor(compression, file).map_err(reading)?,
            content_bytes: 0,
            most_bytes: most_stream_bytes(limits),
            most_by_ratio: archive_bytes
                .saturating_mul(limits.max_ratio)
                .saturating_add(RATIO_FREE_BYTES),
        };
        return ahead(stream, |stream| compressed(compression, stream, name, work));
    }
    if begins_like_tar(start) {
        let mut file = BufReader::with_capacity(1 << 16, file);
        return work(Opened::Tar(ArchiveFormat::Tar, &mut file));
    }
    Err(unknown())
}

fn unknown() -> FileError {
    let reason = "it is no zip, no tar and not compressed by gzip, bzip2, zstd or xz".to_owned();
    FileError::UnsupportedArchive { reason }
}

fn compressed<T>(
    compression: Compression,
    stream: &mut Ahead<'_>,
    name: &str,
    work: impl FnOnce(Opened<'_>) -> Result<T, FileError>,
) -> Result<T, FileError> {
    let start = stream.start().map_err(reading)?;
    // A disk image may begin with zeros, as an empty tar does.
    let is_zeros = start.iter().all(|byte| *byte == 0);
    let is_named_otherwise = !is_named_tar(name, compression) && has_ending(name, compression);
    if begins_like_tar(start) && !(is_zeros && is_named_otherwise) {
        return work(Opened::Tar(compression.tar(), stream));
    }
    work(Opened::Single(compression, stream))
}

fn has_ending(name: &str, compression: Compression) -> bool {
    let ending = format!(".{}", compression.ending());
    name.len() > ending.len() && name.to_ascii_lowercase().ends_with(&ending)
}

/// Whether a file's name says that it is a compressed tar.
pub(super) fn is_named_tar(name: &str, compression: Compression) -> bool {
    let lower = name.to_ascii_lowercase();
    compression.tar().endings().iter().any(|ending| lower.ends_with(&format!(".{ending}")))
}

/// What a compressed file is called without its compression. `None` if the name does not tell.
pub(super) fn without_ending(name: &str, compression: Compression) -> Option<&str> {
    has_ending(name, compression).then(|| &name[..name.len() - compression.ending().len() - 1])
}

fn decompressor(compression: Compression, file: Tracked<File>) -> io::Result<Box<dyn Read + Send>> {
    let file = BufReader::with_capacity(1 << 16, file);
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(file)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Compression::Xz => {
            use liblzma::stream::Stream;
            let stream = Stream::new_stream_decoder(MAX_XZ_MEMORY_BYTES, CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(file, stream))
        }
    })
}

/// Tells streams that need more memory than they get from damaged ones.
fn named(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    let is_xz = matches!(cause, Some(liblzma::stream::Error::MemLimit));
    // zstd's binding keeps no more than the library's sentence.
    if is_xz || error.to_string().contains("requires too much memory") {
        let reason = "it was compressed with more memory than may be used to decompress it";
        return FileError::UnsupportedArchive { reason: reason.to_owned() }.into_io();
    }
    error
}

fn most_stream_bytes(limits: &ArchiveLimits) -> u64 {
    limits
        .max_entries
        .saturating_mul(TAR_OVERHEAD_BYTES)
        .saturating_add(limits.max_total_bytes)
        .saturating_add(1 << 20)
}

/// A stream that may be only so long: what an archive holds beside files costs time as well.
struct Capped<R> {
    inner: R,
    content_bytes: u64,
    most_bytes: u64,
    most_by_ratio: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer).map_err(named)?;
        self.content_bytes = self.content_bytes.saturating_add(count as u64);
        if self.content_bytes > self.most_bytes {
            return Err(FileError::ArchiveLimit { what: "the size of its content" }.into_io());
        }
        if self.content_bytes > self.most_by_ratio {
            return Err(FileError::ArchiveLimit { what: "the compression ratio" }.into_io());
        }
        Ok(count)
    }
}

/// Decompresses on a thread of its own what `work` reads.
fn ahead<T>(
    mut stream: impl Read + Send,
    work: impl FnOnce(&mut Ahead<'_>) -> Result<T, FileError>,
) -> Result<T, FileError> {
    let (send, chunks) = sync_channel(CHUNKS_AHEAD);
    std::thread::scope(|scope| {
        let decompress = move || {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let filled = read_up_to(&mut stream, &mut chunk);
                let is_last = !matches!(filled, Ok(CHUNK_BYTES));
                let chunk = filled.map(|filled| {
                    chunk.truncate(filled);
                    chunk
                });
                // An error says that the reader has seen enough.
                if send.send(chunk).is_err() || is_last {
                    return;
                }
            }
        };
        spawn(scope, "unpack-decompress", decompress).map_err(reading)?;
        // Gone at the end of this, so that the thread does not wait for somebody to read on.
        let chunks = chunks;
        work(&mut Ahead { chunks: &chunks, chunk: Vec::new(), at: 0 })
    })
}

/// The reading end of a stream that is decompressed elsewhere.
struct Ahead<'a> {
    chunks: &'a Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Ahead<'_> {
    fn rest(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len()
            && let Ok(chunk) = self.chunks.recv()
        {
            self.chunk = chunk?;
            self.at = 0;
        }
        Ok(&self.chunk[self.at..])
    }

    /// How the stream begins, if nothing was read yet.
    fn start(&mut self) -> io::Result<&[u8]> {
        let rest = self.rest()?;
        Ok(&rest[..rest.len().min(START_BYTES)])
    }
}

impl Read for Ahead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.rest()?;
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

impl Source for Ahead<'_> {}

impl Source for BufReader<Tracked<File>> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let far = i64::try_from(bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        self.get_ref().progress.check().map_err(FileError::into_io)?;
        self.seek_relative(far)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_files_name_tells_what_it_was_called() {
        for (name, compression, want) in [
            ("world.dat.gz", Compression::Gzip, Some("world.dat")),
            ("LOG.BZ2", Compression::Bzip2, Some("LOG")),
            ("x.zst", Compression::Gzip, None),
            (".gz", Compression::Gzip, None),
            ("ü.xz", Compression::Xz, Some("ü")),
            ("gz", Compression::Gzip, None),
        ] {
            assert_eq!(without_ending(name, compression), want, "{name}");
        }
        assert!(is_named_tar("a.TGZ", Compression::Gzip));
        assert!(!is_named_tar("a.tar.gz", Compression::Zstd));
    }
}
