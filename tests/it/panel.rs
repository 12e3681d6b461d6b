//! The link to the panel: what it does to it, what an operator does about that.

use std::collections::HashMap;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::SOON;
use crate::support::numbers::free_port;
use crate::support::panel::Panel;
use crate::support::process::Daemon;
use crate::support::rude::{Manners, RudePanel};
use crate::support::wait::eventually;

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn told(server: &str, status: &str) -> Value {
    json!({"event": "update", "server": server, "status": status})
}

async fn nothing_waits(daemon: &Daemon) {
    eventually("the panel has taken everything", SOON * 2, async || {
        let status = daemon.client().get("/remote/status").await.is(200);
        if status["outbox"]["waiting"] == 0 { Ok(()) } else { Err(status) }
    })
    .await;
}

/// Writes updates as a daemon would have, while none runs.
fn fill_outbox(daemon: &Daemon, servers: u32, each: u32) {
    let path = daemon.data_path().join("lightd.db");
    let mut store = rusqlite::Connection::open(path).expect("a store");
    let rows = store.transaction().expect("a transaction");
    for server in 0..servers {
        let insert =
            "INSERT INTO outbox_servers (server, last_sequence, due_ms) VALUES (?1, ?2, 0)";
        rows.execute(insert, (format!("s{server}"), each)).expect("a row");
    }
    for n in 1..=each {
        for server in 0..servers {
            let server = format!("s{server}");
            let body = told(&server, "ready").to_string();
            let insert = "INSERT INTO outbox
                (delivery, server, server_sequence, kind, body_json, created_at)
                VALUES (?1, ?2, ?3, 'result', ?4, 1)";
            let delivery = uuid::Uuid::new_v4().to_string();
            rows.execute(insert, (delivery, server, n, body)).expect("a row");
        }
    }
    rows.commit().expect("a commit");
}

#[tokio::test]
async fn whatever_the_panel_does_nothing_is_lost_and_nothing_waits_for_it() {
    let panel = RudePanel::start().await;
    let daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    for (n, manners) in Manners::NOT_TAKING.into_iter().enumerate() {
        panel.set_manners(manners);
        let id = daemon.id(&format!("rude{n}"));
        let began = Instant::now();
        daemon.run(&id, json!({})).await;
        assert!(began.elapsed() < Duration::from_secs(20), "{manners:?}: {:?}", began.elapsed());
        eventually(&format!("{manners:?} was tried"), SOON, async || {
            let heard = panel.updates();
            if heard.iter().any(|heard| heard.manners == manners) {
                Ok(())
            } else {
                Err(heard.len())
            }
        })
        .await;
        let shown = eventually("it is kept, with a reason", SOON, async || {
            let path = format!("/remote/outbox?server={id}");
            let listed = daemon.client().get(&path).await.is(200);
            let first = &listed["updates"][0];
            if first["attempts"].as_u64() > Some(0) { Ok(first.clone()) } else { Err(listed) }
        })
        .await;
        assert!(shown["error"].as_str().expect("a reason").len() > 10, "{manners:?}: {shown}");
        eventually("its health is known to be bad, and why", SOON, async || {
            let status = daemon.client().get("/remote/status").await.is(200);
            let is_known = status["error"].is_string() && status["since"].is_i64();
            if status["state"] == "unreachable" && is_known { Ok(()) } else { Err(status) }
        })
        .await;
        panel.set_manners(Manners::Well);
        nothing_waits(&daemon).await;
        let taken: Vec<Value> = panel
            .updates()
            .into_iter()
            .filter(|heard| heard.manners == Manners::Well && heard.body["server"] == id)
            .map(|heard| heard.body)
            .collect();
        assert_eq!(taken, [told(&id, "installing"), told(&id, "ready")], "{manners:?}");
    }
    let elsewhere = panel.heard().into_iter().filter(|heard| !heard.path.starts_with("/api/"));
    assert_eq!(elsewhere.count(), 0, "a redirect was followed, with the token");
    daemon.close().await;
}

#[tokio::test]
async fn lightd_boots_and_works_while_there_is_no_panel_and_tells_it_all_later() {
    let port = free_port();
    let mut daemon = Daemon::start_with(|config| {
        config["remote"] = json!({
            "enabled": true, "url": format!("http://127.0.0.1:{port}/api"),
            "token": "lightd_panel_token_0000", "health_interval": "1s",
        });
    })
    .await;
    let id = daemon.id("alone");
    daemon.run(&id, json!({})).await;
    let away = async |daemon: &Daemon| {
        eventually("the panel is known to be away", SOON, async || {
            let status = daemon.client().get("/remote/status").await.is(200);
            if status["state"] == "unreachable" { Ok(status) } else { Err(status) }
        })
        .await
    };
    let before = away(&daemon).await;
    daemon.restart().await;
    let after = away(&daemon).await;
    assert_eq!(after["since"], before["since"], "a restart does not shorten an outage");
    assert_eq!(after["outbox"]["waiting"], 2);
    let text = out(&daemon.cli(&["outbox"]));
    assert!(text.starts_with("The panel is unreachable since 20"), "{text}");
    let panel = RudePanel::start_at(port).await;
    nothing_waits(&daemon).await;
    let taken: Vec<Value> = panel.updates().into_iter().map(|heard| heard.body).collect();
    assert_eq!(taken, [told(&id, "installing"), told(&id, "ready")]);
    daemon.close().await;
}

#[tokio::test]
async fn an_answer_without_end_takes_neither_memory_nor_time() {
    let panel = RudePanel::start().await;
    let daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    let before = daemon.peak_memory_kib();
    for manners in [Manners::Endless, Manners::TricklesItsBody] {
        panel.set_manners(manners);
        let id = daemon.id(if manners == Manners::Endless { "endless" } else { "trickle" });
        daemon.create(&id, json!({})).await;
        nothing_waits(&daemon).await;
        let taken = panel.updates().into_iter().filter(|heard| heard.body["server"] == id);
        assert_eq!(taken.count(), 2, "what was taken is not sent again");
    }
    let grown = daemon.peak_memory_kib() - before;
    assert!(grown < 32 << 10, "{grown} KiB");
    daemon.close().await;
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_backlog_loses_none_and_keeps_the_order() {
    const SERVERS: u32 = 40;
    const EACH: u32 = 75;
    const ALL: usize = (SERVERS * EACH) as usize;
    let panel = RudePanel::start().await;
    let mut daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    daemon.terminate().await;
    fill_outbox(&daemon, SERVERS, EACH);
    for n in 1..=2 {
        daemon.spawn();
        eventually("a part of the backlog", SOON, async || {
            let seen = panel.update_count();
            if seen > n * ALL / 3 { Ok(()) } else { Err(seen) }
        })
        .await;
        daemon.kill9().await;
    }
    daemon.launch().await;
    nothing_waits(&daemon).await;
    let heard = panel.updates();
    let mut last: HashMap<String, usize> = HashMap::new();
    let mut deliveries: HashMap<(String, usize), String> = HashMap::new();
    for update in &heard {
        let server = update.body["server"].as_str().expect("a server").to_owned();
        let number: usize = update.header("x-lightd-sequence").parse().expect("a number");
        let delivery = update.header("x-lightd-delivery").to_owned();
        let newest = last.entry(server.clone()).or_default();
        assert!(number <= *newest + 1, "{server}: {number} after {newest}");
        *newest = number.max(*newest);
        let first = deliveries.entry((server, number)).or_insert_with(|| delivery.clone());
        assert_eq!(*first, delivery, "a repeat has another id");
    }
    assert_eq!(deliveries.len(), ALL, "all of them came");
    let repeats = heard.len() - deliveries.len();
    assert!(repeats < 2 * 600, "{repeats} repeats");
    daemon.close().await;
}

#[tokio::test]
async fn updates_are_signed_for_whoever_has_the_secret() {
    let panel = RudePanel::start().await;
    let daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    let id = daemon.id("signed");
    daemon.create(&id, json!({})).await;
    nothing_waits(&daemon).await;
    assert!(panel.updates().iter().all(|heard| !heard.head.to_lowercase().contains("signature")));

    daemon.edit_config(|config| config["remote"]["signing_secret"] = json!("too short"));
    let refused = daemon.client().post_empty("/remote/config/reload").await;
    let refused = refused.refused(400, "invalid_config");
    assert_eq!(refused["problems"][0]["field"], "remote.signing_secret");
    let secret = "whsec_0123456789abcdef";
    daemon.edit_config(|config| config["remote"]["signing_secret"] = json!(secret));
    let changed = daemon.client().post_empty("/remote/config/reload").await.is(200);
    assert_eq!(changed["applied"], json!(["remote.signing_secret"]));
    let shown = daemon.client().get("/remote/config").await.is(200);
    assert_eq!(shown["remote"]["signing_secret"], "***");

    let before = panel.update_count();
    daemon.client().post_empty(&format!("/containers/{id}/reinstall")).await.is(202);
    daemon.install_state(&id, "ready").await;
    nothing_waits(&daemon).await;
    let update = &panel.updates()[before];
    let (t, v1) = update.header("x-lightd-signature").split_once(",v1=").expect("two parts");
    let t = t.strip_prefix("t=").expect("a moment");
    // Computed by another program, as a panel would.
    let script = "import hmac,sys;print(hmac.new(sys.argv[1].encode(),sys.argv[2].encode(),'sha256').hexdigest())";
    let signed = format!("{t}.{}", update.text);
    let mut python = std::process::Command::new("python3");
    let computed = python.args(["-c", script, secret, &signed]).output();
    let computed = computed.expect("the tests need python3");
    assert_eq!(String::from_utf8_lossy(&computed.stdout).trim(), v1);
    assert!(!daemon.log().contains(secret), "a secret stands in the log");
    daemon.close().await;
}

#[tokio::test]
async fn what_the_panel_has_not_taken_is_listed_sent_again_and_dropped() {
    let panel = Panel::start().await;
    let daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    let client = daemon.client();
    panel.answer_with([422, 404]);
    let id = daemon.id("parked");
    daemon.create(&id, json!({})).await;
    let parked = eventually("both are parked", SOON, async || {
        let listed = client.get("/remote/outbox?state=parked").await.is(200);
        if listed["updates"].as_array().map(Vec::len) == Some(2) { Ok(listed) } else { Err(listed) }
    })
    .await;
    let first = &parked["updates"][0];
    assert_eq!((&first["server"], &first["state"]), (&json!(id), &json!("parked")));
    assert_eq!(first["body"], told(&id, "installing"));
    assert!(first["error"].as_str().expect("a reason").starts_with("422"), "{first}");
    assert!(first["parked_at"].is_i64() && first["next_attempt_at"].is_null(), "{first}");
    let sequence = first["sequence"].as_i64().expect("a number");
    let path = format!("/remote/outbox/{sequence}");
    assert_eq!(&client.get(&path).await.is(200), first);

    let page = client.get("/remote/outbox?limit=1").await.is(200);
    let cursor = page["next_cursor"].as_str().expect("a second page").to_owned();
    let rest = client.get(&format!("/remote/outbox?limit=1&cursor={cursor}")).await.is(200);
    assert_eq!((&rest["updates"][0], &rest["next_cursor"]), (&parked["updates"][1], &Value::Null));
    client.get("/remote/outbox?state=gone").await.names_field("?state");
    client.get("/remote/outbox?limit=0").await.names_field("?limit");
    client.get("/remote/outbox?server=..").await.names_field("?server");
    client.get("/remote/outbox?cursor=x").await.refused(400, "invalid_cursor");
    client.get("/remote/outbox/99999").await.refused(404, "not_found");
    client.post_empty("/remote/outbox/99999/retry").await.refused(404, "not_found");
    client.delete("/remote/outbox/99999").await.refused(404, "not_found");
    client.delete("/remote/outbox").await.names_field("?state");

    client.post_empty(&format!("{path}/retry")).await.is(200);
    panel.expect_updates(&id, &[told(&id, "installing")]).await;
    let dropped = client.delete("/remote/outbox?state=parked").await.is(200);
    assert_eq!(dropped["dropped"], 1);
    nothing_waits(&daemon).await;
    let empty = client.get("/remote/outbox").await.is(200);
    assert_eq!(empty, json!({"updates": [], "next_cursor": null}));
    daemon.close().await;
}

#[tokio::test]
async fn an_operator_looks_at_the_outbox_and_empties_it_in_the_shell() {
    let panel = Panel::start().await;
    let daemon = Daemon::start_with(|config| config["remote"] = panel.config()).await;
    assert!(out(&daemon.cli(&["outbox"])).contains("0 waiting, 0 parked"));
    panel.answer_with([422, 422]);
    let id = daemon.id("shell");
    daemon.create(&id, json!({})).await;
    eventually("both are parked", SOON, async || {
        let text = out(&daemon.cli(&["outbox", "list", "--state", "parked"]));
        if text.contains("2 parked, 2 shown") { Ok(()) } else { Err(text) }
    })
    .await;
    let text = out(&daemon.cli(&["outbox"]));
    let line = text.lines().find(|line| line.contains(&id)).unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("parked") && line.contains("installing") && line.contains("422"),
        "{line}"
    );
    let listed = out(&daemon.cli(&["outbox", "list", "--server", &id, "--json"]));
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["updates"].as_array().map(Vec::len), Some(2), "{listed}");
    let number = |n: usize| listed["updates"][n]["sequence"].to_string();
    let shown = out(&daemon.cli(&["outbox", "show", &number(0)]));
    assert!(shown.contains("422") && shown.contains(r#""status":"installing""#), "{shown}");

    let dropped = out(&daemon.cli(&["outbox", "drop", &number(1)]));
    assert!(dropped.contains(&number(1)), "{dropped}");
    let again = daemon.cli(&["outbox", "drop", &number(1)]);
    let text = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && text.contains("there is no update"), "{text}");
    out(&daemon.cli(&["outbox", "retry", "--all"]));
    panel.expect_updates(&id, &[told(&id, "installing")]).await;
    for wrong in [&["outbox", "retry"][..], &["outbox", "drop", "--server", "x"]] {
        assert_eq!(daemon.cli(wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert!(out(&daemon.cli(&["outbox", "drop", "--parked"])).contains('0'));
    daemon.close().await;
}

#[tokio::test]
async fn every_key_of_the_panel_is_taken_over_while_lightd_runs() {
    let (panel, other) = (Panel::start().await, Panel::start().await);
    let daemon = Daemon::start().await;
    let reload = async || daemon.client().post_empty("/remote/config/reload").await.is(200);
    daemon.edit_config(|config| config["remote"] = panel.config());
    let changed = reload().await;
    let keys = ["enabled", "health_interval", "token", "url"].map(|key| format!("remote.{key}"));
    assert_eq!(changed["applied"], json!(keys));
    assert_eq!(changed["needs_restart"], json!([]));
    // The panel stumbles, and what waits goes to the other address in its order.
    panel.answer_with([500; 50]);
    let id = daemon.id("moves");
    daemon.create(&id, json!({})).await;
    daemon.edit_config(|config| {
        config["remote"]["url"] = json!(other.url());
        config["remote"]["power_events"] = json!(true);
    });
    let changed = reload().await;
    assert_eq!(changed["applied"], json!(["remote.power_events", "remote.url"]));
    other.expect_updates(&id, &["installing", "ready"].map(|status| told(&id, status))).await;
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    let all = ["installing", "ready", "starting", "running"].map(|status| told(&id, status));
    other.expect_updates(&id, &all).await;
    assert_eq!(panel.updates_of(&id), Vec::<Value>::new());
    // Without a panel nothing is told, and nothing is kept for later.
    daemon.edit_config(|config| config["remote"]["enabled"] = json!(false));
    reload().await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    let status = daemon.client().get("/remote/status").await.is(200);
    assert_eq!((&status["state"], &status["outbox"]["waiting"]), (&json!("disabled"), &json!(0)));
    daemon.close().await;
}
