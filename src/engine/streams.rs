//! Attaching to a container: all it writes from now on, and a way to its standard input.
//!
//! Attach before the start and nothing is lost. What is attached must be read: after about a megabyte
//! unread the engine makes the workload wait. The end of the output says only that this connection
//! ended; whether the container did is for [`Engine::wait`] and [`Engine::inspect`] to say.
//!
//! Both halves share one socket. Closing only its writing side would end the output as well (a quirk of
//! the engine), so there is no way to do that: the socket closes when both halves are gone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::Method;
use tokio::net::UnixStream;

use super::error::{EngineError, Fault};
use super::frames::{Chunk, Decoder};
use super::op::{self, Op};
use super::raw::{RawRequest, Upgraded, broke, garbled};
use super::{Engine, container_target};

/// What one read takes at most, and how large the shared buffers are.
const READ_BYTES: usize = 64 * 1024;
/// A new buffer is begun when less room than this is left: small reads must not cost a buffer each.
const READ_LEAST_BYTES: usize = 8 * 1024;

/// A terminal's attach ends when these keys are typed, and it holds back what could be their beginning.
/// The engine's default is Ctrl-P Ctrl-Q, of which the first is in daily use; this is one nobody types:
/// `ctrl-^,ctrl-_,ctrl-^,ctrl-_,ctrl-^,ctrl-_`.
const DETACH_KEYS: &str = "ctrl-%5E,ctrl-_,ctrl-%5E,ctrl-_,ctrl-%5E,ctrl-_";

#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) output: OutputStream,
    pub(crate) input: AttachedInput,
}

impl Engine {
    /// `tty` must be what the container was made with; the engine's answer does not tell.
    pub(crate) async fn attach(&self, id: &str, tty: bool) -> Result<Attached, EngineError> {
        let target = container_target(op::ATTACH, id)?;
        let request = RawRequest {
            op: op::ATTACH,
            target: target.clone(),
            method: Method::POST,
            path: format!(
                "/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1&detachKeys={DETACH_KEYS}"
            ),
            body: Bytes::new(),
        };
        let upgraded = self.upgraded(request).await?;
        let input = AttachedInput { socket: Arc::clone(&upgraded.socket) };
        Ok(Attached { output: OutputStream::new(op::ATTACH, target, upgraded, tty), input })
    }
}

/// A container's output as it comes.
#[derive(Debug)]
pub(crate) struct OutputStream {
    op: Op,
    target: String,
    socket: Arc<UnixStream>,
    buffer: BytesMut,
    decoder: Decoder,
    asked_at_nanos: i64,
}

impl OutputStream {
    pub(super) fn new(op: Op, target: String, upgraded: Upgraded, tty: bool) -> Self {
        let Upgraded { socket, read, asked_at_nanos } = upgraded;
        Self { op, target, socket, buffer: read, decoder: Decoder::new(tty), asked_at_nanos }
    }

    /// Nothing that was printed before comes in it. In Unix nanoseconds.
    pub(crate) fn asked_at_nanos(&self) -> i64 {
        self.asked_at_nanos
    }

    /// The next piece of output; `Ok(None)` at the end of the connection. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Option<Chunk>, EngineError> {
        loop {
            let chunk = self.decoder.next(&mut self.buffer);
            match chunk.map_err(|why| garbled(self.op, &self.target, why))? {
                Some(chunk) => return Ok(Some(chunk)),
                None if self.read().await? == 0 => return Ok(None),
                None => {}
            }
        }
    }

    /// Reads once; 0 bytes are the end. A container that is silent holds no buffer.
    async fn read(&mut self) -> Result<usize, EngineError> {
        loop {
            let readable = self.socket.readable().await;
            if self.buffer.capacity() - self.buffer.len() < READ_LEAST_BYTES {
                self.buffer.reserve(READ_BYTES);
            }
            match readable.and_then(|()| self.socket.try_read_buf(&mut self.buffer)) {
                Ok(read) => return Ok(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.buffer.is_empty() {
                        self.buffer = BytesMut::new();
                    }
                }
                Err(error) => return Err(broke(self.op, &self.target, Fault::Io(error))),
            }
        }
    }
}

/// The way to a container's standard input. Dropping it closes nothing.
#[derive(Debug)]
pub(crate) struct AttachedInput {
    socket: Arc<UnixStream>,
}

/// A workload that does not read its input stops the writing after some 64 KiB. Shutting it down does
/// nothing: the engine would take that for the end of the output as well.
impl tokio::io::AsyncWrite for AttachedInput {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
