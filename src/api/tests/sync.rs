//! The snapshot of a node with many containers.

use serde_json::{Value, json};

use super::node::Node;

#[tokio::test]
async fn a_snapshot_holds_every_container_in_a_kilobyte_or_two_each() {
    const CONTAINERS: usize = 300;
    let node = Node::new().await;
    for n in 0..CONTAINERS {
        node.container(&format!("c{n:03}")).await;
    }
    let (status, seen) = node.ask("GET", "/sync/snapshot", Value::Null).await;
    assert_eq!(status, 200, "{seen}");
    let containers = seen["containers"].as_array().unwrap();
    assert_eq!(containers.len(), CONTAINERS);
    assert!(containers.is_sorted_by_key(|container| container["internal_id"].as_str().unwrap()));
    assert!(seen.to_string().len() < CONTAINERS * 1500, "{}", seen.to_string().len());
    assert_eq!(seen["volumes"].as_array().unwrap().len(), 1);
    assert_eq!(seen["volumes"][0]["containers"].as_array().unwrap().len(), CONTAINERS);
    assert_eq!(containers[0]["last_sequence"], json!(0), "no panel, no updates");
    assert_eq!(seen["engine"]["state"], "unreachable");
}

#[tokio::test]
async fn a_node_with_nothing_has_empty_lists() {
    let node = Node::new().await;
    let (_, seen) = node.ask("GET", "/sync/snapshot", Value::Null).await;
    assert_eq!(seen["containers"], json!([]));
    assert_eq!(seen["outbox"], json!({"waiting": 0, "parked": 0, "oldest_at": null}));
}
