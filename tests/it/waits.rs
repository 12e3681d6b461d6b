//! Wishes that are answered when they have happened (`?wait`), and those that are sent twice (`Idempotency-Key`).

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::chaos::{Door, Held};
use crate::support::client::{Answer, Client, answer};
use crate::support::process::Daemon;
use crate::support::wait::eventually;

async fn wish(daemon: &Daemon, id: &str, action: &str, wait: &str) -> Answer {
    daemon.client().post_empty(&format!("/containers/{id}/{action}?wait={wait}")).await
}

#[tokio::test]
async fn each_wish_is_answered_when_it_has_happened() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("waits"), daemon.client());
    let spec = daemon.spec(&id, json!({"install_script": "sleep 0.5; echo done > made"})).await;
    let made = client.post("/containers?wait=50s", spec).await.is(201);
    assert_eq!((&made["done"], &made["state"]), (&json!(true), &json!("offline")), "{made}");
    assert_eq!(made["container"]["install_state"], "ready", "{made}");

    let started = wish(&daemon, &id, "start", "50s").await.is(200);
    assert_eq!((&started["state"], &started["done"]), (&json!("running"), &json!(true)));
    assert_eq!(started["container"]["state"], "running", "{started}");
    assert_eq!(wish(&daemon, &id, "start", "0s").await.is(200)["message"], "Container is running");
    let pid = daemon.inspect(&id).await["State"]["Pid"].clone();
    assert_eq!(wish(&daemon, &id, "pause", "50s").await.is(200)["state"], "paused");
    assert_eq!(wish(&daemon, &id, "resume", "50s").await.is(200)["state"], "running");
    assert_eq!(wish(&daemon, &id, "restart", "50s").await.is(200)["state"], "running");
    assert_ne!(daemon.inspect(&id).await["State"]["Pid"], pid, "another process");
    let stopped = wish(&daemon, &id, "stop", "50s").await.is(200);
    assert_eq!((&stopped["state"], &stopped["ended_by"]), (&json!("offline"), &json!("signal")));
    let again = wish(&daemon, &id, "stop", "50s").await.is(200);
    assert_eq!(again["ended_by"], Value::Null, "nothing ran: {again}");
    wish(&daemon, &id, "start", "50s").await.is(200);
    assert_eq!(wish(&daemon, &id, "kill", "50s").await.is(200)["ended_by"], "kill");
    assert_eq!(wish(&daemon, &id, "suspend", "50s").await.is(200)["state"], "suspended");
    assert_eq!(wish(&daemon, &id, "unsuspend", "50s").await.is(200)["state"], "offline");
    let again = wish(&daemon, &id, "reinstall", "50s").await.is(200);
    assert_eq!(again["container"]["install_state"], "ready", "{again}");

    let port = crate::support::numbers::free_port();
    client.post("/network/ports", json!({"ip": "127.0.0.1", "port": port})).await.is(201);
    wish(&daemon, &id, "start", "50s").await.is(200);
    let body = json!({"ports": [{"ip": "127.0.0.1", "port": port}]});
    let rebound = client.post(&format!("/containers/{id}/rebind-network?wait=50s"), body).await;
    let rebound = rebound.is(200);
    assert_eq!(
        (&rebound["state"], &rebound["container"]["ports"][0]["port"]),
        (&json!("running"), &json!(port))
    );
    let deleted = client.delete(&format!("/containers/{id}?wait=50s")).await.is(200);
    assert_eq!(deleted["done"], true, "{deleted}");
    client.get(&format!("/containers/{id}")).await.refused(404, "not_found");
    daemon.close().await;
}

#[tokio::test]
async fn what_can_not_happen_any_more_is_told_with_its_reason() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    for (name, command, reason) in [
        ("fails", "echo FAILED to bind; guest forever", "FAILED"),
        ("ends", "exit 3", "it ended with code 3 before it was ready"),
        ("slow", "guest forever", "not ready within 1 s"),
    ] {
        let id = daemon.id(name);
        let spec = json!({
            "startup_command": command, "start_pattern": "Done", "fail_patterns": ["FAILED"],
            "start_timeout": 1, "stop": {"timeout": 1},
        });
        daemon.create(&id, spec).await;
        let told = wish(&daemon, &id, "start", "50s").await.refused(409, "start_failed");
        assert!(told["error"].as_str().is_some_and(|why| why.contains(reason)), "{name}: {told}");
        daemon.state(&id, "offline").await;
    }
    let id = daemon.id("broken");
    let spec = daemon.spec(&id, json!({"install_script": "exit 7"})).await;
    let told = client.post("/containers?wait=50s", spec).await.refused(409, "install_failed");
    assert!(told["error"].as_str().is_some_and(|why| why.contains('7')), "{told}");
    daemon.state(&id, "failed").await;
    let missing = daemon.id("missing");
    let spec = daemon.spec(&missing, json!({"image": "127.0.0.1:9/lightd/none:1"})).await;
    client.post("/containers?wait=50s", spec).await.refused(409, "install_failed");
    daemon.close().await;
}

#[tokio::test]
async fn a_pause_or_resume_that_fails_is_told_and_one_whose_answer_was_lost_has_happened() {
    let (daemon, mut door) = Door::and_daemon().await;
    let id = daemon.id("stands");
    daemon.run(&id, json!({})).await;
    for (action, path, state) in
        [("pause", "/pause ", "running"), ("resume", "/unpause ", "paused")]
    {
        door.cut(Some(path));
        let told = wish(&daemon, &id, action, "50s").await.refused(409, "pause_refused");
        assert!(told["error"].as_str().is_some_and(|why| why.contains("cannot be")), "{told}");
        door.cut(None);
        daemon.state(&id, state).await;
        wish(&daemon, &id, action, "50s").await.is(200);
    }
    door.hold(Some(Held { method: "POST", path_has: "/pause ", is_done: true }));
    let pausing = wish(&daemon, &id, "pause", "50s");
    let outage = async {
        door.holds_one().await;
        door.shut();
        daemon.state(&id, "unknown").await;
        door.reopen();
    };
    let (paused, ()) = tokio::join!(pausing, outage);
    assert_eq!(paused.is(200)["state"], "paused");
    daemon.close().await;
}

#[tokio::test]
async fn a_wait_that_is_over_cancels_nothing_and_another_wish_ends_it() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("late"), daemon.client());
    daemon
        .create(&id, json!({"startup_command": "guest wait 1500 -- say Ready -- trap-term ignore"}))
        .await;
    let late = wish(&daemon, &id, "start", "200ms").await.is(202);
    assert_eq!((&late["done"], &late["state"]), (&json!(false), &json!("starting")), "{late}");
    assert!(late["message"].as_str().is_some_and(|text| text.contains("longer")), "{late}");
    // A client that goes away takes nothing with it either.
    let gone = client.request(Method::POST, &format!("/containers/{id}/start?wait=50s"));
    gone.timeout(Duration::from_millis(200)).send().await.expect_err("it is still starting");
    daemon.state(&id, "running").await;

    let stopping = wish(&daemon, &id, "stop", "50s");
    let meanwhile = async {
        daemon.state(&id, "stopping").await;
        wish(&daemon, &id, "kill", "50s").await.is(200)
    };
    let (stopped, killed) = tokio::join!(stopping, meanwhile);
    assert_eq!(
        (&stopped.is(200)["ended_by"], &killed["ended_by"]),
        (&json!("kill"), &json!("kill"))
    );
    let starting = wish(&daemon, &id, "start", "50s");
    let meanwhile = async {
        daemon.state(&id, "starting").await;
        daemon.power(&id, "kill").await;
    };
    let (started, ()) = tokio::join!(starting, meanwhile);
    started.refused(409, "superseded");
    for bad in ["11m", "soon", "-1s", "30"] {
        wish(&daemon, &id, "start", bad).await.names_field("?wait");
    }
    assert_eq!(daemon.state(&id, "offline").await["state"], "offline", "none of them was taken on");
    daemon.close().await;
}

#[tokio::test]
async fn a_stop_of_lightd_ends_waits_and_what_was_asked_stands() {
    let (mut daemon, _door) = Door::and_daemon().await;
    let id = daemon.id("stopping");
    daemon.create(&id, json!({"startup_command": "guest wait 3000 -- say Ready -- forever"})).await;
    let client = daemon.client();
    let path = format!("/containers/{id}/start?wait=5m");
    let request = client.request(Method::POST, &path).header("idempotency-key", "once");
    let stopping = async {
        daemon.state(&id, "starting").await;
        daemon.terminate().await;
    };
    let (answered, ()) = tokio::join!(answer(request), stopping);
    answered.refused(503, "stopping");
    daemon.launch().await;
    daemon.state(&id, "running").await;
    let again = client.request(Method::POST, &path).header("idempotency-key", "once");
    assert_eq!(answer(again).await.is(200)["state"], "running", "the wish was taken on");
    daemon.close().await;
}

async fn keyed(client: &Client, key: &str, path: &str, body: Value) -> Answer {
    answer(client.request(Method::POST, path).header("idempotency-key", key).json(&body)).await
}

#[tokio::test]
async fn a_wish_with_a_key_is_carried_out_once_also_over_restarts_of_lightd() {
    let mut daemon = Daemon::start().await;
    let (id, client) = (daemon.id("once"), daemon.client());
    daemon.run(&id, json!({})).await;
    let restart = format!("/containers/{id}/restart");
    let waited = format!("{restart}?wait=50s");
    let first = keyed(&client, "r", &waited, json!({})).await.is(200);
    let started = async || daemon.inspect(&id).await["State"]["StartedAt"].clone();
    let run = started().await;
    let again = keyed(&client, "r", &waited, json!({})).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.is(200), first);
    // How long somebody waits does not make it another request; what is asked of whom does.
    keyed(&client, "r", &restart, json!({})).await.is(200);
    let other = format!("/containers/{id}/stop");
    keyed(&client, "r", &other, json!({})).await.refused(422, "idempotency_key_reused");
    assert_eq!(started().await, run, "it was restarted once");
    daemon.restart().await;
    daemon.state(&id, "running").await;
    assert_eq!(keyed(&client, "r", &waited, json!({})).await.is(200), first);
    let run_after = daemon.inspect(&id).await["State"]["StartedAt"].clone();
    assert_eq!(run_after, run);

    // Many at once: one is carried out.
    let all = (0..6).map(|_| keyed(&client, "many", &restart, json!({})));
    for answer in futures_util::future::join_all(all).await {
        let is_expected = answer.status == 202 || answer.body["code"] == "idempotency_in_progress";
        assert!(is_expected, "{answer:?}");
    }
    // A trial uses no key up, and a refusal neither.
    let trial = format!("/containers/{id}/stop?dry_run=true");
    keyed(&client, "s", &trial, json!({})).await.is(200);
    daemon.state(&id, "running").await;
    keyed(&client, "s", &other, json!({})).await.is(202);
    daemon.state(&id, "offline").await;
    let pause = format!("/containers/{id}/pause");
    keyed(&client, "p", &pause, json!({})).await.refused(409, "not_running");
    wish(&daemon, &id, "start", "50s").await.is(200);
    keyed(&client, "p", &pause, json!({})).await.is(202);
    daemon.state(&id, "paused").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_key_that_is_sent_again_hears_what_has_come_of_the_wish_since() {
    let mut daemon = Daemon::start().await;
    let (id, client) = (daemon.id("since"), daemon.client());
    let install = json!({
        "install_script": "sleep 1", "startup_command": "guest wait 1500 -- say Ready -- forever",
    });
    let spec = daemon.spec(&id, install).await;
    let made = keyed(&client, "c", "/containers?wait=0s", spec.clone()).await.is(202);
    assert_eq!(made["done"], false, "{made}");
    let again = keyed(&client, "c", "/containers?wait=50s", spec.clone()).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    let installed = again.is(201);
    assert_eq!((&installed["done"], &installed["state"]), (&json!(true), &json!("offline")));
    assert_eq!(keyed(&client, "c", "/containers?wait=0s", spec).await.is(201), installed);

    let path = |wait: &str| format!("/containers/{id}/start?wait={wait}");
    let late = keyed(&client, "s", &path("0s"), json!({})).await.is(202);
    assert_eq!(late["done"], false, "{late}");
    // Whoever waits for it next may find another lightd.
    daemon.restart().await;
    let started = keyed(&client, "s", &path("50s"), json!({})).await;
    assert_eq!(started.headers["idempotent-replayed"], "true");
    let started = started.is(200);
    assert_eq!((&started["done"], &started["state"]), (&json!(true), &json!("running")));
    wish(&daemon, &id, "kill", "50s").await.is(200);
    assert_eq!(keyed(&client, "s", &path("0s"), json!({})).await.is(200), started, "it stands");
    assert_eq!(daemon.state(&id, "offline").await["state"], "offline", "and starts nothing");
    daemon.close().await;
}

#[tokio::test]
async fn a_key_is_told_what_came_of_its_own_wish_whatever_others_wish_since() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("own"), daemon.client());
    let spec = daemon.spec(&id, json!({"install_script": "exit 0"})).await;
    let made = keyed(&client, "c", "/containers", spec.clone()).await.is(201);
    assert_eq!(made.get("done"), None, "{made}");
    daemon.state(&id, "offline").await;
    let path = |action: &str, wait: &str| format!("/containers/{id}/{action}?wait={wait}");

    let to = |port: u16| json!({"ports": [{"ip": "127.0.0.1", "port": port}]});
    let ports = [crate::support::numbers::free_port(), crate::support::numbers::free_port()];
    for port in ports {
        client.post("/network/ports", json!({"ip": "127.0.0.1", "port": port})).await.is(201);
    }
    keyed(&client, "r1", &path("rebind-network", "0s"), to(ports[0])).await;
    // Refused as long as the first is under way.
    eventually("the ports are changed again", SOON, async || {
        let path = path("rebind-network", "50s");
        let again = keyed(&client, "r2", &path, to(ports[1])).await;
        if again.status == 200 { Ok(()) } else { Err(again.text) }
    })
    .await;
    let told = keyed(&client, "r1", &path("rebind-network", "50s"), to(ports[0])).await.is(200);
    assert_eq!(told["container"]["ports"][0]["port"], ports[0], "{told}");

    wish(&daemon, &id, "start", "50s").await.is(200);
    for (first, state, second, then) in
        [("pause", "paused", "resume", "running"), ("suspend", "suspended", "unsuspend", "offline")]
    {
        keyed(&client, first, &path(first, "0s"), json!({})).await;
        daemon.state(&id, state).await;
        wish(&daemon, &id, second, "50s").await.is(200);
        let told = keyed(&client, first, &path(first, "50s"), json!({})).await;
        assert_eq!(told.headers["idempotent-replayed"], "true");
        assert_eq!(told.is(200)["state"], state);
        daemon.state(&id, then).await;
    }

    let fails = json!({"install_script": "exit 7"});
    client.post(&path("reinstall", "50s"), fails).await.refused(409, "install_failed");
    assert_eq!(keyed(&client, "c", "/containers", spec.clone()).await.is(201), made);
    let installed = keyed(&client, "c", "/containers?wait=50s", spec.clone()).await.is(201);
    assert_eq!((&installed["done"], &installed["state"]), (&json!(true), &json!("offline")));
    assert_eq!(keyed(&client, "c", "/containers", spec).await.is(201), made, "the first answer");
    daemon.close().await;
}

#[tokio::test]
async fn who_is_cut_off_may_ask_again_at_once_and_a_failure_after_a_restart_is_told_and_not_kept() {
    let mut daemon = Daemon::start().await;
    let (id, client) = (daemon.id("cut"), daemon.client());
    let spec = json!({
        "startup_command": "guest forever", "start_pattern": "Never", "start_timeout": 600,
    });
    daemon.create(&id, spec).await;
    let path = |wait: &str| format!("/containers/{id}/start?wait={wait}");
    let first = client.request(Method::POST, &path("5m")).header("idempotency-key", "s");
    let first = first.json(&json!({})).timeout(Duration::from_millis(300));
    first.send().await.expect_err("it is still starting");
    eventually("the key is free", SOON, async || {
        let again = keyed(&client, "s", &path("0s"), json!({})).await;
        if again.status == 202 { Ok(()) } else { Err(again.text) }
    })
    .await;
    daemon.restart().await;
    wish(&daemon, &id, "kill", "50s").await.is(200);
    keyed(&client, "s", &path("50s"), json!({})).await.refused(409, "superseded");
    let patch = client.request(Method::PATCH, &format!("/containers/{id}"));
    answer(patch.json(&json!({"start_pattern": null}))).await.is(200);
    wish(&daemon, &id, "start", "50s").await.is(200);
    keyed(&client, "s", &path("50s"), json!({})).await.is(200);
    daemon.close().await;
}

#[tokio::test]
async fn a_wish_with_a_key_is_answered_and_not_carried_out_again_however_long_the_answer_is() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("long"), daemon.client());
    // Twice as many in an answer, where the ends of lines are written out.
    let script = "#\n".repeat(1 << 19);
    daemon.create(&id, json!({"install_script": script})).await;
    wish(&daemon, &id, "start", "50s").await.is(200);
    let path = format!("/containers/{id}/restart?wait=50s");
    let first = keyed(&client, "long", &path, json!({})).await.is(200);
    assert_eq!(first["container"]["install_script"], script);
    let run = daemon.inspect(&id).await["State"]["StartedAt"].clone();
    let again = keyed(&client, "long", &path, json!({})).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    let again = again.is(200);
    assert_eq!((&again["done"], &again["generation"]), (&first["done"], &first["generation"]));
    assert_eq!(again["container"], Value::Null, "that can be looked at");
    assert_eq!(daemon.inspect(&id).await["State"]["StartedAt"], run, "it was restarted once");
    daemon.close().await;
}

#[tokio::test]
async fn a_creation_with_a_key_that_failed_to_install_is_not_made_twice() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("keyed"), daemon.client());
    let spec = daemon.spec(&id, json!({"install_script": "exit 7"})).await;
    let path = "/containers?wait=50s";
    let first = keyed(&client, "c", path, spec.clone()).await.refused(409, "install_failed");
    let again = keyed(&client, "c", path, spec.clone()).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.refused(409, "install_failed"), first);
    let volume = spec["volume_id"].as_str().expect("an id");
    let pack = format!("/volumes/{volume}/compress");
    let body = json!({"format": "tar", "output_name": "all", "background": true});
    let begun = keyed(&client, "o", &pack, body.clone()).await.is(202);
    assert_eq!(keyed(&client, "o", &pack, body).await.is(202), begun, "one operation");
    let take = format!("/volumes/{volume}/snapshots");
    let body = json!({"name": "first"});
    let begun = eventually("a snapshot begins", SOON, async || {
        let answer = keyed(&client, "n", &take, body.clone()).await;
        if answer.status == 202 { Ok(answer.body) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(keyed(&client, "n", &take, body.clone()).await.is(202), begun);
    daemon.close().await;
}
