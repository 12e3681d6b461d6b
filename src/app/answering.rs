//! Tells when an answer is away: given out by its body, and taken by the system from hyper's buffer.
//!
//! The two halves of it lie on both sides of hyper: an [`Answer`] is dropped when all of it is in the buffer,
//! which may be megabytes, and [`Watched`] is flushed when the buffer is empty. After both, in this order, the
//! place of the connection need not be kept. Neither holds the place itself where the connection may outlive it:
//! what is upgraded has its stream on, and no place.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connections::Place;

/// A place, and whether the answer that it is kept for is in the buffer.
#[derive(Debug)]
pub(super) struct Answering {
    place: Arc<Place>,
    is_buffered: AtomicBool,
}

impl Answering {
    pub(super) fn new(place: Arc<Place>) -> Arc<Self> {
        Arc::new(Self { place, is_buffered: AtomicBool::new(false) })
    }

    /// [`Place::keep`]; an answer before this one does not end it.
    pub(super) fn keep(&self) -> bool {
        self.is_buffered.store(false, Ordering::Relaxed);
        self.place.keep()
    }

    fn flushed(&self) {
        if self.is_buffered.swap(false, Ordering::Relaxed) {
            self.place.wait();
        }
    }
}

/// What is sent.
pub(super) struct Answer<B> {
    pub(super) body: B,
    pub(super) answering: Weak<Answering>,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Answer<B> {
    fn drop(&mut self) {
        if let Some(answering) = self.answering.upgrade() {
            answering.is_buffered.store(true, Ordering::Relaxed);
        }
    }
}

/// The stream that hyper writes to: it is flushed once hyper's buffer is empty, and not before.
pub(super) struct Watched<I> {
    pub(super) stream: I,
    pub(super) answering: Weak<Answering>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        if let Some(answering) = self.answering.upgrade() {
            answering.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
