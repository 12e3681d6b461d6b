//! A panel that takes everything, a thread for each connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::client::Result;

#[derive(Default)]
struct Heard {
    updates: usize,
    /// Connections over which updates came.
    connections: usize,
    first: Option<Instant>,
    last: Option<Instant>,
}

pub(crate) struct Receiver {
    port: u16,
    heard: Arc<Mutex<Heard>>,
}

impl Receiver {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let shared = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heard = Arc::clone(&shared);
                // A connection that breaks ends its thread.
                std::thread::spawn(move || serve(stream, &heard).ok());
            }
        });
        Ok(Self { port, heard })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn wait_for(&self, updates: usize, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let seen = lock(&self.heard).updates;
            if seen >= updates {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{seen} of {updates} updates came").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// From the first update to the last.
    pub(crate) fn took(&self) -> Duration {
        let heard = lock(&self.heard);
        heard.first.zip(heard.last).map_or(Duration::ZERO, |(first, last)| last - first)
    }

    pub(crate) fn update_connections(&self) -> usize {
        lock(&self.heard).connections
    }
}

fn lock(heard: &Mutex<Heard>) -> std::sync::MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(stream: TcpStream, heard: &Mutex<Heard>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut is_counted = false;
    loop {
        let (mut line, mut length, mut is_update) = (String::new(), 0, false);
        loop {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            is_update |= line.starts_with("POST ");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        if is_update {
            let mut heard = lock(heard);
            heard.updates += 1;
            heard.connections += usize::from(!is_counted);
            is_counted = true;
            heard.first.get_or_insert_with(Instant::now);
            heard.last = Some(Instant::now());
        }
        stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}
