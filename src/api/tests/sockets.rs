use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::node::{Node, TOKEN};
use crate::domain::event::{Signal, SignalKind, StateEvent, StateName};
use crate::domain::ids::{ContainerId, RunId};
use crate::domain::lifecycle::{EndedBy, LastExit, RunTimes};
use crate::domain::observed::Exit;
use crate::domain::stream::Stream;

const PATIENCE: Duration = Duration::from_secs(10);

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

async fn connect(address: SocketAddr, id: &str, query: &str) -> Result<Client, (u16, Value)> {
    let url = format!("ws://{address}/ws/{id}?{query}");
    match connect_async(url).await {
        Ok((socket, _)) => Ok(Client(socket)),
        Err(Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            Err((response.status().as_u16(), serde_json::from_slice(&body).unwrap()))
        }
        Err(other) => panic!("{other}"),
    }
}

impl Client {
    async fn next(&mut self) -> Message {
        let next = tokio::time::timeout(PATIENCE, self.0.next()).await;
        next.expect("a frame in time").expect("the socket is open").expect("a whole frame")
    }

    /// The next frame with this event; others are passed over.
    async fn expect(&mut self, event: &str) -> Value {
        loop {
            if let Message::Text(text) = self.next().await {
                let frame: Value = serde_json::from_str(&text).unwrap();
                if frame["event"] == event {
                    return frame;
                }
            }
        }
    }

    async fn closed(&mut self) -> u16 {
        loop {
            if let Message::Close(frame) = self.next().await {
                return frame.map_or(0, |frame| CloseCode::into(frame.code));
            }
        }
    }

    async fn send(&mut self, text: impl Into<String>) {
        self.0.send(Message::text(text.into())).await.unwrap();
    }
}

fn with_token(rest: &str) -> String {
    format!("token={TOKEN}{rest}")
}

fn print(node: &Node, id: &ContainerId, text: &str) {
    let handle = node.state.supervisor.get(id).unwrap();
    handle.console().push(RunId(1), Stream::Out, 0, text.as_bytes());
}

#[tokio::test]
async fn a_refusal_is_an_answer_before_the_upgrade() {
    let mut node = Node::new().await;
    node.container("a").await;
    let (_, narrow) =
        node.ask("POST", "/auth/tokens", json!({"permissions": ["files.read"]})).await;
    let narrow = format!("token={}", narrow["token"].as_str().unwrap());
    let address = node.listen().await;
    for (id, query, status, code) in [
        ("a", "", 401, "unauthorized"),
        ("a", "token=lightd_wrong-wrong-wrong", 401, "unauthorized"),
        ("b", &with_token(""), 404, "not_found"),
        ("a", &narrow, 403, "scope"),
        ("a", &with_token("&events=nonsense"), 400, "invalid"),
    ] {
        let (got, body) = connect(address, id, query).await.err().expect("a refusal");
        assert_eq!((got, body["code"].as_str()), (status, Some(code)), "{id} {query}");
    }
    let plain = node.ask("GET", &format!("/ws/a?{}", with_token("")), Value::Null).await;
    assert_eq!((plain.0.as_u16(), &plain.1["code"]), (400, &json!("not_a_websocket")));
}

#[tokio::test]
async fn the_present_state_comes_first_and_then_what_happens() {
    let mut node = Node::new().await;
    let id = node.container("a").await;
    let address = node.listen().await;
    let mut client = connect(address, "a", &with_token("")).await.ok().unwrap();
    let Message::Text(first) = client.next().await else { panic!("no text") };
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(first["event"], "event", "{first}");
    assert!(["installing", "unknown"].contains(&first["data"].as_str().unwrap()), "{first}");

    print(&node, &id, "hello\nworld\n");
    let mut text = String::new();
    let mut seq = 0;
    while !text.contains("world") {
        let frame = client.expect("console").await;
        text.push_str(frame["data"].as_str().unwrap());
        seq = frame["seq"].as_u64().unwrap();
    }
    assert_eq!((text.as_str(), seq), ("hello\nworld\n", 2));
    let say = SignalKind::DaemonMessage("pulling".to_owned());
    node.signals.send(Signal { container: id.clone(), kind: say }).unwrap();
    assert_eq!(client.expect("daemon_message").await["data"], "pulling");
    let exit = StateEvent {
        name: StateName::Exit,
        run: RunId(1),
        last_exit: Some(LastExit {
            run: RunId(1),
            exit: Exit {
                code: 3,
                oom_engine: false,
                oom_kernel: false,
                at_ms: 0,
                clock_set_by_ms: 0,
            },
            ended_by: EndedBy::Itself,
            times: RunTimes::default(),
            reason: None,
        }),
        ready_after_ms: None,
    };
    node.signals.send(Signal { container: id, kind: SignalKind::State(exit) }).unwrap();
    loop {
        let frame = client.expect("event").await;
        if frame["data"] == "exit" {
            assert_eq!((&frame["exit_code"], &frame["oom_killed"]), (&json!(3), &json!(false)));
            break;
        }
    }
}

#[tokio::test]
async fn a_client_that_comes_back_gets_exactly_what_it_missed() {
    let mut node = Node::new().await;
    let id = node.container("a").await;
    let address = node.listen().await;
    print(&node, &id, "1\n2\n3\n4\n");
    let query = with_token("&since=2&events=console");
    let mut client = connect(address, "a", &query).await.ok().unwrap();
    let frame = client.expect("console").await;
    assert_eq!((&frame["data"], &frame["seq"]), (&json!("3\n4\n"), &json!(4)));
    client.send(r#"{"event":"request_logs","lines":2}"#).await;
    let logs = client.expect("logs").await;
    assert_eq!((&logs["data"], &logs["seq"]), (&json!("3\n4\n"), &json!(4)));
}

#[tokio::test]
async fn what_cannot_be_done_is_an_error_event_and_the_socket_stays() {
    let mut node = Node::new().await;
    node.container("a").await;
    let (_, reader) = node
        .ask("POST", "/auth/tokens", json!({"containers": ["a"], "permissions": ["console.read"]}))
        .await;
    let reader = format!("token={}", reader["token"].as_str().unwrap());
    let address = node.listen().await;
    let mut client = connect(address, "a", &with_token("")).await.ok().unwrap();
    // What the engine has is not known until it was looked for, and here it never is.
    while client.expect("event").await["data"] != "unknown" {}
    for (frame, code) in [
        ("nope", "invalid_json"),
        (r#"{"event":"dance"}"#, "unknown_event"),
        (r#"{"event":"power","action":"explode"}"#, "invalid"),
        // There is no engine that could say whether it runs.
        (r#"{"event":"send_command","command":"x"}"#, "engine_unavailable"),
        (r#"{"event":"auth","token":"lightd_wrong-wrong-wrong"}"#, "unauthorized"),
    ] {
        client.send(frame).await;
        assert_eq!(client.expect("error").await["code"], code, "{frame}");
    }
    let mut client = connect(address, "a", &reader).await.ok().unwrap();
    client.send(r#"{"event":"send_command","command":"x"}"#).await;
    assert_eq!(client.expect("error").await["code"], "scope");
    client.send(r#"{"event":"request_logs"}"#).await;
    assert_eq!(client.expect("logs").await["data"], "");
}

#[tokio::test]
async fn sockets_end_with_their_reason() {
    let mut node = Node::new().await;
    node.container("a").await;
    let (_, issued) = node.ask("POST", "/auth/tokens", json!({"ttl": "1h"})).await;
    let query = format!("token={}", issued["token"].as_str().unwrap());
    let address = node.listen().await;
    let mut revoked = connect(address, "a", &query).await.ok().unwrap();
    let mut renewed = connect(address, "a", &query).await.ok().unwrap();
    renewed.send(json!({"event": "auth", "token": TOKEN}).to_string()).await;
    renewed.send(r#"{"event":"request_logs"}"#).await;
    renewed.expect("logs").await;
    let uri = format!("/auth/tokens/{}", issued["id"].as_str().unwrap());
    assert_eq!(node.ask("DELETE", &uri, Value::Null).await.0, 200);
    assert_eq!(revoked.closed().await, 4401);

    let mut large = connect(address, "a", &with_token("")).await.ok().unwrap();
    large.send("x".repeat(70_000)).await;
    assert_eq!(large.closed().await, 1009);

    node.state.stop.cancel();
    assert_eq!(renewed.closed().await, 1001);
    let ended = node.state.sockets.drained();
    tokio::time::timeout(PATIENCE, ended).await.expect("all sockets have ended");
}

#[tokio::test]
async fn a_token_for_one_use_opens_one_socket_which_stays_open() {
    let mut node = Node::new().await;
    let id = node.container("a").await;
    let (_, issued) = node.ask("POST", "/auth/tokens", json!({"remove_on_use": true})).await;
    let query = format!("token={}", issued["token"].as_str().unwrap());
    let address = node.listen().await;
    let mut first = connect(address, "a", &query).await.ok().unwrap();
    assert_eq!(connect(address, "a", &query).await.err().unwrap().0, 401);
    print(&node, &id, "still here\n");
    assert_eq!(first.expect("console").await["data"], "still here\n");
}

/// CVE-2025-69199: a flood of frames on a WebSocket took the daemon down.
#[tokio::test]
async fn a_flood_of_frames_is_slowed_and_then_cut_off() {
    let mut node = Node::new().await;
    node.container("a").await;
    let address = node.listen().await;
    let mut client = connect(address, "a", &with_token("")).await.ok().unwrap();
    for _ in 0..400 {
        // The end may come in the midst of it.
        if client.0.send(Message::text("{}")).await.is_err() {
            break;
        }
    }
    let mut refused = 0;
    let code = loop {
        match client.next().await {
            Message::Text(text) if text.contains("rate_limited") => refused += 1,
            Message::Close(frame) => break frame.map_or(0, |frame| CloseCode::into(frame.code)),
            _ => {}
        }
    };
    assert!(refused > 100, "{refused}");
    assert_eq!(code, 1008);
}

/// GHSA-ghrq-5wpp-hxx5: a length that a client made up ended the daemon, not the connection.
#[tokio::test]
async fn ghsa_ghrq_5wpp_hxx5_lengths_that_cannot_be_end_their_own_socket_only() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut node = Node::new().await;
    let id = node.container("a").await;
    let address = node.listen().await;
    let mut other = connect(address, "a", &with_token("&events=console")).await.ok().unwrap();
    let all = [0xff; 8];
    for (what, head) in [
        ("all that fits into 64 bits", [&[0x81, 0xff][..], &all].concat()),
        ("the largest positive number", [&[0x81, 0xff, 0x7f][..], &all[1..]].concat()),
        ("a ping of a megabyte", vec![0x89, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0]),
        ("a close without a whole code", vec![0x88, 0x81, 0, 0, 0, 0, 3]),
        ("bits that nobody has defined", vec![0xf1, 0x80, 0, 0, 0, 0]),
        ("a continuation of nothing", vec![0x80, 0x80, 0, 0, 0, 0]),
    ] {
        let Client(socket) = connect(address, "a", &with_token("")).await.ok().unwrap();
        let MaybeTlsStream::Plain(mut stream) = socket.into_inner() else { panic!("no TLS") };
        // What follows is the mask, or content.
        stream.write_all(&[&head[..], &[0; 8]].concat()).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "{what}: the socket stays open");
    }
    print(&node, &id, "still here\n");
    assert_eq!(other.expect("console").await["data"], "still here\n");
    assert_eq!(node.ask("GET", "/containers/a", Value::Null).await.0, 200);
}

#[tokio::test]
async fn what_breaks_the_protocol_is_told_so() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut node = Node::new().await;
    node.container("a").await;
    let address = node.listen().await;
    for (what, frame, code) in [
        ("a frame without a mask", &[0x81, 0x02, b'{', b'}'][..], 1002_u16),
        ("bits that nobody has defined", &[0xf1, 0x80, 0, 0, 0, 0], 1002),
        ("a kind that nobody has defined", &[0x83, 0x80, 0, 0, 0, 0], 1002),
        ("a continuation of nothing", &[0x80, 0x80, 0, 0, 0, 0], 1002),
        ("a close without a whole code", &[0x88, 0x81, 0, 0, 0, 0, 3], 1002),
        ("a text that is none", &[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xff], 1007),
    ] {
        let query = with_token("&events=console");
        let Client(socket) = connect(address, "a", &query).await.ok().unwrap();
        let MaybeTlsStream::Plain(mut stream) = socket.into_inner() else { panic!("no TLS") };
        stream.write_all(frame).await.unwrap();
        let mut answer = [0; 4];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
        read.expect("an answer in time").unwrap_or_else(|error| panic!("{what}: {error}"));
        let said = u16::from_be_bytes([answer[2], answer[3]]);
        assert_eq!((answer[0], said), (0x88, code), "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_keeps_nothing_from_another() {
    let mut node = Node::new().await;
    let id = node.container("a").await;
    let address = node.listen().await;
    let query = with_token("&events=console");
    let _stuck = connect(address, "a", &query).await.ok().unwrap();
    let mut reader = connect(address, "a", &query).await.ok().unwrap();
    let mut expected = 0;
    for burst in 0..100 {
        let lines = "0123456789abcdef0123456789abcdef0123456789abcdef\n".repeat(2000);
        print(&node, &id, &lines);
        expected += 2000;
        let mut seq = 0;
        while seq < expected {
            seq = reader.expect("console").await["seq"].as_u64().unwrap();
        }
        assert_eq!(seq, expected, "burst {burst}");
    }
}

/// Time that passes for the daemon alone.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::sleep(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_client_without_a_sign_of_life_is_let_go() {
    let mut node = Node::new().await;
    node.container("a").await;
    let address = node.listen().await;
    let query = with_token("&events=console");
    let mut silent = connect(address, "a", &query).await.ok().unwrap();
    let mut lively = connect(address, "a", &query).await.ok().unwrap();
    for _ in 0..4 {
        pass(Duration::from_secs(31)).await;
        // Reading answers the ping.
        assert!(matches!(lively.next().await, Message::Ping(_)));
        lively.0.flush().await.unwrap();
    }
    assert_eq!(silent.closed().await, 1008);
    lively.send(r#"{"event":"request_logs"}"#).await;
    lively.expect("logs").await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_let_go() {
    use tokio::io::AsyncReadExt as _;
    let mut node = Node::new().await;
    let id = node.container("a").await;
    let address = node.listen().await;
    let Client(socket) = connect(address, "a", &with_token("")).await.ok().unwrap();
    let MaybeTlsStream::Plain(mut stream) = socket.into_inner() else { panic!("no TLS") };
    // More than the kernel keeps for a client.
    let mut written = 0;
    while written < 32 << 20 {
        let lines = "0123456789abcdef0123456789abcdef0123456789abcdef\n".repeat(20_000);
        print(&node, &id, &lines);
        written += lines.len();
        pass(Duration::from_secs(1)).await;
    }
    pass(Duration::from_secs(40)).await;
    let mut got = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut got)).await;
    assert!(ended.is_ok(), "the socket stays open");
    assert!(got.len() < written, "it was read to the end: {}", got.len());
}
