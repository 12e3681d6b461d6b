//! From an archive to files: recognising it, reading all of it, moving the result in.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;

use super::extract::Extractor;
use super::merge::merge;
use super::tar_read::{begins_like_tar, read_tar};
use super::zip_read::read_zip;
use super::{ArchiveFormat, ArchiveLimits, read_up_to, reading};
use crate::domain::path::RelPath;
use crate::files::content::STAGED;
use crate::files::error::{During, FileError, refuse_reserved};
use crate::files::progress::{Progress, Tracked};
use crate::files::resolve::make_folder;
use crate::files::staging::Staging;
use crate::files::volume::Volume;

/// What a header and its padding add to an entry's content in a tar stream, at most in the long run.
const TAR_OVERHEAD_BYTES: u64 = 4096;
/// The content of one bzip2 block, at most.
const LONGEST_BLOCK_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) entries: u64,
    /// Devices and FIFOs, and links that lead outside, which were left out.
    pub(crate) skipped: u64,
}

impl Volume {
    /// Takes an archive apart below `destination`, which is made if it is missing and merged into
    /// otherwise. Until the whole archive was read and found sound, the volume stays as it was.
    pub(crate) fn unpack(
        &self,
        archive: &RelPath,
        destination: &RelPath,
        progress: &Progress,
    ) -> Result<Unpacked, FileError> {
        refuse_reserved(destination)?;
        let (file, stat) = self.open_read(archive)?;
        let existing = self.destination(destination)?;
        progress.set_total_bytes(stat.size);
        let staging = Staging::new(self.root())?;
        let tree = make_folder(staging.dir(), STAGED, self.owner).during("unpack", archive)?;
        let mut extractor = Extractor::new(tree, self, stat.size, progress);
        read_archive(file, &mut extractor)?;
        extractor.finish()?;
        progress.check()?;
        match existing {
            Some(existing) => merge(extractor.tree(), &existing)?,
            None => {
                let target = self.place_with_parents(destination)?;
                self.settle((staging.dir(), STAGED), (&target, destination), false)?;
            }
        }
        Ok(extractor.outcome())
    }

    fn destination(&self, path: &RelPath) -> Result<Option<OwnedFd>, FileError> {
        match self.open_dir(path) {
            Ok(dir) => Ok(Some(dir)),
            Err(FileError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read_archive(mut file: File, extractor: &mut Extractor<'_>) -> Result<(), FileError> {
    let mut start = [0; 512];
    let filled = read_up_to(&mut file, &mut start).map_err(reading)?;
    file.seek(SeekFrom::Start(0)).map_err(reading)?;
    let format = ArchiveFormat::recognise(&start[..filled]).ok_or_else(unknown)?;
    let file = Tracked { inner: file, progress: extractor.progress().clone() };
    match format {
        ArchiveFormat::Zip => read_zip(file, extractor),
        ArchiveFormat::Tar => read_tar(&mut BufReader::with_capacity(1 << 16, file), extractor),
        ArchiveFormat::TarGz => {
            let stream = flate2::bufread::MultiGzDecoder::new(BufReader::new(file));
            read_compressed_tar(stream, extractor)
        }
        ArchiveFormat::TarBz2 => {
            let stream = bzip2::bufread::MultiBzDecoder::new(BufReader::new(file));
            read_compressed_tar(stream, extractor)
        }
    }
}

fn unknown() -> FileError {
    FileError::UnsupportedArchive { reason: "it is no zip, tar, tar.gz or tar.bz2".to_owned() }
}

fn read_compressed_tar(
    mut stream: impl Read,
    extractor: &mut Extractor<'_>,
) -> Result<(), FileError> {
    let mut start = [0; 512];
    let filled = read_up_to(&mut stream, &mut start).map_err(reading)?;
    if !begins_like_tar(&start[..filled]) {
        // A damaged block of bzip2 yields nonsense first and fails its checksum at its end, so the
        // rest of a block tells what is damaged from what was no tar to begin with.
        io::copy(&mut stream.take(LONGEST_BLOCK_BYTES), &mut io::sink()).map_err(reading)?;
        return Err(unknown());
    }
    let stream = Capped { inner: stream, left: most_stream_bytes(extractor.limits()) };
    let mut stream = (&start[..]).chain(stream);
    read_tar(&mut BufReader::with_capacity(1 << 16, &mut stream), extractor)
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
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| FileError::ArchiveLimit { what: "the size of its content" }.into_io())?;
        Ok(count)
    }
}
