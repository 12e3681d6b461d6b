//! Who may do what: tokens, their limits and their end, and the vendor's header.

use std::io::Write;
use std::process::Stdio;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::client::{Client, VENDOR, answer};
use crate::support::process::Daemon;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

async fn issue(daemon: &Daemon, body: Value) -> Value {
    daemon.client().post("/auth/tokens", body).await.is(201)
}

fn token_of(issued: &Value) -> &str {
    issued["token"].as_str().expect("a token")
}

#[tokio::test]
async fn the_route_is_asked_for_first_then_the_token_then_the_vendor() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let nobody = client.anonymous().without_accept();
    nobody.get("/no/such/route").await.refused(404, "not_found");
    nobody.delete("/containers").await.refused(405, "method_not_allowed");
    let refusal = nobody.get("/containers").await;
    assert_eq!(refusal.headers["www-authenticate"], "Bearer");
    refusal.refused(401, "unauthorized");
    client.anonymous().get("/containers").await.refused(401, "unauthorized");
    let bad = client.with_token("lightd_not_this_nodes_token");
    bad.without_accept().get("/containers").await.refused(401, "unauthorized");
    client.without_accept().get("/containers").await.refused(403, "vendor");
    // The token and the vendor come before the body and before what the address names.
    client.without_accept().get("/containers/nobody").await.refused(403, "vendor");
    nobody.post("/containers", json!([])).await.refused(401, "unauthorized");
    for path in ["/api/v1/public/ping", "/health", "/livez"] {
        nobody.get(path).await.is(200);
    }
    daemon.close().await;
}

#[tokio::test]
async fn every_protected_route_wants_a_token_and_the_vendor() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let id = uuid::Uuid::new_v4();
    for (method, path) in [
        ("POST", "/auth/tokens".to_owned()),
        ("GET", "/auth/tokens".to_owned()),
        ("DELETE", format!("/auth/tokens/{id}")),
        ("POST", "/volumes".to_owned()),
        ("GET", "/volumes".to_owned()),
        ("GET", format!("/volumes/{id}")),
        ("DELETE", format!("/volumes/{id}")),
        ("POST", format!("/volumes/{id}/files")),
        ("GET", format!("/volumes/{id}/files")),
        ("DELETE", format!("/volumes/{id}/files")),
        ("POST", format!("/volumes/{id}/folders")),
        ("POST", format!("/volumes/{id}/copy")),
        ("POST", format!("/volumes/{id}/compress")),
        ("POST", format!("/volumes/{id}/decompress")),
        ("POST", "/network/ports".to_owned()),
        ("GET", "/network/ports".to_owned()),
        ("GET", "/network/ports/0.0.0.0/1".to_owned()),
        ("GET", "/network/ports/random".to_owned()),
        ("PUT", "/network/ports/0.0.0.0/1/use".to_owned()),
        ("DELETE", "/network/ports/0.0.0.0/1".to_owned()),
        ("POST", "/network/ports/bulk-delete".to_owned()),
        ("POST", "/network/ports/allocate".to_owned()),
        ("POST", "/containers".to_owned()),
        ("GET", "/containers".to_owned()),
        ("GET", "/containers/a".to_owned()),
        ("PATCH", "/containers/a".to_owned()),
        ("DELETE", "/containers/a".to_owned()),
        ("POST", "/containers/a/start".to_owned()),
        ("POST", "/containers/a/stop".to_owned()),
        ("POST", "/containers/a/kill".to_owned()),
        ("POST", "/containers/a/restart".to_owned()),
        ("POST", "/containers/a/pause".to_owned()),
        ("POST", "/containers/a/resume".to_owned()),
        ("POST", "/containers/a/reinstall".to_owned()),
        ("POST", "/containers/a/rebind-network".to_owned()),
        ("GET", "/containers/a/logs".to_owned()),
        ("POST", "/containers/a/command".to_owned()),
        ("POST", "/containers/a/exec".to_owned()),
        ("GET", "/containers/a/resources".to_owned()),
        ("POST", "/containers/a/resources".to_owned()),
        ("GET", "/containers/a/stats".to_owned()),
        ("GET", "/containers/a/install-log".to_owned()),
        ("GET", "/operations".to_owned()),
        ("GET", "/remote/config".to_owned()),
        ("POST", "/remote/config/reload".to_owned()),
        ("GET", "/remote/status".to_owned()),
    ] {
        let method: Method = method.parse().expect("a method");
        let anonymous = client.anonymous();
        answer(anonymous.request(method.clone(), &path)).await.refused(401, "unauthorized");
        let plain = client.without_accept();
        answer(plain.request(method, &path)).await.refused(403, "vendor");
    }
    daemon.close().await;
}

#[tokio::test]
async fn the_vendors_media_type_is_found_as_media_types_are() {
    let daemon = Daemon::start().await;
    for good in [
        VENDOR,
        "application/vnd.pkglatv1+json",
        "APPLICATION/VND.PKGLATV1+JSON",
        "text/html, application/vnd.pkglatv1+json",
        "Application/vnd.pkglatv1+json; charset=utf-8, */*;q=0.1",
    ] {
        daemon.client().with_accept(good).get("/containers").await.is(200);
    }
    for bad in ["*/*", "application/json", "application/*", "application/vnd.pkglatv2+json", "x"] {
        daemon.client().with_accept(bad).get("/containers").await.refused(403, "vendor");
    }
    daemon.close().await;
}

#[tokio::test]
async fn only_the_token_itself_is_good() {
    let daemon = Daemon::start().await;
    let token = &daemon.token;
    for bad in [
        "lightd_".to_owned(),
        token[..token.len() - 1].to_owned(),
        format!("{token}x"),
        token.to_uppercase(),
        "x".repeat(10_000),
        format!("Bearer {token}"),
    ] {
        daemon.client().with_token(&bad).get("/containers").await.refused(401, "unauthorized");
    }
    for (value, status) in [
        (format!("bearer {token}"), 200),
        (format!("Basic {token}"), 401),
        (token.clone(), 401),
        (format!("Bearer{token}"), 401),
    ] {
        let request = daemon.client().anonymous().request(Method::GET, "/containers");
        answer(request.header("Authorization", value)).await.is(status);
    }
    // For a request, an address is no place for a token.
    let path = format!("/containers?token={token}");
    daemon.client().anonymous().get(&path).await.refused(401, "unauthorized");
    assert!(!daemon.log().contains(token.as_str()), "the log shows the token");
    daemon.close().await;
}

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

    let listed = client.get("/auth/tokens").await.is(200);
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

#[tokio::test]
async fn origins_are_held_to_the_list_once_there_is_one() {
    let daemon = Daemon::start().await;
    let ask = async |client: &Client, origin: &str| {
        answer(client.request(Method::GET, "/containers").header("Origin", origin)).await
    };
    let free = ask(&daemon.client(), "https://panel.example").await;
    assert!(!free.headers.contains_key("access-control-allow-origin"));
    free.is(200);
    daemon.close().await;

    let daemon = Daemon::start_with(|config| {
        config["authorization"]["allowed_origins"] = json!(["https://panel.example"]);
    })
    .await;
    let allowed = ask(&daemon.client(), "https://panel.example").await;
    assert_eq!(allowed.headers["access-control-allow-origin"], "https://panel.example");
    allowed.is(200);
    ask(&daemon.client(), "https://evil.example").await.refused(403, "origin");
    daemon.client().get("/containers").await.is(200);
    daemon.close().await;
}
