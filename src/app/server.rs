//! The server: connections taken in, TLS where it is on, HTTP/1 on them, and their end.
//!
//! One task per connection, all owned by the future of [`Server::serve`]: dropped, it ends them. A later version
//! of HTTP is not spoken: one of its connections carries many streams, and of one whose client takes nothing
//! neither the kernel nor anybody else would ever know. Whoever begins it anyway is closed on, without an answer
//! and without a state kept for him; TLS offers none.
//!
//! ```text
//!   accept -> Gate (a place) -> TLS handshake -> head -> answer -> head -> …
//!                                 10 s            75 s             75 s
//! ```
//! From the first byte on, something bounds every wait for a client, so that one that says half of something, or
//! nothing, is not kept. What is upgraded to a WebSocket leaves its place and has bounds of its own.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

use super::connections::{Gate, Place};

/// After the kernel had no file for a connection, say.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// How long is waited for a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a TLS handshake.
    pub(super) handshake: Duration,
    /// For the whole head of a request, be it the first or the next.
    pub(super) head: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(10), head: Duration::from_secs(75) }
    }
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) listener: TcpListener,
    /// What is served at the time of each handshake; `None`: no TLS.
    pub(super) tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    pub(super) gate: Gate,
    pub(super) patience: Patience,
    /// Begins the end: nothing more is taken in, and requests that are under way are answered.
    pub(super) end: CancellationToken,
    /// How long that may take.
    pub(super) ends_within: Duration,
}

impl Server {
    /// Serves until the end, on each connection what `service_for` makes for its address.
    pub(super) async fn serve<M, S, B>(self, mut service_for: M) -> io::Result<()>
    where
        M: Service<SocketAddr, Response = S, Error = Infallible>,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: Body + Unpin + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Self { listener, tls, gate, patience, end, ends_within } = self;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut connections = JoinSet::new();
        for number in 0_u64.. {
            let accepted = tokio::select! {
                biased;
                () = end.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection was not taken in");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            // Closed at once where there is none.
            let Some(place) = gate.enter(number).await else { continue };
            let Ok(service) = service_for.call(peer).await;
            let tls = tls.as_ref().map(|served| TlsAcceptor::from(served.borrow().clone()));
            let place = Arc::new(place);
            let connection = Connection { place, patience, end: end.clone() };
            connections.spawn(connection.run(stream, tls, service));
        }
        // Whoever comes now is refused, and not left hanging.
        drop(listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        // Those that are not done by then are broken off.
        tokio::time::timeout(ends_within, ended).await.ok();
        connections.shutdown().await;
        Ok(())
    }
}

struct Connection {
    place: Arc<Place>,
    patience: Patience,
    end: CancellationToken,
}

impl Connection {
    async fn run<S, B>(self, stream: TcpStream, tls: Option<TlsAcceptor>, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: Body + Unpin + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let given_up = self.place.given_up.clone();
        let served = async {
            let Some(tls) = tls else { return self.speak(stream, service).await };
            // One that fails is the client's matter.
            let handshake = tokio::time::timeout(self.patience.handshake, tls.accept(stream));
            if let Ok(Ok(stream)) = handshake.await {
                self.speak(stream, service).await;
            }
        };
        given_up.run_until_cancelled(served).await;
    }

    async fn speak<I, S, B>(&self, stream: I, service: S)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone,
        B: Body + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let place = &self.place;
        let answer = service_fn(move |request| {
            place.has_request();
            let (place, answered) = (Arc::clone(place), service.clone().oneshot(request));
            async move {
                let Ok(response) = answered.await;
                Ok::<_, Infallible>(response.map(|body| Answer { body, place }))
            }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.patience.head);
        let connection = http.serve_connection(TokioIo::new(stream), answer).with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = &mut connection => served,
            () = self.end.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::trace!(%error, "a connection broke");
        }
    }
}

/// What is sent; once it is, or is given up, the connection waits for its next request.
struct Answer<B> {
    body: B,
    place: Arc<Place>,
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
        self.place.has_answered();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const WHOLE: &str = "GET / HTTP/1.1\r\nHost: node\r\n\r\n";

    struct Running {
        address: SocketAddr,
        end: CancellationToken,
        serving: tokio::task::JoinHandle<io::Result<()>>,
    }

    impl Running {
        fn start(places: usize, head: Duration) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let (address, end) = (listener.local_addr().unwrap(), CancellationToken::new());
            let server = Server {
                listener,
                tls: None,
                gate: Gate::with(places),
                patience: Patience { handshake: head, head },
                end: end.clone(),
                ends_within: Duration::from_secs(5),
            };
            let answer = tower::service_fn(async |_: SocketAddr| {
                Ok(tower::service_fn(async |_: Request<Incoming>| {
                    Ok::<_, Infallible>(Response::new("here".to_owned()))
                }))
            });
            #[expect(clippy::disallowed_methods, reason = "ended below")]
            let serving = tokio::spawn(server.serve(answer));
            Self { address, end, serving }
        }

        async fn sends(&self, bytes: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(bytes.as_bytes()).await.unwrap();
            stream
        }

        async fn close(self) {
            self.end.cancel();
            tokio::time::timeout(SOON, self.serving).await.unwrap().unwrap().unwrap();
        }
    }

    /// All that comes until the other side closes.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(SOON, stream.read_to_end(&mut bytes));
        // What was not read on the other side makes it a reset.
        read.await.expect("an end").ok();
        String::from_utf8(bytes).unwrap()
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(SOON, stream.read(&mut bytes)).await.unwrap().unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    #[tokio::test]
    async fn who_does_not_bring_a_whole_head_is_not_kept() {
        let server = Running::start(16, Duration::from_millis(200));
        for said in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HT", "GET / HTTP/1.1\r\nHost: n"] {
            let mut stream = server.sends(said).await;
            let last = rest(&mut stream).await;
            assert!(last.is_empty() || last.starts_with("HTTP/1.1 4"), "{said:?}: {last}");
        }
        // The next one has to come as well.
        let mut stream = server.sends(WHOLE).await;
        assert!(answer(&mut stream).await.ends_with("here"));
        assert_eq!(rest(&mut stream).await, "");
        server.close().await;
    }

    #[tokio::test]
    async fn a_later_version_is_closed_on_at_once() {
        let server = Running::start(16, SOON * 2);
        let mut stream = server.sends("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        // Not a byte of a frame.
        assert_eq!(rest(&mut stream).await, "");
        server.close().await;
    }

    #[tokio::test]
    async fn a_flood_keeps_nobody_out_who_says_what_he_wants() {
        for flood in ["GET / HT", WHOLE] {
            let server = Running::start(8, SOON * 2);
            let mut first = server.sends(flood).await;
            let mut held = Vec::new();
            for _ in 0..50 {
                held.push(server.sends(flood).await);
            }
            let mut newcomer = server.sends(WHOLE).await;
            assert!(answer(&mut newcomer).await.ends_with("here"), "{flood}");
            newcomer.write_all(WHOLE.as_bytes()).await.unwrap();
            assert!(answer(&mut newcomer).await.ends_with("here"), "{flood}");
            let last = rest(&mut first).await;
            assert!(last.is_empty() || last.ends_with("here"), "the first had to go: {last}");
            server.close().await;
        }
    }
}
