//! The writing side of each format behind one trait.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use rustix::fs::Stat as RawStat;
use zip::write::{ExtendedFileOptions, FileOptions};
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::ArchiveFormat;
use crate::files::error::FileError;
use crate::files::progress::Charged;
use crate::files::volume::size_of_file;

/// From this size on a zip entry needs the 64-bit fields, which must be decided before its first byte.
const ZIP64_FROM_BYTES: u64 = 0xf000_0000;
/// The extra field that holds a modification time as Unix seconds ("UT").
const EXTENDED_TIMESTAMP: u16 = 0x5455;
const S_IFLNK: u32 = 0o120_000;

/// Takes entries one after the other. Names are relative, with `/` between the parts.
pub(super) trait Sink {
    fn folder(&mut self, name: &[u8], stat: &RawStat) -> io::Result<()>;
    /// `content` yields exactly the size that `stat` gives.
    fn file(&mut self, name: &[u8], stat: &RawStat, content: &mut dyn Read) -> io::Result<()>;
    fn symlink(&mut self, name: &[u8], stat: &RawStat, target: &[u8]) -> io::Result<()>;
    /// Writes what comes last and hands the file back.
    fn finish(self: Box<Self>) -> io::Result<File>;
}

pub(super) fn sink(
    format: ArchiveFormat,
    level: Option<u32>,
    file: Charged,
) -> io::Result<Box<dyn Sink>> {
    let level = level.map(|level| level.min(9));
    let file = BufWriter::with_capacity(1 << 16, file);
    Ok(match format {
        ArchiveFormat::Zip => {
            Box::new(ZipSink { zip: ZipWriter::new(file), level: level.map(i64::from) })
        }
        ArchiveFormat::Tar => Box::new(TarSink(tar::Builder::new(file))),
        ArchiveFormat::TarGz => {
            let level = flate2::Compression::new(level.unwrap_or(6));
            Box::new(TarSink(tar::Builder::new(flate2::write::GzEncoder::new(file, level))))
        }
        ArchiveFormat::TarBz2 => {
            let level = bzip2::Compression::new(level.unwrap_or(9).max(1));
            Box::new(TarSink(tar::Builder::new(bzip2::write::BzEncoder::new(file, level))))
        }
    })
}

/// A compressor or none, that ends its stream and hands the file back.
trait Stream: Write {
    fn end(self) -> io::Result<File>;
}

impl Stream for BufWriter<Charged> {
    fn end(self) -> io::Result<File> {
        self.into_inner().map(|charged| charged.file).map_err(io::IntoInnerError::into_error)
    }
}

impl<W: Stream> Stream for flate2::write::GzEncoder<W> {
    fn end(self) -> io::Result<File> {
        self.finish()?.end()
    }
}

impl<W: Stream> Stream for bzip2::write::BzEncoder<W> {
    fn end(self) -> io::Result<File> {
        self.finish()?.end()
    }
}

struct TarSink<W: Stream>(tar::Builder<W>);

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

impl<W: Stream> Sink for TarSink<W> {
    fn folder(&mut self, name: &[u8], stat: &RawStat) -> io::Result<()> {
        let mut header = tar_header(tar::EntryType::Directory, stat);
        let name = [name, b"/"].concat();
        self.0.append_data(&mut header, as_path(&name), io::empty())
    }

    fn file(&mut self, name: &[u8], stat: &RawStat, content: &mut dyn Read) -> io::Result<()> {
        let mut header = tar_header(tar::EntryType::Regular, stat);
        header.set_size(size_of_file(stat));
        self.0.append_data(&mut header, as_path(name), content)
    }

    fn symlink(&mut self, name: &[u8], stat: &RawStat, target: &[u8]) -> io::Result<()> {
        let mut header = tar_header(tar::EntryType::Symlink, stat);
        // The header keeps the target as it is; the crate's path form would tidy it.
        if target.len() <= 100 {
            header.set_link_name_literal(target)?;
            return self.0.append_data(&mut header, as_path(name), io::empty());
        }
        self.0.append_link(&mut header, as_path(name), as_path(target))
    }

    fn finish(self: Box<Self>) -> io::Result<File> {
        self.0.into_inner()?.end()
    }
}

struct ZipSink {
    zip: ZipWriter<BufWriter<Charged>>,
    level: Option<i64>,
}

type ZipOptions = FileOptions<'static, 'static, ExtendedFileOptions>;

impl ZipSink {
    fn options(&self, stat: &RawStat) -> io::Result<ZipOptions> {
        let (method, level) = match self.level {
            // The crate knows 1 to 9, and no level for what is stored as it is.
            Some(0) => (CompressionMethod::Stored, None),
            level => (CompressionMethod::Deflated, level),
        };
        let mut options = ZipOptions::default()
            .compression_method(method)
            .compression_level(level)
            .unix_permissions(stat.st_mode & 0o777)
            .last_modified_time(dos_time(stat.st_mtime))
            .large_file(size_of_file(stat) >= ZIP64_FROM_BYTES);
        // The DOS time has no zone, ends in 2107 and counts in steps of two seconds.
        if let Ok(seconds) = i32::try_from(stat.st_mtime) {
            let field = [[1].as_slice(), &seconds.to_le_bytes()].concat();
            options.add_extra_field(EXTENDED_TIMESTAMP, field, false).map_err(from_zip)?;
        }
        Ok(options)
    }
}

impl Sink for ZipSink {
    fn folder(&mut self, name: &[u8], stat: &RawStat) -> io::Result<()> {
        let name = String::from_utf8_lossy(name);
        self.zip.add_directory(name, self.options(stat)?).map_err(from_zip)
    }

    fn file(&mut self, name: &[u8], stat: &RawStat, content: &mut dyn Read) -> io::Result<()> {
        let name = String::from_utf8_lossy(name);
        self.zip.start_file(name, self.options(stat)?).map_err(from_zip)?;
        io::copy(content, &mut self.zip).map(drop)
    }

    fn symlink(&mut self, name: &[u8], stat: &RawStat, target: &[u8]) -> io::Result<()> {
        let name = String::from_utf8_lossy(name);
        let options = self
            .options(stat)?
            .compression_method(CompressionMethod::Stored)
            .compression_level(None)
            .external_attributes((S_IFLNK | 0o777) << 16);
        self.zip.start_file(name, options).map_err(from_zip)?;
        self.zip.write_all(target)
    }

    fn finish(self: Box<Self>) -> io::Result<File> {
        self.zip.finish().map_err(from_zip)?.end()
    }
}

fn dos_time(seconds: i64) -> DateTime {
    let civil = |seconds| {
        let time = jiff::Timestamp::from_second(seconds).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
        DateTime::from_date_and_time(
            u16::try_from(time.year()).ok()?,
            u8::try_from(time.month()).ok()?,
            u8::try_from(time.day()).ok()?,
            u8::try_from(time.hour()).ok()?,
            u8::try_from(time.minute()).ok()?,
            u8::try_from(time.second()).ok()?,
        )
        .ok()
    };
    civil(seconds).unwrap_or_default()
}

fn from_zip(error: zip::result::ZipError) -> io::Error {
    match error {
        zip::result::ZipError::Io(error) => error,
        other => FileError::Io {
            op: "pack",
            path: "the archive".to_owned(),
            source: io::Error::other(other),
        }
        .into_io(),
    }
}
