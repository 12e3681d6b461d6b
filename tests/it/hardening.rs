//! What must hold against those who run things in containers, and when the node itself is short of something.

use std::collections::VecDeque;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::SOON;
use crate::support::numbers::free_ports;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

/// All files beneath a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn a_registrys_password_is_in_no_answer_no_log_and_no_file() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("sealed");
    let password = "correct-horse-battery-staple";
    let auth = json!({"username": "someone", "password": password, "server": "127.0.0.1:9"});
    // Nobody is there; the pull with these credentials fails.
    let image = json!({"image": "127.0.0.1:9/nothing:1", "registry_auth": auth});
    let spec = daemon.spec(&id, image).await;
    let client = daemon.client();
    let made = client.post("/containers", spec).await;
    let mut said = vec![made.text.clone()];
    made.is(201);
    daemon.install_state(&id, "failed").await;
    client.post(&format!("/containers/{id}/reinstall"), json!({})).await.is(202);
    daemon.restart().await;
    daemon.install_state(&id, "failed").await;
    for path in [
        format!("/containers/{id}"),
        format!("/containers/{id}/logs"),
        format!("/containers/{id}/install-log"),
        "/containers".to_owned(),
        "/remote/config".to_owned(),
    ] {
        said.push(client.get(&path).await.text);
    }
    daemon.terminate().await;
    let encoded = base64::engine::general_purpose::STANDARD.encode(password);
    let secrets = [password, encoded.trim_end_matches('=')];
    for secret in secrets {
        assert!(!said.iter().any(|text| text.contains(secret)), "in an answer");
        assert!(!daemon.log().contains(secret), "in the log");
        for file in files(&daemon.data_path()) {
            let bytes = std::fs::read(&file).expect("a file");
            assert!(!holds(&bytes, secret), "in {}", file.display());
        }
    }
    daemon.launch().await;
    daemon.close().await;
}

#[tokio::test]
async fn a_mounted_folder_that_became_a_link_to_elsewhere_is_not_mounted() {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let allowed = daemon.folder().join("allowed");
    let (inside, elsewhere) = (allowed.join("inside"), daemon.folder().join("elsewhere"));
    for folder in [&inside, &elsewhere] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    daemon.edit_config(|config| config["docker"]["allowed_mounts"] = json!([allowed]));
    daemon.launch().await;
    let id = daemon.id("swapped");
    daemon.create(&id, json!({"mount": {"/data": inside}})).await;
    // As a neighbour that may write in the allowed folder could.
    std::fs::remove_dir(&inside).expect("an empty folder");
    symlink(&elsewhere, &inside).expect("a link");
    let mut socket = daemon.ws(&id).await;
    daemon.power(&id, "start").await;
    let told = socket.expect("why it did not start", |frame| frame["event"] == "daemon_message");
    let told = told.await["data"].as_str().unwrap_or_default().to_owned();
    assert!(told.contains("mount./data"), "{told}");
    daemon.state(&id, "offline").await;
    let started = daemon.inspect(&id).await["State"]["StartedAt"].clone();
    assert_eq!(started, "0001-01-01T00:00:00Z", "it never ran");

    std::fs::remove_file(&inside).expect("a link");
    std::fs::create_dir(&inside).expect("a folder");
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_workloads_output_fills_no_disk() {
    const CAP: u64 = 2 << 20;
    let daemon = Daemon::start_with(|config| {
        config["limits"] = json!({"log_max_bytes": CAP});
        config["console"] = json!({"journal_bytes": CAP});
    });
    let daemon = daemon.await;
    let id = daemon.id("flood");
    let command = "guest lines 200000 100 -- say over -- forever";
    let spec = json!({"startup_command": command, "start_pattern": "over", "tty": false});
    let shown = daemon.run(&id, spec).await;
    let path = daemon.inspect(&id).await["LogPath"].as_str().expect("a path").to_owned();
    let folder = Path::new(&path).parent().expect("a folder");
    let logged: u64 = files(folder)
        .iter()
        .filter(|file| file.to_string_lossy().contains("-json.log"))
        .map(|file| file.metadata().map_or(0, |meta| meta.len()))
        .sum();
    assert!((1..2 * CAP).contains(&logged), "the engine's log has {logged} bytes");
    let own = daemon.data_path().join("containers").join(&id);
    let own: u64 = files(&own).iter().map(|file| file.metadata().map_or(0, |m| m.len())).sum();
    assert!((1..2 * CAP).contains(&own), "lightd's own files have {own} bytes");
    assert_eq!(shown["state"], "running");
    daemon.close().await;
}

#[tokio::test]
async fn an_install_script_is_held_to_the_containers_memory() {
    let daemon = Daemon::start().await;
    let id = daemon.id("greedy");
    let spec = daemon.spec(&id, json!({"install_script": "guest alloc 500"})).await;
    daemon.client().post("/containers", spec).await.is(201);
    let shown = daemon.install_state(&id, "failed").await;
    let reason = shown["install_error"].as_str().unwrap_or_default();
    assert!(reason.contains("memory") || reason.contains("137"), "{reason}");
    daemon.close().await;
}

#[tokio::test]
async fn a_container_deleted_while_it_is_being_made_leaves_nothing_behind() {
    let daemon = Daemon::start().await;
    let volume = daemon.volume().await;
    for n in 0..12_u64 {
        let id = daemon.id("brief");
        let mut changes = json!({"volume_id": volume});
        if n % 2 == 0 {
            changes["install_script"] = "echo x > /kept; sleep 0.1".into();
        }
        let spec = daemon.spec(&id, changes).await;
        daemon.client().post("/containers", spec).await.is(201);
        // The moment is what is varied; nothing is waited for.
        tokio::time::sleep(std::time::Duration::from_millis(n * 25)).await;
        let answer = daemon.client().delete(&format!("/containers/{id}")).await;
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        eventually("the name is free", SOON, async || {
            let answer = daemon.client().get(&format!("/containers/{id}")).await;
            if answer.status == 404 { Ok(()) } else { Err(answer.text) }
        })
        .await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn many_containers_asked_for_at_once_each_get_a_port_of_their_own() {
    let daemon = Daemon::start().await;
    const COUNT: u16 = 20;
    let ports = free_ports(COUNT);
    let range = json!({"ip": "127.0.0.1", "from": ports[0], "to": ports[usize::from(COUNT) - 1]});
    daemon.client().post("/network/ports", range).await.is(201);
    let ids: Vec<String> = (0..COUNT).map(|n| daemon.id(&format!("m{n}"))).collect();
    let mut asked = tokio::task::JoinSet::new();
    for id in &ids {
        let spec = daemon.spec(id, json!({"ports": [{"protocol": "tcp"}]})).await;
        let client = daemon.client();
        asked.spawn(async move { client.post("/containers", spec).await.status });
    }
    assert_eq!(asked.join_all().await, vec![201; usize::from(COUNT)]);
    let mut given = Vec::new();
    for id in &ids {
        let shown = daemon.install_state(id, "ready").await;
        let bound = daemon.inspect(id).await["HostConfig"]["PortBindings"].clone();
        let port = shown["ports"][0]["port"].as_u64().expect("a port");
        assert_eq!(bound[format!("{port}/tcp")][0]["HostPort"], port.to_string());
        given.push(port);
    }
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), usize::from(COUNT));
    daemon.close().await;
}

#[tokio::test]
async fn names_and_texts_of_every_alphabet_come_through() {
    let daemon = Daemon::start().await;
    let long = "x".repeat(63 - daemon.id("").len()) + &daemon.id("");
    for id in [daemon.id("a.b"), daemon.id("A"), daemon.id("a"), daemon.id("0_c"), long] {
        let spec = json!({
            "startup_command": "echo \"ünïcödé 日本語 🎉 $NAME\"; guest forever",
            "start_pattern": "🎉 .*`$", "tty": false,
            "env": {"NAME": "日本 ' \" \\ `id`"}, "labels": {"team": "знач"},
            "install_script": "#!/bin/sh\necho инсталл; echo x > /kept",
        });
        daemon.run(&id, spec).await;
        let log = daemon.logs(&id).await;
        assert_eq!(log, "инсталл\nünïcödé 日本語 🎉 日本 ' \" \\ `id`\n", "{id}");
    }
    daemon.close().await;
}

/// A small file system of its own.
pub(crate) struct SmallDisk(pub(crate) PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(&at);
        assert!(mount.status().expect("mount runs").success());
        Self(at)
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("fill")).expect("a file");
        let block = [7_u8; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.join("fill")).expect("the file that fills it");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[tokio::test]
async fn a_full_disk_keeps_nothing_from_being_seen_or_stopped_and_is_got_over() {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let disk = SmallDisk::mount(daemon.folder().join("small"));
    daemon.edit_config(|config| config["storage"]["base_path"] = json!(disk.0.join("data")));
    daemon.launch().await;
    let (stays, stopped) = (daemon.id("stays"), daemon.id("stopped"));
    let counts = "n=0; while :; do n=$((n+1)); echo n$n; sleep 0.05; done";
    let spec = json!({"startup_command": counts, "start_pattern": "n1", "tty": false});
    daemon.run(&stays, spec).await;
    daemon.run(&stopped, json!({})).await;
    let volume = daemon.volume().await;
    disk.fill();
    let client = daemon.client();
    let no_room = (507, "insufficient_storage");
    client.post("/auth/tokens", json!({"ttl": "1h"})).await.refused(no_room.0, no_room.1);
    let third = daemon.spec(&daemon.id("third"), json!({"volume_id": volume})).await;
    client.post("/containers", third).await.refused(no_room.0, no_room.1);
    // More at once than fit into one transaction: each is told the reason.
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = daemon.client();
        asked.spawn(async move { client.post("/auth/tokens", json!({"ttl": "1h"})).await });
    }
    for answer in asked.join_all().await {
        answer.refused(no_room.0, no_room.1);
    }
    daemon.power(&stopped, "kill").await;
    daemon.state(&stopped, "offline").await;
    daemon.expect_log(&stays, "n100").await;
    disk.clear();
    eventually("things can be stored again", SOON, async || {
        let answer = client.post("/auth/tokens", json!({"ttl": "1h"})).await;
        if answer.status == 201 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    daemon.power(&stopped, "start").await;
    daemon.state(&stopped, "running").await;
    daemon.kill9().await;
    daemon.launch().await;
    for id in [&stays, &stopped] {
        daemon.state(id, "running").await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_kill_on_a_full_disk_is_still_one_after_a_restart() {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let disk = SmallDisk::mount(daemon.folder().join("small"));
    daemon.edit_config(|config| config["storage"]["base_path"] = json!(disk.0.join("data")));
    daemon.launch().await;
    let id = daemon.id("killed");
    daemon.run(&id, json!({"restart_on_crash": {"backoff_min_s": 1}})).await;
    disk.fill();
    daemon
        .client()
        .post("/auth/tokens", json!({"ttl": "1h"}))
        .await
        .refused(507, "insufficient_storage");
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    daemon.kill9().await;
    disk.clear();
    daemon.launch().await;
    let shown = daemon.state(&id, "offline").await;
    assert_eq!(shown["last_exit"]["ended_by"], "kill", "{shown}");
    assert_eq!(shown["desired_state"], "offline", "{shown}");
    daemon.close().await;
}

/// Opens so many connections one after the other, each with half a head, half a body or a request that takes no
/// token; the last ones stay open, more of them
/// than the daemon has places.
async fn flood(address: &str, connections: usize) -> VecDeque<TcpStream> {
    let mut held = VecDeque::new();
    let half_body = "POST /volumes HTTP/1.1\r\nHost: node\r\nContent-Length: 9\r\n\r\nhalf";
    let whole = "GET /livez HTTP/1.1\r\nHost: node\r\n\r\n";
    let said = ["GET /livez HT", half_body, whole].into_iter().cycle();
    for said in said.take(connections) {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // One that had to make room may be closed by now.
        drop(stream.write_all(said.as_bytes()).await);
        held.push_back(stream);
        if held.len() > 600 {
            held.pop_front();
        }
    }
    held
}

#[tokio::test]
async fn connections_without_end_keep_nobody_out_and_nothing_from_going_on() {
    let mut daemon = Daemon::prepare(|_| {}).await;
    daemon.set_wrapper(&["prlimit", "--nofile=400"]);
    daemon.launch().await;
    let id = daemon.id("stays");
    daemon.run(&id, json!({})).await;
    // It has its connection already.
    let client = daemon.client();
    client.get("/containers").await.is(200);
    let address = daemon.url().trim_start_matches("http://").to_owned();
    let calls = async {
        let volume = client.post("/volumes", json!({})).await.is(201);
        let files = format!("/volumes/{}/files", volume["id"].as_str().expect("an id"));
        for round in 0..20 {
            client.get("/readyz").await.is(200);
            let file = json!({"path": format!("{round}"), "content": "x"});
            client.post(&files, file).await.is(201);
            // One who comes while they come in their hundreds may be pushed out, and comes again.
            eventually("a newcomer is heard", SOON, async || {
                let asked = daemon.client().request(Method::GET, "/containers").send().await;
                asked.map(|answer| assert_eq!(answer.status(), 200))
            })
            .await;
        }
    };
    let (held, ()) = tokio::join!(flood(&address, 2000), calls);
    // As they stand, all at once.
    daemon.client().get("/containers").await.is(200);
    daemon.client().post_empty(&format!("/containers/{id}/kill?wait=10s")).await.is(200);
    client.post("/volumes", json!({})).await.is(201);
    client.get("/readyz").await.is(200);
    drop(held);
    daemon.state(&id, "offline").await;
    let log = daemon.log();
    assert!(!log.contains("Too many open files"), "{log}");
    daemon.close().await;
}

#[tokio::test]
async fn limits_that_a_kill_has_cut_off_are_the_same_everywhere_after_the_next_start() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("cut");
    daemon.run(&id, json!({})).await;
    let path = format!("/containers/{id}/resources");
    for round in 0..4_u64 {
        let client = daemon.client();
        let changes = async {
            for step in 0..6 {
                let memory = (64 + round * 8 + step) << 20;
                client.post(&path, json!({"memory": memory})).await;
            }
        };
        drop(tokio::time::timeout(Duration::from_millis(40 + round * 35), changes).await);
        daemon.kill9().await;
        daemon.launch().await;
        daemon.state(&id, "running").await;
        daemon.power(&id, "kill").await;
        daemon.state(&id, "offline").await;
        daemon.power(&id, "start").await;
        let shown = daemon.state(&id, "running").await;
        let name = format!("lightd-{id}");
        let found = daemon.docker.inspect_container(&name, None).await.expect("a container");
        let memory = found.host_config.and_then(|host| host.memory);
        assert_eq!(json!(memory), shown["limits"]["memory"], "{shown}");
    }
    daemon.close().await;
}
