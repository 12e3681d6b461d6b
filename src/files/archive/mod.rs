//! Archives of a volume's files, made and taken apart: zip, tar, and tar within gzip, bzip2, zstd or xz;
//! and single files compressed by one of these.
//!
//! `pack` walks the volume by handles and streams into a temporary file. `unpack` trusts nothing an
//! archive says: names go through `RelPath`, folders are opened without following links, sizes are
//! counted as they are written, and all of it lands in a staging folder first. Only when the last byte
//! of the archive was read and found sound does anything appear in the volume.
//!
//! Both spread their work over a few threads of low priority (`files::threads`), which live as long as the
//! call; what waits between them is bounded, so that memory does not grow with files or archives.
//!
//! ```text
//!   volume --select--> Sink (tar_write, zip_write) --blocks--> compressors --in order--> temp --rename--> output
//!   archive --format--> decompressor (streams) --> tar_read --> Extractor --> staging --merge--> volume
//!                       zip_read (directory) ----> several ---> Room -------^
//! ```

mod blocks;
mod extract;
mod ignore;
pub(crate) mod list;
mod merge;
pub(crate) mod pack;
mod room;
mod select;
pub(crate) mod stream;
mod streams;
mod tar_read;
mod tar_write;
pub(crate) mod unpack;
mod write;
mod zip_directory;
mod zip_names;
mod zip_read;
mod zip_records;
mod zip_write;

use std::borrow::Cow;
use std::io::Read;
use std::ops::RangeInclusive;

use serde::Deserialize;

use super::error::FileError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum ArchiveFormat {
    Zip,
    Tar,
    TarGz,
    TarBz2,
    TarZst,
    TarXz,
}

impl TryFrom<String> for ArchiveFormat {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::parse(&name)
    }
}

impl ArchiveFormat {
    pub(crate) const ALL: [Self; 6] =
        [Self::Zip, Self::Tar, Self::TarGz, Self::TarBz2, Self::TarZst, Self::TarXz];

    /// The format of that name, or what is wrong with it.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|format| format.as_str() == name);
        known.ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }

    /// The name of the format, which is also what its files' names end with.
    pub(crate) fn as_str(self) -> &'static str {
        self.endings()[0]
    }

    /// What files of the format are called, the usual ending first.
    pub(crate) fn endings(self) -> &'static [&'static str] {
        match self {
            Self::Zip => &["zip"],
            Self::Tar => &["tar"],
            Self::TarGz => &["tar.gz", "tgz"],
            Self::TarBz2 => &["tar.bz2", "tbz2", "tbz"],
            Self::TarZst => &["tar.zst", "tzst"],
            Self::TarXz => &["tar.xz", "txz"],
        }
    }

    /// The levels from fast to small. A tar knows none; so that a caller need not tell formats apart, it
    /// takes any of the usual ones, and makes nothing of it.
    pub(crate) fn levels(self) -> RangeInclusive<u32> {
        match self {
            Self::Zip | Self::Tar | Self::TarGz | Self::TarXz => 0..=9,
            Self::TarBz2 => 1..=9,
            Self::TarZst => 1..=19,
        }
    }

    /// The level if none is asked for, which is that of the format's own program; xz's own would take
    /// an hour for what a server is, and is hardly smaller than this one.
    pub(crate) fn default_level(self) -> u32 {
        match self {
            Self::Zip | Self::Tar | Self::TarGz => 6,
            Self::TarBz2 => 9,
            Self::TarZst | Self::TarXz => 3,
        }
    }
}

/// How large an archive may turn out to be. What exceeds one is refused as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArchiveLimits {
    pub(crate) max_entries: u64,
    /// The content of all files together.
    pub(crate) max_total_bytes: u64,
    /// How many bytes of content one byte of archive may stand for, beyond the first 64 MiB.
    pub(crate) max_ratio: u64,
}

/// As the configuration has them if nobody says otherwise.
#[cfg(test)]
impl Default for ArchiveLimits {
    fn default() -> Self {
        Self { max_entries: 1_000_000, max_total_bytes: 64 << 30, max_ratio: 200 }
    }
}

/// Content below this is never a bomb, whatever its ratio.
const RATIO_FREE_BYTES: u64 = 64 << 20;

impl ArchiveLimits {
    /// Refuses so much content as coming from an archive of that size.
    fn check_content(&self, content_bytes: u64, archive_bytes: u64) -> Result<(), FileError> {
        if content_bytes > self.max_total_bytes {
            return Err(FileError::ArchiveLimit { what: "the size of its content" });
        }
        let allowed = archive_bytes.saturating_mul(self.max_ratio);
        if content_bytes > allowed.saturating_add(RATIO_FREE_BYTES) {
            return Err(FileError::ArchiveLimit { what: "the compression ratio" });
        }
        Ok(())
    }

    /// Refuses to make what could not be taken apart again.
    fn check_packed(&self, content_bytes: u64, entries: u64) -> Result<(), FileError> {
        self.check_entries(entries)?;
        // The ratio is the archive's, which is not there yet.
        self.check_content(content_bytes, u64::MAX)
    }

    fn check_entries(&self, entries: u64) -> Result<(), FileError> {
        if entries > self.max_entries {
            return Err(FileError::ArchiveLimit { what: "the number of entries" });
        }
        Ok(())
    }
}

/// A name as an archive has it. Old archives know no UTF-8: as Latin-1 each byte is a character, so that no two
/// names become one.
fn name_text(name: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(name) {
        Ok(text) => text.into(),
        Err(_) => name.iter().map(|&byte| char::from(byte)).collect::<String>().into(),
    }
}

/// What an archive says of an entry, the same for all formats.
#[derive(Clone, Debug)]
struct Head {
    name: Vec<u8>,
    kind: HeadKind,
    /// Of a file's content, as the archive claims it.
    size: u64,
    mode: u32,
    modified_at_seconds: Option<i64>,
}

#[derive(Clone, Debug)]
enum HeadKind {
    Folder,
    File,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    /// Devices, FIFOs and the like.
    Other,
}

/// Sorts an error met while reading an archive: what the disk says is of the disk, all else is the
/// archive's fault.
fn reading(error: std::io::Error) -> FileError {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return FileError::corrupt("it ends too early");
    }
    match FileError::from_io("read", &"the archive", error) {
        FileError::Io { source, .. } if source.raw_os_error().is_none() => {
            FileError::corrupt(source.to_string())
        }
        error => error,
    }
}

/// Reads until the buffer is full or the end, and says how much it was.
fn read_up_to(reader: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
