//! A container's WebSocket: everything that comes out of it and everything that may be sent in.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;
use crate::support::{SOON, STATS_FIELDS};

/// A server that answers what it is told, and ends when told so.
fn talker(tty: bool) -> Value {
    json!({
        "tty": tty,
        "startup_command":
            "echo Ready; while read line; do test \"$line\" = end && exit 5; echo \"got $line\"; done",
    })
}

fn is(event: &str) -> impl FnMut(&Value) -> bool {
    move |frame| frame["event"] == event
}

#[tokio::test]
async fn a_life_is_told_from_the_first_frame_to_the_last() {
    let daemon = Daemon::start().await;
    let id = daemon.id("life");
    daemon.create(&id, talker(false)).await;
    let mut socket = daemon.ws(&id).await;
    assert_eq!(socket.next().await, json!({"event": "event", "data": "ready", "since": "0"}));

    socket.send(json!({"event": "power", "action": "start"})).await;
    socket.expect_state("starting").await;
    let first = socket.expect("console output", is("console")).await;
    assert_eq!((&first["data"], &first["seq"]), (&json!("Ready\n"), &json!(1)));
    let running = socket.expect_state("running").await;
    assert!(running["ready_after_ms"].is_u64(), "{running}");
    // The volume is counted beside the rest, and may come a moment later.
    let whole = |frame: &Value| frame["event"] == "stats" && frame["disk_usage"].is_u64();
    let stats = socket.expect("figures", whole).await;
    for field in STATS_FIELDS {
        assert!(stats[field].is_number(), "{field}: {stats}");
    }
    assert_eq!(stats["memory_limit"], 64 << 20);

    socket.send(json!({"event": "send_command", "command": "hello"})).await;
    let answer = socket.expect("an answer", is("console")).await;
    assert_eq!((&answer["data"], &answer["seq"]), (&json!("got hello\n"), &json!(2)));

    socket.send(json!({"event": "power", "action": "restart"})).await;
    for state in ["stopping", "exit", "starting", "running"] {
        socket.expect_state(state).await;
    }
    socket.send(json!({"event": "send_command", "command": "end"})).await;
    let exit = socket.expect_state("exit").await;
    assert_eq!((&exit["exit_code"], &exit["oom_killed"]), (&json!(5), &json!(false)));
    socket.expect_state("stopped").await;
    let last_exit = daemon.state(&id, "offline").await["last_exit"].clone();
    for (field, value) in last_exit.as_object().expect("an object") {
        assert_eq!(exit.get(field), Some(value), "{field}: {exit}");
    }

    socket.send(json!({"event": "power", "action": "start"})).await;
    socket.expect_state("running").await;
    socket.send(json!({"event": "power", "action": "kill"})).await;
    assert_eq!(socket.expect_state("exit").await["exit_code"], 137);
    socket.expect_state("stopped").await;
    socket.send(json!({"event": "power", "action": "start"})).await;
    socket.expect_state("running").await;
    socket.send(json!({"event": "power", "action": "stop"})).await;
    socket.expect_state("stopping").await;
    socket.expect_state("stopped").await;

    let mut late = daemon.ws(&id).await;
    assert_eq!(late.next().await["data"], "stopped", "the present state comes first");
    daemon.close().await;
}

#[tokio::test]
async fn an_install_is_told_with_messages_and_its_output() {
    let daemon = Daemon::start().await;
    let id = daemon.id("install");
    let script = "until test -e /mnt/server/go; do sleep 0.1; done; echo out; exit 4";
    let spec = daemon.spec(&id, json!({"install_script": script})).await;
    daemon.client().post("/containers", spec.clone()).await.is(201);
    let mut socket = daemon.ws(&id).await;
    socket.expect_state("installing").await;
    let volume = spec["volume_id"].as_str().expect("an id");
    let go = json!({"path": "go", "content": ""});
    daemon.client().post(&format!("/volumes/{volume}/files"), go).await.is(201);
    socket.expect_console("out\n").await;
    socket.expect_state("failed").await;

    daemon
        .client()
        .post(&format!("/containers/{id}/reinstall"), json!({"install_script": "true"}))
        .await
        .is(202);
    socket.expect_state("installing").await;
    let message = socket.expect("a message", is("daemon_message")).await;
    assert!(message["data"].as_str().is_some_and(|text| !text.is_empty()), "{message}");
    socket.expect_state("ready").await;
    daemon.close().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_an_error_event_and_the_socket_goes_on() {
    let daemon = Daemon::start().await;
    let id = daemon.id("errors");
    daemon.create(&id, talker(true)).await;
    let mut socket = daemon.ws(&id).await;
    for (text, code) in [
        ("nonsense", "invalid_json"),
        ("", "invalid_json"),
        ("[1]", "invalid_json"),
        ("null", "invalid_json"),
        ("{}", "unknown_event"),
        (r#"{"event": "reboot"}"#, "unknown_event"),
        (r#"{"event": 7}"#, "unknown_event"),
        (r#"{"event": "power"}"#, "invalid"),
        (r#"{"event": "power", "action": "explode"}"#, "invalid"),
        (r#"{"event": "send_command"}"#, "invalid"),
        (r#"{"event": "send_command", "command": 5}"#, "invalid"),
        (r#"{"event": "request_logs", "lines": -1}"#, "invalid"),
        (r#"{"event": "send_command", "command": "x"}"#, "not_running"),
    ] {
        socket.send_text(text).await;
        let refusal = socket.expect("a refusal", is("error")).await;
        assert_eq!(refusal["code"], code, "{text}: {refusal}");
        assert!(refusal["data"].as_str().is_some_and(|text| !text.is_empty()), "{refusal}");
    }
    socket.send_message(Message::binary(vec![1, 2, 3])).await;
    assert_eq!(socket.expect("a refusal", is("error")).await["code"], "invalid_json");
    socket.send(json!({"event": "request_logs"})).await;
    socket.expect("an answer", is("logs")).await;
    // Twenty a second, and a few more at once.
    for _ in 0..120 {
        socket.send(json!({"event": "request_logs", "lines": 1})).await;
    }
    let slow_down = socket.expect("a limit", is("error")).await;
    assert_eq!(slow_down["code"], "rate_limited");
    let mut other = daemon.ws(&id).await;
    other.send_text(&"x".repeat(100_000)).await;
    assert_eq!(other.expect_close().await, 1009);
    daemon.close().await;
}

#[tokio::test]
async fn an_upgrade_is_refused_before_it_happens() {
    let daemon = Daemon::start().await;
    let id = daemon.id("refused");
    daemon.create(&id, json!({})).await;
    for (url, status, code) in [
        (format!("ws://127.0.0.1:{}/ws/{id}", daemon.port), 401, "unauthorized"),
        (daemon.ws_url(&id, "lightd_nobodys_token_at_all", ""), 401, "unauthorized"),
        (daemon.ws_url("nobody", "lightd_nobodys_token_at_all", ""), 401, "unauthorized"),
        (daemon.ws_url("nobody", &daemon.token, ""), 404, "not_found"),
        (daemon.ws_url("-x", &daemon.token, ""), 400, "invalid_parameter"),
        (daemon.ws_url(&id, &daemon.token, "&events=console,nonsense"), 400, "invalid"),
        (daemon.ws_url(&id, &daemon.token, "&since=yesterday"), 400, "invalid"),
    ] {
        let (got, body) = Socket::try_open(&url).await.expect_err("a refusal");
        assert_eq!((got, &body["code"]), (status, &json!(code)), "{url} {body}");
        assert!(body["error"].is_string(), "{url} {body}");
    }
    // No upgrade was asked for.
    let plain = daemon.client().without_accept().get(&format!("/ws/{id}")).await;
    plain.refused(400, "not_a_websocket");
    // The token may come in the header, for those who can set one.
    assert!(!daemon.log().contains(&daemon.token), "the log shows a token");
    daemon.close().await;
}

#[tokio::test]
async fn a_subscription_leaves_out_what_was_not_asked_for() {
    let daemon = Daemon::start().await;
    let id = daemon.id("some");
    daemon.create(&id, talker(false)).await;
    let mut console = Socket::open(&daemon.ws_url(&id, &daemon.token, "&events=console")).await;
    let mut events = Socket::open(&daemon.ws_url(&id, &daemon.token, "&events=event,stats")).await;
    events.expect_state("ready").await;
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    let command = json!({"command": "one"});
    daemon.client().post(&format!("/containers/{id}/command"), command).await.is(202);
    let mut others = Vec::new();
    console
        .expect("the answer", |frame| {
            if frame["event"] != "console" {
                others.push(frame.clone());
            }
            frame["data"] == "got one\n"
        })
        .await;
    assert_eq!(others, Vec::<Value>::new());
    events
        .expect("no console until the end", |frame| {
            assert!(
                ["event", "stats"].contains(&frame["event"].as_str().expect("a name")),
                "{frame}"
            );
            frame["data"] == "running"
        })
        .await;
    daemon.close().await;
}

#[tokio::test]
async fn history_is_sent_on_request_and_a_reader_that_comes_back_gets_what_it_missed() {
    let daemon = Daemon::start().await;
    let id = daemon.id("since");
    daemon.run(&id, talker(false)).await;
    let say = async |text: &str| {
        let path = format!("/containers/{id}/command");
        daemon.client().post(&path, json!({"command": text})).await.is(202);
    };
    let mut first = daemon.ws(&id).await;
    first.send(json!({"event": "request_logs", "lines": 10})).await;
    let logs = first.expect("history", is("logs")).await;
    let whole = json!({
        "event": "logs", "data": "Ready\n", "seq": 1, "first_seq": 1, "complete": true, "cut_at_start": false,
        "lines_lost": 0,
    });
    assert_eq!(logs, whole);
    say("one").await;
    let seen = first.expect("a line", is("console")).await;
    assert_eq!((&seen["data"], &seen["seq"]), (&json!("got one\n"), &json!(2)));
    drop(first);
    for text in ["two", "three"] {
        say(text).await;
    }
    daemon.expect_log(&id, "got three").await;

    let mut back = Socket::open(&daemon.ws_url(&id, &daemon.token, "&since=2")).await;
    let mut missed = String::new();
    let last = back
        .expect("what was missed", |frame| {
            if frame["event"] == "console" {
                missed.push_str(frame["data"].as_str().expect("a text"));
            }
            frame["seq"] == 4
        })
        .await;
    assert_eq!(missed, "got two\ngot three\n");
    assert_eq!(last["event"], "console");
    back.send(json!({"event": "request_logs", "lines": 2})).await;
    let logs = back.expect("history", is("logs")).await;
    assert_eq!(logs["data"], "got two\ngot three\n");
    back.send(json!({"event": "request_logs", "since": 3})).await;
    assert_eq!(back.expect("history", is("logs")).await["data"], "got three\n");
    let run = daemon.state(&id, "running").await["run"].clone();
    for (more, data, first_seq) in [
        (json!({"before": 3}), "Ready\ngot one\n", json!(1)),
        (json!({"grep": "^got t", "lines": 1}), "got three\n", json!(4)),
        (json!({"grep": "^got t", "run": run}), "got two\ngot three\n", json!(3)),
        (json!({"run": 99}), "", Value::Null),
    ] {
        let mut ask = json!({"event": "request_logs", "id": "again"});
        let fields = more.as_object().expect("an object").clone();
        ask.as_object_mut().expect("an object").extend(fields);
        back.send(ask).await;
        let logs = back.expect("history", is("logs")).await;
        assert_eq!((&logs["data"], &logs["first_seq"]), (&json!(data), &first_seq), "{more}");
    }
    for (more, named) in [
        (json!({"lines": 10_001}), "lines"),
        (json!({"grep": "["}), "grep"),
        (json!({"since": 3, "before": 3}), "before"),
        (json!({"gerp": "x"}), "gerp"),
    ] {
        let mut ask = json!({"event": "request_logs", "id": "wrong"});
        ask.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        back.send(ask).await;
        let refusal = back.expect("a refusal", is("error")).await;
        assert_eq!((&refusal["code"], &refusal["id"]), (&json!("invalid"), &json!("wrong")));
        assert!(refusal["data"].as_str().is_some_and(|why| why.contains(named)), "{refusal}");
    }
    say("four").await;
    let next = back.expect("a line", is("console")).await;
    assert_eq!((&next["data"], &next["seq"]), (&json!("got four\n"), &json!(5)));
    // One who has all there is gets nothing twice.
    let mut current = Socket::open(&daemon.ws_url(&id, &daemon.token, "&since=5")).await;
    say("five").await;
    assert_eq!(current.expect("a line", is("console")).await["data"], "got five\n");
    daemon.close().await;
}

#[tokio::test]
async fn a_prompt_without_a_line_end_is_seen_and_continued() {
    let daemon = Daemon::start().await;
    let id = daemon.id("prompt");
    daemon.create(&id, json!({
        "startup_command":
            r"printf 'Name? '; read name; printf '\033[31mhello\033[0m %s\n\377\n' $name; guest forever",
        "start_pattern": r"Name\?", "tty": false,
    })).await;
    let mut socket = daemon.ws(&id).await;
    daemon.power(&id, "start").await;
    let prompt = socket.expect("the prompt", is("console")).await;
    assert_eq!(prompt["data"], "Name? ");
    assert_eq!((&prompt["partial"], &prompt["seq"]), (&json!(true), &json!(1)));
    daemon.state(&id, "running").await;
    socket.send(json!({"event": "send_command", "command": "you"})).await;
    let mut text = String::new();
    socket
        .expect("the rest", |frame| {
            if frame["event"] == "console" {
                text.push_str(frame["data"].as_str().expect("a text"));
            }
            text.ends_with("\u{fffd}\n")
        })
        .await;
    assert_eq!(
        text, "\u{1b}[31mhello\u{1b}[0m you\n\u{fffd}\n",
        "colours stay, nothing is repeated"
    );
    daemon.close().await;
}

#[tokio::test]
async fn a_reader_that_keeps_up_misses_no_line() {
    const LINES: u64 = 50_000;
    let daemon = Daemon::start().await;
    let id = daemon.id("lines");
    let command = format!("read x; guest lines {LINES} 60; echo all-told; guest forever");
    daemon
        .create(
            &id,
            json!({
                "startup_command": format!("echo Ready; {command}"), "tty": false,
                "limits": {"memory": 64 << 20},
            }),
        )
        .await;
    let mut socket = Socket::open(&daemon.ws_url(&id, &daemon.token, "&events=console")).await;
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    socket.send(json!({"event": "send_command", "command": "go"})).await;
    let (mut next, mut rest) = (1, String::new());
    socket
        .expect("all lines", |frame| {
            rest.push_str(frame["data"].as_str().expect("a text"));
            let whole = rest.rfind('\n').map_or(0, |at| at + 1);
            for line in rest[..whole].lines() {
                if let Some(number) = line.strip_prefix("line ") {
                    let number = number.split(' ').next().expect("a number");
                    assert_eq!(number, next.to_string(), "after {}", next - 1);
                    next += 1;
                }
            }
            let is_end = rest.contains("all-told\n");
            rest.drain(..whole);
            if is_end {
                assert_eq!(frame["seq"], LINES + 2, "{frame}");
            }
            is_end
        })
        .await;
    assert_eq!(next, LINES + 1);
    daemon.close().await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_and_is_told_what_it_lost() {
    let daemon = Daemon::start_with(|config| {
        config["console"] = json!({"ring_bytes": 16 << 10, "journal_bytes": 64 << 10});
    })
    .await;
    let id = daemon.id("slow");
    daemon.create(&id, json!({
        "startup_command": "echo Ready; read x; guest lines 300000 100; echo all-told; guest forever",
        "tty": false, "limits": {"memory": 64 << 20},
    })).await;
    let mut slow =
        Socket::open(&daemon.ws_url(&id, &daemon.token, "&events=console,daemon_message")).await;
    daemon.power(&id, "start").await;
    slow.expect_console("Ready").await;
    let command = json!({"command": "go"});
    daemon.client().post(&format!("/containers/{id}/command"), command).await.is(202);
    // The workload gets to its end while this reader takes nothing.
    daemon.expect_log(&id, "all-told").await;
    let mut lost = 0;
    slow.expect_within(SOON * 2, "the loss and the end", |frame| {
        let text = frame["data"].as_str().unwrap_or_default();
        if frame["event"] == "daemon_message" && text.contains("lines") {
            let number = text.split(' ').next().expect("a number");
            lost += number.parse::<u64>().unwrap_or_else(|_| panic!("{text}"));
        }
        text.contains("all-told")
    })
    .await;
    assert!(lost > 1000, "{lost}");
    // As is one who comes back for what is no longer there.
    let mut late = Socket::open(&daemon.ws_url(&id, &daemon.token, "&since=1")).await;
    let told = late.expect("the loss", is("daemon_message")).await;
    assert!(told["data"].as_str().is_some_and(|text| text.contains("lines")), "{told}");
    let next = late.expect("what is left", is("console")).await;
    assert!(next["seq"].as_u64() > Some(1000), "{next}");
    daemon.close().await;
}

#[tokio::test]
async fn sockets_end_with_the_reason() {
    let mut daemon = Daemon::start().await;
    let (gone, stays) = (daemon.id("gone"), daemon.id("stays"));
    for id in [&gone, &stays] {
        daemon.create(id, json!({})).await;
    }
    let mut of_gone = daemon.ws(&gone).await;
    let mut of_stays = daemon.ws(&stays).await;
    of_gone.expect_state("ready").await;
    daemon.client().delete(&format!("/containers/{gone}")).await.is(200);
    assert_eq!(of_gone.expect_close().await, 4404);
    let mut suspended = daemon.ws(&stays).await;
    daemon.power(&stays, "suspend").await;
    assert_eq!(suspended.expect_close().await, 4409);
    assert_eq!(of_stays.expect_close().await, 4409);
    daemon.power(&stays, "unsuspend").await;
    let mut last = daemon.ws(&stays).await;
    last.expect_state("ready").await;
    daemon.terminate().await;
    assert_eq!(last.expect_close().await, 1001);
    daemon.launch().await;
    daemon.close().await;
}

#[tokio::test]
async fn sockets_are_capped_by_the_configuration() {
    let daemon = Daemon::start_with(|config| {
        config["sockets"] = json!({
            "per_container": 2, "per_node": 3, "frame_max_bytes": 2048, "frames_per_second": 2,
        });
    })
    .await;
    let (a, b) = (daemon.id("a"), daemon.id("b"));
    daemon.create(&a, json!({})).await;
    daemon.create(&b, json!({})).await;
    let refused = async |id: &str| {
        let refusal = Socket::try_open(&daemon.ws_url(id, &daemon.token, "")).await;
        let (status, body) = refusal.expect_err("a refusal");
        assert_eq!((status, &body["code"]), (429, &json!("too_many_sockets")), "{body}");
    };
    let (mut first, second) = (daemon.ws(&a).await, daemon.ws(&a).await);
    refused(&a).await;
    let third = daemon.ws(&b).await;
    refused(&b).await;
    drop((second, third));

    first.send_text(&format!("{:2048}", "{}")).await;
    assert_eq!(first.expect("a refusal", is("error")).await["code"], "unknown_event");
    first.send_text(&" ".repeat(2049)).await;
    assert_eq!(first.expect_close().await, 1009);

    // Places are free again as soon as lightd has seen that a socket is gone.
    let mut flooding = eventually("a free place", SOON, async || {
        Socket::try_open(&daemon.ws_url(&a, &daemon.token, "")).await.map_err(|(status, _)| status)
    })
    .await;
    for _ in 0..7 {
        flooding.send(json!({})).await;
    }
    let mut codes = Vec::new();
    while codes.last().is_none_or(|code| code != "rate_limited") {
        let refusal = flooding.expect("a refusal", is("error")).await;
        codes.push(refusal["code"].as_str().expect("a code").to_owned());
    }
    assert!((6..=7).contains(&codes.len()), "six at once are taken: {codes:?}");
    for _ in 0..240 {
        flooding.send(json!({})).await;
    }
    assert_eq!(flooding.expect_close().await, 1008);
    daemon.close().await;
}
