//! Reading the journal's files: from a position to the block that begins there.
//!
//! Only blocking threads call this. It touches no lock and may run beside the writer; where a segment
//! was removed meanwhile, that shows as a gap.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::block::{BLOCK_BYTES, Block, Position};
use super::journal::{View, segment_path};
use super::record::{HEADER_BYTES, Record};

const READ_AHEAD_BYTES: usize = 64 * 1024;

/// The records of a segment, one after the other.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    file: &'a File,
    /// Where `buffer` begins in the file.
    base: u64,
    buffer: Vec<u8>,
    /// Where the next record begins in `buffer`.
    at: usize,
    /// Where the file ends, as far as this scan is concerned.
    limit: u64,
}

impl<'a> Scan<'a> {
    pub(super) fn new(file: &'a File, offset: u64, limit: u64) -> Self {
        Self { file, base: offset, buffer: Vec::new(), at: 0, limit }
    }

    /// Where the next record begins in the file.
    pub(super) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// The next record and its text; `None` at the end, or where no whole record stands.
    pub(super) fn next(&mut self) -> io::Result<Option<(Record, &[u8])>> {
        if !self.fill(HEADER_BYTES)? {
            return Ok(None);
        }
        let Some(record) = Record::parse(&self.buffer[self.at..]) else { return Ok(None) };
        if !self.fill(record.whole_length())? {
            return Ok(None);
        }
        let text_at = self.at + HEADER_BYTES;
        self.at += record.whole_length();
        Ok(Some((record, &self.buffer[text_at..text_at + record.text_length()])))
    }

    /// Has at least so many bytes from the next record on in the buffer; false if they are not there.
    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        let have = self.buffer.len() - self.at;
        if have >= wanted {
            return Ok(true);
        }
        let left = usize::try_from(self.limit.saturating_sub(self.offset())).unwrap_or(usize::MAX);
        if left < wanted {
            return Ok(false);
        }
        self.base = self.offset();
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.resize(wanted.max(READ_AHEAD_BYTES).min(left), 0);
        self.file.read_exact_at(&mut self.buffer[have..], self.base + have as u64)?;
        Ok(true)
    }
}

/// A place in a segment file, kept by a reader so that it goes on where it stopped.
#[derive(Clone, Debug)]
pub(super) struct Place {
    file: Arc<File>,
    segment: u64,
    offset: u64,
    at: Position,
}

/// What the journal has at a position.
#[derive(Debug)]
pub(super) enum Stored {
    Block(Block, Place),
    /// Nothing before that position.
    Gap(Position),
    /// Nothing from there on.
    End,
}

/// The block at `from`.
pub(super) fn block_at(view: &View, from: Position, place: Option<Place>) -> io::Result<Stored> {
    let mut place = match place.filter(|place| place.at == from) {
        Some(place) => place,
        None => match first_place(view, from)? {
            Some(place) => place,
            None => return Ok(Stored::End),
        },
    };
    loop {
        if let Some(stored) = block_in(view, from, &place)? {
            return Ok(stored);
        }
        match open_first(view, |first_line| first_line > place.segment)? {
            Some(next) => place = next,
            None => return Ok(Stored::End),
        }
    }
}

/// The beginning of the segment that holds `from`, or of the first one where that is gone.
pub(super) fn first_place(view: &View, from: Position) -> io::Result<Option<Place>> {
    let after = view.segments.partition_point(|segment| segment.first_line <= from.line);
    let first = view.segments.get(after.saturating_sub(1)).map_or(0, |segment| segment.first_line);
    open_first(view, |first_line| first_line >= first)
}

/// The beginning of the first wanted segment that is still there.
fn open_first(view: &View, wanted: impl Fn(u64) -> bool) -> io::Result<Option<Place>> {
    for segment in view.segments.iter().filter(|segment| wanted(segment.first_line)) {
        let at = Position::line(segment.first_line);
        match File::open(segment_path(&view.dir, segment.first_line)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            file => {
                let file = Arc::new(file?);
                return Ok(Some(Place { file, segment: segment.first_line, offset: 0, at }));
            }
        }
    }
    Ok(None)
}

/// What one segment has at `from`; `None` if it ends before.
fn block_in(view: &View, from: Position, place: &Place) -> io::Result<Option<Stored>> {
    let mut scan = Scan::new(&place.file, place.offset, length_of(view, place.segment));
    let mut block: Option<Growing> = None;
    let mut offset = scan.offset();
    while let Some((record, text)) = scan.next()? {
        if let Some(block) = &mut block {
            if !block.grow(&record, text) {
                break;
            }
        } else if record.end() > from && record.length > 0 {
            // A line that was closed without text ends where no block does.
            if from.lines_until(record.start) > 0 {
                return Ok(Some(Stored::Gap(record.start)));
            }
            block = Some(Growing { first: record, end: record.end(), bytes: text.to_vec() });
        }
        offset = scan.offset();
    }
    Ok(block.map(|block| {
        let at = block.end;
        let place = Place { offset, at, ..place.clone() };
        Stored::Block(block.finish(from), place)
    }))
}

fn length_of(view: &View, first_line: u64) -> u64 {
    let found = view.segments.iter().find(|segment| segment.first_line == first_line);
    found.map_or(0, |segment| segment.length)
}

/// Records that become one block.
struct Growing {
    first: Record,
    end: Position,
    bytes: Vec<u8>,
}

impl Growing {
    fn grow(&mut self, next: &Record, text: &[u8]) -> bool {
        let alike = self.first.run == next.run && self.first.lines > 0 && next.lines > 0;
        let fits = self.bytes.len() + text.len() <= BLOCK_BYTES;
        if !alike || !fits || next.start != self.end {
            return false;
        }
        self.bytes.extend_from_slice(text);
        self.end = next.end();
        true
    }

    fn finish(self, from: Position) -> Block {
        let Self { first, end, bytes } = self;
        let block = Block::new(first.start, end, first.run, bytes.into());
        if from > first.start { block.rest(from) } else { block }
    }
}

/// Calls `visit` for each record from the segment of `from` on.
pub(super) fn each_record(
    view: &View,
    from: Position,
    mut visit: impl FnMut(&Record, &[u8]),
) -> io::Result<()> {
    let mut place = first_place(view, from)?;
    while let Some(Place { file, segment, .. }) = place {
        let mut scan = Scan::new(&file, 0, length_of(view, segment));
        while let Some((record, text)) = scan.next()? {
            if record.end() > from {
                visit(&record, text);
            }
        }
        place = open_first(view, |first_line| first_line > segment)?;
    }
    Ok(())
}
