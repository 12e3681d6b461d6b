//! The port pool and what containers hold of it.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::client::Client;
use crate::support::numbers::{free_port, free_ports};
use crate::support::process::Daemon;
use crate::support::wait::eventually;

async fn add(client: &Client, port: u16, protocol: &str) {
    let body = json!({"ip": "127.0.0.1", "port": port, "protocol": protocol});
    client.post("/network/ports", body).await.is(201);
}

/// The numbers in a list of ports.
fn numbers_in(answer: &Value) -> Vec<u64> {
    let ports = answer["ports"].as_array().expect("a list").iter();
    ports.map(|port| port["port"].as_u64().expect("a number")).collect()
}

#[tokio::test]
async fn ports_are_added_shown_and_deleted() {
    let daemon = Daemon::start().await;
    let (client, port) = (daemon.client(), free_port());
    let body = json!({"ip": "0.0.0.0", "port": port, "protocol": "tcp"});
    let added = client.post("/network/ports", body.clone()).await.is(201);
    assert!(added["message"].is_string(), "{added}");
    let is_it = |shown: &Value| {
        assert_eq!((&shown["ip"], &shown["port"]), (&json!("0.0.0.0"), &json!(port)));
        assert_eq!(shown["protocol"], "tcp");
    };
    is_it(&added);
    let again = client.post("/network/ports", body).await.refused(409, "port_exists");
    assert_eq!(again["error"], "Port already exists in pool");

    let path = format!("/network/ports/0.0.0.0/{port}");
    let shown = client.get(&path).await.is(200);
    is_it(&shown);
    assert_eq!((&shown["in_use"], &shown["container"]), (&json!(false), &Value::Null));
    let listed = client.get("/network/ports").await.is(200);
    assert_eq!(listed["ports"], json!([shown]));
    is_it(&client.get("/network/ports/random").await.is(200));

    assert!(client.delete(&path).await.is(200)["message"].is_string());
    client.delete(&path).await.refused(404, "not_found");
    client.get(&path).await.refused(404, "not_found");
    let none = client.get("/network/ports/random").await.refused(404, "not_found");
    assert_eq!(none["error"], "No available ports in pool");
    daemon.close().await;
}

#[tokio::test]
async fn bad_ports_are_refused_by_name() {
    let daemon = Daemon::start().await;
    let client = daemon.client();
    for (body, field) in [
        (json!({}), "ip"),
        (json!({"ip": "0.0.0.0"}), "port"),
        (json!({"ip": "nowhere", "port": 1}), "ip"),
        (json!({"ip": "198.51.100.7", "port": 1}), "ip"),
        (json!({"ip": "0.0.0.0", "port": 0}), "port"),
        (json!({"ip": "0.0.0.0", "port": 65_536}), "port"),
        (json!({"ip": "0.0.0.0", "port": "80"}), "port"),
        (json!({"ip": "0.0.0.0", "port": 80, "protocol": "sctp"}), "protocol"),
        (json!({"ip": "0.0.0.0", "port": 80, "from": 1}), "port"),
        (json!({"ip": "0.0.0.0", "from": 9}), "port"),
        (json!({"ip": "0.0.0.0", "from": 9, "to": 8}), "to"),
        (json!({"ip": "0.0.0.0", "from": 1, "to": 10_001}), "port"),
        (json!({"ip": "0.0.0.0", "port": 80, "nane": 1}), "nane"),
    ] {
        client.post("/network/ports", body).await.names_field(field);
    }
    client.get("/network/ports/nowhere/80").await.refused(400, "invalid_parameter");
    client.get("/network/ports/0.0.0.0/99999").await.refused(400, "invalid_parameter");
    client.get("/network/ports/0.0.0.0/80?protocol=sctp").await.names_field("?protocol");
    client.get("/network/ports?in_use=perhaps").await.names_field("?in_use");
    let use_path = "/network/ports/0.0.0.0/80/use";
    client.put(use_path, json!({"in_use": "yes"})).await.names_field("in_use");
    client.put(use_path, json!({"in_use": true})).await.refused(404, "not_found");
    client.post("/network/ports/bulk-delete", json!({})).await.names_field("ports");
    assert_eq!(client.get("/network/ports").await.is(200), json!({"ports": []}));
    daemon.close().await;
}

#[tokio::test]
async fn a_range_is_added_whole_or_not_at_all_and_wildcards_exclude_addresses() {
    let daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(6));
    let range = |from: u16, to: u16| json!({"ip": "127.0.0.1", "from": from, "to": to});
    let added = client.post("/network/ports", range(ports[0], ports[3])).await.is(201);
    assert_eq!(added["added"], 4);
    client.post("/network/ports", range(ports[3], ports[5])).await.refused(409, "port_exists");
    let listed = client.get("/network/ports").await.is(200);
    assert_eq!(numbers_in(&listed), ports[..4].iter().copied().map(u64::from).collect::<Vec<_>>());

    let at = |ip: &str, protocol: &str| json!({"ip": ip, "port": ports[0], "protocol": protocol});
    client.post("/network/ports", at("0.0.0.0", "tcp")).await.refused(409, "port_overlaps");
    client.post("/network/ports", at("0.0.0.0", "udp")).await.is(201);
    client.post("/network/ports", at("127.0.0.1", "udp")).await.refused(409, "port_overlaps");
    // One number, two protocols.
    let path = format!("/network/ports/127.0.0.1/{}", ports[0]);
    assert_eq!(client.get(&path).await.is(200)["protocol"], "tcp");
    client.get(&format!("{path}?protocol=udp")).await.refused(404, "not_found");
    let udp = format!("/network/ports/0.0.0.0/{}?protocol=udp", ports[0]);
    assert_eq!(client.get(&udp).await.is(200)["protocol"], "udp");
    assert_eq!(numbers_in(&client.get("/network/ports?protocol=udp").await.is(200)).len(), 1);
    assert_eq!(numbers_in(&client.get("/network/ports?ip=127.0.0.1").await.is(200)).len(), 4);
    daemon.close().await;
}

#[tokio::test]
async fn a_port_is_marked_by_hand_and_then_not_handed_out() {
    let daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(2));
    for port in &ports {
        add(&client, *port, "tcp").await;
    }
    let path = format!("/network/ports/127.0.0.1/{}", ports[0]);
    let marked = client.put(&format!("{path}/use"), json!({"in_use": true})).await.is(200);
    assert_eq!((&marked["port"], &marked["in_use"]), (&json!(ports[0]), &json!(true)));
    assert!(marked["message"].is_string() && marked["ip"] == "127.0.0.1", "{marked}");
    assert_eq!(client.get("/network/ports/random").await.is(200)["port"], ports[1]);
    let used = client.get("/network/ports?in_use=true").await.is(200);
    assert_eq!(numbers_in(&used), [u64::from(ports[0])]);
    client.delete(&path).await.refused(409, "port_in_use");
    let wanted = json!({"ports": [{"ip": "127.0.0.1", "port": ports[0]}]});
    let spec = daemon.spec(&daemon.id("a"), wanted).await;
    client.post("/containers", spec).await.refused(409, "port_in_use");
    client.put(&format!("{path}/use"), json!({"in_use": false})).await.is(200);
    client.delete(&path).await.is(200);
    daemon.close().await;
}

#[tokio::test]
async fn a_port_that_another_process_listens_on_is_not_handed_out() {
    let daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(2));
    let _listener = std::net::TcpListener::bind(("127.0.0.1", ports[0])).expect("a free port");
    for port in &ports {
        add(&client, *port, "tcp").await;
    }
    for _ in 0..5 {
        assert_eq!(client.get("/network/ports/random").await.is(200)["port"], ports[1]);
    }
    let id = daemon.id("any");
    let made = daemon.create(&id, json!({"ports": [{}]})).await;
    assert_eq!(made["ports"][0]["port"], ports[1]);
    client.get("/network/ports/random").await.refused(404, "not_found");
    daemon.close().await;
}

#[tokio::test]
async fn what_a_container_holds_can_be_neither_freed_nor_deleted() {
    let daemon = Daemon::start().await;
    let (client, ports, id) = (daemon.client(), free_ports(3), daemon.id("holds"));
    for port in &ports {
        add(&client, *port, "tcp").await;
    }
    daemon.create(&id, json!({"ports": [{"ip": "127.0.0.1", "port": ports[0]}]})).await;
    let path = format!("/network/ports/127.0.0.1/{}", ports[0]);
    let shown = client.get(&path).await.is(200);
    assert_eq!((&shown["in_use"], &shown["container"]), (&json!(true), &json!(id)));
    client.put(&format!("{path}/use"), json!({"in_use": false})).await.refused(409, "port_in_use");
    client.delete(&path).await.refused(409, "port_in_use");
    let all: Vec<Value> =
        ports.iter().map(|port| json!({"ip": "127.0.0.1", "port": port})).collect();
    let deleted = client.post("/network/ports/bulk-delete", json!({"ports": all})).await.is(200);
    assert_eq!(deleted["deleted_count"], 2);
    assert!(deleted["message"].is_string(), "{deleted}");
    assert_eq!(numbers_in(&client.get("/network/ports").await.is(200)), [u64::from(ports[0])]);
    client.delete(&format!("/containers/{id}")).await.is(200);
    client.delete(&path).await.is(200);
    daemon.close().await;
}

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

#[tokio::test]
async fn allocated_ports_are_held_until_their_time_is_over() {
    let daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(4));
    let (first, last) = (ports[0], ports[3]);
    let range = json!({"ip": "127.0.0.1", "from": first, "to": last});
    client.post("/network/ports", range).await.is(201);
    let allocate = async |body: Value| client.post("/network/ports/allocate", body).await;
    let row = allocate(json!({"count": 3, "contiguous": true, "reserve": "2s"})).await.is(201);
    let numbers = numbers_in(&row);
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{row}");
    assert!(row["lease_id"].is_string() && row["expires_at"].is_u64(), "{row}");
    allocate(json!({"count": 2})).await.refused(404, "not_found");
    let other = numbers_in(&allocate(json!({})).await.is(201));
    assert!(!numbers.contains(&other[0]), "{other:?} of {numbers:?}");
    // They come back by themselves.
    eventually("the lease ends", SOON, async || {
        let answer = allocate(json!({"count": 3, "reserve": "1s"})).await;
        if answer.status == 201 { Ok(()) } else { Err(answer) }
    })
    .await;
    for (body, field) in [
        (json!({"count": 0}), "count"),
        (json!({"count": 5000}), "count"),
        (json!({"reserve": "soon"}), "reserve"),
        (json!({"reserve": "0s"}), "reserve"),
        (json!({"reserve": "2d"}), "reserve"),
        (json!({"protocol": "icmp"}), "protocol"),
    ] {
        allocate(body).await.names_field(field);
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_rebind_moves_the_published_port_and_a_refused_one_changes_nothing() {
    let daemon = Daemon::start().await;
    let (client, ports, id) = (daemon.client(), free_ports(3), daemon.id("moves"));
    for port in &ports {
        add(&client, *port, "tcp").await;
    }
    let on = |port: u16| json!([{"ip": "127.0.0.1", "port": port, "container_port": 8080}]);
    daemon
        .run(&id, json!({
            "startup_command": "echo kept > kept; guest serve 8080", "start_pattern": "listening",
            "ports": on(ports[0]),
        }))
        .await;
    expect_hello(ports[0]).await;
    let other = daemon.id("other");
    daemon.create(&other, json!({"ports": on(ports[2])})).await;

    let path = format!("/containers/{id}/rebind-network");
    client.post(&path, json!({"ports": on(ports[2])})).await.refused(409, "port_in_use");
    client.post(&path, json!({"ports": on(1)})).await.names_field("ports");
    client.post(&path, json!({"ports": [{"port": 0}]})).await.names_field("ports[0].port");
    client.post(&path, json!({})).await.names_field("ports");
    let twice = json!({"ports": [on(ports[1])[0], on(ports[1])[0]]});
    client.post(&path, twice).await.names_field("ports");
    expect_hello(ports[0]).await;

    client.post(&path, json!({"ports": on(ports[1])})).await.is(202);
    let moved = daemon
        .shown(&id, "it runs on its other port", |shown| {
            shown["state"] == "running" && shown["ports"] == json!([{
                "ip": "127.0.0.1", "port": ports[1], "protocol": "tcp", "container_port": 8080,
            }])
        })
        .await;
    expect_hello(ports[1]).await;
    assert!(std::net::TcpStream::connect(("127.0.0.1", ports[0])).is_err(), "the old one answers");
    assert_eq!(daemon.volume_file(&moved, "kept").as_deref(), Some("kept\n"));
    eventually("the old port is free", SOON, async || {
        let shown = client.get(&format!("/network/ports/127.0.0.1/{}", ports[0])).await.is(200);
        if shown["in_use"] == false { Ok(()) } else { Err(shown) }
    })
    .await;
    daemon.close().await;
}

/// The guest's page, over the published port.
pub(crate) async fn expect_hello(port: u16) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("http://127.0.0.1:{port}/");
    eventually("the published port answers", SOON, async || {
        let response = client.get(&url).send().await.map_err(|error| format!("{error:?}"))?;
        let text = response.text().await.map_err(|error| format!("{error:?}"))?;
        if text == "hello" { Ok(()) } else { Err(text) }
    })
    .await;
}

#[tokio::test]
async fn udp_and_tcp_are_published_apart_and_only_where_asked() {
    let daemon = Daemon::start().await;
    let (client, port, id) = (daemon.client(), free_port(), daemon.id("udp"));
    add(&client, port, "udp").await;
    daemon.run(&id, json!({"ports": [{"ip": "127.0.0.1", "port": port, "protocol": "udp"}]})).await;
    let seen = daemon.inspect(&id).await;
    let expected =
        json!({format!("{port}/udp"): [{"HostIp": "127.0.0.1", "HostPort": port.to_string()}]});
    assert_eq!(seen["HostConfig"]["PortBindings"], expected);
    assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok(), "tcp is published as well");
    assert!(std::net::UdpSocket::bind(("127.0.0.1", port)).is_err(), "udp is not published");
    daemon.close().await;
}

#[tokio::test]
async fn ports_of_the_configuration_are_in_the_pool() {
    let ports = free_ports(3);
    let mut daemon = Daemon::start_with(|config| {
        config["network"]["ports"] = json!([
            {"ip": "127.0.0.1", "from": ports[0], "to": ports[1]},
            {"ip": "127.0.0.1", "port": ports[2], "protocol": "udp"},
        ]);
    })
    .await;
    let shown = daemon.client().get("/network/ports").await.is(200);
    assert_eq!(numbers_in(&shown).len(), 3);
    daemon.restart().await;
    assert_eq!(daemon.client().get("/network/ports").await.is(200), shown, "each once");
    daemon.close().await;
}
