//! Connections to the engine that outlive their answer's headers: one request each, on a connection of
//! its own.
//!
//! Two shapes: [`Engine::upgraded`] gives the bare socket after the engine has switched protocols
//! (attach, exec), [`Engine::streamed`] an answer that is read piece by piece (logs, events). Both have
//! the operation's deadline up to the headers and none after.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, Connection};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::error::{EngineError, Fault};
use super::op::Op;
use super::{Engine, EngineErrorKind};
use crate::domain::units::now_unix_nanos;

type Conn = Connection<TokioIo<UnixStream>, Full<Bytes>>;

/// An error answer larger than this is cut off unread.
const ERROR_BODY_MAX_BYTES: usize = 64 * 1024;

/// A request on a raw connection. The path is ours, with names proven plain.
#[derive(Debug)]
pub(super) struct RawRequest {
    pub(super) op: Op,
    /// What is asked about, for errors.
    pub(super) target: String,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Bytes,
}

/// The socket after the switch of protocols, and what was read of it already.
#[derive(Debug)]
pub(super) struct Upgraded {
    pub(super) socket: Arc<UnixStream>,
    pub(super) read: BytesMut,
    /// In Unix nanoseconds.
    pub(super) asked_at_nanos: i64,
}

impl Engine {
    pub(super) async fn upgraded(&self, request: RawRequest) -> Result<Upgraded, EngineError> {
        let asked_at_nanos = now_unix_nanos();
        self.within(&request, async {
            let (response, mut conn) = self.send(&request, true).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refusal(response, &mut conn).await);
            }
            let parts = conn.into_parts();
            let socket = Arc::new(parts.io.into_inner());
            Ok(Upgraded { socket, read: BytesMut::from(parts.read_buf), asked_at_nanos })
        })
        .await
    }

    pub(super) async fn streamed(&self, request: RawRequest) -> Result<StreamedBody, EngineError> {
        self.within(&request, async {
            let (response, mut conn) = self.send(&request, false).await?;
            if response.status() != StatusCode::OK {
                return Err(refusal(response, &mut conn).await);
            }
            Ok(StreamedBody { body: response.into_body(), conn: Some(Box::pin(conn)) })
        })
        .await
    }

    /// A short answer, whole.
    pub(super) async fn whole_answer(&self, request: RawRequest) -> Result<Vec<u8>, EngineError> {
        let (op, target) = (request.op, request.target.clone());
        let mut body = self.streamed(request).await?;
        let read = async {
            let mut answer = Vec::new();
            while let Some(piece) = body.next().await? {
                answer.extend_from_slice(&piece);
                if answer.len() > ERROR_BODY_MAX_BYTES {
                    return Err(Fault::Said("its answer is too long".to_owned()));
                }
            }
            Ok(answer)
        };
        let read = tokio::time::timeout(op.deadline, read).await;
        let read = read.unwrap_or(Err(Fault::Late(op.deadline)));
        read.map_err(|fault| self.noted(EngineError::new(op, &target, fault)))
    }

    async fn within<T>(
        &self,
        request: &RawRequest,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, EngineError> {
        let deadline = request.op.deadline;
        let fault = match tokio::time::timeout(deadline, work).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(fault)) => fault,
            Err(_) => Fault::Late(deadline),
        };
        Err(self.noted(EngineError::new(request.op, &request.target, fault)))
    }

    async fn send(
        &self,
        request: &RawRequest,
        upgrade: bool,
    ) -> Result<(Response<Incoming>, Conn), Fault> {
        let socket =
            UnixStream::connect(&self.inner.options.socket_path).await.map_err(Fault::Io)?;
        let (mut sender, mut conn) =
            http1::handshake(TokioIo::new(socket)).await.map_err(Fault::Http)?;
        let mut response = std::pin::pin!(sender.send_request(http_request(request, upgrade)?));
        let response = std::future::poll_fn(|cx| {
            // Without the shutdown: after a switch of protocols the socket is still wanted.
            let end = conn.poll_without_shutdown(cx);
            match response.as_mut().poll(cx) {
                Poll::Pending => match ready!(end) {
                    // The answer is lost with its connection; `response` says so at its next poll.
                    Ok(()) => response.as_mut().poll(cx),
                    Err(error) => Poll::Ready(Err(error)),
                },
                answered => answered,
            }
        });
        Ok((response.await.map_err(Fault::Http)?, conn))
    }
}

fn http_request(request: &RawRequest, upgrade: bool) -> Result<Request<Full<Bytes>>, Fault> {
    let mut builder = Request::builder()
        .method(&request.method)
        .uri(&request.path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json");
    if upgrade {
        builder = builder.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "tcp");
    }
    builder.body(Full::new(request.body.clone())).map_err(|why| Fault::Said(why.to_string()))
}

async fn refusal(response: Response<Incoming>, conn: &mut Conn) -> Fault {
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ERROR_BODY_MAX_BYTES).collect();
    let body = tokio::select! {
        biased;
        body = body => body.map(|body| body.to_bytes()).unwrap_or_default(),
        _ = std::future::poll_fn(|cx| conn.poll_without_shutdown(cx)) => Bytes::new(),
    };
    #[derive(serde::Deserialize)]
    struct Answer {
        message: String,
    }
    let message = serde_json::from_slice::<Answer>(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |answer| answer.message);
    Fault::Refused { status, message }
}

/// An answer that is read piece by piece. It drives its own connection: dropped, both end.
#[derive(Debug)]
pub(super) struct StreamedBody {
    body: Incoming,
    conn: Option<Pin<Box<Conn>>>,
}

impl StreamedBody {
    /// The next piece; `Ok(None)` at the end of the answer. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            let frame = std::future::poll_fn(|cx| self.poll_frame(cx)).await;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Fault::Http(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, hyper::Error>>> {
        if let Some(conn) = &mut self.conn
            && conn.as_mut().poll(cx).is_ready()
        {
            // Its error, if any, comes out of the body as well.
            self.conn = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

/// A failure of a stream that had begun.
pub(super) fn broke(op: Op, target: &str, fault: Fault) -> EngineError {
    EngineError::new(op, target, fault)
}

/// The engine sent what makes no sense.
pub(super) fn garbled(op: Op, target: &str, why: String) -> EngineError {
    EngineError::said(op, target, EngineErrorKind::Internal, why)
}
