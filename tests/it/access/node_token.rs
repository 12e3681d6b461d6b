//! The node's own token: shown, changed at once or with a grace, and refused where that cannot count.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::SOON;
use crate::support::client::Client;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

#[tokio::test]
async fn the_node_token_is_shown_and_changed_and_counts_within_a_moment() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("socket");
    daemon.create(&id, json!({})).await;
    let text = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let shown = daemon.cli(&["--token", "what"]);
    assert_eq!(text(&shown), format!("Current Token: {}\n", daemon.token));

    let old = daemon.client();
    let mut socket = daemon.ws(&id).await;
    let began = tokio::time::Instant::now();
    let reset = daemon.cli(&["--token", "reset"]);
    let hint = String::from_utf8_lossy(&reset.stderr);
    assert!(hint.contains("within a second"), "{hint}");
    let said = text(&reset);
    let new = said.strip_prefix("New Token: ").expect("a new token").trim_end();
    assert!(reset.status.success() && new.starts_with("lightd_") && new.len() >= 20, "{said}");
    let renewed = daemon.client().with_token(new);
    eventually("the new token counts", SOON, async || {
        let answer = renewed.get("/containers").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.status) }
    })
    .await;
    // A second, on a machine that does nothing else.
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    old.get("/containers").await.refused(401, "unauthorized");
    assert_eq!(socket.expect_close().await, 4401);
    assert_eq!(daemon.config()["authorization"]["token"], new);
    assert_eq!(daemon.config()["docker"]["node"], json!(daemon.node), "the rest is as it was");

    let set = set_token(&daemon, "lightd_chosen_by_hand_1\n");
    assert_eq!(text(&set), "New Token: lightd_chosen_by_hand_1\n");
    let chosen = daemon.client().with_token("lightd_chosen_by_hand_1");
    eventually("the chosen token counts", SOON, async || {
        let answer = chosen.get("/containers").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.status) }
    })
    .await;
    for bad in [
        "",
        "short\n",
        "lightd_short\n",
        "lightd_with spaces in it 123\n",
        "xightd_12345678901234567890\n",
    ] {
        let refused = set_token(&daemon, bad);
        assert_eq!(refused.status.code(), Some(2), "{bad:?}");
        assert!(!refused.stderr.is_empty(), "{bad:?} says nothing");
    }
    assert_eq!(daemon.config()["authorization"]["token"], "lightd_chosen_by_hand_1");
    assert_eq!(daemon.cli(&["--token", "perhaps"]).status.code(), Some(2));
    daemon.token = "lightd_chosen_by_hand_1".to_owned();
    daemon.close().await;
}

#[tokio::test]
async fn a_token_that_the_environment_sets_cannot_be_changed_in_the_file() {
    let mut daemon = Daemon::start().await;
    daemon.terminate().await;
    let before = daemon.config();
    let file_token = std::mem::replace(&mut daemon.token, "lightd_from_the_environment".to_owned());
    daemon.set_environment("LIGHTD_AUTHORIZATION__TOKEN", "lightd_from_the_environment");
    for output in
        [daemon.cli(&["--token", "reset"]), set_token(&daemon, "lightd_chosen_by_hand_1\n")]
    {
        assert_eq!(output.status.code(), Some(2));
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(why.contains("LIGHTD_AUTHORIZATION__TOKEN"), "{why}");
    }
    assert_eq!(daemon.config(), before);
    let shown = daemon.cli(&["--token", "what"]);
    assert_eq!(
        String::from_utf8_lossy(&shown.stdout),
        "Current Token: lightd_from_the_environment\n"
    );
    daemon.launch().await;
    daemon.client().get("/containers").await.is(200);
    daemon.client().with_token(&file_token).get("/containers").await.refused(401, "unauthorized");
    daemon.close().await;
}

fn set_token(daemon: &Daemon, line: &str) -> std::process::Output {
    let mut command = daemon.command(&["--token", "set"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    // Dropped after the line, so that the program sees its end.
    let mut stdin = child.stdin.take().expect("a pipe");
    // One that refuses may not read at all.
    stdin.write_all(line.as_bytes()).ok();
    drop(stdin);
    child.wait_with_output().expect("an end")
}

/// The exit code and what went to standard output.
fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn is_good(client: &Client) -> Result<(), u16> {
    let answer = client.get("/containers").await;
    if answer.status == 200 { Ok(()) } else { Err(answer.status) }
}

#[tokio::test]
async fn with_a_grace_both_tokens_are_good_also_across_a_restart_and_then_one_is() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("socket");
    daemon.create(&id, json!({})).await;
    let old = daemon.client();
    let mut socket = daemon.ws(&id).await;
    let output = daemon.cli(&["--token", "reset", "--grace", "1h"]);
    let (code, text) = said(&output);
    let token = text.strip_prefix("New Token: ").expect("a new token").trim_end().to_owned();
    assert_eq!((code, text.lines().count()), (Some(0), 1), "{text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("good until"), "{output:?}");
    let new = daemon.client().with_token(&token);
    eventually("the new token counts", SOON, async || is_good(&new).await).await;
    old.get("/containers").await.is(200);
    socket.send(json!({"event": "request_logs"})).await;
    socket.expect("an answer", |frame| frame["event"] == "logs").await;
    let shown = new.get("/remote/config").await.is(200);
    assert_eq!(shown["authorization"]["previous_token"], "***");
    for line in [&["check-config"][..], &["doctor"]] {
        let (_, text) = said(&daemon.cli(line));
        assert!(!text.contains(&token) && !text.contains(&daemon.token), "{line:?}: {text}");
    }

    daemon.restart().await;
    old.get("/containers").await.is(200);
    new.get("/containers").await.is(200);
    let mut on_old = daemon.ws(&id).await;
    // The next change ends what is left of this one.
    let (code, text) = said(&daemon.cli(&["--token", "reset", "--grace", "2s"]));
    assert_eq!(code, Some(0));
    assert_eq!(on_old.expect_close().await, 4401);
    old.get("/containers").await.refused(401, "unauthorized");
    eventually("the grace ends", SOON, async || {
        let answer = new.get("/containers").await;
        if answer.status == 401 { Ok(()) } else { Err(answer.status) }
    })
    .await;
    daemon.token = text.trim_start_matches("New Token: ").trim_end().to_owned();
    is_good(&daemon.client()).await.expect("the last one stays");
    daemon.close().await;
}

#[tokio::test]
async fn a_socket_on_the_token_before_ends_with_its_grace() {
    let mut daemon = Daemon::start().await;
    let id = daemon.id("socket");
    daemon.create(&id, json!({})).await;
    let mut socket = daemon.ws(&id).await;
    let (_, text) = said(&daemon.cli(&["--token", "reset", "--grace", "3s"]));
    let began = tokio::time::Instant::now();
    assert_eq!(socket.expect_close().await, 4401);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    daemon.token = text.trim_start_matches("New Token: ").trim_end().to_owned();
    daemon.close().await;
}

#[tokio::test]
async fn a_grace_that_cannot_count_is_refused_and_nothing_is_written() {
    let daemon = Daemon::start().await;
    let before = daemon.config();
    for line in [
        &["--token", "what", "--grace", "10m"][..],
        &["--grace", "10m"],
        &["--token", "reset", "--grace", "10"],
        &["--token", "reset", "--grace", "0s"],
        &["--token", "reset", "--grace", "8d"],
        &["--token", "reset", "--grace"],
        // What it reads is empty.
        &["--token", "set", "--grace", "10m"],
    ] {
        let output = daemon.cli(line);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{line:?} says nothing");
    }
    assert_eq!(daemon.config(), before);
    daemon.client().get("/containers").await.is(200);
    daemon.close().await;
}
