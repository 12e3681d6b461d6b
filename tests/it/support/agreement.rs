//! Whether all who know of a daemon's containers say the same: rows, port pool, engine and console.

use std::collections::{BTreeSet, HashMap};

use bollard::query_parameters::ListContainersOptionsBuilder;
use serde_json::{Value, json};

use super::process::Daemon;

/// Rows, pool and engine must say the same of all the daemon's containers, which are these, in these
/// states; `None`: that it is gone.
pub(crate) async fn agree(daemon: &Daemon, wanted: &[(&str, Option<&str>)]) -> Result<(), Value> {
    let client = daemon.client();
    let pool = client.get("/network/ports?in_use=true").await.is(200);
    let mut held = numbers(&pool["ports"]);
    let mut engine = in_engine(daemon).await;
    for (id, state) in wanted {
        let answer = client.get(&format!("/containers/{id}")).await;
        let Some(state) = state else {
            if answer.status != 404 {
                return Err(answer.body);
            }
            continue;
        };
        let row = answer.is(200);
        let ports = numbers(&row["ports"]);
        let published = published(daemon, id).await;
        let ends = if *state == "running" { ["running"; 2] } else { ["exited", "created"] };
        let (theirs, others): (Vec<_>, Vec<_>) =
            engine.into_iter().partition(|(name, docker_id, seen)| {
                *name == format!("lightd-{id}")
                    && row["container_id"] == docker_id.as_str()
                    && ends.contains(&seen.as_str())
            });
        let is_so = row["state"] == *state && row["install_state"] == "ready" && theirs.len() == 1;
        if !is_so || ports != published || !ports.is_subset(&held) {
            let seen = json!({"row": row, "engine": [theirs, others], "held": held, "published": published});
            return Err(seen);
        }
        held = held.difference(&ports).copied().collect();
        engine = others;
    }
    if held.is_empty() && engine.is_empty() { Ok(()) } else { Err(json!([held, engine])) }
}

/// The engine's containers of this daemon: name, id and state.
pub(crate) async fn in_engine(daemon: &Daemon) -> Vec<(String, String, String)> {
    let label = vec![format!("lightd.node={}", daemon.node)];
    let filters = HashMap::from([("label".to_owned(), label)]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let found = daemon.docker.list_containers(Some(options)).await.expect("a list");
    let found = found.into_iter().map(|found| {
        let name = found.names.unwrap_or_default().remove(0);
        let state = found.state.map(|state| state.to_string()).unwrap_or_default();
        (name.trim_start_matches('/').to_owned(), found.id.unwrap_or_default(), state)
    });
    found.collect()
}

/// Every line that a console ever had, page by page.
pub(crate) async fn all_lines(daemon: &Daemon, id: &str) -> Vec<String> {
    let (client, mut since, mut text) = (daemon.client(), 0, String::new());
    loop {
        let path = format!("/containers/{id}/logs?lines=1000&since={since}");
        let page = client.get(&path).await.is(200);
        assert_eq!(page["lines_lost"], 0, "{page}");
        text.push_str(page["data"].as_str().expect("a text"));
        match page["seq"].as_u64().expect("a number") {
            last if last == since => break,
            last => since = last,
        }
    }
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

fn numbers(ports: &Value) -> BTreeSet<u64> {
    let ports = ports.as_array().expect("a list").iter();
    ports.filter_map(|port| port["port"].as_u64()).collect()
}

async fn published(daemon: &Daemon, id: &str) -> BTreeSet<u64> {
    let bindings = daemon.inspect(id).await["HostConfig"]["PortBindings"].clone();
    let bindings = bindings.as_object().cloned().unwrap_or_default();
    let port = |bound: &Value| bound[0]["HostPort"].as_str()?.parse().ok();
    bindings.values().filter_map(port).collect()
}
