//! Issued tokens as a panel keeps order among them: where they came from, by container, and how many.

use reqwest::Method;
use serde_json::{Value, json};

use super::{issue, token_of};
use crate::support::SOON;
use crate::support::client::answer;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

fn path_of(issued: &Value) -> String {
    format!("/auth/tokens/{}", issued["id"].as_str().expect("an id"))
}

fn ids(listed: &Value) -> Vec<Value> {
    let tokens = listed["tokens"].as_array().expect("a list").iter();
    tokens.map(|token| token["id"].clone()).collect()
}

#[tokio::test]
async fn where_a_token_came_from_and_was_used_is_shown() {
    let daemon = Daemon::start_with(|config| {
        config["server"]["trusted_proxies"] = json!(["127.0.0.1"]);
    })
    .await;
    let client = daemon.client();
    let request = client.request(Method::POST, "/auth/tokens").json(&json!({}));
    let made = answer(request.header("X-Forwarded-For", "203.0.113.9")).await.is(201);
    let shown = client.get(&path_of(&made)).await.is(200);
    assert_eq!(
        (&shown["issued_by"], &shown["issued_from"], &shown["last_used_at"]),
        (&json!("node"), &json!("203.0.113.9"), &Value::Null)
    );
    let used = client.with_token(token_of(&made)).request(Method::GET, "/containers");
    answer(used.header("X-Forwarded-For", "2001:db8::7")).await.is(200);
    let shown = eventually("its use is noted", SOON, async || {
        let shown = client.get(&path_of(&made)).await.is(200);
        if shown["last_used_from"] == "2001:db8::7" { Ok(shown) } else { Err(shown) }
    })
    .await;
    assert!(shown["last_used_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{shown}");
    // One for a single use says where that was.
    let once = issue(&daemon, json!({"remove_on_use": true})).await;
    client.with_token(token_of(&once)).get("/containers").await.is(200);
    assert_eq!(client.get(&path_of(&once)).await.is(200)["last_used_from"], "127.0.0.1");
    daemon.close().await;
}

#[tokio::test]
async fn tokens_are_listed_page_by_page_and_by_container_and_revoked_together() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    let mut made = Vec::new();
    for body in [json!({"containers": ["a"]}), json!({"containers": ["a", "b"]}), json!({})] {
        made.push(issue(&daemon, body).await);
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("/auth/tokens?limit=1{cursor}")).await.is(200);
        seen.extend(ids(&page));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen.len(), 3);
    assert!(made.iter().all(|issued| seen.contains(&issued["id"])), "{seen:?}");
    let of_b = client.get("/auth/tokens?container=b").await.is(200);
    assert_eq!(ids(&of_b), [made[1]["id"].clone()]);
    client.get("/auth/tokens?limit=0").await.names_field("?limit");
    client.get("/auth/tokens?cursor=x").await.refused(400, "invalid_cursor");
    client.get(&format!("/auth/tokens/{}", uuid::Uuid::new_v4())).await.refused(404, "not_found");

    for wrong in ["", "?all=true&container=a", "?all=false"] {
        client.delete(&format!("/auth/tokens{wrong}")).await.names_field("?container");
    }
    assert_eq!(client.delete("/auth/tokens?container=a").await.is(200)["revoked"], 2);
    client.with_token(token_of(&made[0])).get("/containers").await.refused(401, "unauthorized");
    client.with_token(token_of(&made[2])).get("/containers").await.is(200);
    assert_eq!(client.delete("/auth/tokens?all=true").await.is(200)["revoked"], 1);
    daemon.close().await;
}

#[tokio::test]
async fn what_was_issued_for_a_container_ends_with_it() {
    let daemon = Daemon::start().await;
    let (mine, other) = (daemon.id("mine"), daemon.id("other"));
    for id in [&mine, &other] {
        daemon.create(id, json!({})).await;
    }
    let client = daemon.client();
    let one = issue(&daemon, json!({"containers": [mine]})).await;
    let both = issue(&daemon, json!({"containers": [mine, other]})).await;
    let (of_one, of_both) = (client.with_token(token_of(&one)), client.with_token(token_of(&both)));
    client.delete(&format!("/containers/{mine}")).await.is(200);
    of_one.get("/containers").await.refused(401, "unauthorized");
    let shown = client.get(&path_of(&both)).await.is(200);
    assert_eq!(shown["containers"], json!([other]));
    of_both.get(&format!("/containers/{other}")).await.is(200);
    // Whoever takes the name next is somebody else.
    daemon.create(&mine, json!({})).await;
    of_both.get(&format!("/containers/{mine}")).await.refused(403, "scope");
    of_one.get("/containers").await.refused(401, "unauthorized");
    daemon.close().await;
}

#[tokio::test]
async fn a_node_takes_so_many_tokens_and_says_when_that_is_all() {
    let daemon =
        Daemon::start_with(|config| config["authorization"]["max_tokens"] = json!(2)).await;
    let client = daemon.client();
    issue(&daemon, json!({})).await;
    issue(&daemon, json!({"ttl": "2s"})).await;
    let refused = client.post("/auth/tokens", json!({})).await.refused(409, "too_many_tokens");
    let why = refused["error"].as_str().expect("a sentence");
    assert!(why.contains("authorization.max_tokens"), "{why}");
    eventually("the short one makes room", SOON, async || {
        let answer = client.post("/auth/tokens", json!({})).await;
        if answer.status == 201 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    for field in ["containers", "permissions"] {
        client.post("/auth/tokens", json!({field: []})).await.names_field(field);
    }
    daemon.close().await;
}
