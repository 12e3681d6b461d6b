//! A door in front of the engine's socket that can be shut: what goes through it is cut, and nothing
//! new gets in, as if the engine had ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const ENGINE: &str = "/var/run/docker.sock";

pub(crate) struct Door {
    path: PathBuf,
    open: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl Door {
    /// Opens it at `path`.
    pub(crate) fn open_at(path: &Path) -> Self {
        let open = Arc::new(watch::Sender::new(true));
        let listener = UnixListener::bind(path).expect("a socket");
        let task = serve(listener, open.subscribe());
        Self { path: path.to_owned(), open, task }
    }

    /// Cuts every connection and takes no more; the socket's file is gone.
    pub(crate) fn shut(&self) {
        self.open.send_replace(false);
        self.task.abort();
        std::fs::remove_file(&self.path).expect("the socket's file");
    }

    pub(crate) fn reopen(&mut self) {
        *self = Self::open_at(&self.path);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[expect(clippy::disallowed_methods, reason = "the task is held and ended by its door")]
fn serve(listener: UnixListener, open: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut passing = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            passing.spawn(pass(client, open.clone()));
            while passing.try_join_next().is_some() {}
        }
    })
}

async fn pass(mut client: UnixStream, mut open: watch::Receiver<bool>) {
    let mut engine = UnixStream::connect(ENGINE).await.expect("the engine");
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut engine) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}
