//! Starts: when a server is ready, when a start has failed, and how long it took.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::chaos::{Door, Held};
use crate::support::process::Daemon;
use crate::support::wait::eventually;

async fn written(daemon: &Daemon, container: &Value, file: &str) {
    eventually(&format!("the workload has written {file}"), SOON, async || {
        daemon.volume_file(container, file).ok_or("not yet")
    })
    .await;
}

#[tokio::test]
async fn any_of_several_patterns_says_that_it_is_ready_and_how_long_it_took_is_shown() {
    let daemon = Daemon::start().await;
    let id = daemon.id("any");
    let spec = json!({
        "startup_command": "guest say hello -- ready-after 300 \"$(printf 'all \\033[32mup\\033[0m')\" -- forever",
        "start_pattern": "^Done$", "start_patterns": ["^Listening", "^all up$"],
        "fail_patterns": ["FAILED"], "start_timeout": 60,
    });
    let made = daemon.create(&id, spec).await;
    assert_eq!(made["start_patterns"], json!(["^Listening", "^all up$"]));
    assert_eq!((&made["start_timeout"], &made["ready_after_ms"]), (&json!(60), &Value::Null));
    daemon.power(&id, "start").await;
    let up = daemon.state(&id, "running").await;
    let took = up["ready_after_ms"].as_u64().expect("a number");
    assert!((300..30_000).contains(&took), "{up}");
    assert!(up["ready_at"].as_i64() >= up["started_at"].as_i64(), "{up}");
    assert_eq!(up["start_error"], Value::Null);

    let patch = json!({"start_patterns": null, "fail_patterns": [], "start_timeout": null});
    let client = daemon.client();
    let path = format!("/containers/{id}");
    client.patch(&path, json!({"fail_patterns": ["["]})).await.names_field("fail_patterns[0]");
    let answer = client.patch(&path, patch).await.is(200);
    let waits = ["start_patterns", "fail_patterns", "start_timeout"];
    assert_eq!(answer["waits_for_restart"], json!(waits));
    let shown = client.get(&path).await.is(200);
    assert_eq!(shown["start_patterns"], json!([]));
    assert_eq!(
        (&shown["start_pattern"], &shown["start_timeout"]),
        (&json!("^Done$"), &Value::Null)
    );
    daemon.close().await;
}

/// What the engine says of a run, in milliseconds since 1970.
async fn engine_time_ms(daemon: &Daemon, id: &str, field: &str) -> i64 {
    let state = daemon.inspect(id).await["State"].clone();
    let time = state[field].as_str().unwrap_or_else(|| panic!("{field}: {state}"));
    time.parse::<jiff::Timestamp>().expect("a time").as_millisecond()
}

#[tokio::test]
async fn a_run_is_timed_from_the_moment_at_which_the_engine_has_started_it() {
    const HELD: Duration = Duration::from_secs(3);
    let (mut daemon, door) = Door::and_daemon().await;
    let (plain, pattern) = (daemon.id("plain"), daemon.id("pattern"));
    let command = "echo Ready; read line; exit 3";
    let spec = json!({"startup_command": command, "start_pattern": null, "tty": false});
    daemon.create(&plain, spec).await;
    let command = "guest ready-after 300 Done -- forever";
    daemon.create(&pattern, json!({"startup_command": command, "start_pattern": "Done"})).await;
    for id in [&plain, &pattern] {
        door.hold(Some(Held { method: "POST", path_has: "/start HTTP/", is_done: false }));
        daemon.power(id, "start").await;
        door.holds_one().await;
        // Not a wait for something: this is the time that is not the run's.
        tokio::time::sleep(HELD).await;
        let waits = daemon.client().get(&format!("/containers/{id}")).await.is(200);
        assert_eq!((&waits["state"], &waits["started_at"]), (&json!("starting"), &Value::Null));
        door.hold(None);
        let up = daemon.state(id, "running").await;
        let began_ms = engine_time_ms(&daemon, id, "StartedAt").await;
        assert_eq!(up["started_at"], began_ms / 1000, "{up}");
        let took = u128::from(up["ready_after_ms"].as_u64().expect("a number"));
        match id == &plain {
            true => assert_eq!(took, 0, "running once the process is up: {up}"),
            false => assert!((250..HELD.as_millis()).contains(&took), "{up}"),
        }
    }
    let path = format!("/containers/{plain}");
    let up = daemon.client().get(&path).await.is(200);
    daemon.kill9().await;
    daemon.launch().await;
    let again = daemon.state(&plain, "running").await;
    for field in ["run", "started_at", "ready_at", "ready_after_ms"] {
        assert_eq!(again[field], up[field], "{field}");
    }
    let began_ms = engine_time_ms(&daemon, &plain, "StartedAt").await;
    daemon.client().post(&format!("{path}/command"), json!({"command": "end"})).await.is(202);
    let ended = daemon.state(&plain, "offline").await;
    let lasted_ms = engine_time_ms(&daemon, &plain, "FinishedAt").await - began_ms;
    assert_eq!(ended["last_exit"]["uptime_s"], lasted_ms / 1000, "{ended}");
    assert_eq!((&ended["last_exit"]["run"], &ended["run"]), (&up["run"], &up["run"]));
    let post_mortem = format!("{path}/post-mortems/{}", ended["run"]);
    let kept = eventually("its post-mortem", SOON, async || {
        let answer = daemon.client().get(&post_mortem).await;
        if answer.status == 200 { Ok(answer.body) } else { Err(answer.text) }
    })
    .await;
    for field in ["started_at", "ready_at", "ready_after_ms"] {
        assert_eq!(kept[field], ended[field], "{field}");
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_start_that_shows_its_failure_is_stopped_with_a_reason_that_names_the_pattern() {
    let daemon = Daemon::start().await;
    let id = daemon.id("fails");
    let spec = json!({
        "startup_command": "trap 'echo saved > saved; exit 0' TERM; echo loading; echo FAILED to bind; \
                            while :; do sleep 0.05; done",
        "start_pattern": "Done", "fail_patterns": ["crashed", "^FAILED .*bind"],
    });
    let made = daemon.create(&id, spec).await;
    let mut socket = daemon.ws(&id).await;
    daemon.power(&id, "start").await;
    let said = socket
        .expect("the reason", |frame| {
            let text = frame["data"].as_str().unwrap_or_default();
            frame["event"] == "daemon_message" && text.contains("^FAILED .*bind")
        })
        .await;
    assert!(said["data"].as_str().is_some_and(|text| text.contains("start failed")), "{said}");
    socket.expect_state("stopping").await;
    socket.expect_state("exit").await;
    socket.expect_state("stopped").await;
    let shown = daemon.state(&id, "offline").await;
    let error = shown["start_error"].as_str().unwrap_or_default();
    assert!(error.contains("^FAILED .*bind"), "{shown}");
    assert_eq!((&shown["ready_at"], &shown["desired_state"]), (&Value::Null, &json!("offline")));
    assert_eq!(daemon.volume_file(&made, "saved").as_deref(), Some("saved\n"), "asked to stop");

    // Once it is ready, such a line is one like any other.
    let command = json!({"startup_command": "guest say Done -- say 'FAILED to bind' -- forever"});
    daemon.client().patch(&format!("/containers/{id}"), command).await.is(200);
    daemon.power(&id, "start").await;
    daemon.expect_log(&id, "Done").await;
    let shown = daemon.state(&id, "running").await;
    assert_eq!(shown["start_error"], Value::Null, "{shown}");
    daemon.close().await;
}

#[tokio::test]
async fn a_start_that_takes_too_long_has_failed() {
    let daemon = Daemon::start().await;
    let id = daemon.id("slow");
    let spec = json!({
        "startup_command": "guest say loading -- forever", "start_pattern": "Done",
        "start_timeout": 1, "stop": {"timeout": 1},
    });
    daemon.create(&id, spec).await;
    let mut socket = daemon.ws(&id).await;
    daemon.power(&id, "start").await;
    socket.expect_state("starting").await;
    socket.expect_state("stopping").await;
    socket.expect_state("stopped").await;
    let shown = daemon.state(&id, "offline").await;
    assert_eq!(shown["start_error"], "it was not ready within 1 s", "{shown}");
    assert_eq!(shown["state_reason"], "failed_start", "{shown}");
    daemon.power(&id, "start").await;
    let shown = daemon.shown(&id, "it starts", |shown| shown["state"] == "starting").await;
    assert_eq!(shown["start_error"], Value::Null, "{shown}");
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_deadline_that_passed_while_lightd_was_away_is_judged_by_what_was_printed_meanwhile() {
    let mut daemon = Daemon::start().await;
    let (late, ready, fails) = (daemon.id("late"), daemon.id("ready"), daemon.id("fails"));
    let commands = [
        (&late, "echo loading; sleep 3; echo > done; guest forever"),
        (&ready, "echo loading; sleep 1; echo Done; sleep 2; echo > done; guest forever"),
        (&fails, "echo loading; sleep 1; echo FAILED; sleep 2; echo > done; guest forever"),
    ];
    let mut made = Vec::new();
    for (id, command) in commands {
        let spec = json!({
            "startup_command": command, "start_pattern": "Done", "fail_patterns": ["FAILED"],
            "start_timeout": 2, "stop": {"timeout": 1}, "tty": false,
        });
        made.push(daemon.create(id, spec).await);
    }
    for (id, _) in commands {
        daemon.power(id, "start").await;
        daemon.expect_log(id, "loading").await;
    }
    daemon.kill9().await;
    for container in &made {
        written(&daemon, container, "done").await;
    }
    daemon.launch().await;
    let up = daemon.state(&ready, "running").await;
    let took = up["ready_after_ms"].as_u64().expect("a number");
    assert!((900..3000).contains(&took), "when it said so, not when it was read: {up}");
    for (id, reason) in [(&late, "it was not ready within 2 s"), (&fails, "FAILED")] {
        let shown = daemon.shown(id, "the start has failed", |shown| {
            shown["state"] == "offline" && shown["start_error"].is_string()
        });
        let shown = shown.await;
        assert!(shown["start_error"].as_str().is_some_and(|why| why.contains(reason)), "{shown}");
    }
    // What was ready stays so, and since when is not forgotten.
    daemon.kill9().await;
    daemon.launch().await;
    let again = daemon.state(&ready, "running").await;
    assert_eq!(again["ready_after_ms"], up["ready_after_ms"]);
    daemon.close().await;
}

#[tokio::test]
async fn a_pattern_is_looked_for_in_the_lines_of_each_stream() {
    let daemon = Daemon::start_with(|config| {
        config["supervision"]["start_timeout"] = json!("3s");
    })
    .await;
    let (id, torn) = (daemon.id("streams"), daemon.id("torn"));
    let command = "printf Do; echo noise >&2; sleep 0.2; echo ne; guest forever";
    let spec = json!({"startup_command": command, "tty": false, "start_pattern": "^Done$"});
    daemon.run(&id, spec).await;
    // What two streams make together is no line.
    let command = "printf 'Server '; echo up >&2; sleep 0.2; echo is up; guest forever";
    let spec = json!({"startup_command": command, "tty": false, "start_pattern": "^Server up$"});
    daemon.create(&torn, spec).await;
    daemon.power(&torn, "start").await;
    let shown =
        daemon.shown(&torn, "a start that was given up", |shown| shown["start_error"].is_string());
    shown.await;
    daemon.close().await;
}
