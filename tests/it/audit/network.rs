//! Ports, firewalls and the node's own token in the log: what has changed has its entry, what could be
//! used by whoever reads it does not stand there.

use serde_json::{Value, json};

use super::{actions, each_is_recorded, entries};
use crate::support::SOON;
use crate::support::numbers::free_port;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

#[tokio::test]
async fn a_lease_is_told_by_its_ports_and_not_by_the_id_that_would_give_them_away() {
    let daemon = Daemon::start().await;
    let (client, port) = (daemon.client(), free_port());
    client.post("/network/ports", json!({"ip": "127.0.0.1", "port": port})).await.is(201);
    let lease = client.post("/network/ports/allocate", json!({"reserve": "1m"})).await.is(201);
    let id = lease["lease_id"].as_str().expect("an id");
    let at = format!("/network/leases/{id}");
    let renewed = client.post(&format!("{at}/renew"), json!({"reserve": "2m"})).await.is(200);
    client.delete(&at).await.is(200);
    client.delete(&at).await.refused(404, "not_found");
    client.post(&format!("{at}/renew"), json!({})).await.refused(404, "not_found");
    let told = entries(&client, "action=port").await;
    assert_eq!(actions(&told), ["port.add", "port.allocate", "port.renew", "port.release"]);
    let ports = json!([format!("127.0.0.1:{port}/tcp")]);
    assert!(told[1..].iter().all(|entry| entry["details"]["ports"] == ports), "{told:#?}");
    let until = [&told[1], &told[2]].map(|entry| entry["details"]["until"].clone());
    assert_eq!(until, [lease["expires_at"].clone(), renewed["expires_at"].clone()]);
    assert!(!json!(told).to_string().contains(id), "{told:#?}");
    daemon.close().await;
}

#[tokio::test]
async fn each_change_of_a_firewall_has_its_entry_and_what_is_so_already_has_none() {
    let daemon = Daemon::start().await;
    let (client, id) = (daemon.client(), daemon.id("walled"));
    daemon.create(&id, json!({})).await;
    let rule = |port: u16| {
        json!({"container_id": id, "protocol": "tcp", "action": "drop",
        "dest_port": port, "source_ip": "203.0.113.7"})
    };
    let made = client.post("/firewall/rules", rule(7001)).await.is(201);
    let made = made["rule"]["id"].as_str().expect("an id").to_owned();
    let (one, toggle) =
        (format!("/firewall/rules/{made}"), format!("/firewall/rules/{made}/toggle"));
    let (ddos, network) = (format!("/firewall/ddos/{id}"), format!("/firewall/networks/{id}"));
    let cleanup = format!("/firewall/cleanup/{id}");
    let (off, on) = (json!({"enabled": false}), json!({"enabled": true, "connection_limit": 9}));
    each_is_recorded(
        &client,
        &[
            ("POST", "/firewall/rules", rule(7002), 201, "firewall.add_rule"),
            ("POST", "/firewall/rules", rule(7002), 409, ""),
            ("PUT", &toggle, off.clone(), 200, "firewall.toggle_rule"),
            ("PUT", &toggle, off, 200, ""),
            ("POST", &ddos, on.clone(), 200, "firewall.protect"),
            ("POST", &ddos, on, 200, ""),
            ("DELETE", &network, Value::Null, 200, "firewall.detach"),
            ("DELETE", &network, Value::Null, 200, ""),
            ("POST", &network, Value::Null, 201, "firewall.attach"),
            ("POST", &network, Value::Null, 200, ""),
            ("DELETE", &one, Value::Null, 200, "firewall.delete_rule"),
            ("DELETE", &one, Value::Null, 404, ""),
            ("DELETE", &cleanup, Value::Null, 200, "firewall.cleanup"),
            ("DELETE", &cleanup, Value::Null, 200, ""),
        ],
    )
    .await;
    let told = entries(&client, &format!("container={id}&action=firewall")).await;
    assert_eq!(told.len(), 8, "{told:#?}");
    let says = json!({"rule_id": made, "protocol": "tcp", "action": "drop", "dest_port": 7001,
        "source_ip": "203.0.113.7"});
    assert_eq!((&told[0]["details"], &told[6]["details"]), (&says, &says), "come and gone");
    assert_eq!(told[7]["details"], json!({"deleted_rules": 1}));
    daemon.close().await;
}

#[tokio::test]
async fn another_token_of_the_node_is_told_once_also_when_it_came_while_lightd_was_away() {
    let mut daemon = Daemon::start().await;
    let told = async |daemon: &Daemon, wanted: usize| {
        let token = daemon.config()["authorization"]["token"].clone();
        let client = daemon.client().with_token(token.as_str().expect("a token"));
        eventually("the change is told", SOON, async || {
            // Until it counts, the new one is nobody's.
            let found = client.get("/audit?action=token.reset").await;
            let found = found.body["entries"].as_array().cloned().unwrap_or_default();
            if found.len() == wanted { Ok(found) } else { Err(found) }
        })
        .await
    };
    assert_eq!(told(&daemon, 0).await, Vec::<Value>::new(), "the first one follows none");
    assert!(daemon.cli(&["--token", "reset", "--grace", "1h"]).status.success());
    let first = told(&daemon, 1).await;
    assert_eq!(first[0]["actor"], json!({"type": "lightd"}));
    assert!(first[0]["details"]["grace_until"].is_i64(), "{first:#?}");
    daemon.kill9().await;
    assert!(daemon.cli(&["--token", "reset"]).status.success());
    daemon.launch().await;
    let both = told(&daemon, 2).await;
    assert_eq!((&both[0]["details"], &both[1]), (&json!({}), &first[0]));
    daemon.restart().await;
    told(&daemon, 2).await;
    daemon.token = daemon.config()["authorization"]["token"].as_str().expect("a token").to_owned();
    daemon.close().await;
}
