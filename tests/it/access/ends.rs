//! What is under way ends with the right to it: downloads, archives, uploads, long calls, event streams.

use std::fs::File;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{issue, token_of};
use crate::support::SOON;
use crate::support::client::{Client, VENDOR, answer};
use crate::support::process::Daemon;
use crate::support::sse::EventStream;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

/// More than all buffers on the way hold.
const LARGE_BYTES: u64 = 256 << 20;

/// A volume with a large file, of which nothing is on the disk.
async fn volume_with_large_file(daemon: &Daemon) -> String {
    let volume = daemon.volume().await;
    let path = daemon.data_path().join("volumes").join(&volume).join("large");
    File::create(path).and_then(|file| file.set_len(LARGE_BYTES)).expect("a file");
    volume
}

async fn revoke(daemon: &Daemon, issued: &Value) {
    let path = format!("/auth/tokens/{}", issued["id"].as_str().expect("an id"));
    daemon.client().delete(&path).await.is(200);
}

async fn begin(client: &Client, path: &str) -> reqwest::Response {
    let mut response = client.request(Method::GET, path).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(response.chunk().await.expect("bytes").is_some());
    response
}

/// Reads on to the end, which must be a broken one.
async fn breaks_off(mut response: reqwest::Response) {
    let reading = async {
        let mut read_bytes = 0;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => read_bytes += chunk.len() as u64,
                Ok(None) => panic!("a whole answer of {read_bytes} bytes"),
                Err(_) => return read_bytes,
            }
        }
    };
    let read_bytes = timeout(SOON, reading).await.expect("an end in time");
    assert!(read_bytes < LARGE_BYTES, "all of it came");
}

#[tokio::test]
async fn a_download_breaks_off_when_its_token_is_revoked_or_expires() {
    let daemon = Daemon::start().await;
    let volume = volume_with_large_file(&daemon).await;
    let paths = [
        format!("/volumes/{volume}/files/contents?path=large"),
        format!("/volumes/{volume}/download?path=&format=tar"),
    ];
    for path in &paths {
        let issued = issue(&daemon, json!({"ttl": "1h"})).await;
        let response = begin(&daemon.client().with_token(token_of(&issued)), path).await;
        revoke(&daemon, &issued).await;
        breaks_off(response).await;
    }
    let brief = issue(&daemon, json!({"ttl": "2s", "remove_on_use": true})).await;
    let response = begin(&daemon.client().with_token(token_of(&brief)), &paths[0]).await;
    eventually("the token has expired", SOON, async || {
        let path = format!("/auth/tokens/{}", brief["id"].as_str().expect("an id"));
        let shown = daemon.client().get(&path).await.status;
        if shown == 404 { Ok(()) } else { Err(shown) }
    })
    .await;
    breaks_off(response).await;
    daemon.close().await;
}

#[tokio::test]
async fn a_download_breaks_off_when_the_nodes_token_changes() {
    let mut daemon = Daemon::start().await;
    let volume = volume_with_large_file(&daemon).await;
    let path = format!("/volumes/{volume}/files/contents?path=large");
    let response = begin(&daemon.client(), &path).await;
    let reset = daemon.cli(&["--token", "reset"]);
    let text = String::from_utf8_lossy(&reset.stdout).into_owned();
    daemon.token = text.trim_start_matches("New Token: ").trim_end().to_owned();
    eventually("the new token counts", SOON, async || {
        let status = daemon.client().get("/containers").await.status;
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
    breaks_off(response).await;
    // With a token that stays good all of it comes.
    let ranged = daemon.client().request(Method::GET, &path).header("Range", "bytes=0-9999999");
    let whole = ranged.send().await.expect("an answer").bytes().await.expect("all of it");
    assert_eq!(whole.len(), 10_000_000);
    daemon.close().await;
}

#[tokio::test]
async fn what_an_address_has_under_way_ends_when_the_allow_list_leaves_it_out() {
    let daemon = Daemon::start_with(|config| {
        config["server"]["trusted_proxies"] = json!(["127.0.0.1"]);
        config["authorization"]["allowed_ips"] = json!(["203.0.113.0/24"]);
    })
    .await;
    let (id, client) = (daemon.id("listed"), daemon.client());
    daemon.create(&id, json!({})).await;
    let volume = volume_with_large_file(&daemon).await;
    let (goes, stays) = ("203.0.113.9", "203.0.113.200");
    let begin_for = async |address: &str, path: &str| {
        let request = client.request(Method::GET, path).header("X-Forwarded-For", address);
        let mut response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert!(response.chunk().await.expect("bytes").is_some());
        response
    };
    let file = format!("/volumes/{volume}/files/contents?path=large");
    let download = begin_for(goes, &file).await;
    let mut events = begin_for(goes, &format!("/containers/{id}/events")).await;
    let url = daemon.ws_url(&id, &daemon.token, "");
    let mut socket = Socket::open_for(&url, goes).await;
    let mut kept = Socket::open_for(&url, stays).await;
    let mut own = daemon.ws(&id).await;
    daemon.edit_config(|config| {
        config["authorization"]["allowed_ips"] = json!(["203.0.113.128/25"]);
    });
    let reloaded = client.post_empty("/remote/config/reload").await.is(200);
    assert_eq!(reloaded["applied"], json!(["authorization.allowed_ips"]));
    assert_eq!(socket.expect_close().await, 4401);
    breaks_off(download).await;
    let mut last = Vec::new();
    while let Some(chunk) = timeout(SOON, events.chunk()).await.expect("an end").expect("text") {
        last.extend_from_slice(&chunk);
    }
    let last = String::from_utf8_lossy(&last).into_owned();
    assert!(last.contains("\"code\":\"address\""), "{last}");
    for socket in [&mut kept, &mut own] {
        socket.send(json!({"event": "request_logs"})).await;
        socket.expect("an answer", |frame| frame["event"] == "logs").await;
    }
    daemon.close().await;
}

/// A request of which a part is sent, on a connection of its own.
async fn half_sent(daemon: &Daemon, token: &str, head: &str, part: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).await.expect("a connection");
    let request = format!(
        "{head}\r\nHost: node\r\nAuthorization: Bearer {token}\r\nAccept: {VENDOR}\r\n\
         Content-Length: 1000000\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("a write");
    stream.write_all(part).await.expect("a write");
    stream
}

/// What comes back first.
async fn answer_on(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let read = timeout(SOON, stream.read(&mut bytes)).await.expect("an answer in time");
    String::from_utf8_lossy(&bytes[..read.expect("an answer")]).into_owned()
}

/// Waits until the token has been used: the request that brings it is being worked on.
async fn is_used(daemon: &Daemon, issued: &Value) {
    eventually("the token is used", SOON, async || {
        let path = format!("/auth/tokens/{}", issued["id"].as_str().expect("an id"));
        let shown = daemon.client().get(&path).await.is(200);
        if shown["last_used_at"].is_string() { Ok(()) } else { Err(shown) }
    })
    .await;
}

#[tokio::test]
async fn an_upload_ends_when_its_token_does_and_leaves_nothing_behind() {
    let daemon = Daemon::start().await;
    let volume = daemon.volume().await;
    let issued = issue(&daemon, json!({"ttl": "1h"})).await;
    let put = format!("PUT /volumes/{volume}/files/contents?path=new.bin HTTP/1.1");
    let mut stream = half_sent(&daemon, token_of(&issued), &put, &[b'x'; 1000]).await;
    is_used(&daemon, &issued).await;
    revoke(&daemon, &issued).await;
    // What the client has still to send is taken first, so that the answer is not lost to a reset.
    stream.write_all(&vec![b'x'; 999_000]).await.expect("a write");
    let text = answer_on(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 401 "), "{text}");
    assert!(text.contains("expired or was revoked"), "{text}");
    let folder = daemon.data_path().join("volumes").join(&volume);
    eventually("nothing is left of it", SOON, async || {
        let left: Vec<_> = std::fs::read_dir(&folder).expect("a folder").flatten().collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn a_resumable_upload_keeps_what_had_come_when_its_token_ended() {
    let daemon = Daemon::start().await;
    let volume = daemon.volume().await;
    let tus = |method: Method, path: &str| {
        daemon.client().request(method, path).header("Tus-Resumable", "1.0.0")
    };
    let create = tus(Method::POST, &format!("/volumes/{volume}/tus"))
        .header("Upload-Length", "1000000")
        .header("Upload-Metadata", "filename bGF0ZS5iaW4=");
    let made = answer(create).await;
    assert_eq!(made.status, 201, "{made:?}");
    let upload = made.headers["location"].to_str().expect("an address").to_owned();
    let issued = issue(&daemon, json!({"ttl": "1h"})).await;
    let patch = format!(
        "PATCH {upload} HTTP/1.1\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n\
         Content-Type: application/offset+octet-stream"
    );
    let mut stream = half_sent(&daemon, token_of(&issued), &patch, &[b'x'; 5000]).await;
    is_used(&daemon, &issued).await;
    revoke(&daemon, &issued).await;
    stream.write_all(&vec![b'x'; 995_000]).await.expect("a write");
    let text = answer_on(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 401 "), "{text}");
    let seen = answer(tus(Method::HEAD, &upload)).await;
    let offset = seen.headers["upload-offset"].to_str().expect("text").parse::<usize>();
    let offset = offset.expect("a number");
    assert!(offset < 1_000_000, "{offset}");
    let goes_on = tus(Method::PATCH, &upload)
        .header("Upload-Offset", offset)
        .header("Content-Type", "application/offset+octet-stream")
        .body(vec![b'x'; 1_000_000 - offset]);
    assert_eq!(answer(goes_on).await.status, 204);
    daemon.close().await;
}

#[tokio::test]
async fn a_long_call_and_an_event_stream_end_with_their_token() {
    let daemon = Daemon::start().await;
    let id = daemon.id("long");
    daemon.run(&id, json!({})).await;
    let issued = issue(&daemon, json!({"containers": [id]})).await;
    let client = daemon.client().with_token(token_of(&issued));
    let path = format!("/containers/{id}/events?events=event&token={}", token_of(&issued));
    let mut stream = EventStream::open(&client.anonymous(), &path, None).await;
    stream.next().await.expect("the present state");
    let began = tokio::time::Instant::now();
    let body = json!({"cmd": ["sh", "-c", "echo here > began; guest forever"], "timeout": 120});
    let exec = async { client.post(&format!("/containers/{id}/exec"), body).await };
    let shown = daemon.client().get(&format!("/containers/{id}")).await.is(200);
    let revoked = async {
        eventually("the process runs", SOON, async || {
            daemon.volume_file(&shown, "began").ok_or("not yet")
        })
        .await;
        revoke(&daemon, &issued).await;
    };
    let (answer, ()) = tokio::join!(exec, revoked);
    answer.refused(401, "unauthorized");
    assert!(began.elapsed() < Duration::from_secs(100), "{:?}", began.elapsed());
    let last = stream.expect("why it ends", |event| event["event"] == "error").await;
    assert_eq!(last["code"], "unauthorized");
    assert_eq!(stream.next().await, None);
    daemon.close().await;
}
