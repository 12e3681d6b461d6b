//! Requests and transfers hang on the grant that they came in with.
//!
//! When a token is revoked or expires, the node's own one changes, or `authorization.allowed_ips` no longer has
//! the client's address, what goes on under it ends: a
//! handler that still works, or takes in an upload, is dropped, as it is when its client goes away, and
//! answered 401 (403 for the address); an answer that is being sent is broken off, so that nobody takes half of it for the
//! whole. One layer does this for every route. Sockets and event streams hold their grant themselves,
//! because they have a way to say why they end; work that was begun in the background goes on.
//!
//! An answer that lies in memory whole is not taken back.

use std::fmt;
use std::future::{pending, ready};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;

use super::error::ApiError;
use crate::access::{Ended, Grant};

/// Where the check of the token leaves the grant of a request.
#[derive(Clone, Debug)]
pub(super) struct GrantSlot(Arc<Mutex<Option<oneshot::Sender<Grant>>>>);

impl GrantSlot {
    pub(super) fn put(&self, grant: Grant) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // The layer may be gone, with the request; then nothing hangs on it.
            sender.send(grant).ok();
        }
    }
}

/// Asks for the connection of this request to be kept until it is answered; its server has left it there. Without a
/// good token nobody's is kept, when others need the place.
#[derive(Clone)]
pub(crate) struct OnGrant(Arc<dyn Fn() -> bool + Send + Sync>);

impl OnGrant {
    /// `keep` says `false` where it is too late: the connection is about to be broken off.
    pub(crate) fn new(keep: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(keep))
    }

    /// Comes back where the connection is kept. Nothing is begun for a client that is told nothing of it: where it
    /// is not, this ends with the connection.
    pub(crate) async fn granted(&self) {
        if !(self.0)() {
            pending().await
        }
    }
}

impl fmt::Debug for OnGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnGrant")
    }
}

/// What brings no body and is about to be answered still is: a reload, say, that has changed the token it
/// came with.
const LAST_WORDS: Duration = Duration::from_millis(500);

pub(super) async fn hold(mut request: Request, next: Next) -> Response {
    let (sender, granted) = oneshot::channel();
    request.extensions_mut().insert(GrantSlot(Arc::new(Mutex::new(Some(sender)))));
    let mut ended: BoxFuture<'static, Ended> = Box::pin(async move {
        match granted.await {
            Ok(mut grant) => grant.ended().await,
            // Nobody was asked who he is.
            Err(_) => pending().await,
        }
    });
    let brings_body = !request.body().is_end_stream();
    let mut running = pin!(next.run(request));
    let response = tokio::select! {
        biased;
        response = &mut running => response,
        why = &mut ended => {
            ended = Box::pin(ready(why));
            let last_words = if brings_body { Duration::ZERO } else { LAST_WORDS };
            match tokio::time::timeout(last_words, running).await {
                Ok(response) => response,
                Err(_) => return refusal(why).into_response(),
            }
        }
    };
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::new(Held { body: Some(body), ended }))
}

fn refusal(why: Ended) -> ApiError {
    match why {
        Ended::Expired | Ended::Revoked => ApiError::token_over(),
        Ended::NotAdmitted => ApiError::not_admitted(),
    }
}

/// A body that ends with an error when its grant does.
struct Held {
    body: Option<Body>,
    ended: BoxFuture<'static, Ended>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body: held, ended } = &mut *self;
        let Some(body) = held else { return Poll::Ready(None) };
        if ended.as_mut().poll(context).is_ready() {
            *held = None;
            let error = axum::Error::new("the right to it has ended");
            return Poll::Ready(Some(Err(error)));
        }
        Pin::new(body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::OnGrant;
    use crate::api::tests::node::{Node, TOKEN, request};

    #[tokio::test]
    async fn nothing_is_begun_on_a_connection_that_another_has_the_place_of() {
        let node = Node::new().await;
        let given_up = |mut request: axum::extract::Request| {
            request.extensions_mut().insert(OnGrant::new(|| false));
            request
        };
        // Who has no good token is not asked about, and nothing is kept for him.
        let stranger = given_up(request("lightd_nobodys", "GET", "/containers", Value::Null));
        assert_eq!(node.send(stranger).await.status(), 401);
        let asked = given_up(request(TOKEN, "POST", "/containers", node.spec("a")));
        node.send_and_leave(asked).await;
        let mut kept = request(TOKEN, "GET", "/containers", Value::Null);
        kept.extensions_mut().insert(OnGrant::new(|| true));
        assert_eq!(node.send(kept).await.status(), 200);
        let (_, list) = node.ask("GET", "/containers", Value::Null).await;
        assert_eq!(list["containers"], json!([]), "it was begun");
    }
}
