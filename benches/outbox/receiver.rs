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
    /// When each request came, looks at the health among them.
    #[cfg(feature = "benching")]
    requests: Vec<Instant>,
}

pub(crate) struct Receiver {
    port: u16,
    heard: Arc<Mutex<Heard>>,
}

impl Receiver {
    pub(crate) fn start() -> Result<Self> {
        Self::start_on(0)
    }

    /// On this port, or one that is free.
    pub(crate) fn start_on(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        // Thousands may come in one moment.
        rustix::net::listen(&listener, 4096)?;
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

    /// How many requests came in each second from `began` on.
    #[cfg(feature = "benching")]
    pub(crate) fn per_second(&self, began: Instant) -> Vec<usize> {
        let mut seconds = Vec::new();
        for at in &lock(&self.heard).requests {
            let second = at.saturating_duration_since(began).as_secs();
            let second = usize::try_from(second).unwrap_or(0);
            if seconds.len() <= second {
                seconds.resize(second + 1, 0);
            }
            seconds[second] += 1;
        }
        seconds
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
        let mut heard = lock(heard);
        #[cfg(feature = "benching")]
        heard.requests.push(Instant::now());
        if is_update {
            heard.updates += 1;
            heard.connections += usize::from(!is_counted);
            is_counted = true;
            heard.first.get_or_insert_with(Instant::now);
            heard.last = Some(Instant::now());
        }
        drop(heard);
        stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}
