use std::time::Duration;

use serde_json::{Value, json};

use super::node::{Node, TOKEN, request};

#[tokio::test]
async fn a_container_whose_maker_has_left_is_made_and_has_an_owner() {
    let node = Node::new().await;
    let held = node.hold_writer().await;
    node.send_and_leave(request(TOKEN, "POST", "/containers", node.spec("left"))).await;
    drop(held);
    let is_there = async {
        while node.ask("GET", "/containers/left", Value::Null).await.0 != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), is_there).await.expect("nobody owns it");
    let (status, gone) = node.ask("DELETE", "/containers/left?wait=0s", Value::Null).await;
    assert_eq!(status, 202, "{gone}");
}

#[tokio::test]
async fn two_changes_of_how_it_is_stopped_at_once_both_stand() {
    let node = Node::new().await;
    node.container("both").await;
    let change = |stop: Value| node.ask("PATCH", "/containers/both", json!({"stop": stop}));
    let (one, other) =
        tokio::join!(change(json!({"timeout": 5})), change(json!({"command": "end"})));
    assert_eq!((one.0.as_u16(), other.0.as_u16()), (200, 200), "{} {}", one.1, other.1);
    let (_, shown) = node.ask("GET", "/containers/both", Value::Null).await;
    assert_eq!(shown["stop"], json!({"command": "end", "timeout": 5}), "{shown}");
}
