//! How many connections stand at once: half of the files that lightd may have open.
//!
//! Owns the [`Gate`], which the server asks about each connection before a byte of it is read. The other half is
//! for the engine, the store, volumes, the firewall and sockets, which have bounds of their own: whoever opens
//! connections without end keeps others out, as long as none is given up, and nothing else stands still. What is
//! not let in is closed.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

/// However many files may be open.
const MOST: u64 = 100_000;

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
            return ready(Err(io::ErrorKind::ConnectionRefused.into()));
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
