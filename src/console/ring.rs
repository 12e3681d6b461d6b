//! The newest part of a console, in memory.
//!
//! Text is copied once, into an allocation that the following small pieces share; from then on blocks
//! are views of it. The newest lines lie in an open block that still grows. It is sealed when it is
//! full, when a piece of a line follows, or when a reader wants it: all readers then get that same
//! block. The ring is bounded by bytes; what falls out of it is in the journal.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;

use super::block::{BLOCK_BYTES, Block, Position};
use crate::domain::ids::RunId;

/// Small pieces share allocations of this size, so that a quiet console costs little.
const ARENA_BYTES: usize = BLOCK_BYTES;
/// What a block costs beside its text.
const BLOCK_OVERHEAD_BYTES: usize = 256;

#[derive(Debug)]
pub(super) struct Ring {
    sealed: VecDeque<Arc<Block>>,
    cost: usize,
    capacity: usize,
    open: BytesMut,
    open_start: Position,
    open_run: RunId,
    end: Position,
    blocks_sealed: u64,
}

/// What the ring has for a reader at some position.
#[derive(Debug)]
pub(super) enum Found {
    Block(Arc<Block>),
    /// Lines that are not sealed yet.
    Open,
    /// Nothing: the reader is at the end.
    End,
    /// The reader is behind all that is in here.
    Behind,
}

impl Ring {
    pub(super) fn new(end: Position, capacity: usize) -> Self {
        Self {
            sealed: VecDeque::new(),
            cost: 0,
            capacity,
            open: BytesMut::new(),
            open_start: end,
            open_run: RunId::default(),
            end,
            blocks_sealed: 0,
        }
    }

    /// Where the next byte will lie.
    pub(super) fn end(&self) -> Position {
        self.end
    }

    /// The first position that is in here.
    pub(super) fn start(&self) -> Position {
        match self.sealed.front() {
            Some(block) => block.start,
            None if self.open.is_empty() => self.end,
            None => self.open_start,
        }
    }

    /// How many blocks there have been.
    pub(super) fn blocks_sealed(&self) -> u64 {
        self.blocks_sealed
    }

    pub(super) fn has_open_lines(&self) -> bool {
        !self.open.is_empty()
    }

    /// Appends whole lines, which may wait in the open block for more.
    pub(super) fn append_lines(&mut self, run: RunId, end: Position, text: [&[u8]; 2]) {
        let length = text[0].len() + text[1].len();
        let room = (self.open.capacity() - self.open.len()).min(BLOCK_BYTES);
        if run != self.open_run || length > room {
            self.seal();
        }
        self.extend_open(run, end, text);
        if self.open.len() >= BLOCK_BYTES {
            self.seal();
        }
    }

    /// Appends a piece of one line, which is a block of its own.
    pub(super) fn append_piece(&mut self, run: RunId, end: Position, text: &[u8]) {
        self.seal();
        self.extend_open(run, end, [text, b""]);
        self.seal();
    }

    fn extend_open(&mut self, run: RunId, end: Position, text: [&[u8]; 2]) {
        let length = text[0].len() + text[1].len();
        if self.open.is_empty() {
            if self.open.capacity() < length {
                self.open = BytesMut::with_capacity(length.max(ARENA_BYTES));
            }
            self.open_start = self.end;
            self.open_run = run;
        }
        text.iter().for_each(|part| self.open.extend_from_slice(part));
        self.end = end;
    }

    /// Ends the line that is forming at the end, without text.
    pub(super) fn close_line(&mut self) {
        self.seal();
        self.end = Position::line(self.end.line + 1);
    }

    /// Makes a block of the open lines.
    pub(super) fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let bytes = self.open.split().freeze();
        let block = Block::new(self.open_start, self.end, self.open_run, bytes);
        self.cost += Self::cost_of(&block);
        self.blocks_sealed += 1;
        self.sealed.push_back(Arc::new(block));
        self.evict(self.capacity);
    }

    /// The serialised form counts as well, whether or not it is ever made.
    fn cost_of(block: &Block) -> usize {
        2 * block.len() + BLOCK_OVERHEAD_BYTES
    }

    fn evict(&mut self, capacity: usize) {
        while self.cost > capacity
            && let Some(block) = self.sealed.pop_front()
        {
            self.cost -= Self::cost_of(&block);
        }
    }

    /// Gives back all memory, for the journal has everything.
    pub(super) fn release(&mut self) {
        self.seal();
        self.evict(0);
        self.sealed = VecDeque::new();
        self.open = BytesMut::new();
    }

    pub(super) fn is_released(&self) -> bool {
        self.sealed.capacity() == 0 && self.open.capacity() == 0
    }

    pub(super) fn find(&self, from: Position) -> Found {
        if from >= self.end {
            return Found::End;
        }
        if from < self.start() {
            return Found::Behind;
        }
        // Where a line was closed without text, the reader stands between two blocks: then the next
        // one is the one to go on with.
        let at = self.sealed.partition_point(|block| block.end <= from);
        match self.sealed.get(at) {
            Some(block) => Found::Block(block.since(from)),
            None if self.open.is_empty() => Found::End,
            None => Found::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(capacity: usize) -> Ring {
        Ring::new(Position::line(1), capacity)
    }

    fn push_line(ring: &mut Ring, text: &str) {
        let end = Position::line(ring.end().line + 1);
        ring.append_lines(RunId(1), end, [text.as_bytes(), b"\n"]);
    }

    fn block_at(ring: &Ring, line: u64) -> Arc<Block> {
        match ring.find(Position::line(line)) {
            Found::Block(block) => block,
            other => panic!("no block at {line}: {other:?}"),
        }
    }

    #[test]
    fn open_lines_grow_until_a_reader_has_them_sealed() {
        let mut ring = ring(1 << 20);
        push_line(&mut ring, "one");
        push_line(&mut ring, "two");
        assert!(matches!(ring.find(Position::line(1)), Found::Open));
        ring.seal();
        push_line(&mut ring, "three");
        assert_eq!(block_at(&ring, 1).text(), "one\ntwo\n");
        assert!(Arc::ptr_eq(&block_at(&ring, 1), &block_at(&ring, 1)));
        assert_eq!(block_at(&ring, 2).text(), "two\n");
        assert!(matches!(ring.find(Position::line(3)), Found::Open));
        assert!(matches!(ring.find(Position::line(4)), Found::End));
    }

    #[test]
    fn the_oldest_fall_out_when_the_bytes_are_used_up() {
        let mut ring = ring(64 * 1024);
        let text = "x".repeat(1000);
        for _ in 0..1000 {
            push_line(&mut ring, &text);
        }
        assert!(ring.cost <= 64 * 1024, "{}", ring.cost);
        let first = ring.start().line;
        assert!((960..1000).contains(&first), "{first}");
        assert!(matches!(ring.find(Position::line(first - 1)), Found::Behind));
        assert_eq!(block_at(&ring, first).first_seq(), first);
    }

    #[test]
    fn a_released_ring_is_empty_and_carries_on() {
        let mut ring = ring(64 * 1024);
        push_line(&mut ring, "one");
        ring.release();
        assert!(ring.is_released());
        assert!(matches!(ring.find(Position::line(1)), Found::Behind));
        push_line(&mut ring, "two");
        ring.seal();
        assert_eq!(block_at(&ring, 2).text(), "two\n");
    }
}
