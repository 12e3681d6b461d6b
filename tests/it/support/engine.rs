//! The real container engine, as the tests need it: connected, and clean afterwards.
//!
//! Every test runs its daemon as a node of its own, `test-…`, and all it makes bears that name in the
//! label `lightd.node`. So what a test left behind is found by label, and what a killed test run left
//! behind by label and age.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListNetworksOptions,
    ListNetworksOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
};
use ipnet::Ipv4Net;

use super::SOON;
use super::wait::eventually;

const NODE_LABEL: &str = "lightd.node";
const IMAGE_LABEL: &str = "lightd.image";
const NODE_PREFIX: &str = "test-";
const BRIDGE_OPTION: &str = "com.docker.network.bridge.name";
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// Connects, or ends the test with how to mend it. Nothing is skipped for want of an engine.
pub(crate) async fn connect() -> Docker {
    let docker = Docker::connect_with_unix_defaults().expect(HOW_TO_MEND);
    docker.ping().await.expect(HOW_TO_MEND);
    docker
}

const HOW_TO_MEND: &str = "the tests need a running Docker engine at /var/run/docker.sock: install docker.io \
     and start dockerd, as root";

/// A name for a daemon under test that no other test has.
pub(crate) fn node_name() -> String {
    format!("{NODE_PREFIX}{}", uuid::Uuid::new_v4().simple())
}

/// What is left of a node: names of containers, networks and images.
pub(crate) async fn leftovers(docker: &Docker, node: &str) -> Vec<String> {
    let found = find(docker).await;
    found.into_iter().filter(|thing| thing.node == node).map(|thing| thing.to_string()).collect()
}

/// Removes all that a node made. More than once: what a daemon asked for last may still be in the
/// making when it has ended.
pub(crate) async fn remove_node(docker: &Docker, node: &str) {
    eventually("the engine is as it was", SOON, async || {
        for thing in find(docker).await.into_iter().filter(|thing| thing.node == node) {
            thing.remove(docker).await;
        }
        let left = leftovers(docker, node).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Removes what test runs of more than an hour ago left behind.
pub(crate) async fn sweep(docker: &Docker) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for thing in find(docker).await {
        let age = Duration::from_secs(now.saturating_sub(thing.created_at));
        if thing.node.starts_with(NODE_PREFIX) && age > LEFTOVER_AGE {
            thing.remove(docker).await;
        }
    }
}

/// The IPv4 subnets of all the engine's networks.
pub(crate) async fn subnets(docker: &Docker) -> Vec<Ipv4Net> {
    let listed = docker.list_networks(None::<ListNetworksOptions>).await;
    let listed = listed.expect("a list of networks").into_iter();
    let configs = listed.filter_map(|network| network.ipam?.config).flatten();
    configs.filter_map(|config| config.subnet?.parse().ok()).collect()
}

/// Something in the engine that bears a node's label. The order is the one to remove things in.
struct Thing {
    kind: Kind,
    id: String,
    name: String,
    node: String,
    created_at: u64,
}

#[derive(Debug)]
enum Kind {
    Container,
    Network { bridge: Option<String> },
    Image,
}

impl std::fmt::Display for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

impl Thing {
    /// Failures are left to the next sweep: a test that ends does not fail over them.
    async fn remove(self, docker: &Docker) {
        let removed = match &self.kind {
            Kind::Container => {
                let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
                docker.remove_container(&self.id, Some(options)).await
            }
            Kind::Network { bridge } => {
                bridge.iter().for_each(|bridge| remove_firewall(bridge));
                docker.remove_network(&self.id).await
            }
            Kind::Image => {
                let options = RemoveImageOptionsBuilder::new().force(true).build();
                docker.remove_image(&self.id, Some(options), None).await.map(drop)
            }
        };
        if let Err(error) = removed {
            eprintln!("cannot remove {self}: {error}");
        }
    }
}

/// lightd's tables are named like its bridge.
pub(crate) fn remove_firewall(bridge: &str) {
    let rules = format!("{bridge}_rules");
    for (family, table) in [("inet", bridge), ("bridge", bridge), ("inet", &rules)] {
        let mut nft = Command::new("/usr/sbin/nft");
        nft.args(["delete", "table", family, table]).stderr(Stdio::null());
        // There may be no table, or no nft.
        drop(nft.status());
    }
}

async fn find(docker: &Docker) -> Vec<Thing> {
    let mut found = containers(docker).await;
    found.extend(networks(docker).await);
    found.extend(images(docker).await);
    found
}

fn having(label: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![label.to_owned()])])
}

fn unix_seconds(value: Option<i64>) -> u64 {
    value.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0)
}

async fn containers(docker: &Docker) -> Vec<Thing> {
    let options =
        ListContainersOptionsBuilder::new().all(true).filters(&having(NODE_LABEL)).build();
    let listed = docker.list_containers(Some(options)).await.expect("a list of containers");
    let things = listed.into_iter().filter_map(|found| {
        Some(Thing {
            kind: Kind::Container,
            id: found.id?,
            name: found.names?.into_iter().next()?,
            node: found.labels?.remove(NODE_LABEL)?,
            created_at: unix_seconds(found.created),
        })
    });
    things.collect()
}

async fn networks(docker: &Docker) -> Vec<Thing> {
    let options = ListNetworksOptionsBuilder::new().filters(&having(NODE_LABEL)).build();
    let listed = docker.list_networks(Some(options)).await.expect("a list of networks");
    let things = listed.into_iter().filter_map(|found| {
        let created: Option<jiff::Timestamp> = found.created.and_then(|text| text.parse().ok());
        Some(Thing {
            kind: Kind::Network {
                bridge: found.options.and_then(|mut set| set.remove(BRIDGE_OPTION)),
            },
            id: found.id?,
            name: found.name?,
            node: found.labels?.remove(NODE_LABEL)?,
            created_at: unix_seconds(created.map(jiff::Timestamp::as_second)),
        })
    });
    things.collect()
}

async fn images(docker: &Docker) -> Vec<Thing> {
    let options = ListImagesOptionsBuilder::new().filters(&having(IMAGE_LABEL)).build();
    let listed = docker.list_images(Some(options)).await.expect("a list of images");
    let things = listed.into_iter().filter_map(|mut found| {
        Some(Thing {
            kind: Kind::Image,
            node: found.labels.remove(IMAGE_LABEL)?,
            name: found.repo_tags.first().unwrap_or(&found.id).clone(),
            id: found.id,
            created_at: unix_seconds(Some(found.created)),
        })
    });
    things.collect()
}
