//! The reference's own examples, word for word but for the image and what runs in it, to their end;
//! and what the remote panel is told meanwhile.

use reqwest::Method;
use serde_json::{Value, json};

use crate::ports::expect_hello;
use crate::support::SOON;
use crate::support::client::answer;
use crate::support::numbers::free_ports;
use crate::support::panel::Panel;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

/// `curl -X POST` with the three headers of the document and this text as `-d`.
async fn post(daemon: &Daemon, path: &str, text: String) -> Value {
    let request = daemon.client().request(Method::POST, path);
    let request = request.header("Content-Type", "application/json").body(text);
    answer(request).await.is(201)
}

#[tokio::test]
async fn the_common_workflow() {
    let daemon = Daemon::start().await;
    let (server, port) = (daemon.id("server-001"), free_ports(1)[0]);

    // 1. Create Volume
    let volume = daemon.client().post_empty("/volumes").await.is(201);
    let volume_id = volume["volume_id"].as_str().expect("an id");
    let path = volume["path"].as_str().expect("a path");
    assert!(std::path::Path::new(path).is_dir() && path.ends_with(volume_id), "{volume}");

    // 2. Write Files to Volume
    let body = r#"{"path": "config.yml", "content": "server-port: 25565"}"#;
    post(&daemon, &format!("/volumes/{volume_id}/files"), body.to_owned()).await;
    let written = std::fs::read_to_string(format!("{path}/config.yml")).expect("the file");
    assert_eq!(written, "server-port: 25565");

    // 3. Add Network Port
    let body = format!(r#"{{"ip": "0.0.0.0", "port": {port}, "protocol": "tcp"}}"#);
    post(&daemon, "/network/ports", body).await;

    // 4. Create Container
    let image = &daemon.image;
    let body = format!(
        r#"{{
            "internal_id": "{server}",
            "image": "{image}",
            "volume_id": "{volume_id}",
            "startup_command": "sh -c \"while true; do echo Ready; sleep 1; done\"",
            "start_pattern": "Ready",
            "ports": [{{"ip": "0.0.0.0", "port": {port}, "protocol": "tcp"}}],
            "limits": {{"memory": 536870912, "cpu": 1.0}}
        }}"#
    );
    let created = post(&daemon, "/containers", body).await;
    assert_eq!(
        (&created["internal_id"], &created["state"]),
        (&json!(server), &json!("installing"))
    );
    assert!(created["message"].is_string(), "{created}");

    // 5. Monitor via WebSocket
    let url = format!("ws://127.0.0.1:{}/ws/{server}?token={}", daemon.port, daemon.token);
    let mut socket = Socket::open(&url).await;
    socket.expect_state("ready").await;

    // 6. Start Container
    let started = daemon.client().post_empty(&format!("/containers/{server}/start")).await.is(202);
    assert!(started["message"].is_string() && started["internal_id"] == json!(server), "{started}");
    socket.expect_state("starting").await;
    socket.expect_state("running").await;
    socket.expect_console("Ready").await;
    let stats = socket.expect("stats", |frame| frame["event"] == "stats").await;
    assert_eq!(stats["memory_limit"], 536_870_912);
    let name = daemon.inspect(&server).await["Name"].clone();
    assert_eq!(name, format!("/lightd-{server}"));
    daemon.close().await;
}

#[tokio::test]
async fn the_complete_server_setup_and_the_rest_of_its_life() {
    let panel = Panel::start().await;
    let daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    let (server, ports) = (daemon.id("minecraft-001"), free_ports(2));
    let client = daemon.client();

    // 1. Create volume
    let volume = client.post_empty("/volumes").await.is(201);
    let volume = volume["volume_id"].as_str().expect("an id").to_owned();
    // 2. Write config file
    let body = r#"{"path": "server.properties", "content": "server-port=25565"}"#;
    post(&daemon, &format!("/volumes/{volume}/files"), body.to_owned()).await;
    // 3. Add port to pool
    let port = ports[0];
    let body = format!(r#"{{"ip": "0.0.0.0", "port": {port}, "protocol": "tcp"}}"#);
    post(&daemon, "/network/ports", body).await;
    // 4. Create container
    let image = &daemon.image;
    let body = format!(
        r#"{{
            "internal_id": "{server}",
            "image": "{image}",
            "volume_id": "{volume}",
            "startup_command": "cat server.properties server.jar; guest say 'Done (1.2s)!' -- serve {port}",
            "start_pattern": "Done",
            "ports": [{{"ip": "0.0.0.0", "port": {port}, "protocol": "tcp"}}],
            "limits": {{"memory": 1073741824, "cpu": 2.0}},
            "install_script": "\u0023!/bin/sh\nsleep 1; echo downloading; echo jar > server.jar"
        }}"#
    );
    post(&daemon, "/containers", body).await;
    // 5. Wait for installation (monitor via WebSocket or poll state)
    let mut socket = daemon.ws(&server).await;
    socket.expect_state("installing").await;
    socket.expect_console("downloading").await;
    socket.expect_state("ready").await;
    let shown = client.get(&format!("/containers/{server}")).await.is(200);
    assert_eq!((&shown["install_state"], &shown["state"]), (&json!("ready"), &json!("offline")));
    let told = |status: &str| json!({"event": "update", "server": server, "status": status});
    panel.expect_updates(&server, &[told("installing"), told("ready")]).await;
    // 6. Start container
    daemon.power(&server, "start").await;
    socket.expect_state("starting").await;
    let console = socket.expect_console("Done").await;
    assert!(console.contains("server-port=25565") && console.contains("jar"), "{console}");
    socket.expect_state("running").await;
    expect_hello(port).await;

    daemon.power(&server, "restart").await;
    for state in ["stopping", "exit", "starting", "running"] {
        socket.expect_state(state).await;
    }
    expect_hello(port).await;
    daemon.power(&server, "kill").await;
    assert_eq!(socket.expect_state("exit").await["exit_code"], 137);

    client.post_empty(&format!("/containers/{server}/reinstall")).await.is(202);
    socket.expect_state("installing").await;
    socket.expect_console("downloading").await;
    socket.expect_state("ready").await;
    let twice = ["installing", "ready", "installing", "ready"].map(told);
    panel.expect_updates(&server, &twice).await;

    daemon.power(&server, "start").await;
    socket.expect_state("running").await;
    let other = json!({"ip": "0.0.0.0", "port": ports[1], "protocol": "tcp"});
    client.post("/network/ports", other.clone()).await.is(201);
    let mut binding = other;
    binding["container_port"] = port.into();
    let path = format!("/containers/{server}/rebind-network");
    client.post(&path, json!({"ports": [binding]})).await.is(202);
    daemon
        .shown(&server, "it runs on its other port", |shown| {
            shown["state"] == "running" && shown["ports"][0]["port"] == ports[1]
        })
        .await;
    expect_hello(ports[1]).await;

    client.delete(&format!("/volumes/{volume}")).await.refused(409, "volume_in_use");
    client.delete(&format!("/containers/{server}")).await.is(200);
    assert_eq!(socket.expect_close().await, 4404);
    let listed = client.get(&format!("/volumes/{volume}/files")).await.is(200);
    assert_eq!(listed["files"].as_array().map(Vec::len), Some(2), "{listed}");
    client.delete(&format!("/volumes/{volume}")).await.is(200);
    client.get(&format!("/volumes/{volume}")).await.refused(404, "not_found");
    daemon.close().await;
}

#[tokio::test]
async fn the_panel_is_greeted_with_its_token_and_told_of_failures_in_its_own_words() {
    let panel = Panel::start().await;
    let daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    eventually("the panel is asked for its health", SOON, async || {
        let calls = panel.calls();
        let health = calls.iter().find(|call| call.path == "/api/health").ok_or("nothing yet")?;
        assert_eq!(
            (health.method.as_str(), &health.headers["authorization"]),
            ("GET", &"Bearer lightd_panel_token_0000".parse().expect("a header"))
        );
        Ok::<_, &str>(())
    })
    .await;
    let id = daemon.id("fails");
    let spec = daemon.spec(&id, json!({"install_script": "exit 3"})).await;
    daemon.client().post("/containers", spec).await.is(201);
    let failed = daemon.install_state(&id, "failed").await;
    panel
        .expect_updates(&id, &[
            json!({"event": "update", "server": id, "status": "installing"}),
            json!({"event": "update", "server": id, "error": "failed", "data": failed["install_error"]}),
        ])
        .await;
    let updates: Vec<_> =
        panel.calls().into_iter().filter(|call| call.path == "/api/update").collect();
    for (n, call) in updates.iter().enumerate() {
        let header = |name: &str| call.headers[name].to_str().expect("a text").to_owned();
        assert_eq!(
            (call.method.as_str(), header("content-type").as_str()),
            ("POST", "application/json")
        );
        assert_eq!(header("authorization"), "Bearer lightd_panel_token_0000");
        assert_eq!(header("x-lightd-sequence"), (n + 1).to_string());
        uuid::Uuid::parse_str(&header("x-lightd-delivery")).expect("a UUID");
    }
    let status = eventually("the panel is reachable", SOON, async || {
        let status = daemon.client().get("/remote/status").await.is(200);
        if status["outbox"]["waiting"] == 0 { Ok(status) } else { Err(status) }
    })
    .await;
    assert_eq!(status["outbox"]["parked"], 0, "{status}");
    daemon.close().await;
}

#[tokio::test]
async fn updates_wait_for_the_panel_in_order_also_across_a_crash() {
    let panel = Panel::start().await;
    let mut daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    // Refused for now, refused for good, and then taken.
    panel.answer_with([500, 429, 503]);
    let id = daemon.id("waits");
    daemon.create(&id, json!({})).await;
    let told = |status: &str| json!({"event": "update", "server": id, "status": status});
    panel.expect_updates(&id, &[told("installing"), told("ready")]).await;
    let deliveries: Vec<String> = panel
        .calls()
        .iter()
        .filter(|call| call.body == told("installing"))
        .map(|call| call.headers["x-lightd-delivery"].to_str().expect("a text").to_owned())
        .collect();
    assert!(deliveries.len() > 1, "{deliveries:?}");
    assert!(deliveries.windows(2).all(|pair| pair[0] == pair[1]), "{deliveries:?}");

    // Written in the same transaction as the state: a crash loses none.
    panel.answer_with([503; 3]);
    daemon.client().post_empty(&format!("/containers/{id}/reinstall")).await.is(202);
    daemon.kill9().await;
    daemon.launch().await;
    let all = ["installing", "ready", "installing", "ready"].map(told);
    panel.expect_updates(&id, &all).await;
    daemon.close().await;
}

#[tokio::test]
async fn what_the_panel_refuses_for_good_is_parked_and_the_next_goes_on() {
    let panel = Panel::start().await;
    let daemon = Daemon::start_with(|config| {
        config["remote"] = panel.config();
        config["remote"]["power_events"] = json!(true);
    })
    .await;
    panel.answer_with([422]);
    let id = daemon.id("parked");
    daemon.run(&id, json!({})).await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    let told = |status: &str| json!({"event": "update", "server": id, "status": status});
    // The kill is a stop as well.
    eventually("the panel is told of power", SOON, async || {
        let seen = panel.updates_of(&id);
        let first = ["ready", "starting", "running"].map(told);
        if seen.starts_with(&first) && seen.last() == Some(&told("stopped")) {
            Ok(())
        } else {
            Err(seen)
        }
    })
    .await;
    let status = daemon.client().get("/remote/status").await.is(200);
    assert_eq!(status["outbox"]["parked"], 1, "{status}");
    daemon.close().await;
}
