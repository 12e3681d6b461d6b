//! How connections come in: the listening socket, how many may stand, and how long each may say nothing.
//!
//! Owns the [`Gate`], which the server asks about each connection before a byte of it is read: half of the files
//! that lightd may have open are connections. The other half is for the engine, the store, volumes, the firewall
//! and sockets, which have bounds of their own: whoever opens connections without end keeps others out, as long
//! as none is given up, and nothing else stands still. What is not let in is closed.

use std::future::{Ready, ready};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tower::Service;

/// However many files may be open.
const MOST: u64 = 100_000;
/// For how long a client may take nothing of what it is sent, before its connection is given up: a
/// download or an event stream that nobody reads would otherwise keep its place for ever.
const NOTHING_TAKEN_MS: u32 = 30_000;
/// Connections that wait to be accepted; the kernel may have a lower bound (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// How long a port may still be a predecessor's.
const PORT_FREED: Duration = Duration::from_secs(1);
const PORT_AGAIN: Duration = Duration::from_millis(50);
/// How long a connection may stand open without the whole head of a request, be it the first or the next.
const HEAD_COMES: Duration = Duration::from_secs(75);

/// A connection that sends half a request's head, or nothing, would else be kept for ever.
pub(super) fn bound_heads(connections: &mut Builder<TokioExecutor>) {
    connections.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_COMES);
}

/// Where lightd was killed while it began a program (nft, mkfs), that one has the listening socket until
/// its `execve` has closed it.
pub(super) async fn listen_soon(address: SocketAddr) -> io::Result<TcpListener> {
    let until = Instant::now() + PORT_FREED;
    loop {
        match listen(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                tokio::time::sleep(PORT_AGAIN).await;
            }
            listener => return listener,
        }
    }
}

/// What is accepted has the options of the socket that it came in by (tcp(7)).
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The standard library's backlog is short for a burst.
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&listener, NOTHING_TAKEN_MS)?;
    Ok(listener)
}

#[derive(Clone, Debug)]
pub(super) struct Gate {
    places: Arc<Semaphore>,
    /// Told of already.
    is_full: Arc<AtomicBool>,
}

impl Gate {
    /// For as many as the process's limit of open files allows.
    pub(super) fn new() -> Self {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let places = usize::try_from(places(files)).unwrap_or(usize::MAX);
        Self { places: Arc::new(Semaphore::new(places)), is_full: Arc::default() }
    }
}

fn places(open_files: Option<u64>) -> u64 {
    open_files.map_or(MOST, |files| files / 2).clamp(1, MOST)
}

impl<S> Accept<TcpStream, S> for Gate {
    type Stream = TcpStream;
    type Service = Held<S>;
    type Future = Ready<io::Result<(TcpStream, Held<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            if !self.is_full.swap(true, Ordering::Relaxed) {
                tracing::warn!("too many connections; no more are let in until some end");
            }
            return ready(Err(ErrorKind::ConnectionRefused.into()));
        };
        self.is_full.store(false, Ordering::Relaxed);
        ready(Ok((stream, Held { service, _place: Arc::new(place) })))
    }
}

/// What answers on a connection, and the connection's place.
#[derive(Clone, Debug)]
pub(super) struct Held<S> {
    service: S,
    _place: Arc<OwnedSemaphorePermit>,
}

impl<S: Service<R>, R> Service<R> for Held<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.service.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_open_files_are_connections() {
        assert_eq!(places(Some(65_536)), 32_768);
        assert_eq!(places(Some(1)), 1);
        assert_eq!(places(None), MOST);
    }
}
