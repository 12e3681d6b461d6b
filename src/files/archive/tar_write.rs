//! Tar streams, in GNU's form, and what gzip and bzip2 put around them.
//!
//! Called by `write`. Every entry is padded to whole blocks and has exactly the length that its header gives;
//! a stream without its end was cut off by an error, which is told to the caller.

use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use rustix::fs::Stat as RawStat;

use super::blocks::{Assembler, Feed, Piece};
use super::write::Sink;
use crate::files::volume::size_of_file;

const BLOCK_BYTES: usize = 512;
const COPY_BYTES: usize = 256 * 1024;
/// Deflated, nothing else said, made on Unix. The time of a stream says nothing.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// What a tar is written to.
pub(super) trait Stream: Write {
    type Output;
    fn end(self) -> io::Result<Self::Output>;
}

impl<W: Write> Stream for BufWriter<W> {
    type Output = W;

    fn end(self) -> io::Result<W> {
        self.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl Stream for Feed<()> {
    type Output = ();

    fn end(mut self) -> io::Result<()> {
        Feed::end(&mut self)
    }
}

pub(super) struct TarSink<S: Stream> {
    tar: tar::Builder<S>,
    buffer: Vec<u8>,
}

impl<S: Stream> TarSink<S> {
    /// Writes a tar to `stream` and ends both.
    pub(super) fn filled(
        stream: S,
        fill: impl FnOnce(&mut dyn Sink) -> io::Result<()>,
    ) -> io::Result<S::Output> {
        let mut sink = Self { tar: tar::Builder::new(stream), buffer: vec![0; COPY_BYTES] };
        fill(&mut sink)?;
        sink.tar.into_inner()?.end()
    }

    fn content(&mut self, mut left: u64, content: &mut dyn Read) -> io::Result<()> {
        let padding = left.next_multiple_of(BLOCK_BYTES as u64) - left;
        while left > 0 {
            let want = usize::try_from(left).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
            let count = content.read(&mut self.buffer[..want])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.tar.get_mut().write_all(&self.buffer[..count])?;
            left -= count as u64;
        }
        let zeros = [0; BLOCK_BYTES];
        let padding = usize::try_from(padding).unwrap_or(0);
        self.tar.get_mut().write_all(&zeros[..padding])
    }
}

fn tar_header(kind: tar::EntryType, stat: &RawStat) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

fn as_path(name: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt as _;
    Path::new(std::ffi::OsStr::from_bytes(name))
}

impl<S: Stream> Sink for TarSink<S> {
    fn folder(&mut self, name: &[u8], stat: &RawStat) -> io::Result<()> {
        let mut header = tar_header(tar::EntryType::Directory, stat);
        let name = [name, b"/"].concat();
        self.tar.append_data(&mut header, as_path(&name), io::empty())
    }

    fn file(&mut self, name: &[u8], stat: &RawStat, content: &mut dyn Read) -> io::Result<()> {
        let mut header = tar_header(tar::EntryType::Regular, stat);
        header.set_size(size_of_file(stat));
        // The header only: the crate would copy the content in pieces of 8 KiB.
        self.tar.append_data(&mut header, as_path(name), io::empty())?;
        self.content(size_of_file(stat), content)
    }

    fn symlink(&mut self, name: &[u8], stat: &RawStat, target: &[u8]) -> io::Result<()> {
        let mut header = tar_header(tar::EntryType::Symlink, stat);
        // The header keeps the target as it is; the crate's path form would tidy it.
        if target.len() <= 100 {
            header.set_link_name_literal(target)?;
            return self.tar.append_data(&mut header, as_path(name), io::empty());
        }
        self.tar.append_link(&mut header, as_path(name), as_path(target))
    }
}

/// One gzip member of all blocks.
pub(super) struct GzipFile<W: Write> {
    out: BufWriter<W>,
    crc: crc32fast::Hasher,
    content_bytes: u64,
}

impl<W: Write> GzipFile<W> {
    pub(super) fn new(mut out: BufWriter<W>) -> io::Result<Self> {
        out.write_all(&GZIP_HEADER)?;
        Ok(Self { out, crc: crc32fast::Hasher::new(), content_bytes: 0 })
    }
}

impl<W: Write> Assembler for GzipFile<W> {
    type Mark = ();
    type Output = W;

    fn take(&mut self, piece: Piece<()>) -> io::Result<()> {
        let Piece::Block(block) = piece else { return Ok(()) };
        let block = block.wait()?;
        self.crc.combine(&block.crc);
        self.content_bytes += block.content_bytes;
        self.out.write_all(&block.bytes)
    }

    fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&self.crc.finalize().to_le_bytes())?;
        let [low @ .., _, _, _, _] = self.content_bytes.to_le_bytes();
        self.out.write_all(&low)?;
        self.out.end()
    }
}

/// The blocks' streams, one after the other.
pub(super) struct Bzip2File<W: Write>(BufWriter<W>);

impl<W: Write> Bzip2File<W> {
    pub(super) fn new(out: BufWriter<W>) -> Self {
        Self(out)
    }
}

impl<W: Write> Assembler for Bzip2File<W> {
    type Mark = ();
    type Output = W;

    fn take(&mut self, piece: Piece<()>) -> io::Result<()> {
        let Piece::Block(block) = piece else { return Ok(()) };
        self.0.write_all(&block.wait()?.bytes)
    }

    fn finish(self) -> io::Result<W> {
        self.0.end()
    }
}
