//! A workload that swaps a folder for a link out of its volume while every call runs on it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::{join, join_all};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::SOON;
use crate::support::client::{Client, answer};
use crate::support::process::Daemon;

const SECRET: &str = "what-no-tenant-may-read";
const FOR: Duration = Duration::from_secs(10);

/// One call on the folder `d` that is swapped; `n` makes new names.
type Call = fn(&Client, &str, usize) -> reqwest::RequestBuilder;

fn post(client: &Client, volume: &str, call: &str, body: Value) -> reqwest::RequestBuilder {
    client.request(Method::POST, &format!("/volumes/{volume}/{call}")).json(&body)
}

fn get(client: &Client, volume: &str, call: &str) -> reqwest::RequestBuilder {
    client.request(Method::GET, &format!("/volumes/{volume}/{call}"))
}

/// A resumable upload of so many bytes into the folder, begun.
fn tus(client: &Client, volume: &str, n: usize, length: usize) -> reqwest::RequestBuilder {
    let name = STANDARD.encode(format!("sub/put{}", n % 3));
    client
        .request(Method::POST, &format!("/volumes/{volume}/tus?path=d"))
        .header("Tus-Resumable", "1.0.0")
        .header("Upload-Length", length)
        .header("Upload-Metadata", format!("filename {name}"))
        .header("Content-Type", "application/offset+octet-stream")
}

/// Uploads in two pieces with a look in between, until the end; how many arrived and were refused.
async fn resume(client: &Client, volume: &str, end: Instant) -> (usize, usize) {
    let (mut done, mut refused) = (0, 0);
    while Instant::now() < end || (done == 0 && Instant::now() < end + SOON) {
        let begun = answer(tus(client, volume, done, 12).body("inside")).await;
        assert!(begun.status < 500 || begun.status == 503, "{}", begun.text);
        if begun.status != 201 {
            refused += 1;
            continue;
        }
        let place = begun.headers["location"].to_str().expect("an address").to_owned();
        let ask = |method| client.request(method, &place).header("Tus-Resumable", "1.0.0");
        let seen = answer(ask(Method::HEAD)).await;
        assert_eq!((seen.status, &seen.headers["upload-offset"] == "6"), (200, true), "{seen:?}");
        let rest = ask(Method::PATCH)
            .header("Upload-Offset", "6")
            .header("Content-Type", "application/offset+octet-stream");
        let ended = answer(rest.body("inside")).await;
        assert!(ended.status < 500 || ended.status == 503, "{}", ended.text);
        if ended.status == 204 {
            done += 1;
        } else {
            refused += 1;
            answer(ask(Method::DELETE)).await;
        }
    }
    (done, refused)
}

const CALLS: &[(&str, Call)] = &[
    ("list", |c, v, _| get(c, v, "files?path=d")),
    ("read", |c, v, _| get(c, v, "files/contents?path=d/secret")),
    ("write", |c, v, _| post(c, v, "files", json!({"path": "d/secret", "content": "inside"}))),
    ("put", |c, v, n| {
        let path = format!("/volumes/{v}/files/contents?path=d/put{}", n % 3);
        c.request(Method::PUT, &path).body("inside")
    }),
    ("delete", |c, v, n| {
        let paths = json!({"paths": [format!("d/put{}", n % 3), "d/sub"]});
        c.request(Method::DELETE, &format!("/volumes/{v}/files")).json(&paths)
    }),
    ("make a folder", |c, v, _| post(c, v, "folders", json!({"path": "d/sub/below"}))),
    ("chmod", |c, v, _| post(c, v, "chmod", json!({"path": "d/secret", "mode": "0777"}))),
    ("copy a file", |c, v, n| {
        post(c, v, "copy", json!({"source": "d/secret", "destination": format!("got/file{n}")}))
    }),
    ("copy a folder", |c, v, n| {
        post(c, v, "copy", json!({"source": "d", "destination": format!("got/tree{n}")}))
    }),
    ("copy into", |c, v, n| {
        post(c, v, "copy", json!({"source": "kept", "destination": format!("d/copy{n}")}))
    }),
    ("rename out of", |c, v, n| {
        post(c, v, "rename", json!({"source": "d/secret", "destination": format!("got/moved{n}")}))
    }),
    ("rename into", |c, v, n| {
        let names = json!({"source": format!("got/moved{n}"), "destination": format!("d/back{n}")});
        post(c, v, "rename", names)
    }),
    ("pack", |c, v, n| {
        let name = format!("got/packed{}.tar", n % 5);
        post(c, v, "compress", json!({"format": "tar", "output_name": name, "paths": ["d"]}))
    }),
    ("search", |c, v, _| get(c, v, "search?q=s&content=.&path=d")),
    ("checksum", |c, v, _| get(c, v, "checksum?path=d/secret")),
    ("download", |c, v, _| get(c, v, "download?path=d&format=tar")),
    ("download some", |c, v, _| {
        get(c, v, "download?path=d&paths=secret&paths=sub&format=zip&level=0")
    }),
    ("download a file", |c, v, _| get(c, v, "download?path=d/secret&format=tar.gz&level=0")),
    ("list an archive", |c, v, _| get(c, v, "archive?path=d/secret")),
    ("pull", |c, v, n| {
        // Nobody listens there; where it would go is looked at first.
        let path = format!("d/put{}", n % 3);
        post(c, v, "pull", json!({"url": "http://127.0.0.1:9/x", "path": path, "overwrite": true}))
    }),
    ("take a snapshot", |c, v, n| post(c, v, "snapshots", json!({"name": format!("s{n}")}))),
    ("delete a snapshot", |c, v, n| {
        c.request(Method::DELETE, &format!("/volumes/{v}/snapshots/s{}", n / 4))
    }),
    ("upload in one piece", |c, v, n| tus(c, v, n, 6).body("inside")),
    ("upload", |c, v, n| {
        let boundary = "------------------------boundary";
        let part = format!("name=\"f\"; filename=\"sub/put{}\"", n % 3);
        let head = format!("--{boundary}\r\nContent-Disposition: form-data; {part}");
        let form = format!("{head}\r\n\r\ninside\r\n--{boundary}--\r\n");
        c.request(Method::POST, &format!("/volumes/{v}/upload?path=d"))
            .header("Content-Type", format!("multipart/form-data; boundary={boundary}"))
            .body(form)
    }),
    ("unpack", |c, v, _| {
        post(c, v, "decompress", json!({"archive_path": "kept.zip", "destination": "d"}))
    }),
];

/// What came back, also of a download that broke off: what it was to send had gone meanwhile.
struct Sent {
    status: u16,
    text: String,
    is_whole: bool,
}

async fn sent(request: reqwest::RequestBuilder) -> Sent {
    // It may break off before its head was on the way.
    let Ok(mut response) = request.send().await else {
        return Sent { status: 200, text: String::new(), is_whole: false };
    };
    let (status, mut bytes) = (response.status().as_u16(), Vec::new());
    let is_whole = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            ended => break ended.is_ok(),
        }
    };
    Sent { status, text: String::from_utf8_lossy(&bytes).into_owned(), is_whole }
}

/// What lies below a folder: owner, permissions, time of change and content of each thing. What lightd is
/// about to take away may be gone between two looks.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (u32, u32, i64, String)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Some(entries) = unless_gone(std::fs::read_dir(&folder)) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            let Some(stat) = unless_gone(path.symlink_metadata()) else { continue };
            let content = if stat.is_file() {
                let Some(content) = unless_gone(std::fs::read(&path)) else { continue };
                String::from_utf8_lossy(&content).into_owned()
            } else {
                String::new()
            };
            if stat.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, (stat.uid(), stat.mode(), stat.mtime(), content));
        }
    }
    found
}

fn unless_gone<T>(found: std::io::Result<T>) -> Option<T> {
    match found {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        found => Some(found.expect("a look")),
    }
}

fn outside(daemon: &Daemon) -> PathBuf {
    let folder = daemon.folder().join("outside");
    std::fs::create_dir_all(folder.join("sub/below")).expect("folders");
    for name in ["secret", "put0", "put1", "put2", "sub/below/secret"] {
        let mut file = std::fs::File::create(folder.join(name)).expect("a file");
        file.write_all(SECRET.as_bytes()).expect("room on the disk");
    }
    folder
}

/// CVE-2024-27102, and with it CVE-2023-25152, CVE-2023-25168 and GHSA-rhq6-9rgh-v45c: the link comes after the
/// look at the path and before the call.
#[tokio::test]
async fn a_folder_that_is_swapped_for_a_link_while_every_call_runs_leads_nowhere() {
    let daemon = Daemon::start().await;
    let outside = outside(&daemon);
    let before = tree(&outside);
    let volume = daemon.volume().await;
    let client = daemon.client();
    for path in ["d/secret", "kept/a", "kept/b/c"] {
        let file = json!({"path": path, "content": "inside"});
        answer(post(&client, &volume, "files", file)).await.is(201);
    }
    let zip = json!({"format": "zip", "output_name": "kept.zip", "paths": ["kept"]});
    answer(post(&client, &volume, "compress", zip)).await.is(201);
    let id = daemon.id("swaps");
    let command = format!("echo Ready; guest swap d {}", outside.display());
    daemon.run(&id, json!({"volume_id": volume, "startup_command": command})).await;

    let (client, volume) = (&client, volume.as_str());
    let (done, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (done, refused) = (&done, &refused);
    let end = Instant::now() + FOR;
    let runs = CALLS.iter().map(|(name, call)| async move {
        let mut n = 0;
        // On a machine that is busy with other things, too, each is to have run some times.
        while Instant::now() < end || (n <= 3 && Instant::now() < end + SOON) {
            let Sent { status, text, is_whole } = sent(call(client, volume, n)).await;
            assert!(!text.contains(SECRET), "{name} told what lies outside: {text}");
            assert!(status < 500 || status == 503, "{name}: {status} {text}");
            assert!(is_whole || name.starts_with("download"), "{name} broke off: {text}");
            let counter = if status < 300 && is_whole { done } else { refused };
            counter.fetch_add(1, Ordering::Relaxed);
            n += 1;
        }
        n
    });
    let (runs, uploads) = join(join_all(runs), resume(client, volume, end)).await;
    assert!(uploads.0 > 0, "uploads in pieces have arrived: {uploads:?}");
    assert!(runs.iter().all(|n| *n > 3), "each call ran, some times: {runs:?}");
    let counts = (done.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(counts.0 > 50 && counts.1 > 50, "both sides of the swap were met: {counts:?}");

    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    assert_eq!(tree(&outside), before, "nothing outside was touched");
    // With the snapshots, which lie beside the volume.
    let inside = tree(&daemon.data_path().join("volumes"));
    assert!(
        inside.keys().any(|path| path.to_string_lossy().contains("/.snapshots/")),
        "no snapshot"
    );
    let stolen = inside.iter().find(|(_, (.., content))| content.contains(SECRET));
    assert!(stolen.is_none(), "a copy of what lies outside: {stolen:?}");
    daemon.close().await;
}
