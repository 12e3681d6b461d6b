//! Archives of a volume's files, made and taken apart: zip, tar, tar.gz and tar.bz2.
//!
//! `pack` walks the volume by handles and streams into a temporary file. `unpack` trusts nothing an
//! archive says: names go through `RelPath`, folders are opened without following links, sizes are
//! counted as they are written, and all of it lands in a staging folder first. Only when the last byte
//! of the archive was read and found sound does anything appear in the volume.
//!
//! ```text
//!   volume --walk--> selection (pack, ignore) --> Sink (write): tar | zip --> temp --rename--> output
//!   archive --format--> reader (tar_read, zip_read) --> Extractor (unpack) --> staging --merge--> volume
//! ```

mod extract;
mod ignore;
mod merge;
pub(crate) mod pack;
mod tar_read;
pub(crate) mod unpack;
mod write;
mod zip_read;

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::error::FileError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ArchiveFormat {
    #[serde(rename = "zip")]
    Zip,
    #[serde(rename = "tar")]
    Tar,
    #[serde(rename = "tar.gz")]
    TarGz,
    #[serde(rename = "tar.bz2")]
    TarBz2,
}

impl ArchiveFormat {
    /// The name of the format, which is also what its files' names end with.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Zip => "zip",
            Self::Tar => "tar",
            Self::TarGz => "tar.gz",
            Self::TarBz2 => "tar.bz2",
        }
    }

    /// Tells a format from how the file begins. Names say nothing: people rename archives.
    fn recognise(start: &[u8]) -> Option<Self> {
        if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            Some(Self::Zip)
        } else if start.starts_with(&[0x1f, 0x8b, 0x08]) {
            Some(Self::TarGz)
        } else if start.starts_with(b"BZh") {
            Some(Self::TarBz2)
        } else if tar_read::begins_like_tar(start) {
            Some(Self::Tar)
        } else {
            None
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
    pub(crate) max_depth: usize,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self { max_entries: 500_000, max_total_bytes: 100 << 30, max_ratio: 500, max_depth: 64 }
    }
}

/// What an archive says of an entry, the same for all formats.
#[derive(Clone, Debug)]
struct Head {
    name: Vec<u8>,
    kind: HeadKind,
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
