//! What is kept under a container's id, and whose it is: that of who has the id now.

use serde_json::{Value, json};

use super::node::{Node, TOKEN};
use crate::domain::audit::{Act, Action, Actor};
use crate::domain::ids::ContainerId;
use crate::domain::units::UnixSeconds;
use crate::domain::usage::Usage;
use crate::domain::usage::calendar::DAY_S;
use crate::domain::usage::meter::Taken;

/// As a container of this id has left it that was deleted days ago.
async fn past_of(node: &Node, id: &'static str) {
    let then = UnixSeconds(UnixSeconds::now().0 - 3 * DAY_S);
    let write = move |tx: &crate::store::Tx<'_>| {
        let id = ContainerId::parse(id).unwrap();
        tx.record(&Act::new(Actor::lightd(), Action::ContainerStart).on(&id), then)?;
        let used = Usage { run_ms: 3_600_000, ..Usage::default() };
        tx.add_usage(&id, &Taken { hours: vec![(then, used)], position: None })
    };
    node.state.store.write("test", write).await.unwrap();
}

async fn token_for(node: &Node, body: Value) -> String {
    let (status, issued) = node.ask("POST", "/auth/tokens", body).await;
    assert_eq!(status, 201, "{issued}");
    issued["token"].as_str().unwrap().to_owned()
}

async fn actions(node: &Node, token: &str, uri: &str) -> Vec<String> {
    let (status, told) = node.ask_as(token, "GET", uri, Value::Null).await;
    assert_eq!(status, 200, "{told}");
    let entries = told["entries"].as_array().unwrap().iter();
    entries.map(|entry| entry["action"].as_str().unwrap().to_owned()).collect()
}

/// Hours in which something ran, by a call about billing.
async fn hours(node: &Node, token: &str, uri: &str) -> f64 {
    let (status, told) = node.ask_as(token, "GET", uri, Value::Null).await;
    assert_eq!(status, 200, "{told}");
    told["total"]["duration_hours"].as_f64().unwrap()
}

#[tokio::test]
async fn what_an_earlier_holder_of_an_id_did_and_used_is_not_the_next_ones() {
    let node = Node::new().await;
    for id in ["mine", "gone"] {
        past_of(&node, id).await;
    }
    node.container("mine").await;
    let tenant = token_for(&node, json!({"containers": ["mine", "gone"]})).await;
    let panel = token_for(&node, json!({"permissions": ["containers.read"]})).await;
    for uri in ["/audit?container=mine", "/audit"] {
        assert_eq!(actions(&node, &tenant, uri).await, ["container.create"], "{uri}");
    }
    assert_eq!(actions(&node, &tenant, "/audit?container=gone").await, Vec::<String>::new());
    for other in [TOKEN, &panel] {
        let all = actions(&node, other, "/audit?container=mine").await;
        assert_eq!(all, ["container.create", "container.start"]);
    }
    let from = UnixSeconds::now().0 - 10 * DAY_S;
    for step in ["hourly", "daily", "monthly"] {
        let uri = format!("/billing/usage/mine/{step}?from={from}");
        assert_eq!(hours(&node, &tenant, &uri).await, 0.0, "{step}");
        assert_eq!(hours(&node, TOKEN, &uri).await, 1.0, "{step}");
        assert_eq!(hours(&node, &panel, &uri).await, 1.0, "{step}");
        let gone = format!("/billing/usage/gone/{step}?from={from}");
        assert_eq!(node.ask_as(&tenant, "GET", &gone, Value::Null).await.0, 404);
        assert_eq!(hours(&node, TOKEN, &gone).await, 1.0, "{step}");
    }
    let month =
        crate::domain::usage::calendar::month_name(UnixSeconds(UnixSeconds::now().0 - 3 * DAY_S));
    let uri = format!("/billing/containers?month={month}");
    assert_eq!(hours(&node, &tenant, &uri).await, 0.0);
    assert_eq!(hours(&node, TOKEN, &uri).await, 2.0);
}
