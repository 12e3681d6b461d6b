//! What is dropped, refused and let through, by source, port, protocol and order.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;

use super::Site;
use crate::support::numbers::free_port;
use crate::support::outside::Reply::{Answered, Nothing, Refused};
use crate::support::outside::echo;
use crate::support::process::Daemon;

#[tokio::test]
async fn a_dropped_source_gets_no_answer_and_everybody_else_does() {
    let site = Site::new().await;
    site.all_is_open();
    let [first, _] = site.outside.v4;
    let rule = json!({
        "source_ip": first, "dest_port": site.port, "protocol": "tcp", "action": "drop",
    });
    let rule = site.rule(rule).await;
    assert_eq!((site.tcp(0), site.tcp(1)), (Nothing, Answered));
    assert_eq!(
        (site.udp(0), site.tcp6(0)),
        (Answered, Answered),
        "another protocol, another family"
    );
    site.toggle(&rule, false).await;
    site.all_is_open();
    site.toggle(&rule, true).await;
    assert_eq!((site.tcp(0), site.tcp(1)), (Nothing, Answered));
    site.delete(&rule).await;
    site.all_is_open();

    let [first6, _] = site.outside.v6;
    let rule = site.rule(json!({"source_ip": format!("{first6}/64"), "action": "drop"})).await;
    assert_eq!((site.tcp6(0), site.tcp6(1)), (Nothing, Answered));
    assert_eq!((site.tcp(0), site.udp(0)), (Answered, Answered));
    site.delete(&rule).await;
    site.rule(json!({"dest_port": site.spare, "action": "drop"})).await;
    site.all_is_open();
    site.daemon.close().await;
}

#[tokio::test]
async fn what_is_rejected_is_told_so_at_once() {
    let site = Site::new().await;
    site.all_is_open();
    let mut open = site.outside.connect(site.outside.v4[0], site.port).expect("a connection");
    let rule = site.rule(json!({"action": "reject"})).await;
    assert_eq!([site.tcp(0), site.udp(0), site.tcp6(0)], [Refused; 3]);
    assert_eq!(echo(&mut open), Refused, "a connection that stands is reset");
    site.delete(&rule).await;
    site.rule(json!({"action": "reject", "dest_port": site.port, "protocol": "udp"})).await;
    assert_eq!([site.tcp(0), site.udp(0), site.tcp6(0)], [Answered, Refused, Answered]);
    site.daemon.close().await;
}

#[tokio::test]
async fn the_first_rule_that_matches_decides() {
    let site = Site::new().await;
    let [first, second] = site.outside.v4;
    let accept = json!({"source_ip": first, "action": "accept"});
    let drop_all = json!({"action": "drop", "description": "nobody else"});
    site.rule(accept.clone()).await;
    site.rule(drop_all.clone()).await;
    assert_eq!((site.tcp(0), site.udp(0)), (Answered, Answered));
    assert_eq!((site.tcp(1), site.udp(1), site.tcp6(1)), (Nothing, Nothing, Nothing));
    // One that comes later changes nothing for what an earlier one has decided.
    let late = site.rule(json!({"source_ip": second, "action": "accept"})).await;
    assert_eq!(site.tcp(1), Nothing);
    site.delete(&late).await;
    site.clean().await;
    site.all_is_open();
    site.rule(drop_all).await;
    site.rule(accept).await;
    assert_eq!((site.tcp(0), site.tcp(1)), (Nothing, Nothing));
    site.daemon.close().await;
}

#[tokio::test]
async fn a_rule_counts_at_once_for_connections_that_stand() {
    let site = Site::new().await;
    let [first, second] = site.outside.v4;
    let mut ended = site.outside.connect(first, site.port).expect("a connection");
    let mut kept = site.outside.connect(second, site.port).expect("a connection");
    let rule = site.rule(json!({"source_ip": first, "action": "drop"})).await;
    assert_eq!((echo(&mut ended), echo(&mut kept)), (Nothing, Answered));
    site.delete(&rule).await;
    // What was lost is sent again by the kernel.
    assert_eq!(echo(&mut ended), Answered);
    site.daemon.close().await;
}

#[tokio::test]
async fn a_source_port_is_the_clients_own() {
    let site = Site::new().await;
    let [first, _] = site.outside.v4;
    let (barred, other) = (free_port(), free_port());
    site.rule(json!({"source_port": barred, "protocol": "tcp", "action": "reject"})).await;
    let from = |port| site.outside.connect_from(SocketAddr::new(first, port), site.port).err();
    assert_eq!((from(barred), from(other)), (Some(Refused), None));
    site.daemon.close().await;
}

#[tokio::test]
async fn rules_of_one_container_are_nothing_to_its_neighbour_or_the_host() {
    let site = Site::new().await;
    let neighbour = site.daemon.id("neighbour");
    let ports = json!([{"ip": "0.0.0.0", "port": site.spare, "container_port": 7000}]);
    site.serve(&neighbour, ports).await;
    site.rule(json!({"action": "drop"})).await;
    site.rule(json!({"action": "drop", "dest_port": site.spare})).await;
    assert_eq!(site.tcp(0), Nothing);
    assert_eq!(site.outside.tcp(site.outside.v4[0], site.spare), Answered);
    // The host itself is not outside.
    let own = std::net::TcpStream::connect(("127.0.0.1", site.port)).expect("a connection");
    let mut own = own;
    assert_eq!(echo(&mut own), Answered);
    site.daemon.close().await;
}

/// Pings from the container outwards: its neighbours are kept from pinging it anyway.
#[tokio::test]
async fn icmp_is_matched_at_the_containers_own_address() {
    let allow = |config: &mut serde_json::Value| {
        config["network"]["allow_private"] = json!(["198.19.0.0/16"]);
    };
    let site = Site::on(Daemon::start_with(allow).await).await;
    let [first, second] = site.outside.v4;
    let pid = site.daemon.inspect(&site.id).await["State"]["Pid"].to_string();
    let answers = |to: std::net::IpAddr, count: usize| {
        let output = Command::new("nsenter")
            .args(["-t", &pid, "-n", "busybox", "ping", "-i", "0.05", "-W", "1", "-c"])
            .args([&count.to_string(), &to.to_string()])
            .output()
            .expect("nsenter");
        String::from_utf8_lossy(&output.stdout).matches("bytes from").count()
    };
    assert_eq!((answers(first, 2), answers(second, 2)), (2, 2), "open without rules");
    let rule = site.rule(json!({"source_ip": first, "protocol": "icmp", "action": "drop"})).await;
    assert_eq!((answers(first, 2), answers(second, 2)), (0, 2));
    assert_eq!((site.tcp(0), site.udp(0)), (Answered, Answered));
    site.delete(&rule).await;
    let limit = json!({"requests": 3, "per_seconds": 3600});
    let rule =
        site.rule(json!({"protocol": "icmp", "action": "accept", "rate_limit": limit})).await;
    assert_eq!(answers(first, 6), 3);
    site.delete(&rule).await;
    // Over a restart it has another address, or the same; the rule is on the one it has.
    site.rule(json!({"source_ip": second, "protocol": "icmp", "action": "drop"})).await;
    site.daemon.power(&site.id, "kill").await;
    site.daemon.state(&site.id, "offline").await;
    site.daemon.power(&site.id, "start").await;
    site.daemon.state(&site.id, "running").await;
    let address = site.daemon.inspect(&site.id).await;
    let address = &address["NetworkSettings"]["Networks"][&site.daemon.bridge]["IPAddress"];
    let address = address.as_str().expect("an address").to_owned();
    crate::support::wait::eventually(
        "the rule is on its address",
        crate::support::SOON,
        async || {
            let table = site.table().expect("a table");
            if table.contains(&format!("{{ {address} : jump")) { Ok(()) } else { Err(table) }
        },
    )
    .await;
    site.daemon.close().await;
}
