use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};

use super::node::{Node, TOKEN, answer, request};
use crate::api::idempotency::KEYED;
use crate::api::permissions::ROUTES;

fn keyed(token: &str, key: &str, uri: &str, body: &Value) -> Request<Body> {
    let mut request = request(token, "POST", uri, body.clone());
    request.headers_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

async fn send(
    node: &Node,
    token: &str,
    key: &str,
    uri: &str,
    body: &Value,
) -> (StatusCode, Value, bool) {
    let response = node.send(keyed(token, key, uri, body)).await;
    let is_replayed = response.headers().contains_key("idempotent-replayed");
    let (status, body) = answer(response).await;
    (status, body, is_replayed)
}

async fn volumes(node: &Node) -> usize {
    let (_, listed) = node.ask("GET", "/volumes", Value::Null).await;
    listed["volumes"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_request_with_a_key_is_done_once_and_answered_alike() {
    let node = Node::new().await;
    let before = volumes(&node).await;
    let (status, first, replayed) = send(&node, TOKEN, "k1", "/volumes", &json!({"size": 5})).await;
    assert_eq!((status.as_u16(), replayed), (201, false));
    let (status, again, replayed) = send(&node, TOKEN, "k1", "/volumes", &json!({"size": 5})).await;
    assert_eq!((status.as_u16(), replayed), (201, true));
    assert_eq!(again, first);
    assert_eq!(volumes(&node).await, before + 1);
    let (status, other, _) = send(&node, TOKEN, "k1", "/volumes", &json!({"size": 6})).await;
    assert_eq!((status.as_u16(), &other["code"]), (422, &json!("idempotency_key_reused")));
    let ttl = json!({"ttl": "1h"});
    let (_, issued, _) = send(&node, TOKEN, "k2", "/auth/tokens", &ttl).await;
    let (_, again, replayed) = send(&node, TOKEN, "k2", "/auth/tokens", &ttl).await;
    assert!(replayed && again["token"] == issued["token"], "{again}");
    // The key is the sender's own.
    let token = issued["token"].as_str().unwrap();
    let (status, theirs, _) = send(&node, token, "k1", "/volumes", &json!({"size": 5})).await;
    assert_eq!(status.as_u16(), 201);
    assert_ne!(theirs["id"], first["id"]);
    let (status, bad, _) = send(&node, TOKEN, &"k".repeat(256), "/volumes", &json!({})).await;
    assert_eq!((status.as_u16(), &bad["problems"][0]["field"]), (400, &json!("Idempotency-Key")));
    let (status, _, _) =
        send(&node, "lightd_wrong-wrong-wrong", "k1", "/volumes", &json!({})).await;
    assert_eq!(status.as_u16(), 401, "and nothing is told to strangers");
}

#[tokio::test]
async fn a_refusal_is_not_kept_and_a_token_that_is_good_once_is_used_once() {
    let node = Node::new().await;
    let body = json!({"ip": "127.0.0.1", "port": 7001});
    node.ask("POST", "/network/ports", body.clone()).await;
    let (status, _, _) = send(&node, TOKEN, "k", "/network/ports", &body).await;
    assert_eq!(status.as_u16(), 409);
    node.ask("DELETE", "/network/ports/127.0.0.1/7001", Value::Null).await;
    let (status, _, replayed) = send(&node, TOKEN, "k", "/network/ports", &body).await;
    assert_eq!((status.as_u16(), replayed), (201, false), "now it can be done");
    let once = json!({"ttl": "1h", "remove_on_use": true});
    let (_, issued) = node.ask("POST", "/auth/tokens", once).await;
    let token = issued["token"].as_str().unwrap();
    let (status, made, _) = send(&node, token, "k", "/volumes", &json!({})).await;
    assert_eq!(status.as_u16(), 201, "{made}");
    assert_eq!(send(&node, token, "k", "/volumes", &json!({})).await.0.as_u16(), 401);
}

#[tokio::test]
async fn where_a_key_does_not_count_it_is_refused_and_nothing_is_done() {
    let node = Node::new().await;
    node.container("a").await;
    for (method, path, _) in ROUTES {
        let counts = *method == "POST" && KEYED.contains(path);
        if counts || ["GET", "HEAD", "OPTIONS"].contains(method) {
            continue;
        }
        let uri = path.replace("{ip}/{port}", "127.0.0.1/1").replace("{id}", "a");
        let uri = uri.replace("{upload}", "x").replace("{sequence}", "1").replace("{name}", "x");
        let with_key = |token: &str| {
            let mut request = request(token, method, &uri, Value::Null);
            request.headers_mut().insert("idempotency-key", "k".parse().unwrap());
            node.send(request)
        };
        let (status, told) = answer(with_key(TOKEN).await).await;
        let told = (status.as_u16(), told["code"].as_str().unwrap().to_owned());
        assert_eq!(told, (400, "idempotency_unsupported".to_owned()), "{method} {path}");
        let (status, _) = answer(with_key("lightd_wrong-wrong-wrong").await).await;
        assert_eq!(status.as_u16(), 401, "{method} {path}");
    }
    assert_eq!(node.ask("GET", "/containers/a", Value::Null).await.0, 200);
}

#[tokio::test]
async fn an_answer_that_leaves_the_end_open_is_looked_at_again() {
    let node = Node::new().await;
    let uri = |wait: &str| format!("/containers{wait}");
    let body = node.spec("a");
    let (status, first, _) = send(&node, TOKEN, "k", &uri("?wait=0s"), &body).await;
    assert_eq!((status.as_u16(), &first["done"]), (202, &json!(false)), "{first}");
    for wait in ["?wait=0s", "?wait=1s", ""] {
        let (status, again, replayed) = send(&node, TOKEN, "k", &uri(wait), &body).await;
        assert_eq!((status.as_u16(), replayed, &again["done"]), (202, true, &json!(false)));
    }
    let (status, bad, _) = send(&node, TOKEN, "k", &uri("?wait=soon"), &body).await;
    assert_eq!((status.as_u16(), &bad["problems"][0]["field"]), (400, &json!("?wait")));
    // There is no engine that could install it; but its end can come.
    assert!(node.ask("DELETE", "/containers/a?wait=0s", Value::Null).await.0.is_success());
    let (status, ended, replayed) = send(&node, TOKEN, "k", &uri("?wait=9s"), &body).await;
    assert_eq!((status.as_u16(), replayed), (409, true), "{ended}");
    assert_eq!(ended["code"], "deleting");
    let (status, again, replayed) = send(&node, TOKEN, "k", &uri("?wait=9s"), &body).await;
    assert_eq!((status.as_u16(), replayed, again), (409, true, ended), "that stands");
}

#[tokio::test]
async fn the_same_request_twice_at_once_is_done_once() {
    let node = Node::new().await;
    let before = volumes(&node).await;
    let body = json!({"size": 5});
    let one = || send(&node, TOKEN, "k", "/volumes", &body);
    let all = futures_util::future::join_all((0..8).map(|_| one())).await;
    for (status, answer, _) in &all {
        let is_expected =
            *status == 201 || answer["code"] == "idempotency_in_progress" && *status == 409;
        assert!(is_expected, "{answer}");
    }
    assert!(all.iter().any(|(status, ..)| *status == 201));
    assert_eq!(volumes(&node).await, before + 1);
}

#[tokio::test]
async fn a_request_that_its_sender_has_left_is_done_all_the_same_and_one_of_a_crash_is_not_repeated()
 {
    let node = Node::new().await;
    let before = volumes(&node).await;
    let body = json!({"size": 5});
    {
        let sending = send(&node, TOKEN, "left", "/volumes", &body);
        tokio::pin!(sending);
        // Given up as soon as it is under way.
        let task_begun = async {
            while node.state.idempotency.running() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = &mut sending => {}
            () = task_begun => {}
        }
    }
    node.state.idempotency.drained().await;
    let (status, _, replayed) = send(&node, TOKEN, "left", "/volumes", &body).await;
    assert_eq!((status.as_u16(), replayed), (201, true));
    assert_eq!(volumes(&node).await, before + 1);

    // One that leaves before it is even noted.
    let node = Node::new().await;
    let held = node.hold_writer().await;
    node.send_and_leave(keyed(TOKEN, "early", "/volumes", &body)).await;
    drop(held);
    node.state.idempotency.drained().await;
    let (status, again, replayed) = send(&node, TOKEN, "early", "/volumes", &body).await;
    assert_eq!((status.as_u16(), replayed), (201, true), "{again}");

    let node = Node::new().await;
    send(&node, TOKEN, "crashed", "/volumes", &body).await;
    node.state.store.write("test", |tx| tx.unanswer_idempotent("crashed")).await.unwrap();
    let (status, unknown, _) = send(&node, TOKEN, "crashed", "/volumes", &body).await;
    assert_eq!((status.as_u16(), &unknown["code"]), (409, &json!("idempotency_unknown")));
}
