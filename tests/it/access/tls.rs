//! The certificate: a new one is served without a restart, a broken one never.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::json;

use crate::support::SOON;
use crate::support::process::Daemon;
use crate::support::sse::EventStream;
use crate::support::wait::eventually;

/// Writes a certificate with this name that nobody has signed, and its key.
fn write_certificate(folder: &Path, name: &str) {
    let at = |file: &str| folder.join(file).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-subj", &format!("/CN={name}"), "-keyout", &at("new.key"), "-out", &at("new.pem")])
        .output()
        .expect("the tests need openssl: apt-get install openssl");
    assert!(made.status.success(), "{made:?}");
    // One after the other, as tools do that renew them.
    std::fs::rename(folder.join("new.pem"), folder.join("cert.pem")).expect("a rename");
    std::fs::rename(folder.join("new.key"), folder.join("key.pem")).expect("a rename");
}

/// The name in the certificate that a new connection is shown.
fn served_name(daemon: &Daemon) -> Option<String> {
    let address = format!("127.0.0.1:{}", daemon.port);
    let shown = Command::new("openssl")
        .args(["s_client", "-connect", &address])
        .stdin(Stdio::null())
        .output()
        .expect("the tests need openssl: apt-get install openssl");
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("subject="))?;
    line.rsplit('=').next().map(|name| name.trim().to_owned())
}

async fn serves(daemon: &Daemon, name: &str) {
    eventually(&format!("{name} is served"), SOON, async || {
        let served = served_name(daemon);
        if served.as_deref() == Some(name) { Ok(()) } else { Err(served) }
    })
    .await;
}

/// A daemon that serves HTTPS.
async fn with_tls() -> Daemon {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let folder = daemon.folder().to_owned();
    write_certificate(&folder, "first");
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    daemon.use_tls();
    daemon.edit_config(|config| {
        config["server"]["tls"] = json!({"enabled": true, "cert": cert, "key": key});
    });
    daemon.launch().await;
    daemon
}

/// What a client with these protocols to offer is answered that then says this.
fn tls_client(daemon: &Daemon, protocols: &str, says: &[u8]) -> String {
    let address = format!("127.0.0.1:{}", daemon.port);
    let mut client = Command::new("timeout")
        .args(["10", "openssl", "s_client", "-ign_eof", "-connect", &address, "-alpn", protocols])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the tests need openssl: apt-get install openssl");
    client.stdin.take().expect("its input").write_all(says).expect("a write");
    let answered = client.wait_with_output().expect("its end");
    String::from_utf8_lossy(&answered.stdout).into_owned()
}

#[tokio::test]
async fn http_2_is_not_offered_and_a_websocket_passes_through_tls() {
    let daemon = with_tls().await;
    let request = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let both = tls_client(&daemon, "h2,http/1.1", request);
    assert!(both.contains("ALPN protocol: http/1.1") && both.contains("HTTP/1.1 200"), "{both}");
    let second = tls_client(&daemon, "h2", request);
    assert!(!second.contains("ALPN protocol: h2"), "{second}");

    let id = daemon.id("upgraded");
    daemon.create(&id, json!({})).await;
    let upgrade = format!(
        "GET /ws/{id}?token={} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        daemon.token
    );
    let goodbye = [0x88, 0x80, 0, 0, 0, 0];
    let says = [upgrade.as_bytes(), &goodbye].concat();
    let upgraded = tls_client(&daemon, "http/1.1", &says);
    assert!(upgraded.contains("HTTP/1.1 101"), "{upgraded}");
    daemon.close().await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
    let daemon = with_tls().await;
    let folder = daemon.folder().to_owned();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    assert_eq!(served_name(&daemon).as_deref(), Some("first"));
    let id = daemon.id("stays");
    daemon.create(&id, json!({})).await;
    let path = format!("/containers/{id}/events?events=event");
    let mut stream = EventStream::open(&daemon.client(), &path, None).await;
    stream.next().await.expect("the present state");

    write_certificate(&folder, "second");
    serves(&daemon, "second").await;
    // What was connected stays so.
    daemon.power(&id, "start").await;
    stream.expect("the state", |event| event["data"] == "running").await;

    File::create(&key).and_then(|mut file| file.write_all(b"no key at all")).expect("a write");
    let complaint = "the new certificate and key cannot be used";
    eventually("the log complains", SOON, async || {
        if daemon.log().contains(complaint) { Ok(()) } else { Err("not yet") }
    })
    .await;
    assert_eq!(served_name(&daemon).as_deref(), Some("second"));
    daemon.client().get("/containers").await.is(200);
    std::fs::remove_file(&cert).expect("a removal");
    eventually("the log complains again", SOON, async || {
        let count = daemon.log().matches(complaint).count();
        if count >= 2 { Ok(()) } else { Err(count) }
    })
    .await;
    daemon.client().get("/containers").await.is(200);

    write_certificate(&folder, "third");
    daemon.signal(Signal::HUP);
    serves(&daemon, "third").await;
    // The daemon's own tools trust what lies there now.
    assert!(daemon.cli(&["ps"]).status.success());
    daemon.close().await;
}
