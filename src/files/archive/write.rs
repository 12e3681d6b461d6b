//! The writing side of each format behind one trait, on threads of its own.
//!
//! Called by `pack`, which puts entries into a [`Sink`] one after the other and hears of a failure, whichever
//! thread it was on, as the end of [`write_archive`]. No thread outlives that call, and memory does not
//! grow with what is packed.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use liblzma::stream::{Check, Filters, LzmaOptions, MtStreamBuilder};
use liblzma::write::XzEncoder;
use rustix::fs::Stat as RawStat;
use zstd::zstd_safe::CParameter;

use super::ArchiveFormat;
use super::blocks::{Codec, in_blocks};
use super::tar_write::{Bzip2File, GzipFile, Stream, TarSink};
use super::zip_write::{ZipFile, ZipSink};
use crate::files::error::FileError;
use crate::files::threads::{join, spawn, workers};

/// What a worker of zstd takes at once: its own choice is twice as much memory.
const ZSTD_JOB_BYTES: u32 = 4 << 20;
/// 2^21: the tables of the highest levels would take hundreds of megabytes.
const ZSTD_TABLE_LOG: u32 = 21;
/// As far as xz looks back; its own choice is up to 64 MiB, and ten times that in memory per worker.
const XZ_DICTIONARY_BYTES: u32 = 2 << 20;
const XZ_BLOCK_BYTES: u64 = 3 * XZ_DICTIONARY_BYTES as u64;
const XZ_MAX_WORKERS: usize = 2;

/// Takes entries one after the other. Names are relative, with `/` between the parts.
pub(super) trait Sink {
    fn folder(&mut self, name: &[u8], stat: &RawStat) -> io::Result<()>;
    /// `content` yields exactly the size that `stat` gives.
    fn file(&mut self, name: &[u8], stat: &RawStat, content: &mut dyn Read) -> io::Result<()>;
    fn symlink(&mut self, name: &[u8], stat: &RawStat, target: &[u8]) -> io::Result<()>;
}

/// Writes an archive to `out`, of the entries that `fill` puts into the sink. `spill` is an empty file
/// that nobody else uses.
pub(super) fn write_archive<W: Write + Send>(
    (format, level): (ArchiveFormat, u32),
    out: W,
    spill: File,
    fill: impl FnOnce(&mut dyn Sink) -> Result<(), FileError> + Send,
) -> io::Result<W> {
    let fill = |sink: &mut dyn Sink| fill(sink).map_err(FileError::into_io);
    let out = BufWriter::with_capacity(1 << 16, out);
    match format {
        ArchiveFormat::Zip => {
            let codec = Codec::Deflate { level, may_be_plain: true };
            let assembler = ZipFile::new(out, spill);
            let written = in_blocks(codec, assembler, |feed| fill(&mut ZipSink::new(feed)));
            written.map(|((), out)| out)
        }
        ArchiveFormat::TarGz => {
            let assembler = GzipFile::new(out)?;
            let codec = Codec::Deflate { level, may_be_plain: false };
            in_blocks(codec, assembler, |feed| TarSink::filled(feed, fill)).map(|((), out)| out)
        }
        ArchiveFormat::TarBz2 => {
            let assembler = Bzip2File::new(out);
            in_blocks(Codec::Bzip2 { level }, assembler, |feed| TarSink::filled(feed, fill))
                .map(|((), out)| out)
        }
        ArchiveFormat::Tar => alone(|| TarSink::filled(out, fill)),
        ArchiveFormat::TarZst => alone(|| TarSink::filled(zstd_encoder(out, level)?, fill)),
        ArchiveFormat::TarXz => alone(|| TarSink::filled(xz_encoder(out, level)?, fill)),
    }
}

/// Runs what needs one thread, or brings its own, at low priority.
fn alone<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| join(spawn(scope, "pack-read", work)?))
}

fn zstd_encoder<W: Write>(out: W, level: u32) -> io::Result<zstd::Encoder<'static, W>> {
    let level = i32::try_from(level).map_err(io::Error::other)?;
    let mut encoder = zstd::Encoder::new(out, level)?;
    encoder.include_checksum(true)?;
    encoder.set_parameter(CParameter::NbWorkers(u32::try_from(workers()).unwrap_or(1)))?;
    encoder.set_parameter(CParameter::JobSize(ZSTD_JOB_BYTES))?;
    encoder.set_parameter(CParameter::WindowLog(ZSTD_TABLE_LOG))?;
    if level > 9 {
        encoder.set_parameter(CParameter::HashLog(ZSTD_TABLE_LOG))?;
        encoder.set_parameter(CParameter::ChainLog(ZSTD_TABLE_LOG))?;
    }
    Ok(encoder)
}

fn xz_encoder<W: Write>(out: W, level: u32) -> io::Result<XzEncoder<W>> {
    let mut options = LzmaOptions::new_preset(level)?;
    if level > 1 {
        options.dict_size(XZ_DICTIONARY_BYTES);
    }
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let workers = u32::try_from(workers().min(XZ_MAX_WORKERS)).unwrap_or(1);
    let stream = MtStreamBuilder::new()
        .threads(workers)
        .block_size(XZ_BLOCK_BYTES)
        .filters(filters)
        .check(Check::Crc64)
        .encoder()?;
    Ok(XzEncoder::new_stream(out, stream))
}

/// Ends a compressor and hands on what it wrote to.
impl<W: Write> Stream for zstd::Encoder<'static, BufWriter<W>> {
    type Output = W;

    fn end(self) -> io::Result<W> {
        self.finish()?.end()
    }
}

impl<W: Write> Stream for XzEncoder<BufWriter<W>> {
    type Output = W;

    fn end(self) -> io::Result<W> {
        self.finish()?.end()
    }
}
