//! A request's body on its way to a writer: as it comes, and through a short queue to a thread that blocks.
//!
//! Used by whatever takes content in: plain writes, resumable uploads, forms, pulls. Memory is for a few
//! chunks. A sender that stands still or brings next to nothing is given up, because it holds a turn that
//! others wait for; the time that the writer takes is not counted against it. A body that ends before its
//! time reaches the writer as an error, never as an end.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Buf, Bytes};
use http_body_util::BodyExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::files::Progress;

/// Chunks that have arrived and are not yet written, of at most some hundred KB each.
const QUEUED_CHUNKS: usize = 4;
/// How long a sender may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What a sender has to send, on average over each [`SILENCE_MAX`] that it was waited for.
const LEAST_BYTES_PER_S: u64 = 100;

/// A body as it comes.
pub(super) struct Arriving {
    body: Body,
    /// Since it was last looked at how fast it comes.
    waited: Duration,
    bytes: u64,
}

impl Arriving {
    pub(super) fn new(body: Body) -> Self {
        Self { body, waited: Duration::ZERO, bytes: 0 }
    }

    /// The next piece, or `None` at the end. Fails where it breaks off, stands still or is too slow.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let began = Instant::now();
            let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await;
            self.waited += began.elapsed();
            let Some(frame) = frame.map_err(|_| io::ErrorKind::TimedOut)? else { return Ok(None) };
            // What is no data are trailers.
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                self.keep_pace(data.len())?;
                return Ok(Some(data));
            }
        }
    }

    fn keep_pace(&mut self, more: usize) -> io::Result<()> {
        self.bytes += more as u64;
        if self.waited < SILENCE_MAX {
            return Ok(());
        }
        let least = LEAST_BYTES_PER_S * SILENCE_MAX.as_secs();
        let bytes = std::mem::take(&mut self.bytes);
        self.waited = Duration::ZERO;
        if bytes < least { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// When a body is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// While the writer gets ready, who then need not wait for it.
    AtOnce,
    /// Once the writer asks for it: what is refused before need not be sent at all.
    WhenWanted,
}

impl Begin {
    /// Waits for the writer where the client waits for `100 Continue`.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(header::EXPECT) { Self::WhenWanted } else { Self::AtOnce }
    }
}

/// The end of the queue where the body arrives.
pub(super) struct Sender {
    chunks: mpsc::Sender<Arrived>,
    wanted: oneshot::Receiver<()>,
    begin: Begin,
}

/// The end where a blocking writer reads.
pub(super) struct Incoming {
    chunks: mpsc::Receiver<Arrived>,
    wanted: Option<oneshot::Sender<()>>,
    current: Bytes,
    is_complete: bool,
    pub(super) progress: Progress,
}

enum Arrived {
    Chunk(Bytes),
    /// The body is complete. A queue that closes without it means that the sender is gone.
    End,
}

pub(super) fn bridge(progress: Progress, begin: Begin) -> (Sender, Incoming) {
    let (into, chunks) = mpsc::channel(QUEUED_CHUNKS);
    let (want, wanted) = oneshot::channel();
    let current = Bytes::new();
    let incoming = Incoming { chunks, wanted: Some(want), current, is_complete: false, progress };
    (Sender { chunks: into, wanted, begin }, incoming)
}

impl Sender {
    /// Sends the body to its end, or as far as it comes.
    pub(super) async fn send_all(self, body: Body) {
        if self.begin == Begin::WhenWanted && self.wanted.await.is_err() {
            return;
        }
        let mut body = Arriving::new(body);
        loop {
            let arrived = match body.next().await {
                Ok(Some(data)) => Arrived::Chunk(data),
                Ok(None) => Arrived::End,
                // The queue closes without an end.
                Err(_) => return,
            };
            let is_last = matches!(arrived, Arrived::End);
            if self.chunks.send(arrived).await.is_err() || is_last {
                return;
            }
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(wanted) = self.wanted.take() {
            // A request that is gone already shows in the queue.
            wanted.send(()).ok();
        }
        while self.current.is_empty() && !self.is_complete {
            match self.chunks.blocking_recv() {
                Some(Arrived::Chunk(chunk)) => self.current = chunk,
                Some(Arrived::End) => self.is_complete = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.progress.spend(count as u64).map_err(io::Error::other)?;
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn received(chunks: Vec<Result<&'static str, io::Error>>) -> io::Result<String> {
        let (sender, mut incoming) = bridge(Progress::default(), Begin::WhenWanted);
        let reader = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            incoming.read_to_string(&mut text).map(|_| text)
        });
        sender.send_all(Body::from_stream(futures_util::stream::iter(chunks))).await;
        reader.await.unwrap()
    }

    #[tokio::test]
    async fn a_body_arrives_whole_or_as_an_error() {
        let many = (0..100).map(|_| Ok("ab")).collect();
        assert_eq!(received(many).await.unwrap(), "ab".repeat(100));
        assert_eq!(received(Vec::new()).await.unwrap(), "");
        let broken = vec![Ok("ab"), Err(io::Error::other("gone"))];
        assert_eq!(received(broken).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_falls_silent_is_given_up() {
        let (sender, mut incoming) = bridge(Progress::default(), Begin::AtOnce);
        // A thread of its own: tokio's clock stands still while a blocking task of its runs.
        let reader = std::thread::spawn(move || incoming.read(&mut [0; 8]));
        let silent = futures_util::stream::pending::<Result<Bytes, io::Error>>();
        sender.send_all(Body::from_stream(silent)).await;
        assert_eq!(reader.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_only_ever_says_a_little_is_given_up() {
        let trickle = |bytes: &'static str| {
            let next = move |left: u32| async move {
                tokio::time::sleep(Duration::from_secs(20)).await;
                let left = left.checked_sub(1)?;
                Some((Ok::<_, io::Error>(Bytes::from_static(bytes.as_bytes())), left))
            };
            Body::from_stream(futures_util::stream::unfold(10, next))
        };
        let large: &'static str = "x".repeat(3000).leak();
        for (bytes, expected) in [("x", Err(io::ErrorKind::UnexpectedEof)), (large, Ok(30_000))] {
            let (sender, mut incoming) = bridge(Progress::default(), Begin::AtOnce);
            let reader = std::thread::spawn(move || io::copy(&mut incoming, &mut io::sink()));
            sender.send_all(trickle(bytes)).await;
            assert_eq!(reader.join().unwrap().map_err(|error| error.kind()), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_takes_its_time_is_not_the_senders_fault() {
        let pieces = futures_util::stream::iter((0..10).map(|_| Ok::<_, io::Error>("x")));
        let mut body = Arriving::new(Body::from_stream(pieces));
        let mut count = 0;
        while body.next().await.expect("it is all there").is_some() {
            tokio::time::sleep(SILENCE_MAX).await;
            count += 1;
        }
        assert_eq!(count, 10);
    }

    #[tokio::test]
    async fn nothing_is_taken_of_a_body_that_nobody_wants() {
        let (sender, incoming) = bridge(Progress::default(), Begin::WhenWanted);
        drop(incoming);
        let silent = futures_util::stream::pending::<Result<Bytes, io::Error>>();
        sender.send_all(Body::from_stream(silent)).await;
    }
}
