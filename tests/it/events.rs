//! A container's event stream: what its WebSocket sends, over plain HTTP, resumable.

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::process::Daemon;
use crate::support::sse::EventStream;
use crate::support::wait::eventually;

fn path(id: &str, query: &str) -> String {
    format!("/containers/{id}/events{query}")
}

async fn say(daemon: &Daemon, id: &str, text: &str) {
    let command = json!({"command": text});
    daemon.client().post(&format!("/containers/{id}/command"), command).await.is(202);
}

fn is(event: &str) -> impl FnMut(&Value) -> bool {
    move |frame| frame["event"] == event
}

#[tokio::test]
async fn a_stream_tells_what_a_socket_tells() {
    let daemon = Daemon::start().await;
    let id = daemon.id("same");
    let talker = "echo Ready; while read line; do echo \"got $line\"; done";
    daemon.create(&id, json!({"tty": false, "startup_command": talker})).await;
    let client = daemon.client().without_accept();
    let mut stream = EventStream::open(&client, &path(&id, ""), None).await;
    let mut socket = daemon.ws(&id).await;
    assert_eq!(stream.next().await, Some(json!({"event": "event", "data": "ready", "since": "0"})));
    assert_eq!(stream.last_id.as_deref(), Some("0"), "a place to come back to, before any line");
    daemon.power(&id, "start").await;
    let heard = stream.expect("the first line", is("console")).await;
    assert_eq!(heard, json!({"event": "console", "data": "Ready\n", "seq": 1}));
    assert_eq!(stream.last_id.as_deref(), Some("1"));
    assert_eq!(socket.expect("the first line", is("console")).await, heard);
    stream.expect("the state", |frame| frame["data"] == "running").await;
    let figures = stream.expect("figures", is("stats")).await;
    assert_eq!(figures["memory_limit"], 64 << 20);
    assert_eq!(stream.last_id.as_deref(), Some("1"), "only the console moves a reader on");

    let filtered = path(&id, "?events=console");
    let mut console = EventStream::open(&client, &filtered, None).await;
    say(&daemon, &id, "one").await;
    assert_eq!(
        console.next().await,
        Some(json!({"event": "console", "data": "got one\n", "seq": 2}))
    );
    // A proxy and a browser are told to leave it alone, a silent one is kept alive by comments.
    say(&daemon, &id, "two").await;
    assert_eq!(
        console.next().await,
        Some(json!({"event": "console", "data": "got two\n", "seq": 3}))
    );
    assert!(console.others.contains(&":".to_owned()), "{:?}", console.others);
    // The token in the address is enough, for a browser sets no headers.
    let in_query = path(&id, &format!("?events=console&since=2&token={}", daemon.token));
    let mut late = EventStream::open(&client.anonymous(), &in_query, None).await;
    assert_eq!(late.next().await, Some(json!({"event": "console", "data": "got two\n", "seq": 3})));
    daemon.close().await;
}

#[tokio::test]
async fn a_reader_that_comes_back_gets_each_byte_once_however_often_it_went() {
    const LINES: u64 = 20_000;
    let daemon = Daemon::start().await;
    let id = daemon.id("resume");
    let command = format!(
        "printf 'Name? '; read name; echo \"hello $name\"; guest lines {LINES} 60; \
         printf 'all told'; guest forever"
    );
    let spec = json!({"tty": false, "startup_command": command, "limits": {"memory": 64 << 20}});
    daemon.create(&id, spec).await;
    let (client, url) = (daemon.client(), path(&id, "?events=console"));
    let mut stream = EventStream::open(&client, &url, None).await;
    daemon.power(&id, "start").await;
    let prompt = stream.expect("the prompt", is("console")).await;
    assert_eq!((&prompt["data"], &prompt["partial"]), (&json!("Name? "), &json!(true)));
    assert_eq!(stream.last_id.as_deref(), Some("0.6"));
    assert_eq!(prompt["since"], "0.6", "a socket's reader is told where to go on, too");
    // Away within a line, and while it goes on.
    let mut last_id = stream.last_id.take();
    drop(stream);
    say(&daemon, &id, "you").await;
    let (mut text, mut connections) = ("Name? ".to_owned(), 0);
    while !text.ends_with("all told") {
        let mut stream = EventStream::open(&client, &url, last_id.as_deref()).await;
        connections += 1;
        for _ in 0..3 {
            let event = stream.next().await.expect("an event");
            assert_eq!(event["event"], "console", "{event}");
            text.push_str(event["data"].as_str().expect("a text"));
            if text.ends_with("all told") {
                break;
            }
        }
        last_id = stream.last_id.take();
    }
    assert!(connections > 5, "{connections}");
    let numbers = |text: &str| -> Vec<u64> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("line "));
        lines
            .map(|line| line.split(' ').next().unwrap_or_default().parse().expect("a number"))
            .collect()
    };
    assert_eq!(numbers(&text), (1..=LINES).collect::<Vec<_>>());
    assert!(text.starts_with("Name? hello you\nline 1 "), "{:.80}", text);
    assert_eq!(text.lines().count() as u64, LINES + 2);
    daemon.close().await;
}

#[tokio::test]
async fn a_stream_is_refused_and_ended_as_a_socket_is() {
    let mut daemon = Daemon::start_with(|config| {
        config["sockets"] = json!({"per_container": 2});
    })
    .await;
    let (id, gone) = (daemon.id("rights"), daemon.id("gone"));
    daemon.create(&id, json!({})).await;
    daemon.create(&gone, json!({})).await;
    let client = daemon.client();
    let refused =
        async |client: &crate::support::client::Client, path: &str, last: Option<&str>| {
            let (status, body) =
                EventStream::try_open(client, path, last).await.expect_err("a refusal");
            (status, body["code"].as_str().unwrap_or_default().to_owned())
        };
    let told = |status: u16, code: &str| (status, code.to_owned());
    let all = path(&id, "");
    assert_eq!(refused(&client.anonymous(), &all, None).await, told(401, "unauthorized"));
    assert_eq!(refused(&client, &path("nobody", ""), None).await, told(404, "not_found"));
    assert_eq!(refused(&client, &path(&id, "?events=x"), None).await, told(400, "invalid"));
    assert_eq!(refused(&client, &path(&id, "?since=x"), None).await, told(400, "invalid"));
    assert_eq!(refused(&client, &all, Some("7.x")).await, told(400, "invalid"));

    let issue = async |permissions: Value| {
        let body = json!({"ttl": "1h", "containers": [id], "permissions": permissions});
        client.post("/auth/tokens", body).await.is(201)
    };
    let with = |issued: &Value| client.with_token(issued["token"].as_str().expect("a token"));
    let files = with(&issue(json!(["files.read"])).await);
    assert_eq!(refused(&files, &all, None).await, told(403, "scope"));
    let issued = issue(json!(["containers.read"])).await;
    let states = with(&issued);
    assert_eq!(refused(&states, &path(&gone, ""), None).await, told(403, "scope"));
    let mut watched = EventStream::open(&states, &all, None).await;
    assert_eq!(watched.next().await, Some(json!({"event": "event", "data": "ready"})));
    let _second = daemon.ws(&id).await;
    assert_eq!(refused(&client, &all, None).await, told(429, "too_many_sockets"));
    let revoke = format!("/auth/tokens/{}", issued["id"].as_str().expect("an id"));
    client.delete(&revoke).await.is(200);
    let last = watched.expect("its end", is("error")).await;
    assert_eq!(last["code"], "unauthorized");
    assert_eq!(watched.next().await, None);
    assert_eq!(refused(&states, &all, None).await, told(401, "unauthorized"));

    let mut of_gone = EventStream::open(&client, &path(&gone, ""), None).await;
    of_gone.next().await;
    client.delete(&format!("/containers/{gone}")).await.is(200);
    assert_eq!(of_gone.expect("its end", is("error")).await["code"], "deleted");
    let mut suspended =
        eventually("a free place", SOON, async || EventStream::try_open(&client, &all, None).await)
            .await;
    daemon.power(&id, "suspend").await;
    assert_eq!(suspended.expect("its end", is("error")).await["code"], "suspended");
    assert_eq!(suspended.next().await, None);
    assert_eq!(refused(&client, &all, None).await, told(409, "suspended"));
    daemon.power(&id, "unsuspend").await;
    let mut last = EventStream::open(&client, &all, None).await;
    last.next().await;
    daemon.terminate().await;
    assert_eq!(last.expect("its end", is("error")).await["code"], "stopping");
    assert_eq!(last.next().await, None, "and no connection that breaks off");
    daemon.launch().await;
    daemon.close().await;
}

#[tokio::test]
async fn a_stream_that_nobody_reads_loses_its_place() {
    let daemon = Daemon::start_with(|config| {
        config["sockets"] = json!({"per_container": 1});
    })
    .await;
    let id = daemon.id("unread");
    let spec = json!({"tty": false, "startup_command": "guest lines 400000 80; guest forever"});
    daemon.create(&id, spec).await;
    let (client, all) = (daemon.client(), path(&id, ""));
    let unread = EventStream::open(&client, &all, None).await;
    daemon.power(&id, "start").await;
    let (status, refusal) =
        EventStream::try_open(&client, &all, None).await.expect_err("the only place is taken");
    assert_eq!((status, &refusal["code"]), (429, &json!("too_many_sockets")));
    // Nothing but silence tells lightd that nobody is there: after half a minute of it.
    eventually("the place to be free again", 4 * SOON, async || {
        EventStream::try_open(&client, &all, None).await
    })
    .await;
    drop(unread);
    daemon.close().await;
}
