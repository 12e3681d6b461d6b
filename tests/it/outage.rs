//! The engine goes away and comes back: nothing is guessed, nothing is lost.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::support::SOON;
use crate::support::chaos::Door;
use crate::support::wait::eventually;

#[tokio::test]
async fn while_the_engine_is_away_states_are_unknown_and_nothing_is_taken_for_a_crash() {
    let (daemon, mut door) = Door::and_daemon().await;
    let id = daemon.id("away");
    let counts = "echo Ready; n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.05; done";
    let spec = json!({"startup_command": counts, "tty": false, "restart_on_crash": true});
    let before = daemon.run(&id, spec).await;
    daemon.expect_log(&id, "tick 5").await;
    door.shut();
    let unknown = daemon.state(&id, "unknown").await;
    assert!(unknown["unknown_since"].is_i64(), "{unknown}");
    daemon.client().get("/api/v1/public/ping").await.is(200);
    let refused = daemon.client().post_empty(&format!("/containers/{id}/restart")).await;
    refused.refused(503, "engine_unavailable");
    door.reopen();
    let after = daemon.state(&id, "running").await;
    assert_eq!(after["container_id"], before["container_id"]);
    assert_eq!(after["started_at"], before["started_at"], "it was not started again");
    daemon.expect_log(&id, "tick 60").await;
    let log = daemon.logs(&id).await;
    let ticks: Vec<&str> =
        log.lines().map(str::trim_end).filter(|line| line.starts_with("tick")).collect();
    let wanted: Vec<String> = (1..=ticks.len()).map(|n| format!("tick {n}")).collect();
    assert_eq!(ticks, wanted, "the console has no seam");
    daemon.close().await;
}

#[tokio::test]
async fn a_kill_and_a_delete_asked_for_meanwhile_are_carried_out_on_the_engines_return() {
    let (daemon, mut door) = Door::and_daemon().await;
    let (killed, deleted) = (daemon.id("killed"), daemon.id("deleted"));
    daemon.run(&killed, json!({})).await;
    daemon.run(&deleted, json!({})).await;
    door.shut();
    daemon.state(&killed, "unknown").await;
    daemon.power(&killed, "kill").await;
    daemon.client().delete(&format!("/containers/{deleted}")).await.is(202);
    door.reopen();
    let shown = daemon.state(&killed, "offline").await;
    assert_eq!(shown["exit_code"], 137);
    eventually("the deleted one is gone", SOON, async || {
        let answer = daemon.client().get(&format!("/containers/{deleted}")).await;
        if answer.status == 404 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn lightd_starts_and_answers_without_an_engine_and_takes_up_its_work_with_it() {
    let (mut daemon, mut door) = Door::and_daemon().await;
    let id = daemon.id("later");
    daemon.run(&id, json!({})).await;
    daemon.terminate().await;
    door.shut();
    daemon.launch().await;
    daemon.state(&id, "unknown").await;
    let stopped = daemon.client().post_empty(&format!("/containers/{id}/start")).await;
    stopped.refused(503, "engine_unavailable");
    door.reopen();
    daemon.state(&id, "running").await;
    daemon.close().await;
}

#[tokio::test]
async fn kills_that_were_asked_for_again_and_again_meanwhile_end_one_run_only() {
    let (daemon, mut door) = Door::and_daemon().await;
    let id = daemon.id("once");
    let spec = json!({"startup_command": "trap '' TERM; echo Ready; guest forever",
                      "stop": {"signal": "SIGTERM", "timeout": 600}});
    daemon.run(&id, spec).await;
    daemon.power(&id, "stop").await;
    door.shut();
    daemon.state(&id, "unknown").await;
    for _ in 0..30 {
        daemon.power(&id, "kill").await;
    }
    door.reopen();
    daemon.state(&id, "offline").await;
    daemon.power(&id, "start").await;
    // Longer than a call is put off that is tried again.
    let shown = daemon
        .shown(&id, "running for a while", |shown| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
            shown["state"] == "running"
                && shown["started_at"].as_u64().is_some_and(|at| now > at + 7)
        })
        .await;
    assert_eq!(daemon.logs(&id).await.matches("Ready").count(), 2, "{shown}");
    daemon.close().await;
}
