//! The zip format's frame: what comes when, and the directory at the end. Byte by byte it is in
//! `zip_records`.
//!
//! Entries are deflated by others, several at a time, and come in order. A file of one block is written
//! with its sizes in front; of a longer one they stand behind it, so that nothing is ever gone back to.
//! The directory grows in a file beside, not in memory.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use rustix::fs::{FileType, RawMode, Stat as RawStat};

use super::blocks::{Assembler, Block, Feed, Piece};
use super::tar_write::Stream as _;
use super::write::Sink;
use super::zip_records::{Entry, Facts, descriptor, directory_record, end_records, local_header};
use crate::files::error::FileError;
use crate::files::volume::size_of_file;
use crate::files::walk::Lossy;

/// The feeding side.
pub(super) struct ZipSink(Feed<Entry>);

impl ZipSink {
    pub(super) fn new(feed: Feed<Entry>) -> Self {
        Self(feed)
    }

    fn announce(
        &self,
        name: &[u8],
        stat: &RawStat,
        mode: RawMode,
        plain: Option<Vec<u8>>,
    ) -> io::Result<()> {
        if u16::try_from(name.len()).is_err() {
            return Err(FileError::TooDeep { path: Lossy(&name[..4096]).to_string() }.into_io());
        }
        self.0.mark(Entry {
            name: name.to_vec(),
            mode,
            modified_at_seconds: stat.st_mtime,
            size: size_of_file(stat),
            plain,
        })
    }
}

fn mode_of(kind: FileType, permissions: RawMode) -> RawMode {
    kind.as_raw_mode() | (permissions & 0o777)
}

impl Sink for ZipSink {
    fn folder(&mut self, name: &[u8], stat: &RawStat) -> io::Result<()> {
        let mode = mode_of(FileType::Directory, stat.st_mode);
        self.announce(&[name, b"/"].concat(), stat, mode, Some(Vec::new()))
    }

    fn file(&mut self, name: &[u8], stat: &RawStat, content: &mut dyn Read) -> io::Result<()> {
        self.announce(name, stat, mode_of(FileType::RegularFile, stat.st_mode), None)?;
        self.0.take(size_of_file(stat), content)?;
        self.0.end()
    }

    fn symlink(&mut self, name: &[u8], stat: &RawStat, target: &[u8]) -> io::Result<()> {
        self.announce(name, stat, mode_of(FileType::Symlink, 0o777), Some(target.to_vec()))
    }
}

/// The assembling side.
pub(super) struct ZipFile<W: Write> {
    out: BufWriter<W>,
    written_bytes: u64,
    directory: BufWriter<File>,
    directory_bytes: u64,
    entries: u64,
    open: Option<Open>,
}

/// The entry that is being written.
struct Open {
    entry: Entry,
    offset: u64,
    has_begun: bool,
    facts: Facts,
}

impl<W: Write> ZipFile<W> {
    pub(super) fn new(out: BufWriter<W>, directory: File) -> Self {
        Self {
            out,
            written_bytes: 0,
            directory: BufWriter::with_capacity(1 << 16, directory),
            directory_bytes: 0,
            entries: 0,
            open: None,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written_bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn begin(&mut self, entry: Entry) -> io::Result<()> {
        let offset = self.written_bytes;
        let Some(plain) = &entry.plain else {
            let facts = Facts::default();
            self.open = Some(Open { entry, offset, has_begun: false, facts });
            return Ok(());
        };
        let mut facts = Facts::default();
        facts.crc.update(plain);
        facts.packed_bytes = plain.len() as u64;
        facts.content_bytes = plain.len() as u64;
        self.write(&local_header(&entry, &facts))?;
        self.write(plain)?;
        self.list(&entry, offset, &facts)
    }

    fn block(&mut self, block: &Block) -> io::Result<()> {
        let Some(mut open) = self.open.take() else {
            return Err(io::Error::other("content without an entry"));
        };
        open.facts.add(block);
        if !open.has_begun {
            open.facts.is_behind = !block.is_last;
            open.has_begun = true;
            self.write(&local_header(&open.entry, &open.facts))?;
        }
        self.write(&block.bytes)?;
        if !block.is_last {
            self.open = Some(open);
            return Ok(());
        }
        if open.facts.is_behind {
            self.write(&descriptor(&open.entry, &open.facts))?;
        }
        self.list(&open.entry, open.offset, &open.facts)
    }

    /// Adds an entry to the directory.
    fn list(&mut self, entry: &Entry, offset: u64, facts: &Facts) -> io::Result<()> {
        let record = directory_record(entry, offset, facts);
        self.entries += 1;
        self.directory_bytes += record.len() as u64;
        self.directory.write_all(&record)
    }
}

impl<W: Write> Assembler for ZipFile<W> {
    type Mark = Entry;
    type Output = W;

    fn take(&mut self, piece: Piece<Entry>) -> io::Result<()> {
        match piece {
            Piece::Mark(entry) => self.begin(entry),
            Piece::Block(block) => self.block(&block.wait()?),
        }
    }

    fn finish(mut self) -> io::Result<W> {
        let mut directory = self.directory.into_inner().map_err(io::IntoInnerError::into_error)?;
        directory.seek(SeekFrom::Start(0))?;
        io::copy(&mut directory, &mut self.out)?;
        let end = end_records(self.entries, self.written_bytes, self.directory_bytes);
        self.out.write_all(&end)?;
        self.out.end()
    }
}
