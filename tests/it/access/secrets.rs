//! No secret stands in the log, in an answer or in the store, whatever is asked and however it fails.

use reqwest::Method;
use serde_json::{Value, json};

use super::{issue, token_of};
use crate::support::SOON;
use crate::support::client::{Answer, answer};
use crate::support::panel::Panel;
use crate::support::process::Daemon;
use crate::support::sse::EventStream;
use crate::support::wait::eventually;
use crate::support::ws::Socket;

const ADMIN_KEY: &str = "admin-key-of-this-test-0123456789";
const PREVIOUS: &str = "lightd_previous_token_of_this_test";
const PASSWORD: &str = "registry-password-of-this-test";
const GUESS: &str = "lightd_guess_in_a_query_string_1";
const NONSENSE: &str = "nonsense-credential-of-this-test";

/// All that was answered, headers included, to be looked through at the end.
#[derive(Default)]
struct Heard(String);

impl Heard {
    fn take(&mut self, answer: &Answer) {
        self.0.push_str(&format!("{:?}\n{}\n", answer.headers, answer.text));
    }

    /// A refusal of a socket.
    fn refused(&mut self, refused: Result<Socket, (u16, Value)>) {
        let (_, body) = refused.expect_err("a refusal");
        self.0.push_str(&format!("{body}\n"));
    }
}

/// Containers with credentials, one of which cannot be had, and bodies that are wrong around them.
async fn use_registry(daemon: &Daemon, heard: &mut Heard) {
    let client = daemon.client();
    let auth = json!({"username": "u", "password": PASSWORD});
    let (good, bad) = (daemon.id("good"), daemon.id("bad"));
    daemon.create(&good, json!({"registry_auth": auth})).await;
    let spec = json!({"registry_auth": auth, "image": "127.0.0.1:9/x/none:1"});
    let spec = daemon.spec(&bad, spec).await;
    heard.take(&client.post("/containers", spec).await);
    daemon.install_state(&bad, "failed").await;
    for id in [&good, &bad] {
        for rest in ["", "/install-log", "/logs", "/resources", "/post-mortems"] {
            heard.take(&client.get(&format!("/containers/{id}{rest}")).await);
        }
    }
    for wrong in [
        json!(PASSWORD),
        json!([PASSWORD]),
        json!({"username": "u", "passwrd": PASSWORD}),
        json!({"username": ["x"], "password": PASSWORD}),
        json!({"username": "u", "password": {"is": PASSWORD}}),
    ] {
        let spec = daemon.spec(&daemon.id("wrong"), json!({"registry_auth": wrong})).await;
        let refused = client.post("/containers", spec).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        heard.take(&refused);
    }
    heard.take(&client.get("/containers").await);
}

/// Requests with credentials in every place, most of them in the wrong one.
async fn be_wrong(daemon: &Daemon, heard: &mut Heard, issued: &str) {
    let client = daemon.client();
    for value in [
        format!("Basic {NONSENSE}"),
        format!("Bearer {NONSENSE}"),
        format!("Bearer {GUESS}"),
        format!("{} {NONSENSE}", daemon.token),
        NONSENSE.to_owned(),
    ] {
        for path in ["/containers", "/nothing", "/auth/tokens", "/remote/config"] {
            let request = client.anonymous().request(Method::GET, path);
            heard.take(&answer(request.header("Authorization", &value)).await);
        }
    }
    for token in [issued, GUESS, NONSENSE, &daemon.token] {
        for path in ["/containers", "/nothing", "/ws/nobody", "/containers/nobody/events"] {
            heard.take(&client.anonymous().get(&format!("{path}?token={token}")).await);
        }
        heard.refused(Socket::try_open(&daemon.ws_url("nobody", token, "&events=x")).await);
    }
    let token = client.with_token(issued);
    heard.take(&token.get("/auth/tokens").await);
    for path in ["/auth/tokens", "/remote/config", "/remote/status", "/remote/outbox", "/health"] {
        heard.take(&client.get(path).await);
    }
    heard.take(&client.post("/auth/tokens", json!({"ttl": "x", "token": GUESS})).await);
}

#[tokio::test]
async fn no_secret_stands_in_a_log_an_answer_or_the_store() {
    let panel = Panel::start().await;
    let remote = panel.config();
    let daemon = Daemon::start_with(|config| {
        config["log"]["level"] = json!("trace");
        config["authorization"]["admin_key"] = json!(ADMIN_KEY);
        config["authorization"]["previous_token"] = json!(PREVIOUS);
        config["authorization"]["previous_token_until"] = json!("2100-01-01T00:00:00Z");
        config["remote"] = remote.clone();
    })
    .await;
    let mut heard = Heard::default();
    let issued = issue(&daemon, json!({"ttl": "1h"})).await;
    let once = issue(&daemon, json!({"ttl": "1h", "remove_on_use": true})).await;
    let client = daemon.client();
    heard.take(&client.with_token(PREVIOUS).get("/containers").await);
    heard.take(&client.with_token(token_of(&once)).get("/containers").await);
    let keyed = client.request(Method::POST, "/auth/tokens").header("Idempotency-Key", "k");
    let replayed = answer(keyed.json(&json!({}))).await.is(201);
    use_registry(&daemon, &mut heard).await;
    be_wrong(&daemon, &mut heard, token_of(&issued)).await;

    let id = daemon.id("good");
    let mut socket = Socket::open(&daemon.ws_url(&id, token_of(&issued), "")).await;
    for frame in [
        json!({"event": "auth", "token": GUESS}),
        json!({"event": "auth", "token": [GUESS]}),
        json!({"event": "request_logs", "lines": GUESS}),
        json!({"event": GUESS}),
        json!(GUESS),
    ] {
        socket.send(frame).await;
        let refusal = socket.expect("a refusal", |frame| frame["event"] == "error").await;
        heard.0.push_str(&refusal.to_string());
    }
    let path = format!("/containers/{id}/events?token={}", token_of(&issued));
    EventStream::open(&client.anonymous(), &path, None).await.next().await.expect("an event");
    daemon.edit_config(|config| config["remote"]["url"] = json!("https://u:p@panel.example"));
    heard.take(&client.post_empty("/remote/config/reload").await);
    daemon.edit_config(|config| config["remote"] = remote);
    heard.take(&client.post_empty("/remote/config/reload").await);
    eventually("the panel is told", SOON, async || {
        let told = panel.calls().len();
        if told > 2 { Ok(()) } else { Err(told) }
    })
    .await;
    for line in [&["check-config"][..], &["doctor"], &["ps"]] {
        let output = daemon.cli(line);
        heard.0.push_str(&String::from_utf8_lossy(&output.stdout));
        heard.0.push_str(&String::from_utf8_lossy(&output.stderr));
    }

    let log = daemon.log();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log says too little to be a test");
    let store = ["lightd.db", "lightd.db-wal"]
        .map(|file| std::fs::read(daemon.data_path().join(file)).unwrap_or_default());
    let store = String::from_utf8_lossy(&store.concat()).into_owned();
    let panel_token = panel.config()["token"].as_str().expect("a token").to_owned();
    for secret in [
        daemon.token.as_str(),
        token_of(&issued),
        token_of(&once),
        token_of(&replayed),
        &panel_token,
        ADMIN_KEY,
        PREVIOUS,
        PASSWORD,
        GUESS,
        NONSENSE,
    ] {
        for (place, text) in [("log", &log), ("answers", &heard.0), ("store", &store)] {
            let found = text.find(secret).map(|at| {
                let around = at.saturating_sub(200)..(at + 200).min(text.len());
                String::from_utf8_lossy(&text.as_bytes()[around]).into_owned()
            });
            assert_eq!(found, None, "{secret} stands in the {place}");
        }
    }
    daemon.close().await;
}
