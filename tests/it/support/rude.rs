//! A panel on a bare socket that can misbehave in all ways that a program on the other side of a
//! connection can.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What it does with a request once it has read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    Well,
    /// Bytes that are no HTTP.
    Garbage,
    /// 200, with somebody's sign-in page.
    WebPage,
    /// 404, with a page of whoever stands before it.
    WebPageOf404,
    /// Nothing at all.
    Hangs,
    /// 307, to an address of its own.
    Redirects,
    ClosesAtOnce,
    /// 200, and a body that ends too early.
    BreaksOff,
    /// An answer that never comes to its body.
    TricklesItsHead,
    /// 200, and a body of a byte now and then.
    TricklesItsBody,
    /// 200, and a body without end.
    Endless,
}

impl Manners {
    /// Those from which no answer can be had.
    pub(crate) const NOT_TAKING: [Self; 8] = [
        Self::Garbage,
        Self::WebPage,
        Self::WebPageOf404,
        Self::Hangs,
        Self::Redirects,
        Self::ClosesAtOnce,
        Self::BreaksOff,
        Self::TricklesItsHead,
    ];
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) text: String,
    pub(crate) body: Value,
    pub(crate) manners: Manners,
}

impl Heard {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        });
        value.unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }
}

#[derive(Debug)]
struct State {
    manners: Manners,
    heard: Vec<Heard>,
}

/// Lives in the test's own runtime and ends with it.
#[derive(Debug)]
pub(crate) struct RudePanel {
    state: Arc<Mutex<State>>,
    port: u16,
    _server: JoinSet<()>,
}

impl RudePanel {
    pub(crate) async fn start() -> Self {
        Self::start_at(0).await
    }

    pub(crate) async fn start_at(port: u16) -> Self {
        let state = State { manners: Manners::Well, heard: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&state)));
        Self { state, port, _server: server }
    }

    /// The `remote` part of a configuration that has this panel.
    pub(crate) fn config(&self) -> Value {
        json!({
            "enabled": true, "url": format!("http://127.0.0.1:{}/api", self.port),
            "token": "lightd_panel_token_0000", "health_interval": "1s",
        })
    }

    pub(crate) fn set_manners(&self, manners: Manners) {
        lock(&self.state).manners = manners;
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        lock(&self.state).heard.clone()
    }

    /// All attempts to deliver an update.
    pub(crate) fn updates(&self) -> Vec<Heard> {
        self.heard().into_iter().filter(|heard| heard.path == "/api/update").collect()
    }

    /// How often it was told of anything.
    pub(crate) fn update_count(&self) -> usize {
        lock(&self.state).heard.iter().filter(|heard| heard.path == "/api/update").count()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no test panics while it holds this")
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let state = Arc::clone(&state);
        // One that ends early ends itself only.
        connections.spawn(async move { serve(stream, &state).await.ok() });
    }
}

async fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some((head, body)) = read(&mut stream).await? {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let manners = {
            let mut state = lock(state);
            let manners = state.manners;
            let text = String::from_utf8_lossy(&body).into_owned();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            state.heard.push(Heard { path, head, text, body, manners });
            manners
        };
        let goes_on = answer(stream.get_mut(), manners).await?;
        if !goes_on {
            return Ok(());
        }
    }
    Ok(())
}

async fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let begin = head.len();
        if stream.read_line(&mut head).await? == 0 {
            return Ok(None);
        }
        let line = head[begin..].trim();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some((head, body)))
}

/// Whether the connection goes on.
async fn answer(stream: &mut TcpStream, manners: Manners) -> std::io::Result<bool> {
    let pause = || tokio::time::sleep(Duration::from_millis(100));
    match manners {
        Manners::Well => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await?;
            return Ok(true);
        }
        Manners::Garbage => stream.write_all(b"\0\xff\xfe what is HTTP?\r\n\r\n").await?,
        Manners::WebPage | Manners::WebPageOf404 => {
            let status = if manners == Manners::WebPage { "200 OK" } else { "404 Not Found" };
            let page = "<!DOCTYPE html><title>Sign in</title>";
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{page}", page.len());
            stream.write_all(head.as_bytes()).await?;
            return Ok(true);
        }
        Manners::Hangs => std::future::pending().await,
        Manners::Redirects => {
            let head = "HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            return Ok(true);
        }
        Manners::ClosesAtOnce => {}
        Manners::BreaksOff => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await?;
        }
        Manners::TricklesItsHead => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ").await?;
            loop {
                stream.write_all(b"a").await?;
                pause().await;
            }
        }
        Manners::TricklesItsBody => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await?;
            loop {
                stream.write_all(b"a").await?;
                pause().await;
            }
        }
        Manners::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await?;
            loop {
                stream.write_all(&[b'x'; 64 * 1024]).await?;
            }
        }
    }
    Ok(false)
}
