//! The engine goes away and comes back: nothing is guessed, nothing is lost.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::time::Instant;

use crate::support::SOON;
use crate::support::agreement::all_lines;
use crate::support::chaos::{Door, Held};
use crate::support::process::Daemon;
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

#[tokio::test]
async fn a_log_that_is_refused_is_asked_for_again_and_no_line_is_lost() {
    let (daemon, mut door) = Door::and_daemon().await;
    let id = daemon.id("refused");
    let counts = "echo Ready; n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";
    daemon.run(&id, json!({"startup_command": counts, "tty": false})).await;
    daemon.expect_log(&id, "20").await;
    door.shut();
    daemon.state(&id, "unknown").await;
    door.reopen_refusing_logs(2);
    door.logs_were_refused().await;
    let before = last_number(&daemon, &id).await;
    eventually("the console goes on", SOON, async || {
        let now = last_number(&daemon, &id).await;
        if now > before + 100 { Ok(()) } else { Err(now) }
    })
    .await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    let lines = all_lines(&daemon, &id).await;
    let numbers: Vec<String> = (1..lines.len()).map(|n| n.to_string()).collect();
    assert_eq!(lines[1..], numbers, "each line once, and nothing is said to be missing");
    daemon.close().await;
}

async fn last_number(daemon: &Daemon, id: &str) -> u64 {
    let log = daemon.logs(id).await;
    log.lines().rev().find_map(|line| line.trim_end().parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_line_longer_than_any_goes_on_behind_an_outage_and_comes_once() {
    let (daemon, mut door) = Door::and_daemon().await;
    let id = daemon.id("long");
    let long = "echo Ready; i=0; while test $i -lt 20000; do printf '%06d ' $i; i=$((i+1)); \
                test $((i % 1000)) = 0 && sleep 0.1; done; echo; echo END; guest forever";
    let mut socket = {
        daemon.create(&id, json!({"startup_command": long, "tty": false})).await;
        let socket = daemon.ws(&id).await;
        daemon.power(&id, "start").await;
        socket
    };
    socket.expect_console("011000 ").await;
    door.shut();
    daemon.state(&id, "unknown").await;
    door.reopen();
    daemon.expect_log(&id, "END").await;
    let is_note = |line: &String| line.starts_with("[lightd]");
    let (notes, output): (Vec<_>, Vec<_>) =
        all_lines(&daemon, &id).await.into_iter().partition(is_note);
    let text = output.concat();
    // A number that is cut by what is missing is none.
    let whole = text.split(' ').filter(|word| word.len() == 6);
    let numbers: Vec<u64> = whole.filter_map(|word| word.parse().ok()).collect();
    let repeated = numbers.windows(2).find(|pair| pair[1] <= pair[0]);
    assert_eq!(repeated, None, "of {} numbers", numbers.len());
    // What the engine's log did not have yet when the attach began is told when it has.
    let told = notes.iter().any(|note| note.contains("of the line before"));
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let all: String = (0..20_000).map(|number| format!("{number:06}")).collect();
    assert!(digits == all || told, "{} numbers, {notes:?}", numbers.len());
    assert!(!notes.iter().any(|note| note.contains("rotated")), "nothing was: {notes:?}");
    daemon.close().await;
}

/// Keeps lightd from storing anything until this is dropped.
struct HungStore {
    _writing: rusqlite::Connection,
}

impl HungStore {
    fn of(daemon: &Daemon) -> Self {
        let path = daemon.data_path().join("lightd.db");
        let store = rusqlite::Connection::open(path).expect("the store");
        store.execute_batch("BEGIN IMMEDIATE").expect("the only writer");
        Self { _writing: store }
    }
}

#[tokio::test]
async fn a_kill_is_carried_out_while_the_store_hangs_and_is_known_as_a_kill_afterwards() {
    let daemon = Daemon::start().await;
    let (id, deleted) = (daemon.id("hung"), daemon.id("deleted"));
    let deaf = "trap '' TERM; echo Ready; guest forever";
    let spec = json!({"startup_command": deaf, "restart_on_crash": true});
    daemon.run(&id, spec).await;
    daemon.run(&deleted, json!({})).await;
    let client = daemon.client();
    let issued = client.post("/auth/tokens", json!({"permissions": ["power"]})).await.is(201);
    let panel = client.with_token(issued["token"].as_str().expect("a token"));
    let store = HungStore::of(&daemon);
    // The owner is in the midst of storing something when the kill comes.
    let (path, other) = (format!("/containers/{id}"), format!("/containers/{deleted}"));
    let kill = format!("{path}/kill");
    let wishes = async {
        let change = json!({"labels": {"a": "b"}});
        tokio::join!(client.patch(&path, change), panel.post_empty(&kill), client.delete(&other))
    };
    let asked = Instant::now();
    let dies = eventually("it is killed", SOON, async || {
        let state = daemon.inspect(&id).await["State"].clone();
        if state["Running"] == false { Ok(asked.elapsed()) } else { Err(state) }
    });
    let ((_, killed, _), after) = tokio::join!(wishes, dies);
    // Sooner than a write that finds the store locked fails.
    assert!(after < Duration::from_secs(4), "{after:?}");
    killed.is(202);
    drop(store);
    let shown = daemon.state(&id, "offline").await;
    assert_eq!(shown["last_exit"]["ended_by"], "kill", "{shown}");
    assert_eq!(shown["restarts"]["count"], 0, "a kill is no crash: {shown}");
    daemon.close().await;
}

#[tokio::test]
async fn a_kill_and_a_delete_get_through_while_the_engine_pulls_or_starts_for_ever() {
    let (daemon, door) = Door::and_daemon().await;
    let client = daemon.client();
    for (method, path_has, image) in [
        ("POST", "/images/create", "127.0.0.1:9/nothing:1"),
        ("POST", "/start HTTP/", daemon.image.as_str()),
    ] {
        for wish in ["kill", "delete"] {
            let id = daemon.id(&format!("held{}", path_has.len()));
            let is_pull = path_has == "/images/create";
            let spec = daemon.spec(&id, json!({"image": image})).await;
            let hold = || door.hold(Some(Held { method, path_has, is_done: false }));
            if is_pull {
                hold();
                client.post("/containers", spec).await.is(201);
            } else {
                client.post("/containers", spec).await.is(201);
                daemon.install_state(&id, "ready").await;
                hold();
                daemon.power(&id, "start").await;
            }
            door.holds_one().await;
            let path = format!("/containers/{id}");
            if wish == "kill" {
                daemon.power(&id, "kill").await;
                if is_pull {
                    let shown = daemon.install_state(&id, "failed").await;
                    assert_eq!(shown["install_error"], "the installation was aborted", "{shown}");
                } else {
                    daemon.state(&id, "offline").await;
                }
            }
            let answer = client.delete(&path).await;
            assert!(matches!(answer.status, 200 | 202), "{answer:?}");
            eventually("it is gone", SOON, async || {
                let answer = client.get(&path).await;
                if answer.status == 404 { Ok(()) } else { Err(answer.text) }
            })
            .await;
            door.hold(None);
        }
    }
    daemon.close().await;
}
