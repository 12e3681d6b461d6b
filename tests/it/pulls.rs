//! Files from elsewhere, and what becomes of long work when lightd dies.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::SOON;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::volumes::Volume;

/// A server that answers by path and keeps connections open where an answer is not complete.
struct Server {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
        tasks.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let (head, body) = match path {
                    "/file.txt" => ("200 OK\r\nContent-Length: 7", "content"),
                    "/named" => (
                        "200 OK\r\nContent-Length: 7\r\nContent-Disposition: attachment; filename=\"../../my plugin.jar\"",
                        "content",
                    ),
                    "/moved" => ("302 Found\r\nContent-Length: 0\r\nLocation: /file.txt", ""),
                    "/inside" => ("302 Found\r\nContent-Length: 0\r\nLocation: http://169.254.169.254/", ""),
                    "/half" => ("200 OK\r\nContent-Length: 1000000", "the beginning"),
                    "/cut" => ("200 OK\r\nContent-Length: 1000000", "half"),
                    "/large" => ("200 OK\r\nContent-Length: 3000000000", ""),
                    _ => ("404 Not Found\r\nContent-Length: 0", ""),
                };
                let answer = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n{body}");
                drop(socket.write_all(answer.as_bytes()).await);
                if path == "/half" {
                    kept.lock().expect("unpoisoned").push(socket);
                }
            }
        });
        Self { address, _tasks: tasks }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }
}

fn allow_server(config: &mut Value) {
    config["network"]["allow_private"] = json!(["127.0.0.1/32"]);
    config["pulls"] = json!({"max_bytes": 2_000_000_000});
}

#[tokio::test]
async fn a_file_is_pulled_in_the_background_under_its_name_or_the_one_that_is_asked_for() {
    let (daemon, server) = (Daemon::start_with(allow_server).await, Server::start().await);
    let volume = Volume::new(&daemon, json!({"size": 16})).await;
    let pull = async |path: &str, to: Value| {
        let mut body = to;
        body["url"] = server.url(path).into();
        let started = volume.post("pull", body).await.is(202);
        volume.ended(&started).await
    };
    let done = pull("file.txt", json!({"path": "in/renamed.txt"})).await;
    assert_eq!((&done["state"], &done["kind"]), (&json!("done"), &json!("pull")), "{done}");
    assert_eq!(done["result"], json!({"path": "in/renamed.txt", "size": 7}));
    assert_eq!((&done["done_bytes"], &done["total_bytes"]), (&json!(7), &json!(7)));
    assert_eq!(volume.read("in/renamed.txt", &[]).await.text, "content");
    for (path, to, want) in [
        ("named", json!({"path": "in"}), "in/my plugin.jar"),
        ("moved", json!({"path": "new/"}), "new/file.txt"),
        ("file.txt", json!({}), "file.txt"),
    ] {
        let done = pull(path, to).await;
        assert_eq!(
            (&done["state"], &done["result"]["path"]),
            (&json!("done"), &json!(want)),
            "{done}"
        );
    }
    for (path, error) in [
        ("nothing", "answered 404"),
        ("inside", "169.254.169.254 may not be reached"),
        ("cut", "broke off"),
        ("large", "larger than"),
    ] {
        let failed = pull(path, json!({"path": "never"})).await;
        let said = failed["error"].as_str().unwrap_or_default();
        assert!(failed["state"] == "failed" && said.contains(error), "{path}: {failed}");
        assert_eq!(failed["code"], "fetch_failed", "{path}");
    }
    let full = Volume::new(&daemon, json!({"size": 1})).await;
    let started = full.post("pull", json!({"url": server.url("half"), "path": "x"})).await.is(202);
    eventually("it waits for the rest", SOON, async || {
        if full.unfinished(&daemon) == 1 { Ok(()) } else { Err(()) }
    })
    .await;
    let id = started["operation_id"].as_str().expect("an id");
    let cancelled = full.client.delete(&format!("/operations/{id}")).await.is(200);
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    assert_eq!((full.unfinished(&daemon), full.names("").await), (0, Vec::new()));

    let again = json!({"url": server.url("file.txt"), "path": "file.txt"});
    volume.post("pull", again).await.refused(409, "already_exists");
    let over = pull("file.txt", json!({"path": "file.txt", "overwrite": true})).await;
    assert_eq!(over["state"], "done");
    for (url, path) in [
        ("http://127.0.0.2/", "x"),
        ("http://[::1]/", "x"),
        ("http://169.254.169.254/latest", "x"),
        ("file:///etc/passwd", "x"),
        ("http://u:p@127.0.0.1/", "x"),
        ("nonsense", "x"),
    ] {
        volume.post("pull", json!({"url": url, "path": path})).await.names_field("url");
    }
    let outside = json!({"url": server.url("file.txt"), "path": "../x"});
    volume.post("pull", outside).await.refused(400, "invalid_path");
    daemon.close().await;
}

#[tokio::test]
async fn by_default_no_pull_reaches_this_host() {
    let (daemon, server) = (Daemon::start().await, Server::start().await);
    let volume = Volume::new(&daemon, json!({})).await;
    let body = json!({"url": server.url("file.txt"), "path": "x"});
    volume.post("pull", body).await.names_field("url");
    // A name is judged when it is connected to.
    let name = format!("http://localhost:{}/file.txt", server.address.port());
    let started = volume.post("pull", json!({"url": name, "path": "x"})).await.is(202);
    let failed = volume.ended(&started).await;
    assert_eq!(failed["error"], "localhost may not be reached from here", "{failed}");
    assert_eq!(volume.names("").await, Vec::<String>::new());
    daemon.close().await;
}

#[tokio::test]
async fn work_that_a_crash_ends_is_reported_as_interrupted_and_leaves_nothing() {
    let (mut daemon, server) = (Daemon::start_with(allow_server).await, Server::start().await);
    let volume = Volume::new(&daemon, json!({})).await;
    let file = json!({"url": server.url("file.txt"), "path": "x"});
    let done = volume.post("pull", file).await.is(202);
    volume.ended(&done).await;
    let half = json!({"url": server.url("half"), "path": "y"});
    let begun = async |daemon: &Daemon| match volume.unfinished(daemon) {
        1 => Ok(()),
        seen => Err(seen),
    };
    let state = async |started: &Value| {
        let uri = format!("/operations/{}", started["operation_id"].as_str().expect("an id"));
        volume.client.get(&uri).await.is(200)
    };
    let killed = volume.post("pull", half.clone()).await.is(202);
    eventually("it has begun", SOON, async || begun(&daemon).await).await;
    daemon.kill9().await;
    daemon.launch().await;
    let seen = state(&killed).await;
    assert_eq!((&seen["state"], &seen["kind"]), (&json!("interrupted"), &json!("pull")), "{seen}");
    assert!(seen["finished_at"].is_u64() && seen["error"].is_string(), "{seen}");
    assert_eq!(seen["code"], "interrupted");
    assert_eq!(state(&done).await["state"], "done", "what had ended is known as well");
    eventually("its leavings are gone", SOON, async || match volume.unfinished(&daemon) {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    assert_eq!(volume.names("").await, ["x"]);

    let stopped = volume.post("pull", half).await.is(202);
    eventually("it has begun", SOON, async || begun(&daemon).await).await;
    daemon.restart().await;
    assert_eq!(state(&stopped).await["state"], "interrupted");
    assert_eq!(volume.unfinished(&daemon), 0);
    let listed = volume.client.get("/operations").await.is(200);
    assert_eq!(listed["operations"].as_array().map(Vec::len), Some(3));
    daemon.close().await;
}

#[tokio::test]
async fn a_create_that_is_sent_again_with_its_key_is_done_once_also_after_a_restart() {
    let mut daemon = Daemon::start().await;
    let client = daemon.client();
    let create = async |body: Value| {
        let request = client.request(reqwest::Method::POST, "/volumes");
        crate::support::client::answer(request.header("idempotency-key", "one").json(&body)).await
    };
    let first = create(json!({"size": 5})).await.is(201);
    daemon.kill9().await;
    daemon.launch().await;
    let again = create(json!({"size": 5})).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.is(201), first);
    create(json!({"size": 6})).await.refused(422, "idempotency_key_reused");
    assert_eq!(client.get("/volumes").await.is(200)["volumes"].as_array().map(Vec::len), Some(1));
    daemon.close().await;
}
