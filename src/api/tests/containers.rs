use std::time::Duration;

use serde_json::Value;

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
