//! What a request must bring: a token, the vendor's header, an origin that is allowed.

use reqwest::Method;
use serde_json::json;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::client::{Client, VENDOR, answer};
use crate::support::process::Daemon;

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
    let (client, panel, evil) = (daemon.client(), "https://panel.example", "https://evil.example");
    let allowed = ask(&client, panel).await;
    assert_eq!(allowed.headers["access-control-allow-origin"], panel);
    allowed.is(200);
    ask(&client, evil).await.refused(403, "origin");
    ask(&client, "null").await.refused(403, "origin");
    // A cache must keep apart what differs by origin, also where none was sent.
    let plain = client.get("/containers").await;
    assert_eq!(plain.headers["vary"], "origin");
    plain.is(200);

    // Sockets and event streams bring a token of their own, and are held to the list all the same.
    let id = daemon.id("streams");
    daemon.create(&id, json!({})).await;
    for path in [format!("/ws/{id}"), format!("/containers/{id}/events")] {
        let path = format!("{path}?token={}", daemon.token);
        let request = client.anonymous().request(Method::GET, &path).header("Origin", evil);
        answer(request).await.refused(403, "origin");
    }
    let path = format!("/containers/{id}/events");
    let stream = client.request(Method::GET, &path).header("Origin", panel).send().await;
    assert_eq!(stream.expect("an answer").headers()["access-control-allow-origin"], panel);
    let mut request =
        daemon.ws_url(&id, &daemon.token, "").into_client_request().expect("a request");
    request.headers_mut().insert("origin", panel.parse().expect("a value"));
    tokio_tungstenite::connect_async(request).await.expect("a socket");

    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
        let preflight = |origin: &'static str| {
            let request = client.anonymous().request(Method::OPTIONS, "/volumes/x/tus/y");
            let request = request.header("Access-Control-Request-Method", method);
            answer(request.header("Origin", origin))
        };
        let said = preflight(panel).await;
        assert_eq!(
            (said.status, &said.headers["access-control-allow-origin"]),
            (204, &panel.parse().expect("a value"))
        );
        let methods = said.headers["access-control-allow-methods"].to_str().expect("text");
        assert!(methods.split(", ").any(|one| one == method), "{method}: {methods}");
        preflight(evil).await.refused(403, "origin");
    }
    daemon.close().await;
}
