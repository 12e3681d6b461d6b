//! Who may come in: the listening socket, and how many connections may stand.
//!
//! Owns the [`Gate`], which [`super::server`] asks about each connection before a byte of it is read: half of
//! the files that lightd may have open are connections. The other half is for the engine, the store, volumes,
//! the firewall and sockets, which have bounds of their own, so that whoever opens connections without end stops
//! nothing but newcomers.
//!
//! And those he does not stop for long. A place is kept for sure while a request is answered whose token is good:
//! it takes one to hold a place. All others are in the lobby, and when no place is free, one of them makes room
//! for the next:
//!
//! ```text
//!   strangers  no good token yet; silent, or being told what anybody may hear        who has come first goes first
//!   known      have brought one, and wait for the head of their next request         who is idle longest goes first
//! ```
//! Of the two, those go who have more places (strangers, where it is the same). So neither keeps the other out:
//! as long as strangers have fewer than half of the lobby, they have the time they need, and when they come in
//! masses, a newcomer's time is that which they need to fill the places once. Nobody is given up in the middle of
//! what his token allows: who has a good one asks for the place to be kept before anything is begun for him, and
//! goes no further where it is another's already.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
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

/// Whether a failed accept says something about the connection that was to be taken in, and nothing about the
/// next (accept(2)).
pub(super) fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::INTR
                | Errno::NETDOWN
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
                | Errno::TIMEDOUT
                | Errno::PERM
        )
    )
}

#[derive(Clone, Debug)]
pub(super) struct Gate {
    places: Arc<Semaphore>,
    lobby: SharedLobby,
    /// Told of already.
    is_full: Arc<AtomicBool>,
}

type SharedLobby = Arc<Mutex<Lobby>>;

/// Connections whose place is not kept, by their turns.
#[derive(Debug, Default)]
struct Lobby {
    turns_given: u64,
    strangers: BTreeMap<Turn, CancellationToken>,
    known: BTreeMap<Turn, CancellationToken>,
}

/// No two are the same, and none is [`KEPT`].
type Turn = u64;

/// In place of a turn: not in the lobby.
const KEPT: Turn = 0;

impl Lobby {
    fn turn(&mut self) -> Turn {
        self.turns_given += 1;
        self.turns_given
    }

    fn leave(&mut self, turn: Turn) {
        self.strangers.remove(&turn);
        self.known.remove(&turn);
    }

    /// Gives up whoever has to go first; `false` where there is nobody.
    fn make_room(&mut self) -> bool {
        let is_known = self.strangers.len() < self.known.len();
        let from = if is_known { &mut self.known } else { &mut self.strangers };
        let goes = from.pop_first();
        goes.inspect(|(_, given_up)| given_up.cancel()).is_some()
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    lobby: SharedLobby,
    /// Changed under the lobby's lock alone.
    turn: AtomicU64,
    /// Somebody else is to have it. Under the lobby's lock, where somebody decides by it.
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

    /// A place for a stranger; `None` where all are kept, or none is left within `patience`.
    pub(super) async fn enter(&self, patience: Duration) -> Option<Place> {
        let permit = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => {
                self.is_full.store(false, Ordering::Relaxed);
                permit
            }
            Err(_) => self.permit_of_another(patience).await?,
        };
        let (given_up, lobby) = (CancellationToken::new(), Arc::clone(&self.lobby));
        let turn = {
            let mut lobby = lock(&lobby);
            let turn = lobby.turn();
            lobby.strangers.insert(turn, given_up.clone());
            AtomicU64::new(turn)
        };
        Some(Place { lobby, turn, given_up, _permit: permit })
    }

    /// All in the lobby; whoever is answered by his token goes on.
    pub(super) fn give_all_up(&self) {
        let mut lobby = lock(&self.lobby);
        while lobby.make_room() {}
    }

    async fn permit_of_another(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        if !self.is_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "too many connections; those that bring no good token make room for others"
            );
        }
        if !lock(&self.lobby).make_room() {
            return None;
        }
        let permit = Arc::clone(&self.places).acquire_owned();
        tokio::time::timeout(patience, permit).await.ok()?.ok()
    }
}

impl Place {
    /// Keeps the place until [`Place::wait`]; `false` where it is another's already.
    pub(super) fn keep(&self) -> bool {
        let mut lobby = lock(&self.lobby);
        lobby.leave(self.turn.swap(KEPT, Ordering::Relaxed));
        !self.given_up.is_cancelled()
    }

    /// The place need not be kept any longer. Whoever was in the lobby all along keeps his turn.
    pub(super) fn wait(&self) {
        let mut lobby = lock(&self.lobby);
        if self.turn.load(Ordering::Relaxed) == KEPT {
            let turn = lobby.turn();
            self.turn.store(turn, Ordering::Relaxed);
            lobby.known.insert(turn, self.given_up.clone());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.lobby).leave(self.turn.load(Ordering::Relaxed));
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

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn half_of_the_open_files_are_connections() {
        assert_eq!(places(Some(65_536)), 32_768);
        assert_eq!(places(Some(1)), 1);
        assert_eq!(places(None), MOST);
    }

    /// Whoever enters while `goes` has to make room for him.
    async fn next(gate: &Gate, goes: Place) -> Place {
        let given_up = goes.given_up.clone();
        let leaves = async {
            given_up.cancelled().await;
            drop(goes);
        };
        tokio::join!(gate.enter(SOON), leaves).0.unwrap()
    }

    async fn known(gate: &Gate) -> Place {
        let place = gate.enter(SOON).await.unwrap();
        assert!(place.keep());
        place.wait();
        place
    }

    #[tokio::test]
    async fn who_is_answered_by_his_token_makes_no_room() {
        let gate = Gate::with(2);
        let (busy, silent) = (gate.enter(SOON).await.unwrap(), gate.enter(SOON).await.unwrap());
        // A second time, as for a request that came before the answer to the last one was away.
        assert!(busy.keep() && busy.keep());
        let newcomer = next(&gate, silent).await;
        assert!(newcomer.keep());
        assert!(gate.enter(SOON).await.is_none(), "all are being answered");
        busy.wait();
        // In the lobby once, however often it is said.
        busy.wait();
        drop(next(&gate, busy).await);
        drop(newcomer);
        let lobby = lock(&gate.lobby);
        assert!(lobby.strangers.is_empty() && lobby.known.is_empty(), "{lobby:?}");
    }

    #[tokio::test]
    async fn who_was_answered_without_a_token_keeps_his_turn() {
        let gate = Gate::with(3);
        let first = gate.enter(SOON).await.unwrap();
        let second = gate.enter(SOON).await.unwrap();
        let third = gate.enter(SOON).await.unwrap();
        first.wait();
        let fourth = next(&gate, first).await;
        let fifth = next(&gate, second).await;
        drop((third, fourth, fifth));
    }

    #[tokio::test]
    async fn neither_the_known_nor_strangers_keep_the_others_out() {
        let gate = Gate::with(4);
        let mut idle = Vec::new();
        for _ in 0..3 {
            idle.push(known(&gate).await);
        }
        let silent = gate.enter(SOON).await.unwrap();
        // One stranger beside three, two beside two.
        let other = next(&gate, idle.remove(0)).await;
        let third = next(&gate, silent).await;
        assert!(other.keep(), "who came later is there");
        // Two idle ones against one stranger.
        let last = next(&gate, idle.remove(0)).await;
        assert!(!third.given_up.is_cancelled() && !idle[0].given_up.is_cancelled());
        drop(last);
    }

    #[tokio::test]
    async fn a_place_that_was_given_up_is_not_kept_and_begins_nothing() {
        let gate = Gate::with(1);
        let idle = known(&gate).await;
        assert!(gate.enter(Duration::ZERO).await.is_none(), "he has not left yet");
        assert!(!idle.keep(), "a head that came just then");
        drop(idle);
        assert!(known(&gate).await.keep());
    }

    #[test]
    fn what_is_wrong_with_one_connection_makes_no_other_wait() {
        let is_of_one = |errno: Errno| is_of_one_connection(&errno.into());
        assert!(is_of_one(Errno::CONNABORTED) && is_of_one(Errno::HOSTUNREACH));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::INVAL] {
            assert!(!is_of_one(errno), "{errno}");
        }
    }
}
