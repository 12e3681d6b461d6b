//! Whatever is wrong, the answer is JSON that a person can act on, and gives nothing away.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{Answer, answer};
use crate::support::process::Daemon;

/// What holds for every refusal.
fn is_json(daemon: &Daemon, answer: &Answer) {
    let kind = answer.headers.get("content-type").and_then(|value| value.to_str().ok());
    assert_eq!(kind, Some("application/json"), "{answer:?}");
    assert!(answer.headers.contains_key("x-request-id"), "{answer:?}");
    let fields: Vec<&String> = answer.body.as_object().expect("an object").keys().collect();
    assert!(
        fields.iter().all(|field| ["error", "code", "problems"].contains(&field.as_str())),
        "{fields:?}"
    );
    let data = daemon.data_path().display().to_string();
    assert!(!answer.text.contains(&data) && !answer.text.contains(&daemon.token), "{answer:?}");
}

#[tokio::test]
async fn every_refusal_is_json_with_a_sentence_and_a_code() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let request = |method: Method, path: &str| client.request(method, path);
    let (get, post) = (Method::GET, Method::POST);
    let body = |text: &'static str| request(Method::POST, "/containers").body(text);
    let long = format!("{{\"internal_id\": \"{}\"}}", "x".repeat(20 << 20));
    let deep = "[".repeat(100_000);
    for (request, status, code) in [
        (request(get.clone(), "/"), 404, "not_found"),
        (request(get.clone(), "/nothing/here"), 404, "not_found"),
        (request(get.clone(), "/containers/"), 404, "not_found"),
        (request(get.clone(), "//containers"), 404, "not_found"),
        (request(get.clone(), "/containers/%2e%2e/x/y"), 404, "not_found"),
        (request(Method::PUT, "/containers"), 405, "method_not_allowed"),
        (request(Method::DELETE, "/api/v1/public/ping"), 405, "method_not_allowed"),
        (request(Method::TRACE, "/containers"), 405, "method_not_allowed"),
        (request("BREW".parse().expect("a method"), "/containers"), 405, "method_not_allowed"),
        (request(get.clone(), "/containers/a%20b"), 400, "invalid_parameter"),
        (request(get.clone(), "/containers/%ff"), 400, "invalid_parameter"),
        (request(get.clone(), "/containers/%00"), 400, "invalid_parameter"),
        (
            request(get.clone(), &format!("/containers/{}", "x".repeat(64))),
            400,
            "invalid_parameter",
        ),
        (request(get.clone(), "/volumes/not-an-id"), 400, "invalid_parameter"),
        (request(get.clone(), "/containers/nobody"), 404, "not_found"),
        (request(get.clone(), "/containers?limit=many"), 400, "invalid"),
        (request(get.clone(), "/ws/nobody"), 404, "not_found"),
        (request(post.clone(), "/containers"), 400, "invalid_json"),
        (body(""), 400, "invalid_json"),
        (body("{"), 400, "invalid_json"),
        (body("null"), 400, "invalid_json"),
        (body("[]"), 400, "invalid_json"),
        (body("\"text\""), 400, "invalid_json"),
        (body("{\"image\": \"a\"} {}"), 400, "invalid_json"),
        (body("{\"image\": \"\\ud800\"}"), 400, "invalid_json"),
        (body("image=a"), 400, "invalid_json"),
        (body("{\"image\": 1}"), 400, "invalid"),
        (body("{\"image\": \"a\", \"image\": \"b\"}"), 400, "invalid"),
        (request(post.clone(), "/containers").body(vec![0xff, 0xfe, b'{']), 400, "invalid_json"),
        (request(post.clone(), "/containers").body(deep), 400, "invalid_json"),
        (request(post.clone(), "/containers").body(long), 413, "too_large"),
        (
            request(post.clone(), "/containers/a/command").body("{\"command\": \"x\"}"),
            404,
            "not_found",
        ),
    ] {
        let refusal = answer(request).await;
        is_json(&daemon, &refusal);
        refusal.refused(status, code);
    }
    // The content type is not what makes a body JSON.
    let form = body("{}").header("Content-Type", "application/x-www-form-urlencoded");
    answer(form).await.refused(400, "invalid");
    daemon.close().await;
}

#[tokio::test]
async fn unknown_fields_are_named_with_those_that_are_known() {
    let daemon = Daemon::start().await;
    let spec = daemon.spec(&daemon.id("a"), json!({"start_patern": "x"})).await;
    let refusal = daemon.client().post("/containers", spec).await.names_field("start_patern");
    let sentence = refusal["error"].as_str().expect("a sentence");
    assert!(sentence.contains("start_pattern"), "{sentence}");
    let spec =
        daemon.spec(&daemon.id("a"), json!({"limits": {"mem": 1}, "env": {"A-B": "c"}})).await;
    daemon.client().post("/containers", spec).await.names_field("limits.mem");
    daemon.close().await;
}

#[tokio::test]
async fn every_answer_carries_the_callers_request_id_if_it_is_sane() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let with_id = async |path: &str, id: &str| {
        let answer = answer(client.request(Method::GET, path).header("X-Request-Id", id)).await;
        answer.headers["x-request-id"].to_str().expect("a text").to_owned()
    };
    for path in ["/containers", "/nothing", "/containers/nobody", "/api/v1/public/ping"] {
        assert_eq!(with_id(path, "panel-7.b_2").await, "panel-7.b_2");
    }
    for bad in ["two words", "a;b", "\"quoted\"", &"x".repeat(200)] {
        let made = with_id("/containers", bad).await;
        assert!(!made.is_empty() && made != bad, "{made}");
    }
    let one = client.get("/containers").await.headers["x-request-id"].clone();
    let two = client.get("/containers").await.headers["x-request-id"].clone();
    assert_ne!(one, two);
    with_id("/containers/nobody", "find-me-in-the-log").await;
    assert!(daemon.log().contains("find-me-in-the-log"));
    daemon.close().await;
}

/// GHSA-ghrq-5wpp-hxx5: bytes on one connection took the daemon down.
#[tokio::test]
async fn what_is_no_http_harms_nobody() {
    let daemon = Daemon::start().await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET /containers HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /containers HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /containers HTTP/1.1\r\n",
    ] {
        let mut stream =
            TcpStream::connect(("127.0.0.1", daemon.port)).await.expect("a connection");
        stream.write_all(bytes).await.expect("a write");
        stream.shutdown().await.expect("an end");
        let mut text = Vec::new();
        // A reset is an answer as well.
        stream.read_to_end(&mut text).await.ok();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.starts_with("HTTP/1.1 2") && !text.contains("<html"), "{text}");
    }
    daemon.client().anonymous().get("/api/v1/public/ping").await.is(200);
    daemon.close().await;
}

#[tokio::test]
async fn the_body_limit_is_the_configured_one_and_holds_for_bodies_of_unknown_length() {
    let daemon =
        Daemon::start_with(|config| config["server"]["max_body_bytes"] = json!(2048)).await;
    let client = daemon.client();
    let request = || client.request(Method::POST, "/containers");
    let long = json!({"internal_id": "x".repeat(4000)}).to_string();
    answer(request().body(long.clone())).await.refused(413, "too_large");
    let chunks = long
        .into_bytes()
        .chunks(500)
        .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()))
        .collect::<Vec<_>>();
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    answer(request().body(stream)).await.refused(413, "too_large");
    let fits: Value = json!({"internal_id": "x".repeat(1000)});
    client.post("/containers", fits).await.refused(400, "invalid");
    daemon.close().await;
}
