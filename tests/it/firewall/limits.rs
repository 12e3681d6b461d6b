//! Limits bite at their number, for those whom they are about, and go on over changes of others.

use std::net::{IpAddr, UdpSocket};

use serde_json::json;

use super::Site;
use crate::support::outside::Reply::{self, Answered, Nothing};
use crate::support::outside::datagram;

/// One is refilled after a longer time than any test takes.
const AN_HOUR: u32 = 3600;

impl Site {
    fn answered(&self, client: usize, tries: usize) -> Vec<Reply> {
        (0..tries).map(|_| self.tcp(client)).collect()
    }
}

#[tokio::test]
async fn an_accept_lets_its_number_through_and_drops_the_rest() {
    let site = Site::new().await;
    let limit = json!({"requests": 4, "per_seconds": AN_HOUR});
    let rule = json!({
        "protocol": "tcp", "dest_port": site.port, "action": "accept", "rate_limit": limit,
    });
    let rule = site.rule(rule).await;
    let mut open = site.outside.connect(site.outside.v4[0], site.port).expect("the first");
    assert_eq!(site.answered(1, 3), [Answered; 3], "all clients of the rule together");
    assert_eq!((site.tcp(0), site.tcp(1)), (Nothing, Nothing));
    assert_eq!(
        echo_twice(&mut open),
        [Answered; 2],
        "connections are counted, not what passes in them"
    );
    assert_eq!((site.udp(0), site.tcp6(0)), (Answered, Answered), "what it is not about");
    // Other rules come and go, of this container and of others; what was counted stays so.
    let other = site.rule(json!({"source_ip": "192.0.2.1", "action": "drop"})).await;
    assert_eq!(site.tcp(0), Nothing);
    site.delete(&other).await;
    assert_eq!(site.tcp(0), Nothing);
    site.toggle(&rule, false).await;
    site.all_is_open();
    site.daemon.close().await;
}

fn echo_twice(stream: &mut std::net::TcpStream) -> [Reply; 2] {
    [crate::support::outside::echo(stream), crate::support::outside::echo(stream)]
}

#[tokio::test]
async fn a_limited_drop_leaves_what_is_below_it_to_the_rules_that_follow() {
    let site = Site::new().await;
    let [first, second] = site.outside.v4;
    let limit = json!({"requests": 2, "per_seconds": AN_HOUR});
    site.rule(
        json!({"source_ip": first, "protocol": "tcp", "action": "reject", "rate_limit": limit}),
    )
    .await;
    let last = site.rule(json!({"source_ip": second, "action": "drop"})).await;
    assert_eq!(site.answered(0, 3), [Answered, Answered, Reply::Refused]);
    assert_eq!(site.tcp(1), Nothing);
    site.delete(&last).await;
    assert_eq!((site.tcp(0), site.tcp(1)), (Reply::Refused, Answered));
    site.daemon.close().await;
}

#[tokio::test]
async fn of_udp_each_packet_counts() {
    let site = Site::new().await;
    let limit = json!({"requests": 3, "per_seconds": AN_HOUR});
    site.rule(json!({"protocol": "udp", "action": "accept", "rate_limit": limit})).await;
    let (from, to) = (site.outside.v4[0], (site.outside.host, site.port));
    let socket = site.outside.within(|| {
        let socket = UdpSocket::bind((from, 0)).expect("a socket");
        socket.connect(to).expect("an address");
        socket
    });
    let replies: Vec<Reply> = (0..5).map(|_| datagram(&socket)).collect();
    assert_eq!(replies, [Answered, Answered, Answered, Nothing, Nothing]);
    assert_eq!(site.tcp(0), Answered);
    site.daemon.close().await;
}

#[tokio::test]
async fn a_protections_rate_is_each_sources_own() {
    let site = Site::new().await;
    let limit = json!({"requests": 3, "per_seconds": AN_HOUR});
    site.ddos(json!({"enabled": true, "syn_flood_protection": false, "rate_limit": limit})).await;
    for client in [0, 1] {
        let replies = site.answered(client, 5);
        assert_eq!(replies, [Answered, Answered, Answered, Nothing, Nothing], "client {client}");
        let replies: Vec<Reply> = (0..4).map(|_| site.tcp6(client)).collect();
        assert_eq!(replies, [Answered, Answered, Answered, Nothing], "client {client}, IPv6");
    }
    assert_eq!(site.udp(0), Nothing, "the same count");
    // Before any rule.
    let rule = site.rule(json!({"action": "accept"})).await;
    assert_eq!(site.tcp(0), Nothing);
    site.delete(&rule).await;
    site.ddos(json!({"enabled": false})).await;
    site.all_is_open();
    site.daemon.close().await;
}

#[tokio::test]
async fn a_source_has_so_many_connections_at_a_time() {
    let site = Site::new().await;
    let [first, second] = site.outside.v4;
    site.ddos(json!({"enabled": true, "syn_flood_protection": false, "connection_limit": 3})).await;
    let connect = |from: IpAddr| site.outside.connect(from, site.port);
    let mut open: Vec<_> = (0..3).map(|_| connect(first).expect("one of three")).collect();
    assert_eq!(connect(first).err(), Some(Nothing));
    assert!(connect(second).is_ok(), "another source");
    open.pop();
    crate::support::wait::eventually(
        "one that is closed makes room",
        crate::support::SOON,
        async || connect(first).map(drop),
    )
    .await;
    site.daemon.close().await;
}

#[tokio::test]
async fn a_flood_of_new_connections_is_cut_off_and_other_sources_are_served() {
    let site = Site::new().await;
    site.ddos(json!({"enabled": true})).await;
    let [first, _] = site.outside.v4;
    let came_to_be = site.outside.connections_at_once(first, site.port, 150);
    // 50 at once, 25 more a second; a moment passes while they are begun.
    assert!((50..100).contains(&came_to_be), "{came_to_be}");
    assert_eq!(site.tcp(1), Answered);
    site.daemon.close().await;
}
