//! Who may come in: the listening socket, and how many connections may stand.
//!
//! Owns the [`Gate`], which [`super::server`] asks about each connection before a byte of it is read: half of
//! the files that lightd may have open are connections. The other half is for the engine, the store, volumes,
//! the firewall and sockets, which have bounds of their own, so that whoever opens connections without end stops
//! nothing but newcomers. And those he does not stop for long: when all places are taken, a connection that waits for
//! the head of a request makes room for the next, those first that have never brought one, and of them who has
//! waited longest. So only those keep a place who are being answered, for which it takes a token.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
/// How long one that is to make room may take for it.
const ROOM_MADE: Duration = Duration::from_millis(100);

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
    lobby: SharedLobby,
    /// Told of already.
    is_full: Arc<AtomicBool>,
}

type SharedLobby = Arc<Mutex<Lobby>>;

/// Connections that wait for the head of a request, and whose turn to go it is.
#[derive(Debug, Default)]
struct Lobby {
    turns_given: u64,
    by_turn: BTreeMap<Turn, (u64, CancellationToken)>,
    turns: HashMap<u64, Turn>,
}

/// Whether it has brought a request before, and where it stands among its like.
type Turn = (bool, u64);

impl Lobby {
    fn wait(&mut self, number: u64, is_known: bool, given_up: CancellationToken) {
        self.turns_given += 1;
        let turn = (is_known, self.turns_given);
        self.by_turn.insert(turn, (number, given_up));
        self.turns.insert(number, turn);
    }

    fn leave(&mut self, number: u64) {
        if let Some(turn) = self.turns.remove(&number) {
            self.by_turn.remove(&turn);
        }
    }

    /// Whoever has to go first.
    fn next(&mut self) -> Option<CancellationToken> {
        let (_, (number, given_up)) = self.by_turn.pop_first()?;
        self.turns.remove(&number);
        Some(given_up)
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    lobby: SharedLobby,
    /// Somebody else is to have it.
    pub(super) given_up: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    /// For as many as the process's limit of open files allows.
    pub(super) fn new() -> Self {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self::with(usize::try_from(places(files)).unwrap_or(usize::MAX))
    }

    pub(super) fn with(places: usize) -> Self {
        let places = Arc::new(Semaphore::new(places));
        Self { places, lobby: SharedLobby::default(), is_full: Arc::default() }
    }

    /// A place for the connection of this number, which no other has; `None` where all are being answered.
    pub(super) async fn enter(&self, number: u64) -> Option<Place> {
        let permit = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => {
                self.is_full.store(false, Ordering::Relaxed);
                permit
            }
            Err(_) => self.permit_of_another().await?,
        };
        let (given_up, lobby) = (CancellationToken::new(), Arc::clone(&self.lobby));
        lock(&lobby).wait(number, false, given_up.clone());
        Some(Place { number, lobby, given_up, _permit: permit })
    }

    async fn permit_of_another(&self) -> Option<OwnedSemaphorePermit> {
        if !self.is_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "too many connections; those that bring no request make room for others"
            );
        }
        let goes = lock(&self.lobby).next()?;
        goes.cancel();
        let permit = Arc::clone(&self.places).acquire_owned();
        tokio::time::timeout(ROOM_MADE, permit).await.ok()?.ok()
    }
}

impl Place {
    /// A whole head of a request has come: the place is kept until it is answered.
    pub(super) fn has_request(&self) {
        lock(&self.lobby).leave(self.number);
    }

    pub(super) fn has_answered(&self) {
        lock(&self.lobby).wait(self.number, true, self.given_up.clone());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.lobby).leave(self.number);
    }
}

fn lock(lobby: &SharedLobby) -> MutexGuard<'_, Lobby> {
    lobby.lock().unwrap_or_else(PoisonError::into_inner)
}

fn places(open_files: Option<u64>) -> u64 {
    open_files.map_or(MOST, |files| files / 2).clamp(1, MOST)
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
    #[tokio::test]
    async fn who_waits_makes_room_first_of_all_who_has_never_brought_a_request() {
        let gate = Gate::with(3);
        let busy = gate.enter(1).await.unwrap();
        busy.has_request();
        let idle = gate.enter(2).await.unwrap();
        idle.has_request();
        idle.has_answered();
        let silent = gate.enter(3).await.unwrap();
        let next = async |number, goes: Place| {
            let given_up = goes.given_up.clone();
            let leaves = async {
                given_up.cancelled().await;
                drop(goes);
            };
            tokio::join!(gate.enter(number), leaves).0.unwrap()
        };
        let newcomer = next(4, silent).await;
        newcomer.has_request();
        let other = next(5, idle).await;
        other.has_request();
        assert!(gate.enter(6).await.is_none(), "all are being answered");
        assert!(!busy.given_up.is_cancelled());
        drop(busy);
        let last = gate.enter(7).await.unwrap();
        drop((last, newcomer, other));
        let lobby = lock(&gate.lobby);
        assert!(lobby.by_turn.is_empty() && lobby.turns.is_empty(), "{lobby:?}");
    }
}
