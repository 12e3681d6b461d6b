//! Volumes: files written, read, moved and packed, within their limits and nowhere else.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::SOON;
use crate::support::client::{Answer, Client, VENDOR, answer};
use crate::support::process::Daemon;
use crate::support::wait::eventually;

/// A volume, and ways to ask for what is in it.
pub(crate) struct Volume {
    pub(crate) client: Client,
    pub(crate) id: String,
    pub(crate) folder: PathBuf,
}

impl Volume {
    pub(crate) async fn new(daemon: &Daemon, body: Value) -> Self {
        let made = daemon.client().post("/volumes", body).await.is(201);
        assert_eq!(made["id"], made["volume_id"]);
        let folder = PathBuf::from(made["path"].as_str().expect("a path"));
        let id = made["volume_id"].as_str().expect("an id").to_owned();
        assert!(folder.is_dir() && folder.ends_with(&id), "{made}");
        Self { client: daemon.client(), id, folder }
    }

    /// How many things are being made in it: files without a name and temporary folders.
    pub(crate) fn unfinished(&self, daemon: &Daemon) -> usize {
        let names = std::fs::read_dir(&self.folder).expect("list").flatten();
        let folders =
            names.filter(|name| name.file_name().to_string_lossy().starts_with(".lightd-"));
        let open = daemon.open_files();
        let nameless = open.iter().filter(|path| {
            path.starts_with(&self.folder) && path.to_string_lossy().ends_with(" (deleted)")
        });
        folders.count() + nameless.count()
    }

    pub(crate) fn uri(&self, rest: &str) -> String {
        format!("/volumes/{}/{rest}", self.id)
    }

    pub(crate) async fn get(&self, rest: &str) -> Answer {
        self.client.get(&self.uri(rest)).await
    }

    pub(crate) async fn post(&self, rest: &str, body: Value) -> Answer {
        self.client.post(&self.uri(rest), body).await
    }

    pub(crate) async fn delete(&self, body: Value) -> Answer {
        answer(self.client.request(Method::DELETE, &self.uri("files")).json(&body)).await
    }

    pub(crate) async fn put(
        &self,
        path: &str,
        content: impl Into<Body>,
        headers: &[(&str, &str)],
    ) -> Answer {
        self.content(Method::PUT, path, headers, content).await
    }

    pub(crate) async fn read(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.content(Method::GET, path, headers, "").await
    }

    pub(crate) async fn content(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        content: impl Into<Body>,
    ) -> Answer {
        let uri = self.uri(&format!("files/contents?path={path}"));
        let mut request = self.client.request(method, &uri).body(content);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request).await
    }

    pub(crate) async fn names(&self, path: &str) -> Vec<String> {
        let listed = self.get(&format!("files?path={path}")).await.is(200);
        let files = listed["files"].as_array().expect("a list").iter();
        files.map(|file| file["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Waits until an operation has ended, and returns how.
    pub(crate) async fn ended(&self, operation: &Value) -> Value {
        ended(&self.client, operation).await
    }
}

pub(crate) async fn ended(client: &Client, operation: &Value) -> Value {
    let uri = format!("/operations/{}", operation["operation_id"].as_str().expect("an id"));
    eventually("the operation ends", SOON, async || {
        let seen = client.get(&uri).await.is(200);
        if seen["state"] == "running" { Err(seen) } else { Ok(seen) }
    })
    .await
}

/// Where a volume lies on the node.
pub(crate) fn folder(daemon: &Daemon, volume: &str) -> PathBuf {
    daemon.data_path().join("volumes").join(volume)
}

pub(crate) fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[tokio::test]
async fn a_volume_is_made_with_any_body_shown_resized_and_deleted() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let plain = client.post_empty("/volumes").await.is(201);
    assert_eq!((&plain["size"], &plain["name"]), (&Value::Null, &Value::Null));
    let empty = client.request(Method::POST, "/volumes").header("content-type", "application/json");
    answer(empty).await.is(201);
    let volume = Volume::new(&daemon, json!({"size": 8, "name": "world"})).await;
    let shown = client.get(&format!("/volumes/{}", volume.id)).await.is(200);
    assert_eq!((&shown["size"], &shown["name"]), (&json!(8 << 20), &json!("world")));
    let all = client.get("/volumes").await.is(200);
    assert_eq!(all["volumes"].as_array().map(Vec::len), Some(3));
    let first = client.get("/volumes?limit=2").await.is(200);
    let cursor = first["next_cursor"].as_str().expect("there is more");
    let rest = client.get(&format!("/volumes?limit=2&cursor={cursor}")).await.is(200);
    assert_eq!((&all["next_cursor"], &rest["next_cursor"]), (&Value::Null, &Value::Null));
    let pages = [&first, &rest].map(|page| page["volumes"].as_array().expect("a list").clone());
    assert_eq!(json!(pages.concat()), all["volumes"]);
    client.get("/volumes?limit=0").await.names_field("?limit");
    client.get("/volumes?cursor=x").await.refused(400, "invalid_cursor");
    for (body, field) in [
        (json!({"size": 0}), "size"),
        (json!({"size": -1}), "size"),
        (json!({"size": u64::MAX}), "size"),
        (json!({"name": ""}), "name"),
        (json!({"name": "a\nb"}), "name"),
        (json!({"sise": 1}), "sise"),
    ] {
        client.post("/volumes", body).await.names_field(field);
    }
    volume.post("resize", json!({})).await.names_field("size");
    let resized = volume.post("resize", json!({"size": null})).await.is(200);
    assert_eq!((&resized["size"], &resized["enforced"]), (&Value::Null, &json!("none")));
    let uri = format!("/volumes/{}", volume.id);
    client.delete(&uri).await.is(200);
    assert!(!volume.folder.exists());
    client.delete(&uri).await.refused(404, "not_found");
    volume.get("files").await.refused(404, "not_found");
    let nonsense = client.get("/volumes/nonsense").await;
    assert!(!nonsense.text.contains("parsing"), "a library's words: {}", nonsense.text);
    nonsense.refused(400, "invalid_parameter");
    daemon.close().await;
}

#[tokio::test]
async fn files_are_written_listed_moved_and_deleted() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let config = json!({"path": "/conf/server.yml", "content": "port: 1"});
    let made = volume.post("files", config.clone()).await.is(201);
    assert_eq!((&made["path"], &made["size"]), (&json!("conf/server.yml"), &json!(7)));
    volume.post("files", config.clone()).await.is(200);
    let mut once = config;
    once["create_only"] = true.into();
    volume.post("files", once).await.refused(409, "already_exists");
    let binary = json!({"path": "b.bin", "content": "AAH/", "encoding": "base64"});
    volume.post("files", binary).await.is(201);
    assert_eq!(std::fs::read(volume.folder.join("b.bin")).expect("read"), [0, 1, 255]);
    let bad = json!({"path": "b.bin", "content": "?", "encoding": "base64"});
    volume.post("files", bad).await.names_field("content");

    volume.post("folders", json!({"path": "z/deep"})).await.is(201);
    volume.post("folders", json!({"path": "z/deep"})).await.is(200);
    assert_eq!(volume.names("").await, ["conf", "z", "b.bin"], "folders first");
    let first = volume.get("files?limit=2").await.is(200);
    let next = format!("files?limit=2&cursor={}", first["next_cursor"].as_str().expect("a cursor"));
    let second = volume.get(&next).await.is(200);
    assert_eq!(
        (&second["files"][0]["name"], &second["next_cursor"]),
        (&json!("b.bin"), &Value::Null)
    );
    assert_eq!(
        (&second["files"][0]["type"], &second["files"][0]["mode"]),
        (&json!("file"), &json!("0644"))
    );

    let copy = json!({"source": "conf", "destination": "copy"});
    volume.post("copy", copy.clone()).await.is(201);
    volume.post("copy", copy).await.refused(409, "already_exists");
    let over = json!({"source": "conf", "destination": "copy", "overwrite": true});
    volume.post("copy", over).await.is(200);
    volume.post("rename", json!({"source": "copy", "destination": "z/moved"})).await.is(200);
    let onto = json!({"source": "b.bin", "destination": "z/moved/server.yml"});
    volume.post("rename", onto).await.refused(409, "already_exists");
    volume
        .post("rename", json!({"source": "none", "destination": "x"}))
        .await
        .refused(404, "not_found");
    volume
        .post("rename", json!({"source": "z", "destination": "z/z"}))
        .await
        .refused(400, "invalid_path");
    volume.post("chmod", json!({"path": "b.bin", "mode": "0600"})).await.is(200);
    volume.post("chmod", json!({"path": "b.bin", "mode": "4755"})).await.names_field("mode");
    assert_eq!(volume.get("files").await.is(200)["files"][2]["mode"], "0600");

    volume.delete(json!({"paths": ["b.bin", "none"]})).await.refused(404, "not_found");
    volume.delete(json!({"paths": ["/"]})).await.refused(400, "invalid_path");
    volume.delete(json!({"paths": []})).await.names_field("paths");
    let deleted = volume.delete(json!({"paths": ["b.bin", "z"]})).await.is(200);
    assert_eq!((&deleted["deleted"], volume.names("").await), (&json!(2), vec!["conf".to_owned()]));
    daemon.close().await;
}

#[tokio::test]
async fn no_path_leads_out_of_a_volume() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let outside = daemon.folder().join("outside");
    std::fs::create_dir(&outside).expect("mkdir");
    std::fs::copy("/etc/hostname", outside.join("secret")).expect("copy");
    symlink(&outside, volume.folder.join("out")).expect("symlink");
    symlink("../../..", volume.folder.join("up")).expect("symlink");
    let long = "n".repeat(256);
    for path in
        ["", "/", "..", "a/../../b", r"a\..\b", "a\0b", r"C:\x", r"\\srv\x", &long, ".lightd-x"]
    {
        for (call, body) in [
            ("files", json!({"path": path, "content": "x"})),
            ("folders", json!({"path": path})),
            ("chmod", json!({"path": path, "mode": "0777"})),
            ("rename", json!({"source": path, "destination": "x"})),
            ("copy", json!({"source": path, "destination": "x", "background": true})),
            ("compress", json!({"format": "tar", "output_name": path})),
            ("decompress", json!({"archive_path": path})),
            ("decompress", json!({"archive_path": "x", "name": path})),
            ("decompress", json!({"archive_path": "x", "entries": [path]})),
        ] {
            volume.post(call, body).await.refused(400, "invalid_path");
        }
        volume.delete(json!({"paths": [path]})).await.refused(400, "invalid_path");
        let path = url::form_urlencoded::byte_serialize(path.as_bytes()).collect::<String>();
        volume.put(&path, "x", &[]).await.refused(400, "invalid_path");
        volume.read(&path, &[]).await.refused(400, "invalid_path");
    }
    for link in ["out", "up"] {
        let below = format!("{link}/secret");
        volume
            .post("files", json!({"path": below, "content": "x"}))
            .await
            .refused(400, "invalid_path");
        volume.read(&below, &[]).await.refused(400, "invalid_path");
        volume.put(&below, "x", &[]).await.refused(400, "invalid_path");
        volume.get(&format!("files?path={link}")).await.refused(400, "invalid_path");
        volume
            .post("chmod", json!({"path": below, "mode": "0777"}))
            .await
            .refused(400, "invalid_path");
        volume.delete(json!({"paths": [below]})).await.refused(400, "invalid_path");
    }
    volume.delete(json!({"paths": ["out", "up"]})).await.is(200);
    let left: Vec<_> = std::fs::read_dir(&outside).expect("list").collect();
    assert_eq!((left.len(), volume.names("").await), (1, Vec::new()), "nothing else came of it");
    daemon.close().await;
}

#[tokio::test]
async fn content_is_read_in_ranges_and_replaced_only_if_it_is_what_was_seen() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let made = volume.put("a/%C3%BC%20b.txt", "0123456789", &[]).await;
    let first = header(&made, "etag").to_owned();
    assert_eq!(made.is(201)["size"], 10);
    let path = "a/%C3%BC%20b.txt";
    let whole = volume.read(&format!("{path}&download=true"), &[]).await;
    assert_eq!(
        (whole.status, whole.text.as_str(), header(&whole, "etag")),
        (200, "0123456789", first.as_str())
    );
    assert_eq!(header(&whole, "x-content-type-options"), "nosniff");
    assert_eq!(header(&whole, "content-security-policy"), "sandbox");
    let disposition = "attachment; filename=\"_ b.txt\"; filename*=UTF-8''%C3%BC%20b.txt";
    assert_eq!(header(&whole, "content-disposition"), disposition);
    for (range, status, text, told) in [
        ("bytes=0-3", 206, "0123", "bytes 0-3/10"),
        ("bytes=-2", 206, "89", "bytes 8-9/10"),
        ("bytes=7-", 206, "789", "bytes 7-9/10"),
        ("bytes=0-0,5-6", 200, "0123456789", ""),
    ] {
        let part = volume.read(path, &[("range", range)]).await;
        assert_eq!(
            (part.status, part.text.as_str(), header(&part, "content-range")),
            (status, text, told),
            "{range}"
        );
    }
    let behind = volume.read(path, &[("range", "bytes=10-")]).await;
    assert_eq!(header(&behind, "content-range"), "bytes */10");
    behind.refused(416, "range_not_satisfiable");
    assert_eq!(volume.read(path, &[("if-none-match", &first)]).await.status, 304);
    let replaced = volume.put(path, "new", &[("if-match", &first)]).await;
    assert_ne!(header(&replaced, "etag"), first);
    replaced.is(200);
    volume.put(path, "newer", &[("if-match", &first)]).await.refused(412, "precondition_failed");
    volume.put("none", "x", &[("if-match", "*")]).await.refused(412, "precondition_failed");
    let there = volume.put(path, "newer", &[("if-none-match", "*")]).await;
    assert!(there.text.contains("exists"), "{}", there.text);
    there.refused(412, "precondition_failed");
    let stale = volume.read(path, &[("range", "bytes=0-0"), ("if-range", &first)]).await;
    assert_eq!((stale.status, stale.text.as_str()), (200, "new"));
    volume.read("a", &[]).await.refused(400, "not_a_file");
    daemon.close().await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_what_was_there() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    volume.put("file", "old", &[]).await.is(201);
    for length in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let address = ("127.0.0.1", daemon.port);
        let mut socket = tokio::net::TcpStream::connect(address).await.expect("connect");
        let uri = volume.uri("files/contents?path=file");
        let (token, host) = (&daemon.token, "Host: x");
        let head = format!(
            "PUT {uri} HTTP/1.1\r\n{host}\r\nAuthorization: Bearer {token}\r\nAccept: {VENDOR}\r\n{length}\r\n\r\n\
             1000\r\nthe beginning"
        );
        socket.write_all(head.as_bytes()).await.expect("send");
        let unfinished = async |count| match volume.unfinished(&daemon) {
            seen if seen == count => Ok(()),
            seen => Err(seen),
        };
        eventually("the upload has begun", SOON, async || unfinished(1).await).await;
        drop(socket);
        eventually("what had arrived is gone", SOON, async || unfinished(0).await).await;
        assert_eq!(volume.read("file", &[]).await.text, "old", "{length}");
    }
    daemon.close().await;
}

#[tokio::test]
async fn senders_that_stand_still_keep_nobody_but_themselves_waiting() {
    let daemon = Daemon::start().await;
    let (theirs, ours) =
        (Volume::new(&daemon, json!({})).await, Volume::new(&daemon, json!({})).await);
    let (token, host) = (&daemon.token, "Host: x");
    let mut senders = Vec::new();
    for n in 0..70 {
        let address = ("127.0.0.1", daemon.port);
        let mut socket = tokio::net::TcpStream::connect(address).await.expect("connect");
        let uri = theirs.uri(&format!("files/contents?path=file-{n}"));
        let head = format!(
            "PUT {uri} HTTP/1.1\r\n{host}\r\nAuthorization: Bearer {token}\r\nAccept: {VENDOR}\r\n\
             Content-Length: 1000\r\n\r\nabc"
        );
        socket.write_all(head.as_bytes()).await.expect("send");
        senders.push(socket);
    }
    eventually("as many as may have begun", SOON, async || match theirs.unfinished(&daemon) {
        24 => Ok(()),
        seen => Err(seen),
    })
    .await;
    ours.put("file", "content", &[]).await.is(201);
    assert_eq!(ours.names("").await, ["file"]);
    assert_eq!(theirs.names("").await, Vec::<String>::new());
    drop(senders);
    eventually("what had arrived is gone", SOON, async || match theirs.unfinished(&daemon) {
        0 => Ok(()),
        seen => Err(seen),
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn what_lightd_writes_stays_within_the_size() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({"size": 4})).await;
    let three_mb = vec![7_u8; 3 << 20];
    volume.put("a", three_mb.clone(), &[]).await.is(201);
    volume.put("a", three_mb.clone(), &[]).await.is(200);
    volume.put("b", three_mb.clone(), &[]).await.refused(507, "quota_exceeded");
    let unannounced =
        Body::wrap_stream(futures_util::stream::iter([Ok::<_, std::io::Error>(three_mb)]));
    volume.put("b", unannounced, &[]).await.refused(507, "quota_exceeded");
    let text = json!({"path": "b", "content": "x".repeat(3 << 20)});
    volume.post("files", text).await.refused(507, "quota_exceeded");
    let copy = json!({"source": "a", "destination": "b"});
    volume.post("copy", copy).await.refused(507, "quota_exceeded");
    let pack = json!({"format": "tar", "output_name": "b"});
    volume.post("compress", pack).await.refused(507, "quota_exceeded");
    let small = json!({"format": "tar.gz", "output_name": "b"});
    volume.post("compress", small).await.is(201);
    let unpack = json!({"archive_path": "b.tar.gz", "destination": "c"});
    let job = json!({"archive_path": "b.tar.gz", "destination": "c", "background": true});
    volume.post("decompress", unpack.clone()).await.refused(507, "quota_exceeded");
    let started = volume.post("decompress", job).await.is(202);
    let ended = volume.ended(&started).await;
    assert_eq!((&ended["state"], ended["error"].is_string()), (&json!("failed"), true), "{ended}");
    assert_eq!(volume.names("").await, ["a", "b.tar.gz"]);
    let quota = volume.get("quota").await.is(200);
    assert_eq!((&quota["size"], &quota["enforced"]), (&json!(4 << 20), &json!("soft")));
    assert!(
        quota["used"].as_u64() >= Some(3 << 20) && quota["available"].as_u64() < Some(1 << 20),
        "{quota}"
    );
    volume.post("resize", json!({"size": 16})).await.is(200);
    volume.post("decompress", unpack).await.is(201);
    daemon.close().await;
}

#[tokio::test]
async fn archives_of_all_formats_bring_back_what_was_packed() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    for (path, content) in
        [("w/level.dat", "level"), ("w/region/r.0", "region"), ("w/x.log", "log")]
    {
        volume.post("files", json!({"path": path, "content": content})).await.is(201);
    }
    for format in ["zip", "tar", "tar.gz", "tar.bz2", "tar.zst", "tar.xz"] {
        let pack =
            json!({"format": format, "output_name": "backup", "paths": ["w"], "ignore": ["*.log"]});
        let packed = volume.post("compress", pack.clone()).await.is(201);
        assert_eq!(packed["archive_path"], format!("backup.{format}"));
        assert!(packed["size"].as_u64() > Some(0), "{packed}");
        volume.post("compress", pack).await.refused(409, "already_exists");
        // The name says nothing about the format.
        let (from, out) = (format!("backup.{format}"), format!("out-{format}"));
        volume.post("rename", json!({"source": from, "destination": "backup"})).await.is(200);
        let unpack = json!({"archive_path": "backup", "destination": out});
        let unpacked = volume.post("decompress", unpack).await.is(201);
        assert_eq!(
            (&unpacked["destination"], &unpacked["entries"]),
            (&json!(out), &packed["entries"])
        );
        assert_eq!(volume.names(&format!("{out}/w")).await, ["region", "level.dat"]);
        assert_eq!(volume.read(&format!("{out}/w/region/r.0"), &[]).await.text, "region");
        volume.delete(json!({"paths": ["backup"]})).await.is(200);
    }
    for (format, level) in [("tar.bz2", 0), ("zip", 10), ("tar.zst", 20), ("tar.xz", 10)] {
        let pack = json!({"format": format, "output_name": "x", "level": level});
        volume.post("compress", pack).await.names_field("level");
    }
    let no_archive = json!({"archive_path": "w/level.dat"});
    volume.post("decompress", no_archive).await.refused(400, "archive_unsupported");
    volume
        .post("compress", json!({"format": "rar", "output_name": "x"}))
        .await
        .names_field("format");
    daemon.close().await;
}

#[tokio::test]
async fn an_archive_is_looked_into_and_some_of_it_taken() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    for path in ["w/level.dat", "w/region/r.0", "top"] {
        volume.post("files", json!({"path": path, "content": path})).await.is(201);
    }
    symlink("level.dat", volume.folder.join("w/link")).expect("symlink");
    for format in ["zip", "tar.gz"] {
        let pack = json!({"format": format, "output_name": "a", "paths": ["w", "top"]});
        volume.post("compress", pack).await.is(201);
        let uri = format!("archive?path=a.{format}");
        let whole = volume.get(&uri).await.is(200);
        assert_eq!((&whole["format"], &whole["next_cursor"]), (&json!(format), &Value::Null));
        let of = |name: &str| {
            let entries = whole["entries"].as_array().expect("entries").iter();
            entries.filter(|entry| entry["name"] == name).cloned().collect::<Vec<_>>()
        };
        let file = &of("w/level.dat")[0];
        assert_eq!(
            (&file["type"], &file["size"], &file["mode"], &file["target"]),
            (&json!("file"), &json!(11), &json!("0644"), &Value::Null)
        );
        assert!(file["modified_at"].as_u64() > Some(1_600_000_000), "{file}");
        assert_eq!(of("w/link")[0]["target"], "level.dat");
        let first = volume.get(&format!("{uri}&limit=2")).await.is(200);
        let cursor = first["next_cursor"].as_str().expect("a cursor");
        let second = volume.get(&format!("{uri}&limit=10&cursor={cursor}")).await.is(200);
        let entries = |page: &Value| page["entries"].as_array().expect("entries").clone();
        let pages = [&first, &second].map(entries);
        assert_eq!(json!(pages.concat()), whole["entries"]);

        let out = format!("out-{format}");
        let mut take = json!({"archive_path": format!("a.{format}"), "destination": out});
        take["entries"] = json!(["w/region", "top"]);
        let taken = volume.post("decompress", take.clone()).await.is(201);
        assert_eq!(taken["entries"], 3);
        assert_eq!(volume.names(&out).await, ["w", "top"]);
        assert_eq!(volume.names(&format!("{out}/w")).await, ["region"]);
        take["entries"] = json!(["none"]);
        volume.post("decompress", take.clone()).await.refused(404, "not_found");
        take["entries"] = json!([".."]);
        volume.post("decompress", take).await.refused(400, "invalid_path");
    }
    volume.get("archive?path=top").await.refused(400, "archive_unsupported");
    volume.get("archive?path=none").await.refused(404, "not_found");
    volume.get("archive?path=").await.refused(400, "invalid_path");
    volume.get("archive?path=a.zip&limit=0").await.names_field("?limit");
    volume.get("archive?path=a.zip&cursor=x").await.refused(400, "invalid_cursor");

    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, b"a log").expect("gzip");
    volume.put("latest.log.gz", gz.finish().expect("gzip"), &[]).await.is(201);
    let shown = volume.get("archive?path=latest.log.gz").await.is(200);
    let entry = &shown["entries"][0];
    assert_eq!(
        (&shown["format"], &entry["name"], &entry["size"]),
        (&json!("gz"), &json!("latest.log"), &Value::Null)
    );
    let unpack = json!({"archive_path": "latest.log.gz"});
    volume.post("decompress", unpack.clone()).await.is(201);
    assert_eq!(volume.read("latest.log", &[]).await.text, "a log");
    let mut named = unpack;
    named["name"] = json!("logs/other.log");
    volume.post("decompress", named.clone()).await.names_field("name");
    named["name"] = json!("other.log");
    volume.post("decompress", named).await.is(201);
    assert_eq!(volume.read("other.log", &[]).await.text, "a log");
    daemon.close().await;
}

#[tokio::test]
async fn background_work_is_watched_on_the_socket_and_can_be_cancelled() {
    let daemon = Daemon::start().await;
    let id = daemon.id("c");
    let volume = Volume::new(&daemon, json!({})).await;
    daemon.create(&id, json!({"volume_id": volume.id})).await;
    let mut socket = daemon.ws(&id).await;
    volume.put("data", vec![7_u8; 1 << 20], &[]).await.is(201);
    let copy = json!({"source": "data", "destination": "copy", "background": true});
    let started = volume.post("copy", copy.clone()).await.is(202);
    let done = socket.expect("the copy's end", |frame| {
        frame["event"] == "operation"
            && frame["operation_id"] == started["operation_id"]
            && frame["state"] == "done"
    });
    let done = done.await;
    assert_eq!(done["done_bytes"], 1 << 20);
    assert_eq!(done["result"], json!({"source": "data", "destination": "copy"}));
    volume.post("copy", copy).await.refused(409, "already_exists");

    // Random enough to keep the slowest format busy until it is told to stop.
    let noise: Vec<u8> = (0..64 << 20).map(|_| rand::random()).collect();
    volume.put("noise", noise, &[]).await.is(201);
    let pack = json!({"format": "tar.bz2", "output_name": "never", "background": true});
    let started = volume.post("compress", pack).await.is(202);
    let uri = format!("/operations/{}", started["operation_id"].as_str().expect("an id"));
    let cancelled = volume.client.delete(&uri).await.is(200);
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    assert_eq!(volume.names("").await, ["copy", "data", "noise"]);
    let pack = json!({"format": "zip", "output_name": "a", "paths": ["data"], "background": true});
    let packed = volume.ended(&volume.post("compress", pack).await.is(202)).await;
    let size = std::fs::metadata(volume.folder.join("a.zip")).expect("stat").len();
    let made = json!({"archive_path": "a.zip", "size": size, "entries": 1, "skipped": 0});
    assert_eq!(packed["result"], made);
    let unpack = json!({"archive_path": "a.zip", "destination": "b", "background": true});
    let unpacked = volume.ended(&volume.post("decompress", unpack).await.is(202)).await;
    assert_eq!(unpacked["result"], json!({"destination": "b", "entries": 1, "skipped": 0}));
    let delete = volume.delete(json!({"paths": ["a.zip", "b"], "background": true})).await.is(202);
    assert_eq!(volume.ended(&delete).await["result"], json!({"deleted": 2}));
    let rar = volume.post("compress", json!({"format": "rar", "output_name": "a"})).await;
    assert!(!rar.text.contains("variant"), "a library's words: {}", rar.text);
    rar.names_field("format");
    let left: Vec<_> = std::fs::read_dir(&volume.folder).expect("list").flatten().collect();
    assert_eq!(left.len(), 3, "{left:?}");
    let listed = volume.client.get("/operations").await.is(200);
    assert_eq!(listed["operations"].as_array().map(Vec::len), Some(5));
    volume.client.get("/operations/none").await.refused(404, "not_found");
    daemon.close().await;
}

#[tokio::test]
async fn a_volume_belongs_to_the_containers_that_use_it() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let id = daemon.id("c");
    let (mine, other) =
        (Volume::new(&daemon, json!({})).await, Volume::new(&daemon, json!({})).await);
    daemon.create(&id, json!({"volume_id": mine.id})).await;
    let uri = format!("/volumes/{}", mine.id);
    client.delete(&uri).await.refused(409, "volume_in_use");
    assert_eq!(client.get(&uri).await.is(200)["containers"], json!([id]));

    let narrow = async |permission: &str| {
        let body = json!({"containers": [id], "permissions": [permission]});
        let issued = client.post("/auth/tokens", body).await.is(201);
        client.with_token(issued["token"].as_str().expect("a token"))
    };
    let (reader, writer) = (narrow("files.read").await, narrow("files.write").await);
    let file = json!({"path": "x", "content": "x"});
    reader.get(&mine.uri("files")).await.is(200);
    reader.post(&mine.uri("files"), file.clone()).await.refused(403, "scope");
    writer.post(&mine.uri("files"), file.clone()).await.is(201);
    writer.get(&mine.uri("files")).await.refused(403, "scope");
    for volume in [other.id.as_str(), "0190c6a0-0000-4000-8000-000000000000"] {
        reader.get(&format!("/volumes/{volume}/files")).await.refused(403, "scope");
        writer.post(&format!("/volumes/{volume}/files"), file.clone()).await.refused(403, "scope");
    }
    let seen = reader.get("/volumes").await.is(200);
    assert_eq!(
        (seen["volumes"].as_array().map(Vec::len), &seen["volumes"][0]["id"]),
        (Some(1), &json!(mine.id))
    );
    writer.post("/volumes", json!({})).await.refused(403, "scope");
    writer.delete(&uri).await.refused(403, "scope");
    daemon.close().await;
}

#[tokio::test]
async fn a_crash_leaves_no_half_made_files_and_no_deleted_volumes() {
    let mut daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let noise: Vec<u8> = (0..64 << 20).map(|_| rand::random()).collect();
    volume.put("noise", noise, &[]).await.is(201);
    let pack = json!({"format": "tar.bz2", "output_name": "never", "background": true});
    volume.post("compress", pack).await.is(202);
    let left = || std::fs::read_dir(&volume.folder).expect("list").count();
    let what = "the archive has begun";
    eventually(what, SOON, async || if left() == 2 { Ok(()) } else { Err(left()) }).await;
    daemon.kill9().await;
    let volumes = volume.folder.parent().expect("a folder");
    std::fs::create_dir(volumes.join(".deleting-0")).expect("mkdir");
    assert_eq!(left(), 2, "the crash left something to sweep");
    daemon.launch().await;
    let what = "what the crash left is gone";
    eventually(what, SOON, async || {
        let of_all = std::fs::read_dir(volumes).expect("list").count();
        if (left(), of_all) == (1, 1) { Ok(()) } else { Err((left(), of_all)) }
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({"size": 1})).await;
    let uri = volume.uri("files/contents?path=x");
    let stranger = daemon.client().with_token("lightd_0123456789_nobody");
    let much = vec![7_u8; 32 << 20];
    for _ in 0..5 {
        let sent = stranger.request(Method::PUT, &uri).body(much.clone());
        answer(sent).await.refused(401, "unauthorized");
        volume.put("x", much.clone(), &[]).await.refused(507, "quota_exceeded");
        let body = json!({"path": "x", "content": "x".repeat(20 << 20)});
        volume.post("files", body).await.refused(413, "too_large");
    }
    daemon.close().await;
}
