//! The install: what the script gets, what stays of it, and every way in which it fails.

use std::time::Duration;

use bollard::query_parameters::TagImageOptionsBuilder;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::engine::leftovers;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

/// A script that ends when the test says so.
const WAITS: &str = "echo begun; until test -e /mnt/server/go; do sleep 0.1; done";

async fn install_log(daemon: &Daemon, id: &str) -> String {
    let answer = daemon.client().get(&format!("/containers/{id}/install-log")).await.is(200);
    answer["data"].as_str().expect("a text").to_owned()
}

/// Asks for a container whose install fails, and returns how it is shown then.
async fn failing(daemon: &Daemon, id: &str, changes: Value) -> Value {
    let spec = daemon.spec(id, changes).await;
    daemon.client().post("/containers", spec).await.is(201);
    let failed = daemon.install_state(id, "failed").await;
    assert_eq!(failed["state"], "failed");
    // The outcome is stored before what it was found by is removed.
    eventually("the install container is removed", Duration::from_secs(20), async || {
        let left = daemon.docker.inspect_container(&format!("lightd.install-{id}"), None).await;
        match left {
            Err(_) => Ok(()),
            Ok(left) => Err(left.state),
        }
    })
    .await;
    failed
}

#[tokio::test]
async fn the_script_runs_as_root_in_its_own_shell_with_the_volume_in_both_places() {
    let daemon = Daemon::start().await;
    let id = daemon.id("script");
    let script = "#!/bin/busybox sh -e\nid -u; pwd; echo \"in $MODE\"; echo data > /mnt/server/a\n\
        test \"$(cat /home/container/a)\" = data; mkdir -p deep/er; touch deep/er/b; chmod 700 deep\n\
        echo to-stderr >&2; grep Cap /proc/self/status; cat /proc/self/cgroup > /dev/null\n\
        false | true; echo end-of-script";
    let shown =
        daemon.create(&id, json!({"install_script": script, "env": {"MODE": "test"}})).await;
    let log = install_log(&daemon, &id).await;
    for line in ["0\n/home/container\nin test\n", "to-stderr\n", "end-of-script\n"] {
        assert!(log.contains(line), "{line}: {log}");
    }
    // Chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service; no more.
    assert!(log.contains("CapBnd:\t00000000000004fb"), "{log}");
    assert!(daemon.logs(&id).await.contains("end-of-script"), "it is on the console as well");
    assert_eq!(daemon.volume_file(&shown, "a").as_deref(), Some("data\n"));
    // What root made belongs to the workload now.
    let command = "echo more >> a && touch deep/er/c && stat -c %u:%g a deep/er/b && \
        guest say Ready -- forever";
    daemon
        .client()
        .patch(&format!("/containers/{id}"), json!({"startup_command": command}))
        .await
        .is(200);
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    let text = daemon.logs(&id).await.replace('\r', "");
    assert!(text.contains("988:988\n988:988\n"), "{text}");
    assert_eq!(install_log(&daemon, &id).await, log, "the script does not run again");
    daemon.close().await;
}

/// CVE-2023-32080: the container of an install script had more rights than the workload, and reached the
/// host.
#[tokio::test]
async fn the_install_container_is_hardened_as_the_workload_is() {
    let daemon = Daemon::start().await;
    let id = daemon.id("hard");
    let port = crate::support::numbers::free_port();
    let pool = json!({"ip": "127.0.0.1", "port": port});
    daemon.client().post("/network/ports", pool.clone()).await.is(201);
    let spec = daemon.spec(&id, json!({"install_script": WAITS, "ports": [pool]})).await;
    daemon.client().post("/containers", spec.clone()).await.is(201);
    daemon.expect_log(&id, "begun").await;
    let name = format!("lightd.install-{id}");
    let seen = daemon.docker.inspect_container(&name, None).await.expect("an install container");
    let host = serde_json::to_value(seen.host_config).expect("JSON");
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert!(host["SecurityOpt"].to_string().contains("no-new-privileges"), "{host}");
    assert_eq!((&host["PidsLimit"], &host["Memory"]), (&json!(512), &json!(64 << 20)));
    assert_eq!((&host["Privileged"], &host["PortBindings"]), (&json!(false), &json!({})));
    assert_eq!(host["NetworkMode"], daemon.bridge.as_str());
    let volume = spec["volume_id"].as_str().expect("an id");
    let go = json!({"path": "go", "content": ""});
    daemon.client().post(&format!("/volumes/{volume}/files"), go).await.is(201);
    daemon.install_state(&id, "ready").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_script_that_fails_says_how_and_a_reinstall_begins_afresh() {
    let daemon = Daemon::start().await;
    let id = daemon.id("fails");
    let script = "echo kept > /mnt/server/kept; echo no luck; exit 7";
    let failed = failing(&daemon, &id, json!({"install_script": script})).await;
    let why = failed["install_error"].as_str().expect("a reason");
    assert!(why.contains("exit code 7"), "{why}");
    assert_eq!(install_log(&daemon, &id).await, "no luck\n");
    assert_eq!(daemon.volume_file(&failed, "kept").as_deref(), Some("kept\n"));

    let body = json!({"install_script": "cat /mnt/server/kept; echo second"});
    daemon.client().post(&format!("/containers/{id}/reinstall"), body).await.is(202);
    let ready = daemon.shown(&id, "it is ready", |shown| shown["install_state"] == "ready").await;
    assert_eq!((&ready["state"], &ready["install_error"]), (&json!("offline"), &Value::Null));
    assert_eq!(install_log(&daemon, &id).await, "kept\nsecond\n");
    daemon.close().await;
}

#[tokio::test]
async fn a_script_without_end_fails_at_its_time_limit_or_by_a_kill() {
    let daemon = Daemon::start_with(|config| config["install"] = json!({"timeout": "2s"})).await;
    let id = daemon.id("late");
    let failed = failing(&daemon, &id, json!({"install_script": WAITS})).await;
    let why = failed["install_error"].as_str().expect("a reason");
    assert!(why.contains("2s"), "{why}");
    daemon.close().await;

    let daemon = Daemon::start().await;
    let id = daemon.id("killed");
    let spec = daemon.spec(&id, json!({"install_script": WAITS})).await;
    daemon.client().post("/containers", spec).await.is(201);
    daemon.expect_log(&id, "begun").await;
    daemon.power(&id, "kill").await;
    let failed = daemon.install_state(&id, "failed").await;
    assert!(failed["install_error"].is_string(), "{failed}");
    let name = format!("lightd.install-{id}");
    eventually("the install container is gone", SOON, async || {
        match daemon.docker.inspect_container(&name, None).await {
            Ok(seen) => Err(seen.state),
            Err(_) => Ok(()),
        }
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn an_image_or_shell_that_is_not_there_fails_the_install_with_a_reason() {
    let daemon = Daemon::start().await;
    for (name, changes) in [
        ("image", json!({"image": "127.0.0.1:1/nobody/nothing:1"})),
        (
            "install-image",
            json!({
                "install_image": "127.0.0.1:1/nobody/nothing:1", "install_script": "true",
            }),
        ),
        ("shell", json!({"install_script": "#!/no/such/shell\ntrue"})),
    ] {
        let id = daemon.id(name);
        let failed = failing(&daemon, &id, changes).await;
        let why = failed["install_error"].as_str().expect("a reason");
        assert!(!why.is_empty() && !why.contains("/tmp/"), "{name}: {why}");
    }
    daemon.close().await;
}

#[tokio::test]
async fn what_the_script_changes_in_the_image_stays_until_a_reinstall() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("Kept");
    let ports = crate::support::numbers::free_ports(2);
    for port in &ports {
        daemon
            .client()
            .post("/network/ports", json!({"ip": "127.0.0.1", "port": port}))
            .await
            .is(201);
    }
    let script = "mkdir -p /opt/tool && echo tool-1 > /opt/tool/version && chmod 755 /opt/tool; \
        echo junk > /tmp/junk";
    daemon
        .create(&id, json!({
            "install_script": script, "ports": [{"ip": "127.0.0.1", "port": ports[0]}],
            "startup_command": "cat /opt/tool/version || echo no-tool; ls -a /tmp; guest say Ready -- forever",
        }))
        .await;
    let starts_with_tool = async |daemon: &Daemon, action: &str, expected: &str| {
        let before = daemon.client().get(&format!("/containers/{id}/logs?lines=0")).await.is(200);
        let since = before["seq"].as_u64().expect("a number");
        daemon.power(&id, action).await;
        let path = format!("/containers/{id}/logs?since={since}");
        let text = eventually("the next run", SOON, async || {
            let text = daemon.client().get(&path).await.is(200)["data"].to_string();
            if text.contains("Ready") { Ok(text) } else { Err(text) }
        })
        .await;
        daemon.state(&id, "running").await;
        assert!(text.contains(expected), "{action}: {text}");
        assert!(!text.contains("junk"), "{action}: {text}");
    };
    starts_with_tool(&daemon, "start", "tool-1").await;
    let image = daemon.inspect(&id).await["Config"]["Image"].clone();
    assert_ne!(image, json!(daemon.image), "it runs from an image of its own");
    starts_with_tool(&daemon, "restart", "tool-1").await;

    let other = json!({"ports": [{"ip": "127.0.0.1", "port": ports[1]}]});
    daemon.client().post(&format!("/containers/{id}/rebind-network"), other).await.is(202);
    daemon
        .shown(&id, "it runs with the other port", |shown| {
            shown["ports"][0]["port"] == ports[1] && shown["state"] == "running"
        })
        .await;
    assert_eq!(daemon.inspect(&id).await["Config"]["Image"], image);

    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    daemon.restart().await;
    daemon.state(&id, "offline").await;
    starts_with_tool(&daemon, "start", "tool-1").await;

    let body = json!({"install_script": "test ! -e /opt/tool || exit 9"});
    daemon.client().post(&format!("/containers/{id}/reinstall"), body).await.is(202);
    daemon.state(&id, "offline").await;
    starts_with_tool(&daemon, "start", "no-tool").await;
    // The image of the first install is nobody's now.
    eventually("the first image is gone", SOON, async || {
        match daemon.docker.inspect_image(image.as_str().expect("a name")).await {
            Ok(seen) => Err(seen.repo_tags),
            Err(_) => Ok(()),
        }
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn images_of_installs_that_were_broken_off_go_with_the_next_install_or_the_container() {
    let daemon = Daemon::start().await;
    for ends_by in ["reinstall", "delete"] {
        let id = daemon.id(ends_by);
        daemon.create(&id, json!({"install_script": "echo x > /kept"})).await;
        let image =
            daemon.inspect(&id).await["Config"]["Image"].as_str().expect("a name").to_owned();
        let (repository, tag) = image.rsplit_once(':').expect("a tag");
        // As an install leaves it that is broken off after its image was made.
        let left = TagImageOptionsBuilder::new().repo(repository).tag("run90").build();
        daemon.docker.tag_image(&image, Some(left)).await.expect("a tag");
        assert_ne!(tag, "run90");
        if ends_by == "delete" {
            daemon.client().delete(&format!("/containers/{id}")).await.is(200);
        } else {
            let body = json!({"install_script": "true"});
            daemon.client().post(&format!("/containers/{id}/reinstall"), body).await.is(202);
            daemon.install_state(&id, "ready").await;
        }
        eventually("neither image is left", SOON, async || {
            let left = leftovers(&daemon.docker, &daemon.node).await;
            if left.iter().any(|thing| thing.contains(repository)) { Err(left) } else { Ok(()) }
        })
        .await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_script_in_an_install_image_leaves_only_the_volume() {
    let daemon = Daemon::start().await;
    let id = daemon.id("other");
    // The same bits under another name.
    let install_image = format!("lightd-test-install:{}", id.to_lowercase());
    let (repository, tag) = install_image.split_once(':').expect("a tag");
    let options =
        bollard::query_parameters::TagImageOptionsBuilder::new().repo(repository).tag(tag);
    daemon.docker.tag_image(&daemon.image, Some(options.build())).await.expect("a tag");
    let shown = daemon
        .create(
            &id,
            json!({
                "install_image": install_image,
                "install_script": "mkdir /opt; echo lost > /opt/lost; echo kept > /mnt/server/kept",
                "startup_command": "test -e /opt/lost && echo found-it; guest say Ready -- forever",
            }),
        )
        .await;
    assert_eq!(daemon.volume_file(&shown, "kept").as_deref(), Some("kept\n"));
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    assert!(!daemon.logs(&id).await.contains("found-it"));
    assert_eq!(daemon.inspect(&id).await["Config"]["Image"], json!(daemon.image));
    let options = None::<bollard::query_parameters::RemoveImageOptions>;
    let untag = daemon.docker.remove_image(&install_image, options, None).await;
    untag.expect("the tag can be removed");
    daemon.close().await;
}

#[tokio::test]
async fn a_running_container_is_stopped_for_a_reinstall() {
    let daemon = Daemon::start().await;
    let id = daemon.id("again");
    daemon
        .run(
            &id,
            json!({
                "startup_command": "exec guest trap-term exit", "start_pattern": "waiting",
            }),
        )
        .await;
    let mut socket = daemon.ws(&id).await;
    socket.expect_state("running").await;
    daemon.client().post_empty(&format!("/containers/{id}/reinstall")).await.is(202);
    for state in ["stopping", "exit", "installing", "ready"] {
        socket.expect_state(state).await;
    }
    daemon.state(&id, "offline").await;
    assert!(daemon.logs(&id).await.contains("got SIGTERM, ending"), "it was asked, not killed");
    daemon
        .client()
        .post(&format!("/containers/{id}/reinstall"), json!({"image": "NOT AN IMAGE"}))
        .await
        .names_field("image");
    daemon.close().await;
}
