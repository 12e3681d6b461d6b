//! lightd killed at the worst moments: what was begun is carried on, once, and what ran runs on.

use std::time::Duration;

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::numbers::free_ports;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

/// Counts up for as long as it lives.
const COUNTS: &str = "echo Ready; n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.05; done";

/// What the engine itself has kept of the output.
async fn engine_log(daemon: &Daemon, id: &str) -> String {
    let options = LogsOptionsBuilder::new().stdout(true).build();
    let pieces = daemon.docker.logs(&format!("lightd-{id}"), Some(options));
    let pieces: Vec<_> = pieces.collect().await;
    let text = |piece: LogOutput| String::from_utf8_lossy(&piece.into_bytes()).into_owned();
    pieces.into_iter().filter_map(Result::ok).map(text).collect()
}

async fn history(daemon: &Daemon, id: &str) -> Vec<String> {
    let answer = daemon.client().get(&format!("/containers/{id}/logs?lines=10000")).await.is(200);
    let text = answer["data"].as_str().expect("a text");
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[tokio::test]
async fn a_workload_outlives_a_killed_lightd_and_its_console_goes_on_without_a_seam() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("ticks");
    let before = daemon.run(&id, json!({"startup_command": COUNTS, "tty": false})).await;
    let pid = daemon.inspect(&id).await["State"]["Pid"].clone();
    daemon.expect_log(&id, "tick 10").await;
    daemon.kill9().await;
    eventually("the workload goes on by itself", SOON, async || {
        let log = engine_log(&daemon, &id).await;
        if log.contains("tick 40\n") { Ok(()) } else { Err(log) }
    })
    .await;
    daemon.launch().await;
    let after = daemon.state(&id, "running").await;
    assert_eq!(after["container_id"], before["container_id"]);
    assert_eq!(daemon.inspect(&id).await["State"]["Pid"], pid);
    daemon.expect_log(&id, "tick 80").await;
    let ticks: Vec<String> =
        history(&daemon, &id).await.into_iter().filter(|line| line.starts_with("tick")).collect();
    let wanted: Vec<String> = (1..=ticks.len()).map(|n| format!("tick {n}")).collect();
    assert_eq!(ticks, wanted, "every line once and in order");
    daemon.close().await;
}

#[tokio::test]
async fn an_install_that_lightd_did_not_outlive_is_followed_to_its_end_and_run_once() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("install");
    let script = "echo begun; echo run >> /mnt/server/runs; until test -e /mnt/server/go; do sleep 0.05; done; echo over";
    let spec = daemon.spec(&id, json!({"install_script": script})).await;
    daemon.client().post("/containers", spec.clone()).await.is(201);
    daemon.expect_log(&id, "begun").await;
    daemon.kill9().await;
    daemon.launch().await;
    daemon.install_state(&id, "installing").await;
    let volume = spec["volume_id"].as_str().expect("an id");
    let go = json!({"path": "go", "content": ""});
    daemon.client().post(&format!("/volumes/{volume}/files"), go).await.is(201);
    let shown = daemon.install_state(&id, "ready").await;
    assert_eq!(daemon.volume_file(&shown, "runs").as_deref(), Some("run\n"));
    let lines = history(&daemon, &id).await;
    assert_eq!(lines, ["begun", "over"], "no line lost or doubled");
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    daemon.close().await;
}

/// What pool, row and engine say of a container's ports.
async fn ports_in_agreement(daemon: &Daemon, id: &str, of: &[u16]) -> Result<u16, Value> {
    let shown = daemon.client().get(&format!("/containers/{id}")).await.is(200);
    let pool = daemon.client().get("/network/ports").await.is(200);
    let held: Vec<u64> = pool["ports"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|port| port["container"] == id)
        .filter_map(|port| port["port"].as_u64())
        .collect();
    let own = shown["ports"][0]["port"].as_u64().unwrap_or_default();
    let inspected = daemon.inspect(id).await;
    let published = inspected["HostConfig"]["PortBindings"]
        .as_object()
        .and_then(|bindings| bindings.values().next())
        .map(|bound| bound[0]["HostPort"].clone());
    let agree =
        held == [own] && published == Some(json!(own.to_string())) && shown["state"] == "running";
    let port = u16::try_from(own).unwrap_or_default();
    if agree && of.contains(&port) {
        Ok(port)
    } else {
        Err(json!({"state": shown["state"], "held": held, "own": own, "published": published}))
    }
}

#[tokio::test]
async fn a_rebind_cut_off_at_any_moment_ends_with_pool_row_and_engine_in_agreement() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("rebind");
    let ports = free_ports(2);
    for port in &ports {
        let body = json!({"ip": "127.0.0.1", "port": port});
        daemon.client().post("/network/ports", body).await.is(201);
    }
    let bound = |port: u16| json!([{"ip": "127.0.0.1", "port": port}]);
    daemon.run(&id, json!({"ports": bound(ports[0])})).await;
    let mut at = ports[0];
    for delay_ms in [0, 30, 80, 150, 250, 400, 600] {
        let other = if at == ports[0] { ports[1] } else { ports[0] };
        let body = json!({"ports": bound(other)});
        daemon.client().post(&format!("/containers/{id}/rebind-network"), body).await.is(202);
        // Not a wait for something: the moment of the kill is what is varied.
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        daemon.kill9().await;
        daemon.launch().await;
        let what = format!("agreement after a kill {delay_ms} ms into a rebind");
        at = eventually(&what, SOON, async || ports_in_agreement(&daemon, &id, &ports).await).await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_delete_cut_off_by_a_kill_is_finished_and_frees_the_name() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("gone");
    let shown = daemon.run(&id, json!({})).await;
    let path = format!("/containers/{id}");
    // The answer would come when it is gone; it is decided on before.
    let (client, watching) = (daemon.client(), daemon.client());
    let decided =
        async { while watching.get(&path).await.text.contains("\"state\":\"running\"") {} };
    tokio::select! {
        answer = client.delete(&path) => panic!("it was gone before the kill: {answer:?}"),
        () = decided => {}
    }
    daemon.kill9().await;
    daemon.launch().await;
    eventually("it is gone", SOON, async || {
        let answer = daemon.client().get(&path).await;
        if answer.status == 404 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    daemon.create(&id, json!({"volume_id": shown["volume_id"]})).await;
    daemon.close().await;
}
