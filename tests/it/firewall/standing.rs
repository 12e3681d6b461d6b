//! Rules stay: over restarts of lightd and of the engine, over changes of a container's ports, and when
//! somebody else flushes them. And they go, with their container.

use std::fs::File;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;

use super::Site;
use crate::engine_down::with_an_engine;
use crate::support::SOON;
use crate::support::outside::Reply::{Answered, Nothing, Refused};
use crate::support::process::Daemon;
use crate::support::wait::eventually;

#[tokio::test]
async fn rules_hold_while_lightd_is_away_and_when_it_is_back() {
    let mut site = Site::new().await;
    let first = site.outside.v4[0];
    site.rule(json!({"source_ip": first, "action": "drop"})).await;
    site.ddos(json!({"enabled": true, "connection_limit": 50})).await;
    site.daemon.kill9().await;
    assert_eq!((site.tcp(0), site.tcp(1)), (Nothing, Answered), "nobody is needed for them");
    let table = format!("{}_rules", site.daemon.bridge);
    site.nft(&format!("delete table inet {table}"));
    assert_eq!(site.tcp(0), Answered);
    site.daemon.launch().await;
    site.eventually_dropped().await;
    assert!(site.table().expect("a table").contains("ct count over 50"));
    site.daemon.restart().await;
    site.eventually_dropped().await;
    let path = format!("/firewall/rules/container/{}", site.id);
    let rules = site.daemon.client().get(&path).await.is(200);
    assert_eq!(rules["rules"][0]["applied"], true, "{rules}");
    site.daemon.close().await;
}

impl Site {
    async fn eventually_dropped(&self) {
        eventually("the rule is set", SOON, async || match (self.tcp(0), self.tcp(1)) {
            (Nothing, Answered) => Ok(()),
            other => Err(other),
        })
        .await;
    }
}

#[tokio::test]
async fn what_somebody_flushes_is_set_again_within_seconds() {
    let site = Site::new().await;
    let first = site.outside.v4[0];
    site.rule(json!({"source_ip": first, "action": "drop"})).await;
    let bridge = &site.daemon.bridge;
    for damage in [
        format!("delete table inet {bridge}_rules"),
        format!("flush chain inet {bridge}_rules c1"),
        format!("flush chain inet {bridge}_rules prerouting"),
    ] {
        site.nft(&damage);
        site.eventually_dropped().await;
    }
    // The walls around containers as well.
    site.nft(&format!("delete table inet {bridge}"));
    eventually("the containers' walls stand again", SOON, async || {
        let listed = Command::new("nft").args(["list", "table", "inet", bridge]).output();
        let listed = listed.expect("nft");
        if listed.status.success() { Ok(()) } else { Err("gone") }
    })
    .await;
    site.daemon.close().await;
}

#[tokio::test]
async fn rules_follow_the_containers_ports_and_leave_those_it_gave_up() {
    let site = Site::new().await;
    let first = site.outside.v4[0];
    site.rule(json!({"source_ip": first, "action": "drop"})).await;
    let ports = json!({"ports": [{"ip": "0.0.0.0", "port": site.spare, "container_port": 7000}]});
    site.daemon
        .client()
        .post(&format!("/containers/{}/rebind-network", site.id), ports)
        .await
        .is(202);
    let moved = |shown: &serde_json::Value| {
        shown["ports"][0]["port"] == site.spare && shown["state"] == "running"
    };
    site.daemon.shown(&site.id, "the ports are changed", moved).await;
    let reach = |client: usize, port| site.outside.tcp(site.outside.v4[client], port);
    assert_eq!((reach(0, site.spare), reach(1, site.spare)), (Nothing, Answered));
    // Whoever has the old port next is not held to rules of before.
    let next = site.daemon.id("next");
    site.serve(&next, json!([{"ip": "0.0.0.0", "port": site.port, "container_port": 7000}])).await;
    assert_eq!((reach(0, site.port), reach(0, site.spare)), (Answered, Nothing));
    site.daemon.close().await;
}

#[tokio::test]
async fn rules_go_with_their_container_and_nothing_stays() {
    let site = Site::new().await;
    let rule = site.rule(json!({"action": "drop"})).await;
    site.ddos(json!({"enabled": true})).await;
    assert_eq!(site.tcp(0), Nothing);
    site.daemon.client().delete(&format!("/containers/{}", site.id)).await.is(200);
    eventually("the table is gone", SOON, async || site.table().map_or(Ok(()), Err)).await;
    site.daemon.client().get(&super::path_of(&rule)).await.refused(404, "not_found");
    let calls = format!("/firewall/rules/container/{}", site.id);
    site.daemon.client().get(&calls).await.refused(404, "not_found");
    site.daemon.close().await;
}

#[tokio::test]
async fn rules_hold_over_a_restart_of_the_engine() {
    let (mut engine, daemon) = with_an_engine().await;
    let site = Site::on(daemon).await;
    site.all_is_open();
    site.rule(json!({"source_ip": site.outside.v4[0], "action": "drop"})).await;
    site.rule(json!({"source_ip": site.outside.v6[0], "action": "reject"})).await;
    let holds = || (site.tcp(0), site.tcp(1), site.tcp6(0), site.tcp6(1));
    assert_eq!(holds(), (Nothing, Answered, Refused, Answered));
    for signal in [Signal::TERM, Signal::KILL] {
        engine.end(signal).await;
        site.daemon.state(&site.id, "unknown").await;
        engine.launch().await;
        // It may be shown as running once more before its end is seen and it is started again.
        eventually("the rules hold, and it answers", SOON, async || match holds() {
            (Nothing, Answered, Refused, Answered) => Ok(()),
            other => Err(other),
        })
        .await;
    }
    site.daemon.close().await;
}

/// nft fails while a file is there; in a mount namespace of the daemon's own.
#[tokio::test]
async fn what_the_kernel_does_not_take_is_refused_and_not_kept() {
    let mut daemon = Daemon::prepare(|_| {}).await;
    let fails = daemon.folder().join("nft-fails");
    let script = format!(
        "cp /usr/sbin/nft {folder}/nft.real\n\
         printf '#!/bin/sh\\n[ -e {fails} ] && exit 1\\nexec {folder}/nft.real \"$@\"\\n' > {folder}/nft.sh\n\
         chmod +x {folder}/nft.sh\n\
         mount --bind {folder}/nft.sh /usr/sbin/nft\n\
         exec \"$@\"",
        folder = daemon.folder().display(),
        fails = fails.display(),
    );
    daemon.set_wrapper(&["unshare", "--mount", "sh", "-ec", &script, "sh"]);
    daemon.launch().await;
    let site = Site::on(daemon).await;
    let client = site.daemon.client();
    let kept = site.rule(json!({"source_ip": site.outside.v4[0], "action": "drop"})).await;
    File::create(&fails).expect("a file");
    let another = json!({"container_id": site.id, "protocol": "tcp", "action": "drop"});
    let refused = client.post("/firewall/rules", another.clone()).await;
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    refused.refused(503, "firewall_unavailable");
    let toggle = format!("{}/toggle", super::path_of(&kept));
    client.put(&toggle, json!({"enabled": false})).await.refused(503, "firewall_unavailable");
    client.delete(&super::path_of(&kept)).await.refused(503, "firewall_unavailable");
    let ddos = format!("/firewall/ddos/{}", site.id);
    client.post(&ddos, json!({"enabled": true})).await.refused(503, "firewall_unavailable");
    let rules = client.get(&format!("/firewall/rules/container/{}", site.id)).await.is(200);
    assert_eq!(rules["rules"].as_array().map(Vec::len), Some(1), "{rules}");
    assert_eq!(rules["rules"][0]["enabled"], true);
    assert_eq!(rules["rules"][0]["applied"], false, "it is not known");
    assert_eq!(client.get(&ddos).await.is(200)["ddos"]["enabled"], false);
    assert_eq!((site.tcp(0), site.tcp(1)), (Nothing, Answered), "what was set stands");
    // With rules that cannot be set nothing is started.
    let own = format!("/containers/{}/stop", site.id);
    client.post_empty(&own).await.is(202);
    site.daemon.state(&site.id, "offline").await;
    site.daemon.power(&site.id, "start").await;
    site.daemon.shown(&site.id, "the start fails", |shown| shown["start_error"].is_string()).await;
    std::fs::remove_file(&fails).expect("a file to remove");
    client.post("/firewall/rules", another).await.is(201);
    site.daemon.power(&site.id, "start").await;
    site.daemon.state(&site.id, "running").await;
    assert_eq!((site.tcp(0), site.tcp(1), site.udp(1)), (Nothing, Nothing, Answered));
    site.daemon.close().await;
}
