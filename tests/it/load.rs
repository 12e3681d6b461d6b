//! Many readers, some of whom never read: the rest get everything, and memory stays bounded. The large
//! form is `cargo bench --bench streams -- load`.

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::SOON;
use crate::support::process::Daemon;
use crate::support::ws::Socket;

const CONTAINERS: usize = 5;
const READERS: usize = 16;
const SLEEPERS: usize = 4;
const LINES: u64 = 10_000;
/// For each socket what one frame of output and the protocol's buffers come to, and something for the
/// consoles and their journals.
const MEMORY_MAX_KIB: u64 = (CONTAINERS * (READERS + SLEEPERS) * 160 + CONTAINERS * 2048) as u64;

/// A WebSocket that is never read, with hardly any room for it in the kernel.
async fn sleeper(daemon: &Daemon, id: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stream =
        socket.connect(([127, 0, 0, 1], daemon.port).into()).await.expect("a connection");
    let head = format!(
        "GET /ws/{id}?token={} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        daemon.token
    );
    stream.write_all(head.as_bytes()).await.expect("a request");
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 101");
    stream
}

/// Reads to the last line; each number must follow the one before.
async fn read_all(mut socket: Socket) {
    let (mut next, mut rest) = (1, String::new());
    let all = |frame: &serde_json::Value| {
        assert_eq!(frame["event"], "console", "{frame}");
        rest.push_str(frame["data"].as_str().expect("a text"));
        let whole = rest.rfind('\n').map_or(0, |at| at + 1);
        for line in rest[..whole].lines().filter_map(|line| line.strip_prefix("line ")) {
            assert_eq!(line.split(' ').next(), Some(next.to_string().as_str()));
            next += 1;
        }
        rest.drain(..whole);
        next > LINES
    };
    socket.expect_within(SOON * 3, "all lines", all).await;
}

#[tokio::test]
async fn those_who_never_read_cost_the_others_no_line_and_the_node_little_memory() {
    let daemon = Daemon::start().await;
    let ids: Vec<String> = (0..CONTAINERS).map(|n| daemon.id(&format!("load{n}"))).collect();
    let command = format!("echo Ready; read go; guest lines {LINES} 80; guest forever");
    for id in &ids {
        let limits = json!({"memory": 64 << 20});
        let spec = json!({"startup_command": command, "tty": false, "limits": limits});
        daemon.run(id, spec).await;
    }
    let before = daemon.peak_memory_kib();
    let (mut readers, mut sleepers) = (Vec::new(), Vec::new());
    for id in &ids {
        for _ in 0..SLEEPERS {
            sleepers.push(sleeper(&daemon, id).await);
        }
        for _ in 0..READERS {
            let url = daemon.ws_url(id, &daemon.token, "&events=console");
            readers.push(read_all(Socket::open(&url).await));
        }
    }
    for id in &ids {
        let path = format!("/containers/{id}/command");
        daemon.client().post(&path, json!({"command": "go"})).await.is(202);
    }
    join_all(readers).await;
    let grown = daemon.peak_memory_kib() - before;
    assert!(grown < MEMORY_MAX_KIB, "{grown} KiB for {} sockets", sleepers.len() * 5);
    drop(sleepers);
    daemon.close().await;
}

#[tokio::test]
async fn a_start_beside_readers_who_never_read_is_as_quick_as_without_them() {
    let daemon = Daemon::start().await;
    let (alone, beside) = (daemon.id("alone"), daemon.id("beside"));
    let spec = json!({
        "startup_command": "guest lines 100000 80; echo Server is up; guest forever",
        "tty": false, "start_pattern": "^Server is up", "limits": {"memory": 64 << 20},
    });
    let mut took = Vec::new();
    let mut sleepers = Vec::new();
    for id in [&alone, &beside] {
        daemon.create(id, spec.clone()).await;
        if id == &beside {
            for _ in 0..20 {
                sleepers.push(sleeper(&daemon, id).await);
            }
        }
        daemon.power(id, "start").await;
        let shown = daemon.state(id, "running").await;
        took.push(shown["ready_after_ms"].as_u64().expect("a time"));
    }
    // They have 8 MB before them, and room for a few KiB.
    assert!(took[1] < 3 * took[0] + 2000, "{took:?}");
    drop(sleepers);
    daemon.close().await;
}
