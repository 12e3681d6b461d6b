//! Many hands on one pool, and a lightd that is killed meanwhile: each port has one holder, what was
//! acknowledged stands, and row, pool and engine agree. And what others publish stays theirs.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, PortBinding};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::ports::{add, numbers_in};
use crate::support::SOON;
use crate::support::agreement::agree;
use crate::support::client::Client;
use crate::support::numbers::free_ports;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

#[tokio::test]
async fn fifty_creations_at_once_share_five_ports_without_one_being_given_twice() {
    let daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(5));
    for port in &ports {
        add(&client, *port, "tcp").await;
    }
    let volume = daemon.volume().await;
    let mut specs = Vec::new();
    for n in 0..50 {
        // Half of them take what there is, half want a certain one.
        let wanted = if n % 2 == 0 {
            json!([{}])
        } else {
            json!([{"ip": "127.0.0.1", "port": ports[n / 2 % 5]}])
        };
        let id = daemon.id(&format!("c{n}"));
        specs.push(daemon.spec(&id, json!({"ports": wanted, "volume_id": volume})).await);
    }
    let answers = join_all(specs.into_iter().map(|spec| client.post("/containers", spec))).await;
    let (made, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 201);
    assert_eq!(made.len(), 5, "{made:?}");
    for answer in refused {
        let code = answer.body["code"].as_str().unwrap_or_default().to_owned();
        assert!(["port_in_use", "no_free_port"].contains(&code.as_str()), "{answer:?}");
    }
    let listed = client.get("/containers").await.is(200);
    let containers = listed["containers"].as_array().expect("a list");
    assert_eq!(containers.len(), 5);
    let held: BTreeSet<u64> =
        containers.iter().map(|shown| shown["ports"][0]["port"].as_u64().expect("one")).collect();
    assert_eq!(held.len(), 5, "{held:?}");
    // And so it says itself, container by container.
    let pool = client.get("/network/ports?in_use=true").await.is(200);
    let holders: BTreeSet<&str> = pool["ports"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|port| port["container"].as_str().expect("a holder"))
        .collect();
    assert_eq!(holders.len(), 5, "{pool}");
    for answer in made {
        let id = answer.body["internal_id"].as_str().expect("an id").to_owned();
        daemon.install_state(&id, "ready").await;
    }
    daemon.close().await;
}

/// Status and body, if there was an answer.
async fn ask(client: Client, method: Method, path: String, body: Value) -> Option<(u16, Value)> {
    let response = client.request(method, &path).json(&body).send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, serde_json::from_str(&response.text().await.ok()?).unwrap_or_default()))
}

/// The containers that there are.
async fn ids_of(daemon: &Daemon) -> Vec<String> {
    let listed = daemon.client().get("/containers").await.is(200);
    let containers = listed["containers"].as_array().expect("a list").iter();
    containers.map(|shown| shown["internal_id"].as_str().expect("an id").to_owned()).collect()
}

async fn all_agree(daemon: &Daemon, what: &str) {
    eventually(what, SOON * 2, async || {
        let ids = ids_of(daemon).await;
        let wanted: Vec<_> = ids.iter().map(|id| (id.as_str(), Some("offline"))).collect();
        agree(daemon, &wanted).await
    })
    .await;
}

#[tokio::test]
async fn fifty_creations_and_a_kill_end_with_five_winners_and_everybody_agrees() {
    let mut daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(5));
    let range = json!({"ip": "127.0.0.1", "from": ports[0], "to": ports[4]});
    client.post("/network/ports", range).await.is(201);
    let volume = daemon.volume().await;
    for (round, delay_ms) in [3, 20, 60, 150].into_iter().enumerate() {
        let mut specs = Vec::new();
        for n in 0..50 {
            let wanted = match n % 2 {
                0 => json!([{}]),
                _ => json!([{"ip": "127.0.0.1", "port": ports[n / 2 % 5]}]),
            };
            let id = daemon.id(&format!("r{round}-{n}"));
            specs.push(daemon.spec(&id, json!({"ports": wanted, "volume_id": volume})).await);
        }
        let create = |spec: &Value| {
            ask(client.clone(), Method::POST, "/containers".to_owned(), spec.clone())
        };
        let all = join_all(specs.iter().map(create));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            daemon.kill9().await;
        };
        let (answers, ()) = tokio::join!(all, kill);
        daemon.launch().await;
        let survivors = ids_of(&daemon).await;
        assert!(survivors.len() <= 5, "{survivors:?}");
        for (spec, answer) in specs.iter().zip(&answers) {
            let id = spec["internal_id"].as_str().expect("an id").to_owned();
            let was_made = answer.as_ref().is_some_and(|(status, _)| *status == 201);
            assert!(!was_made || survivors.contains(&id), "{id} was acknowledged and is gone");
        }
        // Whoever has no answer asks again.
        let answers = join_all(specs.iter().map(create)).await;
        for answer in answers.into_iter().flatten() {
            let code = answer.1["code"].as_str().unwrap_or_default();
            let refusals = ["port_in_use", "no_free_port", "container_exists"];
            assert!(answer.0 == 201 || refusals.contains(&code), "{answer:?}");
        }
        assert_eq!(ids_of(&daemon).await.len(), 5, "killed {delay_ms} ms into it");
        all_agree(&daemon, &format!("agreement after a kill {delay_ms} ms into fifty creations"))
            .await;
        for id in ids_of(&daemon).await {
            client.delete(&format!("/containers/{id}")).await;
        }
        all_agree(&daemon, "all are deleted, and no port is held").await;
        eventually("all are deleted", SOON, async || {
            let left = ids_of(&daemon).await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn allocations_creations_marks_and_deletions_at_once_never_share_a_port() {
    let mut daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(40));
    let range = json!({"ip": "127.0.0.1", "from": ports[0], "to": ports[39]});
    client.post("/network/ports", range).await.is(201);
    // Another holder than whoever allocates.
    let issued = client.post("/auth/tokens", json!({"ttl": "1h"})).await.is(201);
    let other = client.with_token(issued["token"].as_str().expect("a token"));
    let volume = daemon.volume().await;
    let mut asked = Vec::new();
    for n in 0..20 {
        let path = format!("/network/ports/127.0.0.1/{}", ports[n * 2]);
        let marked = format!("/network/ports/127.0.0.1/{}/use", ports[(n * 2 + n % 2) % 40]);
        let lease = json!({"reserve": "1h", "contiguous": n % 3 == 0, "count": 1 + n % 2});
        asked.push((&client, Method::POST, "/network/ports/allocate".to_owned(), lease));
        asked.push((&client, Method::DELETE, path, Value::Null));
        asked.push((&other, Method::PUT, marked, json!({"in_use": true})));
        let spec = json!({"ports": [{}], "volume_id": volume});
        let spec = daemon.spec(&daemon.id(&format!("c{n}")), spec).await;
        asked.push((&client, Method::POST, "/containers".to_owned(), spec));
    }
    let asking = asked.iter().map(|(client, method, path, body)| {
        ask((*client).clone(), method.clone(), path.clone(), body.clone())
    });
    let all = join_all(asking);
    let kill = async {
        tokio::time::sleep(Duration::from_millis(40)).await;
        daemon.kill9().await;
    };
    let (answers, ()) = tokio::join!(all, kill);
    daemon.launch().await;
    let listed = client.get("/network/ports").await.is(200);
    let entry = |port: u64| {
        let entries = listed["ports"].as_array().expect("a list").iter();
        entries.into_iter().find(|entry| entry["port"] == port).cloned()
    };
    let mut leased = BTreeSet::new();
    for ((_, method, path, body), answer) in asked.iter().zip(answers) {
        let Some((status, answer)) = answer else { continue };
        assert!(matches!(status, 200 | 201 | 404 | 409 | 503), "{path}: {status} {answer}");
        let number = path.split('/').nth(4).and_then(|port| port.parse().ok());
        match (method, status, number) {
            (&Method::DELETE, 200, Some(port)) => assert_eq!(entry(port), None),
            (&Method::PUT, 200, Some(port)) => {
                let entry = entry(port).expect("a marked port is not deleted");
                assert!(entry["in_use"] == true && entry["leased_until"].is_null(), "{entry}");
            }
            (&Method::POST, 201, None) if path == "/containers" => {
                let id = body["internal_id"].as_str().expect("an id");
                assert!(ids_of(&daemon).await.iter().any(|made| made == id), "{id} is gone");
            }
            (&Method::POST, 201, _) => {
                for port in numbers_in(&answer) {
                    assert!(leased.insert(port), "{port} was handed out twice");
                    let entry = entry(port).expect("a leased port is not deleted");
                    assert!(!entry["leased_until"].is_null(), "{entry}");
                    assert!(entry["container"].is_null(), "{entry}");
                }
            }
            _ => {}
        }
    }
    let holders: Vec<Value> = listed["ports"].as_array().expect("a list").to_vec();
    let holders: Vec<_> = holders.iter().filter_map(|entry| entry["container"].as_str()).collect();
    let distinct: BTreeSet<_> = holders.iter().collect();
    assert_eq!(holders.len(), distinct.len(), "each has one port");
    assert_eq!(distinct.len(), ids_of(&daemon).await.len());
    daemon.close().await;
}

/// A container that lightd has not made; it is removed with this.
struct Stranger(String);

impl Stranger {
    async fn make(docker: &Docker, daemon: &Daemon, name: &str, port: u16, is_ours: bool) -> Self {
        let binding = PortBinding {
            host_ip: Some("127.0.0.1".to_owned()),
            host_port: Some(port.to_string()),
        };
        let ports = HashMap::from([("80/tcp".to_owned(), Some(vec![binding]))]);
        let ours = HashMap::from([("lightd.node".to_owned(), daemon.node.clone())]);
        let body = ContainerCreateBody {
            image: Some(daemon.image.clone()),
            cmd: Some(vec!["guest".to_owned(), "forever".to_owned()]),
            labels: is_ours.then_some(ours),
            host_config: Some(HostConfig { port_bindings: Some(ports), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        docker.create_container(Some(options), body).await.expect("a container");
        Self(name.to_owned())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut remove = Command::new("docker");
        remove.args(["rm", "--force", &self.0]).stdout(Stdio::null()).stderr(Stdio::null());
        // What is gone need not be removed.
        remove.status().ok();
    }
}

#[tokio::test]
async fn what_an_older_lightds_containers_publish_is_taken_into_the_pool_and_left_to_them() {
    let daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(3));
    for port in [ports[1], ports[2]] {
        add(&client, port, "tcp").await;
    }
    let name = format!("lightd-{}", daemon.id("old"));
    let other = format!("lightd-{}", daemon.id("other"));
    let _old = Stranger::make(&daemon.docker, &daemon, &name, ports[0], false).await;
    let _other = Stranger::make(&daemon.docker, &daemon, &other, ports[1], false).await;
    let imported = client.post_empty("/network/ports/import").await.is(200);
    // Other tests may have strangers of their own.
    let found = |imported: &Value, port: u16| {
        let all = imported["ports"].as_array().expect("a list").iter();
        all.into_iter().find(|found| found["port"] == port).cloned()
    };
    assert_eq!(
        found(&imported, ports[0]),
        Some(json!({
            "ip": "127.0.0.1", "port": ports[0], "protocol": "tcp", "published_by": name, "outcome": "added",
        }))
    );
    assert_eq!(found(&imported, ports[1]).expect("it is found")["outcome"], "marked");
    assert_eq!(found(&imported, ports[2]), None);
    let shown = client.get(&format!("/network/ports/127.0.0.1/{}", ports[0])).await.is(200);
    assert!(shown["in_use"] == true && shown["container"].is_null(), "{shown}");
    assert!(shown["note"].as_str().is_some_and(|note| note.contains(&name)), "{shown}");
    let again = client.post_empty("/network/ports/import").await.is(200);
    assert_eq!(found(&again, ports[0]).expect("it is found")["outcome"], "known");
    let made = daemon.create(&daemon.id("new"), json!({"ports": [{}]})).await;
    assert_eq!(made["ports"][0]["port"], ports[2]);
    let named = json!({"ports": [{"ip": "127.0.0.1", "port": ports[0]}]});
    let spec = daemon.spec(&daemon.id("named"), named).await;
    client.post("/containers", spec).await.refused(409, "port_in_use");
    daemon.close().await;
}

#[tokio::test]
async fn what_containers_of_a_lost_store_publish_is_kept_for_them_at_the_start() {
    let mut daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(2));
    add(&client, ports[0], "tcp").await;
    let name = format!("lightd-{}", daemon.id("lost"));
    let lost = Stranger::make(&daemon.docker, &daemon, &name, ports[0], true).await;
    assert_eq!(client.get("/network/ports/random").await.is(200)["port"], ports[0]);
    daemon.restart().await;
    eventually("its port is kept", SOON, async || {
        let shown = client.get(&format!("/network/ports/127.0.0.1/{}", ports[0])).await.is(200);
        if shown["in_use"] == true { Ok(()) } else { Err(shown) }
    })
    .await;
    client.get("/network/ports/random").await.refused(404, "not_found");
    drop(lost);
    daemon.close().await;
}

#[tokio::test]
async fn a_store_of_before_a_rebind_is_followed_from_the_next_start_on() {
    let mut daemon = Daemon::start().await;
    let (client, ports, id) = (daemon.client(), free_ports(2), daemon.id("older"));
    for port in &ports {
        add(&client, *port, "tcp").await;
    }
    daemon.run(&id, json!({"ports": [{"port": ports[0]}]})).await;
    daemon.terminate().await;
    let store = daemon.data_path().join("lightd.db");
    let kept = std::fs::read(&store).expect("the store");
    daemon.launch().await;
    daemon.state(&id, "running").await;
    let body = json!({"ports": [{"port": ports[1]}]});
    client.post(&format!("/containers/{id}/rebind-network"), body).await.is(202);
    let moved =
        |shown: &Value| shown["state"] == "running" && shown["ports"][0]["port"] == ports[1];
    daemon.shown(&id, "it runs on its other port", moved).await;
    daemon.terminate().await;
    std::fs::File::create(&store).and_then(|mut file| file.write_all(&kept)).expect("a write");
    daemon.launch().await;
    let adopted = |shown: &Value| shown["state"] == "running" && shown["restart_needed"] == true;
    daemon.shown(&id, "it runs on, and is to be made anew", adopted).await;
    let other = format!("/network/ports/127.0.0.1/{}", ports[1]);
    assert_eq!(client.get(&other).await.is(200)["held_by_host"], true);
    daemon.power(&id, "restart").await;
    eventually("row, pool and engine agree", SOON, async || {
        agree(&daemon, &[(&id, Some("running"))]).await
    })
    .await;
    let shown = client.get(&other).await.is(200);
    assert_eq!((&shown["held_by_host"], &shown["in_use"]), (&json!(false), &json!(false)));
    daemon.close().await;
}
