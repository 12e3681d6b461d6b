//! Issued tokens: good for what they say and as long, listed, revoked.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{issue, token_of};
use crate::support::SOON;
use crate::support::client::Client;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

#[tokio::test]
async fn an_issued_token_is_good_for_its_time() {
    let daemon = Daemon::start().await;
    let issued = issue(&daemon, json!({"ttl": "15m", "remove_on_use": false})).await;
    assert!(token_of(&issued).starts_with("lightd_") && token_of(&issued).len() >= 20, "{issued}");
    let expires: jiff::Timestamp =
        issued["expires_at"].as_str().expect("a time").parse().expect("RFC 3339");
    let left = expires.as_second() - jiff::Timestamp::now().as_second();
    assert!((14 * 60..=15 * 60 + 1).contains(&left), "{left}");
    let client = daemon.client().with_token(token_of(&issued));
    client.get("/containers").await.is(200);
    client.get("/containers").await.is(200);
    // What is short-lived makes nothing that lives longer.
    client.post("/auth/tokens", json!({})).await.refused(403, "scope");
    client.get("/auth/tokens").await.refused(403, "scope");

    for (ttl, seconds) in [("30s", 30), ("1h30m", 5400), ("7d", 604_800), ("365d", 31_536_000)] {
        let issued = issue(&daemon, json!({"ttl": ttl})).await;
        let expires: jiff::Timestamp =
            issued["expires_at"].as_str().expect("a time").parse().expect("RFC 3339");
        let left = expires.as_second() - jiff::Timestamp::now().as_second();
        assert!((seconds - 30..=seconds + 1).contains(&left), "{ttl}: {left}");
    }
    for bad in [json!("soon"), json!(""), json!("0s"), json!("366d"), json!(900), json!("-5m")] {
        daemon.client().post("/auth/tokens", json!({"ttl": bad})).await.names_field("ttl");
    }
    for (body, field) in [
        (json!({"permissions": ["everything"]}), "permissions[0]"),
        (json!({"containers": ["-x"]}), "containers[0]"),
        (json!({"remove_on_use": 1}), "remove_on_use"),
        (json!({"tttl": "1m"}), "tttl"),
    ] {
        daemon.client().post("/auth/tokens", body).await.names_field(field);
    }

    let short = issue(&daemon, json!({"ttl": "1s"})).await;
    let client = daemon.client().with_token(token_of(&short));
    eventually("the token expires", SOON, async || {
        let answer = client.get("/containers").await;
        if answer.status == 401 { Ok(()) } else { Err(answer.status) }
    })
    .await;
    daemon.close().await;
}

#[tokio::test]
async fn a_token_for_one_use_is_good_for_exactly_one_also_when_many_come_at_once() {
    let daemon = Daemon::start().await;
    for _ in 0..5 {
        let issued = issue(&daemon, json!({"ttl": "1m", "remove_on_use": true})).await;
        let client = daemon.client().with_token(token_of(&issued));
        let answers = join_all((0..8).map(|_| client.get("/containers"))).await;
        let mut statuses: Vec<u16> = answers.into_iter().map(|answer| answer.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 401, 401, 401, 401, 401, 401, 401]);
    }
    let id = daemon.id("socket");
    daemon.create(&id, json!({})).await;
    let issued = issue(&daemon, json!({"remove_on_use": true})).await;
    let url = daemon.ws_url(&id, token_of(&issued), "");
    let both = join_all([Socket::try_open(&url), Socket::try_open(&url)]).await;
    let (mut open, refused): (Vec<_>, Vec<_>) = both.into_iter().partition(Result::is_ok);
    assert_eq!((open.len(), refused.len()), (1, 1));
    // Used up, but not over: the socket that it opened goes on.
    let mut socket = open.remove(0).expect("a socket");
    socket.send(json!({"event": "request_logs"})).await;
    socket.expect("an answer", |frame| frame["event"] == "logs").await;
    let (status, body) = Socket::try_open(&url).await.expect_err("it is used up");
    assert_eq!((status, &body["code"]), (401, &json!("unauthorized")));
    daemon.close().await;
}

/// CVE-2025-68954, GHSA-hr7j-63v7-vj7g: an open session ends with the right to it.
#[tokio::test]
async fn issued_tokens_are_listed_without_themselves_and_revoked() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let id = daemon.id("socket");
    daemon.create(&id, json!({})).await;
    let scope = json!({"containers": [id], "permissions": ["console.read", "containers.read"]});
    let issued = issue(&daemon, scope.clone()).await;
    let other = issue(&daemon, json!({})).await;
    let mut socket = Socket::open(&daemon.ws_url(&id, token_of(&issued), "")).await;
    socket.expect_state("ready").await;

    let listed = eventually("its use is noted", SOON, async || {
        let listed = client.get("/auth/tokens").await.is(200);
        let is_noted = listed.to_string().contains("\"last_used_from\":\"127.0.0.1\"");
        if is_noted { Ok(listed) } else { Err(listed) }
    })
    .await;
    let tokens = listed["tokens"].as_array().expect("a list");
    assert_eq!(tokens.len(), 2);
    let text = listed.to_string();
    assert!(!text.contains(token_of(&issued)) && !text.contains(token_of(&other)), "{text}");
    let shown = tokens.iter().find(|token| token["id"] == issued["id"]).expect("the first");
    assert_eq!(shown["containers"], scope["containers"]);
    assert!(token_of(&issued).starts_with(shown["prefix"].as_str().expect("a prefix")));
    assert!(shown["last_used_at"].is_string() && shown["expires_at"].is_string(), "{shown}");

    let path = format!("/auth/tokens/{}", issued["id"].as_str().expect("an id"));
    client.delete(&path).await.is(200);
    assert_eq!(socket.expect_close().await, 4401);
    let refused = Socket::try_open(&daemon.ws_url(&id, token_of(&issued), "")).await;
    assert_eq!(refused.expect_err("revoked").0, 401);
    client.delete(&path).await.refused(404, "not_found");
    client.delete("/auth/tokens/nonsense").await.refused(400, "invalid_parameter");
    client.with_token(token_of(&other)).get("/containers").await.is(200);
    for file in ["lightd.db", "lightd.db-wal"] {
        let bytes = std::fs::read(daemon.data_path().join(file)).unwrap_or_default();
        for token in [token_of(&issued), token_of(&other)] {
            let found = bytes.windows(token.len()).any(|window| window == token.as_bytes());
            assert!(!found, "a token stands in {file}");
        }
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_token_that_expires_closes_its_socket() {
    let daemon = Daemon::start().await;
    let id = daemon.id("socket");
    daemon.create(&id, json!({})).await;
    let issued = issue(&daemon, json!({"ttl": "2s"})).await;
    let mut socket = Socket::open(&daemon.ws_url(&id, token_of(&issued), "")).await;
    let renewed = issue(&daemon, json!({"ttl": "1h"})).await;
    let mut other = Socket::open(&daemon.ws_url(&id, token_of(&issued), "")).await;
    other.send(json!({"event": "auth", "token": token_of(&renewed)})).await;
    assert_eq!(socket.expect_close().await, 4401);
    // This one carries on with its new token.
    other.send(json!({"event": "request_logs"})).await;
    other.expect("an answer", |frame| frame["event"] == "logs").await;
    other.send(json!({"event": "auth", "token": "lightd_nobodys_token_at_all"})).await;
    let refusal = other.expect("a refusal", |frame| frame["event"] == "error").await;
    assert_eq!(refusal["code"], "unauthorized");
    daemon.close().await;
}

#[tokio::test]
async fn a_scope_narrows_what_a_token_may_do_and_to_whom() {
    let daemon = Daemon::start().await;
    let (mine, other) = (daemon.id("mine"), daemon.id("other"));
    for id in [&mine, &other] {
        daemon.create(id, json!({})).await;
    }
    let of = async |body: Value| daemon.client().with_token(token_of(&issue(&daemon, body).await));
    let reader = of(json!({"containers": [mine], "permissions": ["console.read"]})).await;
    let shown = |client: &Client, id: &str, rest: &str| {
        let (client, path) = (client.clone(), format!("/containers/{id}{rest}"));
        async move { client.get(&path).await }
    };
    shown(&reader, &mine, "/logs").await.is(200);
    shown(&reader, &other, "/logs").await.refused(403, "scope");
    // Whether it is there is not told to those it does not concern.
    shown(&reader, "nobody", "/logs").await.refused(403, "scope");
    shown(&reader, &mine, "").await.refused(403, "scope");
    let act = async |client: &Client, path: String| client.post_empty(&path).await;
    act(&reader, format!("/containers/{mine}/start")).await.refused(403, "scope");
    act(&reader, "/remote/config/reload".to_owned()).await.refused(403, "scope");
    reader.get("/network/ports").await.refused(403, "scope");

    let power = of(json!({"permissions": ["power", "containers.read"]})).await;
    act(&power, format!("/containers/{mine}/start")).await.is(202);
    let exec = json!({"cmd": ["true"]});
    power.post(&format!("/containers/{mine}/exec"), exec).await.refused(403, "scope");
    power.delete(&format!("/containers/{mine}")).await.refused(403, "scope");
    power.get(&format!("/containers/{other}")).await.is(200);

    let narrow = of(json!({"containers": [mine]})).await;
    let listed = narrow.get("/containers").await.is(200);
    assert_eq!(listed["containers"].as_array().map(Vec::len), Some(1));
    assert_eq!(listed["containers"][0]["internal_id"], json!(mine));
    narrow.get("/remote/config").await.refused(403, "scope");

    // On a socket: reading is not writing.
    let token =
        issue(&daemon, json!({"containers": [mine], "permissions": ["console.read"]})).await;
    let mut socket = Socket::open(&daemon.ws_url(&mine, token_of(&token), "")).await;
    for frame in [
        json!({"event": "send_command", "command": "x"}),
        json!({"event": "power", "action": "kill"}),
    ] {
        socket.send(frame).await;
        let refusal = socket.expect("a refusal", |frame| frame["event"] == "error").await;
        assert_eq!(refusal["code"], "scope");
    }
    let refused = Socket::try_open(&daemon.ws_url(&other, token_of(&token), "")).await;
    let (status, body) = refused.expect_err("another's container");
    assert_eq!((status, &body["code"]), (403, &json!("scope")));
    daemon.close().await;
}

#[tokio::test]
async fn who_has_a_port_is_named_only_to_who_may_read_of_that_container() {
    let daemon = Daemon::start().await;
    let (mine, theirs, client) = (daemon.id("mine"), daemon.id("theirs"), daemon.client());
    let port = crate::support::numbers::free_port();
    client.post("/network/ports", json!({"ip": "127.0.0.1", "port": port})).await.is(201);
    let ports = json!({"ports": [{"ip": "127.0.0.1", "port": port}]});
    daemon.create(&theirs, ports.clone()).await;
    daemon.create(&mine, json!({})).await;
    let of = async |body: Value| client.with_token(token_of(&issue(&daemon, body).await));
    let told = async |client: &Client| {
        let path = format!("/containers/{mine}/rebind-network");
        let tried = client.post(&format!("{path}?dry_run=true"), ports.clone()).await;
        let done = client.post(&path, ports.clone()).await;
        [tried.refused(409, "port_in_use"), done.refused(409, "port_in_use")].map(|body| {
            let text = body.to_string();
            assert!(text.contains(&format!("127.0.0.1:{port}/tcp is in use")), "{text}");
            text.contains(&theirs)
        })
    };
    assert_eq!(told(&client).await, [true, true], "the node's own token");
    assert_eq!(told(&of(json!({})).await).await, [true, true], "one that may read all");
    assert_eq!(told(&of(json!({"containers": [mine]})).await).await, [false, false]);
    let writes = json!(["containers.write", "network.write"]);
    let writer = of(json!({"permissions": writes})).await;
    assert_eq!(told(&writer).await, [false, false]);
    let taken = writer.delete(&format!("/network/ports/127.0.0.1/{port}")).await;
    let taken = taken.refused(409, "port_in_use").to_string();
    assert!(!taken.contains(&theirs), "{taken}");
    let body = daemon.spec(&daemon.id("third"), ports.clone()).await;
    for trial in ["", "?dry_run=true"] {
        let taken = writer.post(&format!("/containers{trial}"), body.clone()).await;
        let taken = taken.refused(409, "port_in_use").to_string();
        assert!(!taken.contains(&theirs), "{taken}");
    }
    daemon.close().await;
}

#[tokio::test]
async fn tokens_survive_a_restart_and_a_crash_of_the_daemon() {
    let mut daemon = Daemon::start().await;
    let kept = issue(&daemon, json!({"ttl": "1h"})).await;
    let once = issue(&daemon, json!({"ttl": "1h", "remove_on_use": true})).await;
    let used = daemon.client().with_token(token_of(&once));
    used.get("/containers").await.is(200);
    daemon.kill9().await;
    daemon.launch().await;
    daemon.client().with_token(token_of(&kept)).get("/containers").await.is(200);
    used.get("/containers").await.refused(401, "unauthorized");
    daemon.close().await;
}
