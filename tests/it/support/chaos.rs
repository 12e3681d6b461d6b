//! A door in front of the engine's socket that can be shut: what goes through it is cut, and nothing
//! new gets in, as if the engine had ended. It can also keep those waiting who want to attach or to see a
//! list, lose the answer to a start, refuse logs or one kind of request, and hold one kind of request, or the answers to it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::SOON;
use super::process::Daemon;

const ENGINE: &str = "/var/run/docker.sock";
const CHUNK_BYTES: usize = 16 * 1024;

pub(crate) struct Door {
    path: PathBuf,
    rules: Arc<watch::Sender<Rules>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Default)]
struct Rules {
    is_shut: bool,
    holds_attaches: bool,
    attaches_waiting: usize,
    holds_lists: bool,
    loses_a_start: bool,
    /// How many more.
    refuses_logs: usize,
    /// Requests with this in their first line are cut off.
    cuts: Option<&'static str>,
    held: Option<Held>,
    /// How many of these are held.
    holding: usize,
}

/// Requests that do not get through, or whose answers do not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) method: &'static str,
    /// A part of the first line.
    pub(crate) path_has: &'static str,
    /// The engine does what is asked, and nobody learns of it.
    pub(crate) is_done: bool,
}

impl Door {
    /// Opens it at `path`.
    pub(crate) fn open_at(path: &Path) -> Self {
        Self::open_with(path, Rules::default())
    }

    fn open_with(path: &Path, rules: Rules) -> Self {
        let rules = Arc::new(watch::Sender::new(rules));
        let listener = UnixListener::bind(path).expect("a socket");
        let task = serve(listener, Arc::clone(&rules));
        Self { path: path.to_owned(), rules, task }
    }

    /// A daemon that runs and reaches the engine through a door.
    pub(crate) async fn and_daemon() -> (Daemon, Self) {
        let mut daemon = Daemon::prepare(|_| {}).await;
        let path = daemon.folder().join("engine.sock");
        let door = Self::open_at(&path);
        daemon.edit_config(|config| config["docker"]["socket_path"] = json!(path));
        daemon.launch().await;
        (daemon, door)
    }

    /// Cuts every connection and takes no more; the socket's file is gone.
    pub(crate) fn shut(&self) {
        self.rules.send_modify(|rules| rules.is_shut = true);
        self.task.abort();
        std::fs::remove_file(&self.path).expect("the socket's file");
    }

    pub(crate) fn reopen(&mut self) {
        *self = Self::open_at(&self.path);
    }

    /// Opens it again; so often whoever asks for a log is cut off.
    pub(crate) fn reopen_refusing_logs(&mut self, times: usize) {
        *self = Self::open_with(&self.path, Rules { refuses_logs: times, ..Rules::default() });
    }

    pub(crate) async fn logs_were_refused(&self) {
        self.come_to("nobody asks for logs", |rules| rules.refuses_logs == 0).await;
    }

    /// From now on attaching takes until [`Self::let_attach`].
    pub(crate) fn hold_attaches(&self) {
        self.rules.send_modify(|rules| rules.holds_attaches = true);
    }

    pub(crate) fn let_attach(&self) {
        self.rules.send_modify(|rules| rules.holds_attaches = false);
    }

    /// From now on the list of containers takes until [`Self::let_list`].
    pub(crate) fn hold_lists(&self) {
        self.rules.send_modify(|rules| rules.holds_lists = true);
    }

    pub(crate) fn let_list(&self) {
        self.rules.send_modify(|rules| rules.holds_lists = false);
    }

    /// Until somebody waits to attach.
    pub(crate) async fn attach_is_waited_for(&self) {
        self.come_to("nobody attaches", |rules| rules.attaches_waiting > 0).await;
    }

    /// The next start reaches the engine, and its answer nobody.
    pub(crate) fn lose_the_answer_to_a_start(&self) {
        self.rules.send_modify(|rules| rules.loses_a_start = true);
    }

    pub(crate) async fn the_answer_was_lost(&self) {
        self.come_to("nothing is started", |rules| !rules.loses_a_start).await;
    }

    /// Holds these from now on, and lets those through that were held before.
    pub(crate) fn hold(&self, held: Option<Held>) {
        self.rules.send_modify(|rules| {
            rules.held = held;
            rules.holding = 0;
        });
    }

    /// Cuts the connections of those who ask for this.
    pub(crate) fn cut(&self, path_has: Option<&'static str>) {
        self.rules.send_modify(|rules| rules.cuts = path_has);
    }

    /// Until one of them is held.
    pub(crate) async fn holds_one(&self) {
        self.come_to("nobody asks for what is held", |rules| rules.holding > 0).await;
    }

    async fn come_to(&self, else_: &str, is_so: impl FnMut(&Rules) -> bool) {
        let mut rules = self.rules.subscribe();
        let come = tokio::time::timeout(SOON, rules.wait_for(is_so)).await;
        come.expect(else_).expect("invariant: the door holds the sender");
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[expect(clippy::disallowed_methods, reason = "the task is held and ended by its door")]
fn serve(listener: UnixListener, rules: Arc<watch::Sender<Rules>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut passing = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            passing.spawn(pass(client, Arc::clone(&rules)));
            while passing.try_join_next().is_some() {}
        }
    })
}

async fn pass(client: UnixStream, rules: Arc<watch::Sender<Rules>>) {
    let mut shut = rules.subscribe();
    tokio::select! {
        _ = carry_both_ways(client, &rules) => {}
        _ = shut.wait_for(|rules| rules.is_shut) => {}
    }
}

async fn carry_both_ways(mut client: UnixStream, rules: &watch::Sender<Rules>) -> io::Result<()> {
    let mut engine = UnixStream::connect(ENGINE).await?;
    let (from_client, to_client) = client.split();
    let (from_engine, to_engine) = engine.split();
    let passage = Passage { rules, is_start: AtomicBool::new(false), asked: Mutex::default() };
    tokio::try_join!(
        passage.carry(from_client, to_engine, Side::Asking),
        passage.carry(from_engine, to_client, Side::Answering),
    )?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Side {
    Asking,
    Answering,
}

/// One connection.
struct Passage<'r> {
    rules: &'r watch::Sender<Rules>,
    /// Whether the request under way is a start.
    is_start: AtomicBool,
    /// Why the answer to the request under way is held.
    asked: Mutex<Option<Held>>,
}

impl Passage<'_> {
    async fn carry(
        &self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
        side: Side,
    ) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = from.read(&mut chunk).await?;
            if read == 0 {
                return to.shutdown().await;
            }
            match side {
                Side::Asking => self.hold(&chunk[..read]).await?,
                Side::Answering => {
                    self.lose()?;
                    let held = self.asked.lock().expect("a lock").take();
                    self.wait_for_leave(held).await;
                }
            }
            to.write_all(&chunk[..read]).await?;
        }
    }

    /// Keeps a request waiting for as long as the rules say, or breaks it off.
    async fn hold(&self, request: &[u8]) -> io::Result<()> {
        if begins(request, "POST", "/attach?") {
            self.rules.send_modify(|rules| rules.attaches_waiting += 1);
            drop(self.rules.subscribe().wait_for(|rules| !rules.holds_attaches).await);
            self.rules.send_modify(|rules| rules.attaches_waiting -= 1);
        }
        if begins(request, "GET", "/containers/json") {
            drop(self.rules.subscribe().wait_for(|rules| !rules.holds_lists).await);
        }
        self.is_start.store(begins(request, "POST", "/start HTTP/"), Ordering::Relaxed);
        let mut is_refused = false;
        if begins(request, "GET", "/logs?") {
            self.rules.send_modify(|rules| {
                is_refused = rules.refuses_logs > 0;
                rules.refuses_logs = rules.refuses_logs.saturating_sub(1);
            });
        }
        let cuts = self.rules.borrow().cuts;
        if is_refused || cuts.is_some_and(|path_has| begins(request, "POST", path_has)) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let held = self.rules.borrow().held;
        let held = held.filter(|held| begins(request, held.method, held.path_has));
        match held {
            Some(Held { is_done: true, .. }) => *self.asked.lock().expect("a lock") = held,
            held => self.wait_for_leave(held).await,
        }
        Ok(())
    }

    /// Waits for as long as the rules hold this.
    async fn wait_for_leave(&self, held: Option<Held>) {
        if held.is_some() {
            self.rules.send_modify(|rules| rules.holding += 1);
            drop(self.rules.subscribe().wait_for(|rules| rules.held != held).await);
        }
    }

    /// Breaks the connection off where the rules say that this answer is lost.
    fn lose(&self) -> io::Result<()> {
        let mut is_lost = false;
        if self.is_start.load(Ordering::Relaxed) {
            self.rules.send_modify(|rules| is_lost = std::mem::take(&mut rules.loses_a_start));
        }
        if is_lost { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}

/// Whether a request of this method and with this in its first line begins in the chunk.
fn begins(chunk: &[u8], method: &str, path_has: &str) -> bool {
    let line = chunk.split(|byte| *byte == b'\r').next().unwrap_or_default();
    line.starts_with(method.as_bytes()) && String::from_utf8_lossy(line).contains(path_has)
}
