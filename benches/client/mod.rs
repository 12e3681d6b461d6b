//! What the benches have in common: a client that costs little, and lightd as a process.
//!
//! Files of their own under `benches/` use it; nothing here measures anything.

#![expect(clippy::disallowed_types, reason = "a bench measures real time")]
#![allow(dead_code, reason = "not every bench needs everything")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

pub(crate) const TOKEN: &str = "lightd_bench_token_0123456789";

/// lightd as a process that ends with this.
pub(crate) struct Lightd {
    child: Child,
    pub(crate) port: u16,
}

impl Lightd {
    /// Starts it with its data in `folder`. `sections` is what the configuration has beside address and
    /// token, as members of the JSON object.
    pub(crate) fn start(folder: &Path, sections: &str) -> Result<Self> {
        let port = free_port()?;
        let config = format!(
            r#"{{"server": {{"host": "127.0.0.1", "port": {port}}},
                "authorization": {{"token": "{TOKEN}"}}, {sections}}}"#
        );
        let path = folder.join("config.json");
        write(&path, &config)?;
        let child =
            Command::new(env!("CARGO_BIN_EXE_lightd")).arg("--config").arg(&path).spawn()?;
        let lightd = Self { child, port };
        wait_for_port(port, "/api/v1/public/ping")?;
        Ok(lightd)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu_seconds(self.pid())
    }

    pub(crate) fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = between(&status, "VmRSS:", "kB").ok_or("no VmRSS")?;
        Ok(line.trim().parse()?)
    }

    /// Waits until a container is in that state.
    pub(crate) fn wait_for(&self, id: &str, state: &str) -> Result<()> {
        let wanted = format!("\"state\":\"{state}\"");
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut connection = Connection::open(self.port)?;
        loop {
            let seen = connection.get(&format!("/containers/{id}"))?;
            if seen.contains(&wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{id} is not {state} but {seen}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Result<String> {
        exchange(self.port, "POST", path, body)
    }

    /// A new volume's id.
    pub(crate) fn volume(&self) -> Result<String> {
        let made = self.post("/volumes", "")?;
        Ok(between(&made, "\"volume_id\":\"", "\"").ok_or("no volume was made")?.to_owned())
    }
}

impl Drop for Lightd {
    fn drop(&mut self) {
        quietly(Command::new("kill").arg(self.pid().to_string()));
        if let Err(error) = self.child.wait() {
            eprintln!("lightd was not waited for: {error}");
        }
    }
}

/// A keep-alive connection, written by hand so that the client costs little and the same for both.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(600)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<String> {
        self.send("GET", path, "")
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> Result<String> {
        let content = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
             Accept: Application/vnd.pkglatv1+json\r\n{content}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(head.as_bytes())?;
        let (mut line, mut length, mut status) = (String::new(), 0, String::new());
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            if status.is_empty() {
                status.clone_from(&line);
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let body = String::from_utf8(body)?;
        let is_good = status.split_whitespace().nth(1).is_some_and(|code| code.starts_with('2'));
        if is_good {
            Ok(body)
        } else {
            Err(format!("{method} {path}: {} {body}", status.trim()).into())
        }
    }
}

pub(crate) fn exchange(port: u16, method: &str, path: &str, body: &str) -> Result<String> {
    Connection::open(port)?.send(method, path, body)
}

/// What a process has used of the processors so far.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

pub(crate) fn quietly(command: &mut Command) {
    if let Err(error) = command.stdout(Stdio::null()).stderr(Stdio::null()).status() {
        eprintln!("{command:?}: {error}");
    }
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

pub(crate) fn wait_for_port(port: u16, path: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if exchange(port, "GET", path, "").is_ok() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("nobody answers on port {port}").into());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

pub(crate) fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    text.split_once(before)?.1.split_once(after).map(|(found, _)| found)
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::File::create(path)?.write_all(text.as_bytes())?;
    Ok(())
}
