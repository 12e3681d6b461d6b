//! Compression in blocks on several threads, put together again in their order.
//!
//! One thread feeds, some compress, the caller assembles. Blocks are handed on in order as promises,
//! and at most a few are under way, so memory stays the same however large the files are. A deflate
//! block begins with the end of the one before it as its dictionary, which is what keeps the result as
//! small as if it had been compressed in one go.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::{Compress, Compression, FlushCompress, Status};

use crate::files::threads::{Shared, join, spawn, workers};

/// What the levels of gzip's own program are here, measured by how small the result is. The library's
/// are faster, and a little larger.
const DEFLATE_LEVELS: [u32; 10] = [0, 2, 3, 4, 5, 6, 7, 7, 9, 9];
/// As far as deflate looks back.
const WINDOW_BYTES: usize = 32 * 1024;
/// Blocks under way for each worker.
const BLOCKS_AHEAD: usize = 4;

/// How blocks are compressed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Codec {
    /// Raw deflate; the blocks of one stream follow each other within it. Where `may_be_plain`, a
    /// stream of one block that would not become smaller stays as it is.
    Deflate { level: u32, may_be_plain: bool },
    /// Each block is a whole bzip2 stream, which all of its readers take one after the other.
    Bzip2 { level: u32 },
}

impl Codec {
    fn block_bytes(self) -> usize {
        match self {
            Self::Deflate { .. } => 128 * 1024,
            // A stream that is one block of bzip2's own, less what its first step may add.
            Self::Bzip2 { level } => level as usize * 100_000 - 1000,
        }
    }

    fn window_bytes(self) -> usize {
        match self {
            Self::Deflate { .. } => WINDOW_BYTES,
            Self::Bzip2 { .. } => 0,
        }
    }
}

/// A block of content on its way to a compressor.
struct Job {
    content: Vec<u8>,
    /// The content right before it in the same stream.
    dictionary: Vec<u8>,
    is_first: bool,
    is_last: bool,
    done: SyncSender<io::Result<Block>>,
}

/// A compressed block.
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    /// The checksum and length of its content.
    pub(super) crc: crc32fast::Hasher,
    pub(super) content_bytes: u64,
    /// Whether `bytes` is the content itself, because compression made it no smaller. Only where a
    /// stream is this one block.
    pub(super) is_plain: bool,
    pub(super) is_last: bool,
}

/// What the assembler gets, in order: marks that the feeding side has set, and blocks.
pub(super) enum Piece<M> {
    Mark(M),
    Block(Promise),
}

/// A block that may not be compressed yet.
pub(super) struct Promise(Receiver<io::Result<Block>>);

impl Promise {
    pub(super) fn wait(self) -> io::Result<Block> {
        self.0.recv().map_err(|_| gone())?
    }
}

/// Puts the pieces together.
pub(super) trait Assembler {
    type Mark: Send;
    type Output;
    fn take(&mut self, piece: Piece<Self::Mark>) -> io::Result<()>;
    fn finish(self) -> io::Result<Self::Output>;
}

/// The other side ended first; its own error is the one that counts.
fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// Runs `feed` on a thread of its own, whose content goes through compressors to `assembler`.
pub(super) fn in_blocks<A: Assembler, T: Send>(
    codec: Codec,
    mut assembler: A,
    feed: impl FnOnce(Feed<A::Mark>) -> io::Result<T> + Send,
) -> io::Result<(T, A::Output)> {
    let workers = workers();
    let (jobs, queue) = sync_channel::<Job>(workers);
    let (pieces, ordered) = sync_channel(workers * BLOCKS_AHEAD);
    let queue = Shared::new(queue);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let queue = queue.clone();
            spawn(scope, "pack-compress", move || compress_all(codec, &queue))?;
        }
        drop(queue);
        let feeder = spawn(scope, "pack-read", move || {
            feed(Feed { codec, jobs, pieces, content: Vec::new(), dictionary: None })
        })?;
        let mut outcome = Ok(());
        for piece in &ordered {
            outcome = assembler.take(piece);
            if outcome.is_err() {
                break;
            }
        }
        // The feeder shall not wait for room that never comes.
        drop(ordered);
        let fed = join(feeder);
        outcome?;
        Ok((fed?, assembler.finish()?))
    })
}

fn compress_all(codec: Codec, queue: &Shared<Job>) {
    let mut compressor = Compressor::new(codec);
    while let Some(job) = queue.next() {
        let block = compressor.block(job.content, &job.dictionary, (job.is_first, job.is_last));
        // Nobody waits any more once another block has failed.
        job.done.send(block).ok();
    }
}

enum Compressor {
    Deflate { deflate: Compress, may_be_plain: bool },
    Bzip2(bzip2::Compression),
}

impl Compressor {
    fn new(codec: Codec) -> Self {
        match codec {
            Codec::Deflate { level, may_be_plain } => {
                let level = DEFLATE_LEVELS.get(level as usize).copied().unwrap_or(9);
                let deflate = Compress::new(Compression::new(level), false);
                Self::Deflate { deflate, may_be_plain }
            }
            Codec::Bzip2 { level } => Self::Bzip2(bzip2::Compression::new(level)),
        }
    }

    fn block(
        &mut self,
        content: Vec<u8>,
        dictionary: &[u8],
        (is_first, is_last): (bool, bool),
    ) -> io::Result<Block> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&content);
        let content_bytes = content.len() as u64;
        let (bytes, may_be_plain) = match self {
            Self::Deflate { deflate, may_be_plain } => {
                (deflated(deflate, &content, dictionary, is_last)?, *may_be_plain)
            }
            Self::Bzip2(level) => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), *level);
                encoder.write_all(&content)?;
                (encoder.finish()?, false)
            }
        };
        let is_plain = may_be_plain && is_first && is_last && bytes.len() >= content.len();
        let bytes = if is_plain { content } else { bytes };
        Ok(Block { bytes, crc, content_bytes, is_plain, is_last })
    }
}

/// Deflates one block. All but the last end on a byte's border, so that they can be strung together.
fn deflated(
    deflate: &mut Compress,
    content: &[u8],
    dictionary: &[u8],
    is_last: bool,
) -> io::Result<Vec<u8>> {
    deflate.reset();
    if !dictionary.is_empty() {
        deflate.set_dictionary(dictionary).map_err(io::Error::other)?;
    }
    let flush = if is_last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut bytes = Vec::with_capacity(content.len() / 2 + 1024);
    loop {
        let read = usize::try_from(deflate.total_in()).unwrap_or(usize::MAX);
        let rest = content.get(read..).unwrap_or_default();
        let status = deflate.compress_vec(rest, &mut bytes, flush).map_err(io::Error::other)?;
        let is_whole = match flush {
            FlushCompress::Finish => status == Status::StreamEnd,
            // Room that is left says that nothing is held back.
            _ => bytes.len() < bytes.capacity(),
        };
        if is_whole {
            return Ok(bytes);
        }
        bytes.reserve(content.len() / 2 + 1024);
    }
}

/// The feeding side: takes content, cuts it into blocks.
pub(super) struct Feed<M> {
    codec: Codec,
    jobs: SyncSender<Job>,
    pieces: SyncSender<Piece<M>>,
    content: Vec<u8>,
    /// The end of the stream's last block; none at its beginning.
    dictionary: Option<Vec<u8>>,
}

impl<M> Feed<M> {
    /// Sets a mark between streams.
    pub(super) fn mark(&self, mark: M) -> io::Result<()> {
        self.pieces.send(Piece::Mark(mark)).map_err(|_| gone())
    }

    /// Takes exactly so many bytes of content.
    pub(super) fn take(&mut self, mut bytes: u64, content: &mut dyn Read) -> io::Result<()> {
        while bytes > 0 {
            if self.content.len() == self.codec.block_bytes() {
                self.send(false)?;
            }
            let filled = self.content.len();
            let room = self.codec.block_bytes() - filled;
            let want = usize::try_from(bytes).map_or(room, |bytes| bytes.min(room));
            self.content.resize(filled + want, 0);
            content.read_exact(&mut self.content[filled..])?;
            bytes -= want as u64;
        }
        Ok(())
    }

    /// Ends a stream; what comes next begins another.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.send(true)?;
        self.dictionary = None;
        Ok(())
    }

    fn send(&mut self, is_last: bool) -> io::Result<()> {
        let content = std::mem::take(&mut self.content);
        let window = content.len().saturating_sub(self.codec.window_bytes());
        let next = if is_last { Vec::new() } else { content[window..].to_vec() };
        let is_first = self.dictionary.is_none();
        let dictionary = self.dictionary.replace(next).unwrap_or_default();
        let (done, promise) = sync_channel(1);
        self.jobs.send(Job { content, dictionary, is_first, is_last, done }).map_err(|_| gone())?;
        self.pieces.send(Piece::Block(Promise(promise))).map_err(|_| gone())
    }
}

impl<M> Write for Feed<M> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes.len() as u64, &mut &*bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
