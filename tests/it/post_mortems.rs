//! Post-mortems: what is kept of a run that crashed, how many, and for how long.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

/// Waits until there are post-mortems of these runs, and returns them as listed.
async fn listed(daemon: &Daemon, id: &str, runs: &[u64]) -> Vec<Value> {
    let path = format!("/containers/{id}/post-mortems");
    eventually("the post-mortems are kept", SOON, async || {
        let list = daemon.client().get(&path).await.is(200)["post_mortems"].clone();
        let list = list.as_array().expect("a list").clone();
        let found: Vec<u64> = list.iter().filter_map(|one| one["n"].as_u64()).collect();
        if found == runs { Ok(list) } else { Err(list) }
    })
    .await
}

fn folder(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.data_path().join("containers").join(id)
}

#[tokio::test]
async fn a_crash_leaves_its_last_lines_and_figures_and_a_proper_end_leaves_nothing() {
    let daemon = Daemon::start().await;
    let (id, client) = (daemon.id("crashes"), daemon.client());
    let command = "seq 1 300; echo Ready; read line; test \"$line\" = end && exit 0; exit 3";
    daemon.run(&id, json!({"startup_command": command, "tty": false})).await;
    let path = format!("/containers/{id}/post-mortems");
    let tell = async |line: &str| {
        let command = json!({"command": line});
        client.post(&format!("/containers/{id}/command"), command).await.is(202);
        daemon.state(&id, "offline").await
    };
    eventually("its figures are taken", SOON, async || {
        let answer = client.get(&format!("/containers/{id}/stats")).await;
        if answer.body["memory_usage"].as_u64() > Some(0) { Ok(()) } else { Err(answer) }
    })
    .await;
    let shown = tell("crash").await;
    let run = shown["last_exit"]["run"].as_u64().expect("a run");
    let list = listed(&daemon, &id, &[run]).await;
    assert_eq!((&list[0]["lines"], &list[0]["stats"]), (&Value::Null, &Value::Null), "left out");
    let found = client.get(&format!("{path}/{run}")).await.is(200);
    for field in ["code", "signal", "oom_killed", "ended_by", "reason", "at", "uptime_s"] {
        assert_eq!(found[field], shown["last_exit"][field], "{field}");
        assert_eq!(found[field], list[0][field], "{field}");
    }
    assert_eq!((&found["code"], &found["ended_by"]), (&json!(3), &json!("itself")));
    assert_eq!(found["oom"], json!({"engine": false, "kernel": false}));
    assert_eq!(found["ready_after_ms"], shown["ready_after_ms"]);
    assert_eq!(found["image"], shown["image"]);
    let wanted: Vec<String> =
        (102..=300).map(|n| n.to_string()).chain(["Ready".to_owned()]).collect();
    let lines = found["lines"].as_str().expect("a text");
    assert_eq!(lines.lines().collect::<Vec<_>>(), wanted, "the last 200 lines");
    assert!(found["stats"][0]["memory_usage"].is_u64(), "{found}");
    let at = |field: &Value| field.as_i64().expect("a time");
    assert!(at(&found["stats"][0]["at"]) >= at(&found["started_at"]), "{found}");

    // An end without an error, a stop and a kill are none.
    for wish in ["end", "stop", "kill"] {
        daemon.power(&id, "start").await;
        daemon.state(&id, "running").await;
        if wish == "end" {
            tell("end").await;
        } else {
            daemon.power(&id, wish).await;
            daemon.state(&id, "offline").await;
        }
    }
    listed(&daemon, &id, &[run]).await;
    client.get(&format!("{path}/{}", run + 1)).await.refused(404, "not_found");
    client.get("/containers/nobody/post-mortems").await.refused(404, "not_found");
    let kept = folder(&daemon, &id);
    assert!(kept.join("post-mortems").exists());
    client.delete(&format!("/containers/{id}")).await.is(200);
    assert!(!kept.exists(), "they go with the container");
    daemon.close().await;
}

#[tokio::test]
async fn so_many_post_mortems_are_kept_as_the_configuration_says() {
    let daemon = Daemon::start_with(|config| {
        config["supervision"] = json!({"post_mortems": 2});
    })
    .await;
    let id = daemon.id("often");
    let rule = json!({"max_restarts": 3, "backoff_min_s": 0, "backoff_max_s": 0});
    let command = "n=$(cat n || echo 0); echo $((n+1)) > n; echo this is $n; exit 4";
    let spec = json!({
        "startup_command": command, "start_pattern": null, "tty": false, "restart_on_crash": rule,
    });
    daemon.create(&id, spec).await;
    daemon.power(&id, "start").await;
    let done = |shown: &Value| shown["restarts"]["gave_up"] == true;
    let shown = daemon.shown(&id, "it is given up", done).await;
    let last = shown["last_exit"]["run"].as_u64().expect("a run");
    listed(&daemon, &id, &[last, last - 1]).await;
    for (run, text) in [(last, "this is 3\n"), (last - 1, "this is 2\n")] {
        let found = daemon.client().get(&format!("/containers/{id}/post-mortems/{run}")).await;
        assert!(
            found.is(200)["lines"].as_str().is_some_and(|lines| lines.ends_with(text)),
            "{run}"
        );
    }
    daemon.close().await;
}

#[tokio::test]
async fn memory_that_ran_out_stands_in_the_post_mortem_as_engine_and_kernel_tell_it() {
    let daemon = Daemon::start().await;
    let id = daemon.id("eats");
    let spec = json!({
        "startup_command": "guest say Ready -- alloc 200", "limits": {"memory": 32 << 20},
    });
    daemon.create(&id, spec).await;
    daemon.power(&id, "start").await;
    let shown = daemon.shown(&id, "it has ended", |shown| shown["last_exit"].is_object()).await;
    let run = shown["last_exit"]["run"].as_u64().expect("a run");
    listed(&daemon, &id, &[run]).await;
    let found = daemon.client().get(&format!("/containers/{id}/post-mortems/{run}")).await.is(200);
    assert_eq!((&found["oom_killed"], &found["signal"]), (&json!(true), &json!("SIGKILL")));
    assert!(found["oom"]["engine"] == true || found["oom"]["kernel"] == true, "{found}");
    assert_eq!(found["limits"]["memory"], 32 << 20);
    daemon.close().await;
}

#[tokio::test]
async fn a_crash_while_lightd_was_away_has_its_post_mortem_too_and_so_has_a_failed_start() {
    let mut daemon = Daemon::start().await;
    let (id, starts) = (daemon.id("away"), daemon.id("starts"));
    let command = "echo Ready; until test -e go; do sleep 0.02; done; echo last words; exit 5";
    let made = daemon.run(&id, json!({"startup_command": command, "tty": false})).await;
    daemon.kill9().await;
    let volume = made["volume_id"].as_str().expect("a volume");
    let go = daemon.data_path().join("volumes").join(volume).join("go");
    std::fs::File::create(go).expect("a file in the volume");
    eventually("the engine has seen it end", SOON, async || {
        let state = daemon.inspect(&id).await["State"].clone();
        if state["Status"] == "exited" { Ok(()) } else { Err(state) }
    })
    .await;
    daemon.launch().await;
    let shown = daemon.state(&id, "offline").await;
    let run = shown["last_exit"]["run"].as_u64().expect("a run");
    listed(&daemon, &id, &[run]).await;
    let found = daemon.client().get(&format!("/containers/{id}/post-mortems/{run}")).await.is(200);
    assert_eq!((&found["code"], &found["lines"]), (&json!(5), &json!("Ready\nlast words\n")));

    let command = "trap 'exit 0' TERM; echo FAILED; while :; do sleep 0.05; done";
    let spec = json!({"startup_command": command, "fail_patterns": ["FAILED"]});
    daemon.create(&starts, spec).await;
    daemon.power(&starts, "start").await;
    let shown = daemon.shown(&starts, "it failed", |shown| shown["last_exit"].is_object()).await;
    let run = shown["last_exit"]["run"].as_u64().expect("a run");
    let list = listed(&daemon, &starts, &[run]).await;
    assert!(list[0]["reason"].as_str().is_some_and(|why| why.contains("FAILED")), "{list:?}");
    daemon.close().await;
}
