//! Lets a refusal arrive at a client that is still sending.
//!
//! Most refusals stand before the body has arrived. If the connection were closed on what is still on
//! its way, the client's system would throw the answer away and report a reset. So the rest of a
//! refused body is read and forgotten first, for a few seconds; a client that waits for `100 Continue`
//! has sent nothing, and is answered at once. Whose token is not good has no place that is kept meanwhile, so that
//! half a body holds none against others.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

const LINGER: Duration = Duration::from_secs(5);

pub(super) async fn linger(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let waits = request.headers().contains_key(header::EXPECT);
    let rest = Rest::default();
    let lent = |body| Body::new(Lent { body: Some(body), was_polled: !waits, rest: rest.clone() });
    let response = next.run(request.map(lent)).await;
    let is_refusal = response.status().is_client_error() || response.status().is_server_error();
    if is_refusal && let Some(mut body) = rest.take() {
        let forget = async { while let Some(Ok(_)) = body.frame().await {} };
        // Whoever has not sent all of it by then has to live with a reset.
        tokio::time::timeout(LINGER, forget).await.ok();
    }
    response
}

/// What a handler has left of a body that is on its way.
#[derive(Clone, Default)]
struct Rest(Arc<Mutex<Option<Body>>>);

impl Rest {
    fn put(&self, body: Body) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that comes back when it is dropped before its end.
struct Lent {
    body: Option<Body>,
    /// Whether the client is sending.
    was_polled: bool,
    rest: Rest,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.was_polled = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|_| self.was_polled) {
            self.rest.put(body);
        }
    }
}
