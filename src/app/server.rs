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
//! So one that says half of a head, or nothing, is not kept. Of a client that takes nothing of its answer the kernel
//! knows (`TCP_USER_TIMEOUT`), a document's body has the deadline of its call, and uploads have their own. Nothing
//! bounds whoever takes or sends a little now and then: his place is kept as long, if his token is good, and otherwise
//! as long as nobody needs it ([`super::connections`]). What is upgraded to a WebSocket leaves its place and has bounds
//! of its own.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

use super::answering::{Answer, Answering, Watched};
use super::connections::{Gate, Place, is_of_one_connection};
use crate::api::OnGrant;

/// After the kernel had no file for a connection, say.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// How long the end waits for those whose place is not kept: half a head, half a body without a good token.
const LOBBY_ENDS_WITHIN: Duration = Duration::from_millis(500);
/// What is read ahead on a connection, and by that the longest head: anybody may send one.
const BUFFER_BYTES: usize = 128 << 10;

/// How long is waited for a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a TLS handshake.
    pub(super) handshake: Duration,
    /// For the whole head of a request, be it the first or the next.
    pub(super) head: Duration,
    /// For one that is to make room for another. Nobody else is let in meanwhile.
    pub(super) room: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let (handshake, head) = (Duration::from_secs(10), Duration::from_secs(75));
        Self { handshake, head, room: Duration::from_millis(100) }
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
        // Told of already.
        let mut is_short = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = end.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            while let Some(ended) = connections.try_join_next() {
                tell(ended);
            }
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(%error, "a connection was not taken in");
                    continue;
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_short, true) {
                        tracing::warn!(%error, "no connection can be taken in");
                    }
                    // The end is looked at right after it.
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            is_short = false;
            // Closed at once where there is none.
            let Some(place) = gate.enter(patience.room).await else { continue };
            let Ok(ready) = service_for.ready().await;
            let Ok(service) = ready.call(peer).await;
            let tls = tls.as_ref().map(|served| TlsAcceptor::from(served.borrow().clone()));
            let place = Arc::new(place);
            let connection = Connection { place, patience, end: end.clone() };
            connections.spawn(connection.run(stream, tls, service));
        }
        // Whoever comes now is refused, and not left hanging.
        drop(listener);
        let gives_up = async {
            tokio::time::sleep(LOBBY_ENDS_WITHIN).await;
            gate.give_all_up();
        };
        let ended = async {
            tokio::select! {
                biased;
                () = all_ended(&mut connections) => return,
                () = gives_up => {}
            }
            all_ended(&mut connections).await;
        };
        // Those that are not done by then are broken off.
        tokio::time::timeout(ends_within, ended).await.ok();
        connections.shutdown().await;
        Ok(())
    }
}

async fn all_ended(connections: &mut JoinSet<()>) {
    while let Some(ended) = connections.join_next().await {
        tell(ended);
    }
}

/// A panic of a handler's is answered; this one is ours or hyper's.
fn tell(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the task of a connection broke");
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
        // The stream may outlive this, and what a request carries may outlive its answer.
        let answering = Answering::new(Arc::clone(&self.place));
        let weak = Arc::downgrade(&answering);
        let stream = Watched { stream, answering: weak.clone() };
        // Where the connection is gone, so is whom it would have been kept from.
        let kept = weak.clone();
        let on_grant = OnGrant::new(move || kept.upgrade().is_none_or(|kept| kept.keep()));
        let answer = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(on_grant.clone());
            let (answering, answered) = (weak.clone(), service.clone().oneshot(request));
            async move {
                let Ok(response) = answered.await;
                Ok::<_, Infallible>(response.map(|body| Answer { body, answering }))
            }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.patience.head);
        http.max_buf_size(BUFFER_BYTES);
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const WHOLE: &str = "GET / HTTP/1.1\r\nHost: node\r\n\r\n";

    /// Nobody has to bring one here but for these.
    const WITH_TOKEN: &str = "GET /token HTTP/1.1\r\nHost: node\r\n\r\n";
    const LARGE: &str = "GET /large HTTP/1.1\r\nHost: node\r\n\r\n";
    /// More than the system takes for one that does not read.
    const LARGE_BYTES: usize = 32 << 20;

    async fn answered(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let on_grant = request.extensions().get::<OnGrant>().unwrap().clone();
        let path = request.uri().path().to_owned();
        if path != "/" {
            on_grant.granted().await;
        }
        // As one that lingers, for what never comes.
        request.into_body().collect().await.ok();
        let is_large = path == "/large";
        let said = if is_large { vec![b'x'; LARGE_BYTES] } else { b"here".to_vec() };
        Ok(Response::new(Full::from(said)))
    }

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
                patience: Patience { handshake: head, head, room: SOON },
                end: end.clone(),
                // Longer than a test waits for the end.
                ends_within: SOON * 2,
            };
            let service_for =
                tower::service_fn(async |_: SocketAddr| Ok(tower::service_fn(answered)));
            #[expect(clippy::disallowed_methods, reason = "ended below")]
            let serving = tokio::spawn(server.serve(service_for));
            Self { address, end, serving }
        }

        async fn sends(&self, bytes: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            // One that has to make room at once may not get so far.
            stream.write_all(bytes.as_bytes()).await.ok();
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
        // A reset is no answer.
        let read = tokio::time::timeout(SOON, stream.read(&mut bytes)).await.unwrap().unwrap_or(0);
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
    async fn a_head_has_a_bound() {
        let server = Running::start(16, SOON * 2);
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(2 * BUFFER_BYTES));
        let mut stream = server.sends(&long).await;
        let last = rest(&mut stream).await;
        assert!(last.is_empty() || last.starts_with("HTTP/1.1 431"), "{last}");
        server.close().await;
    }

    #[tokio::test]
    async fn the_end_does_not_wait_for_half_a_request_of_a_stranger() {
        let server = Running::start(16, SOON * 2);
        let post = "POST /token HTTP/1.1\r\nHost: n\r\nContent-Length: 2\r\n\r\n";
        let mut held = vec![server.sends("GET / HT").await];
        held.push(server.sends(&post.replace("/token", "/")).await);
        let mut kept =
            server.sends(&post.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n")).await;
        // Its handler has begun.
        assert!(answer(&mut kept).await.starts_with("HTTP/1.1 100"));
        server.end.cancel();
        for stream in &mut held {
            assert_eq!(rest(stream).await, "");
        }
        kept.write_all(b"{}").await.unwrap();
        assert!(rest(&mut kept).await.ends_with("here"));
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
    async fn a_flood_keeps_nobody_out_who_brings_a_token() {
        const HALF_BODY: &str = "POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 9\r\n\r\nhalf";
        for flood in ["GET / HT", WHOLE, HALF_BODY] {
            let server = Running::start(8, SOON * 2);
            let mut known = server.sends(WITH_TOKEN).await;
            assert!(answer(&mut known).await.ends_with("here"), "{flood}");
            let mut held = Vec::new();
            for _ in 0..50 {
                held.push(server.sends(flood).await);
            }
            // It takes its time over its head, and they go on: answered ones, idle ones, silent ones.
            let (begin, end) = WITH_TOKEN.split_at(7);
            let mut newcomer = server.sends(begin).await;
            for _ in 0..5 {
                let mut stream = server.sends(flood).await;
                if flood == WHOLE {
                    assert!(answer(&mut stream).await.ends_with("here"));
                }
                held.push(stream);
            }
            newcomer.write_all(end.as_bytes()).await.unwrap();
            known.write_all(WITH_TOKEN.as_bytes()).await.unwrap();
            for stream in [&mut newcomer, &mut known] {
                assert!(answer(stream).await.ends_with("here"), "{flood}");
            }
            let last = rest(&mut held[0]).await;
            assert!(last.is_empty() || last.ends_with("here"), "the first had to go: {last}");
            server.close().await;
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_away_yet_is_not_cut_off_for_another() {
        let server = Running::start(1, SOON * 2);
        let mut slow = server.sends(LARGE).await;
        // It is in hyper's buffer, all of it.
        let begin = answer(&mut slow).await;
        assert!(begin.starts_with("HTTP/1.1 200"), "{begin}");
        let mut other = server.sends(WITH_TOKEN).await;
        assert_eq!(rest(&mut other).await, "", "no place is left");
        let head = begin.find("\r\n\r\n").unwrap() + 4;
        let mut left = vec![0; LARGE_BYTES - (begin.len() - head)];
        let read = tokio::time::timeout(SOON, slow.read_exact(&mut left)).await;
        read.expect("the rest").expect("all of it");
        // Now it waits, and makes room; the other side may see a little later that all is taken.
        let until = tokio::time::Instant::now() + SOON;
        while !answer(&mut server.sends(WITH_TOKEN).await).await.ends_with("here") {
            assert!(tokio::time::Instant::now() < until, "it keeps its place");
        }
        assert_eq!(rest(&mut slow).await, "");
        server.close().await;
    }
}
