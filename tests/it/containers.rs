//! Containers as a panel handles them: what is taken and refused, shown, listed, changed, deleted; what power does.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::chaos::{Door, Held};
use crate::support::process::Daemon;
use crate::support::wait::eventually;

#[tokio::test]
async fn a_bad_creation_is_refused_before_anything_is_made_and_the_field_is_named() {
    let daemon = Daemon::start().await;
    let (client, volume) = (daemon.client(), daemon.volume().await);
    let a_lot = 1_u64 << 50;
    for (change, field) in [
        (json!({"internal_id": null}), "internal_id"),
        (json!({"internal_id": ""}), "internal_id"),
        (json!({"internal_id": "-x"}), "internal_id"),
        (json!({"internal_id": ".x"}), "internal_id"),
        (json!({"internal_id": "a/b"}), "internal_id"),
        (json!({"internal_id": "a b"}), "internal_id"),
        (json!({"internal_id": "ä"}), "internal_id"),
        (json!({"internal_id": "x".repeat(64)}), "internal_id"),
        (json!({"internal_id": 7}), "internal_id"),
        (json!({"image": null}), "image"),
        (json!({"image": ""}), "image"),
        (json!({"image": "../../images/evil?force=1"}), "image"),
        (json!({"image": "UPPER"}), "image"),
        (json!({"volume_id": "not-a-volume"}), "volume_id"),
        (json!({"volume_id": uuid::Uuid::nil()}), "volume_id"),
        (json!({"startup_command": null}), "startup_command"),
        (json!({"startup_command": "  "}), "startup_command"),
        (json!({"startup_command": "run {{NOBODY}}"}), "startup_command"),
        (json!({"startup_command": "run \0"}), "startup_command"),
        (json!({"startup_command": "x".repeat(70_000)}), "startup_command"),
        (json!({"start_pattern": "("}), "start_pattern"),
        (json!({"start_pattern": "(?:a{1000}){1000}"}), "start_pattern"),
        (json!({"start_patterns": ["Done", "("]}), "start_patterns[1]"),
        (json!({"start_patterns": [""]}), "start_patterns[0]"),
        (json!({"start_patterns": "Done"}), "start_patterns"),
        (json!({"start_patterns": vec!["Done"; 17]}), "start_patterns"),
        (json!({"fail_patterns": ["("]}), "fail_patterns[0]"),
        (json!({"fail_patterns": ["(?:a{1000}){1000}"]}), "fail_patterns[0]"),
        (json!({"fail_patterns": ["no"], "start_pattern": ""}), "fail_patterns"),
        (json!({"start_timeout": 0}), "start_timeout"),
        (json!({"start_timeout": 1_000_000}), "start_timeout"),
        (json!({"ports": [{"port": 0}]}), "ports[0].port"),
        (json!({"ports": [{"port": 70_000}]}), "ports[0].port"),
        (json!({"ports": [{"ip": "here", "port": 80}]}), "ports[0].ip"),
        (json!({"ports": [{"port": 80, "protocol": "icmp"}]}), "ports[0].protocol"),
        (json!({"ports": [{"port": 80, "container_port": 0}]}), "ports[0].container_port"),
        (json!({"ports": [{"port": 80, "prot": "tcp"}]}), "ports[0].prot"),
        // In nobody's pool.
        (json!({"ports": [{"ip": "0.0.0.0", "port": 1}]}), "ports"),
        (json!({"limits": {"memory": 1}}), "limits.memory"),
        (json!({"limits": {"memory": -1}}), "limits.memory"),
        (json!({"limits": {"memory": "512m"}}), "limits.memory"),
        (json!({"limits": {"memory": a_lot}}), "limits.memory"),
        (json!({"limits": {"memory_swap": 64 << 20}}), "limits.memory_swap"),
        (json!({"limits": {"memory": 64 << 20, "memory_swap": 1}}), "limits.memory_swap"),
        (json!({"limits": {"cpu": 0}}), "limits.cpu"),
        (json!({"limits": {"cpu": -1.5}}), "limits.cpu"),
        (json!({"limits": {"cpu": 10_000}}), "limits.cpu"),
        (json!({"limits": {"pids": 0}}), "limits.pids"),
        (json!({"limits": {"memroy": 1}}), "limits.memroy"),
        (json!({"mount": {"/data": "/etc"}}), "mount./data"),
        (json!({"mount": {"/data": "/does/not/exist"}}), "mount./data"),
        (json!({"mount": {"relative": "/etc"}}), "mount.relative"),
        (json!({"env": {"1X": "a"}}), "env.1X"),
        (json!({"env": {"A": 1}}), "env.A"),
        (json!({"env": {"HOME": "/"}}), "env.HOME"),
        (json!({"env": {"A": "a\0b"}}), "env.A"),
        (json!({"stop": {"signal": "SIGKILL"}}), "stop.signal"),
        (json!({"stop": {"signal": "SIGNOPE"}}), "stop.signal"),
        (json!({"stop": {"command": ""}}), "stop.command"),
        (json!({"stop": {"signal": "SIGTERM", "command": "stop"}}), "stop"),
        (json!({"stop": {"timeout": 100_000}}), "stop.timeout"),
        (json!({"install_image": "no such name"}), "install_image"),
        (json!({"install_script": "x\0"}), "install_script"),
        (json!({"restart_on_crash": "yes"}), "restart_on_crash"),
        (json!({"restart_on_crash": {"max_restarts": 0}}), "restart_on_crash.max_restarts"),
        (json!({"restart_on_crash": {"max": 1}}), "restart_on_crash.max"),
        (json!({"restart_on_crash": {"backoff_max_s": 0}}), "restart_on_crash.backoff_max_s"),
        (json!({"registry_auth": {"username": "a"}}), "registry_auth.password"),
        (json!({"imgae": "x"}), "imgae"),
    ] {
        let mut body = daemon.spec(&daemon.id("bad"), json!({"volume_id": volume})).await;
        let given = change.as_object().expect("an object");
        for (name, value) in given {
            body[name] = value.clone();
        }
        client.post("/containers", body).await.names_field(field);
    }
    let all = client.post("/containers", json!({})).await.refused(400, "invalid");
    let fields: Vec<&Value> =
        all["problems"].as_array().expect("a list").iter().map(|found| &found["field"]).collect();
    assert_eq!(fields, ["internal_id", "volume_id", "image", "startup_command"]);
    assert_eq!(client.get("/containers").await.is(200)["containers"], json!([]));
    daemon.close().await;
}

#[tokio::test]
async fn a_name_or_a_port_that_is_taken_is_a_conflict() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let port = crate::support::numbers::free_port();
    client.post("/network/ports", json!({"ip": "127.0.0.1", "port": port})).await.is(201);
    let (first, second) = (daemon.id("first"), daemon.id("second"));
    let ports = json!([{"ip": "127.0.0.1", "port": port}]);
    daemon.create(&first, json!({"ports": ports})).await;
    let again = daemon.spec(&first, json!({})).await;
    client.post("/containers", again).await.refused(409, "container_exists");
    let other = daemon.spec(&second, json!({"ports": ports})).await;
    client.post("/containers", other).await.refused(409, "port_in_use");
    let any = daemon.spec(&second, json!({"ports": [{"protocol": "tcp"}]})).await;
    client.post("/containers", any).await.refused(409, "no_free_port");
    client.get(&format!("/containers/{second}")).await.refused(404, "not_found");
    client.delete(&format!("/containers/{first}")).await.is(200);
    let shown = client.get(&format!("/network/ports/127.0.0.1/{port}")).await.is(200);
    assert_eq!((&shown["in_use"], &shown["container"]), (&json!(false), &Value::Null));
    let any = daemon.spec(&second, json!({"ports": [{"container_port": 80}]})).await;
    client.post("/containers", any).await.is(201);
    let made = daemon.install_state(&second, "ready").await;
    assert_eq!(made["ports"][0]["port"], port);
    assert_eq!(made["ports"][0]["container_port"], 80);
    daemon.close().await;
}

#[tokio::test]
async fn a_container_is_shown_with_all_that_is_stored_and_nothing_secret() {
    let daemon = Daemon::start().await;
    let id = daemon.id("shown");
    let password = "a-password-nobody-should-see";
    let asked = json!({
        "env": {"MODE": "fast"}, "labels": {"tier": "gold"},
        "stop": {"command": "stop", "timeout": 7}, "autostart": true,
        "install_script": "#!/bin/sh\ntrue",
        "limits": {"memory": 64 << 20, "memory_swap": 128 << 20, "cpu": 0.5, "pids": 99},
        "registry_auth": {"username": "me", "password": password},
    });
    let spec = daemon.spec(&id, asked).await;
    let answer = daemon.client().post("/containers", spec.clone()).await.is(201);
    assert_eq!((&answer["internal_id"], &answer["state"]), (&json!(id), &json!("installing")));
    assert!(answer["message"].is_string(), "{answer}");
    let shown = daemon.install_state(&id, "ready").await;
    for field in
        ["internal_id", "image", "volume_id", "startup_command", "start_pattern", "env", "labels"]
    {
        assert_eq!(shown[field], spec[field], "{field}");
    }
    for limit in ["memory", "memory_swap", "cpu", "pids"] {
        assert_eq!(shown["limits"][limit], spec["limits"][limit], "{limit}");
    }
    assert_eq!(shown["stop"], json!({"command": "stop", "timeout": 7}));
    assert_eq!((&shown["state"], &shown["autostart"]), (&json!("offline"), &json!(true)));
    for field in ["install_error", "exit_code", "started_at", "unknown_since"] {
        assert_eq!(shown[field], Value::Null, "{field}");
    }
    assert!(shown["created_at"].is_u64() && shown["updated_at"].is_u64(), "{shown}");
    assert_eq!(shown["container_id"], daemon.inspect(&id).await["Id"]);
    assert!(!shown.to_string().contains(password), "{shown}");
    assert!(!daemon.log().contains(password), "in the log");
    for file in ["lightd.db", "lightd.db-wal"] {
        let bytes = std::fs::read(daemon.data_path().join(file)).unwrap_or_default();
        let found = bytes.windows(password.len()).any(|window| window == password.as_bytes());
        assert!(!found, "in {file}");
    }
    daemon.close().await;
}

#[tokio::test]
async fn lists_are_filtered_by_state_and_label_and_come_in_pages() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let ids: Vec<String> = ["a", "b", "c"].map(|name| daemon.id(name)).to_vec();
    for (id, tier) in ids.iter().zip(["gold", "tin", "gold"]) {
        daemon.create(id, json!({"labels": {"tier": tier}})).await;
    }
    daemon.power(&ids[1], "start").await;
    daemon.state(&ids[1], "running").await;
    let list = async |query: &str| {
        let answer = client.get(&format!("/containers{query}")).await.is(200);
        let listed = answer["containers"].as_array().expect("a list").clone();
        let ids = listed.iter().map(|shown| shown["internal_id"].as_str().unwrap_or("").to_owned());
        (ids.collect::<Vec<_>>(), answer["next_cursor"].clone())
    };
    assert_eq!(list("").await, (ids.clone(), Value::Null));
    assert_eq!(list("?state=running").await.0, ids[1..2]);
    assert_eq!(list("?label=tier=gold").await.0, [ids[0].clone(), ids[2].clone()]);
    assert_eq!(list("?label=tier").await.0, ids);
    assert_eq!(list("?label=tear").await.0, Vec::<String>::new());
    let (first, cursor) = list("?limit=2").await;
    assert_eq!(first, ids[..2]);
    let cursor = cursor.as_str().expect("more to come").to_owned();
    assert_eq!(list(&format!("?limit=2&cursor={cursor}")).await, (ids[2..].to_vec(), Value::Null));
    client.get("/containers?state=sleeping").await.names_field("?state");
    client.get("/containers?limit=none").await.names_field("?limit");
    client.get("/containers?limit=0").await.names_field("?limit");
    daemon.close().await;
}

#[tokio::test]
async fn power_wishes_may_be_repeated() {
    let daemon = Daemon::start().await;
    let id = daemon.id("wishes");
    daemon.create(&id, json!({})).await;
    for action in ["stop", "kill"] {
        daemon.power(&id, action).await;
        assert_eq!(daemon.state(&id, "offline").await["exit_code"], Value::Null);
    }
    daemon.power(&id, "start").await;
    daemon.power(&id, "start").await;
    let first = daemon.state(&id, "running").await;
    daemon.power(&id, "start").await;
    daemon.power(&id, "resume").await;
    let still = daemon.state(&id, "running").await;
    assert_eq!(still["started_at"], first["started_at"]);
    let pid = daemon.inspect(&id).await["State"]["Pid"].clone();

    daemon.power(&id, "pause").await;
    daemon.state(&id, "paused").await;
    assert_eq!(daemon.inspect(&id).await["State"]["Paused"], true);
    daemon.power(&id, "pause").await;
    daemon.power(&id, "resume").await;
    daemon.state(&id, "running").await;
    assert_eq!(daemon.inspect(&id).await["State"]["Pid"], pid, "it is the same process");

    daemon.power(&id, "restart").await;
    daemon.shown(&id, "another process runs", |shown| shown["state"] == "running").await;
    eventually("another process runs", SOON, async || {
        let seen = daemon.inspect(&id).await["State"].clone();
        if seen["Running"] == true && seen["Pid"] != pid { Ok(()) } else { Err(seen) }
    })
    .await;
    daemon.state(&id, "running").await;
    daemon.power(&id, "kill").await;
    daemon.power(&id, "kill").await;
    assert_eq!(daemon.state(&id, "offline").await["exit_code"], 137);
    daemon.power(&id, "stop").await;
    daemon.client().post_empty("/containers/nobody/start").await.refused(404, "not_found");
    daemon.close().await;
}

#[tokio::test]
async fn what_the_state_forbids_is_a_conflict_with_the_state_as_its_code() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("denied"), daemon.client());
    // Before the engine was asked for the first time, that is what forbids it.
    eventually("the node is ready", SOON, async || {
        let answer = client.get("/readyz").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    let refused = async |action: &str, code: &str| {
        client.post_empty(&format!("/containers/{id}/{action}")).await.refused(409, code);
    };
    let spec = daemon
        .spec(
            &id,
            json!({
                "install_script": "until test -e /home/container/go; do sleep 0.1; done; exit 3",
                "startup_command": "guest say Ready -- trap-term ignore",
            }),
        )
        .await;
    client.post("/containers", spec.clone()).await.is(201);
    daemon.state(&id, "installing").await;
    for action in ["start", "stop", "restart", "pause", "reinstall"] {
        refused(action, "installing").await;
    }
    let go = json!({"path": "go", "content": ""});
    let volume = spec["volume_id"].as_str().expect("an id");
    client.post(&format!("/volumes/{volume}/files"), go).await.is(201);
    daemon.state(&id, "failed").await;
    refused("start", "failed").await;
    refused("restart", "failed").await;

    let other_script = json!({"install_script": "true"});
    client.post(&format!("/containers/{id}/reinstall"), other_script).await.is(202);
    daemon.state(&id, "offline").await;
    refused("pause", "not_running").await;
    let command = json!({"command": "hello"});
    client.post(&format!("/containers/{id}/command"), command).await.refused(409, "not_running");
    let exec = json!({"cmd": ["true"]});
    client.post(&format!("/containers/{id}/exec"), exec).await.refused(409, "not_running");

    daemon.power(&id, "start").await;
    daemon.expect_log(&id, "waiting for SIGTERM").await;
    daemon.power(&id, "stop").await;
    daemon.state(&id, "stopping").await;
    refused("restart", "stopping").await;
    refused("pause", "stopping").await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;

    daemon.power(&id, "suspend").await;
    daemon.state(&id, "suspended").await;
    refused("start", "suspended").await;
    refused("reinstall", "suspended").await;
    daemon.power(&id, "unsuspend").await;
    daemon.state(&id, "offline").await;
    daemon.close().await;
}

#[tokio::test]
async fn logs_are_numbered_lines_that_survive_runs_and_restarts_of_the_daemon() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("logs");
    daemon
        .run(
            &id,
            json!({
                "startup_command": "guest lines 20 -- say Ready -- forever", "tty": false,
            }),
        )
        .await;
    let get = async |daemon: &Daemon, query: &str| {
        daemon.client().get(&format!("/containers/{id}/logs{query}")).await.is(200)
    };
    let all = get(&daemon, "?lines=1000").await;
    let seq = all["seq"].as_u64().expect("a number");
    assert!(all["data"].as_str().expect("a text").ends_with("line 20 \nReady\n"), "{all}");
    let last = get(&daemon, "?lines=2").await;
    assert_eq!(last["data"], "line 20 \nReady\n");
    let since = get(&daemon, &format!("?since={}", seq - 1)).await;
    assert_eq!((&since["data"], &since["seq"]), (&json!("Ready\n"), &json!(seq)));
    assert_eq!(get(&daemon, "?grep=line%201%5B34%5D").await["data"], "line 13 \nline 14 \n");
    daemon.client().get(&format!("/containers/{id}/logs?grep=(")).await.names_field("?grep");
    daemon.client().get(&format!("/containers/{id}/logs?lines=-1")).await.names_field("?lines");

    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    assert_eq!(get(&daemon, "?lines=2").await["data"], "line 20 \nReady\n");
    daemon.restart().await;
    assert_eq!(get(&daemon, &format!("?since={}", seq - 1)).await["data"], "Ready\n");
    daemon.state(&id, "offline").await;
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    let two = get(&daemon, "?lines=1000").await;
    assert_eq!(two["data"].as_str().expect("a text").matches("Ready\n").count(), 2, "{two}");
    assert!(two["seq"].as_u64() > Some(seq), "{two}");
    daemon.close().await;
}

#[tokio::test]
async fn limits_are_changed_on_the_running_workload() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("limits"), daemon.client());
    daemon.run(&id, json!({"limits": {"memory": 64 << 20, "cpu": 0.5}})).await;
    let path = format!("/containers/{id}/resources");
    let asked = json!({"memory": 96 << 20, "memory_swap": 96 << 20, "cpu": 0.25, "pids": 77});
    let changed = client.post(&path, asked).await.is(200);
    assert_eq!((&changed["memory"], &changed["pids"]), (&json!(96 << 20), &json!(77)));
    let host = daemon.inspect(&id).await["HostConfig"].clone();
    assert_eq!(host["Memory"], 96 << 20);
    assert_eq!(host["PidsLimit"], 77);
    let read = json!({"cmd": ["sh", "-c",
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"]});
    let seen = client.post(&format!("/containers/{id}/exec"), read).await.is(200);
    assert_eq!(seen["stdout"], format!("{}\n", 96 << 20));
    assert_eq!(daemon.state(&id, "running").await["restart_needed"], false);
    assert_eq!(client.get(&path).await.is(200)["cpu"], 0.25);
    client.post(&path, json!({"memory": 1})).await.names_field("memory");
    client.post(&path, json!({"cpu": 1000})).await.names_field("cpu");
    client.post(&path, json!({"memoryy": 1})).await.names_field("memoryy");
    assert_eq!(client.get(&path).await.is(200)["memory"], 96 << 20);
    daemon.close().await;
}

#[tokio::test]
async fn limits_that_several_change_at_once_are_all_changed() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("limits"), daemon.client());
    daemon.run(&id, json!({"limits": {"memory": 64 << 20, "cpu": 0.5}})).await;
    let path = format!("/containers/{id}/resources");
    for round in 0..3_u64 {
        let wanted = [
            ("memory", json!((96 + round) << 20)),
            ("memory_swap", json!(200 << 20)),
            ("memory_reservation", json!((32 + round) << 20)),
            ("cpu", json!(0.25)),
            ("cpu_shares", json!(512 + round)),
            ("pids", json!(77 + round)),
        ];
        let changes = wanted.iter().map(|(name, value)| client.post(&path, json!({*name: value})));
        for answer in join_all(changes).await {
            answer.is(200);
        }
        let stored = client.get(&path).await.is(200);
        let host = daemon.inspect(&id).await["HostConfig"].clone();
        let engine =
            ["Memory", "MemorySwap", "MemoryReservation", "NanoCpus", "CpuShares", "PidsLimit"];
        for ((name, value), in_engine) in wanted.iter().zip(engine) {
            assert_eq!(&stored[*name], value, "{stored}");
            if *name != "cpu" {
                assert_eq!(&host[in_engine], value, "{in_engine}");
            }
        }
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_patch_says_what_waits_for_the_next_start_and_the_next_start_has_it() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("patch"), daemon.client());
    daemon
        .run(
            &id,
            json!({
                "startup_command": "echo \"<$A$B>\"; guest say Ready -- forever",
                "env": {"A": "1", "B": "2"},
            }),
        )
        .await;
    let path = format!("/containers/{id}");
    let quiet = client.patch(&path, json!({"labels": {"a": "b"}})).await.is(200);
    assert_eq!(quiet["waits_for_restart"], json!([]));
    let body = json!({
        "env": {"A": null, "B": "3"}, "start_pattern": "Steady",
        "startup_command": "echo \"<$A$B>\"; guest say Steady -- forever",
        "limits": {"memory": 80 << 20},
    });
    let told = client.patch(&path, body).await.is(200);
    let mut waits: Vec<String> =
        serde_json::from_value(told["waits_for_restart"].clone()).expect("a list");
    waits.sort();
    assert_eq!(waits, ["env", "limits", "start_pattern", "startup_command"]);
    let shown = daemon.state(&id, "running").await;
    assert_eq!(shown["restart_needed"], true);
    assert_eq!((&shown["env"], &shown["labels"]), (&json!({"B": "3"}), &json!({"a": "b"})));
    assert_eq!(shown["limits"]["memory"], 80 << 20);
    daemon.power(&id, "restart").await;
    daemon.expect_log(&id, "Steady").await;
    let shown = daemon.state(&id, "running").await;
    assert_eq!(shown["restart_needed"], false);
    let text = daemon.logs(&id).await;
    assert!(text.contains("<12>") && text.contains("<3>"), "{text}");
    assert_eq!(daemon.inspect(&id).await["HostConfig"]["Memory"], 80 << 20);

    for (body, field) in [
        (json!({"startup_command": ""}), "startup_command"),
        (json!({"startup_command": "{{NOBODY}}"}), "startup_command"),
        (json!({"start_pattern": "["}), "start_pattern"),
        (json!({"env": {"1X": "a"}}), "env.1X"),
        (json!({"limits": {"memory": 1}}), "limits.memory"),
        (json!({"image": "x"}), "image"),
        (json!({"stop": {"signal": "SIGNOPE"}}), "stop.signal"),
    ] {
        client.patch(&path, body).await.names_field(field);
    }
    client.patch("/containers/nobody", json!({})).await.refused(404, "not_found");
    daemon.close().await;
}

#[tokio::test]
async fn what_is_changed_while_it_is_installed_or_starts_reaches_the_next_start() {
    let (daemon, door) = Door::and_daemon().await;
    let (id, client) = (daemon.id("early"), daemon.client());
    let script = "echo begun; while [ ! -e go ]; do sleep 0.1; done";
    let spec = json!({
        "install_script": script, "env": {"A": "old"},
        "startup_command": "echo \"<$A>\"; guest say Ready -- forever",
    });
    let spec = daemon.spec(&id, spec).await;
    client.post("/containers", spec.clone()).await.is(201);
    daemon.expect_log(&id, "begun").await;
    let path = format!("/containers/{id}");
    let change = json!({"env": {"A": "new"}, "limits": {"memory": 80 << 20}});
    client.patch(&path, change).await.is(200);
    let volume = spec["volume_id"].as_str().expect("an id");
    let go = daemon.data_path().join("volumes").join(volume).join("go");
    std::fs::create_dir(go).expect("a folder");
    let shown = daemon.install_state(&id, "ready").await;
    assert_eq!(shown["restart_needed"], true, "{shown}");
    let create = Held { method: "POST", path_has: "/containers/create?", is_done: false };
    door.hold(Some(create));
    daemon.power(&id, "start").await;
    door.holds_one().await;
    let told = client.patch(&path, json!({"env": {"A": "newer"}})).await.is(200);
    assert_eq!(told["waits_for_restart"], json!(["env"]));
    door.hold(None);
    daemon.expect_log(&id, "<new>").await;
    let shown = daemon.state(&id, "running").await;
    assert_eq!(shown["restart_needed"], true, "{shown}");
    assert_eq!(daemon.inspect(&id).await["HostConfig"]["Memory"], 80 << 20);
    daemon.power(&id, "restart").await;
    daemon.expect_log(&id, "<newer>").await;
    daemon.shown(&id, "it has all", |shown| shown["restart_needed"] == false).await;
    daemon.close().await;
}

#[tokio::test]
async fn a_deleted_container_leaves_its_volume_and_nothing_else() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let (id, lost, installing) = (daemon.id("gone"), daemon.id("lost"), daemon.id("installing"));
    let shown = daemon.run(&id, json!({})).await;
    let containers = daemon.data_path().join("containers");
    assert!(containers.join(&id).exists());
    client.delete(&format!("/containers/{id}")).await.is(200);
    client.get(&format!("/containers/{id}")).await.refused(404, "not_found");
    client.delete(&format!("/containers/{id}")).await.refused(404, "not_found");
    assert_eq!(daemon.inspect(&id).await, Value::Null);
    assert!(!containers.join(&id).exists());
    let volume = shown["volume_id"].as_str().expect("an id");
    assert!(daemon.data_path().join("volumes").join(volume).is_dir());

    // What Docker has lost can be deleted as well.
    daemon.create(&lost, json!({})).await;
    daemon.docker.remove_container(&format!("lightd-{lost}"), None).await.expect("a removal");
    client.delete(&format!("/containers/{lost}")).await.is(200);

    let script = "echo begun; while :; do sleep 1; done";
    let spec = daemon.spec(&installing, json!({"install_script": script})).await;
    client.post("/containers", spec).await.is(201);
    daemon.expect_log(&installing, "begun").await;
    client.delete(&format!("/containers/{installing}")).await.is(200);
    daemon.close().await;
}
