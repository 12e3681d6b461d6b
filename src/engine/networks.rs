//! Bridge networks of our own: made as specified, kept so, and seen.
//!
//! Called by `network::isolation`, again and again: what stands as it should is left alone. A network
//! of the name that is not ours, or that something running hangs on, is a conflict and never replaced.

use std::collections::HashMap;

use bollard::models::{
    Ipam, IpamConfig, NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest,
    NetworkInspect,
};
use bollard::query_parameters::{
    InspectNetworkOptions, ListContainersOptionsBuilder, ListNetworksOptions,
};
use ipnet::{IpNet, Ipv4Net};

use super::error::{EngineError, EngineErrorKind};
use super::{Engine, labels, op, plain_name};

const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const BRIDGE_ICC: &str = "com.docker.network.bridge.enable_icc";
const BRIDGE_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";

/// A bridge network. Its containers reach the outside by address translation, have IPv4 only, and
/// with `icc` off the engine keeps them from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BridgeSpec {
    /// The network's name in the engine.
    pub(crate) name: String,
    /// The name of the Linux interface, at most 15 bytes.
    pub(crate) bridge_name: String,
    pub(crate) subnet: Ipv4Net,
    pub(crate) icc: bool,
}

/// A subnet that one of the engine's networks has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UsedSubnet {
    pub(crate) network: String,
    pub(crate) subnet: IpNet,
}

impl Engine {
    /// Makes the network as specified. One of the same name with other options is replaced if it is
    /// ours and nothing that runs is attached to it, and a conflict otherwise. Containers that do not
    /// run are moved over.
    pub(crate) async fn ensure_bridge(&self, spec: &BridgeSpec) -> Result<(), EngineError> {
        let target = plain_name(op::NETWORK, "network", &spec.name)?;
        let Some(found) = self.find_network(&spec.name).await? else {
            return self.create_bridge(spec).await;
        };
        let Some(obstacle) = difference(spec, self.node(), &found) else { return Ok(()) };
        if obstacle.is_foreign || found.containers.is_some_and(|running| !running.is_empty()) {
            let why = format!("a network of this name exists already, {}", obstacle.why);
            let kind = EngineErrorKind::Conflict;
            return Err(EngineError::said(op::NETWORK, target, kind, why));
        }
        tracing::info!(network = %spec.name, "making the network anew: it exists {}", obstacle.why);
        // A container knows its network by an id: left alone, it would never start again.
        let attached = self.attached_to(&spec.name).await?;
        for id in &attached {
            self.disconnect(&spec.name, id).await?;
        }
        self.remove_network(&spec.name).await?;
        self.create_bridge(spec).await?;
        for id in &attached {
            self.connect(&spec.name, id).await?;
        }
        Ok(())
    }

    async fn create_bridge(&self, spec: &BridgeSpec) -> Result<(), EngineError> {
        let target = plain_name(op::NETWORK, "network", &spec.name)?;
        let body = create_body(spec, self.node());
        self.call(op::NETWORK, target, |docker| async move {
            docker.create_network(body).await.map(drop)
        })
        .await
    }

    /// All containers of the network, running or not.
    async fn attached_to(&self, network: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("network".to_owned(), vec![network.to_owned()])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let found = self
            .call(op::LIST, "containers", |docker| async move {
                docker.list_containers(Some(options)).await
            })
            .await?;
        Ok(found.into_iter().filter_map(|container| container.id).collect())
    }

    async fn disconnect(&self, network: &str, container: &str) -> Result<(), EngineError> {
        let target = format!("network {network}");
        let body = NetworkDisconnectRequest { container: container.to_owned(), force: Some(true) };
        self.call(op::NETWORK, target, |docker| async move {
            docker.disconnect_network(network, body).await
        })
        .await
    }

    async fn connect(&self, network: &str, container: &str) -> Result<(), EngineError> {
        let target = format!("network {network}");
        let body = NetworkConnectRequest { container: container.to_owned(), endpoint_config: None };
        self.call(op::NETWORK, target, |docker| async move {
            docker.connect_network(network, body).await
        })
        .await
    }

    /// `Ok` as well if it is not there.
    pub(crate) async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        let target = plain_name(op::NETWORK, "network", name)?;
        let removed = self
            .call(op::NETWORK, target, |docker| async move { docker.remove_network(name).await })
            .await;
        match removed {
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// The subnets of all networks of the engine, ours among them.
    pub(crate) async fn subnets_in_use(&self) -> Result<Vec<UsedSubnet>, EngineError> {
        let networks = self
            .call(op::LIST, "networks", |docker| async move {
                docker.list_networks(None::<ListNetworksOptions>).await
            })
            .await?;
        let mut used = Vec::new();
        for network in networks {
            let name = network.name.unwrap_or_default();
            let configs = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
            let subnets =
                configs.iter().filter_map(|config| config.subnet.as_deref()?.parse().ok());
            used.extend(subnets.map(|subnet| UsedSubnet { network: name.clone(), subnet }));
        }
        Ok(used)
    }

    async fn find_network(&self, name: &str) -> Result<Option<NetworkInspect>, EngineError> {
        let target = plain_name(op::NETWORK, "network", name)?;
        let found = self
            .call(op::NETWORK, target, |docker| async move {
                docker.inspect_network(name, None::<InspectNetworkOptions>).await
            })
            .await;
        match found {
            // The engine also finds networks by the beginning of their id.
            Ok(found) => Ok(Some(found).filter(|found| found.name.as_deref() == Some(name))),
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn create_body(spec: &BridgeSpec, node: &str) -> NetworkCreateRequest {
    NetworkCreateRequest {
        name: spec.name.clone(),
        driver: Some("bridge".to_owned()),
        enable_ipv6: Some(false),
        ipam: Some(Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(spec.subnet.trunc().to_string()),
                ..IpamConfig::default()
            }]),
            ..Ipam::default()
        }),
        options: Some(options(spec)),
        labels: Some(HashMap::from([(labels::NODE.to_owned(), node.to_owned())])),
        ..NetworkCreateRequest::default()
    }
}

fn options(spec: &BridgeSpec) -> HashMap<String, String> {
    HashMap::from([
        (BRIDGE_NAME.to_owned(), spec.bridge_name.clone()),
        (BRIDGE_ICC.to_owned(), spec.icc.to_string()),
        (BRIDGE_MASQUERADE.to_owned(), "true".to_owned()),
    ])
}

struct Difference {
    why: String,
    is_foreign: bool,
}

/// What makes an existing network another one than is wanted.
fn difference(spec: &BridgeSpec, node: &str, found: &NetworkInspect) -> Option<Difference> {
    let differs = |why: String| Some(Difference { why, is_foreign: false });
    let label = found.labels.as_ref().and_then(|labels| labels.get(labels::NODE));
    if label.map(String::as_str) != Some(node) {
        let why = "and was not made by this lightd".to_owned();
        return Some(Difference { why, is_foreign: true });
    }
    if found.driver.as_deref() != Some("bridge") || found.enable_ipv6 == Some(true) {
        return differs("with another driver or with IPv6".to_owned());
    }
    let subnet = spec.subnet.trunc().to_string();
    let configs = found.ipam.as_ref().and_then(|ipam| ipam.config.as_deref()).unwrap_or_default();
    if !matches!(configs, [only] if only.subnet.as_ref() == Some(&subnet)) {
        return differs(format!("with another subnet than {subnet}"));
    }
    let set = found.options.clone().unwrap_or_default();
    let wanted = options(spec).into_iter().find(|(key, value)| set.get(key) != Some(value));
    wanted.and_then(|(key, value)| differs(format!("with another value than {value} of {key}")))
}

#[cfg(test)]
impl Engine {
    pub(super) async fn remove_our_networks(&self) -> Result<(), EngineError> {
        let filters = labels::filter(labels::NODE, self.node());
        let options =
            bollard::query_parameters::ListNetworksOptionsBuilder::new().filters(&filters).build();
        let found = self
            .call(op::LIST, "networks", |docker| async move {
                docker.list_networks(Some(options)).await
            })
            .await?;
        for name in found.into_iter().filter_map(|network| network.name) {
            self.remove_network(&name).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> BridgeSpec {
        BridgeSpec {
            name: "lightd0".to_owned(),
            bridge_name: "lightd0".to_owned(),
            subnet: "10.86.0.0/20".parse().expect("a subnet"),
            icc: false,
        }
    }

    fn as_made(spec: &BridgeSpec) -> NetworkInspect {
        let body = create_body(spec, "n");
        NetworkInspect {
            name: Some(body.name),
            driver: body.driver,
            enable_ipv6: body.enable_ipv6,
            ipam: body.ipam,
            options: body.options,
            labels: body.labels,
            ..NetworkInspect::default()
        }
    }

    #[test]
    fn a_network_as_we_make_it_is_left_alone() {
        assert!(difference(&spec(), "n", &as_made(&spec())).is_none());
    }

    #[test]
    fn every_option_that_matters_is_compared() {
        let other_subnet = BridgeSpec { subnet: "10.87.0.0/20".parse().expect("one"), ..spec() };
        let other_bridge = BridgeSpec { bridge_name: "br1".to_owned(), ..spec() };
        for other in [other_subnet, other_bridge, BridgeSpec { icc: true, ..spec() }] {
            let found = difference(&spec(), "n", &as_made(&other));
            assert!(found.is_some_and(|found| !found.is_foreign), "{other:?}");
        }
        let foreign = difference(&spec(), "another node", &as_made(&spec()));
        assert!(foreign.is_some_and(|found| found.is_foreign));
    }
}
