//! Resumable uploads: the protocol by hand, and the client that browsers use.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::OnceCell;

use crate::support::SOON;
use crate::support::client::{Answer, VENDOR, answer};
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::volumes::{Volume, header};

const PIECE: (&str, &str) = ("content-type", "application/offset+octet-stream");

/// `Upload-Metadata` that names the file.
fn named(name: &str) -> String {
    format!("filename {}", STANDARD.encode(name))
}

async fn ask(
    volume: &Volume,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let mut request = volume.client.request(method, path).header("tus-resumable", "1.0.0");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer(request.body(body)).await
}

/// Begins an upload and returns its address.
async fn create(volume: &Volume, headers: &[(&str, &str)]) -> String {
    let made = ask(volume, "POST", &volume.uri("tus"), headers, "").await;
    assert_eq!((made.status, header(&made, "tus-resumable")), (201, "1.0.0"), "{}", made.text);
    header(&made, "location").to_owned()
}

async fn patch(volume: &Volume, upload: &str, offset: u64, body: &'static str) -> Answer {
    ask(volume, "PATCH", upload, &[PIECE, ("upload-offset", &offset.to_string())], body).await
}

async fn offset(volume: &Volume, upload: &str) -> u64 {
    let seen = ask(volume, "HEAD", upload, &[], "").await;
    assert_eq!((seen.status, header(&seen, "cache-control")), (200, "no-store"), "{seen:?}");
    header(&seen, "upload-offset").parse().expect("a number")
}

#[tokio::test]
async fn an_upload_is_begun_continued_asked_about_and_given_up() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let abilities = volume.client.anonymous().request(Method::OPTIONS, &volume.uri("tus"));
    let abilities = answer(abilities).await;
    assert_eq!((abilities.status, header(&abilities, "tus-version")), (204, "1.0.0"));
    assert!(header(&abilities, "tus-extension").contains("creation"), "{abilities:?}");
    assert_eq!(header(&abilities, "tus-checksum-algorithm"), "sha256,sha512,sha1,md5,crc32");

    let name = named("ü.txt");
    let length = [("upload-length", "10"), ("upload-metadata", name.as_str())];
    let uri = volume.uri("tus?path=in/here");
    let made = ask(&volume, "POST", &uri, &length, "").await;
    assert_eq!((made.status, header(&made, "upload-offset")), (201, "0"));
    assert!(header(&made, "upload-expires").ends_with(" GMT"), "{made:?}");
    let upload = header(&made, "location").to_owned();
    assert!(upload.starts_with(&volume.uri("tus/")), "{upload}");
    let first = patch(&volume, &upload, 0, "01234").await;
    assert_eq!((first.status, header(&first, "upload-offset")), (204, "5"));
    patch(&volume, &upload, 4, "4").await.refused(409, "offset_mismatch");
    patch(&volume, &upload, 5, "567890").await.refused(413, "too_large");
    assert_eq!(volume.names("").await, Vec::<String>::new(), "nothing is seen of it yet");
    let seen = ask(&volume, "HEAD", &upload, &[], "").await;
    assert_eq!(
        (header(&seen, "upload-length"), header(&seen, "upload-metadata")),
        ("10", name.as_str())
    );
    let rest = [PIECE, ("upload-offset", "5"), ("x-http-method-override", "PATCH")];
    assert_eq!(ask(&volume, "POST", &upload, &rest, "56789").await.status, 204);
    assert_eq!(volume.read("in/here/%C3%BC.txt", &[]).await.text, "0123456789");
    assert_eq!(offset(&volume, &upload).await, 10, "it is remembered for who did not hear of it");

    let given_up = create(&volume, &length).await;
    assert_eq!(ask(&volume, "DELETE", &given_up, &[], "").await.status, 204);
    patch(&volume, &given_up, 0, "x").await.refused(404, "not_found");
    ask(&volume, "DELETE", &given_up, &[], "").await.refused(404, "not_found");
    assert_eq!(ask(&volume, "HEAD", &given_up, &[], "").await.status, 404);

    let at_once = [PIECE, ("upload-length", "3"), ("upload-metadata", "name YQ==")];
    let made = ask(&volume, "POST", &volume.uri("tus"), &at_once, "abc").await;
    assert_eq!((made.status, header(&made, "upload-offset")), (201, "3"));
    let deferred =
        create(&volume, &[("upload-defer-length", "1"), ("upload-metadata", "name Yg==")]).await;
    patch(&volume, &deferred, 0, "ab").await.is(204);
    let seen = ask(&volume, "HEAD", &deferred, &[], "").await;
    assert_eq!(header(&seen, "upload-defer-length"), "1");
    let last = [PIECE, ("upload-offset", "2"), ("upload-length", "3")];
    assert_eq!(ask(&volume, "PATCH", &deferred, &last, "c").await.status, 204);
    assert_eq!(volume.read("a", &[]).await.text, volume.read("b", &[]).await.text);
    daemon.close().await;
}

#[tokio::test]
async fn what_the_protocol_or_the_volume_forbids_is_refused() {
    let daemon = Daemon::start_with(|config| {
        config["uploads"] = json!({"max_bytes": 8 << 20, "max_unfinished": 2});
    })
    .await;
    let volume = Volume::new(&daemon, json!({"size": 4})).await;
    std::os::unix::fs::symlink("/etc", volume.folder.join("out")).expect("symlink");
    let name = named("file");
    let post = async |headers: &[(&str, &str)]| {
        ask(&volume, "POST", &volume.uri("tus"), headers, "").await
    };
    let meta = ("upload-metadata", name.as_str());
    volume.client.post_empty(&volume.uri("tus")).await.refused(412, "tus_version");
    post(&[meta]).await.names_field("Upload-Length");
    post(&[meta, ("upload-length", "-1")]).await.names_field("Upload-Length");
    post(&[("upload-length", "1")]).await.names_field("Upload-Metadata");
    post(&[("upload-length", "1"), ("upload-metadata", "filename !")])
        .await
        .names_field("Upload-Metadata");
    for bad in ["../x", "out/x", "/", "a\0b", r"C:\x", ".lightd-x"] {
        let name = named(bad);
        post(&[("upload-length", "1"), ("upload-metadata", &name)])
            .await
            .refused(400, "invalid_path");
    }
    post(&[meta, ("upload-length", "8388609")]).await.refused(413, "too_large");
    post(&[meta, ("upload-length", "8388608")]).await.refused(507, "quota_exceeded");
    let upload = create(&volume, &[meta, ("upload-length", "5")]).await;
    let plain = [("upload-offset", "0"), ("content-type", "text/plain")];
    ask(&volume, "PATCH", &upload, &plain, "x").await.refused(415, "unsupported_media_type");
    ask(&volume, "PATCH", &upload, &[PIECE], "x").await.names_field("Upload-Offset");
    ask(&volume, "PUT", &upload, &[PIECE], "x").await.refused(405, "method_not_allowed");
    ask(&volume, "POST", &upload, &[PIECE], "x").await.refused(405, "method_not_allowed");
    let nothing = volume.uri("tus/nonsense");
    patch(&volume, &nothing, 0, "x").await.refused(404, "not_found");

    let sum = |text: &str| format!("sha1 {text}");
    let piece = async |sum: &str| {
        let headers = [PIECE, ("upload-offset", "0"), ("upload-checksum", sum)];
        ask(&volume, "PATCH", &upload, &headers, "abc").await
    };
    piece(&sum("AAAA")).await.refused(460, "checksum_mismatch");
    piece("sha0 AAAA").await.names_field("Upload-Checksum");
    assert_eq!(offset(&volume, &upload).await, 0);
    piece(&sum("qZk+NkcGgWq6PiVxeFDCbJzQ2J0=")).await.is(204);
    assert_eq!(offset(&volume, &upload).await, 3);

    create(&volume, &[meta, ("upload-length", "5")]).await;
    let many = post(&[meta, ("upload-length", "5")]).await;
    assert!(many.headers.contains_key("retry-after"));
    many.refused(429, "too_many_uploads");
    // Whose volume it is decides, as everywhere.
    let body = json!({"permissions": ["files.read"]});
    let issued = volume.client.post("/auth/tokens", body).await.is(201);
    let reader = volume.client.with_token(issued["token"].as_str().expect("a token"));
    let stranger = Volume { client: reader, id: volume.id.clone(), folder: volume.folder.clone() };
    patch(&stranger, &upload, 3, "x").await.refused(403, "scope");
    let stranger = ask(&stranger, "POST", &stranger.uri("tus"), &[meta], "").await;
    stranger.refused(403, "scope");
    daemon.close().await;
}

#[tokio::test]
async fn browsers_of_listed_origins_may_speak_the_protocol() {
    let origin = "https://panel.example";
    let daemon = Daemon::start_with(|config| {
        config["authorization"]["allowed_origins"] = json!([origin]);
    })
    .await;
    let volume = Volume::new(&daemon, json!({})).await;
    let preflight = volume
        .client
        .anonymous()
        .without_accept()
        .request(Method::OPTIONS, &volume.uri("tus"))
        .header("origin", origin)
        .header("access-control-request-method", "POST");
    let preflight = answer(preflight).await;
    let allowed = header(&preflight, "access-control-allow-headers");
    for name in ["tus-resumable", "upload-offset", "upload-metadata", "upload-checksum"] {
        assert!(allowed.contains(name), "{name}: {preflight:?}");
    }
    assert!(header(&preflight, "access-control-allow-methods").contains("PATCH"));
    let name = named("a");
    let headers = [("origin", origin), ("upload-length", "1"), ("upload-metadata", name.as_str())];
    let made = ask(&volume, "POST", &volume.uri("tus"), &headers, "").await;
    let exposed = header(&made, "access-control-expose-headers");
    for name in ["location", "upload-offset", "upload-expires", "tus-resumable"] {
        assert!(exposed.contains(name), "{name}: {made:?}");
    }
    let other = [("origin", "https://evil.example"), headers[1], headers[2]];
    ask(&volume, "POST", &volume.uri("tus"), &other, "").await.refused(403, "origin");
    daemon.close().await;
}

#[tokio::test]
async fn a_piece_that_is_cut_by_a_kill_goes_on_where_it_was_and_a_dead_one_is_taken_over() {
    let mut daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    volume.put("file", "old", &[]).await.is(201);
    let name = named("file");
    let begun = [("upload-length", "10"), ("upload-metadata", name.as_str())];
    let upload = create(&volume, &begun).await;
    let staged = volume.folder.join(".lightd-uploads").join(upload.rsplit('/').next().expect("id"));
    let has_arrived = async |count: u64| {
        eventually("the piece arrives", SOON, async || {
            let length = std::fs::metadata(staged.join("new")).map_or(0, |file| file.len());
            if length == count { Ok(()) } else { Err(length) }
        })
        .await;
    };
    let send = async |from: &str, content: &str| {
        let address = ("127.0.0.1", daemon.port);
        let mut socket = tokio::net::TcpStream::connect(address).await.expect("connect");
        let token = &daemon.token;
        let head = format!(
            "PATCH {upload} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nAccept: {VENDOR}\r\n\
             Tus-Resumable: 1.0.0\r\nContent-Type: {}\r\nUpload-Offset: {from}\r\nContent-Length: 7\r\n\r\n",
            PIECE.1
        );
        socket.write_all((head + content).as_bytes()).await.expect("send");
        socket
    };
    let dead = send("0", "0123").await;
    has_arrived(4).await;
    // The first is still being read from, and nobody else may write.
    patch(&volume, &upload, 4, "x").await.refused(423, "upload_locked");
    assert_eq!(offset(&volume, &upload).await, 4, "asking takes it over");
    drop(dead);
    let _cut = send("4", "456").await;
    has_arrived(7).await;
    daemon.kill9().await;
    daemon.launch().await;
    assert_eq!(volume.read("file", &[]).await.text, "old");
    assert_eq!(offset(&volume, &upload).await, 7);
    patch(&volume, &upload, 7, "789").await.is(204);
    assert_eq!(volume.read("file", &[]).await.text, "0123456789");
    daemon.close().await;
}

#[tokio::test]
async fn an_upload_that_nobody_goes_on_with_expires() {
    let daemon = Daemon::start_with(|config| {
        config["uploads"] = json!({"expire_after": "1s"});
    })
    .await;
    let volume = Volume::new(&daemon, json!({})).await;
    let name = named("file");
    let begun = [("upload-length", "10"), ("upload-metadata", name.as_str())];
    let upload = create(&volume, &begun).await;
    eventually("it is gone", SOON, async || {
        let left = std::fs::read_dir(volume.folder.join(".lightd-uploads")).expect("list").count();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    patch(&volume, &upload, 0, "x").await.refused(404, "not_found");
    daemon.close().await;
}

/// The JavaScript client, running.
struct Uploader {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    seen: Vec<Value>,
}

/// A folder with the client and what it needs, installed once.
async fn client_folder() -> &'static Path {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let install = async || {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tus");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tus");
        std::fs::create_dir_all(&folder).expect("a folder");
        for name in ["package.json", "package-lock.json", "upload.js"] {
            std::fs::copy(source.join(name), folder.join(name)).expect("a copy");
        }
        let npm = Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .output();
        let done = npm.await.expect("npm runs: install-scripts/test.sh installs it");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        folder
    };
    FOLDER.get_or_init(install).await
}

impl Uploader {
    async fn start(volume: &Volume, daemon: &Daemon, file: &Path, options: Value) -> Self {
        let folder = client_folder().await;
        let mut all = json!({
            "headers": {"Authorization": format!("Bearer {}", daemon.token), "Accept": VENDOR},
            "metadata": {"filename": "file.bin", "filetype": "application/octet-stream"},
        });
        let fields = options.as_object().expect("an object").clone();
        all.as_object_mut().expect("an object").extend(fields);
        let endpoint = format!("{}{}", daemon.url(), volume.uri("tus?path=up"));
        let mut child = Command::new("node")
            .args([Path::new("upload.js"), Path::new(&endpoint), file])
            .arg(all.to_string())
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node runs: install-scripts/test.sh installs it");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, input, output, seen: Vec::new() }
    }

    /// Waits for something that it says.
    async fn expect(&mut self, event: &str) -> Value {
        let wait = async {
            while let Some(line) = self.output.next_line().await.expect("a line") {
                let said: Value = serde_json::from_str(&line).expect("JSON");
                self.seen.push(said.clone());
                if said["event"] == event {
                    return said;
                }
                assert_ne!(said["event"], "error", "{said}");
            }
            panic!("it ended before {event}: {:?}", self.seen)
        };
        tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("no {event}"))
    }

    async fn tell(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.expect("a pipe");
    }

    async fn success(mut self) -> Vec<Value> {
        self.expect("success").await;
        let status = tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await;
        assert!(status.expect("it ends").expect("a status").success());
        self.seen
    }
}

/// Where clients were told to go on.
fn resumed_at(seen: &[Value]) -> Vec<u64> {
    let heads = seen.iter().filter(|said| said["event"] == "answer" && said["method"] == "HEAD");
    heads.filter_map(|said| said["offset"].as_str()?.parse().ok()).collect()
}

fn noise(daemon: &Daemon, bytes: usize) -> (PathBuf, Vec<u8>) {
    let content: Vec<u8> = (0..bytes).map(|_| rand::random()).collect();
    let path = daemon.folder().join("noise");
    std::io::Write::write_all(&mut std::fs::File::create(&path).expect("a file"), &content)
        .expect("a write");
    (path, content)
}

#[tokio::test]
async fn tus_js_client_goes_on_after_a_pause_and_after_a_kill_of_the_daemon() {
    let mut daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let (file, content) = noise(&daemon, 3 << 20);
    let options = json!({"chunkSize": 256 << 10, "holdAt": 1 << 20});
    let arrived = || std::fs::read(volume.folder.join("up/file.bin")).expect("the file");

    let mut uploader = Uploader::start(&volume, &daemon, &file, options.clone()).await;
    uploader.expect("held").await;
    uploader.tell("pause").await;
    uploader.expect("paused").await;
    uploader.tell("go").await;
    let seen = uploader.success().await;
    assert!(resumed_at(&seen).iter().all(|offset| *offset >= 1 << 20), "{seen:?}");
    assert!(!resumed_at(&seen).is_empty() && arrived() == content);

    volume.delete(json!({"paths": ["up/file.bin"]})).await.is(200);
    let mut uploader = Uploader::start(&volume, &daemon, &file, options).await;
    uploader.expect("held").await;
    daemon.kill9().await;
    uploader.tell("go").await;
    uploader.expect("retry").await;
    daemon.launch().await;
    let seen = uploader.success().await;
    assert_eq!(resumed_at(&seen), [1 << 20], "{seen:?}");
    assert!(arrived() == content);
    daemon.close().await;
}

#[tokio::test]
async fn tus_js_client_goes_on_from_another_process_in_parallel_and_with_a_stream() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let (file, content) = noise(&daemon, 2 << 20);
    let arrived = |name: &str| std::fs::read(volume.folder.join("up").join(name)).expect("there");
    let storage = daemon.folder().join("uploads.json");
    let kept = json!({"chunkSize": 256 << 10, "storage": storage});
    let mut first = kept.clone();
    first["holdAt"] = json!(1 << 20);
    let mut uploader = Uploader::start(&volume, &daemon, &file, first).await;
    uploader.expect("held").await;
    drop(uploader);
    let mut second = Uploader::start(&volume, &daemon, &file, kept).await;
    assert_eq!(second.expect("found").await["previous"], 1);
    assert_eq!(resumed_at(&second.success().await), [1 << 20]);
    assert!(arrived("file.bin") == content);

    let parallel = json!({"parallelUploads": 3, "metadata": {"relativePath": "a/b/joined.bin"}});
    Uploader::start(&volume, &daemon, &file, parallel).await.success().await;
    assert!(arrived("a/b/joined.bin") == content);
    let stream = json!({
        "deferred": true, "chunkSize": 300_000,
        "metadata": {"relativePath": "null", "name": "stream.bin"},
    });
    Uploader::start(&volume, &daemon, &file, stream).await.success().await;
    assert!(arrived("stream.bin") == content);
    daemon.close().await;
}
