//! A console that never lies: every byte once, whatever is printed, restarted or rotated away; and an
//! input that is written at most once.

use std::fs::File;
use std::time::{Duration, SystemTime};

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::chaos::Door;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

/// Prints what it is told.
const ECHO: &str = "echo Ready; while read line; do echo \"got $line\"; done";

async fn logs(daemon: &Daemon, id: &str, query: &str) -> Value {
    daemon.client().get(&format!("/containers/{id}/logs{query}")).await.is(200)
}

/// Everything that is kept, page by page.
async fn whole_log(daemon: &Daemon, id: &str, query: &str) -> (String, u64) {
    let (mut text, mut seq) = (String::new(), 0);
    loop {
        let page = logs(daemon, id, &format!("?lines=10000&since={seq}{query}")).await;
        assert_eq!(page["lines_lost"], 0, "{page}");
        text.push_str(page["data"].as_str().expect("a text"));
        seq = page["seq"].as_u64().expect("a number");
        if page["complete"] == true {
            return (text, seq);
        }
    }
}

#[tokio::test]
async fn any_bytes_without_a_line_end_arrive_whole_and_no_character_is_cut() {
    // A first byte of 1 looks like the header of a frame; a long line has no end to wait for.
    let command = "read go; printf '\\001\\002AAAA'; yes '\u{20ac}' | head -c 400000 | tr -d '\\n'; \
                   guest flood 2; echo; echo all told; guest forever";
    let daemon = Daemon::start().await;
    for (name, tty) in [("terminal", true), ("pipes", false)] {
        let id = daemon.id(name);
        let spec = json!({
            "startup_command": command, "tty": tty, "start_pattern": null,
            "limits": {"memory": 64 << 20},
        });
        daemon.run(&id, spec).await;
        let url = daemon.ws_url(&id, &daemon.token, "&events=console&since=0");
        let mut socket = Socket::open(&url).await;
        socket.send(json!({"event": "send_command", "command": "go"})).await;
        let live = socket.expect_console("all told").await;
        let (kept, _) = whole_log(&daemon, &id, "").await;
        for (what, text) in [("live", &live), ("kept", &kept)] {
            assert!(text.contains("\u{1}\u{2}AAAA\u{20ac}"), "{what}, {name}: {:.40}", text);
            assert_eq!(text.matches('\u{20ac}').count(), 100_000, "{what}, {name}");
            assert_eq!(text.matches('.').count(), 2 << 20, "{what}, {name}");
            assert!(!text.contains('\u{fffd}'), "{what}, {name}: a character was cut");
        }
    }
    daemon.close().await;
}

#[tokio::test]
async fn the_log_reaches_back_over_runs_reinstalls_and_rebinds() {
    let daemon = Daemon::start().await;
    let id = daemon.id("past");
    let say = |text: &str| format!("guest say {text} -- forever");
    let spec = json!({"startup_command": say("first"), "tty": false, "start_pattern": null});
    daemon.run(&id, spec).await;
    daemon.expect_log(&id, "first").await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    let again = json!({"install_script": "echo installing anew"});
    daemon.client().post(&format!("/containers/{id}/reinstall"), again).await.is(202);
    daemon.expect_log(&id, "installing anew").await;
    daemon.state(&id, "offline").await;
    let patch = json!({"startup_command": say("second")});
    daemon.client().patch(&format!("/containers/{id}"), patch).await.is(200);
    daemon.power(&id, "start").await;
    daemon.expect_log(&id, "second").await;
    let body = json!({"ports": []});
    let before = daemon.state(&id, "running").await["container_id"].clone();
    daemon.client().post(&format!("/containers/{id}/rebind-network"), body).await.is(202);
    eventually("another Docker container", SOON, async || {
        let shown = daemon.client().get(&format!("/containers/{id}")).await.is(200);
        if shown["container_id"] != before && shown["state"] == "running" {
            Ok(())
        } else {
            Err(shown)
        }
    })
    .await;
    // The word of the shell on how its child ended.
    let wanted = ["first", "installing anew", "second", "Terminated", "second"];
    eventually("the second run of the second command", SOON, async || {
        let (text, _) = whole_log(&daemon, &id, "").await;
        if text.lines().eq(wanted) { Ok(()) } else { Err(text) }
    })
    .await;
    let (_, seq) = whole_log(&daemon, &id, "").await;
    assert_eq!(seq, 5, "numbers go on over all of it");
    // Each run by itself, and together they are everything.
    let mut by_run = Vec::new();
    for run in 0..12 {
        let (text, _) = whole_log(&daemon, &id, &format!("&run={run}")).await;
        by_run.extend(text.lines().map(str::to_owned));
        assert!(text.lines().count() < 3, "run {run}: {text}");
    }
    assert_eq!(by_run, wanted);
    assert_eq!(logs(&daemon, &id, "?grep=^s").await["data"], "second\nsecond\n");
    assert_eq!(logs(&daemon, &id, "?grep=^s&lines=1&since=0").await["seq"], 4);
    let mut socket = daemon.ws(&id).await;
    socket.send(json!({"event": "request_logs", "lines": 2, "since": 0, "id": 7})).await;
    let past = socket.expect("the past", |frame| frame["event"] == "logs").await;
    assert_eq!((&past["data"], &past["id"]), (&json!("first\ninstalling anew\n"), &json!(7)));
    daemon.close().await;
}

#[tokio::test]
async fn a_look_back_says_what_it_has_no_room_for_and_patterns_do_not_see_colours() {
    let daemon = Daemon::start().await;
    let id = daemon.id("room");
    let command =
        "guest lines 6000 300; printf '\\033[31mFATAL\\033[0m: bad config\\n'; guest forever";
    let spec = json!({"startup_command": command, "tty": false, "start_pattern": null});
    daemon.run(&id, spec).await;
    eventually("the last line", SOON, async || {
        let found = logs(&daemon, &id, "?grep=^FATAL:%20bad").await;
        if found["data"] == "" { Err(found) } else { Ok(found) }
    })
    .await;
    let found = logs(&daemon, &id, "?grep=^FATAL:%20bad").await;
    assert_eq!(found["data"], "\u{1b}[31mFATAL\u{1b}[0m: bad config\n", "with its colours");
    assert_eq!((&found["first_seq"], &found["complete"]), (&json!(6001), &json!(true)));

    let last = logs(&daemon, &id, "?lines=6001").await;
    assert_eq!((&last["complete"], &last["cut_at_start"]), (&json!(false), &json!(true)));
    let first_seq = last["first_seq"].as_u64().expect("a number");
    let kept = last["data"].as_str().expect("a text");
    assert_eq!(kept.lines().count() as u64, 6001 - first_seq + 1);
    let before = logs(&daemon, &id, &format!("?lines=6001&before={first_seq}")).await;
    assert_eq!((&before["complete"], &before["first_seq"]), (&json!(true), &json!(1)));
    let whole = format!("{}{kept}", before["data"].as_str().expect("a text"));
    assert_eq!(whole, whole_log(&daemon, &id, "").await.0);

    let client = daemon.client();
    for (query, field) in [
        ("since=27.5", "?since"),
        ("since=abc", "?since"),
        ("lines=-1", "?lines"),
        ("lines=10001", "?lines"),
        ("since=5&before=5", "?before"),
    ] {
        let refusal = client.get(&format!("/containers/{id}/logs?{query}")).await;
        let said = refusal.names_field(field);
        assert!(!said.to_string().contains("invalid digit"), "{said}");
    }
    daemon.close().await;
}

/// Sends numbered commands one after the other until one fails; the number of the last one that was
/// acknowledged, and of the last one that was sent.
async fn send_until_broken(socket: &mut Socket, first: u64) -> (u64, u64) {
    let mut n = first;
    loop {
        let frame = json!({"event": "send_command", "command": format!("n{n}"), "id": n});
        if socket.try_send(frame).await.is_err() {
            return (n - 1, n);
        }
        let answer = socket.try_expect(|frame| frame["id"] == n).await;
        if answer.is_none_or(|answer| answer["event"] != "done") {
            return (n - 1, n);
        }
        n += 1;
    }
}

fn numbers(text: &str) -> Vec<u64> {
    let lines = text.lines().filter_map(|line| line.trim_end().strip_prefix("got n"));
    lines.map(|number| number.parse().expect("a number")).collect()
}

#[tokio::test]
async fn commands_are_written_at_most_once_over_kills_of_lightd() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("once");
    daemon.run(&id, json!({"startup_command": ECHO, "tty": false})).await;
    let (mut acknowledged, mut next) = (Vec::new(), 1);
    for _ in 0..4 {
        let mut socket = daemon.ws(&id).await;
        let sending = send_until_broken(&mut socket, next);
        let killing = async {
            // Not a wait for something: the moment of the kill is what is varied.
            tokio::time::sleep(Duration::from_millis(150 + next % 97)).await;
            daemon.kill9().await;
        };
        let ((last, sent), ()) = tokio::join!(sending, killing);
        acknowledged.extend(next..=last);
        next = sent + 1;
        daemon.launch().await;
        daemon.state(&id, "running").await;
    }
    let mut socket = daemon.ws(&id).await;
    socket
        .send(json!({"event": "send_command", "command": format!("n{next}"), "id": "last"}))
        .await;
    socket.expect("an acknowledgement", |frame| frame["id"] == "last").await;
    daemon.expect_log(&id, &format!("got n{next}")).await;
    let (text, _) = whole_log(&daemon, &id, "").await;
    let arrived = numbers(&text);
    assert!(arrived.is_sorted_by(|a, b| a < b), "each at most once, and in order: {arrived:?}");
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    let lost: Vec<&u64> = acknowledged.iter().filter(|n| !arrived.contains(n)).collect();
    assert!(lost.is_empty(), "acknowledged and not written: {lost:?}");
    daemon.close().await;
}

#[tokio::test]
async fn commands_find_their_way_again_after_the_engines_connections_broke() {
    let (daemon, mut door) = Door::and_daemon().await;
    let id = daemon.id("door");
    daemon.run(&id, json!({"startup_command": ECHO, "tty": false})).await;
    let path = format!("/containers/{id}/command");
    let mut sent = vec![31];
    for n in 1..=30 {
        if n % 10 == 0 {
            door.shut();
        }
        let answer = daemon.client().post(&path, json!({"command": format!("n{n}")})).await;
        // One that was cut short may have been written all the same.
        match (answer.status, answer.body["code"].as_str()) {
            (202, _) | (409, Some("input_cut_short")) => sent.push(n),
            (status, _) => assert!([409, 503].contains(&status), "{}", answer.text),
        }
        if n % 10 == 0 {
            door.reopen();
            daemon.state(&id, "running").await;
        }
    }
    daemon.client().post(&path, json!({"command": "n31"})).await.is(202);
    daemon.expect_log(&id, "got n31").await;
    let (text, _) = whole_log(&daemon, &id, "").await;
    let arrived = numbers(&text);
    assert!(arrived.is_sorted_by(|a, b| a < b), "each at most once, and in order: {arrived:?}");
    assert!(arrived.iter().all(|n| sent.contains(n)), "{arrived:?}");
    // What was under way when a connection broke, the engine may have dropped; the console has what the
    // engine has.
    let in_engine = numbers(&in_engine(&daemon, &id, "all").await);
    assert_eq!(arrived, in_engine, "{text}");
    daemon.close().await;
}

#[tokio::test]
async fn a_command_that_nobody_takes_is_refused_and_the_console_goes_on() {
    let daemon = Daemon::start().await;
    let id = daemon.id("deaf");
    let deaf = "echo Ready; while :; do echo tick; sleep 0.1; done";
    daemon.run(&id, json!({"startup_command": deaf, "tty": false})).await;
    let mut socket = daemon.ws(&id).await;
    let path = format!("/containers/{id}/command");
    let large = json!({"command": "x".repeat(60_000)});
    let client = daemon.client();
    let mut refusals = Vec::new();
    // The pipe and the engine's own buffers hold some hundred KiB.
    while refusals.len() < 2 {
        let answer = client.post(&path, large.clone()).await;
        match (answer.status, answer.body["code"].as_str()) {
            (202, _) => assert_eq!(refusals, Vec::<String>::new(), "taken after a refusal"),
            (409, Some(code)) => refusals.push(code.to_owned()),
            other => panic!("{other:?}: {}", answer.text),
        }
    }
    assert!(["input_stalled", "input_cut_short"].contains(&refusals[0].as_str()), "{refusals:?}");
    assert_eq!(refusals[1], "input_stalled");
    socket.send(json!({"event": "send_command", "command": "x", "id": "a"})).await;
    let refusal = socket.expect("a refusal", |frame| frame["id"] == "a").await;
    assert_eq!((&refusal["event"], &refusal["code"]), (&json!("error"), &json!("input_stalled")));
    socket.expect_console("tick").await;
    daemon.close().await;
}

/// The last lines that the engine has kept.
async fn in_engine(daemon: &Daemon, id: &str, lines: &str) -> String {
    let options = LogsOptionsBuilder::new().stdout(true).tail(lines).build();
    let name = format!("lightd-{id}");
    let pieces: Vec<_> = daemon.docker.logs(&name, Some(options)).collect().await;
    let pieces = pieces.into_iter().filter_map(Result::ok);
    pieces.map(|piece| String::from_utf8_lossy(&piece.into_bytes()).into_owned()).collect()
}

#[tokio::test]
async fn output_that_the_engine_rotated_away_meanwhile_is_said_to_be_missing() {
    let mut daemon = Daemon::start_with(|config| {
        config["limits"]["log_max_bytes"] = json!(64 << 10);
    })
    .await;
    let id = daemon.id("rotated");
    let command = "echo Ready; until test -e go; do sleep 0.05; done; guest lines 5000 80; \
                   echo all told; until test -e on; do sleep 0.05; done; echo goes on; guest forever";
    let shown = daemon.run(&id, json!({"startup_command": command, "tty": false})).await;
    let volume = shown["volume_id"].as_str().expect("an id").to_owned();
    let touch = |daemon: &Daemon, name: &str| {
        let path = daemon.data_path().join("volumes").join(&volume).join(name);
        std::fs::File::create(path).expect("a file in the volume");
    };
    daemon.kill9().await;
    touch(&daemon, "go");
    eventually("the engine has all of it", SOON, async || {
        let log = in_engine(&daemon, &id, "1").await;
        if log.contains("all told") { Ok(()) } else { Err(log) }
    })
    .await;
    daemon.launch().await;
    daemon.expect_log(&id, "all told").await;
    daemon.kill9().await;
    touch(&daemon, "on");
    daemon.launch().await;
    daemon.expect_log(&id, "goes on").await;
    let (text, seq) = whole_log(&daemon, &id, "").await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len() as u64, seq);
    assert_eq!(lines[0], "Ready");
    assert!(
        lines[1].starts_with("[lightd] the output of ")
            && lines[1].contains(" missing here, from 20"),
        "{}",
        lines[1]
    );
    let said = lines.iter().filter(|line| line.starts_with("[lightd]")).count();
    assert_eq!(said, 1, "and it is said once");
    let left: Vec<u64> = lines[2..lines.len() - 2]
        .iter()
        .map(|line| line.split(' ').nth(1).expect("a number").parse().expect("a number"))
        .collect();
    assert!(left[0] > 100, "nothing was rotated away: {}", left[0]);
    assert!(left.iter().copied().eq(left[0]..=5000), "all that there was, once: {left:?}");
    assert_eq!(lines[lines.len() - 2..], ["all told", "goes on"]);
    daemon.close().await;
}

#[tokio::test]
async fn output_that_is_older_than_the_configuration_allows_goes_from_the_disk() {
    let mut daemon = Daemon::start_with(|config| {
        config["console"] = json!({"journal_max_age": "1h"});
    })
    .await;
    let (old, young) = (daemon.id("old"), daemon.id("young"));
    for id in [&old, &young] {
        daemon.create(id, json!({"startup_command": "echo Ready; echo first"})).await;
        daemon.power(id, "start").await;
        daemon.expect_log(id, "first").await;
        daemon.state(id, "offline").await;
    }
    daemon.terminate().await;
    let journal = daemon.data_path().join("containers").join(&old).join("console");
    let two_hours_ago = SystemTime::now() - Duration::from_secs(2 * 3600);
    for file in std::fs::read_dir(journal).expect("a journal") {
        let file = File::options().write(true).open(file.expect("a file").path()).expect("a file");
        file.set_modified(two_hours_ago).expect("a time");
    }
    daemon.launch().await;
    eventually("it is gone", SOON, async || {
        let log = daemon.logs(&old).await;
        if log.is_empty() { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(daemon.logs(&young).await.contains("first"));
    // Its numbers are not given out again.
    daemon.state(&old, "offline").await;
    daemon.power(&old, "start").await;
    let (text, seq) = eventually("its next run", SOON, async || {
        let (text, seq) = page(&daemon, &old).await;
        if text.contains("first") { Ok((text, seq)) } else { Err(text) }
    })
    .await;
    assert_eq!((text.lines().count(), seq), (2, 4), "{text}");
    daemon.close().await;
}

/// The newest lines, and the number of the last.
async fn page(daemon: &Daemon, id: &str) -> (String, u64) {
    let page = logs(daemon, id, "").await;
    let text = page["data"].as_str().expect("a text").to_owned();
    (text, page["seq"].as_u64().expect("a number"))
}
