//! After a kill of lightd, whatever it was doing: what was begun is finished or undone, once; row, pool and
//! engine say the same; and the console has every line, once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::agreement::{agree, all_lines, in_engine};
use crate::support::chaos::Door;
use crate::support::numbers::free_ports;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

/// Waits for the file `go` in the volume.
const WAIT_FOR_GO: &str = "until test -e /home/container/go; do sleep 0.02; done";

/// The numbers behind a prefix must be 1, 2, 3 and so on.
fn assert_counts_up(lines: &[String], prefix: &str) {
    let numbers = lines.iter().filter_map(|line| line.strip_prefix(prefix)?.parse().ok());
    let numbers: Vec<u64> = numbers.collect();
    let seam = numbers.iter().zip(1..).find(|(number, wanted)| **number != *wanted);
    assert_eq!(seam, None, "{prefix}: found and wanted, among {} lines", numbers.len());
    assert!(numbers.len() > 1, "{prefix}: nothing was printed");
}

fn go(daemon: &Daemon, container: &Value) {
    let volume = container["volume_id"].as_str().expect("a volume");
    let path = daemon.data_path().join("volumes").join(volume).join("go");
    std::fs::File::create(path).expect("a file in the volume");
}

async fn last_seq(daemon: &Daemon, id: &str) -> u64 {
    let page = daemon.client().get(&format!("/containers/{id}/logs?lines=1")).await.is(200);
    page["seq"].as_u64().expect("a number")
}

async fn grows_by(daemon: &Daemon, id: &str, lines: u64) {
    let wanted = last_seq(daemon, id).await + lines;
    eventually("the console grows", SOON, async || {
        let seen = last_seq(daemon, id).await;
        if seen >= wanted { Ok(()) } else { Err(seen) }
    })
    .await;
}

async fn engine_ended(daemon: &Daemon, id: &str) {
    eventually("the engine has seen it end", SOON, async || {
        let state = daemon.inspect(id).await["State"].clone();
        if state["Status"] == "exited" { Ok(()) } else { Err(state) }
    })
    .await;
}

/// The moment of a kill is what is varied here; nothing is waited for.
async fn some_time(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Reads whole lines behind `since` from a socket until there are `more`, each under its number.
async fn read_lines(daemon: &Daemon, id: &str, since: u64, more: usize) -> Vec<(u64, String)> {
    let query = format!("&events=console,daemon_message&since={since}");
    let mut socket = Socket::open(&daemon.ws_url(id, &daemon.token, &query)).await;
    let mut heard = Vec::new();
    while heard.len() < more {
        let frame = socket.next().await;
        assert_eq!(frame["event"], "console", "nothing is lost: {frame}");
        assert_eq!(frame.get("partial"), None, "{frame}");
        let lines = frame["data"].as_str().expect("a text").lines();
        let last = frame["seq"].as_u64().expect("a number");
        let first = last + 1 - lines.clone().count() as u64;
        heard.extend((first..).zip(lines.map(str::to_owned)));
    }
    heard
}

#[tokio::test]
async fn a_reader_that_comes_back_after_kills_has_each_line_once_under_its_number() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("reader");
    let counts = "n=0; while :; do n=$((n+1)); echo o$n; echo e$n >&2; \
                  test $((n % 4)) = 0 && sleep 0.01; done";
    let spec = json!({"startup_command": counts, "tty": false, "start_pattern": "o1"});
    daemon.run(&id, spec).await;
    let mut heard: Vec<(u64, String)> = Vec::new();
    for _ in 0..6 {
        let since = heard.last().map_or(0, |(seq, _)| *seq);
        heard.extend(read_lines(&daemon, &id, since, 300).await);
        daemon.kill9().await;
        daemon.launch().await;
    }
    grows_by(&daemon, &id, 100).await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    let stored = all_lines(&daemon, &id).await;
    let stored: Vec<(u64, String)> = (1..).zip(stored).take(heard.len()).collect();
    let differs = heard.iter().zip(&stored).find(|(heard, stored)| heard != stored);
    assert_eq!(differs, None, "heard and stored");
    daemon.close().await;
}

#[tokio::test]
async fn lines_of_both_streams_come_once_and_in_order_over_many_kills() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("counts");
    let counts = "n=0; while :; do n=$((n+1)); echo o$n; echo e$n >&2; \
                  test $((n % 4)) = 0 && sleep 0.01; done";
    let spec = json!({"startup_command": counts, "tty": false, "start_pattern": "o1"});
    let before = daemon.run(&id, spec).await;
    for away_ms in [0, 150, 0, 400, 50, 0] {
        grows_by(&daemon, &id, 40).await;
        daemon.kill9().await;
        some_time(away_ms).await;
        daemon.launch().await;
    }
    let after = daemon.state(&id, "running").await;
    assert_eq!(after["container_id"], before["container_id"]);
    grows_by(&daemon, &id, 100).await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    let lines = all_lines(&daemon, &id).await;
    assert_counts_up(&lines, "o");
    assert_counts_up(&lines, "e");
    assert!(lines.iter().all(|line| line.starts_with(['o', 'e'])), "{lines:?}");
    daemon.close().await;
}

#[tokio::test]
async fn a_run_that_ended_while_lightd_was_away_is_judged_with_its_last_lines() {
    let mut daemon = Daemon::start().await;
    let (plain, again) = (daemon.id("plain"), daemon.id("again"));
    let command = format!("echo first words; {WAIT_FOR_GO}; echo last words; exit 7");
    let spec = json!({"startup_command": command, "tty": false, "start_pattern": "first"});
    let shown = daemon.run(&plain, spec.clone()).await;
    let command =
        "echo run >> runs; test $(wc -l < runs) = 2 && sleep 1000; ".to_owned() + &command;
    let spec = json!({
        "startup_command": command, "tty": false, "start_pattern": null, "restart_on_crash": true,
    });
    let crashing = daemon.run(&again, spec).await;
    daemon.kill9().await;
    for (id, container) in [(&plain, &shown), (&again, &crashing)] {
        go(&daemon, container);
        engine_ended(&daemon, id).await;
    }
    daemon.launch().await;
    let ended = daemon.state(&plain, "offline").await;
    assert_eq!(ended["exit_code"], 7);
    assert_eq!(all_lines(&daemon, &plain).await, ["first words", "last words"]);
    daemon.shown(&again, "it runs again", |shown| shown["state"] == "running").await;
    // Running is what the engine has started; the workload writes a moment later.
    eventually("it has run twice", SOON, async || {
        let runs = daemon.volume_file(&crashing, "runs");
        if runs.as_deref() == Some("run\nrun\n") { Ok(()) } else { Err(runs) }
    })
    .await;
    assert_eq!(all_lines(&daemon, &again).await, ["first words", "last words"]);
    daemon.close().await;
}

#[tokio::test]
async fn a_start_pattern_that_passed_while_lightd_was_away_is_recognised() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("slow");
    let command = format!("echo loading; {WAIT_FOR_GO}; echo all up; echo > said; guest forever");
    let spec = json!({"startup_command": command, "start_pattern": "all up"});
    let shown = daemon.create(&id, spec).await;
    daemon.power(&id, "start").await;
    daemon.expect_log(&id, "loading").await;
    daemon.kill9().await;
    go(&daemon, &shown);
    eventually("it has said that it is up", SOON, async || {
        daemon.volume_file(&shown, "said").ok_or("not yet")
    })
    .await;
    daemon.launch().await;
    daemon.state(&id, "running").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_paused_workload_is_left_in_peace_and_followed_when_it_goes_on() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("paused");
    let counts = "n=0; while :; do n=$((n+1)); echo n$n; sleep 0.01; done";
    let spec = json!({"startup_command": counts, "tty": false, "start_pattern": "n1"});
    daemon.run(&id, spec).await;
    grows_by(&daemon, &id, 20).await;
    daemon.power(&id, "pause").await;
    daemon.state(&id, "paused").await;
    daemon.kill9().await;
    daemon.launch().await;
    daemon.state(&id, "paused").await;
    daemon.power(&id, "resume").await;
    daemon.state(&id, "running").await;
    grows_by(&daemon, &id, 50).await;
    assert_counts_up(&all_lines(&daemon, &id).await, "n");
    assert!(!daemon.log().contains("cannot attach"), "the engine attaches nobody to a paused one");
    daemon.close().await;
}

#[tokio::test]
async fn an_install_that_ended_while_lightd_was_away_is_judged_and_its_log_is_whole() {
    let mut daemon = Daemon::start().await;
    for (name, code, outcome) in [("well", 0, "ready"), ("badly", 7, "failed")] {
        let id = daemon.id(name);
        let script = format!(
            "echo run >> runs; echo begun; {WAIT_FOR_GO}; seq 1 50; echo x > /kept; exit {code}"
        );
        let spec = daemon.spec(&id, json!({"install_script": script})).await;
        daemon.client().post("/containers", spec.clone()).await.is(201);
        daemon.expect_log(&id, "begun").await;
        daemon.kill9().await;
        go(&daemon, &spec);
        eventually("the script has ended", SOON, async || {
            let name = format!("lightd.install-{id}");
            let found = daemon.docker.inspect_container(&name, None).await;
            let state = found.expect("an install container").state.expect("a state");
            if state.running == Some(false) { Ok(()) } else { Err(state) }
        })
        .await;
        daemon.launch().await;
        let shown = daemon.install_state(&id, outcome).await;
        let reason = shown["install_error"].as_str().unwrap_or_default();
        assert_eq!(reason.contains("exit code 7"), code == 7, "{reason}");
        assert_eq!(daemon.volume_file(&shown, "runs").as_deref(), Some("run\n"));
        let wanted: Vec<String> =
            ["begun".to_owned()].into_iter().chain((1..=50).map(|n| n.to_string())).collect();
        assert_eq!(all_lines(&daemon, &id).await, wanted, "the console");
        let log = daemon.client().get(&format!("/containers/{id}/install-log")).await.is(200);
        let log = log["data"].as_str().expect("a text");
        assert_eq!(log.lines().collect::<Vec<_>>(), wanted, "the install's log");
        eventually("the install container is gone", SOON, async || {
            let left: Vec<_> =
                in_engine(&daemon).await.into_iter().filter(|c| c.0.contains("install")).collect();
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_script_runs_once_at_whichever_moment_of_its_end_lightd_is_killed() {
    let mut daemon = Daemon::start().await;
    for (n, delay_ms) in [0, 15, 40, 80, 140, 220, 320].into_iter().enumerate() {
        let id = daemon.id(&format!("once{n}"));
        let script = "echo run >> runs; echo x > /kept; echo over";
        let spec = daemon.spec(&id, json!({"install_script": script})).await;
        daemon.client().post("/containers", spec.clone()).await.is(201);
        daemon.expect_log(&id, "over").await;
        some_time(delay_ms).await;
        daemon.kill9().await;
        daemon.launch().await;
        let shown = daemon.install_state(&id, "ready").await;
        let runs = daemon.volume_file(&shown, "runs");
        assert_eq!(runs.as_deref(), Some("run\n"), "killed {delay_ms} ms after its last line");
        assert_eq!(all_lines(&daemon, &id).await, ["over"], "killed after {delay_ms} ms");
    }
    // Also that no image, of a commit that was cut off, is left.
    daemon.close().await;
}

#[tokio::test]
async fn a_script_that_ends_while_it_is_being_attached_to_again_runs_once() {
    let (mut daemon, door) = Door::and_daemon().await;
    let id = daemon.id("race");
    let script = format!("echo run >> runs; echo begun; {WAIT_FOR_GO}; echo over");
    let spec = daemon.spec(&id, json!({"install_script": script})).await;
    daemon.client().post("/containers", spec).await.is(201);
    daemon.expect_log(&id, "begun").await;
    let shown = daemon.client().get(&format!("/containers/{id}")).await.is(200);
    daemon.kill9().await;
    door.hold_attaches();
    daemon.launch().await;
    door.attach_is_waited_for().await;
    go(&daemon, &shown);
    eventually("the script ends", SOON, async || {
        let seen = in_engine(&daemon).await;
        if seen.iter().all(|(_, _, state)| state == "exited") { Ok(()) } else { Err(seen) }
    })
    .await;
    door.let_attach();
    let shown = daemon.install_state(&id, "ready").await;
    assert_eq!(daemon.volume_file(&shown, "runs").as_deref(), Some("run\n"));
    assert_eq!(all_lines(&daemon, &id).await, ["begun", "over"]);
    daemon.close().await;
}

#[tokio::test]
async fn a_run_that_was_killed_while_it_was_being_attached_to_again_gets_nothing_of_the_next_one() {
    let (mut daemon, door) = Door::and_daemon().await;
    let id = daemon.id("twice");
    let command = "echo Up; echo one; echo two; exec guest forever";
    let spec = json!({"startup_command": command, "start_pattern": "Up", "tty": false});
    daemon.run(&id, spec).await;
    daemon.expect_log(&id, "two").await;
    daemon.kill9().await;
    door.hold_attaches();
    daemon.launch().await;
    door.attach_is_waited_for().await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    daemon.power(&id, "start").await;
    // To what has exited, and stays attached to what is started next.
    door.let_attach();
    daemon.state(&id, "running").await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    assert_eq!(all_lines(&daemon, &id).await, ["Up", "one", "two"].repeat(2));
    daemon.close().await;
}

#[tokio::test]
async fn a_start_cut_off_at_any_moment_is_one_start() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("start");
    let command = "echo run >> runs; echo Up; guest forever";
    let spec = json!({"startup_command": command, "start_pattern": "Up", "tty": false});
    let shown = daemon.create(&id, spec).await;
    let mut runs = 0;
    for delay_ms in [0, 30, 80, 150, 250, 400, 600] {
        daemon.power(&id, "start").await;
        some_time(delay_ms).await;
        daemon.kill9().await;
        daemon.launch().await;
        daemon.state(&id, "running").await;
        runs += 1;
        let written = daemon.volume_file(&shown, "runs").unwrap_or_default();
        assert_eq!(written, "run\n".repeat(runs), "killed {delay_ms} ms into a start");
        assert_eq!(all_lines(&daemon, &id).await, vec!["Up"; runs], "killed after {delay_ms} ms");
        daemon.power(&id, "kill").await;
        daemon.state(&id, "offline").await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_stop_that_lightd_did_not_outlive_is_asked_for_again_by_its_command() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("stubborn");
    // Takes the second stop.
    let command = "echo Up; n=0; while read line; do n=$((n+1)); echo asked $n; \
                   test $n = 2 && { echo saved; exit 3; }; done";
    let spec = json!({
        "startup_command": command, "start_pattern": "Up", "tty": false,
        "stop": {"command": "stop", "timeout": 60},
    });
    daemon.run(&id, spec).await;
    daemon.power(&id, "stop").await;
    daemon.expect_log(&id, "asked 1").await;
    daemon.kill9().await;
    daemon.launch().await;
    let shown = daemon.state(&id, "offline").await;
    assert_eq!(shown["exit_code"], 3, "it was asked and not killed");
    assert_eq!(all_lines(&daemon, &id).await, ["Up", "asked 1", "asked 2", "saved"]);
    daemon.close().await;
}

#[tokio::test]
async fn whatever_lightd_was_doing_when_it_was_killed_row_pool_and_engine_agree_afterwards() {
    let mut daemon = Daemon::start().await;
    let both = free_ports(2);
    for port in &both {
        let body = json!({"ip": "127.0.0.1", "port": port});
        daemon.client().post("/network/ports", body).await.is(201);
    }
    let bound = |port: u16| json!([{"ip": "127.0.0.1", "port": port}]);
    // What is asked for, from running or not, and what must come of it.
    let works = [
        ("stop", true, Some("offline")),
        ("kill", true, Some("offline")),
        ("restart", true, Some("running")),
        ("rebind-network", true, Some("running")),
        ("rebind-network", false, Some("offline")),
        ("reinstall", true, Some("offline")),
        ("reinstall", false, Some("offline")),
        ("delete", true, None),
        ("delete", false, None),
    ];
    for (n, (work, from_running, outcome)) in works.into_iter().enumerate() {
        let id = daemon.id(&format!("c{n}"));
        let spec = json!({
            "startup_command": "trap 'sleep 0.1; exit 0' TERM; echo Up; while :; do sleep 0.02; done",
            "start_pattern": "Up", "ports": bound(both[0]), "install_script": "echo x > /kept",
        });
        daemon.create(&id, spec).await;
        if from_running {
            daemon.power(&id, "start").await;
            daemon.state(&id, "running").await;
        }
        let client = daemon.client();
        let path = format!("/containers/{id}/{work}");
        let delay_ms = 60 * n as u64;
        match work {
            "delete" => {
                let path = format!("/containers/{id}");
                let asking = client.delete(&path);
                // Its answer would come with its end.
                drop(tokio::time::timeout(Duration::from_millis(delay_ms / 5), asking).await);
            }
            "rebind-network" => {
                client.post(&path, json!({"ports": bound(both[1])})).await.is(202);
                some_time(delay_ms).await;
            }
            _ => {
                client.post_empty(&path).await.is(202);
                some_time(delay_ms).await;
            }
        }
        daemon.kill9().await;
        daemon.launch().await;
        let what = format!("agreement after a kill {delay_ms} ms into: {work}");
        eventually(&what, SOON, async || agree(&daemon, &[(&id, outcome)]).await).await;
        if outcome.is_some() {
            client.delete(&format!("/containers/{id}")).await;
            eventually("it is deleted", SOON, async || agree(&daemon, &[(&id, None)]).await).await;
        }
    }
    daemon.close().await;
}

#[tokio::test]
async fn many_hands_on_the_power_switch_leave_states_and_engine_in_agreement() {
    let daemon = Daemon::start().await;
    let ids = ["a", "b", "c"].map(|name| daemon.id(name));
    for (id, pattern) in ids.iter().zip([Some("Up"), None, Some("Up")]) {
        let spec = json!({
            "startup_command": "trap 'exit 0' TERM; echo Up; while read line; do echo got $line; done",
            "start_pattern": pattern, "tty": false, "stop": {"signal": "SIGTERM", "timeout": 1},
        });
        daemon.create(id, spec).await;
    }
    let hand = async |first: usize| {
        let client = daemon.client();
        let actions = ["start", "stop", "restart", "kill", "pause", "resume", "start"];
        for n in 0..150 {
            let (id, action) = (&ids[(first + n) % 3], actions[(first * 3 + n * 5) % 7]);
            let answer = client.post_empty(&format!("/containers/{id}/{action}")).await;
            assert!(matches!(answer.status, 202 | 409 | 503), "{answer:?}");
        }
    };
    tokio::join!(hand(0), hand(1), hand(2), hand(3));
    for id in &ids {
        let (client, path) = (daemon.client(), format!("/containers/{id}/start"));
        eventually("it can be started", SOON, async || {
            let answer = client.post_empty(&path).await;
            if answer.status == 202 { Ok(()) } else { Err(answer.text) }
        })
        .await;
        let shown = daemon.state(id, "running").await;
        assert_eq!(daemon.inspect(id).await["State"]["Status"], "running", "{shown}");
        assert_eq!(daemon.inspect(id).await["Id"], shown["container_id"]);
        // The way in is that of this run, not of one before.
        let command = json!({"command": "hello"});
        daemon.client().post(&format!("/containers/{id}/command"), command).await.is(202);
        daemon.expect_log(id, "got hello").await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_network_that_was_removed_is_made_again_and_stopped_containers_start_on_it() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("offline");
    let before = daemon.run(&id, json!({})).await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    daemon.docker.remove_network(&daemon.bridge).await.expect("nothing runs on it");
    daemon.kill9().await;
    daemon.launch().await;
    let path = format!("/containers/{id}/start");
    eventually("the start is taken", SOON, async || {
        let answer = daemon.client().post_empty(&path).await;
        if answer.status == 202 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    let after = daemon.state(&id, "running").await;
    assert_ne!(after["container_id"], before["container_id"], "it knew its network by an id");
    daemon.close().await;
}

#[tokio::test]
async fn a_stream_that_was_silent_for_long_and_equal_lines_come_once_after_a_kill() {
    let mut daemon = Daemon::start().await;
    let (silent, ticks) = (daemon.id("silent"), daemon.id("ticks"));
    // More lines of the one stream than are looked through for the other.
    let command = "echo e1 >&2; echo e2 >&2; seq 1 700; echo up; sleep 1000";
    let spec = json!({"startup_command": command, "tty": false, "start_pattern": "up"});
    daemon.run(&silent, spec).await;
    // Equal lines can be told apart by nothing but their times.
    let command = "n=0; while test $n -lt 24; do n=$((n+1)); echo tick; sleep 0.15; done; exit 0";
    let spec = json!({"startup_command": command, "tty": false, "start_pattern": "tick"});
    daemon.run(&ticks, spec).await;
    for _ in 0..3 {
        grows_by(&daemon, &ticks, 3).await;
        daemon.kill9().await;
        some_time(200).await;
        daemon.launch().await;
    }
    daemon.state(&ticks, "offline").await;
    assert_eq!(all_lines(&daemon, &ticks).await, vec!["tick"; 24]);
    let lines = all_lines(&daemon, &silent).await;
    assert_eq!(lines.iter().filter(|line| line.starts_with('e')).count(), 2, "{lines:?}");
    assert_eq!(lines.len(), 703);
    daemon.close().await;
}

#[tokio::test]
async fn a_reinstall_cut_off_at_its_beginning_has_a_log_of_its_own() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("again");
    daemon.create(&id, json!({"install_script": "seq 1 5; sleep 0.3; echo over"})).await;
    for delay_ms in [0, 20, 60, 120, 250] {
        daemon.client().post(&format!("/containers/{id}/reinstall"), json!({})).await.is(202);
        some_time(delay_ms).await;
        daemon.kill9().await;
        daemon.launch().await;
        daemon.install_state(&id, "ready").await;
        let log = daemon.client().get(&format!("/containers/{id}/install-log")).await.is(200);
        assert_eq!(log["data"], "1\n2\n3\n4\n5\nover\n", "killed {delay_ms} ms into it");
    }
    daemon.close().await;
}

#[tokio::test]
async fn the_beginning_of_a_line_that_was_printed_while_nobody_read_is_told_with_its_end() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("begun");
    let command = format!(
        "echo Ready; {WAIT_FOR_GO}; printf Password:; echo > said; read line; sleep 1; \
         echo \"$line\"; read line; guest forever"
    );
    let spec = json!({"startup_command": command, "tty": false, "start_timeout": 60});
    let shown = daemon.run(&id, spec).await;
    daemon.kill9().await;
    go(&daemon, &shown);
    eventually("it is printed", SOON, async || daemon.volume_file(&shown, "said").ok_or("not yet"))
        .await;
    daemon.launch().await;
    daemon.state(&id, "running").await;
    let client = daemon.client();
    client.post(&format!("/containers/{id}/command"), json!({"command": "END"})).await.is(202);
    daemon.expect_log(&id, "Password:").await;
    for _ in 0..2 {
        daemon.kill9().await;
        daemon.launch().await;
        daemon.state(&id, "running").await;
        // Written once it is attached to again.
        client.post(&format!("/containers/{id}/command"), json!({"command": "on"})).await.is(202);
    }
    let lines = all_lines(&daemon, &id).await;
    let told = "[lightd] of the line before, this was printed while nobody read: Password:";
    assert_eq!(lines, ["Ready", "END", told]);
    daemon.close().await;
}
