//! The console on disk: numbered segment files, the oldest of which make room for the newest.
//!
//! Only blocking threads call this. One writer appends; readers work on a [`View`] and open the files
//! themselves, so that neither waits for the other. Written text survives the end of this process, not
//! necessarily that of the machine: nothing is synced, because a console is not worth a disk's time.
//! What a crash left half-written is cut off at the next open. When the disk refuses a write, those
//! lines are lost to the journal and the next ones are tried again; that their numbers were given out is
//! kept in a small file whose room was taken before, so that a full disk has it too.
//!
//! A segment is named after its first line and begins at the beginning of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::block::Position;
use super::read::Scan;
use super::record::{HEADER_BYTES, Record};

const EXTENSION: &str = "journal";
const GIVEN_OUT: &str = "given-out";
/// The journal is cut into so many segments; the oldest goes as a whole.
const SEGMENTS: u64 = 8;
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;
const SEGMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Journal {
    dir: Arc<Path>,
    capacity: u64,
    segments: Vec<Segment>,
    active: Option<File>,
    /// Takes the last number that was given out and is in no segment.
    given_out: Option<File>,
    /// Where the last record ends.
    end: Position,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) first_line: u64,
    pub(super) length: u64,
}

/// What of the journal can be read at some moment.
#[derive(Debug)]
pub(super) struct View {
    pub(super) dir: Arc<Path>,
    pub(super) segments: Vec<Segment>,
    pub(super) end: Position,
}

/// The console's folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the console journal in {}", dir.display())]
pub(crate) struct OpenError {
    dir: PathBuf,
    source: io::Error,
}

/// The disk did not take what was to be written.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) lost_lines: u64,
    pub(super) source: io::Error,
}

impl Journal {
    /// Finds the end of the journal and its last record. Reads two places of the newest segment,
    /// unless a crash left that torn.
    pub(super) fn open(dir: &Path, capacity: u64) -> Result<(Self, Option<Record>), OpenError> {
        let mut journal = Self {
            dir: dir.into(),
            capacity,
            segments: Vec::new(),
            active: None,
            given_out: None,
            end: Position::line(1),
        };
        let opened = journal.load().and_then(|last| journal.load_given_out().map(|()| last));
        let last = opened.map_err(|source| OpenError { dir: dir.to_owned(), source })?;
        Ok((journal, last))
    }

    fn load(&mut self) -> io::Result<Option<Record>> {
        self.segments = list(&self.dir)?;
        for index in (0..self.segments.len()).rev() {
            let is_newest = index + 1 == self.segments.len();
            let newest = &mut self.segments[index];
            let path = segment_path(&self.dir, newest.first_line);
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let (last, length) = match last_record(&file, newest.length)? {
                Some(last) => (Some(last), newest.length),
                None => last_record_of_torn(&file, newest.length)?,
            };
            if length < newest.length {
                file.set_len(length)?;
                newest.length = length;
            }
            if let Some(last) = last {
                self.end = self.end.max(last.end());
                return Ok(Some(last));
            }
            // Nothing whole is in it, but its name says which numbers have been given out.
            self.end = self.end.max(Position::line(newest.first_line));
            if !is_newest {
                fs::remove_file(&path)?;
                self.segments.remove(index);
            }
        }
        Ok(None)
    }

    fn load_given_out(&mut self) -> io::Result<()> {
        let opened = OpenOptions::new().read(true).write(true).open(self.dir.join(GIVEN_OUT));
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let mut line = [0; 8];
        // One that a crash left empty says nothing.
        if file.read_at(&mut line, 0)? == line.len() {
            self.end = self.end.max(Position::line(u64::from_le_bytes(line)));
        }
        self.given_out = Some(file);
        Ok(())
    }

    /// Notes that all numbers before this line's have been given out, although the disk takes no lines.
    pub(super) fn note_given_out(&self, next: Position) {
        let line = if next.offset > 0 { next.line + 1 } else { next.line };
        if let Some(Err(error)) =
            self.given_out.as_ref().map(|file| file.write_all_at(&line.to_le_bytes(), 0))
        {
            tracing::warn!(dir = %self.dir.display(), %error, "line numbers may be given out twice");
        }
    }

    pub(super) fn end(&self) -> Position {
        self.end
    }

    pub(super) fn view(&self) -> View {
        View { dir: Arc::clone(&self.dir), segments: self.segments.clone(), end: self.end }
    }

    /// Appends encoded records. Those that the disk does not take are never offered again.
    pub(super) fn append(&mut self, mut records: &[u8]) -> Result<(), Refused> {
        while let Some(first) = Record::parse(records) {
            let (length, end) = self.fitting(records);
            let result = match length {
                0 => self.roll(first.start.line),
                length => self.write(&records[..length]),
            };
            if let Err(source) = result {
                return Err(Refused { lost_lines: count_lines(records), source });
            }
            if length > 0 {
                self.end = end;
            }
            records = &records[length..];
        }
        Ok(())
    }

    /// How many bytes of whole records go into the newest segment, and where they end.
    fn fitting(&self, records: &[u8]) -> (usize, Position) {
        let (mut fits, mut end) = (0, self.end);
        let Some(newest) = self.segments.last() else { return (fits, end) };
        let limit = self.segment_bytes();
        while let Some(record) = Record::parse(&records[fits..]) {
            let after = fits + record.whole_length();
            let full = newest.length + after as u64 > limit && newest.length + fits as u64 > 0;
            if full && record.start.offset == 0 && record.start.line > newest.first_line {
                break;
            }
            (fits, end) = (after, record.end());
        }
        (fits, end)
    }

    fn segment_bytes(&self) -> u64 {
        (self.capacity / SEGMENTS).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
    }

    fn roll(&mut self, first_line: u64) -> io::Result<()> {
        let total = |segments: &[Segment]| segments.iter().map(|s| s.length).sum::<u64>();
        while !self.segments.is_empty()
            && total(&self.segments) + self.segment_bytes() > self.capacity
        {
            let oldest = segment_path(&self.dir, self.segments[0].first_line);
            match fs::remove_file(oldest) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.segments.remove(0),
            };
        }
        fs::create_dir_all(&self.dir)?;
        if self.given_out.is_none() {
            let path = self.dir.join(GIVEN_OUT);
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            file.write_all_at(&0_u64.to_le_bytes(), 0)?;
            self.given_out = Some(file);
        }
        self.active = Some(open_segment(&self.dir, first_line, true)?);
        self.segments.push(Segment { first_line, length: 0 });
        Ok(())
    }

    /// Removes what was last written to before `oldest`. The newest segment stays unless `all` may go:
    /// then an empty one keeps the place of the numbers.
    pub(super) fn expire(&mut self, oldest: SystemTime, all: bool) -> io::Result<()> {
        while let Some(first) = self.segments.first() {
            let path = segment_path(&self.dir, first.first_line);
            let is_newest = self.segments.len() == 1;
            let stays = is_newest && (!all || self.end.offset > 0 || first.length == 0);
            if stays || fs::metadata(&path)?.modified()? >= oldest {
                break;
            }
            if is_newest {
                self.active = Some(open_segment(&self.dir, self.end.line, true)?);
                self.segments.push(Segment { first_line: self.end.line, length: 0 });
            }
            fs::remove_file(&path)?;
            self.segments.remove(0);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let newest = self.segments.last_mut().expect("invariant: records fit into a segment");
        let mut file = match self.active.take() {
            Some(file) => file,
            None => {
                let file = open_segment(&self.dir, newest.first_line, false)?;
                // A write that failed may have left a part, behind which nothing could be read.
                file.set_len(newest.length)?;
                file
            }
        };
        file.write_all(bytes)?;
        newest.length += bytes.len() as u64;
        self.active = Some(file);
        Ok(())
    }

    /// From now on the disk takes nothing.
    #[cfg(test)]
    pub(super) fn fill_disk(&mut self) {
        self.active = OpenOptions::new().write(true).open("/dev/full").ok();
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn count_lines(mut records: &[u8]) -> u64 {
    let mut lines = 0;
    while let Some(record) = Record::parse(records) {
        lines += u64::from(record.lines);
        records = &records[record.whole_length()..];
    }
    lines
}

fn open_segment(dir: &Path, first_line: u64, new: bool) -> io::Result<File> {
    let path = segment_path(dir, first_line);
    OpenOptions::new().append(true).create(new).truncate(false).mode(0o600).open(path)
}

pub(super) fn segment_path(dir: &Path, first_line: u64) -> PathBuf {
    dir.join(format!("{first_line:020}.{EXTENSION}"))
}

fn list(dir: &Path) -> io::Result<Vec<Segment>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut segments = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = PathBuf::from(entry.file_name());
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if let Some(first_line) = stem.and_then(|stem| stem.parse().ok())
            && path.extension().is_some_and(|extension| extension == EXTENSION)
        {
            segments.push(Segment { first_line, length: entry.metadata()?.len() });
        }
    }
    segments.sort_by_key(|segment| segment.first_line);
    Ok(segments)
}

/// The last record, found from the end; `None` where the file does not end with one.
fn last_record(file: &File, length: u64) -> io::Result<Option<Record>> {
    let mut footer = [0; 4];
    let Some(footer_at) = length.checked_sub(4) else { return Ok(None) };
    file.read_exact_at(&mut footer, footer_at)?;
    let whole = Record::parse_footer(footer);
    let Some(at) = length.checked_sub(whole) else { return Ok(None) };
    let mut header = [0; HEADER_BYTES];
    if whole < header.len() as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut header, at)?;
    Ok(Record::parse(&header).filter(|record| record.whole_length() as u64 == whole))
}

/// The last whole record, found from the beginning, and where it ends in the file.
fn last_record_of_torn(file: &File, length: u64) -> io::Result<(Option<Record>, u64)> {
    let mut scan = Scan::new(file, 0, length);
    let mut last = None;
    while let Some((record, _)) = scan.next()? {
        last = Some(record);
    }
    Ok((last, scan.offset()))
}
