//! Snapshots of volumes: complete or not there, taken from a workload that stands still, put back in one
//! step, whatever kills lightd meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::volumes::{self, folder};

async fn volume(daemon: &Daemon, body: Value) -> String {
    let made = daemon.client().post("/volumes", body).await.is(201);
    made["id"].as_str().expect("an id").to_owned()
}

/// What is in a folder: content by path, folders as nothing.
fn tree(root: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below").display().to_string();
            if path.is_dir() {
                found.insert(name, None);
                todo.push(path);
            } else {
                found.insert(name, Some(std::fs::read(&path).expect("read")));
            }
        }
    }
    found
}

/// Some hundred files that say which generation they are of.
fn fill(root: &Path, generation: &str) {
    for index in 0..300 {
        let path = root.join(format!("folder-{}/{generation}-{index}", index % 20));
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        let mut file = std::fs::File::create(&path).expect("a file");
        let text = generation.repeat(2000 + index);
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("a write");
    }
}

fn empty(root: &Path) {
    for entry in std::fs::read_dir(root).expect("a folder") {
        std::fs::remove_dir_all(entry.expect("an entry").path()).expect("removed");
    }
}

async fn take(daemon: &Daemon, volume: &str, name: &str, pause: bool) -> Value {
    let body = json!({"name": name, "pause": pause});
    let path = format!("/volumes/{volume}/snapshots");
    let started = daemon.client().post(&path, body).await.is(202);
    ended(daemon, &started).await
}

async fn restore(daemon: &Daemon, volume: &str, name: &str) -> Value {
    let path = format!("/volumes/{volume}/snapshots/{name}/restore");
    let started = daemon.client().post_empty(&path).await.is(202);
    ended(daemon, &started).await
}

async fn ended(daemon: &Daemon, operation: &Value) -> Value {
    volumes::ended(&daemon.client(), operation).await
}

async fn names(daemon: &Daemon, volume: &str) -> Vec<String> {
    let listed = daemon.client().get(&format!("/volumes/{volume}/snapshots")).await.is(200);
    let listed = listed["snapshots"].as_array().expect("a list").iter();
    listed.map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
}

/// What lies beside the volumes and belongs to none.
fn leavings(daemon: &Daemon) -> Vec<String> {
    let mut left = Vec::new();
    let volumes = daemon.data_path().join("volumes");
    let hidden = |folder: &Path, left: &mut Vec<String>| {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_known = [".images", ".snapshots"].contains(&name.as_str());
            if (name.starts_with('.') || name.starts_with("staged-")) && !is_known {
                left.push(entry.path().display().to_string());
            }
        }
    };
    hidden(&volumes, &mut left);
    hidden(&volumes.join(".images"), &mut left);
    for entry in std::fs::read_dir(volumes.join(".snapshots")).into_iter().flatten().flatten() {
        hidden(&entry.path(), &mut left);
    }
    left
}

#[tokio::test]
async fn a_snapshot_is_taken_listed_restored_and_deleted_on_each_backend() {
    for backend in ["soft", "image"] {
        let daemon = Daemon::start_with(|config| {
            config["quota"] = json!({"backend": backend});
            config["snapshots"] = json!({"max_per_volume": 2});
        });
        let daemon = daemon.await;
        let client = daemon.client();
        let id = volume(&daemon, json!({"size": 40})).await;
        let uri = format!("/volumes/{id}/snapshots");
        let at = folder(&daemon, &id);
        fill(&at, "old");
        let old = tree(&at);
        let done = take(&daemon, &id, "first", false).await;
        assert_eq!((&done["state"], &done["kind"]), (&json!("done"), &json!("snapshot")), "{done}");
        let shown = client.get(&format!("{uri}/first")).await.is(200);
        let bytes: usize = old.values().flatten().map(Vec::len).sum();
        assert_eq!((&shown["size"], &shown["paused"]), (&json!(bytes), &json!(false)));
        assert_eq!(shown["entries"], json!(old.len()));
        let made = json!({"name": "first", "size": bytes, "entries": old.len()});
        assert_eq!(done["result"], made);
        client.post(&uri, json!({"name": "first"})).await.refused(409, "snapshot_exists");
        client.post(&uri, json!({"name": "../up"})).await.names_field("name");
        client.post(&uri, json!({"name": "second"})).await.is(202);
        eventually("both are there", SOON, async || {
            let names = names(&daemon, &id).await;
            if names == ["first", "second"] { Ok(()) } else { Err(names) }
        })
        .await;
        client.post(&uri, json!({"name": "third"})).await.refused(409, "too_many_snapshots");
        let files = client.get(&format!("/volumes/{id}/files")).await.is(200);
        assert!(!files.to_string().contains("snapshots"), "{files}");

        empty(&at);
        fill(&at, "new");
        let done = restore(&daemon, &id, "first").await;
        assert_eq!((&done["state"], &done["error"]), (&json!("done"), &Value::Null), "{done}");
        assert_eq!(done["result"], made);
        assert!(tree(&at) == old, "{backend}: it is not what it was");
        let held = client.get(&format!("/volumes/{id}/quota")).await.is(200);
        assert_eq!(held["backend"], backend);
        let body = json!({"path": "after", "content": "x"});
        client.post(&format!("/volumes/{id}/files"), body).await.is(201);
        // The snapshot is not what was restored from it.
        restore(&daemon, &id, "first").await;
        assert!(tree(&at) == old, "{backend}: it was changed through the volume");

        client.post_empty(&format!("{uri}/none/restore")).await.refused(404, "not_found");
        client.delete(&format!("{uri}/second")).await.is(200);
        client.delete(&format!("{uri}/second")).await.refused(404, "not_found");
        assert_eq!(names(&daemon, &id).await, ["first"]);
        client.delete(&format!("/volumes/{id}")).await.is(200);
        client.get(&uri).await.refused(404, "not_found");
        let all = daemon.data_path().join("volumes/.snapshots");
        let left = std::fs::read_dir(all).expect("a folder").count();
        assert_eq!((left, leavings(&daemon)), (0, Vec::new()), "{backend}");
        daemon.close().await;
    }
}

#[tokio::test]
async fn a_restore_waits_for_nobody_and_nobody_starts_meanwhile() {
    let daemon = Daemon::start().await;
    let id = daemon.id("used");
    let shown = daemon
        .run(&id, json!({"startup_command": "cat state; echo Ready; guest forever", "tty": false}))
        .await;
    let volume = shown["volume_id"].as_str().expect("an id").to_owned();
    let at = folder(&daemon, &volume);
    let write = async |content: &str| {
        let body = json!({"path": "state", "content": content});
        daemon.client().post(&format!("/volumes/{volume}/files"), body).await
    };
    write("as it was\n").await.is(201);
    take(&daemon, &volume, "kept", false).await;
    write("as it became\n").await.is(200);
    let uri = format!("/volumes/{volume}/snapshots/kept/restore");
    daemon.client().post_empty(&uri).await.refused(409, "running");
    daemon.power(&id, "pause").await;
    daemon.state(&id, "paused").await;
    daemon.client().post_empty(&uri).await.refused(409, "paused");
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    // Large enough to still be under way when the next requests arrive.
    let large = std::fs::File::create(at.join("large")).expect("a file");
    std::io::copy(&mut std::io::Read::take(std::io::repeat(7), 200 << 20), &mut &large)
        .expect("it");
    take(&daemon, &volume, "large", false).await;
    let large = format!("/volumes/{volume}/snapshots/large/restore");
    let started = daemon.client().post_empty(&large).await.is(202);
    let start = daemon.client().post_empty(&format!("/containers/{id}/start")).await;
    let written = write("in between\n").await;
    let second = daemon.client().post_empty(&uri).await;
    let seen = daemon
        .client()
        .get(&format!("/operations/{}", started["operation_id"].as_str().expect("an id")))
        .await
        .is(200);
    assert_eq!(seen["state"], "running", "it was over too soon to tell");
    start.refused(409, "volume_busy");
    written.refused(409, "volume_busy");
    second.refused(409, "volume_busy");
    ended(&daemon, &started).await;
    let done = restore(&daemon, &volume, "kept").await;
    assert_eq!(done["state"], "done", "{done}");
    assert!(!at.join("large").exists());
    // The same Docker container, which was made before the folders changed places.
    let before = daemon.inspect(&id).await["Id"].clone();
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    daemon.expect_log(&id, "as it was").await;
    assert_eq!(daemon.inspect(&id).await["Id"], before);
    daemon.close().await;
}

/// Counts into two files, one after the other: in a copy that is of one moment they differ by one at most.
const COUNTS: &str = "echo Ready; n=0; while :; do n=$((n+1)); echo $n > first.new; mv first.new first; \
     echo $n > second.new; mv second.new second; done";

#[tokio::test]
async fn a_workload_stands_still_for_its_snapshot_and_goes_on_by_itself() {
    let daemon = Daemon::start().await;
    let id = daemon.id("still");
    let shown = daemon.run(&id, json!({"startup_command": COUNTS, "tty": false})).await;
    let volume = shown["volume_id"].as_str().expect("an id").to_owned();
    let at = folder(&daemon, &volume);
    let number = |path: PathBuf| -> i64 {
        std::fs::read_to_string(path).expect("a file").trim().parse().expect("a number")
    };
    eventually("it counts", SOON, async || {
        if at.join("second").exists() { Ok(()) } else { Err("it does not") }
    })
    .await;
    // Files that take their time to copy lie between the two.
    fill(&at, "ballast");
    for name in ["one", "two"] {
        let done = take(&daemon, &volume, name, true).await;
        assert_eq!(done["state"], "done", "{done}");
        daemon.state(&id, "running").await;
        let before = number(at.join("second"));
        eventually("it goes on", SOON, async || {
            let now = number(at.join("second"));
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
    }
    let kept = daemon.data_path().join("volumes/.snapshots").join(&volume);
    for snapshot in std::fs::read_dir(kept).expect("a folder") {
        let snapshot = snapshot.expect("an entry").path();
        let (first, second) = (number(snapshot.join("first")), number(snapshot.join("second")));
        assert!((0..=1).contains(&(first - second)), "{first} and {second} are of two moments");
    }
    // What people paused stays paused.
    daemon.power(&id, "pause").await;
    daemon.state(&id, "paused").await;
    assert_eq!(take(&daemon, &volume, "three", true).await["state"], "done");
    daemon.state(&id, "paused").await;
    assert_eq!(daemon.inspect(&id).await["State"]["Paused"], true);
    daemon.close().await;
}

#[tokio::test]
async fn lightd_killed_during_a_snapshot_leaves_none_and_no_workload_that_stands_still() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("frozen");
    let shown = daemon.run(&id, json!({"startup_command": COUNTS, "tty": false})).await;
    let volume = shown["volume_id"].as_str().expect("an id").to_owned();
    let at = folder(&daemon, &volume);
    fill(&at, "ballast");
    for (step, delay_ms) in [0, 15, 30, 50, 70, 90, 120, 160, 220, 300].into_iter().enumerate() {
        let client = daemon.client();
        let path = format!("/volumes/{volume}/snapshots");
        let body = json!({"name": format!("s{step}"), "pause": true});
        let asked = client.request(reqwest::Method::POST, &path).json(&body);
        let mut under_way = tokio::task::JoinSet::new();
        under_way.spawn(asked.send());
        // Not a wait for something: the moment of the kill is what is varied.
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        daemon.kill9().await;
        daemon.launch().await;
        daemon.state(&id, "running").await;
        let what = format!("the workload goes on after a kill {delay_ms} ms into a snapshot");
        let before = std::fs::read_to_string(at.join("second")).ok();
        eventually(&what, SOON, async || {
            let now = std::fs::read_to_string(at.join("second")).ok();
            if now != before { Ok(()) } else { Err(now) }
        })
        .await;
        let shown = names(&daemon, &volume).await;
        eventually("only whole snapshots are left", SOON, async || {
            let kept = daemon.data_path().join("volumes/.snapshots").join(&volume);
            let kept = std::fs::read_dir(kept).map_or(0, |entries| entries.count());
            let left = leavings(&daemon);
            if left.is_empty() && kept == shown.len() { Ok(()) } else { Err((kept, left)) }
        })
        .await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn lightd_killed_during_a_restore_leaves_the_old_files_or_the_new_ones() {
    for backend in ["soft", "image"] {
        let mut daemon =
            Daemon::start_with(|config| config["quota"] = json!({"backend": backend})).await;
        let id = volume(&daemon, json!({"size": 48})).await;
        let at = folder(&daemon, &id);
        fill(&at, "old");
        let old = tree(&at);
        assert_eq!(take(&daemon, &id, "old", false).await["state"], "done");
        empty(&at);
        fill(&at, "new");
        let new = tree(&at);
        assert_eq!(take(&daemon, &id, "new", false).await["state"], "done");
        let mut seen = [0, 0];
        for (step, delay_ms) in
            [0, 20, 40, 60, 80, 100, 130, 160, 200, 250, 350].into_iter().enumerate()
        {
            let name = if step % 2 == 0 { "old" } else { "new" };
            let client = daemon.client();
            let path = format!("/volumes/{id}/snapshots/{name}/restore");
            let asked = client.request(reqwest::Method::POST, &path);
            let mut under_way = tokio::task::JoinSet::new();
            under_way.spawn(asked.send());
            // Not a wait for something: the moment of the kill is what is varied.
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            daemon.kill9().await;
            daemon.launch().await;
            eventually("the volume is back and nothing is left", SOON, async || {
                let answer = daemon.client().get(&format!("/volumes/{id}/files")).await;
                let left = leavings(&daemon);
                if answer.status == 200 && left.is_empty() { Ok(()) } else { Err((answer, left)) }
            })
            .await;
            let now = tree(&at);
            assert!(now == old || now == new, "{backend}, {delay_ms} ms: a mix of {}", now.len());
            seen[usize::from(now == new)] += 1;
            let held = daemon.client().get(&format!("/volumes/{id}/quota")).await.is(200);
            assert_eq!(held["size"], json!(48 << 20));
        }
        let done = restore(&daemon, &id, "old").await;
        assert_eq!(done["state"], "done", "{done}");
        assert!(tree(&at) == old);
        println!("{backend}: old {} times, new {} times", seen[0], seen[1]);
        daemon.close().await;
    }
}

#[tokio::test]
async fn what_does_not_fit_or_is_damaged_or_cancelled_changes_nothing() {
    let daemon = Daemon::start_with(|config| config["quota"] = json!({"backend": "image"})).await;
    let client = daemon.client();
    let id = volume(&daemon, json!({"size": 64})).await;
    let at = folder(&daemon, &id);
    let large = std::fs::File::create(at.join("large")).expect("a file");
    std::io::copy(&mut std::io::Read::take(std::io::repeat(7), 30 << 20), &mut &large).expect("it");
    drop(large);
    assert_eq!(take(&daemon, &id, "large", false).await["state"], "done");
    std::fs::remove_file(at.join("large")).expect("removed");
    fill(&at, "now");
    let now = tree(&at);
    client.post(&format!("/volumes/{id}/resize"), json!({"size": 24})).await.is(200);
    let uri = format!("/volumes/{id}/snapshots");
    client.post_empty(&format!("{uri}/large/restore")).await.refused(507, "quota_exceeded");
    assert!(tree(&at) == now);

    assert_eq!(take(&daemon, &id, "harmed", false).await["state"], "done");
    let kept = daemon.data_path().join("volumes/.snapshots").join(&id);
    let mut harmed =
        std::fs::read_dir(&kept).expect("a folder").map(|one| one.expect("one").path());
    let harmed = harmed.find(|path| path.join("folder-0").exists()).expect("the second");
    std::fs::remove_dir_all(harmed.join("folder-0")).expect("removed");
    let failed = restore(&daemon, &id, "harmed").await;
    assert_eq!(failed["state"], "failed");
    assert!(failed["error"].as_str().is_some_and(|why| why.contains("damaged")), "{failed}");
    assert_eq!(failed["code"], "snapshot_damaged");
    assert!(tree(&at) == now);
    assert_eq!(leavings(&daemon), Vec::<String>::new());

    client.post(&format!("/volumes/{id}/resize"), json!({"size": 64})).await.is(200);
    let started = client.post_empty(&format!("{uri}/large/restore")).await.is(202);
    let path = format!("/operations/{}", started["operation_id"].as_str().expect("an id"));
    client.delete(&path).await;
    let over = ended(&daemon, &started).await;
    let is_whole = match over["state"].as_str() {
        Some("cancelled") => tree(&at) == now,
        _ => at.join("large").exists() && tree(&at).len() == 1,
    };
    assert!(is_whole, "{over}");
    assert_eq!(leavings(&daemon), Vec::<String>::new());
    daemon.close().await;
}

#[tokio::test]
async fn a_token_takes_snapshots_only_of_its_own_and_pauses_only_with_leave() {
    let daemon = Daemon::start().await;
    let id = daemon.id("mine");
    let shown = daemon.create(&id, json!({})).await;
    let (mine, other) =
        (shown["volume_id"].as_str().expect("an id").to_owned(), daemon.volume().await);
    let token = async |permissions: Value| {
        let body = json!({"ttl": "1h", "containers": [id], "permissions": permissions});
        let made = daemon.client().post("/auth/tokens", body).await.is(201);
        daemon.client().with_token(made["token"].as_str().expect("a token"))
    };
    let (reads, writes) =
        (token(json!(["snapshots.read"])).await, token(json!(["snapshots.write"])).await);
    let files = token(json!(["files.read", "files.write"])).await;
    let uri = |volume: &str| format!("/volumes/{volume}/snapshots");
    reads.post(&uri(&mine), json!({"name": "a"})).await.refused(403, "scope");
    files.post(&uri(&mine), json!({"name": "a"})).await.refused(403, "scope");
    files.get(&uri(&mine)).await.refused(403, "scope");
    writes.post(&uri(&other), json!({"name": "a"})).await.refused(403, "scope");
    writes.post(&uri(&mine), json!({"name": "a", "pause": true})).await.refused(403, "scope");
    let started = writes.post(&uri(&mine), json!({"name": "a"})).await.is(202);
    ended(&daemon, &started).await;
    assert_eq!(reads.get(&uri(&mine)).await.is(200)["snapshots"][0]["name"], "a");
    reads.delete(&format!("{}/a", uri(&mine))).await.refused(403, "scope");
    reads.post_empty(&format!("{}/a/restore", uri(&mine))).await.refused(403, "scope");
    daemon.close().await;
}
