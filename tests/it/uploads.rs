//! Forms with many files, whole or not at all.

use std::os::unix::fs::PermissionsExt;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::SOON;
use crate::support::client::{Answer, VENDOR, answer};
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::volumes::Volume;

/// What a browser makes of a form with these files.
fn form(files: &[(&str, &str)]) -> String {
    let mut body =
        "--BOUND\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nno file\r\n".to_owned();
    for (filename, content) in files {
        body += &format!(
            "--BOUND\r\nContent-Disposition: form-data; name=\"files\"; filename=\"{filename}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n{content}\r\n"
        );
    }
    body + "--BOUND--\r\n"
}

async fn upload(volume: &Volume, query: &str, body: String) -> Answer {
    let request = volume
        .client
        .request(Method::POST, &volume.uri(&format!("upload{query}")))
        .header("content-type", "multipart/form-data; boundary=BOUND")
        .body(body);
    answer(request).await
}

fn statuses(answer: &Value) -> Vec<&str> {
    let files = answer["files"].as_array().expect("a list").iter();
    files.map(|file| file["status"].as_str().expect("a status")).collect()
}

#[tokio::test]
async fn a_form_brings_many_files_and_folders_of_them() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let files = [("a.txt", "alpha"), ("world/region/r.0", "region"), ("ü \u{1f600}.txt", "")];
    let made = upload(&volume, "?path=in/here", form(&files)).await.is(201);
    assert_eq!((&made["uploaded"], &made["failed"]), (&json!(3), &json!(0)));
    let first =
        json!({"filename": "a.txt", "status": "created", "path": "in/here/a.txt", "size": 5});
    assert_eq!(made["files"][0], first);
    assert_eq!(volume.names("in/here").await, ["world", "a.txt", "ü \u{1f600}.txt"]);
    assert_eq!(volume.read("in/here/world/region/r.0", &[]).await.text, "region");

    volume.post("chmod", json!({"path": "in/here/a.txt", "mode": "0600"})).await.is(200);
    let again = upload(&volume, "?path=/in/here/", form(&[("a.txt", "new")])).await.is(200);
    assert_eq!(statuses(&again), ["replaced"]);
    let file = volume.folder.join("in/here/a.txt");
    let mode = std::fs::metadata(&file).expect("a file").permissions().mode();
    assert_eq!((std::fs::read(&file).expect("read"), mode & 0o777), (b"new".to_vec(), 0o600));

    let once = form(&[("a.txt", "newer"), ("b.txt", "b")]);
    let once = upload(&volume, "?path=in/here&create_only=true", once).await.is(207);
    assert_eq!(statuses(&once), ["failed", "created"]);
    assert_eq!(once["files"][0]["code"], "already_exists");
    assert_eq!(std::fs::read(&file).expect("read"), b"new");

    upload(&volume, "", form(&[])).await.refused(400, "invalid_multipart");
    upload(&volume, "?path=in/here/a.txt", form(&files)).await.refused(400, "not_a_folder");
    let plain = volume.client.request(Method::POST, &volume.uri("upload")).body("x");
    answer(plain).await.refused(400, "invalid_multipart");
    daemon.close().await;
}

#[tokio::test]
async fn a_form_with_hostile_names_stores_the_others_and_nothing_outside() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let outside = daemon.folder().join("outside");
    std::fs::create_dir(&outside).expect("mkdir");
    std::os::unix::fs::symlink(&outside, volume.folder.join("out")).expect("symlink");
    std::fs::create_dir(volume.folder.join("folder")).expect("mkdir");
    let files = [
        ("../evil", "x"),
        ("a/../../evil", "x"),
        (r"..\evil", "x"),
        (r"C:\evil", "x"),
        ("out/evil", "x"),
        (".lightd-x", "x"),
        ("folder", "x"),
        ("/", "x"),
        ("fine", "fine"),
        ("/etc/passwd", "of the volume"),
    ];
    let made = upload(&volume, "", form(&files)).await.is(207);
    let mut want = vec!["failed"; 8];
    want.extend(["created", "created"]);
    assert_eq!(statuses(&made), want, "{made}");
    assert_eq!(made["files"][0]["code"], "invalid_path");
    assert_eq!(made["files"][6]["code"], "not_a_file");
    assert_eq!(made["files"][9]["path"], "etc/passwd");
    assert_eq!(volume.read("etc/passwd", &[]).await.text, "of the volume");
    assert_eq!(std::fs::read_dir(&outside).expect("list").count(), 0);
    assert_eq!(volume.names("").await, ["etc", "folder", "fine", "out"]);
    upload(&volume, "", form(&[("../evil", "x")])).await.refused(400, "invalid_path");
    upload(&volume, "", form(&[("a\0b", "x")])).await.refused(400, "invalid_multipart");
    upload(&volume, "?path=out", form(&[("a", "x")])).await.refused(400, "invalid_path");
    daemon.close().await;
}

#[tokio::test]
async fn a_form_that_is_cut_or_too_large_leaves_the_old_files() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({"size": 4})).await;
    volume.put("old", "old", &[]).await.is(201);
    let large = "x".repeat(3 << 20);
    let files = [("old", "new"), ("one", large.as_str()), ("two", large.as_str())];
    upload(&volume, "", form(&files)).await.refused(507, "quota_exceeded");
    assert_eq!(
        (volume.names("").await, volume.read("old", &[]).await.text),
        (vec!["old".to_owned()], "old".to_owned())
    );
    upload(&volume, "", form(&files[..2])).await.is(201);
    // What is replaced makes room for what replaces it.
    upload(&volume, "", form(&files[1..2])).await.is(200);

    let whole = form(&[("old", "newer"), ("three", "three")]);
    let half = &whole[..whole.len() - 20];
    for cut in [format!("Content-Length: {}", whole.len()), "Transfer-Encoding: chunked".to_owned()]
    {
        let address = ("127.0.0.1", daemon.port);
        let mut socket = tokio::net::TcpStream::connect(address).await.expect("connect");
        let (token, uri) = (&daemon.token, volume.uri("upload"));
        let mut head = format!(
            "POST {uri} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nAccept: {VENDOR}\r\n\
             Content-Type: multipart/form-data; boundary=BOUND\r\n{cut}\r\n\r\n"
        );
        if cut.starts_with('T') {
            head += &format!("{:x}\r\n", whole.len());
        }
        socket.write_all((head + half).as_bytes()).await.expect("send");
        let staged = || volume.unfinished(&daemon);
        let is = async |count| if staged() == count { Ok(()) } else { Err(staged()) };
        eventually("the upload has begun", SOON, async || is(1).await).await;
        drop(socket);
        eventually("what had arrived is gone", SOON, async || is(0).await).await;
        assert_eq!(volume.read("old", &[]).await.text, "new", "{cut}");
        assert_eq!(volume.names("").await, ["old", "one"], "{cut}");
    }
    upload(&volume, "", half.to_owned()).await.refused(400, "incomplete_body");
    assert_eq!(volume.names("").await, ["old", "one"]);
    daemon.close().await;
}
