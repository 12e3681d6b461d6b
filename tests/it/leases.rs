//! Ports that are handed out for a time.

use serde_json::{Value, json};

use crate::ports::{add, numbers_in};
use crate::support::SOON;
use crate::support::client::Client;
use crate::support::numbers::{free_port, free_ports};
use crate::support::process::Daemon;
use crate::support::wait::eventually;

/// A client with a token of its own.
async fn panel(daemon: &Daemon) -> Client {
    let issued = daemon.client().post("/auth/tokens", json!({"ttl": "1h"})).await.is(201);
    daemon.client().with_token(issued["token"].as_str().expect("a token"))
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
async fn of_two_panels_each_gets_its_own_ports_and_can_use_them() {
    let daemon = Daemon::start().await;
    let ports = free_ports(4);
    let range = json!({"ip": "127.0.0.1", "from": ports[0], "to": ports[3]});
    daemon.client().post("/network/ports", range).await.is(201);
    let (one, other) = (panel(&daemon).await, panel(&daemon).await);
    let allocate = json!({"count": 2, "reserve": "5m"});
    let of_one = one.post("/network/ports/allocate", allocate.clone()).await.is(201);
    let of_other = other.post("/network/ports/allocate", allocate).await.is(201);
    let (mine, theirs) = (numbers_in(&of_one), numbers_in(&of_other));
    assert!(mine.iter().all(|port| !theirs.contains(port)), "{mine:?} {theirs:?}");

    let wants = async |name: &str, port: u64, lease: &Value| {
        let ports = json!([{"ip": "127.0.0.1", "port": port}]);
        daemon.spec(&daemon.id(name), json!({"ports": ports, "lease_id": lease})).await
    };
    // Not by its number, nor by a lease that is none.
    let spec = wants("thief", theirs[0], &Value::Null).await;
    one.post("/containers", spec).await.refused(409, "port_reserved");
    let spec = wants("thief", theirs[0], &json!(uuid::Uuid::nil())).await;
    one.post("/containers", spec).await.refused(409, "lease_ended");
    let spec = wants("thief", theirs[0], &json!("mine")).await;
    one.post("/containers", spec).await.names_field("lease_id");
    // By the token that it was handed to, or by the lease.
    one.post("/containers", wants("a", mine[0], &Value::Null).await).await.is(201);
    let lent = wants("b", theirs[0], &of_other["lease_id"]).await;
    one.post("/containers", lent).await.is(201);
    // A number that is left open comes from the lease.
    let open = json!({"ports": [{"container_port": 80}], "lease_id": of_one["lease_id"]});
    let spec = daemon.spec(&daemon.id("c"), open).await;
    daemon.client().post("/containers", spec).await.is(201);
    let shown = daemon.install_state(&daemon.id("c"), "ready").await;
    assert_eq!(shown["ports"][0]["port"], mine[1]);
    let lease =
        |answer: &Value| format!("/network/leases/{}", answer["lease_id"].as_str().unwrap());
    one.get(&lease(&of_one)).await.refused(404, "not_found");
    let left = other.get(&lease(&of_other)).await.is(200);
    assert_eq!(numbers_in(&left), [theirs[1]]);
    for name in ["a", "b"] {
        daemon.install_state(&daemon.id(name), "ready").await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_rebind_takes_the_ports_of_a_lease() {
    let daemon = Daemon::start().await;
    let (client, ports, id) = (daemon.client(), free_ports(2), daemon.id("moves"));
    add(&client, ports[0], "tcp").await;
    daemon.create(&id, json!({"ports": [{}]})).await;
    add(&client, ports[1], "tcp").await;
    let one = panel(&daemon).await;
    let lease = one.post("/network/ports/allocate", json!({})).await.is(201);
    let path = format!("/containers/{id}/rebind-network");
    let named = json!({"ports": [{"ip": "127.0.0.1", "port": ports[1]}]});
    client.post(&path, named).await.refused(409, "port_reserved");
    let body = json!({"ports": [{}], "lease_id": lease["lease_id"]});
    client.post(&path, body).await.is(202);
    daemon.shown(&id, "it is moved", |shown| shown["ports"][0]["port"] == ports[1]).await;
    daemon.close().await;
}

#[tokio::test]
async fn a_lease_outlives_lightd_is_renewed_shown_and_given_back() {
    let mut daemon = Daemon::start().await;
    let (client, ports) = (daemon.client(), free_ports(3));
    let range = json!({"ip": "127.0.0.1", "from": ports[0], "to": ports[2]});
    client.post("/network/ports", range).await.is(201);
    let lease = client.post("/network/ports/allocate", json!({"reserve": "1h"})).await.is(201);
    let one = panel(&daemon).await;
    let other = one.post("/network/ports/allocate", json!({"reserve": "1h"})).await.is(201);
    daemon.kill9().await;
    daemon.launch().await;
    let all = client.get("/network/leases").await.is(200);
    assert_eq!(
        all,
        json!({"leases": [lease, other], "next_cursor": null}),
        "the node's token sees all"
    );
    let first = client.get("/network/leases?limit=1").await.is(200);
    assert_eq!((&first["leases"], &first["next_cursor"]), (&json!([lease]), &lease["lease_id"]));
    let next = format!("/network/leases?cursor={}", lease["lease_id"].as_str().unwrap());
    assert_eq!(client.get(&next).await.is(200)["leases"], json!([other]));
    assert_eq!(one.get("/network/leases").await.is(200)["leases"], json!([other]));

    let path = format!("/network/leases/{}", lease["lease_id"].as_str().unwrap());
    assert_eq!(client.get(&path).await.is(200), lease);
    let renew = format!("{path}/renew");
    let shorter = client.post(&renew, json!({"reserve": "1m"})).await.is(200);
    assert!(shorter["expires_at"].as_u64() < lease["expires_at"].as_u64(), "{shorter}");
    client.post(&renew, json!({"reserve": "2h"})).await.names_field("reserve");
    // More of them, into the same lease.
    let more = json!({"lease_id": lease["lease_id"], "count": 1});
    let more = client.post("/network/ports/allocate", more).await.is(201);
    for field in ["lease_id", "expires_at"] {
        assert_eq!(more[field], shorter[field], "it lasts as long as it did");
    }
    assert_eq!(numbers_in(&client.get(&path).await.is(200)).len(), 2);
    client.get("/network/ports/random").await.refused(404, "not_found");
    let ended = client.delete(&path).await.is(200);
    assert_eq!((&ended["released_count"], &ended["lease_id"]), (&json!(2), &lease["lease_id"]));
    client.get("/network/ports/random").await.is(200);
    client.delete(&path).await.refused(404, "not_found");
    client.post(&renew, json!({})).await.refused(404, "not_found");
    client
        .post("/network/ports/allocate", json!({"lease_id": lease["lease_id"]}))
        .await
        .refused(404, "not_found");
    client.get("/network/leases/x").await.refused(400, "invalid_parameter");
    daemon.close().await;
}

#[tokio::test]
async fn a_leased_port_is_marked_and_freed_by_its_holder_by_its_lease_and_freed_by_the_node() {
    let daemon = Daemon::start().await;
    let (client, port) = (daemon.client(), free_port());
    add(&client, port, "tcp").await;
    let one = panel(&daemon).await;
    let lease = one.post("/network/ports/allocate", json!({"reserve": "1h"})).await.is(201);
    let path = format!("/network/ports/127.0.0.1/{port}");
    let shown = client.get(&path).await.is(200);
    assert_eq!((&shown["in_use"], &shown["leased_until"]), (&json!(true), &lease["expires_at"]));
    client.delete(&path).await.refused(409, "port_reserved");
    let mark = |lease: &Value| json!({"in_use": true, "note": "nginx", "lease_id": lease});
    let use_path = format!("{path}/use");
    client.put(&use_path, mark(&Value::Null)).await.refused(409, "port_reserved");
    let marked = client.put(&use_path, mark(&lease["lease_id"])).await.is(200);
    assert_eq!((&marked["in_use"], &marked["note"]), (&json!(true), &json!("nginx")));
    assert_eq!(client.get(&path).await.is(200)["note"], "nginx");
    client.put(&use_path, json!({"in_use": false})).await.is(200);
    let free = json!({"in_use": false});
    let other = panel(&daemon).await;
    for (by, shows) in [(&one, false), (&client, false), (&other, true)] {
        let lease = one.post("/network/ports/allocate", json!({})).await.is(201);
        other.put(&use_path, free.clone()).await.refused(409, "port_reserved");
        let mut body = free.clone();
        if shows {
            body["lease_id"] = lease["lease_id"].clone();
        }
        by.put(&use_path, body).await.is(200);
    }
    let shown = client.get(&path).await.is(200);
    assert_eq!((&shown["in_use"], &shown["note"]), (&json!(false), &Value::Null));
    daemon.close().await;
}
