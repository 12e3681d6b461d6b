//! A rebind moves a server to other ports, or leaves it as it was: whatever happens on the way, pool, row
//! and engine agree afterwards, and the server runs.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::ports::{add, expect_hello};
use crate::support::SOON;
use crate::support::agreement::{agree, in_engine};
use crate::support::chaos::{Door, Held};
use crate::support::numbers::free_ports;
use crate::support::process::Daemon;
use crate::support::wait::eventually;

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

/// Before the engine has done it, and after, when nobody has been told.
fn step(method: &'static str, path_has: &'static str) -> [Held; 2] {
    [false, true].map(|is_done| Held { method, path_has, is_done })
}

/// What a rebind asks of the engine, in this order.
fn steps() -> Vec<Held> {
    let steps = [
        ("POST", "/rename?"),
        ("POST", "/containers/create?"),
        ("POST", "/start HTTP/"),
        ("DELETE", "/containers/"),
    ];
    steps.into_iter().flat_map(|(method, path)| step(method, path)).collect()
}

fn on(port: u16) -> Value {
    json!([{"ip": "127.0.0.1", "port": port, "container_port": 8080}])
}

/// A server that has a page, on the first of two ports.
async fn serve(daemon: &Daemon, id: &str, ports: &[u16]) {
    for port in ports {
        add(&daemon.client(), *port, "tcp").await;
    }
    daemon
        .run(id, json!({
            "startup_command": "echo run >> runs; guest serve 8080", "start_pattern": "listening",
            "ports": on(ports[0]),
        }))
        .await;
    expect_hello(ports[0]).await;
}

async fn rebind(daemon: &Daemon, id: &str, port: u16) {
    let path = format!("/containers/{id}/rebind-network");
    daemon.client().post(&path, json!({"ports": on(port)})).await.is(202);
}

/// Row, pool and engine agree that it runs on this port, and on no other, and it answers there.
async fn runs_on(daemon: &Daemon, id: &str, port: u16, what: &str) {
    eventually(&format!("it runs on {port} after {what}"), SOON, async || {
        agree(daemon, &[(id, Some("running"))]).await?;
        let shown = daemon.client().get(&format!("/containers/{id}")).await.is(200);
        if shown["ports"]
            == json!([{
                "ip": "127.0.0.1", "port": port, "protocol": "tcp", "container_port": 8080,
            }])
        {
            Ok(())
        } else {
            Err(shown)
        }
    })
    .await;
    expect_hello(port).await;
    assert_eq!(in_engine(daemon).await.len(), 1, "nothing is kept aside after {what}");
}

#[tokio::test]
async fn a_server_whose_new_port_is_taken_at_that_moment_gets_its_old_one_back() {
    let (daemon, door) = Door::and_daemon().await;
    let (ports, id) = (free_ports(2), daemon.id("back"));
    serve(&daemon, &id, &ports).await;
    let before = daemon.inspect(&id).await["Id"].clone();
    // One that is taken already is refused, and the server runs on.
    let taken = TcpListener::bind(("127.0.0.1", ports[1])).expect("a free port");
    let path = format!("/containers/{id}/rebind-network");
    let body = json!({"ports": on(ports[1])});
    daemon.client().post(&path, body).await.refused(409, "port_held_by_host");
    runs_on(&daemon, &id, ports[0], "a refusal").await;
    drop(taken);

    door.hold(Some(Held { method: "POST", path_has: "/start HTTP/", is_done: false }));
    rebind(&daemon, &id, ports[1]).await;
    door.holds_one().await;
    let taken =
        TcpListener::bind(("127.0.0.1", ports[1])).expect("a port that is not published yet");
    door.hold(None);
    runs_on(&daemon, &id, ports[0], "a failed start").await;
    assert_eq!(daemon.inspect(&id).await["Id"], before, "it is the container of before");
    let shown =
        daemon.client().get(&format!("/network/ports/127.0.0.1/{}", ports[1])).await.is(200);
    assert_eq!((&shown["in_use"], &shown["held_by_host"]), (&json!(false), &json!(true)));
    drop(taken);
    rebind(&daemon, &id, ports[1]).await;
    runs_on(&daemon, &id, ports[1], "the port came free").await;
    daemon.close().await;
}

#[tokio::test]
async fn what_is_changed_in_a_rebind_reaches_the_server_also_when_it_is_undone() {
    let (daemon, door) = Door::and_daemon().await;
    let (ports, id) = (free_ports(2), daemon.id("changed"));
    serve(&daemon, &id, &ports).await;
    door.hold(Some(Held { method: "POST", path_has: "/containers/create?", is_done: false }));
    rebind(&daemon, &id, ports[1]).await;
    door.holds_one().await;
    let change = json!({"env": {"A": "new"}});
    daemon.client().patch(&format!("/containers/{id}"), change).await.is(200);
    door.hold(Some(Held { method: "POST", path_has: "/start HTTP/", is_done: false }));
    door.holds_one().await;
    let taken = TcpListener::bind(("127.0.0.1", ports[1])).expect("a port nobody publishes yet");
    door.hold(None);
    runs_on(&daemon, &id, ports[0], "a failed start").await;
    let env = daemon.inspect(&id).await["Config"]["Env"].clone();
    assert!(env.as_array().is_some_and(|env| env.contains(&json!("A=new"))), "{env}");
    drop(taken);
    daemon.close().await;
}

#[tokio::test]
async fn a_rebind_goes_on_where_a_killed_lightd_has_left_it() {
    let (mut daemon, mut door) = Door::and_daemon().await;
    let (ports, id) = (free_ports(2), daemon.id("killed"));
    serve(&daemon, &id, &ports).await;
    for (n, step) in steps().into_iter().enumerate() {
        let port = ports[(n + 1) % 2];
        door.hold(Some(step));
        rebind(&daemon, &id, port).await;
        door.holds_one().await;
        daemon.kill9().await;
        door.shut();
        door.reopen();
        daemon.launch().await;
        runs_on(&daemon, &id, port, &format!("a kill at {step:?}")).await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_rebind_goes_on_when_the_engine_is_back() {
    let (daemon, mut door) = Door::and_daemon().await;
    let (ports, id) = (free_ports(2), daemon.id("cut"));
    serve(&daemon, &id, &ports).await;
    for (n, step) in steps().into_iter().enumerate() {
        let port = ports[(n + 1) % 2];
        door.hold(Some(step));
        rebind(&daemon, &id, port).await;
        door.holds_one().await;
        door.shut();
        daemon.state(&id, "unknown").await;
        door.reopen();
        runs_on(&daemon, &id, port, &format!("an outage at {step:?}")).await;
    }
    daemon.close().await;
}

#[tokio::test]
async fn the_way_back_is_gone_to_its_end_after_a_kill() {
    let (mut daemon, mut door) = Door::and_daemon().await;
    let (ports, id) = (free_ports(2), daemon.id("undo"));
    serve(&daemon, &id, &ports).await;
    let before = daemon.inspect(&id).await["Id"].clone();
    let back = [("DELETE", "/containers/"), ("POST", "/rename?"), ("POST", "/start HTTP/")];
    for step in back.into_iter().flat_map(|(method, path)| step(method, path)) {
        door.hold(Some(Held { method: "POST", path_has: "/start HTTP/", is_done: false }));
        rebind(&daemon, &id, ports[1]).await;
        door.holds_one().await;
        let taken =
            TcpListener::bind(("127.0.0.1", ports[1])).expect("a port nobody publishes yet");
        if step.path_has == "/start HTTP/" {
            // The start that fails comes before the one that is meant.
            door.hold(Some(Held { method: "POST", path_has: "/rename?", is_done: true }));
            door.holds_one().await;
        }
        door.hold(Some(step));
        door.holds_one().await;
        daemon.kill9().await;
        door.shut();
        door.reopen();
        daemon.launch().await;
        runs_on(&daemon, &id, ports[0], &format!("a kill at {step:?} on the way back")).await;
        assert_eq!(daemon.inspect(&id).await["Id"], before, "{step:?}");
        drop(taken);
    }
    daemon.close().await;
}

#[tokio::test]
async fn a_rebind_of_a_server_that_rests_is_finished_after_a_kill_and_it_stays_down() {
    let (mut daemon, mut door) = Door::and_daemon().await;
    let (ports, id) = (free_ports(2), daemon.id("rests"));
    serve(&daemon, &id, &ports).await;
    daemon.power(&id, "kill").await;
    daemon.state(&id, "offline").await;
    for (n, step) in steps().into_iter().filter(|step| step.path_has != "/start HTTP/").enumerate()
    {
        let port = ports[(n + 1) % 2];
        door.hold(Some(step));
        rebind(&daemon, &id, port).await;
        door.holds_one().await;
        daemon.kill9().await;
        door.shut();
        door.reopen();
        daemon.launch().await;
        let what = format!("agreement after a kill at {step:?}");
        eventually(&what, SOON, async || agree(&daemon, &[(&id, Some("offline"))]).await).await;
        let shown = daemon.client().get(&format!("/containers/{id}")).await.is(200);
        assert_eq!(
            shown["ports"],
            json!([{
                "ip": "127.0.0.1", "port": port, "protocol": "tcp", "container_port": 8080,
            }])
        );
    }
    daemon.close().await;
}
