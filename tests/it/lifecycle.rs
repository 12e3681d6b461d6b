//! Lives: how runs end, what follows a crash, what comes back with the host, what is suspended.

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

/// Waits until a run has ended, and returns the container's `last_exit`.
async fn ended(daemon: &Daemon, id: &str) -> Value {
    let shown = daemon.state(id, "offline").await;
    let last = shown["last_exit"].clone();
    assert_eq!(shown["exit_code"], last["code"], "{shown}");
    assert!(last["at"].as_i64() >= shown["started_at"].as_i64(), "{shown}");
    last
}

/// As the next start of the host would have it.
fn forget_the_host(daemon: &Daemon) {
    let store = rusqlite::Connection::open(daemon.data_path().join("lightd.db")).expect("a store");
    let changed = store.execute("UPDATE meta SET value = 'another' WHERE key = 'boot_id'", []);
    assert_eq!(changed.expect("an update"), 1);
}

async fn kill_in_engine(daemon: &Daemon, id: &str) {
    let name = format!("lightd-{id}");
    daemon.docker.kill_container(&name, None).await.expect("a kill");
    eventually("the engine has seen it end", SOON, async || {
        let state = daemon.inspect(id).await["State"].clone();
        if state["Status"] == "exited" { Ok(()) } else { Err(state) }
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_run_says_which_step_it_was() {
    let daemon = Daemon::start().await;
    let id = daemon.id("steps");
    let path = format!("/containers/{id}");
    let polite = "trap 'exit 0' TERM; echo Ready; read line; exit 7";
    let spec = json!({"startup_command": polite, "stop": {"timeout": 30}});
    let made = daemon.create(&id, spec).await;
    assert_eq!(made["last_exit"], Value::Null);
    let mut socket = daemon.ws(&id).await;
    let start = async || {
        daemon.power(&id, "start").await;
        daemon.state(&id, "running").await;
    };

    start().await;
    daemon.client().post(&format!("{path}/command"), json!({"command": "x"})).await.is(202);
    let last = ended(&daemon, &id).await;
    assert_eq!((&last["ended_by"], &last["code"]), (&json!("itself"), &json!(7)));
    assert_eq!((&last["signal"], &last["oom_killed"]), (&Value::Null, &json!(false)));
    let told = socket.expect_state("exit").await;
    assert_eq!((&told["ended_by"], &told["exit_code"]), (&json!("itself"), &json!(7)));

    start().await;
    let shown = daemon.client().get(&path).await.is(200);
    assert_eq!((&shown["exit_code"], &shown["last_exit"]), (&Value::Null, &last));
    daemon.power(&id, "stop").await;
    assert_eq!(ended(&daemon, &id).await["ended_by"], "signal");

    let by_command = json!({"stop": {"command": "stop"}});
    daemon.client().patch(&path, by_command).await.is(200);
    start().await;
    daemon.power(&id, "stop").await;
    assert_eq!(ended(&daemon, &id).await["ended_by"], "command");

    let stubborn = json!({
        "startup_command": "echo Ready; trap '' TERM; while :; do sleep 0.05; done",
        "stop": {"signal": "SIGTERM", "timeout": 1},
    });
    daemon.client().patch(&path, stubborn).await.is(200);
    start().await;
    daemon.power(&id, "stop").await;
    let last = ended(&daemon, &id).await;
    assert_eq!((&last["ended_by"], &last["signal"]), (&json!("grace"), &json!("SIGKILL")));
    assert!(last["uptime_s"].as_u64() >= Some(1), "{last}");
    socket
        .expect("the end of the grace", |frame| {
            frame["data"] == "exit" && frame["ended_by"] == "grace" && frame["signal"] == "SIGKILL"
        })
        .await;

    start().await;
    daemon.power(&id, "kill").await;
    assert_eq!(ended(&daemon, &id).await["ended_by"], "kill");
    daemon.close().await;
}

#[tokio::test]
async fn crashes_are_answered_with_as_many_restarts_as_there_are_in_the_budget() {
    let mut daemon = Daemon::start().await;
    let (id, starts) = (daemon.id("crashes"), daemon.id("starts"));
    let rule = json!({"max_restarts": 2, "window_s": 600, "backoff_min_s": 0, "backoff_max_s": 0});
    let spec = json!({
        "startup_command": "echo run >> runs; echo Ready; exit 3", "restart_on_crash": rule,
    });
    let made = daemon.create(&id, spec).await;
    assert_eq!(made["restart_on_crash"], rule);
    let mut socket = daemon.ws(&id).await;
    let given_up = async |daemon: &Daemon, id: &str| {
        let what = "it is given up";
        let is_so =
            |shown: &Value| shown["state"] == "offline" && shown["restarts"]["gave_up"] == true;
        daemon.shown(id, what, is_so).await
    };
    daemon.power(&id, "start").await;
    let shown = given_up(&daemon, &id).await;
    assert_eq!((&shown["state"], &shown["desired_state"]), (&json!("offline"), &json!("offline")));
    assert_eq!(shown["restarts"], json!({"count": 2, "next_at": null, "gave_up": true}));
    assert_eq!(daemon.volume_file(&made, "runs").as_deref(), Some("run\nrun\nrun\n"));
    for text in ["restart 1 of 2", "restart 2 of 2", "more than 2 times"] {
        let said = |frame: &Value| frame["data"].as_str().is_some_and(|data| data.contains(text));
        socket.expect(text, |frame| frame["event"] == "daemon_message" && said(frame)).await;
    }
    // That it was given up is not forgotten, until somebody starts it.
    daemon.restart().await;
    assert_eq!(given_up(&daemon, &id).await["state"], "offline");
    daemon.power(&id, "start").await;
    eventually("it has run three times more", SOON, async || {
        let runs = daemon.volume_file(&made, "runs").unwrap_or_default();
        if runs.lines().count() == 6 { Ok(()) } else { Err(runs) }
    })
    .await;
    given_up(&daemon, &id).await;

    // A start that fails is one of them.
    let spec = json!({
        "startup_command": "echo run >> runs; echo FAILED; exec sleep 1000", "fail_patterns": ["FAILED"],
        "restart_on_crash": rule, "stop": {"timeout": 1},
    });
    let made = daemon.create(&starts, spec).await;
    daemon.power(&starts, "start").await;
    let shown = given_up(&daemon, &starts).await;
    assert!(shown["start_error"].as_str().is_some_and(|why| why.contains("FAILED")), "{shown}");
    assert_eq!(shown["last_exit"]["reason"], shown["start_error"]);
    assert_eq!(daemon.volume_file(&made, "runs").as_deref(), Some("run\nrun\nrun\n"));
    daemon.close().await;
}

#[tokio::test]
async fn a_restart_waits_for_its_time_which_is_shown_and_can_be_called_off() {
    let daemon = Daemon::start().await;
    let id = daemon.id("waits");
    let rule = json!({"backoff_min_s": 600, "backoff_max_s": 600});
    let spec = json!({"startup_command": "echo Ready; exit 1", "restart_on_crash": rule});
    daemon.create(&id, spec).await;
    daemon.power(&id, "start").await;
    let waits = |shown: &Value| shown["restarts"]["next_at"].is_i64();
    let shown = daemon.shown(&id, "a restart is to come", waits).await;
    assert_eq!((&shown["state"], &shown["desired_state"]), (&json!("offline"), &json!("running")));
    let wait = shown["restarts"]["next_at"].as_i64().expect("a time")
        - shown["last_exit"]["at"].as_i64().expect("a time");
    assert!((295..=605).contains(&wait), "up to half of it is chance: {wait}");
    daemon.power(&id, "stop").await;
    let shown = daemon.state(&id, "offline").await;
    assert_eq!(shown["restarts"], json!({"count": 0, "next_at": null, "gave_up": false}));
    assert_eq!(shown["desired_state"], "offline");
    daemon.close().await;
}

#[tokio::test]
async fn after_a_start_of_the_host_what_was_to_run_comes_back_in_turn_and_is_no_crash() {
    let mut daemon = Daemon::start_with(|config| {
        config["supervision"] = json!({"starts_per_second": 1});
    })
    .await;
    let names = ["ran", "again", "auto", "off", "held", "last", "called-off", "wanted"];
    let ids = names.map(|name| daemon.id(name));
    let [ran, again, auto, off, held, last, called_off, wanted] = &ids;
    let command = "date +%s >> began; guest say Ready -- forever";
    let mut made = Vec::new();
    for id in &ids {
        let autostart = [auto, held, last, called_off, wanted].contains(&id);
        let spec = json!({"startup_command": command, "autostart": autostart});
        made.push(daemon.create(id, spec).await);
    }
    for id in [ran, again] {
        daemon.power(id, "start").await;
        daemon.state(id, "running").await;
    }
    daemon.power(held, "suspend").await;
    daemon.state(held, "suspended").await;
    daemon.kill9().await;
    for id in [ran, again] {
        kill_in_engine(&daemon, id).await;
    }
    forget_the_host(&daemon);
    daemon.launch().await;
    // Six are to start. One that waits for its turn can be called off, killed, or wanted at once.
    let calling_off = async |id: &String, action: &str| {
        let begun = |shown: &Value| shown["state"] == "starting" || shown["state"] == "running";
        daemon.shown(id, "it waits for its turn", begun).await;
        daemon.power(id, action).await;
    };
    calling_off(called_off, "kill").await;
    calling_off(wanted, "start").await;
    daemon.state(wanted, "running").await;
    daemon.state(called_off, "offline").await;
    for id in [ran, again, auto, last] {
        let shown = daemon.state(id, "running").await;
        assert_eq!(shown["restarts"]["count"], 0, "{shown}");
        if id == ran || id == again {
            assert_eq!(shown["last_exit"]["ended_by"], "engine", "{shown}");
        }
    }
    let mut began: Vec<i64> = Vec::new();
    for index in [0, 1, 2, 5] {
        let container = &made[index];
        let times = daemon.volume_file(container, "began").unwrap_or_default();
        began.extend(times.lines().last().and_then(|time| time.parse::<i64>().ok()));
    }
    began.sort_unstable();
    assert!(began.len() == 4 && began[3] - began[0] >= 2, "one a second: {began:?}");
    assert_eq!(daemon.state(off, "offline").await["started_at"], Value::Null);
    daemon.state(called_off, "offline").await;
    daemon.state(held, "suspended").await;

    // A restart of lightd alone starts nothing.
    daemon.power(auto, "kill").await;
    daemon.state(auto, "offline").await;
    daemon.restart().await;
    daemon.state(ran, "running").await;
    daemon.state(auto, "offline").await;
    daemon.close().await;
}

#[tokio::test]
async fn what_is_suspended_stays_so_over_restarts_and_lets_nobody_in() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("held");
    daemon.run(&id, json!({"restart_on_crash": true, "autostart": true})).await;
    let mut socket = daemon.ws(&id).await;
    daemon.power(&id, "suspend").await;
    assert_eq!(socket.expect_close().await, 4409);
    daemon.state(&id, "suspended").await;
    assert_eq!(daemon.inspect(&id).await["State"]["Running"], false);
    daemon.kill9().await;
    forget_the_host(&daemon);
    daemon.launch().await;
    let path = format!("/containers/{id}");
    let shown = daemon.state(&id, "suspended").await;
    assert_eq!(
        (&shown["last_exit"]["ended_by"], &shown["desired_state"]),
        (&json!("signal"), &json!("offline"))
    );
    for action in ["start", "restart", "reinstall"] {
        let answer = daemon.client().post(&format!("{path}/{action}"), json!({})).await;
        answer.refused(409, "suspended");
    }
    assert_eq!(daemon.ws(&id).await.expect_close().await, 4409);
    for action in ["stop", "kill", "suspend"] {
        daemon.power(&id, action).await;
    }
    // Somebody starts it behind our back.
    let name = format!("lightd-{id}");
    let options = None::<bollard::query_parameters::StartContainerOptions>;
    daemon.docker.start_container(&name, options).await.expect("a start");
    eventually("it is ended again", SOON, async || {
        let state = daemon.inspect(&id).await["State"].clone();
        if state["Running"] == false { Ok(()) } else { Err(state) }
    })
    .await;
    daemon.power(&id, "unsuspend").await;
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_wish_takes_no_body_and_says_so_where_one_asks_for_something() {
    let daemon = Daemon::start().await;
    let id = daemon.id("bodies");
    daemon.run(&id, json!({})).await;
    let client = daemon.client();
    for action in ["stop", "kill", "restart", "pause"] {
        let path = format!("/containers/{id}/{action}");
        client.post(&path, json!({"timeout": 1})).await.names_field("timeout");
        client.post(&path, json!([1])).await.refused(400, "invalid_json");
    }
    daemon.state(&id, "running").await;
    for nothing in [json!({}), json!([]), Value::Null] {
        client.post(&format!("/containers/{id}/start"), nothing).await.is(202);
    }
    daemon.close().await;
}
