//! lightd killed in the middle of changes: there is no change without its entry, and none the other way
//! round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::entries;
use crate::support::SOON;
use crate::support::client::Client;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

/// Callers that change things at the same time.
const CALLERS: usize = 8;
/// After how many answers lightd is killed, each time.
const KILLED_AFTER: [usize; 5] = [3, 17, 40, 71, 113];

/// Changes one thing after the other until nobody answers.
async fn change(client: Client, ports: Vec<u16>, answered: Arc<AtomicUsize>) {
    let post = async |path: &str, body: Value| {
        let request = client.request(reqwest::Method::POST, path).json(&body);
        request.send().await.is_ok_and(|answer| answer.status().is_success())
    };
    for (round, port) in ports.into_iter().enumerate() {
        let marked = format!("/network/ports/127.0.0.1/{port}/use");
        let mark = client.request(reqwest::Method::PUT, &marked).json(&json!({"in_use": true}));
        let file = json!({"ip": "127.0.0.1", "port": port});
        let went_on = post("/network/ports", file).await
            && mark.send().await.is_ok_and(|answer| answer.status().is_success())
            && post("/auth/tokens", json!({"ttl": "1h"})).await
            && (!round.is_multiple_of(4) || post("/volumes", json!({})).await);
        if !went_on {
            return;
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often each thing stands in a list.
fn counted(items: impl IntoIterator<Item = Option<String>>) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for item in items {
        *counts.entry(item.expect("a name")).or_default() += 1;
    }
    counts
}

fn texts(list: &Value, field: &str) -> BTreeMap<String, u32> {
    let list = list.as_array().expect("a list").iter();
    counted(list.map(|item| item[field].as_str().map(str::to_owned)))
}

/// Everything there is has exactly one entry that says who made it.
async fn in_agreement(client: &Client) {
    let of = async |action: &str| entries(client, &format!("action={action}")).await;
    let tokens = client.get("/auth/tokens").await.is(200);
    let issued = of("token.issue").await;
    let issued = issued.iter().map(|it| it["details"]["token_id"].as_str().map(str::to_owned));
    assert_eq!(texts(&tokens["tokens"], "id"), counted(issued), "tokens");
    let volumes = client.get("/volumes").await.is(200);
    assert_eq!(
        texts(&volumes["volumes"], "id"),
        texts(&json!(of("volume.create").await), "volume_id")
    );
    let containers = client.get("/containers").await.is(200);
    let created = json!(of("container.create").await);
    assert_eq!(texts(&containers["containers"], "internal_id"), texts(&created, "container"));

    let pool = client.get("/network/ports").await.is(200);
    let pool = pool["ports"].as_array().expect("a list");
    let name = |port: &Value| Some(format!("127.0.0.1 {0}-{0}/tcp", port["port"]));
    let added = of("port.add").await;
    let added = added.iter().map(|it| it["details"]["ports"].as_str().map(str::to_owned));
    assert_eq!(counted(pool.iter().map(name)), counted(added), "ports");
    let marked = pool.iter().filter(|port| port["in_use"] == true && port["container"].is_null());
    let name = |port: &Value| Some(format!("127.0.0.1:{}/tcp", port["port"]));
    let marks = of("port.mark").await;
    let marks = marks.iter().map(|it| it["details"]["ports"][0].as_str().map(str::to_owned));
    assert_eq!(counted(marked.map(name)), counted(marks), "marks");
}

#[tokio::test]
async fn a_killed_lightd_leaves_no_change_without_its_entry_and_no_entry_without_its_change() {
    let mut daemon = Daemon::start().await;
    let ids: Vec<String> = (0..KILLED_AFTER.len()).map(|n| daemon.id(&format!("c{n}"))).collect();
    for (round, (after, id)) in KILLED_AFTER.into_iter().zip(&ids).enumerate() {
        let (answered, mut callers) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        let spec = daemon.spec(id, json!({})).await;
        for caller in 0..CALLERS {
            let first = 20_000 + (round * CALLERS + caller) * 100;
            let ports = (first..first + 100).map(|port| u16::try_from(port).expect("a port"));
            callers.spawn(change(daemon.client(), ports.collect(), Arc::clone(&answered)));
        }
        let creating = daemon.client();
        callers.spawn(async move {
            let create = creating.request(reqwest::Method::POST, "/containers").json(&spec);
            // lightd may be gone by then.
            drop(create.send().await);
        });
        eventually("enough was answered", SOON, async || match answered.load(Ordering::Relaxed) {
            so_many if so_many >= after => Ok(()),
            so_many => Err(so_many),
        })
        .await;
        daemon.kill9().await;
        callers.join_all().await;
        daemon.launch().await;
        in_agreement(&daemon.client()).await;
    }
    daemon.close().await;
}
