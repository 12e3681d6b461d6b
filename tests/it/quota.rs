//! Volumes with a size: what a workload may write, what lightd may, and what a crash leaves of them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::hardening::SmallDisk;
use crate::support::SOON;
use crate::support::client::answer;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::volumes::folder;

const MIB: u64 = 1 << 20;

/// A node whose volumes are held by the kernel.
async fn start() -> Daemon {
    Daemon::start_with(|config| config["quota"] = json!({"backend": "image"})).await
}

async fn volume(daemon: &Daemon, mb: u64) -> String {
    let made = daemon.client().post("/volumes", json!({"size": mb})).await.is(201);
    assert_eq!(made["size"], mb * MIB);
    made["id"].as_str().expect("an id").to_owned()
}

fn is_mounted(folder: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    table.lines().any(|line| line.split(' ').nth(4) == folder.to_str())
}

/// The loop devices of the images beneath a folder.
fn loops(daemon: &Daemon) -> String {
    let listed = Command::new("losetup").arg("-a").output().expect("losetup");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let of = daemon.data_path().display().to_string();
    listed.lines().filter(|line| line.contains(&of)).collect()
}

async fn write(daemon: &Daemon, volume: &str, path: &str, content: &str) -> u16 {
    let body = json!({"path": path, "content": content});
    daemon.client().post(&format!("/volumes/{volume}/files"), body).await.status
}

async fn quota(daemon: &Daemon, volume: &str) -> Value {
    daemon.client().get(&format!("/volumes/{volume}/quota")).await.is(200)
}

/// Asks for a size until the volume can have it: it is taken up after a start of lightd.
async fn resized(daemon: &Daemon, volume: &str, mb: u64) {
    let path = format!("/volumes/{volume}/resize");
    eventually("the volume is resized", SOON, async || {
        let answer = daemon.client().post(&path, json!({"size": mb})).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text) }
    })
    .await;
}

/// Waits until a file says what it should.
async fn reads(daemon: &Daemon, volume: &str, path: &str, content: &str) {
    let path = format!("/volumes/{volume}/files/contents?path={path}");
    eventually("the file is there", SOON, async || {
        let answer = daemon.client().get(&path).await;
        if answer.status == 200 && answer.text == content { Ok(()) } else { Err(answer.text) }
    })
    .await;
}

#[tokio::test]
async fn a_workload_that_writes_beyond_its_volume_hits_its_own_wall_and_nobody_else_does() {
    let daemon = start().await;
    let (greedy, modest) = (daemon.id("greedy"), daemon.id("modest"));
    let (large, small) = (volume(&daemon, 24).await, volume(&daemon, 8).await);
    let fills = "echo Ready; dd if=/dev/zero of=fill bs=1048576 count=64; echo ended $?; sync; guest forever";
    daemon.run(&modest, json!({"volume_id": small, "tty": false})).await;
    daemon.run(&greedy, json!({"volume_id": large, "startup_command": fills, "tty": false})).await;
    let log = daemon.expect_log(&greedy, "ended 1").await;
    assert!(log.contains("No space left on device"), "{log}");
    let held = quota(&daemon, &large).await;
    assert_eq!((&held["size"], &held["enforced"]), (&json!(24 * MIB), &json!("kernel")));
    assert_eq!(held["backend"], "image");
    assert!(held["available"].as_u64().is_some_and(|left| left < MIB), "{held}");
    assert!(held["used"].as_u64().is_some_and(|used| used > 16 * MIB), "{held}");
    assert_eq!(write(&daemon, &large, "more", &"x".repeat(2_000_000)).await, 507);
    let body = json!({"path": "more", "content": "x".repeat(2_000_000)});
    let refused = daemon.client().post(&format!("/volumes/{large}/files"), body).await;
    refused.refused(507, "quota_exceeded");
    assert_eq!(write(&daemon, &small, "mine", "goes on").await, 201);
    let exec =
        json!({"cmd": ["sh", "-c", "cat /home/container/mine; echo x > /home/container/new"]});
    let seen = daemon.client().post(&format!("/containers/{modest}/exec"), exec).await.is(200);
    assert!(seen.to_string().contains("goes on"), "{seen}");
    // The workload's own user can make room again.
    let exec = json!({"cmd": ["rm", "/home/container/fill"]});
    daemon.client().post(&format!("/containers/{greedy}/exec"), exec).await.is(200);
    assert_eq!(write(&daemon, &large, "more", &"x".repeat(2_000_000)).await, 201);
    daemon.close().await;
}

#[tokio::test]
async fn volumes_are_there_again_after_a_restart_a_crash_and_a_reboot() {
    let mut daemon = start().await;
    let (id, volume) = (daemon.id("again"), volume(&daemon, 16).await);
    let says = "cat kept; echo Ready; guest forever";
    assert_eq!(write(&daemon, &volume, "kept", "what was stored").await, 201);
    let spec = json!({"volume_id": volume, "startup_command": says, "tty": false});
    daemon.run(&id, spec).await;
    daemon.restart().await;
    reads(&daemon, &volume, "kept", "what was stored").await;
    daemon.kill9().await;
    daemon.launch().await;
    reads(&daemon, &volume, "kept", "what was stored").await;
    daemon.state(&id, "running").await;
    daemon.power(&id, "stop").await;
    daemon.state(&id, "offline").await;
    daemon.terminate().await;
    daemon.unmount_all();
    assert!(!is_mounted(&folder(&daemon, &volume)));
    daemon.launch().await;
    eventually("it can be started", SOON, async || {
        let answer = daemon.client().post_empty(&format!("/containers/{id}/start")).await;
        if answer.status == 202 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    daemon.state(&id, "running").await;
    let log = daemon.logs(&id).await;
    assert_eq!(log.matches("what was stored").count(), 2, "{log}");
    assert!(is_mounted(&folder(&daemon, &volume)));
    // Someone unmounts it by hand: nothing is written beside it.
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    daemon.unmount_all();
    let refused = daemon.client().get(&format!("/volumes/{volume}/files")).await;
    refused.refused(503, "volume_unavailable");
    daemon.restart().await;
    reads(&daemon, &volume, "kept", "what was stored").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_volume_is_resized_while_its_container_is_stopped_and_never_below_its_use() {
    let daemon = start().await;
    let (id, volume) = (daemon.id("sized"), volume(&daemon, 16).await);
    let uri = format!("/volumes/{volume}/resize");
    let client = daemon.client();
    daemon.run(&id, json!({"volume_id": volume})).await;
    client.post(&uri, json!({"size": 32})).await.refused(409, "running");
    daemon.power(&id, "stop").await;
    daemon.state(&id, "offline").await;
    let resized = client.post(&uri, json!({"size": 48})).await.is(200);
    assert_eq!((&resized["size"], &resized["enforced"]), (&json!(48 * MIB), &json!("kernel")));
    let put = client
        .request(reqwest::Method::PUT, &format!("/volumes/{volume}/files/contents?path=large"));
    let noise: Vec<u8> = (0..20 * MIB).map(|at| ((at * at) >> 7).to_le_bytes()[0]).collect();
    crate::support::client::answer(put.body(noise.clone())).await.is(201);
    client.post(&uri, json!({"size": 12})).await.refused(409, "below_use");
    client.post(&uri, json!({"size": null})).await.refused(409, "backend_fixed");
    client.post(&uri, json!({"size": 4})).await.refused(409, "below_use");
    client.post(&uri, json!({"size": 1_000_000_000})).await.refused(507, "insufficient_storage");
    client.post(&uri, json!({"size": 36})).await.is(200);
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    let large = folder(&daemon, &volume).join("large");
    assert!(std::fs::read(large).expect("read") == noise, "it changed");
    daemon.close().await;
}

#[tokio::test]
async fn a_resize_cut_off_at_any_moment_leaves_one_of_both_sizes_and_every_file() {
    let mut daemon = start().await;
    let volume = volume(&daemon, 64).await;
    let at = folder(&daemon, &volume);
    for index in 0..200 {
        let path = at.join(format!("folder-{index}"));
        std::fs::create_dir(&path).expect("a folder");
        let copied = std::fs::copy("/usr/bin/env", path.join("file")).expect("a copy");
        assert!(copied > 0);
    }
    let content = std::fs::read("/usr/bin/env").expect("read");
    for (step, delay_ms) in [0, 15, 30, 45, 60, 75, 90, 110, 130, 160, 200, 300].iter().enumerate()
    {
        let size = if step % 2 == 0 { 32 } else { 64 };
        let uri = format!("/volumes/{volume}/resize");
        let client = daemon.client();
        let asked = client.request(reqwest::Method::POST, &uri).json(&json!({"size": size}));
        let mut under_way = tokio::task::JoinSet::new();
        under_way.spawn(asked.send());
        // Not a wait for something: the moment of the kill is what is varied.
        tokio::time::sleep(Duration::from_millis(*delay_ms)).await;
        daemon.kill9().await;
        daemon.launch().await;
        let held = eventually("the volume is back", SOON, async || {
            let answer = daemon.client().get(&format!("/volumes/{volume}/quota")).await;
            if answer.status == 200 { Ok(answer.body) } else { Err(answer.text) }
        })
        .await;
        let held_mb = held["size"].as_u64().map(|size| size / MIB);
        assert!([Some(32), Some(64)].contains(&held_mb), "{held}");
        for index in 0..200 {
            let file = at.join(format!("folder-{index}/file"));
            assert!(std::fs::read(file).expect("read") == content, "{delay_ms} ms: {index}");
        }
        resized(&daemon, &volume, size).await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn what_a_kill_leaves_of_a_volume_on_its_way_in_or_out_is_gone_after_the_next_start() {
    let mut daemon = start().await;
    let kept = volume(&daemon, 8).await;
    for delay_ms in [0, 10, 20, 30, 40, 60, 80, 120] {
        let client = daemon.client();
        let asked = client.request(reqwest::Method::POST, "/volumes").json(&json!({"size": 8}));
        let mut under_way = tokio::task::JoinSet::new();
        under_way.spawn(asked.send());
        // Not a wait for something: the moment of the kill is what is varied.
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        daemon.kill9().await;
        daemon.launch().await;
        eventually("store, folders, images and devices agree", SOON, async || {
            let listed = daemon.client().get("/volumes").await.is(200);
            let listed = listed["volumes"].as_array().map_or(0, Vec::len);
            let volumes = daemon.data_path().join("volumes");
            let count =
                |folder: &Path| std::fs::read_dir(folder).map_or(0, |entries| entries.count());
            let seen = (
                listed + 1,
                count(&volumes),
                count(&volumes.join(".images")) + 1,
                loops(&daemon).matches("/dev/loop").count() + 1,
            );
            if [seen.1, seen.2, seen.3] == [seen.0; 3] { Ok(()) } else { Err(seen) }
        })
        .await;
    }
    let listed = daemon.client().get("/volumes").await.is(200);
    for listed in listed["volumes"].as_array().expect("a list") {
        let id = listed["id"].as_str().expect("an id");
        daemon.client().delete(&format!("/volumes/{id}")).await.is(200);
        assert!(!folder(&daemon, id).exists());
    }
    assert!(!folder(&daemon, &kept).exists());
    assert_eq!(loops(&daemon), "");
    daemon.close().await;
}

#[tokio::test]
async fn what_does_not_work_here_is_not_pretended_and_the_doctor_says_why() {
    let mut daemon =
        Daemon::start_with(|config| config["quota"] = json!({"backend": "image"})).await;
    let image = volume(&daemon, 8).await;
    let plain = daemon.volume().await;
    let uri = format!("/volumes/{plain}/resize");
    daemon.client().post(&uri, json!({"size": 8})).await.refused(409, "backend_fixed");
    daemon.client().post("/volumes", json!({"size": 2})).await.names_field("size");
    daemon.edit_config(|config| config["quota"] = json!({"backend": "project"}));
    daemon.restart().await;
    let tried = daemon.client().post("/volumes", json!({"size": 8})).await;
    let doctor = String::from_utf8(daemon.cli(&["doctor"]).stdout).expect("text");
    let finding = doctor.lines().find(|line| line.contains("quota:")).expect("a finding");
    // Where the kernel and the file system have project quotas, they are used.
    if tried.status == 201 {
        assert!(finding.starts_with("ok"), "{finding}");
    } else {
        tried.refused(503, "quota_backend_unusable");
        assert!(finding.starts_with("FAIL") && finding.contains("project does not"), "{finding}");
    }
    daemon.client().post_empty("/volumes").await.is(201);
    let held = eventually("the volume is back", SOON, async || {
        let answer = daemon.client().get(&format!("/volumes/{image}/quota")).await;
        if answer.status == 200 { Ok(answer.body) } else { Err(answer.text) }
    });
    assert_eq!(held.await["enforced"], "kernel", "it keeps what it was made with");
    daemon.close().await;
}

#[tokio::test]
async fn a_soft_limit_stops_lightd_at_the_byte_and_tells_of_what_a_workload_does() {
    let daemon = Daemon::start_with(|config| {
        config["quota"] = json!({"backend": "soft", "on_exceeded": "stop"});
    });
    let daemon = daemon.await;
    let client = daemon.client();
    let (id, volume) = (daemon.id("over"), volume(&daemon, 4).await);
    let write =
        async |path: &str, bytes: usize| write(&daemon, &volume, path, &"x".repeat(bytes)).await;
    assert_eq!(write("a", 3 << 20).await, 201);
    assert_eq!(write("b", 2 << 20).await, 507);
    let removed = client.request(reqwest::Method::DELETE, &format!("/volumes/{volume}/files"));
    let removed = removed.json(&json!({"paths": ["a"]}));
    crate::support::client::answer(removed).await.is(200);
    assert_eq!(write("b", 2 << 20).await, 201, "what was removed is free at once");
    let held = quota(&daemon, &volume).await;
    assert_eq!((&held["enforced"], &held["exceeded"]), (&json!("soft"), &json!(false)));
    client
        .post(&format!("/volumes/{volume}/resize"), json!({"size": 1}))
        .await
        .refused(409, "below_use");
    // Grown where it lies, by the workload.
    let grows = "echo Ready; dd if=/dev/zero of=b bs=1048576 count=6 conv=notrunc; guest forever";
    daemon.run(&id, json!({"volume_id": volume, "startup_command": grows, "tty": false})).await;
    daemon.state(&id, "offline").await;
    let held = quota(&daemon, &volume).await;
    assert_eq!((&held["exceeded"], &held["available"]), (&json!(true), &json!(0)));
    assert!(daemon.log().contains("a volume is over its limit"), "it was told");
    assert_eq!(write("c", 1).await, 507);
    daemon.close().await;
}

#[tokio::test]
async fn a_containers_own_disk_limit_counts_for_its_volume() {
    let daemon = start().await;
    let (id, plain, image) =
        (daemon.id("limited"), daemon.volume().await, volume(&daemon, 16).await);
    let limits = json!({"memory": 64 << 20, "disk": 2 << 20});
    daemon.create(&id, json!({"volume_id": plain, "limits": limits})).await;
    let held = quota(&daemon, &plain).await;
    assert_eq!((&held["size"], &held["enforced"]), (&json!(2 << 20), &json!("soft")));
    assert_eq!(write(&daemon, &plain, "file", &"x".repeat(3 << 20)).await, 507);
    assert_eq!(write(&daemon, &plain, "file", &"x".repeat(1 << 20)).await, 201);
    let other = daemon.id("other");
    let limits = json!({"memory": 64 << 20, "disk": 64 << 20});
    daemon.create(&other, json!({"volume_id": image, "limits": limits})).await;
    let held = quota(&daemon, &image).await;
    assert_eq!((&held["size"], &held["enforced"]), (&json!(16 << 20), &json!("kernel")));
    daemon
        .client()
        .patch(&format!("/containers/{other}"), json!({"limits": {"disk": 2 << 20}}))
        .await
        .is(200);
    let held = quota(&daemon, &image).await;
    assert_eq!((&held["size"], &held["enforced"]), (&json!(2 << 20), &json!("soft")));
    daemon.close().await;
}

#[tokio::test]
async fn a_full_disk_is_not_told_as_a_full_volume() {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let disk = SmallDisk::mount(daemon.folder().join("small"));
    let volumes = disk.0.join("volumes");
    daemon.edit_config(|config| config["storage"]["volumes_path"] = json!(volumes));
    daemon.launch().await;
    let none = daemon.volume().await;
    let (small, large) = (volume(&daemon, 8).await, volume(&daemon, 1000).await);
    let client = daemon.client();
    for (volume, code) in [
        (&none, "insufficient_storage"),
        (&small, "quota_exceeded"),
        (&large, "insufficient_storage"),
    ] {
        let content = vec![7_u8; 32 << 20];
        let uri = format!("/volumes/{volume}/files/contents?path=file");
        let put = client.request(reqwest::Method::PUT, &uri).body(content.clone());
        answer(put).await.refused(507, code);
        let part = reqwest::header::CONTENT_TYPE;
        let head = "--B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"file\"\r\n\r\n";
        let form = [head.as_bytes(), &content, b"\r\n--B--\r\n"].concat();
        let form = client
            .request(reqwest::Method::POST, &format!("/volumes/{volume}/upload"))
            .header(part, "multipart/form-data; boundary=B")
            .body(form);
        answer(form).await.refused(507, code);
        let listed = client.get(&format!("/volumes/{volume}/files")).await.is(200);
        assert_eq!(listed["files"], json!([]), "nothing stays of it");
    }
    daemon.close().await;
}
