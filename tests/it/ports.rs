//! The port pool and what containers hold of it.

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::client::Client;
use crate::support::numbers::{free_port, free_ports};
use crate::support::process::Daemon;
use crate::support::wait::eventually;

pub(crate) async fn add(client: &Client, port: u16, protocol: &str) {
    let body = json!({"ip": "127.0.0.1", "port": port, "protocol": protocol});
    client.post("/network/ports", body).await.is(201);
}

/// The numbers in a list of ports.
pub(crate) fn numbers_in(answer: &Value) -> Vec<u64> {
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
    let range = json!({"ip": "0.0.0.0", "from": port, "to": port});
    let again = client.post("/network/ports", range).await.refused(409, "port_exists");
    assert_eq!(again["error"], format!("Port {port} already exists in pool"), "which of them");

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
    let long = json!({"in_use": true, "note": "x".repeat(256)});
    client.put(use_path, long).await.names_field("note");
    client.put(use_path, json!({"in_use": "yes"})).await.names_field("in_use");
    client.put(use_path, json!({"in_use": true})).await.refused(404, "not_found");
    client.post("/network/ports/bulk-delete", json!({})).await.names_field("ports");
    client.get("/network/ports?limit=0").await.names_field("?limit");
    client.get("/network/ports?cursor=nowhere").await.refused(400, "invalid_cursor");
    client.get("/network/ports?container=-").await.names_field("?container");
    let nothing = json!({"ports": [], "next_cursor": null});
    assert_eq!(client.get("/network/ports").await.is(200), nothing);
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
    let listed = client.get("/network/ports").await.is(200);
    let held: Vec<_> = listed["ports"].as_array().expect("a list").iter().collect();
    assert_eq!([&held[0]["held_by_host"], &held[1]["held_by_host"]], [true, false]);
    let path = format!("/network/ports/127.0.0.1/{}", ports[0]);
    assert_eq!(client.get(&path).await.is(200)["held_by_host"], true);
    let named = json!({"ports": [{"ip": "127.0.0.1", "port": ports[0]}]});
    let spec = daemon.spec(&daemon.id("named"), named).await;
    let refused = client.post("/containers", spec).await.refused(409, "port_held_by_host");
    let sentence = refused["error"].as_str().expect("a sentence");
    assert!(sentence.contains(&ports[0].to_string()), "{sentence}");
    let id = daemon.id("any");
    let made = daemon.create(&id, json!({"ports": [{}]})).await;
    assert_eq!(made["ports"][0]["port"], ports[1]);
    client.get("/network/ports/random").await.refused(404, "not_found");
    // What the engine listens on for a server is the server's; while it is down, it is nobody's.
    daemon.power(&id, "start").await;
    daemon.state(&id, "running").await;
    let path = format!("/network/ports/127.0.0.1/{}", ports[1]);
    assert_eq!(client.get(&path).await.is(200)["held_by_host"], false);
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    // The engine lets go of it a moment after the end.
    eventually("nobody has it", SOON, async || {
        let shown = client.get(&path).await.is(200);
        if shown["held_by_host"] == false { Ok(()) } else { Err(shown) }
    })
    .await;
    let _thief = std::net::TcpListener::bind(("127.0.0.1", ports[1])).expect("a free port");
    let shown = client.get(&path).await.is(200);
    assert_eq!((&shown["held_by_host"], &shown["container"]), (&json!(true), &json!(id)));
    daemon.close().await;
}

#[tokio::test]
async fn lightds_own_ports_never_enter_the_pool() {
    let ssh = free_port();
    let daemon = Daemon::start_with(|config| config["ssh"] = json!({"port": ssh})).await;
    let client = daemon.client();
    for (ip, port) in [("127.0.0.1", daemon.port), ("0.0.0.0", daemon.port), ("127.0.0.1", ssh)] {
        let body = json!({"ip": ip, "from": port, "to": port + 1});
        let refused = client.post("/network/ports", body).await.refused(409, "own_port");
        assert!(refused["error"].as_str().expect("a sentence").contains(&port.to_string()));
    }
    add(&client, daemon.port, "udp").await;
    daemon.close().await;
}

#[tokio::test]
async fn a_list_is_read_in_pages_and_by_its_holder() {
    let daemon = Daemon::start().await;
    let (client, ports, id) = (daemon.client(), free_ports(7), daemon.id("one"));
    let range = json!({"ip": "127.0.0.1", "from": ports[0], "to": ports[6]});
    client.post("/network/ports", range).await.is(201);
    daemon.create(&id, json!({"ports": [{"port": ports[2]}]})).await;
    let (mut path, mut seen) = ("/network/ports?limit=3".to_owned(), Vec::new());
    loop {
        let page = client.get(&path).await.is(200);
        seen.extend(numbers_in(&page));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/network/ports?limit=3&cursor={cursor}");
    }
    assert_eq!(seen, ports.iter().copied().map(u64::from).collect::<Vec<_>>());
    let of = client.get(&format!("/network/ports?container={id}")).await.is(200);
    assert_eq!(numbers_in(&of), [u64::from(ports[2])]);
    let free = client.get("/network/ports?in_use=false&limit=6").await.is(200);
    assert_eq!((numbers_in(&free).len(), &free["next_cursor"]), (6, &Value::Null));
    daemon.close().await;
}

#[tokio::test]
async fn a_port_of_ipv6_is_handed_out_published_and_seen() {
    let daemon = Daemon::start().await;
    let (client, ports, id) = (daemon.client(), free_ports(2), daemon.id("six"));
    let range = json!({"ip": "::1", "from": ports[0], "to": ports[1]});
    client.post("/network/ports", range).await.is(201);
    let overlap = json!({"ip": "::", "port": ports[0]});
    client.post("/network/ports", overlap).await.refused(409, "port_overlaps");
    let listener = std::net::TcpListener::bind(("::1", ports[0])).expect("a free port");
    let shown = client.get(&format!("/network/ports/::1/{}", ports[0])).await.is(200);
    assert_eq!(shown["held_by_host"], true);
    assert_eq!(client.get("/network/ports/random?ip=::1").await.is(200)["port"], ports[1]);
    let row = json!({"count": 2, "contiguous": true});
    client.post("/network/ports/allocate", row.clone()).await.refused(404, "not_found");
    drop(listener);
    let lease = client.post("/network/ports/allocate", row).await.is(201);
    let changes = json!({
        "ports": [{"ip": "::1", "port": ports[0], "container_port": 8080}], "lease_id": lease["lease_id"],
        "startup_command": "guest serve 8080", "start_pattern": "listening",
    });
    daemon.run(&id, changes).await;
    let published = daemon.inspect(&id).await["HostConfig"]["PortBindings"].clone();
    assert_eq!(published["8080/tcp"][0]["HostIp"], "::1", "{published}");
    expect_hello_at(&format!("http://[::1]:{}/", ports[0])).await;
    daemon.close().await;
}

#[tokio::test]
async fn what_a_server_has_let_go_of_rests_for_as_long_as_it_is_configured() {
    let mut daemon =
        Daemon::start_with(|config| config["network"]["quarantine"] = json!("1h")).await;
    let (client, port) = (daemon.client(), free_port());
    add(&client, port, "tcp").await;
    let (first, second) = (daemon.id("first"), daemon.id("second"));
    let named = json!({"ports": [{"ip": "127.0.0.1", "port": port}]});
    daemon.create(&first, named.clone()).await;
    client.delete(&format!("/containers/{first}")).await.is(200);
    let path = format!("/network/ports/127.0.0.1/{port}");
    let rests = eventually("it is let go of", SOON, async || {
        let shown = client.get(&path).await.is(200);
        if shown["container"].is_null() { Ok(shown) } else { Err(shown) }
    })
    .await;
    assert!(rests["quarantined_until"].is_u64() && rests["in_use"] == true, "{rests}");
    daemon.restart().await;
    assert_eq!(client.get(&path).await.is(200), rests);
    client.get("/network/ports/random").await.refused(404, "not_found");
    client.delete(&path).await.refused(409, "port_quarantined");
    let spec = daemon.spec(&second, named.clone()).await;
    client.post("/containers", spec.clone()).await.refused(409, "port_quarantined");
    // The one that had it may have it back, and by hand it ends.
    daemon.create(&first, named).await;
    client.delete(&format!("/containers/{first}")).await.is(200);
    eventually("it is let go of", SOON, async || {
        let answer = client.put(&format!("{path}/use"), json!({"in_use": false})).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    client.post("/containers", spec).await.is(201);
    daemon.install_state(&second, "ready").await;
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

/// The guest's page, over the published port.
pub(crate) async fn expect_hello(port: u16) {
    expect_hello_at(&format!("http://127.0.0.1:{port}/")).await;
}

async fn expect_hello_at(url: &str) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    eventually("the published port answers", SOON, async || {
        let response = client.get(url).send().await.map_err(|error| format!("{error:?}"))?;
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
